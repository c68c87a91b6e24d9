"""Peak memory and time of the command that predicts a whole slide, against the bound that it prints before it starts.

A simulated slide of 20,000 x 20,000 RGB (1.2 GB decoded) and a U-Net of widths 4 and 8, on one thread. One JSON line.

    python benchmarks/whole_slide.py [tiles|strips|stored] [side] [patches|resize] [a run to predict with]
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import numpy as np
import tifffile

from nissl.imageio.formats import GIB

LIMIT = 2 * GIB
KINDS = {
    "tiles": {"compression": "zlib", "tile": (512, 512)},
    "strips": {"compression": "zlib", "rowsperstrip": 64},
    "stored": {},
}
RUN = """
import sys
from pathlib import Path
import tomli_w
from nissl.config import Config, DataConfig, to_tree
from nissl.nets import factory
from nissl.nets.settings import UNet
from nissl.runs.checkpoint import save_checkpoint
from nissl.runs.folder import WEIGHTS, write_json

run = Path(sys.argv[1])
(run / WEIGHTS).parent.mkdir(parents=True)
net = UNet(widths=(4, 8), dropout=(0.0, 0.0))
data = DataConfig(sampling=sys.argv[2], size=(128, 128))
(run / "config.toml").write_text(tomli_w.dumps(to_tree(Config(data=data, net=net))))
write_json(run / "data.json", {"dims": 2, "channels": 3, "classes": ["background", "gland"], "cases": []})
save_checkpoint(run / WEIGHTS, factory.build(net, 2, 3, 2, seed=0).state_dict(), {"step": 0})
"""
PREDICT = """
import sys
from pathlib import Path
from nissl.cli import run

code = run(sys.argv[1:])
line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print("peak", 1024 * int(line.split()[1]))
sys.exit(code)
"""


def rows(side: int, count: int) -> Iterator[np.ndarray]:
    """Rows of a slide, some at a time: blobs with noise that differ from place to place."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(40, 220, (80, 80, 3)).astype(np.uint8)
    block = np.kron(coarse, np.ones((32, 32, 1), np.uint8)) + rng.integers(0, 9, (2560, 2560, 3), np.uint8)
    wide = np.tile(block, (1, -(-side // 2560), 1))[:, :side]
    for top in range(0, side, count):
        lines = np.arange(top, min(side, top + count)) % 2560
        yield np.roll(wide[lines], 7 * top, axis=1)


def write_slide(path: Path, kind: str, side: int) -> None:
    """Write a slide without holding it."""
    options = KINDS[kind]
    high = options["tile"][0] if "tile" in options else options.get("rowsperstrip", 100)

    def parts() -> Iterator[np.ndarray | bytes]:
        for band in rows(side, high):
            if "tile" in options:
                yield from (band[:, left : left + high] for left in range(0, side, high))
            else:
                yield zlib.compress(band.tobytes())

    if kind == "stored":
        image = tifffile.memmap(path, shape=(side, side, 3), dtype=np.uint8, photometric="rgb")
        for index, band in enumerate(rows(side, high)):
            image[index * high : index * high + len(band)] = band
        image.flush()
    else:
        tifffile.imwrite(path, parts(), shape=(side, side, 3), dtype=np.uint8, photometric="rgb", **options)


def main(kind: str = "tiles", side: str = "20000", sampling: str = "patches", run: str = "") -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        write_slide(folder / "images" / "slide.tif", kind, int(side))
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        if not run:
            run = str(folder / "run")
            subprocess.run([sys.executable, "-c", RUN, run, sampling], check=True, env=environment)
        command = ["predict", run, folder / "images", "--out", folder / "masks", "--device", "cpu"]
        start = perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", PREDICT, *map(str, command)], capture_output=True, text=True, env=environment
        )
        seconds = perf_counter() - start
        if done.returncode:
            sys.exit(done.stderr)
        peak = int(done.stdout.split("peak")[1])
        bound = float(re.findall(r"memory: ([\d.]+) GiB", done.stderr)[0]) * GIB
        with tifffile.TiffFile(folder / "masks" / "slide.tif") as mask:
            assert mask.series[0].shape == (int(side), int(side))
        size = (folder / "images" / "slide.tif").stat().st_size
    result = {
        "benchmark": "whole_slide",
        "kind": kind,
        "sampling": sampling,
        "side": int(side),
        "file_mb": round(size / 1e6),
        "seconds": round(seconds, 1),
        "peak_gib": round(peak / GIB, 3),
        "printed_bound_gib": round(bound / GIB, 3),
        "share_of_bound": round(peak / bound, 2),
        "limit_gib": LIMIT / GIB,
    }
    print(json.dumps(result))
    assert peak <= min(bound, LIMIT)


if __name__ == "__main__":
    main(*sys.argv[1:])
