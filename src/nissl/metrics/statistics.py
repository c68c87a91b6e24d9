"""Intervals and paired tests over cases, or over patients where cases are grouped; intervals over seeds.

Values and differences (a - b) are one number for each case, or for each case and class; nan is not applicable. `groups`
has the patient of each case; None takes each case as its own. All draws come from the generator that is passed in.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Values = Float[np.ndarray, "cases"] | Float[np.ndarray, "cases classes"]

LEVEL = 0.95
"""Fraction of the intervals that should hold the true mean."""
SIGN_FLIPS = 2**16
"""Assignments of signs that the paired test tries: all of them up to 16 units, as many random ones above."""


@dataclass(frozen=True)
class Difference:
    """Mean of a - b over the cases where both are applicable, with its 95 % interval and its test."""

    mean: float
    low: float
    high: float
    p_value: float
    """Of the sign-flip test: how often chance alone gives a mean difference as large."""
    n_units: int
    """Independent units behind it: groups where they are given, else pairs."""
    n_pairs: int
    n_left_out: int
    """Cases (with several classes or seeds: each of them counts) in which one of the two is not applicable."""


def mean_over_classes(values: Values) -> float:
    """Mean over cases, then over classes; nan is not applicable and left out, and so is a class without a case."""
    columns = values.reshape(len(values), -1)
    means = [column[~np.isnan(column)].mean() for column in columns.T if not np.isnan(column).all()]
    return float(np.mean(means)) if means else float("nan")


def side_by_side(values: Float[np.ndarray, "seeds cases classes"]) -> Float[np.ndarray, "cases columns"]:
    """Put the seeds beside each other, like further classes: `mean_over_classes` is then the mean over the seeds too.

    A mean of each case over the seeds would not do: where a case is applicable with some seeds only, such as a false
    positive of one of them, it would weigh as much as one that is with all.
    """
    return np.concatenate(list(values), axis=1)


def bootstrap_interval(
    values: Values, groups: Sequence[str] | None, rng: np.random.Generator, resamples: int = 2000
) -> tuple[float, float]:
    """Interval of `mean_over_classes` by resampling cases, or whole groups with all their cases (cluster bootstrap).

    The plain percentile interval is too narrow for few cases: it lacks the factor sqrt(n / (n - 1)) and uses normal for
    t quantiles, and it lies wrong where the cases are skewed, as Dice is. Hence the expanded percentiles (Hesterberg
    2015, "What Teachers Should Know About the Bootstrap"), moved for bias and skewness as in BCa (Efron 1987, "Better
    Bootstrap Confidence Intervals"). What it holds on known populations is in docs/metrics.md.

    Returns the lower and upper end; nan where there are fewer than two cases or groups.
    """
    from scipy.special import ndtr, ndtri, stdtrit

    sums, counts = _by_unit(values, groups)
    units = len(sums)
    if units < 2:
        return float("nan"), float("nan")

    def mean(weights: Float[np.ndarray, "draws units"]) -> Float[np.ndarray, "draws"]:
        cases = weights @ counts
        means = np.divide(weights @ sums, cases, out=np.zeros_like(cases), where=cases > 0)
        found: Float[np.ndarray, "draws"] = means.sum(axis=1) / (cases > 0).sum(axis=1)
        return found

    drawn = mean(rng.multinomial(units, np.full(units, 1 / units), size=resamples).astype(np.float64))
    centre = mean(np.ones((1, units)))[0]
    near = np.abs(drawn - centre) < 1e-12
    below = (np.sum((drawn < centre) & ~near) + near.sum() / 2) / resamples
    bias = float(ndtri(np.clip(below, 1 / resamples, 1 - 1 / resamples)))
    pull = _influence(sums, counts)
    skew = float((pull**3).sum() / (6 * (pull**2).sum() ** 1.5)) if (pull**2).sum() > 0 else 0.0
    reach = np.sqrt(units / (units - 1)) * float(stdtrit(units - 1, (1 + LEVEL) / 2)) * np.array([-1, 1])
    low, high = np.quantile(drawn, ndtr(bias + (bias + reach) / (1 - skew * (bias + reach))))
    return float(low), float(high)


def _influence(
    sums: Float[np.ndarray, "units classes"], counts: Float[np.ndarray, "units classes"]
) -> Float[np.ndarray, "units"]:
    """How far each unit pulls the mean over cases, then classes, from where it is; up to a factor."""
    total = counts.sum(axis=0)
    known = total > 0
    means = sums.sum(axis=0)[known] / total[known]
    pull: Float[np.ndarray, "units"] = ((sums[:, known] - means * counts[:, known]) / total[known]).sum(axis=1)
    return pull


def _by_unit(
    values: Values, groups: Sequence[str] | None
) -> tuple[Float[np.ndarray, "units classes"], Float[np.ndarray, "units classes"]]:
    """Sum and number of the applicable values of each independent unit: a group, or a case without groups."""
    columns = values.reshape(len(values), -1)
    applicable = ~np.isnan(columns)
    kept = applicable.any(axis=1)
    names = np.arange(len(columns)) if groups is None else np.asarray(groups)
    _, member = np.unique(names[kept], return_inverse=True)
    sums = np.zeros((int(member.max(initial=-1)) + 1, columns.shape[1]))
    counts = np.zeros_like(sums)
    np.add.at(sums, member, np.nan_to_num(columns)[kept])
    np.add.at(counts, member, applicable[kept])
    return sums, counts


def sign_flip_test(differences: Values, groups: Sequence[str] | None, rng: np.random.Generator) -> float:
    """Two-sided p-value of the mean of paired differences.

    If the two runs were alike, each case (or all cases of a group together) could as well have the other sign: the
    p-value is the fraction of all assignments of signs whose mean is at least as far from 0 (Fisher 1935, "The Design
    of Experiments", section 21). Exact up to 16 units; above, from random signs, where the observed assignment counts
    as one of them, so that it is never 0 (Phipson and Smyth 2010). With 5 units it cannot be below 0.06.

    It is nan for fewer than two cases or groups.
    """
    from scipy.stats import permutation_test

    sums, counts = _by_unit(differences, groups)
    if len(sums) < 2:
        return float("nan")
    total = counts.sum(axis=0)
    # The mean over cases, then classes, is a sum over the units.
    fractions = np.divide(sums, total, out=np.zeros_like(sums), where=total > 0).sum(axis=1) / (total > 0).sum()
    found = permutation_test(
        (fractions,),
        np.sum,
        permutation_type="samples",
        vectorized=True,
        n_resamples=SIGN_FLIPS,
        batch=1024,
        random_state=rng,
    )
    return float(found.pvalue)


def smallest_p_value(units: int) -> float:
    """Least p-value of the sign-flip test with so many units, whatever the data."""
    return 2 / min(2**units, SIGN_FLIPS) if units > 1 else 1.0


def seed_interval(values: Float[np.ndarray, "seeds"]) -> tuple[float, float]:
    """Interval of the mean over seeds: Student's t, since seeds are few and there is nothing to resample.

    Returns the lower and upper end; nan for fewer than two seeds.
    """
    from scipy.special import stdtrit

    if len(values) < 2 or np.isnan(values).any():
        return float("nan"), float("nan")
    half = float(stdtrit(len(values) - 1, (1 + LEVEL) / 2) * np.std(values, ddof=1) / np.sqrt(len(values)))
    centre = float(np.mean(values))
    return centre - half, centre + half


def paired_difference(differences: Values, groups: Sequence[str] | None, rng: np.random.Generator) -> Difference:
    """Compare two runs on the same cases: mean of a - b with its 95 % interval and p-value, over cases or groups."""
    low, high = bootstrap_interval(differences, groups, rng)
    p_value = sign_flip_test(differences, groups, rng)
    applicable = ~np.isnan(differences)
    n_pairs = int(applicable.reshape(len(differences), -1).any(axis=1).sum())
    n_units, n_left_out = len(_by_unit(differences, groups)[0]), int(applicable.size - applicable.sum())
    return Difference(mean_over_classes(differences), low, high, p_value, n_units, n_pairs, n_left_out)


def paired_t_test(differences: Float[np.ndarray, "seeds"]) -> float:
    """Two-sided p-value of Student's paired t-test, the test that goes with `seed_interval`.

    It is 1 where all differences are 0, nan for fewer than two seeds.
    """
    from scipy.special import stdtr

    count = len(differences)
    if count < 2 or np.isnan(differences).any():
        return float("nan")
    mean, spread = float(np.mean(differences)), float(np.std(differences, ddof=1))
    if spread == 0:
        return float(mean == 0)
    return float(2 * stdtr(count - 1, -abs(mean) / (spread / np.sqrt(count))))


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number, so that among all of them one wrong finding is as rare as in a single test.

    The smallest of m is multiplied by m, the next by m - 1 and so on; none may fall below one before it, nor rise
    above 1 (Holm 1979, "A Simple Sequentially Rejective Multiple Test Procedure"). What is nan is no test: it stays so
    and does not count.
    """
    ordered = sorted((p, place) for place, p in enumerate(p_values) if not np.isnan(p))
    corrected, reached = [float("nan")] * len(p_values), 0.0
    for before, (p, place) in enumerate(ordered):
        reached = max(reached, min(1.0, (len(ordered) - before) * p))
        corrected[place] = reached
    return corrected
