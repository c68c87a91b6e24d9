"""Grid files on a small data set, and what a bench makes of them."""

import csv
import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict

from tests.bench.here import unmeasured
from tests.tiny_data import write_tiny

from nissl import cli
from nissl.bench.grid.grid import cells, load_grid
from nissl.bench.run.cost import COST
from nissl.bench.run.results import CELLS, folder_of
from nissl.bench.runner import _described
from nissl.runs.folder import write_json

SETTINGS = """\
[settings]
data = { size = [32] }
net = { widths = [4, 8], dropout = [0.0, 0.1] }
pretrain = { steps = 2, batch = 2 }
train = { steps = 3, batch = 2 }
"""
TINY = f"""\
budgets = ["1", "50%"]
seeds = 2
[data.tiny]
path = "tiny"
{SETTINGS}
[[arms]]
pretrain = "none"
method = "supervised"
[[arms]]
name = "HPCA, folded"
pretrain = {{ name = "hebbian", rule = "hpca" }}
"""

STEPS = 20
LONG = TINY.replace("steps = 3,", f"steps = {STEPS}, save_every = 1000,").replace('["1", "50%"]', '["1"]')
LONG = LONG[: LONG.rindex("[[arms]]")]
"""Two cells of one arm, long enough to be held and stopped on the way (see `tests.bench.held`)."""
WEIGHTS = "checkpoints/last.safetensors"


def write_grid(folder, text=TINY):
    path = folder / "grid.toml"
    path.write_text(text)
    return path


def command(*arguments):
    return cli.run([str(argument) for argument in arguments])


def hashes(out):
    runs = out / "runs"
    return {str(path.relative_to(runs)): hashlib.sha256(path.read_bytes()).hexdigest() for path in runs.rglob(WEIGHTS)}


def rows(out):
    with (out / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def env(run):
    return json.loads((run / "env.json").read_text())


def prepared(folder, text, measured=True):
    """A data set and a grid; the cells and their run folders. What the arms cost is taken to be measured before."""
    write_tiny(folder / "tiny")
    made = cells(load_grid(write_grid(folder, text)))
    out = folder / "out"
    out.mkdir()
    write_json(out / CELLS, _described(made))
    if measured:
        costs = {cell.arm: unmeasured(cell, threads=1) for cell in made}
        write_json(out / COST, {"costs": [asdict(cost) for cost in costs.values()]})
    return made, [folder_of(out, cell) for cell in made]


def started(folder, *options, module="nissl"):
    arguments = [sys.executable, "-m", module, "bench", folder / "grid.toml", "--out", folder / "out", *options]
    settings = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(list(map(str, arguments)), stderr=subprocess.PIPE, text=True, env=settings)


def wait_for(holds, process, seconds=240):
    end = time.monotonic() + seconds
    while not holds():
        assert process.poll() is None and time.monotonic() < end, process.stderr.read()
        time.sleep(0.02)


def lines(path):
    return path.read_text().splitlines() if path.is_file() else []
