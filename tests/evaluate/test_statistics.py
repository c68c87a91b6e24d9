import numpy as np
import pytest

from nissl.errors import InputError
from nissl.evaluate import bootstrap_interval, mean_over_classes, paired_difference


def coverage(trials, draw, truth, seed):
    rng = np.random.default_rng(seed)
    intervals = [bootstrap_interval(*draw(rng), rng, resamples=1000) for _ in range(trials)]
    return np.mean([low <= truth <= high for low, high in intervals])


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


def test_one_case_or_one_group_has_no_interval():
    rng = np.random.default_rng(0)
    assert np.isnan(bootstrap_interval(np.array([0.7]), None, rng)).all()
    assert np.isnan(bootstrap_interval(np.array([0.7, 0.8]), ["a", "a"], rng)).all()
    assert np.isnan(bootstrap_interval(np.array([0.7, np.nan]), None, rng)).all()


def test_paired_difference_sees_a_small_gain_on_cases_that_vary_much():
    rng = np.random.default_rng(0)
    a = {f"case {i}": float(v) for i, v in enumerate(rng.beta(4, 2, size=30))}
    b = {case: value + 0.02 + rng.normal(0, 0.01) for case, value in reversed(a.items())}
    found = paired_difference(b, a, None, rng)
    assert found.mean == pytest.approx(np.mean([b[case] - a[case] for case in a]))
    assert 0 < found.low < 0.02 < found.high < 0.04
    assert (found.n_pairs, found.n_left_out) == (30, 0)
    back = paired_difference(a, b, None, np.random.default_rng(0))
    assert back.mean == pytest.approx(-found.mean)


def test_pairs_that_are_not_applicable_are_left_out_and_counted():
    a, b = {"x": 0.5, "y": float("nan"), "z": 0.9}, {"x": 0.4, "y": 0.0, "z": 0.7}
    found = paired_difference(a, b, {"x": "p", "y": "q", "z": "r"}, np.random.default_rng(0))
    assert (found.mean, found.n_pairs, found.n_left_out) == (pytest.approx(0.15), 2, 1)


def test_unpaired_runs_are_refused():
    with pytest.raises(InputError) as error:
        paired_difference({"a": 0.5, "b": 0.6}, {"a": 0.5, "c": 0.6}, None, np.random.default_rng(0))
    for part in ("2 of 3 cases", "b, c", "the same cases", "evaluate both runs"):
        assert part in str(error.value)
