"""Ten thousand damaged files: each is pixels or a fault of ours, in seconds and below the limit; no decoder dies."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tests.faults.mutants import LIMIT, SOUND, sound_files

from nissl.errors import DataError
from nissl.imageio.formats import read_header, read_raster, write_image

ROOT = Path(__file__).resolve().parents[2]
COUNTS = {".png": 2500, ".tif": 3000, ".nii": 1000, ".nii.gz": 1000, ".dcm": 2500}


def run_batch(folder, kind, first, count):
    """Read mutants in a process of its own; gives the last number that it printed and its result, if it lived."""
    arguments = [sys.executable, "-W", "ignore", "-m", "tests.faults.mutants", folder, kind, first, count]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    child = subprocess.run(
        [str(part) for part in arguments], capture_output=True, text=True, cwd=ROOT, env=environment, timeout=900
    )
    lines = child.stdout.splitlines()
    if child.returncode == 0:
        return None, json.loads(lines[-1])
    assert lines, child.stderr
    return int(lines[-1]), f"exit {child.returncode}: {child.stderr[-1500:]}"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is bounded and measured as Linux does it")
@pytest.mark.parametrize("kind", COUNTS)
def test_f17_f29_no_damaged_file_crashes_hangs_or_takes_memory_above_the_limit(kind, tmp_path):
    count, first, faults = COUNTS[kind], 0, {}
    outcomes: Counter[str] = Counter()
    while first < count and len(faults) < 5:
        failed, result = run_batch(tmp_path, kind, first, count - first)
        if failed is None:
            outcomes.update(result["outcomes"])
            # The decoded image, the copy that is returned and the file itself.
            assert result["grown"] < 3 * LIMIT, f"resident memory grew by {result['grown'] / 1e6:.0f} MB"
            break
        faults[failed] = result
        first = failed + 1
    assert not faults, "\n".join(f"{kind} mutant {number}: {what}" for number, what in faults.items())
    print(f"{kind}: {count} mutants, {dict(outcomes)}, memory grew by {result['grown'] / 1e6:.1f} MB")
    assert outcomes.total() == count
    assert outcomes["read"] > 0.02 * count and outcomes["refused"] > 0.05 * count, "damage of every depth"


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_f17_changed_bytes_raise_nothing_but_a_fault_that_names_the_file(tmp_path_factory, data):
    kind = data.draw(st.sampled_from(sorted(set(SOUND) - {".nii.gz"})))
    content = bytearray(data.draw(st.sampled_from(sound_files(kind))))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("changed") / f"a{kind}"
    path.write_bytes(content)
    try:
        read_raster(path, limit_gib=LIMIT / 2**30)
    except DataError as error:
        assert error.where == ("a DICOM file" if kind == ".dcm" else str(path))
        assert error.found and error.expected and error.fix


INTEGERS = ["uint8", "uint16", "int16", "uint32", "int32"]
HELD = {
    ".png": ([2], [(1, "uint8"), (3, "uint8"), (1, "uint16")], False),
    ".bmp": ([2], [(1, "uint8"), (3, "uint8")], False),
    ".tif": ([2, 3], [(n, dtype) for n in (1, 2, 3, 5) for dtype in (*INTEGERS, "float32", "float64")], True),
    ".nii": ([2, 3], [(n, dtype) for n in (1, 2, 3, 5) for dtype in (*INTEGERS, "float32", "float64")], True),
    ".nii.gz": ([2, 3], [(n, dtype) for n in (1, 2, 3, 5) for dtype in (*INTEGERS, "float32", "float64")], True),
}
"""Dimensions, channels with types, and whether a spacing can be written, by suffix."""


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_f25_whatever_a_format_can_hold_is_read_as_it_was_written(tmp_path_factory, data):
    kind = data.draw(st.sampled_from(sorted(HELD)))
    dims, kinds, spaced = HELD[kind]
    (channels, dtype), shape = data.draw(st.sampled_from(kinds)), [2 + data.draw(st.integers(0, 9))]
    shape += [2 + data.draw(st.integers(0, 9)) for _ in range(data.draw(st.sampled_from(dims)) - 1)]
    pixels = data.draw(arrays.arrays(np.dtype(dtype), (channels, *shape)))
    lengths = st.lists(st.floats(1e-4, 1e4), min_size=len(shape), max_size=len(shape))
    spacing = tuple(data.draw(lengths)) if spaced and data.draw(st.booleans()) else None
    path = tmp_path_factory.mktemp("written") / f"a{kind}"
    write_image(path, pixels, spacing)
    raster, head = read_raster(path), read_header(path)
    assert raster.pixels.dtype == dtype == head.dtype and head.shape == tuple(shape) and head.channels == channels
    np.testing.assert_array_equal(raster.pixels, pixels)
    if spacing is not None:
        assert raster.spacing == pytest.approx(spacing, rel=1e-5) == head.spacing
