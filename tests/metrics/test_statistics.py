from itertools import product

import numpy as np
import pytest
from scipy import stats
from tests.made_up_scores import case_score

from nissl.metrics.statistics import (
    bootstrap_interval,
    holm,
    mean_over_classes,
    paired_difference,
    paired_t_test,
    seed_interval,
    side_by_side,
    sign_flip_test,
)
from nissl.tasks.rows import units_of


def test_groups_of_one_case_are_cases():
    values = np.random.default_rng(0).beta(5, 2, size=12)
    names = [f"patient {i:02}" for i in range(12)]
    alone = bootstrap_interval(values, None, np.random.default_rng(1))
    assert bootstrap_interval(values, names, np.random.default_rng(1)) == alone


def test_interval_is_wider_than_the_plain_percentiles_and_holds_the_mean():
    values = np.random.default_rng(0).beta(5, 2, size=6)
    drawn = np.random.default_rng(1).multinomial(6, np.full(6, 1 / 6), size=2000) @ values / 6
    low, high = bootstrap_interval(values, None, np.random.default_rng(1))
    plain_low, plain_high = np.quantile(drawn, [0.025, 0.975])
    assert low < plain_low < values.mean() < plain_high < high


def test_cases_that_are_not_applicable_change_nothing():
    values = np.array([0.2, 0.9, 0.7, 0.8])
    padded = np.array([np.nan, 0.2, 0.9, np.nan, 0.7, 0.8])
    assert mean_over_classes(padded) == mean_over_classes(values) == pytest.approx(0.65)
    found = [bootstrap_interval(v, None, np.random.default_rng(1)) for v in (values, padded)]
    assert found[0] == found[1]


def test_classes_are_averaged_after_cases():
    values = np.array([[1.0, 0.0], [0.5, np.nan], [0.0, np.nan]])
    assert mean_over_classes(values) == 0.25
    assert np.isnan(mean_over_classes(np.full((3, 2), np.nan)))
    low, high = bootstrap_interval(values, None, np.random.default_rng(0))
    assert 0.0 <= low < 0.25 < high <= 1.0


def test_seeds_side_by_side_have_the_mean_of_their_means():
    values = np.random.default_rng(0).random((3, 6, 2))
    values[0, :2, 0] = np.nan
    values[1, 3] = np.nan
    together = side_by_side(values)
    assert together.shape == (6, 6) and together[4].tolist() == values[:, 4].ravel().tolist()
    assert mean_over_classes(together) == pytest.approx(np.mean([mean_over_classes(one) for one in values]))


def test_one_case_or_one_group_has_no_interval():
    rng = np.random.default_rng(0)
    assert np.isnan(bootstrap_interval(np.array([0.7]), None, rng)).all()
    assert np.isnan(bootstrap_interval(np.array([0.7, 0.8]), ["a", "a"], rng)).all()
    assert np.isnan(bootstrap_interval(np.array([0.7, np.nan]), None, rng)).all()


def test_paired_difference_sees_a_small_gain_on_cases_that_vary_much():
    rng = np.random.default_rng(0)
    a = rng.beta(4, 2, size=30)
    b = a + 0.02 + rng.normal(0, 0.01, size=30)
    found = paired_difference(b - a, None, rng)
    assert found.mean == pytest.approx(np.mean(b - a))
    assert 0 < found.low < 0.02 < found.high < 0.04 and found.p_value < 1e-3
    assert (found.n_pairs, found.n_left_out) == (30, 0)
    back = paired_difference(a - b, None, np.random.default_rng(0))
    assert back.mean == pytest.approx(-found.mean) and back.p_value == pytest.approx(found.p_value, abs=1e-3)


def test_pairs_that_are_not_applicable_are_left_out_and_counted():
    found = paired_difference(np.array([0.1, np.nan, 0.2]), ["p", "q", "r"], np.random.default_rng(0))
    assert (found.mean, found.n_pairs, found.n_left_out) == (pytest.approx(0.15), 2, 1)


@pytest.mark.parametrize("units", [2, 5, 9])
def test_the_sign_flip_test_counts_all_assignments_of_signs(units):
    """By hand: every one of the 2^n assignments, of units of several cases and two classes."""
    rng = np.random.default_rng(units)
    values = rng.normal(0.3, 1, (3 * units, 2))
    values[rng.random(values.shape) < 0.2] = np.nan
    groups = [f"g{n % units}" for n in range(3 * units)]
    observed, count = abs(mean_over_classes(values)), 0
    for signs in product((-1, 1), repeat=units):
        flipped = values * np.array([signs[n % units] for n in range(3 * units)])[:, None]
        count += abs(mean_over_classes(flipped)) >= observed - 1e-12
    assert sign_flip_test(values, groups, rng) == pytest.approx(count / 2**units)


def test_the_sign_flip_test_needs_two_units_and_is_never_zero():
    rng = np.random.default_rng(0)
    assert np.isnan(sign_flip_test(np.array([0.3]), None, rng))
    assert np.isnan(sign_flip_test(np.array([0.3, 0.4]), ["a", "a"], rng))
    assert sign_flip_test(np.zeros(8), None, rng) == 1.0
    assert 0 < sign_flip_test(np.full(60, 0.2), None, rng) < 1e-3


def test_interval_over_seeds_is_students_and_covers():
    low, high = seed_interval(np.array([0.7, 0.8, 0.9]))
    assert (low, high) == pytest.approx((0.8 - 4.302653 * 0.1 / 3**0.5, 0.8 + 4.302653 * 0.1 / 3**0.5))
    assert np.isnan(seed_interval(np.array([0.7]))).all()
    rng = np.random.default_rng(0)
    intervals = [seed_interval(rng.normal(0.8, 0.03, 5)) for _ in range(2000)]
    assert 0.93 <= np.mean([low <= 0.8 <= high for low, high in intervals]) <= 0.97


def test_a_case_without_group_is_a_unit_of_its_own():
    rows = [case_score(case, 0.5, group) for case, group in {"a": "p", "b": "", "c": "p", "d": ""}.items()]
    assert units_of([*rows, *rows]) == ["group p", "case b", "group p", "case d"]
    assert units_of(rows[1::2]) is None


def adjusted_by_trying_levels(p_values):
    """Holm's procedure as it is stated, by hand: the lowest level at which it still rejects each hypothesis."""

    def rejected(level):
        left = dict(enumerate(p_values))
        while left:
            place = min(left, key=left.get)
            if left[place] > level / len(left):
                break
            del left[place]
        return set(range(len(p_values))) - set(left)

    levels = np.linspace(0, 1, 2001)
    return [min((level for level in levels if place in rejected(level)), default=1.0) for place in range(len(p_values))]


@pytest.mark.parametrize("seed", range(5))
def test_holm_is_the_lowest_level_at_which_the_procedure_rejects(seed):
    p_values = np.random.default_rng(seed).beta(0.3, 2, size=7).tolist()
    p_values[3] = p_values[1]
    assert holm(p_values) == pytest.approx(adjusted_by_trying_levels(p_values), abs=1 / 2000)


def test_holm_leaves_out_what_is_no_test():
    assert holm([]) == [] and holm([0.04]) == [0.04]
    np.testing.assert_equal(holm([0.01, np.nan, 0.04]), [0.02, np.nan, 0.04])


def test_the_paired_t_test_is_scipys_and_goes_with_the_interval():
    rng = np.random.default_rng(0)
    for centre in np.linspace(0, 0.06, 7):
        values = rng.normal(centre, 0.03, 6)
        p = paired_t_test(values)
        assert p == pytest.approx(stats.ttest_1samp(values, 0.0).pvalue)
        low, high = seed_interval(values)
        assert (p < 0.05) == (low > 0 or high < 0)


def test_the_paired_t_test_needs_two_seeds_and_takes_none_for_a_difference():
    assert np.isnan(paired_t_test(np.array([0.1]))) and np.isnan(paired_t_test(np.array([0.1, np.nan])))
    assert paired_t_test(np.zeros(4)) == 1.0
