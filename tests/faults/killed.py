"""Kill a run at random moments until it is through; started as a process of its own by the test.

    python -m tests.faults.killed DATA OUT KILLS

A whole run comes first, to compare with; it also imports everything, so that each attempt, a fork of this process,
takes the time of the run alone. After each kill the newest state and weights must load.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from tests.tiny_data import FLAGS, pretrained

from nissl import cli
from nissl.runs.checkpoint import has_checkpoint, load_checkpoint, load_newest
from nissl.runs.folder import STATE, WEIGHTS

SAVING = ["--train.save_every", "1", *pretrained(), "--steps", "40", "--pretrain.steps", "15"]


def command(data, out, resume):
    return ["train", str(data), "--out", str(out), *(["--resume"] if resume else [*FLAGS, *SAVING])]


def attempt(data, out, pause):
    """Run in a fork; kill it after a pause. Return whether it was through before."""
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        code = 1
        try:
            sys.stderr = out.with_suffix(".err").open("a")
            code = cli.run(command(data, out, (out / "config.toml").exists()))
        finally:
            os._exit(code)
    until = time.monotonic() + pause
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0, out.with_suffix(".err").read_text()
            return True
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def state_of(out):
    """Where the run is, by what loads: the stage and the step."""
    if (out / WEIGHTS).exists():
        load_checkpoint(out / WEIGHTS)
    if has_checkpoint(out / STATE):
        _, facts, fault = load_newest(out / STATE)
        assert fault is None, fault
        return f"training {facts['step']}"
    stage = out / STATE.with_name("stage1-0.safetensors")
    if has_checkpoint(stage):
        _, facts, fault = load_newest(stage)
        assert fault is None, fault
        return f"pre-training {facts['step']}"
    return "described" if (out / "config.toml").exists() else "nothing"


def main(data, folder, kills):
    torch.set_num_threads(1)
    for name in ("whole", "timed"):  # the first imports what the second has
        began = time.monotonic()
        assert cli.run(command(data, folder / name, False)) == 0
    seconds = time.monotonic() - began
    draw, runs, states = random.Random(0), 0, []
    while len(states) < kills:
        if attempt(data, folder / f"run{runs}", draw.uniform(0, 0.7 * seconds)):
            runs += 1
        else:
            states.append(state_of(folder / f"run{runs}"))
    assert attempt(data, folder / f"run{runs}", 60), "the last attempt hangs"
    (folder / "states.json").write_text(json.dumps(states))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
