"""Names, folders and tables as people have them: each is read rightly, or named with its fix; nothing is left out."""

import json
import os
import subprocess
import sys

import nibabel
import numpy as np
import pytest
from PIL import Image
from tests.tiny_data import FLAGS

from nissl import cli
from nissl.config import DataConfig, SplitConfig
from nissl.data.cases import CaseFile
from nissl.data.check import check
from nissl.data.discovery import find_cases, scan
from nissl.data.naming import spelling, suggest
from nissl.data.split import make_split
from nissl.errors import DataError, InputError


def picture(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng([seed, *path.stem.encode(errors="surrogateescape")]).integers(0, 255, (32, 32))
    Image.fromarray(pixels.astype(np.uint8)).save(path, "PNG")


def mask(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((32, 32), np.uint8)
    pixels[8:20, 8:20] = 1
    Image.fromarray(pixels).save(path, "PNG")


def make(root, images, masks=(), image_folder="images", mask_folder="masks"):
    for name in images:
        picture(root / image_folder / f"{name}.png")
    for name in masks:
        mask(root / mask_folder / f"{name}.png")
    return root


def errors(root, **settings):
    return [finding for finding in scan(root, DataConfig(**settings)).findings if finding.level == "error"]


def warnings(root, **settings):
    return [finding for finding in scan(root, DataConfig(**settings)).findings if finding.level == "warning"]


def command(*arguments):
    return cli.run([str(argument) for argument in arguments])


def train(data, out, *flags):
    return command("train", data, "--out", out, *FLAGS, "--pretrain", "none", *flags)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    assert train(make(root / "data", "abcd", "abcd"), root / "run") == 0
    return root / "run"


# 80: names that add something


NAMES = [
    ("{}", "{}_mask", "", "*_mask"),
    ("{}", "{}_segmentation", "", "*_segmentation"),
    ("{}", "mask-{}", "", "mask-*"),
    ("{}_0000", "{}", "*_0000", ""),
    ("img_{}", "label_{}", "img_*", "label_*"),
    ("{}_training", "{}_manual1", "*_training", "*_manual1"),
]


@pytest.mark.parametrize(("image", "drawn", "image_pattern", "mask_pattern"), NAMES)
def test_f80_one_finding_names_the_pattern_and_with_it_every_mask_has_its_image(
    tmp_path, image, drawn, image_pattern, mask_pattern
):
    ids = [f"{number:03d}" for number in range(1, 13)]
    make(tmp_path, map(image.format, ids), map(drawn.format, ids[:7]))
    (error,) = errors(tmp_path)
    given = {"image_pattern": image_pattern, "mask_pattern": mask_pattern}
    for key, pattern in given.items():
        flag = f"--data.{key.replace('_', '-')} '{pattern}'"
        assert (flag in error.fix) if pattern else (f"--data.{key.replace('_', '-')}" not in error.fix)
    assert "7 masks" in error.found and ("nnU-Net" in error.fix) == (image_pattern == "*_0000")
    found = find_cases(tmp_path, DataConfig(**{key: pattern for key, pattern in given.items() if pattern}))
    assert [case.id for case in found.cases] == ids
    for case in found.cases:
        assert case.image.stem == image.format(case.id)
        assert (case.target and case.target.stem) == (drawn.format(case.id) if case.id in ids[:7] else None)


def test_f80_masks_beside_their_images_are_told_from_them(tmp_path):
    make(tmp_path, ["a", "b", "c", "d_masks_left"], ["a_cp_masks", "b_cp_masks"], mask_folder="images")
    (error,) = errors(tmp_path)
    assert "2 images" in error.found and "'*_cp_masks'" in error.fix
    cases = find_cases(tmp_path, DataConfig(mask_pattern="*_cp_masks")).cases
    assert [(case.id, case.target is not None) for case in cases] == [
        ("a", True),
        ("b", True),
        ("c", False),
        ("d_masks_left", False),
    ]


def test_f80_files_that_do_not_fit_a_given_pattern_are_counted(tmp_path):
    make(tmp_path, ["a_0000", "a_0001", "b_0000"], ["a"])
    (warning,) = warnings(tmp_path, image_pattern="*_0000")
    assert "1 file whose names do not fit `*_0000`" in warning.found
    for wrong in ("", "_mask", "*a*"):
        with pytest.raises(InputError, match="mask_pattern"):
            DataConfig(mask_pattern=wrong)


def test_f80_the_layout_of_nnunet_is_named_and_read_with_its_labels(tmp_path):
    for number, (folder, end) in enumerate([("imagesTr", "_0000"), ("imagesTr", "_0001"), ("labelsTr", "")]):
        (tmp_path / folder).mkdir(exist_ok=True)
        for name in ("x_001", "x_002"):
            volume = nibabel.Nifti1Image(np.full((5, 5, 5), number, np.uint8), np.eye(4))
            nibabel.save(volume, tmp_path / folder / f"{name}{end}.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "lesion": 2}}))
    (error,) = errors(tmp_path)
    assert "nnU-Net" in error.fix and "--data.image-pattern '*_0000'" in error.fix
    found = find_cases(tmp_path, DataConfig(image_pattern="*_0001"))
    assert [(case.id, case.image.name) for case in found.cases] == [
        ("x_001", "x_001_0001.nii.gz"),
        ("x_002", "x_002_0001.nii.gz"),
    ]
    assert found.label_map.names == ("background", "lesion")


@pytest.mark.parametrize("wanted", ["case_22", "brain_000", "smyth_1", "1_case"])
def test_f80_no_name_of_another_case_is_ever_suggested(wanted):
    assert suggest(wanted, ["case_2", "brain_000_0000", "brain_004_0000", "smith_1", "case_1"]) == ""


def test_f80_the_same_name_in_other_writing_is_suggested():
    assert "`Case-01`" in suggest("case 1", ["Case-01", "case_11", "case_10"])
    assert suggest("case 1", ["Case-01", "case_1"]) == ""  # either could be meant
    assert spelling("A.01") == spelling("a 1") != spelling("a 11")


def test_f80_spaces_at_the_end_of_a_name_do_not_part_a_mask_from_its_image(tmp_path):
    assert find_cases(make(tmp_path, ["a ", "b"], ["a", "b "]), DataConfig()).cases[0].target


# 81: masks of another kind, or in another folder

KINDS = [("a.json", "label images"), ("a.seg.nrrd", ".nii.gz"), ("a_seg.npy", "PNG or TIFF"), ("a.gif", "PNG")]


@pytest.mark.parametrize(("name", "fix"), KINDS)
def test_f81_masks_of_another_kind_are_named_with_the_way_to_export_them(tmp_path, name, fix):
    make(tmp_path, "ab")
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / name).write_bytes(b"x")
    (error,) = errors(tmp_path)
    assert f"1 file of another kind ({name[name.rindex('.') :]})" in error.found and fix in error.fix


def test_f81_a_folder_of_objects_for_each_image_is_named(tmp_path):
    make(tmp_path, "ab")
    for name in "ab":
        make(tmp_path, (), ["1", "2", "3"], mask_folder=f"masks/{name}")
    (error,) = errors(tmp_path)
    assert "2 subfolders with 6 images" in error.found and "one mask for each image" in error.fix


@pytest.mark.parametrize("folder", ["Masks", "mask", "labels", "annotations", "ground truth"])
@pytest.mark.parametrize("added", ["", "_mask"])
def test_f81_masks_in_another_folder_are_named_with_their_flag(tmp_path, folder, added, capsys):
    make(tmp_path, ["a1", "b2", "c3"], [f"{name}{added}" for name in ("a1", "b2")], mask_folder=folder)
    make(tmp_path, ["x"], image_folder="other")
    (warning,) = warnings(tmp_path)
    assert "2 files" in warning.found and f"--data.masks {tmp_path / folder}" in warning.fix
    assert train(tmp_path, tmp_path / "run") == 2
    assert f"--data.masks {tmp_path / folder}" in capsys.readouterr().err
    pattern = f"*{added}"
    cases = find_cases(tmp_path, DataConfig(masks=tmp_path / folder, mask_pattern=pattern)).cases
    assert [case.target is not None for case in cases] == [True, True, False]


# 82: what is not read is counted


def test_f82_check_train_and_predict_count_what_they_leave_out(tmp_path, run, capsys):
    data = make(tmp_path / "data", "abcd", "abcd")
    for name in ("e.gif", "f.webp", "Thumbs.db", "._g.png", ".DS_Store"):
        (data / "images" / name).write_bytes(b"x")
    make(data, ["h", "i"], image_folder="images/patient1")
    said = "2 files of another kind (.gif .webp), such as e.gif; 1 subfolder with 2 images"
    assert command("check", data) == 0 and said in capsys.readouterr().out
    assert train(data, tmp_path / "run") == 0 and said in capsys.readouterr().err
    assert command("predict", run, data / "images", "--out", tmp_path / "out") == 0
    told = f"4 masks written to {tmp_path / 'out'}, 0 images failed; not read: {said}"
    assert told in capsys.readouterr().out.splitlines()
    assert json.loads((tmp_path / "out" / "predictions.json").read_text())["skipped"] == ["e.gif", "f.webp", "patient1"]


def test_f82_images_in_subfolders_alone_are_named(tmp_path, run, capsys):
    make(tmp_path, ["h", "i"], image_folder="images/patient1")
    with pytest.raises(InputError) as caught:
        scan(tmp_path, DataConfig())
    assert "1 subfolder with 2 images" in caught.value.found and "group" in caught.value.fix
    assert command("predict", run, tmp_path / "images", "--out", tmp_path / "out") == 2
    assert "1 subfolder with 2 images" in capsys.readouterr().err


# 83: bytes, letters and commas


COMMANDS = """
import sys
from nissl.cli import main

words, codes = sys.argv[1:], []
while words:
    end = words.index("then")
    try:
        main(words[:end])
    except SystemExit as leaving:
        codes.append(leaving.code)
    print("then", flush=True)
    words = words[end + 1 :]
sys.exit(max(codes))
"""


def commands(*several, **options):
    """Give commands one after the other in one process, whose arguments they are; the worst of their exit codes."""
    words = [word for arguments in several for word in (*arguments, "then")]
    return subprocess.run([sys.executable, "-c", COMMANDS, *words], capture_output=True, **options)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_f83_names_that_are_not_utf8_go_through_every_verb(tmp_path):
    data, out = tmp_path / os.fsdecode(b"d\xe4ta"), tmp_path / "run"
    names = [os.fsdecode(b"Pr\xe4parat_%d" % number) for number in range(4)]
    make(data, names, names)
    done = commands(
        ["check", data],
        ["train", data, "--out", out, *FLAGS, "--pretrain", "none"],
        ["evaluate", out],
        ["report", out],
        ["predict", out, data / "images", "--out", tmp_path / "masks"],
    )
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr.decode()
    masks = {path.name for path in (tmp_path / "masks").iterdir()} - {"predictions.json"}
    assert masks == {f"Pr%E4parat_{number}.png" for number in range(4)}
    assert [case["id"] for case in json.loads((out / "data.json").read_text())["cases"]] == [
        name[:-4] for name in sorted(masks)
    ]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_f83_a_console_without_the_letters_of_a_name_is_no_fault(tmp_path, encoding):
    make(tmp_path, ["срез\U0001f9e0ü", "b"], ["b", "чужой"])
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = commands(["check", tmp_path], ["check", tmp_path, "--json"], env=environment)
    assert done.returncode == 3 and b"Traceback" not in done.stderr
    assert "чужой" in json.loads(done.stdout.split(b"then\n")[1])["findings"][0]["where"]


def test_f83_ids_with_commas_can_be_listed(tmp_path):
    ids = [f"tile [x={x},y=0]" for x in range(4)]
    cases = [CaseFile(id_, tmp_path / id_, tmp_path / id_, split="train") for id_ in [*ids, "7"]]
    cases.append(CaseFile("t", tmp_path / "t", tmp_path / "t", split="test"))
    listing = tmp_path / "ids.txt"
    listing.write_text("\ufeff" + "\r\n".join(ids[:2]) + "\r\n", "utf-8")
    for labels in (f"{ids[0]},{ids[1]}", f" {ids[1]} , {ids[0]},", f"@{listing}"):
        assert make_split(cases, SplitConfig(labels=labels), 0).labelled == tuple(ids[:2])
    listing.write_text("7")
    assert make_split(cases, SplitConfig(labels=f"@{listing}"), 0).labelled == ("7",)
    with pytest.raises(InputError, match="gone"):
        SplitConfig(labels="@gone.txt")


def test_f83_a_folder_whose_name_cannot_be_stored_is_refused():
    with pytest.raises(InputError, match="UTF-8"):
        DataConfig(images=os.fsdecode(b"d\xe4ta"))


# 84: the table


def table(root, content, name="cases.csv"):
    make(root, "abcd", "abcd")
    (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


TABLES = [
    ("id,patient,split\na,p,train\nb,p,test\n", "`patient`", "`group`"),
    ("id,Subject_ID\na,p\n", "`subject_id`", "`group`"),
    ("id,group,set\na,p,train\nb,p,test\n", "`set`", "`split`"),
    ("id,goup\na,p\n", "`goup`", "`group`"),
    ("id,group\na,P1\nb,p1\n", "1 group written in several ways", "one way"),
    ("id,group\na,P 01\nb,p-1\n", "1 group written in several ways", "one way"),
    ("id,group,split\na,p,val\n", "`val`", "train"),
    ("id,group\na,b,p\n", "more fields", "quotes"),
    ("id,group,group\na,p,q\n", "id,group,group", "name the columns"),
    ("id,group\na b,p\n,\n", "`a b`", "correct the id"),
]


@pytest.mark.parametrize(("content", "found", "fix"), TABLES)
def test_f84_what_a_table_does_not_say_in_our_words_is_a_fault(tmp_path, content, found, fix):
    (error,) = errors(table(tmp_path, content))
    assert "cases.csv" in error.where and found in error.found and fix in error.fix
    with pytest.raises(DataError):
        find_cases(tmp_path, DataConfig())


WRITTEN = [
    "ID, Group ,SPLIT\na,p,Train\nb,q,TEST\n",
    "\ufeffid;group;split\r\na;p;train\r\nb;q;testing\r\n",
    "id\tgroup\tsplit\na\tp\ttraining\nb\tq\ttest\n".encode("utf-16"),
    'id,group,split\n"a.png",p,train\nimages/B ,q,test\n',
]


@pytest.mark.parametrize("name", ["cases.csv", "Cases.csv", "CASES.CSV"])
@pytest.mark.parametrize("content", WRITTEN)
def test_f84_a_table_is_read_as_spreadsheets_and_people_write_it(tmp_path, content, name):
    cases = find_cases(table(tmp_path, content, name), DataConfig()).cases
    assert [(case.group, case.split) for case in cases[:2]] == [("p", "train"), ("q", "test")]
    assert [warning.found for warning in warnings(tmp_path)] == ["no group for 2 of 4 images"]


@pytest.mark.parametrize("other", ["images/cases.csv", "masks/Cases.csv", "Cases.csv"])
def test_f84_a_second_or_misplaced_table_is_a_fault(tmp_path, other):
    table(tmp_path, "id,group\na,p\n", other)
    if other == "Cases.csv":
        table(tmp_path, "id,group\nb,q\n")
    (error,) = errors(tmp_path)
    assert error.where == str(tmp_path / other) and "not read" in error.found


@pytest.mark.parametrize("name", ["patients.csv", "cases.xlsx"])
def test_f84_a_table_of_another_name_and_a_column_of_notes_are_warned_of(tmp_path, name):
    (warning,) = warnings(table(tmp_path, "id,group\n", name))
    assert name in warning.found
    table(tmp_path, "id,group,note\na,p,x\nb,p,\nc,p,\nd,q,\n")
    (warning,) = warnings(tmp_path)
    assert "`note`" in warning.found


# 85: names that tell of groups

GROUPED = [
    "patient{g:02d}_slice{n:02d}",
    "P{g}-{n}",
    "p{g:02d}s{n:02d}",
    "study_{g}_{n}",
    "slide{g} [x={n},y=0]",
    "{g} ({n})",
]


@pytest.mark.parametrize("pattern", GROUPED)
def test_f85_names_that_begin_alike_are_warned_of_where_no_group_is_known(tmp_path, pattern):
    names = [pattern.format(g=g, n=n) for g in range(1, 5) for n in range(5)]
    make(tmp_path, names, names)
    (warning,) = warnings(tmp_path)
    assert "20 images begin in 4 ways" in warning.found and "cases.csv" in warning.fix
    rows = "\n".join(f'"{name}",g{number // 5}' for number, name in enumerate(names))
    (tmp_path / "cases.csv").write_text(f"id,group\n{rows}\n")
    assert warnings(tmp_path) == errors(tmp_path) == []


@pytest.mark.parametrize(
    "pattern", ["img_{:03d}", "{:03d}", "a{:x}", "tile [x={0},y={0}]", "case{:02d}_left", "x_{0}_{0}"]
)
def test_f85_names_that_are_numbers_alone_are_not(tmp_path, pattern):
    assert warnings(make(tmp_path, [pattern.format(number) for number in range(12)])) == []


def test_f85_train_warns_and_the_page_says_that_no_groups_are_known(tmp_path, capsys):
    names = [f"p{g}_{n}" for g in range(3) for n in range(2)]
    assert train(make(tmp_path / "data", names, names), tmp_path / "run") == 0
    assert "6 images begin in 3 ways" in capsys.readouterr().err
    assert command("report", tmp_path / "run") == 0
    assert "no groups are known" in (tmp_path / "run" / "report.html").read_text()


# 86: images that share a frame


def framed(root, count, noise=6):
    """Bright discs on black, each with a spot at a place of its own."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:96, :96]
    disc = (rows - 48) ** 2 + (columns - 48) ** 2 < 45**2
    for number in range(count):
        row, column = rng.integers(20, 76, 2)
        spot = (rows - row) ** 2 + (columns - column) ** 2 < 60
        pixels = disc * (150 + 60 * spot) + rng.normal(0, noise, disc.shape)
        (root / "images").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / "images" / f"eye{number:02d}.png")
        (root / "masks").mkdir(exist_ok=True)
        Image.fromarray(spot.astype(np.uint8)).save(root / "masks" / f"eye{number:02d}.png")
    return root


def test_f86_a_frame_that_all_images_share_is_no_copy_and_a_copy_is_still_found(tmp_path):
    framed(tmp_path, 30)
    assert not check(tmp_path, DataConfig()).findings
    for folder, kind in (("images", "jpg"), ("masks", "png")):
        Image.open(tmp_path / folder / "eye03.png").save(tmp_path / folder / f"copy.{kind}", quality=80)
    (finding,) = check(tmp_path, DataConfig()).findings
    assert "looks the same" in finding.found and {"copy.jpg", "eye03.png"} == {
        name for name in ("copy.jpg", "eye03.png") if name in finding.found + finding.where
    }


def test_f86_images_that_are_all_alike_are_one_finding(tmp_path):
    framed(tmp_path, 1)
    pixels = np.asarray(Image.open(tmp_path / "images" / "eye00.png")).astype(int)
    for number in range(1, 13):
        noise = np.random.default_rng(number % 2).normal(0, 40, pixels.shape)
        noise += np.random.default_rng([9, number]).normal(0, 3, pixels.shape)
        changed = (pixels + noise).clip(0, 255).astype(np.uint8)
        Image.fromarray(changed).save(tmp_path / "images" / f"eye{number:02d}.png")
    for path in (tmp_path / "images").iterdir():
        Image.open(tmp_path / "masks" / "eye00.png").save(tmp_path / "masks" / path.name)
    (finding,) = check(tmp_path, DataConfig()).findings
    assert "of 13 images look the same" in finding.found


# 87: one cause, one block


def test_f87_a_thousand_faults_of_one_cause_are_one_block_and_json_and_a_flag_list_them(tmp_path, capsys):
    make(tmp_path, "ab", "ab")
    lone = [f"m{number}x" for number in range(40)]
    make(tmp_path, (), lone)
    assert command("check", tmp_path) == 3
    shown = capsys.readouterr().out
    assert sum(name in shown for name in lone) == 3 and "37 more, 40 in all" in shown
    assert len(shown.splitlines()) < 25 and "40 faults" in shown
    assert command("check", tmp_path, "--all") == 3
    assert all(name in capsys.readouterr().out for name in lone[:1]) and command("check", tmp_path, "--json") == 3
    assert len(json.loads(capsys.readouterr().out)["findings"]) == 40
