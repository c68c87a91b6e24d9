"""The numbers of a bench: for each data set and budget a row per arm, every cell of the grid counted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float

from nissl.bench.cost import Cost, Key
from nissl.bench.grid import Cell
from nissl.bench.results import Result
from nissl.config import Config
from nissl.evaluate import (
    CaseScore,
    bootstrap_interval,
    holm,
    mean_over_classes,
    paired_difference,
    paired_t_test,
    seed_interval,
)
from nissl.evaluate.compare import SIGNIFICANT
from nissl.evaluate.statistics import mean_over_seeds
from nissl.evaluate.table import score_matrix, units_of

NAN = float("nan")
Interval = tuple[float, float]
Outcome = Literal["helped", "hurt", "no difference", "not compared"]
Needed = tuple[Literal["", "more than", "fewer than"], float]
"""Masks that the baseline needs, or the bound that its budgets give."""
Scores = Mapping[str, Sequence[CaseScore]]
"""Rows of metrics.csv of each run that is done, by `Result.run`."""


@dataclass(frozen=True)
class Versus:
    """An arm minus the baseline, on the seeds that both have finished; in Dice."""

    seeds: int
    dice: float
    """Mean over cases, then seeds."""
    over_seeds: Interval
    """95 % interval of the mean over seeds."""
    over_cases: Interval
    """95 % interval over cases (groups where known) of the differences averaged over the seeds."""
    p_seeds: float
    """Of the paired t-test over seeds, Holm-corrected over the arms of the table."""
    p_cases: float
    """Of the sign-flip test over cases (groups where known), corrected in the same way."""

    @property
    def outcome(self) -> Outcome:
        """Helped or hurt only where both tests say so."""
        if np.isnan([self.p_seeds, self.p_cases]).any():
            return "not compared"
        if max(self.p_seeds, self.p_cases) >= SIGNIFICANT or self.dice == 0:
            return "no difference"
        return "helped" if self.dice > 0 else "hurt"


@dataclass(frozen=True)
class Row:
    """An arm on a data set with a budget; nan is not known."""

    arm: str
    runs: tuple[Result, ...]
    """Of all its seeds, whatever came of them."""
    masks: float
    """Masks seen, mean over the runs."""
    dice: float
    """Mean over cases, then seeds."""
    over_seeds: Interval
    """95 % interval of the mean over seeds."""
    over_cases: Interval
    """95 % interval over cases (groups where known) of the Dice of each case averaged over the seeds."""
    pooled: float
    """Dice of all pixels of all cases together, mean over seeds."""
    pooled_sd: float
    hd95: float
    parity: float
    """Pooled Dice by the published protocol, mean over the seeds that have it."""
    parity_sd: float
    cost: Cost | None
    versus: Versus | None = None
    """None for the baseline, and where no seed is finished on both sides."""
    needed: Needed | None = None
    """Masks that the baseline needs for the same mean Dice; None for the baseline itself."""

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
    rows: tuple[Row, ...]
    """In the order of the grid."""
    config: Config
    """Of the baseline's first run; data, sizes and length are those of all."""

    @property
    def done(self) -> list[Result]:
        """All runs that are trained and measured."""
        return [run for row in self.rows for run in row.done]

    @property
    def trivial(self) -> tuple[float, float]:
        """Mean and pooled Dice of calling every pixel foreground."""
        return _mean([run.trivial_dice for run in self.done]), _mean([run.trivial_pooled_dice for run in self.done])


def baseline_of(configs: Mapping[str, Config]) -> str:
    """The arm that the others are compared with: no pre-training and masks alone, or else the first of the grid."""
    plain = [arm for arm, one in configs.items() if (one.pretrain.name, one.method.name) == ("none", "supervised")]
    return plain[0] if plain else next(iter(configs))


def tables_of(
    cells: Sequence[Cell], results: Sequence[Result], scores: Scores, costs: Mapping[Key, Cost]
) -> tuple[Table, ...]:
    """Work out the tables of a bench, in the order of the grid.

    Args:
        cells: all cells of the grid.
        results: what came of each, in the same order.
        scores: of the runs that are done; one without scores, or with those of other cases than the first run of its
            table, counts as failed.
        costs: what is known of them.

    """
    grouped: dict[tuple[str, str], dict[str, list[Result]]] = {}
    configs: dict[tuple[str, str], dict[str, Config]] = {}
    for cell, result in zip(cells, results, strict=True):
        place = (cell.data, cell.budget)
        grouped.setdefault(place, {}).setdefault(cell.arm, []).append(result)
        configs.setdefault(place, {}).setdefault(cell.arm, cell.config)
    tables = []
    for place, arms in grouped.items():
        baseline = baseline_of(configs[place])
        rows = _rows(place[0], baseline, arms, scores, costs)
        tables.append(Table(*place, baseline, rows, configs[place][baseline]))
    return tuple(_with_needed(table, [other for other in tables if other.data == table.data]) for table in tables)


Matrix = Float[np.ndarray, "cases classes"]


def _rows(
    data: str,
    baseline: str,
    arms: Mapping[str, Sequence[Result]],
    scores: Scores,
    costs: Mapping[Key, Cost],
) -> tuple[Row, ...]:
    known = [run for runs in arms.values() for run in runs if run.status == "done" and run.run in scores]
    first = scores[known[0].run] if known else ()
    measured = [(row.case, row.label) for row in first]
    labels = list(dict.fromkeys(row.label for row in first))
    groups = {row.case: row.group for row in first}
    members = units_of(groups) if any(groups.values()) else None
    dice = {
        run.run: score_matrix(scores[run.run], "dice", labels)
        for run in known
        if [(row.case, row.label) for row in scores[run.run]] == measured
    }
    checked = {arm: tuple(_checked(run, dice) for run in runs) for arm, runs in arms.items()}
    rows = [_row(arm, runs, dice, members, costs.get((data, arm))) for arm, runs in checked.items()]
    versus = {arm: _versus(runs, checked[baseline], dice, members) for arm, runs in checked.items() if arm != baseline}
    compared = [arm for arm, one in versus.items() if one]
    over_seeds, over_cases = (
        dict(zip(compared, holm([getattr(versus[arm], name) for arm in compared]), strict=True))
        for name in ("p_seeds", "p_cases")
    )
    corrected = {
        arm: replace(one, p_seeds=over_seeds[arm], p_cases=over_cases[arm]) if one else None
        for arm, one in versus.items()
    }
    return tuple(replace(row, versus=corrected.get(row.arm)) for row in rows)


def _checked(run: Result, dice: Mapping[str, Matrix]) -> Result:
    if run.status != "done" or run.run in dice:
        return run
    return replace(run, status="failed", message="metrics.csv is missing, damaged, or of other cases than the others")


def _row(
    arm: str, runs: tuple[Result, ...], dice: Mapping[str, Matrix], members: Sequence[str] | None, cost: Cost | None
) -> Row:
    done = [run for run in runs if run.status == "done"]
    means = np.array([mean_over_classes(dice[run.run]) for run in done])
    interval = (NAN, NAN)
    if done:
        averaged = mean_over_seeds(np.stack([dice[run.run] for run in done]))
        interval = bootstrap_interval(averaged, members, np.random.default_rng(0))
    pooled, parity = [run.pooled_dice for run in done], [run.parity_pooled_dice for run in done]
    return Row(
        arm=arm,
        runs=runs,
        masks=_mean([run.masks_seen for run in done]),
        dice=_mean(means.tolist()),
        over_seeds=seed_interval(means),
        over_cases=interval,
        pooled=_mean(pooled),
        pooled_sd=_spread(pooled),
        hd95=_mean([run.hd95 for run in done]),
        parity=_mean(parity),
        parity_sd=_spread(parity),
        cost=cost,
    )


def _versus(
    runs: Sequence[Result], others: Sequence[Result], dice: Mapping[str, Matrix], members: Sequence[str] | None
) -> Versus | None:
    """Compare an arm with the baseline, seed by seed; the p-values are not corrected yet."""
    other = {run.seed: run for run in others if run.status == "done"}
    pairs = [(run, other[run.seed]) for run in runs if run.status == "done" and run.seed in other]
    if not pairs:
        return None
    differences = np.stack([dice[run.run] - dice[twin.run] for run, twin in pairs])
    by_seed = np.array([mean_over_classes(one) for one in differences])
    cases = paired_difference(mean_over_seeds(differences), members, np.random.default_rng(0))
    return Versus(
        seeds=len(pairs),
        dice=float(by_seed.mean()),
        over_seeds=seed_interval(by_seed),
        over_cases=(cases.low, cases.high),
        p_seeds=paired_t_test(by_seed),
        p_cases=cases.p_value,
    )


def _with_needed(table: Table, of_data: Sequence[Table]) -> Table:
    """Read off the baseline's own curve how many masks it needs for what each other arm reaches.

    That is the baseline's Dice and the difference to it, so that an arm that lacks a seed has no gain or loss by that.
    """
    baseline = [row for other in of_data for row in other.rows if row.arm == other.baseline]
    curve = [(row.masks, row.dice) for row in baseline if row.done]
    here = next(row.dice for row in table.rows if row.arm == table.baseline)
    rows = [
        replace(row, needed=masks_needed(curve, here + row.versus.dice)) if row.versus else row for row in table.rows
    ]
    return replace(table, rows=tuple(rows))


def masks_needed(curve: Sequence[tuple[float, float]], dice: float) -> Needed:
    """How many masks the baseline needs for a Dice, by its own curve.

    The curve is first made one that never falls (isotonic regression), then read linearly in the logarithm of the
    number of masks; nothing is said beyond its ends.

    Args:
        curve: masks and mean Dice of the baseline, one point or more.
        dice: what is to be reached.

    """
    from scipy.optimize import isotonic_regression

    masks, reached = np.array(sorted(curve), dtype=np.float64).T
    rising = isotonic_regression(reached).x
    if dice > rising[-1]:
        return "more than", float(masks[-1])
    if dice < rising[0]:
        return "fewer than", float(masks[0])
    place = int(np.searchsorted(rising, dice))  # the first point that is as good
    if place == 0:
        return "", float(masks[0])
    (low, high), ends = np.log(masks[place - 1 : place + 1]), rising[place - 1 : place + 1]
    return "", float(np.exp(low + (high - low) * (dice - ends[0]) / (ends[1] - ends[0])))


def unlike(table: Table) -> dict[str, dict[str, list[str]]]:
    """What differs between the arms of a table and should not: steps or images of stage 2, each value with its arms."""
    found = {}
    for what, field in (("steps", "steps"), ("images", "images_stage_2")):
        values: dict[str, list[str]] = {}
        for row in table.rows:
            for value in sorted({getattr(run, field) for run in row.done}):
                values.setdefault(str(value), []).append(row.arm)
        if len(values) > 1:
            found[what] = values
    return found


def _mean(values: Sequence[float | int | None]) -> float:
    """Mean of what is there; nan where nothing is."""
    present = [value for value in values if value is not None and not np.isnan(value)]
    return float(np.mean(present)) if present else NAN


def _spread(values: Sequence[float | None]) -> float:
    """Standard deviation of what is there; nan for fewer than two."""
    present = [value for value in values if value is not None]
    return float(np.std(present, ddof=1)) if len(present) > 1 else NAN
