"""Masks of whole images: tiles without seams, resizing and normalising as in training, by regions and by bands."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.inference.tiny import assembled, picture, served, tiny_model, whole_at_once, with_net
from torch import nn

from nissl.config import DataConfig
from nissl.data import preprocessing
from nissl.data.batches import Schedule, Store, Stream
from nissl.data.cases import CaseFile
from nissl.data.preprocessing import Preprocessing, moments, moments_in_strips, resize_image
from nissl.errors import DataError
from nissl.imageio.formats import read_raster, write_image
from nissl.imageio.label_map import default_map
from nissl.inference import tiles
from nissl.inference.tiles import plan, predict_mask

ROOT = Path(__file__).resolve().parents[2]


class Spy(nn.Module):
    """Keeps what the network was given."""

    def __init__(self, net):
        super().__init__()
        self.net, self.multiple, self.seen = net, net.multiple, []

    def forward(self, images):
        self.seen.append(images.clone())
        return self.net(images)


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


@pytest.mark.parametrize("shape", [(3, 90, 70), (1, 20, 150), (1, 12, 10), (2, 30, 20, 25), (1, 8, 40, 9)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float64])
def test_resizing_in_strips_equals_resizing_at_once(shape, dtype, monkeypatch):
    monkeypatch.setattr(tiles, "STRIP", 200)  # many strips
    monkeypatch.setattr(preprocessing, "STRIP", 200)
    image = picture(*shape, dtype=dtype)
    model = tiny_model(len(shape) - 1, "resize", channels=shape[0])
    small = resize_image(image if dtype != np.float64 else image.astype(np.float32), model.preprocessing.size)
    mean, deviation = moments(small)
    with torch.inference_mode():
        logits = model.predictor(torch.from_numpy((small - mean) / deviation)[None])[0].numpy()
    assert len(list(served(model, image))) > 1
    reference = resize_image(logits, image.shape[1:])
    np.testing.assert_allclose(assembled(model, image), reference, atol=1e-5)
    assert (predict_mask(model, image) == reference.argmax(0)).mean() > 0.999


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.uint32, np.float32, np.float64])
@pytest.mark.parametrize("size", [(16, 16), (40, 16), (16, 40), (40, 40)])
def test_resizing_in_strips_gives_the_bits_of_the_training_whatever_the_type(dtype, size, monkeypatch):
    monkeypatch.setattr(preprocessing, "STRIP", 200)
    image = np.random.default_rng(0).poisson(0.3, (2, 37, 29)).astype(dtype)
    trained_on = resize_image(image, size)
    assert trained_on.dtype == np.float32 and (trained_on != np.rint(trained_on)).mean() > 0.5
    assert np.array_equal(Preprocessing("resize", size).resized(image), trained_on)
    assert np.array_equal(trained_on, resize_image(image.astype(np.float32), size))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64])
def test_moments_in_strips_equal_those_of_the_training(dtype, monkeypatch):
    monkeypatch.setattr(preprocessing, "STRIP", 100)
    image = picture(3, 31, 17, dtype=dtype)
    image[2] = 7  # a constant channel
    np.testing.assert_allclose(moments_in_strips(image), moments(image), rtol=1e-6)


@pytest.mark.parametrize("sampling", ["resize", "patches"])
@pytest.mark.parametrize("dims", [2, 3])
def test_prediction_and_training_see_the_same_pixels(sampling, dims, tmp_path):
    model = tiny_model(dims, sampling, size=16)
    spy = Spy(model.predictor)
    shape = (30, 21, 12)[:dims] if sampling == "resize" else (16, 9, 16)[:dims]
    path = tmp_path / "a.tif"
    write_image(path, picture(1, *shape, dtype=np.uint16))
    predict_mask(with_net(model, spy), read_raster(path).pixels)
    store = Store(
        [CaseFile("a", path)], default_map(None), DataConfig(size=(16,) * dims, sampling=sampling), with_masks=False
    )
    trained_on = Stream(None, store, None, Schedule(seed=0, batch=1))[0].images
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
        description = dataclasses.replace(model.description, precision=precision)
        model.predictor.head.register_forward_hook(lambda m, i, output, p=precision: types.update({p: output.dtype}))
        logits = assembled(dataclasses.replace(model, description=description), image)
        assert logits.dtype == np.float32
    assert types == {"auto": torch.float32, "float32": torch.float32, "bfloat16": torch.bfloat16}
