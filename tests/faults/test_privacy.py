"""Nothing foreign is run, nothing of a patient is told, and nothing is asked of a network."""

import gzip
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.dicom_files import NAME, SECRETS, SERIES, place, write_file, write_series
from tests.tiny_data import FLAGS, opened_files, pretrained, write_tiny

from nissl import cli
from nissl.datasets.phantom import PhantomConfig, phantom
from nissl.imageio.formats import read_raster, write_mask

FOLDER = "Export_Quakenbush_1937"
PATIENTS = ("QX7741900Z", "QX8852011Y", "QX9963122X", "QX1074233W", "QX2185344V", "QX3296455U")
TOLD = {*SECRETS.values(), SERIES, *PATIENTS, "quakenbush", "philomena", "umberleigh", "thistlewood"}
"""What must occur nowhere, whatever the case of its letters; names of files and folders are made of it too."""
YEAR = re.compile(r"(?<![0-9a-z.])1937(?![0-9a-z])")
"""The year of birth by itself: within a longer number, a measured one or a checksum, its digits stand by chance."""


def stem(number):
    return f"{NAME}_{number}"


def write_patients(root, dims):
    """Six images of six patients, five with masks, and a table that names all of them."""
    size = (32, 32) if dims == 2 else (16, 32, 32)
    config = PhantomConfig(dims=dims, size=size, nuclei=(4, 6), radius=(3.0, 5.0))
    (root / "masks").mkdir(parents=True)
    for number in range(6):
        image, mask = phantom(config, np.random.default_rng(number))
        pixels = image[0].astype(np.uint16) * 16
        tags = {"PatientID": PATIENTS[number], "RescaleSlope": 1, "RescaleIntercept": -1024}
        path = root / "images" / stem(number)
        if dims == 2:
            write_file(path.with_suffix(".dcm"), pixels, **tags)
        else:
            write_series(path, pixels, SeriesInstanceUID=f"{SERIES}.{number}", **tags)
        if number == 5:
            continue
        if dims == 2:
            write_mask(root / "masks" / f"{stem(number)}.png", mask)
        else:
            write_mask(root / "masks" / f"{stem(number)}.nii.gz", mask.transpose(2, 1, 0), read_raster(path))
    sides = ("train", "test", "train", "test", "train", "train")
    rows = [f"{stem(number)},{PATIENTS[number]},{side}" for number, side in enumerate(sides)]
    (root / "cases.csv").write_text("\n".join(["id,group,split", *rows]) + "\n")
    return root


def flags(dims):
    given = [*FLAGS[2:], "--size", "32" if dims == 2 else "16"]
    return [*given, "--labels", f"{stem(0)},{stem(2)}", *pretrained()]


def told(text):
    lower = text.lower() if isinstance(text, str) else text.lower().decode("latin-1")
    return sorted(word for word in TOLD if word.lower() in lower) + YEAR.findall(lower)


def test_the_search_finds_each_secret_and_no_digits_of_a_measured_number():
    assert all(told(f"of {word.upper()}!") for word in TOLD)
    assert told(FOLDER)[-1] == told("born_1937-04-11")[-1] == told(b"in 1937")[-1] == "1937"
    assert not told('{"moved": 0.02811937402, "seconds": 0.1937, "sha256": "ab1937cd"}')


def require_silent(*folders):
    """No secret in a name or in the bytes of any file."""
    for folder in folders:
        for path in folder.rglob("*"):
            assert not told(str(path.relative_to(folder))), path
            if path.is_file():
                content = path.read_bytes()
                content = gzip.decompress(content) if path.suffix == ".gz" else content
                assert not told(content), path


class Shell:
    """The command line, of which every word that it prints is searched."""

    def __init__(self, capfd):
        self.capfd = capfd

    def __call__(self, *arguments, code=0):
        try:
            left = cli.run([str(argument) for argument in arguments])
        except SystemExit as leaving:
            left = leaving.code
        out, err = self.capfd.readouterr()
        assert left == code, err
        assert not told(out) and not told(err), out + err
        assert "Traceback" not in err
        return out + err


@pytest.fixture
def shell(capfd):
    return Shell(capfd)


@pytest.fixture(scope="module", params=[2, 3], ids=["files", "series"])
def patients(request, tmp_path_factory):
    """A data set, a run on it and the number of its dimensions."""
    dims = request.param
    root = write_patients(tmp_path_factory.mktemp("data") / FOLDER, dims)
    run = tmp_path_factory.mktemp("runs") / "run"
    with opened_files() as opened:
        assert cli.run(["train", str(root), "--out", str(run), *flags(dims)]) == 0
    return root, run, dims, opened


@pytest.fixture
def mine(patients, tmp_path):
    """Copies of data and run that a test may break."""
    root, run, dims, _ = patients
    return shutil.copytree(root, tmp_path / FOLDER), shutil.copytree(run, tmp_path / "run"), dims


def first(folder, number):
    """A file of a case, or of its series."""
    path = next(path for path in sorted(folder.iterdir()) if path.stem.startswith(stem(number)))
    return sorted(path.iterdir())[1] if path.is_dir() else path


def test_f53_no_output_of_any_verb_tells_of_a_patient(mine, tmp_path, shell):
    root, run, dims = mine
    assert "0 warnings" in shell("check", root)
    shell("check", root, "--json")
    shell("train", root, "--out", tmp_path / "again", *flags(dims))
    assert "Dice" in shell("evaluate", run, "--data", root)
    shell("report", run, "--data", root)
    shell("predict", run, root / "images", "--out", tmp_path / "masks")
    require_silent(run, tmp_path / "again", tmp_path / "masks")
    assert len(list((run / "predictions").iterdir())) == 2
    assert len(list((tmp_path / "masks").iterdir())) == 7
    assert (run / "report.html").read_text().count("<figure><img") > 3, "overlays are there"


def test_f53_the_run_knows_cases_by_pseudonym_and_opened_no_test_file(patients):
    root, run, dims, opened = patients
    data, split = (json.loads((run / name).read_text()) for name in ("data.json", "split.json"))
    assert data["root"] is None and data["dims"] == dims
    ids = [case["id"] for case in data["cases"]]
    assert len(set(ids)) == 6 and all(len(id_) == 16 and id_.startswith("dicom-") for id_ in ids)
    assert len({case["group"] for case in data["cases"]}) == 6
    assert len(split["labelled"]) == 2 and len(split["test"]) == 2 and split["labels"].count("dicom-") == 2
    tests = [path for path in opened if root in path.parents and (f"{NAME}_1" in str(path) or f"{NAME}_3" in str(path))]
    assert not tests
    assert json.loads((run / "env.json").read_text())["command"].startswith("nissl train DATA --out RUN")


def test_f53_a_single_file_or_series_is_predicted_under_its_pseudonym(mine, tmp_path, shell):
    root, run, dims = mine
    image = root / "images" / (stem(1) + (".dcm" if dims == 2 else ""))
    shell("predict", run, image, "--out", tmp_path / "one")
    ((name, entry),) = json.loads((tmp_path / "one" / "predictions.json").read_text())["images"].items()
    assert name.startswith("dicom-") and entry["position"] == "file 1 of 1 by name"
    mask, scan = read_raster(tmp_path / "one" / entry["mask"]), read_raster(image)
    assert entry["mask"] == name + (".png" if dims == 2 else ".nii.gz")
    assert mask.pixels.shape == scan.pixels.shape
    if dims == 3:
        np.testing.assert_allclose(mask.affine, scan.affine, atol=1e-5)


def broken_image(root, run, dims):
    path = first(root / "images", 0)
    path.write_bytes(path.read_bytes()[:-300])


def cut_in_its_header(root, run, dims):
    path = first(root / "images", 0)
    path.write_bytes(path.read_bytes()[:600])


def no_dicom_at_all(root, run, dims):
    first(root / "images", 0).write_bytes(f"{NAME} {SECRETS['PatientName']}".encode() * 99)


def image_that_cannot_be_opened(root, run, dims):
    path = first(root / "images", 0)
    path.unlink()
    path.symlink_to(path)


def broken_mask(root, run, dims):
    path = first(root / "masks", 0)
    path.write_bytes(path.read_bytes()[:60])


def mask_of_other_size(root, run, dims):
    path = first(root / "masks", 0)
    write_mask(path, np.ones((20, 30, 9)[:dims], np.uint8))


def mask_of_other_values(root, run, dims):
    path = first(root / "masks", 0)
    write_mask(path, read_raster(path).pixels[0] * 9, read_raster(path))


def mask_without_image(root, run, dims):
    path = first(root / "masks", 0)
    shutil.copy(path, path.with_name(f"{NAME}_77" + "".join(path.suffixes)))


def two_of_one_name(root, run, dims):
    path = first(root / "masks", 0)
    shutil.copy(path, path.with_name(path.name.lower()))


def table_with_an_unknown_patient(root, run, dims):
    with (root / "cases.csv").open("a") as table:
        table.write(f"{NAME}_99,{PATIENTS[0]},train\n")


def table_without_header(root, run, dims):
    (root / "cases.csv").write_text((root / "cases.csv").read_text().partition("\n")[2])


def table_with_columns_exchanged(root, run, dims):
    rows = (root / "cases.csv").read_text().splitlines()[1:]
    (root / "cases.csv").write_text("\n".join(["id,split,group", *rows]) + "\n")


def all_masks_empty(root, run, dims):
    for path in (root / "masks").iterdir():
        write_mask(path, np.zeros_like(read_raster(path).pixels[0]), read_raster(path))


FAULTS = [
    *(broken_image, cut_in_its_header, no_dicom_at_all, image_that_cannot_be_opened),
    *(broken_mask, mask_of_other_size, mask_of_other_values, mask_without_image, two_of_one_name),
    *(table_with_an_unknown_patient, table_without_header, table_with_columns_exchanged, all_masks_empty),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_f53_no_error_tells_of_a_patient(fault, mine, tmp_path, shell):
    root, run, dims = mine
    fault(root, run, dims)
    assert "error: " in shell("check", root, code=3)
    assert '"level": "error"' in shell("check", root, "--json", code=3)
    assert "error: " in shell("train", root, "--out", tmp_path / "new", *flags(dims), code=3)
    assert not (tmp_path / "new").exists()


def test_f53_an_error_says_which_file_by_its_place(mine, shell):
    root, run, dims = mine
    broken_image(root, run, dims)
    shown = shell("check", root, code=3)
    assert "(file 1 of 6 by name)" in shown and "damaged" in shown
    if dims == 3:
        assert "file 2 of 16 by name: damaged" in shown


def test_f53_errors_after_the_training_are_silent_too(mine, tmp_path, shell):
    root, run, dims = mine
    assert "--data DIR" in shell("evaluate", run, code=2)
    shell("evaluate", run, "--data", root / "absent", code=2)
    (run / "checkpoints" / "last.safetensors").rename(run / "kept")
    shell("evaluate", run, "--data", root, code=3)
    (run / "kept").rename(run / "checkpoints" / "last.safetensors")
    wrong = [*flags(dims)]
    wrong[wrong.index("--labels") + 1] = f"{stem(0)},{stem(88)}"
    assert "no masked training case" in shell("train", root, "--out", tmp_path / "new", *wrong, code=2)
    assert "train.steps" in shell("train", root, "--out", run, *flags(dims), "--steps", "9", "--resume", code=2)
    path = first(root / "images", 1)
    path.write_bytes(path.read_bytes()[:-300])
    shown = shell("evaluate", run, "--data", root, code=3)
    assert "(file 2 of 6 by name)" in shown
    shell("predict", run, root / "images", "--out", tmp_path / "masks", code=3)
    record = json.loads((tmp_path / "masks" / "predictions.json").read_text())
    assert len(record["failed"]) == 1 and len(record["images"]) == 5
    whole = root / "images" / (stem(1) + (".dcm" if dims == 2 else ""))
    shutil.rmtree(whole) if dims == 3 else whole.unlink()
    (root / "cases.csv").unlink()
    (root / "masks" / f"{stem(1)}{'.png' if dims == 2 else '.nii.gz'}").unlink()
    assert "such as dicom-" in shell("evaluate", run, "--data", root, code=2)
    require_silent(run, tmp_path / "masks")


def test_f53_a_run_on_dicom_is_resumed_and_other_data_refused(mine, shell):
    root, run, _ = mine
    shell("train", root, "--out", run, "--resume")
    first(root / "masks", 0).write_bytes(first(root / "masks", 2).read_bytes())
    assert "cases of the data differ" in shell("train", root, "--out", run, "--resume", code=2)


def test_f54_burned_in_text_is_a_finding_where_the_file_says_so(mine, shell):
    root, _, dims = mine
    pixels = np.random.default_rng(5).integers(0, 4096, (32, 32), np.uint16)
    path = first(root / "images", 5)
    number = {"SeriesInstanceUID": f"{SERIES}.5", **place(1)} if dims == 3 else {}
    write_file(path, pixels, RescaleSlope=1, RescaleIntercept=-1024, BurnedInAnnotation="YES", **number)
    shown = shell("check", root)
    assert "BurnedInAnnotation is YES" in shown and "(file 6 of 6 by name)" in shown and "1 warnings" in shown


def test_f54_the_page_says_that_burned_in_text_is_not_detected(mine, shell):
    _, run, _ = mine
    shell("report", run)
    assert "Text burned into the pixels of an image is not detected" in (run / "report.html").read_text()


class Payload:
    """What writes a file as soon as it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def pickled(path, marker):
    """The payload in the form that each suffix usually has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    payload = Payload(marker)
    if path.suffix in (".pt", ".pth", ".ckpt"):
        torch.save({"weights": payload}, path)
    elif path.suffix == ".npy":
        np.save(path, np.array([payload], object), allow_pickle=True)
    else:
        path.write_bytes(pickle.dumps(payload))
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A data set of pictures and a run on it."""
    data, run = write_tiny(tmp_path_factory.mktemp("plain") / "data"), tmp_path_factory.mktemp("plain") / "run"
    assert cli.run(["train", str(data), "--out", str(run), *FLAGS, "--pretrain", "none"]) == 0
    return data, run


def test_f48_the_payload_of_these_tests_runs_where_it_is_opened(tmp_path):
    for name in ("a.pt", "a.npy", "a.pkl"):
        marker = tmp_path / f"ran {name}"
        path = pickled(tmp_path / name, marker)
        if path.suffix == ".pt":
            torch.load(path, weights_only=False)
        elif path.suffix == ".npy":
            np.load(path, allow_pickle=True)
        else:
            pickle.loads(path.read_bytes())
        assert marker.exists()


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".pkl", ".npy"])
def test_f48_a_pickle_given_as_a_model_or_image_is_never_opened(suffix, plain, tmp_path, shell):
    data, run = plain
    marker = tmp_path / "ran"
    model = pickled(tmp_path / f"model{suffix}", marker)
    out = tmp_path / "out"
    for arguments in (["predict", model, data / "images", "--out", out], ["evaluate", model]):
        shown = shell(*arguments, code=2)
        assert "may run code" in shown and "safetensors.torch import save_file" in shown
    shell("report", model, code=2)
    shell("predict", run, model, "--out", out, code=2)
    copy = shutil.copytree(data, tmp_path / "data")
    for folder in ("images", "masks"):
        pickled(copy / folder / f"field000{suffix}", marker)
        pickled(copy / folder / f"other{suffix}.png", marker)
    assert "file of another kind" in shell("check", copy, code=3)
    shell("predict", run, copy / "images", "--out", out, code=3)
    assert not marker.exists()


def test_f48_pickles_planted_in_a_run_are_never_opened(plain, tmp_path, shell):
    data, run = plain
    marker = tmp_path / "ran"
    mine = shutil.copytree(run, tmp_path / "run")
    for name in ("filters.npy", "filters_start.npy"):
        pickled(mine / name, marker)
    shell("report", mine)
    assert "filters.npy cannot be read" in (mine / "report.html").read_text()
    for source in ("a.pt", "a.pkl"):
        content = pickled(tmp_path / source, marker).read_bytes()
        for name in ("last", "state", "previous.state"):
            (mine / "checkpoints" / f"{name}.safetensors").write_bytes(content)
        shown = shell("evaluate", mine, code=2)
        assert "last.safetensors" in shown and "safetensors.torch import save_file" in shown
        shell("predict", mine, data / "images", "--out", tmp_path / "out", code=2)
        assert "unreadable" in shell("train", data, "--out", mine, "--resume", code=3)
    for name in ("data.json", "split.json", "config.toml", "metrics.csv"):
        (mine / name).write_bytes(pickle.dumps(Payload(marker)))
    shell("report", mine)
    assert not marker.exists()


WITHOUT_NETWORK = """
import json, socket, sys
BLOCKED = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.sendto")
asked = []
def refuse(event, arguments):
    if event in BLOCKED:
        asked.append(event)
        raise OSError("there is no network")
sys.addaudithook(refuse)
try:
    socket.create_connection(("localhost", 9))
except OSError as error:
    assert "no network" in str(error)
asked.clear()
from nissl import cli
codes = []
for arguments in json.loads(sys.argv[1]):
    try:
        codes.append(cli.run(arguments))
    except SystemExit as leaving:
        codes.append(leaving.code)
print(json.dumps([codes, asked]))
"""


@pytest.mark.slow
def test_f55_every_verb_works_without_a_network(plain, tmp_path):
    data, run, new = (str(path) for path in (*plain, tmp_path / "new"))
    verbs = [
        ["check", data],
        ["train", data, "--out", new, *FLAGS, *pretrained()],
        ["train", data, "--out", new, "--resume"],
        ["evaluate", new],
        ["report", new],
        ["predict", run, f"{data}/images", "--out", str(tmp_path / "masks")],
        *([verb, "--help"] for verb in ("demo", "check", "train", "evaluate", "predict", "report", "fetch")),
    ]
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"PYTHONPATH": str(root / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT_NETWORK, json.dumps(verbs)]
    child = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    codes, asked = json.loads(child.stdout.splitlines()[-1])
    assert codes == [0] * len(verbs) and asked == [], child.stderr
