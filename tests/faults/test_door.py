"""Bad input at the door: each fault is named with its mend, and nothing that was there is changed."""

import hashlib
import os
import shutil

import numpy as np
import pytest
from filelock import FileLock
from tests.tiny_data import ANY_NET, FLAGS, pretrained, write_tiny

from nissl import cli
from nissl.imageio.formats import read_raster, write_image, write_mask
from nissl.runs.provenance import LOCK, OWNER


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("sound") / "data")


@pytest.fixture
def data(sound, tmp_path):
    """A copy that a test may break."""
    return shutil.copytree(sound, tmp_path / "data")


def hashed(folder):
    """Every file and folder below a folder, with the content of the files."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


def no_images(data):
    shutil.rmtree(data / "images")
    (data / "images").mkdir()


def no_folder(data):
    shutil.rmtree(data)


def a_file_instead(data):
    shutil.rmtree(data)
    data.write_text("no folder")


def other_folders(data):
    (data / "images").rename(data / "pictures")


def every_image_unreadable(data):
    for path in (data / "images").iterdir():
        path.write_bytes(b"\x00" * 100)


def first_image_unreadable(data):
    (data / "images" / "field000.png").write_bytes(b"no picture")


def image_truncated(data):
    path = data / "images" / "field003.png"
    path.write_bytes(path.read_bytes()[:-200])


def image_empty(data):
    (data / "images" / "field004.png").write_bytes(b"")


def mask_truncated(data):
    for path in (data / "masks").iterdir():
        path.write_bytes(path.read_bytes()[:-30])


def mask_of_other_size(data):
    for path in (data / "masks").iterdir():
        write_mask(path, read_raster(path).pixels[0][:, :-2])


def masks_of_0_and_255(data):
    for path in (data / "masks").iterdir():
        write_image(path, read_raster(path).pixels * 255)


def masks_with_instances(data):
    for path in (data / "masks").iterdir():
        write_image(path, np.arange(1024, dtype=np.uint8).reshape(1, 32, 32) % 5)


def masks_in_colour(data):
    for path in (data / "masks").iterdir():
        labels = read_raster(path).pixels[0]
        write_image(path, np.array([[0, 0, 0], [255, 0, 0]], np.uint8)[labels].transpose(2, 0, 1))


def empty_mask_folder(data):
    for path in (data / "masks").iterdir():
        path.unlink()


def no_masks_at_all(data):
    shutil.rmtree(data / "masks")


def one_mask_only(data):
    for path in sorted((data / "masks").iterdir())[1:]:
        path.unlink()


def mask_without_image(data):
    (data / "images" / "field006.png").unlink()
    (data / "cases.csv").unlink()


def two_cases_with_one_id(data):
    shutil.copy(data / "images" / "field001.png", data / "images" / "FIELD001.bmp")


def table_with_unknown_id(data):
    with (data / "cases.csv").open("a") as table:
        table.write("field0001,slide9,train\n")


def group_on_both_sides(data):
    table = (data / "cases.csv").read_text()
    (data / "cases.csv").write_text(table.replace("slide2,", "slide1,"))


def image_with_nan(data):
    image = read_raster(data / "images" / "field001.png").pixels.astype(np.float32)
    image[0, 3, 3] = np.nan
    (data / "images" / "field001.png").unlink()
    write_image(data / "images" / "field001.tif", image)


def gray_next_to_colour(data):
    write_image(data / "images" / "field001.png", np.zeros((3, 32, 32), np.uint8))


FAULTS = {
    no_images: (2, ["images", "no images", ".png"]),
    no_folder: (2, ["data", "no such folder", "images/ and masks/"]),
    a_file_instead: (2, ["data", "a file", "folder"]),
    other_folders: (2, ["pictures", "--data.images"]),
    every_image_unreadable: (3, ["field000.png", "readable PNG"]),
    first_image_unreadable: (3, ["field000.png", "readable PNG"]),
    image_truncated: (3, ["field003.png", "truncated", "readable PNG"]),
    image_empty: (3, ["field004.png", "0 bytes", "readable PNG"]),
    mask_truncated: (3, ["masks", ".png", "truncated", "readable PNG"]),
    mask_of_other_size: (3, ["masks", "images", "image 32 x 32, mask 32 x 30", "equal shapes"]),
    masks_of_0_and_255: (3, ["masks", "255", "pixels", "0=background,1=foreground", "--label-map binary"]),
    masks_with_instances: (
        3,
        ["masks", "2 (", "3 (", "4 (", "0=background", "--label-map binary", "--label-map 0,1,2,3,4"],
    ),
    masks_in_colour: (3, ["masks", "#ff0000", "--label-map '#000000=background,#ff0000=class1'"]),
    empty_mask_folder: (3, ["masks", "an empty mask folder", "one mask or more", "--data.masks"]),
    no_masks_at_all: (2, ["0 masked cases", "two or more"]),
    one_mask_only: (2, ["1 masked cases", "two or more"]),
    mask_without_image: (3, ["field006.png", "a mask without image"]),
    two_cases_with_one_id: (3, ["field001.png", "FIELD001.bmp", "same id", "rename"]),
    table_with_unknown_id: (3, ["cases.csv, line 10", "`field0001`", "did you mean"]),
    group_on_both_sides: (2, ["cases.csv", "slide1", "one side", "--allow-shared-groups"]),
    image_with_nan: (3, ["field001.tif", "NaN", "finite"]),
    gray_next_to_colour: (3, ["3 channels", "--colour rgb"]),
}

FLAG_FAULTS = {
    "zero": (["--labels", "0"], ["--labels", "`0` of 5 masked training cases", "1 to 5 masks"]),
    "zero per cent": (["--labels", "0%"], ["--labels", "`0%`", "1 to 5 masks"]),
    "above the masks": (["--labels", "6"], ["--labels", "`6` of 5", "1 to 5 masks"]),
    "above all": (["--labels", "101%"], ["--labels", "`101%` of 5", "1 to 5 masks"]),
    "no budget": (["--labels", ""], ["--labels", "10%"]),
    "a test case": (["--labels", "field002,field000"], ["--labels", "`field002`, a test case", "remove it"]),
    "an unmasked case": (["--labels", "field007"], ["--labels", "`field007`", "no masked training case"]),
    "an unknown case": (["--labels", "field00,field000"], ["--labels", "`field00`", "did you mean"]),
    "a wrong size": (["--size", "33"], ["33", "pad it to (34, 34)", "--size 34"]),
    "three sizes": (["--size", "32", "32", "32"], ["data.size", "3 numbers for 2-D", "one number, or 2"]),
    "an unknown network": (["--net", "unett"], ["net.name", "unett", "unet, vnet", "package.module:Class"]),
    "an unknown method": (["--method", "supervised2"], ["method.name", "one of supervised", "did you mean"]),
    "an unknown pre-training": (["--pretrain", "hebian"], ["pretrain.name", "hebbian", "did you mean"]),
    "a part that is not there": (
        ["--net", "vnet", *pretrained(), "--layers", "encoder"],
        ["pretrain.layers", "encoder", "all"],
    ),
    "a device that is not there": (["--device", "cuda:77"], ["device", "cuda:77", "auto, cpu or cuda"]),
    "an unknown device": (["--device", "gpu"], ["device", "gpu", "auto, cpu or cuda"]),
    "a bad label map": (["--label-map", "0=a,0=b"], ["--label-map", "`0` twice"]),
    "folders that are not there": (["--data.images", "gone"], ["gone", "no such folder", "--data.images"]),
}


def refused(arguments, code, parts, capsys):
    """The command leaves with a code and the four parts of an error, without a traceback."""
    try:
        left = cli.run([str(argument) for argument in arguments])
    except SystemExit as leaving:
        left = leaving.code
    shown = capsys.readouterr()
    assert left == code, shown.err
    report = shown.err[shown.err.index("error: ") :]
    for part in ("found: ", "expected: ", "next step: ", *parts):
        assert part in report
    assert "Traceback" not in shown.err and not shown.out
    return report


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_in_the_data_stops_training_before_it_starts(fault, data, tmp_path, capsys):
    fault(data)
    before = hashed(tmp_path)
    code, parts = FAULTS[fault]
    refused(["train", data, "--out", tmp_path / "runs" / "first", *FLAGS, *pretrained()], code, parts, capsys)
    assert hashed(tmp_path) == before


@pytest.mark.parametrize("name", FLAG_FAULTS)
def test_a_fault_in_a_flag_stops_training_before_it_starts(name, data, tmp_path, capsys):
    before = hashed(tmp_path)
    flags, parts = FLAG_FAULTS[name]
    given = ANY_NET if "vnet" in flags else FLAGS
    refused(["train", data, "--out", tmp_path / "runs" / "first", *given, *flags], 2, parts, capsys)
    assert hashed(tmp_path) == before


@pytest.mark.parametrize("fault", [fault for fault, (code, _) in FAULTS.items() if code == 3], ids=lambda f: f.__name__)
def test_check_finds_the_fault_and_leaves_with_3(fault, data, tmp_path, capsys):
    fault(data)
    before = hashed(tmp_path)
    assert cli.run(["check", str(data)]) == 3
    shown = capsys.readouterr()
    assert "error: " in shown.out and "next step: " in shown.out and "Traceback" not in shown.err
    assert hashed(tmp_path) == before


def test_an_output_folder_with_something_in_it_is_refused(data, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("the only copy")
    before = hashed(tmp_path)
    refused(["train", data, "--out", tmp_path / "out", *FLAGS], 2, ["out", "thesis.tex", "new or empty"], capsys)
    assert hashed(tmp_path) == before


def test_a_finished_run_is_not_overwritten(data, tmp_path, capsys):
    assert cli.run(["train", str(data), "--out", str(tmp_path / "out"), *FLAGS]) == 0
    capsys.readouterr()
    before = hashed(tmp_path)
    refused(["train", data, "--out", tmp_path / "out", *FLAGS], 2, ["not empty", "--resume"], capsys)
    assert hashed(tmp_path) == before


def test_f11_a_folder_in_use_by_another_run_is_refused_with_its_owner(data, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / OWNER).write_text("process 1 on somewhere")
    with FileLock(out / LOCK):
        before = hashed(tmp_path)
        refused(["train", data, "--out", out, *FLAGS], 2, ["in use by another run", "process 1 on somewhere"], capsys)
        assert hashed(tmp_path) == before


def test_an_empty_folder_of_the_user_stays_when_nothing_was_started(data, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    image_truncated(data)
    before = hashed(tmp_path)
    refused(["train", data, "--out", tmp_path / "out", *FLAGS, *pretrained("warm")], 3, ["field003"], capsys)
    assert hashed(tmp_path) == before


def test_a_file_as_output_folder_is_refused(data, tmp_path, capsys):
    (tmp_path / "out").write_text("something")
    before = hashed(tmp_path)
    refused(["train", data, "--out", tmp_path / "out", *FLAGS], 2, ["out", "a file", "folder"], capsys)
    refused(["train", data, "--out", tmp_path / "out" / "run", *FLAGS], 2, ["out", "folder"], capsys)
    assert hashed(tmp_path) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_refused(data, tmp_path, capsys):
    (tmp_path / "locked").mkdir(mode=0o500)
    refused(["train", data, "--out", tmp_path / "locked" / "run", *FLAGS], 2, ["cannot be written"], capsys)


@pytest.mark.parametrize("verb", ["evaluate", "report", "predict"])
def test_a_folder_that_is_no_run_is_refused(verb, data, tmp_path, capsys):
    arguments = [data / "images", "--out", tmp_path / "masks"] if verb == "predict" else []
    before = hashed(tmp_path)
    refused([verb, data, *arguments], 2, ["data", "nissl train"], capsys)
    assert hashed(tmp_path) == before


@pytest.fixture(scope="module")
def run(sound, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    assert cli.run(["train", str(sound), "--out", str(out), *FLAGS]) == 0
    return out


@pytest.mark.parametrize("kept", [0, 0.01, 0.5, 0.99])
def test_f07_weights_cut_short_are_named(kept, run, data, tmp_path, capsys):
    broken = shutil.copytree(run, tmp_path / "run")
    weights = broken / "checkpoints" / "last.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: int(kept * len(content))])
    before = hashed(tmp_path)
    for arguments in (["evaluate", broken], ["predict", broken, data / "images", "--out", tmp_path / "masks"]):
        refused(arguments, 3, ["last.safetensors", "unreadable", "train again"], capsys)
    assert hashed(tmp_path) == before


def test_f06_a_flipped_bit_in_the_weights_is_named(run, tmp_path, capsys):
    broken = shutil.copytree(run, tmp_path / "run")
    weights = broken / "checkpoints" / "last.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 4
    weights.write_bytes(bytes(content))
    before = hashed(tmp_path)
    refused(["evaluate", broken], 3, ["last.safetensors", "checksum differs"], capsys)
    assert hashed(tmp_path) == before


def test_data_that_are_gone_since_the_training_are_named(sound, run, tmp_path, capsys):
    moved = sound.rename(sound.with_name("elsewhere"))
    try:
        before = hashed(run)
        refused(["evaluate", run], 2, ["no such folder"], capsys)
        assert hashed(run) == before
    finally:
        moved.rename(sound)


def test_a_broken_test_image_is_named_by_evaluate(sound, run, capsys):
    path = sound / "images" / "field005.png"
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    try:
        refused(["evaluate", run], 3, ["field005.png", "readable PNG"], capsys)
    finally:
        path.write_bytes(content)


def test_masks_are_not_written_over_others(run, data, tmp_path, capsys):
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "field000.png").write_text("drawn by hand")
    before = hashed(tmp_path)
    refused(
        ["predict", run, data / "images", "--out", tmp_path / "masks"], 2, ["masks", "nothing is overwritten"], capsys
    )
    assert hashed(tmp_path) == before
