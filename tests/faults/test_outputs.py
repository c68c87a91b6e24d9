"""Outputs that are whole: a failing image costs its own mask, masks name their makers, no file is half written."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import pytest
from tests.inference.tiny import picture, tiny_model, write_run

from nissl import cli
from nissl.imageio.formats import read_raster, write_image, write_mask
from nissl.model import Model

KINDS = ["png", "tif", "nii.gz"]


@pytest.fixture
def run(tmp_path):
    """Run of a 2-D model for images with one channel."""
    write_run(tmp_path / "run-7", tiny_model(tile=128, halo=16))
    return tmp_path / "run-7"


def make_images(folder, *names, side=60):
    folder.mkdir()
    for seed, name in enumerate(names):
        write_image(folder / name, picture(1, side, side + 7, seed=seed))
    return folder


def predict(*arguments):
    return cli.run(["predict", *map(str, arguments)])


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def record(out):
    return json.loads((out / "predictions.json").read_text())


@pytest.mark.parametrize("kind", KINDS)
def test_f56_one_failing_image_of_ten_costs_its_own_mask_only(kind, run, tmp_path, capsys):
    names = [f"{number}.{kind}" for number in range(10)]
    images = make_images(tmp_path / "images", *names, side=200)
    broken = images / names[3]
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    assert predict(run, images, "--out", tmp_path / "out") == 3
    shown = capsys.readouterr()
    assert "9 masks written" in shown.out and "1 images failed" in shown.out
    assert shown.err.count("error: ") == 1 and str(broken) in shown.err and "next step: " in shown.err
    assert listing(tmp_path / "out") == sorted({*names, "predictions.json"} - {names[3]})
    content = record(tmp_path / "out")
    assert list(content["failed"]) == [names[3]] and len(content["images"]) == 9


def test_f57_masks_of_an_older_run_are_refused_by_name(run, tmp_path, capsys):
    images, out = make_images(tmp_path / "images", "a.png", "b.tif"), tmp_path / "out"
    assert predict(run, images, "--out", out) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    capsys.readouterr()
    assert predict(run, images, "--out", out) == 2
    shown = capsys.readouterr().err
    for part in (str(out), "run-7", Model.load(run).weights[:12], "another folder", "nothing is overwritten"):
        assert part in shown
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize("kind", KINDS)
def test_f57_every_mask_tells_which_run_and_weights_made_it(kind, run, tmp_path):
    images, out = make_images(tmp_path / "images", f"a.{kind}", f"b.{kind}"), tmp_path / "out"
    assert predict(run, images, "--out", out) == 0
    content = record(out)
    assert (content["run"], content["weights"]) == ("run-7", Model.load(run).weights)
    for entry in content["images"].values():
        written = (out / entry["mask"]).read_bytes()
        assert entry["sha256"] == hashlib.sha256(written).hexdigest()
        if kind == "nii.gz":
            import gzip

            written = gzip.decompress(written)
        assert f"nissl run run-7, weights {content['weights'][:16]}".encode() in written
        assert str(tmp_path).encode() not in written


@contextmanager
def started(script, *arguments):
    """A child process, which does not outlive the block."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


def until(seen, process):
    """Wait for a sign of a child process, a minute at most."""
    for _ in range(6000):
        if seen():
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    raise AssertionError("no sign of the work")


def killed(process):
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


PREDICT = "import sys; from nissl.cli import run; sys.exit(run(['predict', *sys.argv[1:]]))"


def test_f60_a_kill_while_a_mask_is_predicted_and_written_leaves_none(run, tmp_path):
    images, out = make_images(tmp_path / "images", "a.tif"), tmp_path / "out"
    write_image(images / "large.tif", picture(1, 3000, 2600))
    with started(PREDICT, run, images, "--out", out) as process:
        # The first rows of tiles are on the disk, and most of the image is still to come.
        until(lambda: any(path.stat().st_size > 20_000 for path in out.glob(".large.tif.*.tmp")), process)
        killed(process)
    assert [name for name in listing(out) if not name.startswith(".")] == ["a.tif", "predictions.json"]
    assert read_raster(out / "a.tif").pixels.shape == (1, 60, 67)
    assert record(out)["run"] == "run-7"
    # The leftover of the kill is not mistaken for an output: the folder is refused, another one serves.
    assert predict(run, images, "--out", out) == 2
    assert predict(run, images / "a.tif", "--out", tmp_path / "again") == 0
    assert (out / "a.tif").read_bytes() == (tmp_path / "again" / "a.tif").read_bytes()


OVERWRITE = """
import sys
from pathlib import Path
import numpy as np
from nissl.imageio.formats import write_mask
from nissl.files import write_whole

path = Path(sys.argv[1])
masks = [np.load(name) for name in sys.argv[2:]]
print("ready", flush=True)
while True:
    for mask in masks:
        if path.suffix == ".html":
            write_whole(path, mask.tobytes())
        else:
            write_mask(path, mask)
"""


@pytest.mark.parametrize("name", ["report.html", "a.png", "a.tif", "a.nii.gz"])
def test_f60_a_kill_at_any_moment_leaves_the_whole_old_file_or_the_whole_new_one(name, tmp_path):
    rng = np.random.default_rng(0)
    masks = [rng.integers(0, 4, (700, 600), np.uint8) for _ in range(2)]
    for number, mask in enumerate(masks):
        np.save(tmp_path / f"{number}.npy", mask)
    path = tmp_path / "out" / name
    path.parent.mkdir()
    whole = set()
    for mask in masks:
        if name == "report.html":
            path.write_bytes(mask.tobytes())
        else:
            write_mask(path, mask)
        whole.add(path.read_bytes())
    found = set()
    for _ in range(6):
        with started(OVERWRITE, path, tmp_path / "0.npy", tmp_path / "1.npy") as process:
            assert process.stdout.readline() == "ready\n", process.stderr.read()
            time.sleep(rng.uniform(0, 0.2))
            killed(process)
        assert path.read_bytes() in whole
        found.add(path.read_bytes())
        assert all(other.startswith(f".{name}.") for other in set(listing(path.parent)) - {name})
    assert found <= whole


FULL = """
import json, sys
from pathlib import Path
from nissl import cli
from nissl.errors import ResourceError
from nissl.files import write_whole

disk, run, images = map(Path, sys.argv[1:])
report = disk / "report.html"
write_whole(report, b"a" * 100_000)
try:
    write_whole(report, b"b" * 250_000)
    said = None
except ResourceError as error:
    said = str(error)
untouched = report.read_bytes() == b"a" * 100_000
report.unlink()
code = cli.run(["predict", str(run), str(images), "--out", str(disk / "out")])
files = {path.name: path.read_bytes().hex() for path in (disk / "out").iterdir()}
print("result", json.dumps({"said": said, "untouched": untouched, "code": code, "files": files}))
"""


@pytest.mark.parametrize("kind", [*KINDS[:2], pytest.param(KINDS[2], marks=pytest.mark.slow)])
def test_f60_a_full_disk_leaves_whole_files_with_their_record(kind, run, tmp_path):
    """A real disk of 300 kB, in a name space of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=300k tmpfs '{disk}'"
    alone = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if not shutil.which("unshare") or subprocess.run([*alone, mount], capture_output=True).returncode:
        pytest.skip("this machine lets no user mount a small disk")
    names = [f"{number}.{kind}" for number in range(4)]
    images = make_images(tmp_path / "images", *names, side=60)
    rng = np.random.default_rng(0)
    for name in names:  # masks of noise, which cannot be compressed to nothing
        write_image(images / name, rng.integers(0, 255, (1, 750, 750), np.uint8))
    command = f'{mount} && exec "$0" -c "$@"'
    done = subprocess.run(
        [*alone, command, sys.executable, FULL, disk, run, images],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.split("result")[1])
    assert result["untouched"] and "disk full" in result["said"] and "0.25 MB of free space" in result["said"]
    assert result["code"] == 4
    assert "disk full" in done.stderr and f".{kind}" in done.stderr and "Traceback" not in done.stderr
    files = {name: bytes.fromhex(content) for name, content in result["files"].items()}
    listed = json.loads(files.pop("predictions.json"))["images"]
    assert 0 < len(files) < 4
    assert sorted(files) == sorted(entry["mask"] for entry in listed.values())
    for entry in listed.values():
        assert hashlib.sha256(files[entry["mask"]]).hexdigest() == entry["sha256"]
