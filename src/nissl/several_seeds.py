"""Several seeds of one training: what one run cannot say, its spread over initialisation, order and drawn masks.

import nissl.several_seeds
nissl.several_seeds.train("my-images", "runs/five", nissl.Config(), seeds=5)
print(nissl.several_seeds.evaluate("runs/five").overall.ci_seeds)
"""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Literal

import numpy as np
import tomli_w

from nissl import api
from nissl.config import Config
from nissl.errors import InputError
from nissl.evaluation.compare_runs import differing
from nissl.evaluation.seeds import SeedsSummary, summarise_seeds
from nissl.files import write_whole
from nissl.progress import is_first_process
from nissl.reporting.seeds_page import write_seeds_report
from nissl.runs.folder import holds_seeds, read_json, write_json
from nissl.runs.format import SEEDS, load_config, stamped
from nissl.runs.provenance import changed_data, lock_run_folder, stored_tree
from nissl.runs.seeds import differing_data, is_finished, runs_of, settings_of
from nissl.tasks.task import task_of


def train(
    data: Path | str,
    out: Path | str,
    config: Config | None = None,
    seeds: int | None = None,
    resume: bool = False,
    allow_changed: bool = False,
) -> Path:
    """Train once for each seed: `out/seed-0`, `out/seed-1`, ... are ordinary run folders; returns `out`.

    The test cases are the same for all, by cases.csv or by the draw of the first seed. What varies is what a single run
    leaves to chance: which masks are drawn for the budget, the initialisation, the order and the augmentation.

    Args:
        data: the folder.
        out: folder of the runs: new or empty, or an interrupted one with `resume`.
        config: the settings; their seed is the first. None takes the defaults, or those of the runs with `resume`.
        seeds: how many; with `resume`, None takes those that the training began with, and a larger number adds runs.
        resume: finished runs are skipped, begun ones resumed, the others started.
        allow_changed: with `resume`, accept data that differ from those of the finished runs; the results will say so.

    Raises:
        InputError: as of `nissl.train`, or the folder holds seeds with other settings or data, or more of them.
        DataError: as of `nissl.train`.
        ResourceError: as of `nissl.train`.

    """
    data, out, first = Path(data), Path(out), is_first_process()
    config = config or (load_config(out / "config.toml") if resume else Config())
    with lock_run_folder(out, resume) if first else nullcontext():
        numbers = _continued(data, out, config, seeds) if resume else range(config.seed, config.seed + _number(seeds))
        settings = settings_of(config, numbers)
        runs = {seed: out / f"seed-{seed}" for seed in settings}
        finished = {seed for seed, run in runs.items() if is_finished(run)}
        begun = {seed for seed, run in runs.items() if (run / "config.toml").exists()}
        if not allow_changed:
            _require_same_data(data, config, [runs[seed] for seed in sorted(begun)])
        if first:
            write_whole(out / "config.toml", tomli_w.dumps(stamped(stored_tree(settings[min(settings)], data))))
            write_json(out / SEEDS, {"seeds": list(settings)})
        try:
            for place, (seed, run) in enumerate(runs.items(), start=1):
                if first:
                    done = ": finished before" if seed in finished else ""
                    print(f"seed {seed} ({place} of {len(runs)}){done}", file=sys.stderr)
                if seed not in finished:
                    again: bool | Literal["changed"] = seed in begun and ("changed" if allow_changed else True)
                    api.train(data, run, settings[seed], again)
        finally:
            if first and not any(run.exists() for run in runs.values()):  # refused before anything began
                (out / SEEDS).unlink()
                (out / "config.toml").unlink()
    return out


def _number(seeds: int | None) -> int:
    if seeds is None or seeds < 1:
        raise InputError("seeds", str(seeds), "a number, 1 or more", "say how many, such as --seeds 5")
    return seeds


def _continued(data: Path, out: Path, config: Config, seeds: int | None) -> Sequence[int]:
    """Seeds of a training that is resumed, after comparing its settings."""
    if not holds_seeds(out):
        raise InputError(out, "one run", "a folder of several seeds", "leave out --seeds, or choose another --out")
    before = list(runs_of(out))
    expected = settings_of(config, before)[before[0]]
    stored = stored_tree(load_config(out / "config.toml"), data)
    changed = differing(stored, stored_tree(expected, data), ("was", "is"))
    if changed:
        fix = "leave these settings out, or start a new training of several seeds"
        raise InputError(out, "; ".join(changed), "one setting for all seeds", fix)
    if seeds is not None and seeds < len(before):
        found = f"{len(before)} seeds, {seeds} asked for"
        raise InputError(out, found, "as many seeds or more", "leave out --seeds: every run counts, none is dropped")
    return range(before[0], before[0] + max(len(before), seeds or 0))


def _require_same_data(data: Path, config: Config, runs: Sequence[Path]) -> None:
    """Refuse to add to runs that have learnt from other files: their mean would be one over two sets of data."""
    if found := changed_data({run.name: run for run in runs}, data, config.data):
        fix = "put it back, start a new training, or accept it with --allow-changed (the results will say so)"
        raise InputError(runs[0].parent, found, "the same data for all seeds", fix)


def evaluate(
    out: Path | str,
    on: Literal["test", "labelled"] = "test",
    device: str = "auto",
    data: Path | str | None = None,
    allow_shared_images: bool = False,
) -> SeedsSummary:
    """Measure the run of every seed (see `nissl.evaluate`) and summarise them in `metrics.json`.

    Raises:
        InputError: the folder does not hold several seeds, a run is not finished, or as of `nissl.evaluate`.
        DataError: as of `nissl.evaluate`.

    """
    out = Path(out)
    runs = runs_of(out)
    unfinished = [run for run in runs.values() if not is_finished(run)]
    if unfinished:
        listed = ", ".join(run.name for run in unfinished)
        fix = f"finish it: nissl train DATA --out {out} --resume"
        raise InputError(out, f"{listed} not finished", "finished runs, all of them", fix)
    for run in runs.values():
        api.evaluate(run, on, device, data, allow_shared_images)
    task = task_of(load_config(out / "config.toml").task)
    name = "metrics" if on == "test" else f"metrics_{on}"
    summaries = {seed: read_json(run / f"{name}.json") for seed, run in runs.items()}
    tables = {seed: run / f"{name}.csv" for seed, run in runs.items()}
    rows = {seed: task.columns.from_csv(path.read_text(encoding="utf-8"), str(path)) for seed, path in tables.items()}
    summary = summarise_seeds(task, summaries, rows, differing_data(runs), np.random.default_rng(0))
    write_json(out / f"{name}.json", summary.to_tree() | {"split": on})
    return summary


def report(out: Path | str, data: Path | str | None = None) -> Path:
    """Write the page of every run and one page over all, `out/report.html`; returns its path."""
    for run in runs_of(Path(out)).values():
        api.report(run, data)
    return write_seeds_report(Path(out))
