"""Several seeds of one training: means over the runs, with an interval over seeds beside the one over cases."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import stdev
from typing import Any

import numpy as np

from nissl.errors import Caveat
from nissl.metrics.statistics import bootstrap_interval, seed_interval, side_by_side
from nissl.runs.format import Tree
from nissl.tasks.rows import Row, units_of, without_nan
from nissl.tasks.task import Task


@dataclass(frozen=True)
class SeedsScores:
    """Means over the runs, of one class or over classes."""

    metrics: Mapping[str, float]
    """By name, the primary one first."""
    ci_seeds: tuple[float, float]
    """95 % interval of the mean of the primary metric over seeds, by Student's t; nan for one seed."""
    ci_cases: tuple[float, float]
    """95 % bootstrap interval of that mean over cases (groups where known), each with what all seeds reach on it."""
    sd: float
    """Standard deviation of the primary metric of the runs."""
    facts: Mapping[str, Any]
    """What the task counted, over all runs; the unit of lengths and what the trivial prediction reaches."""

    def to_tree(self) -> dict[str, Any]:
        """Plain values by the names of the metrics, such as `dice` and `dice_ci_seeds`."""
        name = next(iter(self.metrics))
        named = {f"{name}_ci_seeds": self.ci_seeds, f"{name}_ci_cases": self.ci_cases, f"{name}_sd": self.sd}
        return {**self.metrics, **named, **self.facts}


@dataclass(frozen=True)
class SeedsSummary:
    """What metrics.json of several seeds says."""

    classes: dict[str, SeedsScores]
    overall: SeedsScores
    runs: dict[int, float]
    """Mean of the primary metric of each seed."""
    n_cases: int
    n_groups: int | None
    warnings: tuple[str, ...]
    warning_codes: tuple[str, ...]
    changed_data: tuple[int, ...] = ()
    """Seeds that were trained on other images or masks than the first."""
    policy: str = ""

    def to_tree(self) -> dict[str, Any]:
        """Nested dictionaries of plain values for JSON, nan as None."""
        classes = {label: scores.to_tree() for label, scores in self.classes.items()}
        tree: dict[str, Any] = without_nan(asdict(self) | {"classes": classes, "overall": self.overall.to_tree()})
        return tree


def summarise_seeds(
    task: Task,
    summaries: Mapping[int, Tree],
    rows: Mapping[int, Sequence[Row]],
    changed_data: Sequence[int],
    rng: np.random.Generator,
) -> SeedsSummary:
    """Summarise the runs of several seeds.

    Args:
        task: of all runs.
        summaries: metrics.json of each run, by seed.
        rows: of its metrics.csv; where they are of other cases, there is no interval over cases.
        changed_data: seeds that were trained on other images or masks than the first.
        rng: source of the draws of the intervals over cases.

    """
    draws = int(rng.integers(2**63))
    labels = list(next(iter(summaries.values()))["classes"])
    first = next(iter(rows.values()))
    together = all([row.case for row in other] == [row.case for row in first] for other in rows.values())
    members = units_of(first)

    def scores(of: Sequence[Tree], chosen: Sequence[str]) -> SeedsScores:
        interval = (math.nan, math.nan)
        if together:
            tables = [task.columns.matrix(run, task.primary.name, chosen) for run in rows.values()]
            interval = bootstrap_interval(side_by_side(np.stack(tables)), members, np.random.default_rng(draws))
        values = _column(of, task.primary.name)
        return SeedsScores(
            metrics={metric.name: float(np.mean(_column(of, metric.name))) for metric in task.metrics},
            ci_seeds=seed_interval(np.array(values)),
            ci_cases=interval,
            sd=stdev(values) if len(values) > 1 else math.nan,
            facts=_facts(task, of),
        )

    overall = [summary["overall"] for summary in summaries.values()]
    warnings = _warnings(summaries, changed_data)
    return SeedsSummary(
        classes={label: scores([each["classes"][label] for each in summaries.values()], [label]) for label in labels},
        overall=scores(overall, labels),
        runs=dict(zip(summaries, _column(overall, task.primary.name), strict=True)),
        n_cases=overall[0]["n_cases"],
        n_groups=overall[0]["n_groups"],
        warnings=tuple(one.text for one in warnings),
        warning_codes=tuple(one.code for one in warnings),
        changed_data=tuple(changed_data),
        policy=task.policy,
    )


def _column(scores: Sequence[Tree], name: str) -> list[float]:
    return [math.nan if each[name] is None else each[name] for each in scores]


def _facts(task: Task, of: Sequence[Tree]) -> Tree:
    """What is summed over the runs, the unit that they have in common, and the means of the trivial prediction."""
    facts: Tree = {name: sum(run[name] for run in of) for name in task.counted}
    if units := {run["unit"] for run in of if "unit" in run}:
        facts["unit"] = units.pop() if len(units) == 1 else "mixed"
    trivial = f"trivial_{task.primary.name}"
    return facts | ({trivial: float(np.mean(_column(of, trivial)))} if trivial in of[0] else {})


def _warnings(summaries: Mapping[int, Tree], changed_data: Sequence[int]) -> list[Caveat]:
    texts = [zip(one["warning_codes"], one["warnings"], strict=True) for one in summaries.values()]
    pairs = [pair for of_run in texts for pair in of_run]
    found = [Caveat(code, text) for code, text in pairs]
    if changed_data:
        text = f"Trained on other images or masks than the first seed: {', '.join(map(str, changed_data))}."
        found.append(Caveat("changed-data", text))
    if len(summaries) < 3:
        found.append(Caveat("few-seeds", "Fewer than three seeds: the interval over them says little."))
    return list(dict.fromkeys(found))
