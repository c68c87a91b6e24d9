"""Grid files on a small data set, and what a bench makes of them."""

import csv
import hashlib
import json
import os
import subprocess
import sys
import time

from nissl import cli

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

LONG = TINY.replace("steps = 3,", "steps = 60, save_every = 1000,").replace('["1", "50%"]', '["1"]')
LONG = LONG[: LONG.rindex("[[arms]]")]
"""Two cells of one arm, long enough to be stopped on the way."""
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


def started(folder, *options):
    arguments = [sys.executable, "-m", "nissl", "bench", folder / "grid.toml", "--out", folder / "out", *options]
    settings = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(list(map(str, arguments)), stderr=subprocess.PIPE, text=True, env=settings)


def wait_for(holds, process, seconds=240):
    end = time.monotonic() + seconds
    while not holds():
        assert process.poll() is None and time.monotonic() < end, process.stderr.read()
        time.sleep(0.02)


def lines(path):
    return path.read_text().splitlines() if path.is_file() else []
