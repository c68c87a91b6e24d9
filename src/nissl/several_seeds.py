"""Several seeds of one training: what one run cannot say, its spread over initialisation, order and drawn masks.

import nissl.several_seeds
nissl.several_seeds.train("my-images", "runs/five", nissl.Config(), seeds=5)
print(nissl.several_seeds.evaluate("runs/five").overall.dice_ci_seeds)
"""

import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Literal

import numpy as np
import tomli_w

from nissl import api
from nissl.config import Config, load_config, to_tree
from nissl.errors import InputError
from nissl.evaluation.compare_runs import differing
from nissl.evaluation.seeds import SeriesSummary, summarise_seeds
from nissl.evaluation.table import scores_from_csv
from nissl.files import write_whole
from nissl.reporting.seeds_page import write_series_report
from nissl.runs.folder import SERIES, write_json
from nissl.runs.provenance import claimed
from nissl.runs.seeds import is_finished, is_series, runs_of, settings_of


def train(
    data: Path | str, out: Path | str, config: Config | None = None, seeds: int | None = None, resume: bool = False
) -> Path:
    """Train once for each seed: `out/seed-0`, `out/seed-1`, ... are ordinary run folders; returns `out`.

    The test cases are the same for all, by cases.csv or by the draw of the first seed. What varies is what a single run
    leaves to chance: which masks are drawn for the budget, the initialisation, the order and the augmentation.

    Args:
        data: the folder.
        out: folder of the series: new or empty, or an interrupted one with `resume`.
        config: the settings; their seed is the first. None takes the defaults, or those of the series with `resume`.
        seeds: how many; with `resume`, None takes those that the series began with, and a larger number adds runs.
        resume: go on: finished runs are skipped, begun ones resumed, the others started.

    Raises:
        InputError: as of `nissl.train`, or the folder holds a series with other settings or more seeds.
        DataError: as of `nissl.train`.
        ResourceError: as of `nissl.train`.

    """
    out = Path(out)
    first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started, one writes
    config = config or (load_config(out / "config.toml") if resume else Config())
    with claimed(out, resume) if first else nullcontext():
        numbers = _continued(out, config, seeds) if resume else range(config.seed, config.seed + _number(seeds))
        settings = settings_of(config, numbers)
        runs = {seed: out / f"seed-{seed}" for seed in settings}
        finished = {seed for seed, run in runs.items() if is_finished(run)}
        begun = {seed for seed, run in runs.items() if (run / "config.toml").exists()}
        if first:
            write_whole(out / "config.toml", tomli_w.dumps(to_tree(settings[min(settings)])))
            write_json(out / SERIES, {"seeds": list(settings)})
        try:
            for place, (seed, run) in enumerate(runs.items(), start=1):
                if first:
                    done = ": finished before" if seed in finished else ""
                    print(f"seed {seed} ({place} of {len(runs)}){done}", file=sys.stderr)
                if seed not in finished:
                    api.train(data, run, settings[seed], resume=seed in begun)
        finally:
            if first and not any(run.exists() for run in runs.values()):  # refused at the door: nothing began
                (out / SERIES).unlink()
                (out / "config.toml").unlink()
    return out


def _number(seeds: int | None) -> int:
    if seeds is None or seeds < 1:
        raise InputError("seeds", str(seeds), "a number, 1 or more", "say how many, such as --seeds 5")
    return seeds


def _continued(out: Path, config: Config, seeds: int | None) -> Sequence[int]:
    """Seeds of a series that goes on, after comparing its settings."""
    if not is_series(out):
        raise InputError(out, "one run", "the folder of a series", "leave out --seeds, or choose another --out")
    before = list(runs_of(out))
    expected = settings_of(config, before)[before[0]]
    changed = differing(to_tree(load_config(out / "config.toml")), to_tree(expected), ("was", "is"))
    if changed:
        fix = "leave these settings out, or start a new series"
        raise InputError(out, "; ".join(changed), "one setting for all runs of a series", fix)
    if seeds is not None and seeds < len(before):
        found = f"{len(before)} seeds, {seeds} asked for"
        raise InputError(out, found, "as many seeds or more", "leave out --seeds: every run counts, none is dropped")
    return range(before[0], before[0] + max(len(before), seeds or 0))


def evaluate(
    out: Path | str,
    on: Literal["test", "labelled"] = "test",
    device: str = "auto",
    data: Path | str | None = None,
    allow_shared_images: bool = False,
) -> SeriesSummary:
    """Measure every run of a series (see `nissl.evaluate`) and summarise them in `metrics.json`.

    Raises:
        InputError: the folder is no series, a run is not finished, or as of `nissl.evaluate`.
        DataError: as of `nissl.evaluate`.

    """
    out = Path(out)
    runs = runs_of(out)
    unfinished = [run for run in runs.values() if not is_finished(run)]
    if unfinished:
        listed = ", ".join(run.name for run in unfinished)
        fix = f"go on with: nissl train DATA --out {out} --resume"
        raise InputError(out, f"{listed} not finished", "finished runs, all of them", fix)
    summaries = {seed: api.evaluate(run, on, device, data, allow_shared_images) for seed, run in runs.items()}
    name = "metrics" if on == "test" else f"metrics_{on}"
    rows = {seed: scores_from_csv((run / f"{name}.csv").read_text(encoding="utf-8")) for seed, run in runs.items()}
    summary = summarise_seeds(summaries, rows, np.random.default_rng(0))
    write_json(out / f"{name}.json", summary.to_tree() | {"split": on})
    return summary


def report(out: Path | str, data: Path | str | None = None) -> Path:
    """Write the page of every run and one page over all, `out/report.html`; returns its path."""
    for run in runs_of(Path(out)).values():
        api.report(run, data)
    return write_series_report(Path(out))
