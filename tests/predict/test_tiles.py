"""Masks of whole images: tiles without seams, resizing as in training, memory below its stated bound."""

import dataclasses
import subprocess
import sys
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.predict.tiny import tiny_model, with_net
from torch import nn

from nissl import nets
from nissl.config import Config, TrainConfig
from nissl.data.cases import CaseFile
from nissl.data.dataset import ImageStream, Schedule, Store, moments, resize_image
from nissl.data.formats import read_raster, write_image
from nissl.data.labels import default_map
from nissl.errors import DataError
from nissl.predict import tiles
from nissl.predict.tiles import peak_bytes, pieces, plan, predict_mask, tile_size

ROOT = Path(__file__).resolve().parents[2]


def picture(*shape, dtype=np.uint8, seed=0):
    """Smooth blobs with noise, whose statistics differ from place to place."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(0, 1, (shape[0], *(-(-s // 8) for s in shape[1:])))
    image = resize_image(coarse.astype(np.float32), shape[1:]) + rng.normal(0, 0.3, shape)
    return ((image - image.min()) / np.ptp(image) * 250).astype(dtype)


def assembled(model, image):
    """Logits of the whole image, after checking that each pixel comes exactly once."""
    logits = np.full((len(model.classes), *image.shape[1:]), np.nan, np.float32)
    for place, piece in pieces(model, image):
        part = logits[(slice(None), *place)]
        assert part.shape == piece.shape
        assert np.isnan(part).all()
        part[:] = piece
    assert not np.isnan(logits).any()
    return logits


def whole_at_once(model, image):
    """Independent reference for `patches`: pad with NumPy, run the network once, crop."""
    step = model.net.multiple
    want = [-(-max(s, t) // step) * step for s, t in zip(image.shape[1:], model.config.data.size, strict=True)]
    around = [((w - s) // 2, w - s - (w - s) // 2) for w, s in zip(want, image.shape[1:], strict=True)]
    mean, deviation = moments(image)
    padded = (np.pad(image, [(0, 0), *around], mode="symmetric") - mean) / deviation
    with torch.inference_mode():
        logits = model.net(torch.from_numpy(padded.astype(np.float32))[None])[0].numpy()
    cut = tuple(slice(a, a + s) for (a, _), s in zip(around, image.shape[1:], strict=True))
    return logits[(slice(None), *cut)]


class Spy(nn.Module):
    """Keeps what the network was given."""

    def __init__(self, net):
        super().__init__()
        self.net, self.multiple, self.seen = net, net.multiple, []

    def forward(self, images):
        self.seen.append(images.clone())
        return self.net(images)


CASES = [
    pytest.param((3, 201, 75), {"tile": 32, "halo": 16}, id="2d"),
    pytest.param((1, 160, 64), {"tile": 32, "halo": 16}, id="2d-whole-tiles"),
    pytest.param((1, 9, 120), {"tile": 16, "halo": 16, "size": 32}, id="2d-smaller-than-a-patch"),
    pytest.param((1, 3, 41), {"tile": 16, "halo": 10, "size": 48}, id="2d-padded-more-than-once"),
    pytest.param((2, 71, 18, 49), {"tile": 64, "halo": 48}, id="3d"),
]


@pytest.mark.parametrize(("shape", "settings_"), CASES)
def test_tiles_equal_the_whole_image(shape, settings_):
    model = tiny_model(len(shape) - 1, channels=shape[0], **settings_)
    image = picture(*shape)
    assert len(list(pieces(model, image))) > 1
    reference = whole_at_once(model, image)
    np.testing.assert_allclose(assembled(model, image), reference, atol=1e-5)
    mask = predict_mask(model, image)
    assert mask.dtype == np.uint8
    # Where two classes are as good, rounding may choose.
    first, second = np.sort(reference, axis=0)[[-1, -2]]
    assert (mask == reference.argmax(0))[first - second > 1e-4].all()
    assert len(np.unique(mask)) > 1


def test_a_tile_without_halo_shows_seams():
    image = picture(1, 64, 64)
    model = tiny_model(tile=32, halo=0)
    assert np.abs(assembled(model, image) - whole_at_once(model, image)).max() > 1e-2


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=3), st.integers(1, 5), st.integers(0, 4), st.sampled_from([1, 4])
)
def test_cores_cover_once_and_windows_hold_the_halo(shape, cores, halos, step):
    core, halo = cores * step, halos * step
    count = np.zeros(shape, int)
    for tile in plan(shape, core, halo):
        count[tile.core] += 1
        for window, kept, size in zip(tile.window, tile.core, shape, strict=True):
            assert 0 <= window.start <= max(0, kept.start - halo)
            assert min(size, kept.stop + halo) <= window.stop <= size
            assert window.stop - window.start <= core + 2 * halo
            assert window.start % step == 0
    assert (count == 1).all()


def test_an_image_no_larger_than_a_window_is_one_tile():
    assert len(list(plan((704, 300), 512, 96))) == 1
    assert len(list(plan((720, 300), 512, 96))) == 2


def test_a_tile_in_3d_has_about_the_volume_of_one_in_2d():
    flat, deep = tiny_model(2), tiny_model(3)
    assert tile_size(flat) == (512, 96)
    assert tile_size(deep) == (64, 22)
    assert prod([tile_size(deep)[0]] * 3) == prod([tile_size(flat)[0]] * 2)


@pytest.mark.parametrize("shape", [(3, 90, 70), (1, 20, 150), (1, 12, 10), (2, 30, 20, 25), (1, 8, 40, 9)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float64])
def test_resizing_in_strips_equals_resizing_at_once(shape, dtype, monkeypatch):
    monkeypatch.setattr(tiles, "STRIP", 200)  # many strips
    image = picture(*shape, dtype=dtype)
    model = tiny_model(len(shape) - 1, "resize", channels=shape[0])
    small = resize_image(image if dtype != np.float64 else image.astype(np.float32), model.config.data.size)
    mean, deviation = moments(small)
    with torch.inference_mode():
        logits = model.net(torch.from_numpy((small - mean) / deviation)[None])[0].numpy()
    assert len(list(pieces(model, image))) > 1
    reference = resize_image(logits, image.shape[1:])
    np.testing.assert_allclose(assembled(model, image), reference, atol=1e-5)
    assert (predict_mask(model, image) == reference.argmax(0)).mean() > 0.999


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64])
def test_moments_in_strips_equal_those_of_the_training(dtype, monkeypatch):
    monkeypatch.setattr(tiles, "STRIP", 100)
    image = picture(3, 31, 17, dtype=dtype)
    image[2] = 7  # a constant channel
    np.testing.assert_allclose(tiles._moments_in_strips(image), moments(image), rtol=1e-6)


@pytest.mark.parametrize("sampling", ["resize", "patches"])
@pytest.mark.parametrize("dims", [2, 3])
def test_prediction_and_training_see_the_same_pixels(sampling, dims, tmp_path):
    model = tiny_model(dims, sampling, size=16)
    spy = Spy(model.net)
    shape = (30, 21, 12)[:dims] if sampling == "resize" else (16, 9, 16)[:dims]
    path = tmp_path / "a.tif"
    write_image(path, picture(1, *shape, dtype=np.uint16))
    predict_mask(with_net(model, spy), read_raster(path).pixels)
    store = Store([CaseFile("a", path)], default_map(None), model.config.data, with_masks=False)
    trained_on = ImageStream(store, None, Schedule(seed=0, batch=1))[0]
    torch.testing.assert_close(spy.seen[0], trained_on, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("dims", "shape", "found"), [(2, (1, 20, 20), "1 channel"), (3, (3, 20, 20), "a 2-D image")])
def test_an_image_of_another_kind_is_refused(dims, shape, found):
    with pytest.raises(DataError) as error:
        predict_mask(tiny_model(dims, channels=3), picture(*shape))
    assert error.value.found == found
    assert error.value.expected.startswith("3")
    assert "training" in error.value.fix


def test_the_network_runs_in_the_precision_of_the_settings():
    image = picture(1, 32, 32)
    types = {}
    for precision in ("auto", "float32", "bfloat16"):
        model = tiny_model()
        config = dataclasses.replace(model.config, train=TrainConfig(precision=precision))
        model.net.head.register_forward_hook(lambda m, i, output, p=precision: types.update({p: output.dtype}))
        logits = assembled(dataclasses.replace(model, config=config), image)
        assert logits.dtype == np.float32
    assert types == {"auto": torch.float32, "float32": torch.float32, "bfloat16": torch.bfloat16}


MEASURE = """
import re, sys
from pathlib import Path
import numpy as np
from tests.predict.tiny import tiny_model
from nissl.predict import peak_bytes, predict_mask

def status(key):
    return 1024 * int(re.search(key + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text()).group(1))

shape = tuple(map(int, sys.argv[2:]))
model = tiny_model(len(shape), sys.argv[1], channels=2, tile=512, halo=96, size=64)
image = np.random.default_rng(0).integers(0, 255, (2, *shape), np.uint8)
bound = peak_bytes(model, shape)
Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
before = status("VmRSS")
predict_mask(model, image)
print(bound, status("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize("arguments", [("patches", 2000, 2100), ("resize", 3000, 3100), ("patches", 140, 70, 90)])
def test_memory_stays_below_its_bound(arguments):
    command = [sys.executable, "-c", MEASURE, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    bound, measured = map(int, done.stdout.split())
    assert 0 < measured <= bound


def test_the_bound_grows_by_the_mask_alone():
    model = tiny_model()
    small, large = peak_bytes(model, (5_000, 5_000)), peak_bytes(model, (20_000, 20_000))
    assert large - small == 20_000**2 - 5_000**2
    assert peak_bytes(tiny_model(tile=1024), (20_000, 20_000)) > large


@pytest.mark.parametrize(("dims", "shape"), [(2, (20_000, 20_000)), (3, (512, 512, 512))])
def test_the_default_settings_need_less_than_four_gib(dims, shape):
    model = tiny_model(dims)
    config = Config(data=model.config.data)
    net = nets.build(config.net, dims, 1, 3, seed=0).eval()
    assert peak_bytes(dataclasses.replace(model, net=net, config=config), shape) < 4 * 2**30
