"""Intervals over cases, or over patients where cases are grouped."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from nissl.errors import InputError

Values = Float[np.ndarray, "cases"] | Float[np.ndarray, "cases classes"]


class Difference(NamedTuple):
    """Mean of a - b over the cases both have, with its 95 % interval."""

    mean: float
    low: float
    high: float
    n_pairs: int
    n_left_out: int
    """Cases in which one of the two is not applicable."""


def mean_over_classes(values: Values) -> float:
    """Mean over cases, then over classes; nan is not applicable and left out, and so is a class without a case."""
    columns = values.reshape(len(values), -1)
    means = [column[~np.isnan(column)].mean() for column in columns.T if not np.isnan(column).all()]
    return float(np.mean(means)) if means else float("nan")


def bootstrap_interval(
    values: Values,
    groups: Sequence[str] | None,
    rng: np.random.Generator,
    level: float = 0.95,
    resamples: int = 2000,
) -> tuple[float, float]:
    """Interval of `mean_over_classes` by resampling cases, or whole groups with all their cases (cluster bootstrap).

    The plain percentile interval is too narrow for few cases: it lacks the factor sqrt(n / (n - 1)) and uses normal for
    t quantiles. The expanded percentile interval takes wider percentiles that make up for both (Hesterberg 2015, "What
    Teachers Should Know About the Bootstrap").

    Args:
        values: one number for each case, or for each case and class; nan where not applicable.
        groups: patient of each case; None resamples the cases.
        rng: source of the draws.
        level: share of intervals that should hold the true mean.
        resamples: number of draws.

    Returns:
        Lower and upper end; nan where there are fewer than two cases or groups.

    """
    from scipy.special import ndtr, stdtrit

    columns = values.reshape(len(values), -1)
    applicable = ~np.isnan(columns)
    names = np.arange(len(columns)) if groups is None else np.asarray(groups)
    _, member = np.unique(names[applicable.any(axis=1)], return_inverse=True)
    units = int(member.max(initial=-1)) + 1
    if units < 2:
        return float("nan"), float("nan")
    sums, counts = np.zeros((units, columns.shape[1])), np.zeros((units, columns.shape[1]))
    np.add.at(sums, member, np.nan_to_num(columns)[applicable.any(axis=1)])
    np.add.at(counts, member, applicable[applicable.any(axis=1)])
    drawn = rng.multinomial(units, np.full(units, 1 / units), size=resamples)
    cases = drawn @ counts
    means = np.divide(drawn @ sums, cases, out=np.zeros_like(cases), where=cases > 0)
    estimates = means.sum(axis=1) / (cases > 0).sum(axis=1)
    tail = float(ndtr(np.sqrt(units / (units - 1)) * stdtrit(units - 1, (1 - level) / 2)))
    low, high = np.quantile(estimates, [tail, 1 - tail])
    return float(low), float(high)


def paired_difference(
    a: Mapping[str, float], b: Mapping[str, float], groups: Mapping[str, str] | None, rng: np.random.Generator
) -> Difference:
    """Compare two runs on the same cases: mean of a - b with its 95 % interval over cases or groups.

    Args:
        a: score of each case id, nan where not applicable.
        b: the same for the other run.
        groups: patient of each case id; None takes each case as its own.
        rng: source of the draws.

    Raises:
        InputError: the two runs were not measured on the same cases.

    """
    alone = sorted(set(a) ^ set(b))
    if alone:
        some = ", ".join(alone[:5]) + (", ..." if len(alone) > 5 else "")
        raise InputError(
            "paired comparison",
            f"{len(alone)} of {len(set(a) | set(b))} cases are in one run only: {some}",
            "two runs measured on the same cases",
            "evaluate both runs on the same test split",
        )
    ids = [case for case in sorted(a) if not np.isnan(a[case] - b[case])]
    differences = np.array([a[case] - b[case] for case in ids], dtype=np.float64)
    members = None if groups is None else [groups[case] for case in ids]
    low, high = bootstrap_interval(differences, members, rng)
    return Difference(mean_over_classes(differences), low, high, len(ids), len(a) - len(ids))
