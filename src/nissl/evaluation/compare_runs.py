"""Compare run folders: what their files say, brought to `compare_scores`."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nissl.config import load_config, to_tree
from nissl.errors import InputError
from nissl.evaluation.compare import Comparison, Scored, compare_scores
from nissl.evaluation.table import CaseScore, scores_from_csv
from nissl.runs.seeds import is_series, runs_of

DRAWS = 0
"""Seed of the resampling, fixed: the same two folders give the same numbers."""


def compare_runs(a: Path, b: Path) -> Comparison:
    """Compare two measured runs, or two measured series with the same seeds.

    Raises:
        InputError: a folder is no run or not measured yet, or the two are not paired.
        DataError: a metrics.csv is damaged.

    """
    if is_series(a) != is_series(b):
        series, run = (a, b) if is_series(a) else (b, a)
        found = f"{series} holds several seeds, {run} is one run"
        raise InputError(f"{a} and {b}", found, "two runs, or two series", f"compare with one of {series}/seed-...")
    names = (str(a), str(b))
    comparison = compare_scores(read_scores(a), read_scores(b), names, np.random.default_rng(DRAWS))
    return dataclasses.replace(comparison, settings=tuple(differing(_settings(a), _settings(b))))


def read_scores(folder: Path) -> Scored:
    """Rows of metrics.csv by seed; those of a single run, whatever its seed, under 0."""
    return {seed: _rows(run) for seed, run in (runs_of(folder) if is_series(folder) else {0: folder}).items()}


def _rows(run: Path) -> list[CaseScore]:
    path = run / "metrics.csv"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        measured = "not measured yet" if (run / "config.toml").is_file() else "no run"
        raise InputError(path, f"no such file: {measured}", "a measured run", f"run `nissl evaluate {run}`") from error
    return scores_from_csv(text, str(path))


def _settings(folder: Path) -> dict[str, Any]:
    return to_tree(load_config((next(iter(runs_of(folder).values())) if is_series(folder) else folder) / "config.toml"))


def differing(
    a: Mapping[str, Any], b: Mapping[str, Any], names: tuple[str, str] = ("A", "B"), prefix: str = ""
) -> list[str]:
    """Settings that differ, in words, with the value of each under its name."""
    found = []
    for key in sorted(a.keys() | b.keys()):
        one, other = a.get(key), b.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            found += differing(one, other, names, f"{prefix}{key}.")
        elif one != other:
            found.append(f"{prefix}{key}: {names[0]} {_written(one)}, {names[1]} {_written(other)}")
    return found


def _written(value: Any) -> str:
    return "left open" if value is None else json.dumps(value, ensure_ascii=False)
