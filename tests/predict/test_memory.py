"""The memory that is stated is not exceeded and not far above what is taken; where it runs out, less is tried."""

import dataclasses
import subprocess
import sys
from math import prod
from pathlib import Path

import pytest
from tests.predict.tiny import tiny_model

from nissl import nets
from nissl.config import Config
from nissl.predict.memory import peak_bytes, tile_size

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
