"""The numbers of a bench: for each data set and budget a row per arm, every cell of the grid counted."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float

from nissl.bench.grid.grid import Cell
from nissl.bench.run.cost import Cost, Key
from nissl.bench.run.results import Result
from nissl.config import Config
from nissl.evaluation.compare import SIGNIFICANT
from nissl.metrics.metric import Metric
from nissl.metrics.statistics import (
    bootstrap_interval,
    holm,
    mean_over_classes,
    paired_difference,
    paired_t_test,
    seed_interval,
    side_by_side,
)
from nissl.tasks.rows import Row, labels_of, units_of
from nissl.tasks.task import Task, task_of

NAN = float("nan")
NOTHING = 5e-4
"""A gain below this is printed as 0.0 (percentage points); its annotation equivalent would be noise."""
ROUNDING = 1e-5
"""A mean difference below this comes from a few pixels that the order of sums decides, and counts as none."""
Interval = tuple[float, float]
Verdict = Literal["helped", "hurt", "unclear", "no difference", "not compared"]
Equivalent = tuple[Literal["", ">", "<"], float]
"""Annotation equivalent: labels the baseline needs to match an arm, or the bound that its budgets give."""
Scores = Mapping[str, Sequence[Row]]
"""Rows of metrics.csv of each run that is done, by `Result.run`."""


@dataclass(frozen=True)
class Versus:
    """An arm minus the baseline in the primary metric, on the seeds that both have finished."""

    metric: Metric
    seeds: int
    difference: float
    """Mean over cases, then seeds."""
    over_seeds: Interval
    """95 % interval of the mean over seeds."""
    over_cases: Interval
    """95 % interval over cases (groups where known), each with the differences of all these seeds."""
    p_seeds: float
    """Of the paired t-test over seeds, Holm-corrected over the arms of the table."""
    p_cases: float
    """Of the sign-flip test over cases (groups where known), corrected in the same way."""
    false_positives: tuple[int, int] = (0, 0)
    """False-positive cases of the arm and of the baseline, on these seeds. A pair with one of them is left out."""
    by_seed: tuple[tuple[int, float], ...] = ()
    """Each of these seeds with its mean difference over cases."""

    @property
    def gain(self) -> float:
        """The difference, positive where the arm is better."""
        return self.metric.sign * self.difference

    @property
    def verdict(self) -> Verdict:
        """Helped or hurt only by both tests; unclear where the false-positive cases contradict them."""
        return verdict_of((self.p_seeds, self.p_cases), self.gain, self.false_positives)


def verdict_of(p_values: Sequence[float], gain: float, false_positives: tuple[int, int]) -> Verdict:
    """What corrected p-values, a gain and the false-positive cases of arm and baseline come to."""
    if np.isnan(p_values).any():
        return "not compared"
    if max(p_values) >= SIGNIFICANT or gain == 0:
        return "no difference"
    if (false_positives[0] - false_positives[1]) * gain > 0:
        return "unclear"
    return "helped" if gain > 0 else "hurt"


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over seeds; nan is not known."""

    mean: float = NAN
    deviation: float = NAN


@dataclass(frozen=True)
class ArmRow:
    """An arm on a data set with a budget; nan is not known."""

    arm: str
    runs: tuple[Result, ...]
    """Of all its seeds, whatever came of them."""
    masks: float
    """Masks seen, mean over the runs."""
    value: float
    """The primary metric: mean over cases, then seeds."""
    over_seeds: Interval
    """95 % interval of the mean over seeds."""
    over_cases: Interval
    """95 % interval over cases (groups where known), each with what all its seeds reach on it."""
    others: Mapping[str, Spread]
    """The other metrics by name, and `published`: pooled Dice by the published protocol."""
    false_positives: int
    """False-positive cases of all its runs together."""
    cost: Cost | None
    versus: Versus | None = None
    """None for the baseline, and where no seed is finished on both sides."""
    equivalent: Equivalent | None = None
    """None for the baseline itself, and where it is not known."""
    equivalent_span: tuple[Equivalent, Equivalent] | None = None
    """The same for the ends of the interval over seeds of the difference."""

    @property
    def done(self) -> list[Result]:
        """The runs that are trained and measured."""
        return [run for run in self.runs if run.status == "done"]

    def count(self, status: str) -> int:
        """Runs of a status."""
        return sum(run.status == status for run in self.runs)


@dataclass(frozen=True)
class Table:
    """The arms on one data set with one budget."""

    data: str
    budget: str
    baseline: str
    rows: tuple[ArmRow, ...]
    """In the order of the grid."""
    config: Config
    """Of the baseline's first run; data, sizes and length are those of all."""

    @property
    def done(self) -> list[Result]:
        """All runs that are trained and measured."""
        return [run for row in self.rows for run in row.done]

    @property
    def task(self) -> Task:
        """Of all runs."""
        return task_of(self.config.task)

    @property
    def metrics(self) -> list[Metric]:
        """Those that the tables show, the primary one first."""
        return [metric for metric in self.task.metrics if not metric.detail]

    @property
    def trivial(self) -> dict[Metric, float]:
        """What the trivial prediction reaches; empty where the task has none."""
        known = {metric for run in self.done for metric in run.trivial}
        return {metric: _spread([run.trivial.get(metric) for run in self.done]).mean for metric in known}


def baseline_of(configs: Mapping[str, Config]) -> str:
    """The arm that the others are compared with: labelled images only, or else the first of the grid."""
    plain = [arm for arm, one in configs.items() if (one.pretrain.name, one.method.name) == ("none", "supervised")]
    return plain[0] if plain else next(iter(configs))


def tables_of(
    cells: Sequence[Cell], results: Sequence[Result], scores: Scores, costs: Mapping[Key, Cost]
) -> tuple[Table, ...]:
    """Compute the tables of a bench from all its cells and what came of each, in the order of the grid.

    A run that is done counts as failed where it has no scores, or those of other cases, groups, units or test masks
    than most runs of its table.
    """
    grouped: dict[tuple[str, str], dict[str, list[Result]]] = defaultdict(lambda: defaultdict(list))
    configs: dict[tuple[str, str], dict[str, Config]] = defaultdict(dict)
    for cell, result in zip(cells, results, strict=True):
        grouped[cell.data, cell.budget][cell.arm].append(result)
        configs[cell.data, cell.budget].setdefault(cell.arm, cell.config)
    tables = []
    for place, arms in grouped.items():
        baseline = baseline_of(configs[place])
        rows = _rows(task_of(configs[place][baseline].task), place[0], baseline, arms, scores, costs)
        tables.append(Table(*place, baseline, rows, configs[place][baseline]))
    return tuple(_with_equivalents(table, [other for other in tables if other.data == table.data]) for table in tables)


Matrix = Float[np.ndarray, "cases classes"]


@dataclass(frozen=True)
class _Measured:
    """The primary metric of a run, and its false-positive cases."""

    values: Matrix
    false_positives: int


def _rows(
    task: Task,
    data: str,
    baseline: str,
    arms: Mapping[str, Sequence[Result]],
    scores: Scores,
    costs: Mapping[Key, Cost],
) -> tuple[ArmRow, ...]:
    known = [run for runs in arms.values() for run in runs if run.status == "done" and run.run in scores]
    tested = {run.run: tuple(_tested_on(task, row) for row in scores[run.run]) for run in known}
    usual = max(tested.values(), key=Counter(tested.values()).__getitem__, default=())
    first = next((scores[run] for run, cases in tested.items() if cases == usual), ())
    labels = labels_of(first)
    members = units_of(first)
    found = {run: _measured(task, scores[run], labels) for run, cases in tested.items() if cases == usual}
    checked = {arm: tuple(_checked(run, found) for run in runs) for arm, runs in arms.items()}
    rows = [_row(task, arm, runs, found, members, costs.get((data, arm))) for arm, runs in checked.items()]
    others = {arm: runs for arm, runs in checked.items() if arm != baseline}
    versus = {
        arm: one
        for arm, runs in others.items()
        if (one := _versus(task.primary, runs, checked[baseline], found, members))
    }
    p_seeds, p_cases = ([getattr(one, name) for one in versus.values()] for name in ("p_seeds", "p_cases"))
    corrected = zip(versus.items(), holm(p_seeds), holm(p_cases), strict=True)
    versus = {arm: replace(one, p_seeds=seeds, p_cases=cases) for (arm, one), seeds, cases in corrected}
    return tuple(replace(row, versus=versus.get(row.arm)) for row in rows)


def _measured(task: Task, rows: Sequence[Row], labels: Sequence[str]) -> _Measured:
    return _Measured(task.columns.matrix(rows, task.primary.name, labels), task.false_positives(rows))


def _tested_on(task: Task, row: Row) -> tuple[str, ...]:
    """What two runs must have in common in a row: their scores are then of the same target of the same case."""
    return row.case, row.label, row.group, *task.alike(row).values()


def _checked(run: Result, found: Mapping[str, _Measured]) -> Result:
    if run.status != "done" or run.run in found:
        return run
    why = "metrics.csv is missing, damaged, or of other cases, groups or test masks than that of the other runs"
    return replace(run, status="failed", message=f"{why}: remove the run, and start the bench again")


def _row(
    task: Task,
    arm: str,
    runs: tuple[Result, ...],
    found: Mapping[str, _Measured],
    members: Sequence[str] | None,
    cost: Cost | None,
) -> ArmRow:
    done = [run for run in runs if run.status == "done"]
    means = np.array([mean_over_classes(found[run.run].values) for run in done])
    interval = (NAN, NAN)
    if done:
        together = side_by_side(np.stack([found[run.run].values for run in done]))
        interval = bootstrap_interval(together, members, np.random.default_rng(0))
    others = {one.name: _spread([run.scores.get(one) for run in done]) for one in task.metrics[1:]}
    others["published"] = _spread([run.published.pooled_dice for run in done if run.published])
    return ArmRow(
        arm=arm,
        runs=runs,
        masks=_spread([run.training.masks_seen for run in done]).mean,
        value=_spread(means.tolist()).mean,
        over_seeds=seed_interval(means),
        over_cases=interval,
        others=others,
        false_positives=sum(found[run.run].false_positives for run in done),
        cost=cost,
    )


def _versus(
    metric: Metric,
    runs: Sequence[Result],
    others: Sequence[Result],
    found: Mapping[str, _Measured],
    members: Sequence[str] | None,
) -> Versus | None:
    """Compare an arm with the baseline, seed by seed; the p-values are not corrected yet."""
    other = {run.seed: run for run in others if run.status == "done"}
    done = [run for run in runs if run.status == "done" and run.seed in other]
    pairs = [(found[run.run], found[other[run.seed].run]) for run in done]
    if not pairs:
        return None
    differences = np.stack([own.values - twin.values for own, twin in pairs])
    by_seed = np.array([mean_over_classes(one) for one in differences])
    by_seed[np.abs(by_seed) < ROUNDING] = 0  # else arms that are one but for the order of sums could be told apart
    cases = paired_difference(side_by_side(differences), members, np.random.default_rng(0))
    return Versus(
        metric=metric,
        seeds=len(pairs),
        difference=float(by_seed.mean()),
        over_seeds=seed_interval(by_seed),
        over_cases=(cases.low, cases.high),
        p_seeds=paired_t_test(by_seed),
        p_cases=cases.p_value,
        false_positives=(sum(own.false_positives for own, _ in pairs), sum(twin.false_positives for _, twin in pairs)),
        by_seed=tuple(zip((run.seed for run in done), by_seed.tolist(), strict=True)),
    )


def _with_equivalents(table: Table, of_data: Sequence[Table]) -> Table:
    """Read off the baseline's own curve how many labels it needs to match each other arm.

    The curve has the budgets at which all runs of the baseline are done: with other seeds at each, it would show their
    difference as well. A budget that is not among them, a verdict that is unclear and a curve of a single point give
    none.
    """
    baseline = [row for other in of_data for row in other.rows if row.arm == other.baseline]
    sign = table.task.primary.sign
    curve = [(row.masks, sign * row.value) for row in baseline if len(row.done) == len(row.runs)]
    here = next(row.masks for row in table.rows if row.arm == table.baseline)
    if here not in dict(curve) or len(dict(curve)) < 2:
        return table

    def extended(row: ArmRow) -> ArmRow:
        """Add the labels for the gain of a row, and for the ends of its interval."""
        one = row.versus
        if not one or one.verdict == "unclear" or np.isnan(one.gain):
            return row
        low, high = sorted(sign * end for end in one.over_seeds)
        ends = None if np.isnan(low) else (equivalent_of(curve, here, low), equivalent_of(curve, here, high))
        return replace(row, equivalent=equivalent_of(curve, here, one.gain), equivalent_span=ends)

    return replace(table, rows=tuple(extended(row) for row in table.rows))


def equivalent_of(curve: Sequence[tuple[float, float]], here: float, gain: float) -> Equivalent:
    """How many labels the baseline needs for its metric at a budget plus a gain, by its own curve.

    The curve is first made one that never falls (isotonic regression), then read linearly in the logarithm of the
    number of masks; beyond its ends there is only a bound. The gain is that over the baseline's own runs, so that an
    arm that lacks a seed neither gains nor loses by that, and it starts from the curve, so that no gain needs no other
    budget.

    The curve has the masks and the mean Dice of the baseline; the budget (`here`) is one of its points.
    """
    from scipy.optimize import isotonic_regression

    masks, reached = np.array(sorted(curve), dtype=np.float64).T
    rising = isotonic_regression(reached).x
    if abs(gain) < NOTHING:
        return "", here
    wanted = rising[np.searchsorted(masks, here)] + gain
    if wanted > rising[-1]:
        return ">", float(masks[-1])
    if wanted < rising[0]:
        return "<", float(masks[0])
    place = int(np.searchsorted(rising, wanted))  # the first point that is as good
    if place == 0:
        return "", float(masks[0])
    (low, high), ends = np.log(masks[place - 1 : place + 1]), rising[place - 1 : place + 1]
    return "", float(np.exp(low + (high - low) * (wanted - ends[0]) / (ends[1] - ends[0])))


def _spread(values: Sequence[float | int | None]) -> Spread:
    """Mean of what is there, and its standard deviation where there are two or more."""
    present = [value for value in values if value is not None and not np.isnan(value)]
    deviation = float(np.std(present, ddof=1)) if len(present) > 1 else NAN
    return Spread(float(np.mean(present)), deviation) if present else Spread()
