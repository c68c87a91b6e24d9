"""Finding and reading cases: every layout, every fault of names, and masks that must lie on their images."""

import json

import nibabel
import numpy as np
import pytest
from tests.shared import shared

from nissl.config import DataConfig
from nissl.data.cases import CaseFile, load_case
from nissl.data.discovery import find_cases, scan
from nissl.errors import DataError, InputError
from nissl.imageio.formats import write_image, write_mask
from nissl.imageio.label_map import LabelMap

BINARY = LabelMap.parse("binary")


def folder(root, names, masked=(), images="images", masks="masks", suffix=".png"):
    """A data set of noise with a square in each mask."""
    for place in (images, masks):
        (root / place).mkdir(parents=True, exist_ok=True)
    labels = np.zeros((20, 24), int)
    labels[4:9, 5:12] = 1
    for n, name in enumerate(names):
        write_image(root / images / f"{name}{suffix}", np.random.default_rng(n).integers(0, 255, (1, 20, 24), np.uint8))
    for name in masked:
        write_mask(root / masks / f"{name}{suffix}", labels, None)
    return root


def only_error(root, **settings):
    """The one fault that the names show; find_cases must raise it."""
    errors = [finding for finding in scan(root, DataConfig(**settings)).findings if finding.level == "error"]
    with pytest.raises(DataError) as caught:
        find_cases(root, DataConfig(**settings))
    assert len(errors) == 1
    assert (caught.value.where, caught.value.found) == (errors[0].where, errors[0].found)
    assert caught.value.expected and caught.value.fix
    return caught.value


def test_images_and_masks_of_one_stem_are_a_case(tmp_path):
    folder(tmp_path, "bac", "ac")
    (tmp_path / "images" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "images" / "._a.png").write_bytes(b"x")
    found = find_cases(tmp_path, DataConfig())
    assert [case.id for case in found.cases] == ["a", "b", "c"]
    assert [case.target is not None for case in found.cases] == [True, False, True]
    assert (found.dims, found.channels, found.layout, found.root) == (2, 1, "images+masks", tmp_path)
    assert found.label_map.names == ("background", "foreground")


def test_the_suffixes_of_image_and_mask_may_differ(tmp_path):
    folder(tmp_path, ["a.b"], [])
    write_mask(tmp_path / "masks" / "a.b.TIF", np.zeros((20, 24), int), None)
    assert find_cases(tmp_path, DataConfig()).cases[0].target == tmp_path / "masks" / "a.b.TIF"


def test_two_folders_given_by_settings(tmp_path):
    folder(tmp_path, "ab", "a", images="scans", masks="drawn")
    given = find_cases(tmp_path, DataConfig(images=tmp_path / "scans", masks=tmp_path / "drawn"))
    assert given.layout == "folders" and [bool(case.target) for case in given.cases] == [True, False]
    unlabelled = find_cases(tmp_path, DataConfig(images=tmp_path / "scans"))
    assert [case.target for case in unlabelled.cases] == [None, None]
    for flag, settings in (
        ("--data.images", {"images": tmp_path / "no"}),
        ("--data.masks", {"images": tmp_path / "scans", "masks": tmp_path / "no"}),
    ):
        with pytest.raises(InputError) as caught:
            find_cases(tmp_path, DataConfig(**settings))
        assert caught.value.where == str(tmp_path / "no") and flag in caught.value.fix


def test_decathlon_takes_its_labels_and_leaves_the_hidden_test_images_out(tmp_path):
    for place, names in (("imagesTr", "ab"), ("labelsTr", "a"), ("imagesTs", "z")):
        (tmp_path / place).mkdir()
        for name in names:
            write_image(tmp_path / place / f"{name}.nii.gz", np.zeros((1, 8, 9, 10), np.uint8), (1.0, 1.0, 1.0))
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "1": "head"}}))
    found = find_cases(tmp_path, DataConfig())
    assert [case.id for case in found.cases] == ["a", "b"] and found.layout == "decathlon" and found.dims == 3
    assert found.label_map.names == ("background", "head")
    assert find_cases(tmp_path, DataConfig(label_map="binary")).label_map == BINARY
    (tmp_path / "dataset.json").write_text("{")
    assert "dataset.json" in only_error(tmp_path).where
    assert find_cases(tmp_path, DataConfig(label_map="binary")).dims == 3


@pytest.mark.parametrize("content", [[], ["pictures"], ["images"], ["images/notes.txt", "images/scan.czi"]])
def test_folders_without_images_are_refused(tmp_path, content):
    for name in content:
        path = tmp_path / name
        (path.parent if path.suffix else path).mkdir(parents=True, exist_ok=True)
        if path.suffix:
            path.write_text("x")
    with pytest.raises(InputError) as caught:
        find_cases(tmp_path, DataConfig())
    message = str(caught.value)
    assert str(tmp_path) in message and "--data.images" in message
    assert all(name.rpartition(".")[2].rpartition("/")[2] in message for name in content)


def test_a_missing_folder_and_a_file_in_its_place_are_named(tmp_path):
    (tmp_path / "file").write_text("x")
    for name, found in (("absent", "no such folder"), ("file", "a file")):
        with pytest.raises(InputError) as caught:
            find_cases(tmp_path / name, DataConfig())
        assert (caught.value.where, caught.value.found) == (str(tmp_path / name), found)


def test_an_empty_mask_folder_is_refused(tmp_path):
    error = only_error(folder(tmp_path, "ab"))
    assert error.where == str(tmp_path / "masks") and "empty" in error.found


def test_f18_a_mask_without_image_is_named_and_no_image_of_another_case_is_suggested(tmp_path):
    error = only_error(folder(tmp_path / "other", ["case_1", "case_2"], ["case_1", "case_22"]))
    assert error.where.endswith("case_22.png") and "without image" in error.found
    assert "case_2`" not in str(error)
    error = only_error(folder(tmp_path / "written", ["case_1", "case_2"], ["case_1", "Case 02"]))
    assert "did you mean `case_2`" in error.found


@pytest.mark.parametrize("twin", ["a.tif", "A.png"])
@pytest.mark.parametrize("place", ["images", "masks"])
def test_f18_f27_two_files_of_one_id_are_refused(tmp_path, twin, place):
    folder(tmp_path, "ab", "ab")
    write_image(tmp_path / place / twin, np.zeros((1, 20, 24), np.uint8))
    error = only_error(tmp_path)
    assert "a.png" in error.found and twin in error.found and place in error.where


def test_f27_upper_and_lower_case_do_not_part_a_mask_from_its_image(tmp_path):
    folder(tmp_path, ["Case_B", "case_a"], ["CASE_b"])
    cases = find_cases(tmp_path, DataConfig()).cases
    assert [(case.id, case.target is not None) for case in cases] == [("Case_B", True), ("case_a", False)]


def test_the_first_of_several_faults_says_how_many_there_are(tmp_path):
    folder(tmp_path, "ab", "axy")
    with pytest.raises(DataError) as caught:
        find_cases(tmp_path, DataConfig())
    assert f"nissl check {tmp_path}" in caught.value.fix and "all 2 faults" in caught.value.fix


def test_other_kinds_of_files_are_a_warning(tmp_path):
    folder(tmp_path, "a", "a")
    (tmp_path / "images" / "b.czi").write_bytes(b"x")
    warning = scan(tmp_path, DataConfig()).findings[0]
    assert warning.level == "warning" and "b.czi" in warning.found
    assert len(find_cases(tmp_path, DataConfig()).cases) == 1


def test_groups_and_splits_come_from_the_table(tmp_path):
    folder(tmp_path, "abcd", "abcd")
    (tmp_path / "cases.csv").write_text("\ufeffid, split,note,group\na,train,x,p1\nb,testA,,p2\nc,Test,,\n", "utf-8")
    cases = find_cases(tmp_path, DataConfig()).cases
    assert [(case.group, case.split) for case in cases] == [
        ("p1", "train"),
        ("p2", "test"),
        (None, "test"),
        (None, None),
    ]


@pytest.mark.parametrize(
    ("table", "line", "said"),
    [
        ("id,split\na,train\nb,val\n", 3, "`val`"),
        ("id,split\nab,train\n", 2, "`ab`"),
        ("id,group\na,p\nb,p\na,q\n", 4, "second time"),
        ("name;split\na;train\n", 1, "name;split"),
        ("", 1, "none"),
    ],
)
def test_faults_of_the_table_name_their_line(tmp_path, table, line, said):
    folder(tmp_path, "ab", "ab")
    (tmp_path / "cases.csv").write_text(table)
    error = only_error(tmp_path)
    assert error.where == f"{tmp_path / 'cases.csv'}, line {line}" and said in error.found


def test_a_table_in_another_coding_is_named(tmp_path):
    folder(tmp_path, "ab", "ab")
    (tmp_path / "cases.csv").write_bytes("id,group\na,Müller\n".encode("latin-1"))
    assert "UTF-8" in only_error(tmp_path).fix


def test_one_unreadable_image_does_not_hide_the_others(tmp_path):
    folder(tmp_path, "ab", "ab")
    (tmp_path / "images" / "a.png").write_bytes(b"")
    assert find_cases(tmp_path, DataConfig()).channels == 1
    (tmp_path / "images" / "b.png").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        find_cases(tmp_path, DataConfig())
    assert caught.value.where.endswith("a.png")


def test_a_wrong_label_map_is_refused_at_once(tmp_path):
    with pytest.raises(InputError, match="label-map"):
        find_cases(folder(tmp_path, "a", "a"), DataConfig(label_map="0,x"))


def test_a_case_is_read_with_its_mask_and_spacing(tmp_path):
    write_image(tmp_path / "i.nii.gz", np.ones((1, 5, 6, 7), np.float32) * 3, (2.0, 1.0, 0.5))
    write_image(tmp_path / "m.nii.gz", np.full((1, 5, 6, 7), 9, np.uint8), (2.0, 1.0, 0.5))
    case = load_case(CaseFile("x", tmp_path / "i.nii.gz", tmp_path / "m.nii.gz", "p"), BINARY)
    assert case.image.shape == (1, 5, 6, 7) and case.target.shape == (5, 6, 7) and case.target.all()
    assert (case.id, case.group, case.spacing) == ("x", "p", (2.0, 1.0, 0.5))
    assert load_case(CaseFile("x", tmp_path / "i.nii.gz"), BINARY).target is None


def nifti(path, shape=(8, 9, 10), affine=None):
    nibabel.save(nibabel.Nifti1Image(np.ones(shape, np.uint8), np.eye(4) if affine is None else affine), path)
    return path


def pair(tmp_path, shape=(8, 9, 10), affine=None):
    return CaseFile("a", nifti(tmp_path / "image.nii"), nifti(tmp_path / "mask.nii", shape, affine))


def test_f19_shapes_must_agree(tmp_path):
    for shape in ((8, 9, 11), (8, 9), (9, 8, 10)):
        with pytest.raises(DataError) as caught:
            load_case(pair(tmp_path, shape), BINARY)
        assert "image.nii" in caught.value.where and "mask.nii" in caught.value.where
        assert caught.value.found == f"image 8 x 9 x 10, mask {' x '.join(map(str, shape))}"


def test_f20_spacing_may_differ_by_rounding_only(tmp_path):
    load_case(pair(tmp_path, affine=np.diag([1 + 1e-7, 1, 1, 1])), BINARY)
    with pytest.raises(DataError) as caught:
        load_case(pair(tmp_path, affine=np.diag([1, 1, 1.01, 1])), BINARY)
    assert caught.value.found == "spacing of the image 1 x 1 x 1 mm, of the mask 1 x 1 x 1.01 mm"


def test_f21_a_flipped_or_shifted_mask_is_refused(tmp_path):
    shift, flip, nudge = np.eye(4), np.diag([-1.0, 1, 1, 1]), np.eye(4)
    shift[1, 3], flip[0, 3], nudge[1, 3] = 3.0, 7.0, 1e-4
    load_case(pair(tmp_path, affine=nudge), BINARY)
    for affine, apart in ((shift, "3 voxels"), (flip, "7 voxels")):
        with pytest.raises(DataError) as caught:
            load_case(pair(tmp_path, affine=affine), BINARY)
        assert apart in caught.value.found and "affine" in caught.value.expected


def test_f24_nan_pixels_never_reach_the_training(tmp_path):
    pixels = np.ones((1, 20, 20), np.float32)
    pixels[0, 3, 4:6] = np.nan, np.inf
    write_image(tmp_path / "a.tif", pixels)
    with pytest.raises(DataError) as caught:
        load_case(CaseFile("a", tmp_path / "a.tif"), BINARY)
    assert "2 of 400" in caught.value.found


def test_a_mask_with_an_axis_of_one_is_accepted(tmp_path):
    write_image(tmp_path / "i.tif", np.ones((1, 20, 24), np.uint8))
    write_image(tmp_path / "m.tif", np.ones((1, 1, 20, 24), np.uint8))
    assert load_case(CaseFile("a", tmp_path / "i.tif", tmp_path / "m.tif"), BINARY).target.shape == (20, 24)


def test_real_sets_are_found_as_their_sources_describe_them():
    glas = find_cases(shared("glas"), DataConfig(label_map="binary"))
    assert len(glas.cases) == 165 and (glas.dims, glas.channels) == (2, 3)
    assert sum(case.split == "train" for case in glas.cases) == 85
    assert len({case.group for case in glas.cases}) == 16
    hippocampus = find_cases(shared("hippocampus"), DataConfig())
    assert len(hippocampus.cases) == 130 and (hippocampus.dims, hippocampus.channels) == (3, 1)
    assert hippocampus.label_map.names == ("background", "Anterior", "Posterior")


@pytest.mark.parametrize(("colour", "channels"), [("as-found", (1, 3)), ("rgb", (3, 3)), ("gray", (1, 1))])
def test_gray_and_colour_images_can_be_brought_together(tmp_path, colour, channels):
    write_image(tmp_path / "gray.png", np.full((1, 4, 5), 90, np.uint8))
    write_image(tmp_path / "rgb.png", np.stack([np.full((4, 5), value, np.uint8) for value in (200, 100, 50)]))
    config = DataConfig(colour=colour)
    gray, rgb = (load_case(CaseFile("x", tmp_path / name), BINARY, config).image for name in ("gray.png", "rgb.png"))
    assert (len(gray), len(rgb)) == channels
    assert gray.dtype == rgb.dtype == np.uint8 and (gray == 90).all()
    if colour == "gray":
        assert (rgb == round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)).all()


def test_more_channels_than_three_are_left_alone(tmp_path):
    write_image(tmp_path / "five.tif", np.zeros((5, 4, 4), np.uint16))
    for colour in ("gray", "rgb"):
        case = load_case(CaseFile("x", tmp_path / "five.tif"), BINARY, DataConfig(colour=colour))
        assert case.image.shape == (5, 4, 4)
