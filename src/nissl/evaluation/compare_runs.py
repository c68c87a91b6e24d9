"""Compare run folders: what their files say, brought to `compare_scores`."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nissl.config import to_tree
from nissl.errors import InputError
from nissl.evaluation.compare import Comparison, Scored, compare_scores
from nissl.runs.folder import holds_seeds, measured_steps, unfinished
from nissl.runs.format import load_config
from nissl.runs.provenance import differing_keys, flat
from nissl.runs.seeds import runs_of
from nissl.tasks.rows import Row
from nissl.tasks.task import task_of

DRAWS = 0
"""Seed of the resampling, fixed: the same two folders give the same numbers."""


def compare_runs(a: Path, b: Path) -> Comparison:
    """Compare two measured runs, or two measured trainings of the same several seeds.

    Raises:
        InputError: a folder is no run or not measured yet, or the two are not paired.
        DataError: a metrics.csv is damaged.

    """
    if holds_seeds(a) != holds_seeds(b):
        several, run = (a, b) if holds_seeds(a) else (b, a)
        found, expected = f"{several} holds several seeds, {run} is one run", "two runs, or several seeds of both"
        raise InputError(f"{a} and {b}", found, expected, f"compare with one of {several}/seed-...")
    names = (str(a), str(b))
    scores = read_scores(a), read_scores(b)
    tasks = [load_config(next(iter(_runs(folder).values())) / "config.toml").task for folder in (a, b)]
    if tasks[0] != tasks[1]:
        found = " against ".join(str(to_tree(task)) for task in tasks)
        raise InputError(" and ".join(names), found, "two runs of the same task", "compare runs that learnt the same")
    comparison = compare_scores(task_of(tasks[0]), *scores, names, np.random.default_rng(DRAWS))
    steps = {str(run): measured_steps(run) for folder in (a, b) for run in _runs(folder).values()}
    begun = {run: made for run, made in steps.items() if unfinished(*made)}
    return dataclasses.replace(comparison, settings=tuple(differing(_settings(a), _settings(b))), unfinished=begun)


def _runs(folder: Path) -> dict[int, Path]:
    return runs_of(folder) if holds_seeds(folder) else {0: folder}


def read_scores(folder: Path) -> Scored:
    """Rows of metrics.csv by seed; those of a single run, whatever its seed, under 0."""
    return {seed: _rows(run) for seed, run in _runs(folder).items()}


def _rows(run: Path) -> list[Row]:
    path = run / "metrics.csv"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        measured = "not measured yet" if (run / "config.toml").is_file() else "no run"
        raise InputError(path, f"no such file: {measured}", "a measured run", f"run `nissl evaluate {run}`") from error
    return task_of(load_config(run / "config.toml").task).columns.from_csv(text, str(path))


def _settings(folder: Path) -> dict[str, Any]:
    return to_tree(load_config(next(iter(_runs(folder).values())) / "config.toml"))


def differing(a: Mapping[str, Any], b: Mapping[str, Any], names: tuple[str, str] = ("A", "B")) -> list[str]:
    """Settings that differ, in words, with the value of each under its name."""
    (one, first), (two, second) = zip(names, (flat(a), flat(b)), strict=True)
    return [
        f"{key}: {one} {first.get(key, 'left open')}, {two} {second.get(key, 'left open')}"
        for key in differing_keys(first, second)
    ]
