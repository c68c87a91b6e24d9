"""Two runs on the same test cases: paired differences with intervals, or a refusal where they are not paired."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from nissl.errors import InputError
from nissl.metrics.metric import Metric
from nissl.metrics.statistics import (
    Difference,
    mean_over_classes,
    paired_difference,
    seed_interval,
    side_by_side,
    smallest_p_value,
)
from nissl.tasks.rows import FEW, Row, labels_of, units_of, without_nan
from nissl.tasks.task import Task, unit_of

Scored = Mapping[int, Sequence[Row]]
"""Rows of metrics.csv by seed; a single run has one."""

Verdict = Literal["A better", "B better", "more false positives", "no difference seen", "too few to tell"]
"""`more false positives`: one side is better, and has more false positives too, which the differences leave out."""

Values = Float[np.ndarray, "seeds cases classes"]

SIGNIFICANT = 0.05
LISTED = 5


@dataclass(frozen=True)
class Compared:
    """One class, or the mean over classes: A beside B, and A - B."""

    values: tuple[float, float]
    """Mean of the primary metric of A and of B (over their seeds, if several), as `evaluate` prints it."""
    differences: Mapping[Metric, Difference]
    """A - B, the primary metric first; those of lengths in `unit`."""
    over_seeds: tuple[float, float]
    """95 % interval of the difference of the primary metric over seeds, paired by seed; nan for single runs."""
    unit: str
    """Of lengths: mm, px or `mixed`; empty where none are measured."""

    @property
    def primary(self) -> Difference:
        """The difference that decides."""
        return next(iter(self.differences.values()))

    def to_tree(self) -> dict[str, Any]:
        """Plain values by the names of the metrics, such as `dice_a`, `dice_b` and `dice`."""
        name = next(iter(self.differences)).name
        named = {f"{name}_a": self.values[0], f"{name}_b": self.values[1], f"{name}_seeds": self.over_seeds}
        differences = {metric.name: asdict(found) for metric, found in self.differences.items()}
        return named | differences | ({"unit": self.unit} if self.unit else {})


@dataclass(frozen=True)
class Comparison:
    """What `nissl compare` says."""

    names: tuple[str, str]
    """Of A and of B."""
    seeds: tuple[int, ...]
    """Of each side; empty for two single runs."""
    classes: dict[str, Compared]
    overall: Compared
    n_cases: int
    n_units: int
    """Independent units behind the interval: groups (patients) where known, else cases."""
    grouped: bool
    false_positives: tuple[int, int]
    """Of A and of B, over all classes and seeds: where only one has it, the pair is left out."""
    verdict: Verdict
    warnings: tuple[str, ...]
    settings: tuple[str, ...] = ()
    """Settings in which the runs differ, in words."""
    unfinished: Mapping[str, tuple[int | None, int | None]] = field(default_factory=dict)
    """Steps made and planned of each run that was measured before its last step."""

    def to_tree(self) -> dict[str, Any]:
        """Nested dictionaries of plain values for JSON, nan as None."""
        classes = {label: found.to_tree() for label, found in self.classes.items()}
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        tree: dict[str, Any] = without_nan(plain | {"classes": classes, "overall": self.overall.to_tree()})
        return tree


def compare_scores(task: Task, a: Scored, b: Scored, names: tuple[str, str], rng: np.random.Generator) -> Comparison:
    """Compare two runs, or two trainings of the same several seeds, case by case.

    The difference of a case is A - B, with all seeds; its interval and test are over cases, or over groups
    where groups are known, and a second interval is over the seeds. One of the two is called better only where every
    interval leaves out 0, the test says so as well, and it does not have more false positives.

    Raises:
        InputError: the two were not measured on the same cases, references, classes and units, or on other seeds.

    """
    if sorted(a) != sorted(b):
        raise _unpaired(names, f"seeds {_listed(a)} against {_listed(b)}", "the same seeds on both sides")
    for seed in a:
        require_paired(task, a[seed], b[seed], names)
        require_paired(task, a[seed], a[min(a)], (f"{names[0]}, seed {seed}", f"{names[0]}, seed {min(a)}"))
    first = a[min(a)]
    labels, n_cases = labels_of(first), len({row.case for row in first})
    members = units_of(first)
    draws = int(rng.integers(2**63))  # the same for every class

    overall = _compared(task, a, b, labels, members, draws)
    n_units, several = len(set(members)) if members else n_cases, len(a) > 1
    false_positives = (sum(map(task.false_positives, a.values())), sum(map(task.false_positives, b.values())))
    return Comparison(
        names=names,
        seeds=tuple(sorted(a)) if several else (),
        classes={label: _compared(task, a, b, [label], members, draws) for label in labels},
        overall=overall,
        n_cases=n_cases,
        n_units=n_units,
        grouped=members is not None,
        false_positives=false_positives,
        verdict=verdict(task.primary, overall, false_positives, several),
        warnings=tuple(_warnings(n_units, members is not None, several)),
    )


def _compared(
    task: Task, a: Scored, b: Scored, labels: Sequence[str], members: Sequence[str] | None, draws: int
) -> Compared:
    """Compare over some of the classes; lengths of which some are in mm and some in px have no mean."""
    tables = {metric: _paired(task, a, b, metric.name, labels) for metric in task.by_case}
    unit = unit_of(task, a[min(a)])
    for metric in tables:
        if metric.unit == "length" and unit == "mixed":
            tables[metric] = np.full_like(tables[metric], np.nan)
    return Compared(
        values=(_mean(task, a, labels), _mean(task, b, labels)),
        differences={
            metric: paired_difference(side_by_side(table), members, np.random.default_rng(draws))
            for metric, table in tables.items()
        },
        over_seeds=seed_interval(np.array([mean_over_classes(one) for one in tables[task.primary]])),
        unit=unit,
    )


def require_paired(task: Task, a: Sequence[Row], b: Sequence[Row], names: tuple[str, str]) -> None:
    """Refuse two sets of rows that do not measure the same things.

    Raises:
        InputError: other classes, cases or groups, or rows that are not `alike`; the message names them.

    """
    classes = [{row.label for row in rows} for rows in (a, b)]
    if classes[0] != classes[1]:
        raise _unpaired(names, f"classes {_listed(classes[0])} against {_listed(classes[1])}", "the same classes")
    cases = [{row.case for row in rows} for rows in (a, b)]
    alone = cases[0] ^ cases[1]
    if alone:
        found = f"{len(alone)} of {len(cases[0] | cases[1])} cases are on one side only: {_listed(alone)}"
        raise _unpaired(names, found, "two runs measured on the same test cases")
    other = {(row.case, row.label): row for row in b}

    def facts(row: Row) -> dict[str, str]:
        return {"groups (patients)": f"`{row.group}`", **task.alike(row)}

    for what in facts(a[0]):
        pairs = [(row, facts(row)[what], facts(other[row.case, row.label])[what]) for row in a]
        if differ := [pair for pair in pairs if pair[1] != pair[2]]:
            row, one, another = differ[0]
            found = f"other {what} in {_listed({r.case for r, _, _ in differ})}: in {row.case}, {one} against {another}"
            raise _unpaired(names, found, f"the same {what} on both sides")


def verdict(metric: Metric, overall: Compared, false_positives: tuple[int, int], several: bool) -> Verdict:
    """Judge which side is better, if any; where each has several seeds, by the interval over them as well.

    The differences leave out the false positives, of A and of B.
    """
    found = overall.primary
    intervals = [(found.low, found.high), *([overall.over_seeds] if several else [])]
    if smallest_p_value(found.n_units) >= SIGNIFICANT or np.isnan(intervals).any():
        return "too few to tell"
    if found.p_value >= SIGNIFICANT or any(low * high <= 0 for low, high in intervals):
        return "no difference seen"
    gain = metric.sign * found.mean
    if (false_positives[0] - false_positives[1]) * gain > 0:
        return "more false positives"
    return "A better" if gain > 0 else "B better"


def _warnings(n_units: int, grouped: bool, several: bool) -> list[str]:
    found = []
    if n_units < FEW:
        kind = "groups" if grouped else "cases"
        found.append(f"Only {n_units} {kind} to compare on: below {FEW}, take interval and p-value as a hint.")
    single = (
        "One seed each: the interval holds what other cases would change, not what another seed would. "
        "Train both sides with --seeds 5 before you claim a difference of methods."
    )
    return found if several else [*found, single]


def _paired(task: Task, a: Scored, b: Scored, column: str, labels: Sequence[str]) -> Values:
    """A - B of one column; nan where one of the two is not applicable."""
    cases = list(dict.fromkeys(row.case for row in a[min(a)]))
    both = [[task.columns.matrix(side[seed], column, labels, cases) for side in (a, b)] for seed in sorted(a)]
    return np.array([one - other for one, other in both])


def _mean(task: Task, side: Scored, labels: Sequence[str]) -> float:
    tables = [task.columns.matrix(rows, task.primary.name, labels) for rows in side.values()]
    return float(np.mean([mean_over_classes(table) for table in tables]))


def _listed(names: Sequence[Any] | Mapping[Any, Any] | set[Any]) -> str:
    ordered = list(map(str, sorted(names)))
    return ", ".join(ordered[:LISTED]) + (f" and {len(ordered) - LISTED} more" if len(ordered) > LISTED else "")


def _unpaired(names: tuple[str, str], found: str, expected: str) -> InputError:
    fix = "evaluate both on the same data and split (cases.csv, or the same --split.seed)"
    return InputError(" and ".join(names), found, f"{expected}, so that the cases are pairs", fix)
