"""Images larger than the memory, and memory that runs out: the mask is the same, or the error names the image."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from tests.inference.tiny import assembled, picture, served, tiny_model, whole_at_once, with_net, write_run
from torch import nn

from nissl import cli
from nissl.errors import ResourceError
from nissl.imageio.formats import open_raster, read_raster, write_image
from nissl.inference import tiles
from nissl.inference.folder import predict_folder
from nissl.inference.memory import MemoryFallback
from nissl.inference.tiles import predict_mask
from nissl.nets.settings import UNet

ROOT = Path(__file__).resolve().parents[2]
LINUX = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")


@contextmanager
def quiet(total, what):
    yield lambda message: None


class Limited(nn.Module):
    """A network that fails as torch does where it is given more pixels than fit."""

    def __init__(self, net, most, error):
        super().__init__()
        self.net, self.multiple, self.most, self.error, self.tried = net, net.multiple, most, error, []

    def forward(self, images):
        pixels = images[0, 0].numel()
        self.tried.append(pixels)
        if pixels > self.most:
            raise self.error
        return self.net(images)


FAULTS = [
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:130] . DefaultCPUAllocator: can't allocate memory: you tried to ..."),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
]


@pytest.mark.parametrize(
    ("shape", "error"),
    [*(((3, 200, 170), error) for error in FAULTS), ((1, 40, 50, 45), FAULTS[0])],
    ids=lambda value: f"{len(value) - 1}-D" if isinstance(value, tuple) else type(value).__name__,
)
def test_f39_a_tile_that_does_not_fit_becomes_smaller_ones_and_the_mask_stays(shape, error, capsys):
    dims = len(shape) - 1
    model = tiny_model(dims, channels=shape[0], tile=64 if dims == 2 else 128, halo=16 if dims == 2 else 48)
    image = picture(*shape)
    reference = assembled(model, image)
    most = (32 + 32) ** 2 if dims == 2 else 40**3
    limited = with_net(model, Limited(model.predictor, most, error))
    fallback = MemoryFallback(limited)
    np.testing.assert_allclose(assembled(limited, image, fallback), reference, atol=1e-5)
    # Where two classes are as good, rounding may choose.
    first, second = np.sort(reference, axis=0)[[-1, -2]]
    clear = first - second > 1e-4
    np.testing.assert_array_equal(predict_mask(limited, image, fallback)[clear], reference.argmax(0)[clear])
    assert clear.mean() > 0.99
    assert fallback.taken and all(note.startswith("tile ") for note in fallback.taken)
    # Two images, yet each step is said once.
    said = capsys.readouterr().err
    assert said.count("warning: out of memory with") == len(fallback.taken)
    assert sum(pixels > most for pixels in limited.predictor.tried) <= 2 * len(fallback.taken)


@pytest.mark.parametrize("sampling", ["patches", "resize"])
def test_f39_where_the_gpu_has_too_little_the_cpu_goes_on(sampling, monkeypatch):
    """Torch's `meta` device stands for a GPU here: the network fails on it before it computes."""

    class OnlyOnCpu(nn.Module):
        multiple = 2

        def __init__(self, net):
            super().__init__()
            self.inner = [net]  # not registered: its weights stay

        def forward(self, images):
            if images.device.type != "cpu":
                raise torch.OutOfMemoryError("CUDA out of memory")
            return self.inner[0](images)

    monkeypatch.setattr(tiles, "autocast", lambda device, precision: torch.autocast("cpu", enabled=False))
    model = tiny_model(sampling=sampling, tile=32, halo=16)
    image = picture(1, 90, 70)
    there = dataclasses.replace(with_net(model, OnlyOnCpu(model.predictor)), device=torch.device("meta"))
    said = []
    fallback = MemoryFallback(there, said.append)
    np.testing.assert_array_equal(predict_mask(there, image, fallback), predict_mask(model, image))
    assert fallback.taken[-1] == ("tile 32 on cpu" if sampling == "patches" else "on cpu")
    assert len(said) == len(fallback.taken)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_f39_a_real_gpu_that_is_full_hands_over_to_the_cpu():
    model = tiny_model(tile=512)
    image = picture(1, 700, 700)
    expected = predict_mask(model, image)
    gpu = dataclasses.replace(with_net(model, model.predictor.to("cuda")), device=torch.device("cuda"))
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-5)
    try:
        fallback = MemoryFallback(gpu)
        found = predict_mask(gpu, image, fallback)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert fallback.taken
    assert (found == expected).mean() > 0.999


@pytest.mark.parametrize("sampling", ["patches", "resize"])
@pytest.mark.parametrize("kind", [".tif", ".png"])
def test_f39_an_image_that_never_fits_is_named_and_the_others_are_written(
    sampling, kind, tmp_path, monkeypatch, capsys
):
    model = tiny_model(sampling=sampling, channels=3, tile=64, halo=16)
    write_run(tmp_path / "run", model)
    for name, size in (("a", 30), ("b", 40), ("large", 200)):
        (tmp_path / "images").mkdir(exist_ok=True)
        write_image(tmp_path / "images" / f"{name}{kind}", picture(3, size, size))
    attempt = tiles._logits

    def limited(model, pixels, kept):
        # Of the large image nothing fits, whatever the tile.
        if limited.large:
            raise MemoryError
        return attempt(model, pixels, kept)

    fits = tiles.require_fit

    def noted(model, image, where="image"):
        limited.large = image.shape[1] == 200
        fits(model, image, where)

    monkeypatch.setattr(tiles, "_logits", limited)
    monkeypatch.setattr(tiles, "require_fit", noted)
    result = predict_folder(tmp_path / "run", tmp_path / "images", tmp_path / "out", tracker=quiet)
    assert [path.name for path in result.written] == [f"a{kind}", f"b{kind}"]
    (error,) = result.failed
    assert isinstance(error, ResourceError) and error.where == str(tmp_path / "images" / f"large{kind}")
    assert error.found == "out of memory" and "GiB" in error.expected and "more memory" in error.fix
    assert not (tmp_path / "out" / f"large{kind}").exists()
    record = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert list(record["failed"]) == [f"large{kind}"]
    assert not any("out_of_memory" in entry for entry in record["images"].values())


STARVED = """
import resource, sys
from pathlib import Path
import torch
from nissl import cli
from nissl.inference import tiles

torch.set_num_threads(1)
trained, small, images, out, more = sys.argv[1:]
assert cli.run(["predict", trained, small, "--out", out + "-warm"]) == 0  # every library is loaded
size = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (1024 * int(size.split()[1]) + int(more), resource.RLIM_INFINITY))
sys.exit(cli.run(["predict", trained, images, "--out", out]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit holds on Linux")
def test_f39_a_process_that_the_system_keeps_short_of_memory_writes_the_same_mask(tmp_path):
    model = tiny_model(channels=3, tile=2048, halo=16)
    write_run(tmp_path / "run", model)
    write_image(tmp_path / "small.tif", picture(3, 40, 40))
    (tmp_path / "images").mkdir()
    write_image(tmp_path / "images" / "a.tif", picture(3, 1900, 2000))
    assert cli.run(["predict", *map(str, (tmp_path / "run", tmp_path / "images", "--out", tmp_path / "free"))]) == 0
    arguments = [tmp_path / "run", tmp_path / "small.tif", tmp_path / "images", tmp_path / "short", 300 * 2**20]
    done = subprocess.run(
        [sys.executable, "-c", STARVED, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "out of memory" in done.stderr and "tile 2048" in done.stderr
    entry = json.loads((tmp_path / "short" / "predictions.json").read_text())["images"]["a.tif"]
    assert entry["out_of_memory"][0] == "tile 1024 on cpu"
    free, short = (read_raster(tmp_path / name / "a.tif").pixels for name in ("free", "short"))
    assert (free == short).mean() > 0.9999  # where two classes are as good, rounding may choose


CASES = [
    pytest.param((3, 201, 75), {"tile": 32, "halo": 16}, id="2d"),
    pytest.param((1, 160, 64), {"tile": 32, "halo": 16}, id="2d-whole-tiles"),
    pytest.param((1, 9, 120), {"tile": 16, "halo": 16, "size": 32}, id="2d-smaller-than-a-patch"),
    pytest.param((1, 3, 41), {"tile": 16, "halo": 10, "size": 48}, id="2d-padded-more-than-once"),
    pytest.param((2, 71, 18, 49), {"tile": 64, "halo": 48}, id="3d"),
]


@pytest.mark.parametrize(("shape", "settings_"), CASES)
def test_f41_tiles_equal_the_whole_image(shape, settings_):
    model = tiny_model(len(shape) - 1, channels=shape[0], **settings_)
    image = picture(*shape)
    assert len(list(served(model, image))) > 1
    reference = whole_at_once(model, image)
    np.testing.assert_allclose(assembled(model, image), reference, atol=1e-5)
    mask = predict_mask(model, image)
    assert mask.dtype == np.uint8
    # Where two classes are as good, rounding may choose.
    first, second = np.sort(reference, axis=0)[[-1, -2]]
    assert (mask == reference.argmax(0))[first - second > 1e-4].all()
    assert len(np.unique(mask)) > 1


@pytest.mark.parametrize("sampling", ["patches", "resize"])
@pytest.mark.parametrize(
    "options",
    [{"compression": "zlib", "tile": (64, 32)}, {"compression": "zlib", "rowsperstrip": 9}, {}],
    ids=["tiles", "strips", "stored"],
)
def test_f41_a_file_read_in_parts_gives_the_bits_of_the_whole(sampling, options, tmp_path):
    model = tiny_model(sampling=sampling, channels=3, tile=64, halo=16)
    image = picture(3, 310, 270)
    tifffile.imwrite(tmp_path / "a.tif", image.transpose(1, 2, 0), photometric="rgb", **options)
    expected = assembled(model, image)
    with open_raster(tmp_path / "a.tif", lines=96) as raster:
        assert not isinstance(raster.pixels, np.ndarray)
        np.testing.assert_array_equal(assembled(model, raster.pixels), expected)
    write_run(tmp_path / "run", model)
    (path,) = predict_folder(tmp_path / "run", tmp_path / "a.tif", tmp_path / "out", tracker=quiet).written
    np.testing.assert_array_equal(read_raster(path).pixels[0], predict_mask(model, image))


GROWTH = """
import re, sys
from pathlib import Path
import torch
from nissl import cli

def status(key):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return 1024 * int(line.split()[1])

torch.set_num_threads(1)
run, small, images, out = sys.argv[1:]
assert cli.run(["predict", run, small, "--out", out + "-warm"]) == 0
Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
before = status("VmRSS")
assert cli.run(["predict", run, images, "--out", out]) == 0
print("grown", status("VmHWM") - before, status("VmHWM"))
"""


@LINUX
@pytest.mark.xdist_group("alone")
@pytest.mark.parametrize("sampling", ["patches", "resize"])
def test_f41_an_image_is_predicted_without_being_held(sampling, tmp_path):
    """16 channels of real numbers: 256 MB when decoded, of which a small part is in memory at any time."""
    model = tiny_model(sampling=sampling, channels=16, size=128, tile=128, halo=16)
    write_run(tmp_path / "run", model)
    write_image(tmp_path / "small.tif", picture(16, 40, 40, dtype=np.float32))
    (tmp_path / "images").mkdir()
    side = 2000
    ramp = np.arange(side, dtype=np.float32)
    planes = (((ramp[:, None] * (k + 1) + ramp) % 250).astype(np.float32) for k in range(16))
    path = tmp_path / "images" / "large.tif"
    tifffile.imwrite(path, planes, shape=(16, side, side), dtype=np.float32, metadata={"axes": "CYX"})
    command = [tmp_path / "run", tmp_path / "small.tif", tmp_path / "images", tmp_path / "masks"]
    done = subprocess.run(
        [sys.executable, "-c", GROWTH, *map(str, command)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    grown, peak = map(int, done.stdout.split("grown")[1].split())
    bound = float(re.findall(r"memory: ([\d.]+) GiB", done.stderr)[-1]) * 2**30
    assert grown < 16 * side * side * 4 / 2
    assert peak <= bound < 3 * peak
    assert read_raster(tmp_path / "masks" / "large.tif").pixels.shape == (1, side, side)


@LINUX
@pytest.mark.slow
@pytest.mark.xdist_group("alone")
@pytest.mark.parametrize("side", [6000, pytest.param(20000, marks=pytest.mark.full)])
@pytest.mark.parametrize("kind", ["tiles", "strips", "stored"])
def test_f41_a_slide_stays_below_the_bound_that_is_printed(tmp_path, kind, side):
    """With a small halo and a network of few channels, which take time alone.

    Its logits, or the image in real numbers, are 430 MB of a slide of 6000 x 6000: held at once they break the bound.
    """
    narrow = UNet(widths=(2, 4), dropout=(0.0, 0.0))
    write_run(tmp_path / "run", tiny_model(channels=3, size=128, halo=16, settings=narrow))
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "whole_slide.py"),
        kind,
        str(side),
        "patches",
        tmp_path / "run",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert measured["peak_gib"] <= measured["printed_bound_gib"] < 1.0
    assert measured["share_of_bound"] > 0.5
