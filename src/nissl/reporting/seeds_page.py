"""The page of several seeds: the mean with its two intervals, and every run; none is singled out."""

from pathlib import Path
from typing import Any

from nissl.files import write_whole
from nissl.metrics.overlap import EMPTY_POLICY
from nissl.reporting.contents import read_run
from nissl.reporting.run_page import PAGE, counted, environment, fixed, warnings
from nissl.runs.folder import read_json
from nissl.runs.seeds import runs_of


def write_seeds_report(folder: Path) -> Path:
    """Write report.html of several seeds from their metrics.json, with links to the pages of the runs.

    Raises:
        InputError: the folder does not hold several seeds, or was not measured yet.
        ResourceError: the disk is full; an older report is untouched.

    """
    runs = runs_of(folder)
    metrics = read_json(folder / "metrics.json")
    measured = {int(seed): dice for seed, dice in metrics["runs"].items()}
    facts = {seed: read_json(run / "split.json") for seed, run in runs.items()}
    of_runs = [text for run in runs.values() for text in warnings(read_run(run))]
    template = environment().get_template("seeds.html.j2")
    page = template.render(
        title=folder.resolve().name,
        headline=seeds_headline(metrics),
        metrics=metrics,
        warnings=list(dict.fromkeys([*metrics["warnings"], *of_runs])),
        policy=metrics.get("policy", EMPTY_POLICY),
        rows=[(seed, run.name, measured.get(seed), facts[seed]) for seed, run in runs.items()],
        settings=(folder / "config.toml").read_text(encoding="utf-8"),
    )
    write_whole(folder / PAGE, page)
    return folder / PAGE


def seeds_headline(metrics: dict[str, Any]) -> str:
    """Say in one sentence how well the training does over its seeds."""
    overall, count = metrics["overall"], len(metrics["runs"])
    ends = (overall["dice_ci_seeds"], overall["dice_ci_cases"])
    over_seeds, over_cases = ("no interval" if a is None else f"{fixed(a, 2)} to {fixed(b, 2)}" for a, b in ends)
    return (
        f"Dice {fixed(overall['dice'], 2)}, mean over {counted(count, 'seed')}: 95 % interval {over_seeds} over seeds, "
        f"{over_cases} over {counted(metrics['n_cases'], 'test image')}; trivial {fixed(overall['trivial_dice'], 2)}."
    )
