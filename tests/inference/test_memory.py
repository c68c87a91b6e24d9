"""The memory that is stated is not exceeded and not far above what is taken; where it runs out, less is tried."""

import dataclasses
import subprocess
import sys
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.inference.tiny import tiny_model, with_net
from torch import nn

from nissl.config import PredictConfig
from nissl.errors import ResourceError
from nissl.imageio.formats import Header
from nissl.imageio.raster import Grid
from nissl.inference.memory import (
    MemoryFallback,
    attempts,
    network_bytes,
    peak_bytes,
    resident_bytes,
    tile_size,
    total_bytes,
)
from nissl.nets import factory
from nissl.nets.settings import UNet

ROOT = Path(__file__).resolve().parents[2]


def test_a_tile_in_3d_has_about_the_volume_of_one_in_2d():
    flat, deep = tiny_model(2), tiny_model(3)
    assert tile_size(flat) == (512, 96)
    assert tile_size(deep) == (64, 22)
    assert prod([tile_size(deep)[0]] * 3) == prod([tile_size(flat)[0]] * 2)


MEASURE = """
import re, sys
from pathlib import Path
import numpy as np
from tests.inference.tiny import tiny_model
from nissl.inference.memory import peak_bytes
from nissl.inference.tiles import predict_mask

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


def header(shape, channels=3, grid=None):
    return Header(shape, channels, "uint8", None, channels * prod(shape), grid=grid)


def test_the_bound_of_a_slide_grows_with_its_width_and_not_with_its_height():
    model = tiny_model(channels=3)

    def bound(height, width):
        grid = Grid(512 * 512 * 3, 512 * 3 * width, 512, height // 512)
        return total_bytes(model, header((height, width), grid=grid), by_bands=True, per_pixel=network_bytes(model))

    assert bound(20_480, 20_480) == bound(204_800, 20_480)
    wider = bound(20_480, 40_960) - bound(20_480, 20_480)
    assert 0 < wider < 20_480 * (704 + 1024) * 5  # a band of pixels and classes
    assert bound(20_480, 20_480) < 0.6 * 2**30


def test_what_cannot_be_read_in_parts_or_written_in_bands_counts_as_a_whole():
    model = tiny_model(channels=3)
    small, large = (total_bytes(model, header((size, size)), by_bands=False, per_pixel=200) for size in (5_000, 10_000))
    assert large - small > (3 * 3 + 1) * (10_000**2 - 5_000**2)


def test_a_larger_tile_needs_more():
    assert peak_bytes(tiny_model(tile=1024), (20_000, 20_000)) > peak_bytes(tiny_model(), (20_000, 20_000))


def test_the_segments_that_a_band_crosses_are_counted():
    grid = Grid(segment=100, row=1000, lines=512, rows=40)
    assert [grid.held(lines) for lines in (1, 512, 513, 704, 10**6)] == [2000, 2000, 3000, 3000, 40_000]


def test_memory_of_this_process_is_known():
    peak = Path("/proc/self/clear_refs")
    if peak.exists():
        peak.write_text("5")  # forget what other tests have held, which would all have to be surpassed
    before = resident_bytes()
    assert 50 * 2**20 < before < 2**40
    np.ones(before // 8 + 2**24)
    assert resident_bytes() > before + 2**26


def test_the_network_is_as_it_was_after_its_memory_is_measured():
    model = tiny_model()
    assert network_bytes(model) == network_bytes(model) > 4 * (1 + 3 + 4 + 8)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.predictor.modules())


@pytest.mark.parametrize(("dims", "shape"), [(2, (20_000, 20_000)), (3, (512, 512, 512))])
def test_the_default_settings_need_less_than_four_gib(dims, shape):
    model = tiny_model(dims)
    description = dataclasses.replace(model.description, net=UNet(), predict=PredictConfig())
    net = factory.build(description.net, dims, 1, 3, seed=0).eval()
    assert peak_bytes(dataclasses.replace(model, predictor=net, description=description), shape) < 4 * 2**30


def test_smaller_tiles_come_before_the_cpu_and_the_settings_first():
    gpu = dataclasses.replace(tiny_model(tile=100), device=torch.device("cuda"))
    sizes = [100, 50, 24, 12, 6, 2]
    assert [(attempt.core, attempt.device.type) for attempt in attempts(gpu)] == [
        *((size, "cuda") for size in sizes),
        *((size, "cpu") for size in sizes),
    ]
    assert [attempt.core for attempt in attempts(tiny_model(tile=100))] == sizes
    resizing = dataclasses.replace(tiny_model(sampling="resize"), device=torch.device("cuda"))
    assert [str(attempt) for attempt in attempts(resizing)] == ["on cuda", "on cpu"]


def test_what_is_given_up_is_said_once_and_kept_for_each_image():
    said = []
    fallback = MemoryFallback(tiny_model(tile=32), said.append)
    for _ in range(2):
        fallback.begin()
        assert fallback.core == 32 and fallback.taken == []
        fallback.next_attempt()
        fallback.next_attempt()
        assert fallback.core == 8 and fallback.taken == ["tile 16 on cpu", "tile 8 on cpu"]
    assert len(said) == 2 and "out of memory with tile 32" in said[0] and "tile 16" in said[0]
    with pytest.raises(ResourceError, match="smallest tile"):
        for _ in range(9):
            fallback.next_attempt()


class Placed(nn.Module):
    """Follows where it is put, without parameters: any device will do."""

    multiple = 2

    def to(self, device):
        self.device = device
        return self


def test_the_network_goes_to_the_cpu_and_comes_back_for_the_next_image():
    gpu = torch.device("meta")
    net = Placed()
    fallback = MemoryFallback(dataclasses.replace(with_net(tiny_model(tile=16), net), device=gpu), lambda text: None)
    fallback.begin()
    for _ in range(4):  # 16, 8, 4, 2
        assert net.device == gpu == fallback.active_model.device
        fallback.next_attempt()
    assert net.device == torch.device("cpu") == fallback.active_model.device
    fallback.begin()
    assert net.device == gpu
