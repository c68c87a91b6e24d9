"""The summary of a measurement, for a task that needs no other: means over cases, then over classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nissl.errors import Caveat
from nissl.metrics.metric import Metric
from nissl.metrics.statistics import bootstrap_interval, mean_over_classes
from nissl.tasks.rows import FEW, Columns, labels_of, units_of, without_nan


@dataclass(frozen=True)
class Means:
    """Means over the applicable cases of one class, or of several classes and then over these."""

    metrics: Mapping[str, float]
    """By name, the primary one first."""
    interval: tuple[float, float]
    """95 % bootstrap interval of the primary metric over cases, or over groups where groups are known."""
    n_cases: int
    n_groups: int | None
    """Groups, a case without one counting as its own; None where no case has a group."""

    def to_tree(self) -> dict[str, Any]:
        """What metrics.json says of a class or overall."""
        named = {f"{next(iter(self.metrics))}_ci": self.interval}
        tree: dict[str, Any] = without_nan(
            {**self.metrics, **named, "n_cases": self.n_cases, "n_groups": self.n_groups}
        )
        return tree


@dataclass(frozen=True)
class Summary:
    """What metrics.json says."""

    classes: dict[str, Means]
    overall: Means
    caveats: tuple[Caveat, ...]

    def to_tree(self) -> dict[str, Any]:
        """Nested dictionaries of plain values for JSON, nan as None."""
        return {
            "classes": {name: means.to_tree() for name, means in self.classes.items()},
            "overall": self.overall.to_tree(),
            "warnings": [caveat.text for caveat in self.caveats],
            "warning_codes": [caveat.code for caveat in self.caveats],
        }


def summarise(
    rows: Sequence[Any],
    columns: Columns[Any],
    metrics: Sequence[Metric],
    rng: np.random.Generator,
    caveats: Sequence[Caveat],
) -> Summary:
    """Summarise the rows of all cases by the metrics that each row has; the given caveats come first."""
    names, seed = [metric.name for metric in metrics if metric.by_case], int(rng.integers(2**63))
    members = units_of(rows)

    def means(labels: Sequence[str]) -> Means:
        tables = {name: columns.matrix(rows, name, labels) for name in names}
        return Means(
            metrics={name: mean_over_classes(table) for name, table in tables.items()},
            interval=bootstrap_interval(tables[names[0]], members, np.random.default_rng(seed)),
            n_cases=len(tables[names[0]]),
            n_groups=len(set(members)) if members else None,
        )

    labels = labels_of(rows)
    overall = means(labels)
    told = (*caveats, *few_units(overall.n_cases, overall.n_groups))
    return Summary({label: means([label]) for label in labels}, overall, told)


def few_units(n_cases: int, n_groups: int | None) -> list[Caveat]:
    """Warn of an interval over few cases or groups."""
    units, kind = (n_cases, "case") if n_groups is None else (n_groups, "group")
    if units >= FEW:
        return []
    if units == 1:
        return [Caveat("few-units", f"Only one test {kind}: there is no interval.")]
    text = f"Only {units} test {kind}s: the interval over them is itself uncertain. Below {FEW}, take it as a hint."
    return [Caveat("few-units", text)]
