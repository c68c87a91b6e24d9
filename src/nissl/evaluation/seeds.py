"""Several seeds of one training: means over the runs, with an interval over seeds beside the one over cases."""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from statistics import stdev
from typing import Any

import numpy as np

from nissl.errors import Caveat
from nissl.metrics.overlap import EMPTY_POLICY
from nissl.metrics.statistics import bootstrap_interval, seed_interval, side_by_side
from nissl.metrics.surface import Unit
from nissl.tasks.scores import CaseScore, EmptyMasks, Scores, Summary, score_matrix, tree_of, units_of


@dataclass(frozen=True)
class SeedsScores:
    """Means over the runs, of one class or over classes."""

    dice: float
    dice_ci_seeds: tuple[float, float]
    """95 % interval of the mean over seeds, by Student's t; nan for one seed."""
    dice_ci_cases: tuple[float, float]
    """95 % bootstrap interval of the mean over cases (groups where known), each with what all seeds reach on it."""
    dice_sd: float
    """Standard deviation of the runs."""
    iou: float
    hd95: float
    """In `unit`."""
    unit: Unit
    empty: EmptyMasks
    """Over all runs."""
    trivial_dice: float


@dataclass(frozen=True)
class SeedsSummary:
    """What metrics.json of several seeds says."""

    classes: dict[str, SeedsScores]
    overall: SeedsScores
    runs: dict[int, float]
    """Mean Dice of each seed."""
    n_cases: int
    n_groups: int | None
    warnings: tuple[str, ...]
    warning_codes: tuple[str, ...]
    changed_data: tuple[int, ...] = ()
    """Seeds that were trained on other images or masks than the first."""
    policy: str = EMPTY_POLICY

    def to_tree(self) -> dict[str, Any]:
        """Nested dictionaries of plain values for JSON, nan as None."""
        return tree_of(self)


def summarise_seeds(
    summaries: Mapping[int, Summary],
    rows: Mapping[int, Sequence[CaseScore]],
    changed_data: Sequence[int],
    rng: np.random.Generator,
) -> SeedsSummary:
    """Summarise the runs of several seeds.

    Where their rows are of other cases, there is no interval over cases. `changed_data` are the seeds that were trained
    on other images or masks than the first.
    """
    draws = int(rng.integers(2**63))
    labels = list(next(iter(summaries.values())).classes)
    first = next(iter(rows.values()))
    together = all([row.case for row in other] == [row.case for row in first] for other in rows.values())
    members = units_of(first)

    def scores(of: Sequence[Scores], chosen: Sequence[str]) -> SeedsScores:
        interval = (float("nan"), float("nan"))
        if together:
            tables = [score_matrix(run, "dice", chosen) for run in rows.values()]
            interval = bootstrap_interval(side_by_side(np.stack(tables)), members, np.random.default_rng(draws))
        dice = [run.dice for run in of]
        units = {run.distance.unit for run in of}
        return SeedsScores(
            dice=float(np.mean(dice)),
            dice_ci_seeds=seed_interval(np.array(dice)),
            dice_ci_cases=interval,
            dice_sd=stdev(dice) if len(dice) > 1 else float("nan"),
            unit=units.pop() if len(units) == 1 else "mixed",
            iou=float(np.mean([run.iou for run in of])),
            hd95=float(np.mean([run.distance.hd95 for run in of])),
            trivial_dice=float(np.mean([run.trivial_dice for run in of])),
            empty=EmptyMasks(*np.sum([astuple(run.empty) for run in of], axis=0).tolist()),
        )

    overall = [summary.overall for summary in summaries.values()]
    warnings = _warnings(summaries, changed_data)
    return SeedsSummary(
        classes={label: scores([s.classes[label] for s in summaries.values()], [label]) for label in labels},
        overall=scores(overall, labels),
        runs={seed: summary.overall.dice for seed, summary in summaries.items()},
        n_cases=overall[0].n_cases,
        n_groups=overall[0].n_groups,
        warnings=tuple(one.text for one in warnings),
        warning_codes=tuple(one.code for one in warnings),
        changed_data=tuple(changed_data),
    )


def _warnings(summaries: Mapping[int, Summary], changed_data: Sequence[int]) -> list[Caveat]:
    pairs = [pair for one in summaries.values() for pair in zip(one.warning_codes, one.warnings, strict=True)]
    found = [Caveat(code, text) for code, text in pairs]
    if changed_data:
        text = f"Trained on other images or masks than the first seed: {', '.join(map(str, changed_data))}."
        found.append(Caveat("changed-data", text))
    if len(summaries) < 3:
        found.append(Caveat("few-seeds", "Fewer than three seeds: the interval over them says little."))
    return list(dict.fromkeys(found))
