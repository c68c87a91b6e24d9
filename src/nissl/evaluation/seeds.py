"""Several seeds of one training: means over the runs, with an interval over seeds beside the one over cases."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import stdev
from typing import Any

import numpy as np

from nissl.errors import Caveat
from nissl.metrics.overlap import EMPTY_POLICY
from nissl.metrics.statistics import bootstrap_interval, seed_interval, side_by_side
from nissl.tasks.scores import CaseScore, Scores, Summary, Unit, score_matrix, units_of, without_nan


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
    n_missed: int
    """Over all runs, as the next two."""
    n_false_positive: int
    n_both_empty: int
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
        tree: dict[str, Any] = without_nan(asdict(self))
        return tree


def summarise_seeds(
    summaries: Mapping[int, Summary],
    rows: Mapping[int, Sequence[CaseScore]],
    changed_data: Sequence[int],
    rng: np.random.Generator,
) -> SeedsSummary:
    """Summarise the runs of several seeds.

    Args:
        summaries: of each run, by seed.
        rows: the rows behind them; where the runs have other cases, there is no interval over cases.
        changed_data: seeds that were trained on other images or masks than the first.
        rng: source of the draws of the intervals over cases.

    """
    draws = int(rng.integers(2**63))
    labels = list(next(iter(summaries.values())).classes)
    first = next(iter(rows.values()))
    groups = {row.case: row.group for row in first}
    together = all([row.case for row in other] == [row.case for row in first] for other in rows.values())
    members = units_of(groups) if any(groups.values()) else None

    def scores(of: Sequence[Scores], chosen: Sequence[str]) -> SeedsScores:
        interval = (float("nan"), float("nan"))
        if together:
            tables = [score_matrix([r for r in run if r.label in chosen], "dice", chosen) for run in rows.values()]
            interval = bootstrap_interval(side_by_side(np.stack(tables)), members, np.random.default_rng(draws))
        dice = [run.dice for run in of]
        units = {run.unit for run in of}
        return SeedsScores(
            dice=float(np.mean(dice)),
            dice_ci_seeds=seed_interval(np.array(dice)),
            dice_ci_cases=interval,
            dice_sd=stdev(dice) if len(dice) > 1 else float("nan"),
            unit=units.pop() if len(units) == 1 else "mixed",
            **{name: float(np.mean([getattr(run, name) for run in of])) for name in ("iou", "hd95", "trivial_dice")},
            n_missed=sum(run.n_missed for run in of),
            n_false_positive=sum(run.n_false_positive for run in of),
            n_both_empty=sum(run.n_both_empty for run in of),
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
