"""All tables of a bench together: what each arm gains over the baseline, on average over data sets and budgets."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from nissl.bench.analysis.tables import NAN, Interval, Table, Verdict, Versus, verdict_of
from nissl.metrics.metric import Metric
from nissl.metrics.statistics import holm, paired_t_test, seed_interval


@dataclass(frozen=True)
class Gain:
    """An arm minus the baseline over several tables, in the primary metric."""

    arm: str
    metric: Metric
    versus: tuple[Versus | None, ...]
    """In each table."""
    seeds: int
    """Those that the arm and the baseline have finished in every table."""
    difference: float = NAN
    """Mean over tables, then over these seeds; nan without such a seed."""
    over_seeds: Interval = (NAN, NAN)
    """95 % interval of that mean over seeds."""
    p_seeds: float = NAN
    """Of the paired t-test over seeds, Holm-corrected over the arms."""

    @property
    def gain(self) -> float:
        """The difference, positive where the arm is better."""
        return self.metric.sign * self.difference

    @property
    def false_positives(self) -> tuple[int, int]:
        """Of the arm and of the baseline, over all tables."""
        known = [one.false_positives for one in self.versus if one]
        return sum(mine for mine, _ in known), sum(others for _, others in known)

    @property
    def verdict(self) -> Verdict:
        """Helped or hurt on average by the corrected test; unclear where the false-positive cases contradict it."""
        return verdict_of((self.p_seeds,), self.gain, self.false_positives)


def gains_of(tables: Sequence[Table]) -> tuple[Gain, ...]:
    """Average the differences over tables, seed by seed; arms in the order of the grid, without the baseline.

    Each table weighs the same. Budgets of one seed are nested and so depend on each other; seeds do not.
    """
    arms = [row.arm for row in tables[0].rows if row.arm != tables[0].baseline]
    found = [_gain(arm, tables) for arm in arms]
    corrected = holm([gain.p_seeds for gain in found])
    return tuple(replace(gain, p_seeds=p) for gain, p in zip(found, corrected, strict=True))


def _gain(arm: str, tables: Sequence[Table]) -> Gain:
    metric = tables[0].task.primary
    versus = tuple(next((row.versus for row in table.rows if row.arm == arm), None) for table in tables)
    by_seed = [dict(one.by_seed) if one else {} for one in versus]
    seeds = sorted(set.intersection(*(set(one) for one in by_seed)))
    if not seeds:
        return Gain(arm, metric, versus, 0)
    means = np.array([[one[seed] for one in by_seed] for seed in seeds]).mean(axis=1)
    return Gain(arm, metric, versus, len(seeds), float(means.mean()), seed_interval(means), paired_t_test(means))
