"""Masks whose values, axes or size say something else than one would think: named by `check` and `train` alike."""

import json

import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageFilter
from pydicom.dataset import Dataset
from tests.dicom_files import place, write_file, write_series
from tests.tiny_data import FLAGS, write_tiny

from nissl import cli
from nissl.config import DataConfig
from nissl.data.cases import CaseFile, load_case, pair_faults
from nissl.data.check import check
from nissl.errors import DataError
from nissl.imageio.formats import read_raster, write_image, write_mask
from nissl.imageio.label_map import LabelMap


def answers(root, capsys, *flags):
    """Exit codes of `check` and of `train`, and what both say."""
    capsys.readouterr()
    label_map = ["--data.label-map", *flags[1:]] if flags[:1] == ("--label-map",) else []
    checked = cli.run(["check", str(root), *label_map])
    told = capsys.readouterr().out
    settings = [*FLAGS, "--pretrain", "none", *flags]
    trained = cli.run(["train", str(root), "--out", str(root.parent / f"run{len(flags)}{flags[-1:]}"), *settings])
    return (checked, trained), (told, capsys.readouterr().err)


def redraw(root, draw):
    """Write each mask anew by a function of its path and its pixels of 0 and 1."""
    for path in sorted((root / "masks").iterdir()):
        draw(path, (read_raster(path).pixels[0] > 0).astype(np.uint8))


def as_jpeg(path, mask):
    Image.fromarray(mask * 255).save(path, format="JPEG", quality=75)


def as_jpeg_tiff(path, mask):
    path.unlink()
    options = {"compression": "jpeg", "compressionargs": {"level": 75}, "rowsperstrip": len(mask)}
    tifffile.imwrite(path.with_suffix(".tif"), mask * 255, **options)


def smoothed(path, mask):
    Image.fromarray(mask * 255).filter(ImageFilter.GaussianBlur(1)).save(path)


@pytest.mark.parametrize("draw", [as_jpeg, as_jpeg_tiff, smoothed])
def test_f71_gray_edges_are_refused_by_check_and_train_and_accepted_by_a_threshold(tmp_path, draw, capsys):
    root = write_tiny(tmp_path / "data")
    redraw(root, draw)
    codes, told = answers(root, capsys, "--label-map", "binary")
    assert codes == (3, 3) and all("--label-map threshold=127" in text for text in told)
    codes, _ = answers(root, capsys, "--label-map", "threshold=127")
    assert codes == (0, 0)


def test_f72_new_masks_have_the_values_of_the_masks_that_were_learnt_from(tmp_path, capsys):
    root = write_tiny(tmp_path / "data")
    redraw(root, lambda path, mask: write_mask(path, mask * 255))
    codes, _ = answers(root, capsys, "--label-map", "binary")
    assert codes == (0, 0)
    run, out = root.parent / "run2('binary',)", tmp_path / "out"
    assert cli.run(["predict", str(run), str(root / "images"), "--out", str(out)]) == 0
    assert "0 is background, 255 is foreground" in capsys.readouterr().out.splitlines()[-1]
    record = json.loads((out / "predictions.json").read_text())
    assert record["values"] == {"background": 0, "foreground": 255}
    values = {int(value) for path in out.glob("*.png") for value in np.unique(read_raster(path).pixels)}
    assert values <= {0, 255}


def test_f73_structures_that_the_size_loses_are_told_with_what_to_do(tmp_path, capsys):
    root = write_tiny(tmp_path / "data")
    spots = np.zeros((640, 640), np.uint8)
    spots[5::32, 5::32] = 1
    for path in sorted((root / "images").iterdir()):
        write_image(path, np.random.default_rng(len(path.name)).integers(0, 255, (1, 640, 640), np.uint8))
    redraw(root, lambda path, mask: write_mask(path, spots | (np.kron(mask, np.ones((20, 20), np.uint8)))))
    codes, told = answers(root, capsys, "--labels", "3")
    assert codes[1] == 0
    assert all("structures in" in text and "--data.sampling patches" in text for text in told)
    assert "in 7 masks" in told[0] and "in 3 masks" in told[1]  # the training opens no other
    assert not [found for found in check(root, DataConfig(sampling="patches")).findings if "structures" in found.found]


@pytest.mark.parametrize("dims", [2, 3])
def test_f74_pictures_and_nifti_in_one_pair_are_refused_both_ways(tmp_path, dims):
    side, kind = (20,) * dims, ".png" if dims == 2 else ".tif"
    pixels = np.random.default_rng(0).integers(0, 2, side, np.uint8)
    write_mask(tmp_path / f"a{kind}", pixels)
    nibabel.save(nibabel.Nifti1Image(pixels.T.reshape(side + (1,) * (3 - dims)), np.eye(4)), tmp_path / "a.nii.gz")
    names = (tmp_path / f"a{kind}", tmp_path / "a.nii.gz")
    for image, mask, fix in ((*names, "rows first"), (*names[::-1], "as NIfTI")):
        with pytest.raises(DataError) as caught:
            load_case(CaseFile("a", image, mask), LabelMap.parse("0,1"))
        assert "place in space" in caught.value.found and fix in caught.value.fix
    for name in names:
        assert not [*pair_faults(CaseFile("a", name, name), read_raster(name), read_raster(name))]


def test_f75_directions_and_spacings_that_differ_are_told_by_check_and_train(tmp_path, capsys):
    root = write_tiny(tmp_path / "data", dims=3)
    for path in sorted((root / "images").iterdir()):
        affine = np.diag([1, 1, 1 + 4 * ("3" in path.name), 1]) @ np.diag([-1 if "6" in path.name else 1, 1, 1, 1])
        for place_ in (root / "images" / path.name, root / "masks" / path.name):
            if place_.exists():
                image = nibabel.Nifti1Image(read_raster(place_).pixels[0], affine)
                nibabel.save(image, place_.with_name(place_.name.split(".")[0] + ".nii.gz"))
                if not place_.name.endswith(".nii.gz"):
                    place_.unlink()
    codes, told = answers(root, capsys, "--labels", "field003,field006", "--size", "16")
    assert codes == (0, 0)
    for text, fewest in zip(told, (7, 1), strict=True):
        assert f"RAS ({fewest} cases" in text and "LAS (1 cases, such as field006" in text
        assert "1 x 1 x 5 mm (1 cases, such as field003" in text


def item(**elements):
    part = Dataset()
    for keyword, value in elements.items():
        setattr(part, keyword, value)
    return part


def segmentation(path, frames, numbers, slices, **elements):
    """A segmentation object: of each frame its segment and the slice that it lies on."""
    shared = item(
        PlaneOrientationSequence=[item(ImageOrientationPatient=place(0)["ImageOrientationPatient"])],
        PixelMeasuresSequence=[item(PixelSpacing=[0.7, 0.5])],
    )
    own = [
        item(
            PlanePositionSequence=[item(ImagePositionPatient=place(n)["ImagePositionPatient"])],
            SegmentIdentificationSequence=[item(ReferencedSegmentNumber=number)],
        )
        for number, n in zip(numbers, slices, strict=True)
    ]
    groups = {"SharedFunctionalGroupsSequence": [shared], "PerFrameFunctionalGroupsSequence": own}
    kind = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.4", "SegmentationType": "BINARY"}
    return write_file(path, frames, **(kind | groups | elements))


def test_f76_segmentation_objects_are_read_whole_or_refused_for_what_they_are(tmp_path):
    volume = np.random.default_rng(0).integers(0, 900, (6, 20, 30)).astype(np.uint16)
    labels, binary = (volume > 600).astype(np.uint8), LabelMap.parse("0,1")
    series = write_series(tmp_path / "series", volume)
    whole = segmentation(tmp_path / "whole.dcm", labels[[3, 0, 1, 2, 5, 4]], [1] * 6, [3, 0, 1, 2, 5, 4])
    case = load_case(CaseFile("x", series, whole), binary)
    np.testing.assert_array_equal(case.target, labels.transpose(2, 1, 0))
    kinds = {
        "ends": ([1] * 4, [1, 2, 3, 4], {}),
        "gap": ([1] * 4, [0, 1, 4, 5], {}),
        "single": ([1], [2], {}),
        "double": ([1] * 4 + [2] * 4, [1, 2, 3, 4] * 2, {}),
        "beside": ([1, 1, 1, 2, 2, 2], [0, 1, 2, 3, 4, 5], {}),
        "fractions": ([1] * 6, [0, 1, 2, 3, 4, 5], {"SegmentationType": "FRACTIONAL"}),
    }
    for name, (numbers, slices, elements) in kinds.items():
        path = segmentation(tmp_path / f"{name}.dcm", labels[slices], numbers, slices, **elements)
        with pytest.raises(DataError) as caught:
            load_case(CaseFile("x", series, path, alias="dicom-1"), binary)
        assert "segmentation object" in caught.value.found and "as NIfTI" in caught.value.fix, name
        assert f"{name}.dcm" not in str(caught.value)


def test_f77_ignored_values_and_an_unclear_background_are_refused_by_every_verb(tmp_path, capsys):
    root = write_tiny(tmp_path / "data")
    for text, found in (("0=background,1=cell,255=ignore", "leave pixels out"), ("2=cell,1=nerve", "no background")):
        codes, told = answers(root, capsys, "--label-map", text)
        assert codes == (2, 2)
        assert capsys.readouterr() == ("", "")
        assert found in told[1]


def test_f77_the_background_is_class_0_wherever_it_stands(tmp_path, capsys):
    root = write_tiny(tmp_path / "data")
    redraw(root, lambda path, mask: write_mask(path, 255 - 255 * mask))
    codes, _ = answers(root, capsys, "--label-map", "0=membrane,255=background")
    assert codes == (0, 0)
    facts = check(root, DataConfig(label_map="0=membrane,255=background")).facts
    (run,) = tmp_path.glob("run*")
    assert json.loads((run / "data.json").read_text())["classes"] == ["background", "membrane"]
    assert facts["class_frequencies"]["background"] > 0.5
