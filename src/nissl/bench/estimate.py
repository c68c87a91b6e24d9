"""How long the cells that are left will take, and where that is known from."""

import dataclasses
import io
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stderr
from datetime import timedelta
from pathlib import Path
from statistics import mean

import torch

from nissl import jobs
from nissl.bench.grid import Cell
from nissl.bench.results import Result, step_seconds
from nissl.train.run import read_json

STEPS = 3
"""Steps of a timed run; the last is taken, the first ones make memory and caches warm."""


def estimate(todo: Sequence[Cell], results: Sequence[Result], workers: int, threads: int) -> str:
    """Say in a line how long the cells to do will take.

    Each arm on each data set is estimated from its finished cells, or else from a short run of a few steps; measuring
    and reading come on top. A short run that fails is left out here: its cells will say why.
    """
    known: dict[tuple[str, str], float | None] = {}
    sources = {"finished cells": 0, f"{STEPS} steps of a cell": 0, "no timing": 0}
    total = 0.0
    for cell in todo:
        key = (cell.data, cell.arm)
        if key not in known:
            finished = [_seconds(one) for one in results if (one.data, one.arm) == key and one.status == "done"]
            known[key] = mean(finished) if finished else _timed(cell, threads)
            used = "finished cells" if finished else "no timing" if known[key] is None else f"{STEPS} steps of a cell"
            sources[used] += 1
        total += known[key] or 0.0
    told = ", ".join(f"{count} from {source}" for source, count in sources.items() if count)
    length = timedelta(seconds=round(total / min(workers, len(todo))))
    return f"estimate: {length} of training, measuring not counted (arms on data sets: {told})"


def _seconds(result: Result) -> float:
    return (result.seconds_stage_1 or 0.0) + (result.seconds_stage_2 or 0.0)


def _timed(cell: Cell, threads: int) -> float | None:
    """Seconds of a cell after a run of a few steps, or None where that fails."""
    config = cell.config
    stage_1 = min(STEPS, config.pretrain.steps)
    train = dataclasses.replace(config.train, steps=STEPS)
    short = dataclasses.replace(config, train=train, pretrain=dataclasses.replace(config.pretrain, steps=stage_1))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with tempfile.TemporaryDirectory() as folder, redirect_stderr(io.StringIO()):
            run = jobs.train(cell.path, Path(folder) / "run", short)
            first = read_json(run / "pretrain.json")["seconds"] / stage_1 * config.pretrain.steps
            return float(first + step_seconds(run)[-1] * config.train.steps)
    except Exception:  # told by the cell itself
        return None
    finally:
        torch.set_num_threads(before)
