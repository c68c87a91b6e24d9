"""What an arm gains over all tables, against scipy on means taken by hand."""

import numpy as np
import pytest
from scipy import stats
from tests.bench.made_up import BASELINE, made_up

from nissl.bench.analysis.overview import Gain, gains_of
from nissl.bench.analysis.tables import Versus, tables_of
from nissl.metrics.metric import SEGMENTATION

NAN = float("nan")
ARMS = {BASELINE: 0.0, "none + cps": 0.03, "none + bcp": 0.004}
BUDGETS = (("5%", 5), ("10%", 9), ("20%", 17))


def drawn(rng, seeds=5, cases=6):
    hard = rng.normal(0.7, 0.1, cases)
    return {arm: hard + gain + rng.normal(0, 0.02, (seeds, cases)) for arm, gain in ARMS.items()}


def tables(dice, lacking=()):
    """Tables of the Dice of each budget; `lacking` are the runs that are not there."""
    made, results, scores = [], [], {}
    for (budget, masks), of_budget in zip(BUDGETS, dice, strict=False):
        part = made_up(of_budget, budget, masks)
        made, results, scores = made + part[0], results + part[1], scores | part[2]
    results = [
        one
        if (one.budget, one.arm, one.seed) not in lacking
        else one.__class__(*(one.data, one.budget, one.arm, one.seed), "missing")
        for one in results
    ]
    return tables_of(made, results, scores, {})


def test_a_gain_is_the_mean_over_tables_of_each_seed():
    rng = np.random.default_rng(0)
    dice = [drawn(rng) for _ in BUDGETS]
    found = {gain.arm: gain for gain in gains_of(tables(dice))}
    assert set(found) == set(ARMS) - {BASELINE}
    raw = {}
    for arm, gain in found.items():
        by_table = np.array([(table[arm] - table[BASELINE]).mean(axis=1) for table in dice])
        by_seed = by_table.mean(axis=0)
        assert gain.difference == pytest.approx(by_table.mean()) and gain.seeds == 5
        assert gain.over_seeds == pytest.approx(stats.t.interval(0.95, 4, by_seed.mean(), stats.sem(by_seed)))
        assert [one.difference for one in gain.versus] == pytest.approx(by_table.mean(axis=1))
        raw[arm] = stats.ttest_1samp(by_seed, 0).pvalue
    small, large = sorted(raw, key=raw.get)
    assert found[small].p_seeds == pytest.approx(min(1, 2 * raw[small]))
    assert found[large].p_seeds == pytest.approx(max(min(1, 2 * raw[small]), raw[large]))


def test_a_seed_counts_only_where_every_table_has_it():
    rng = np.random.default_rng(1)
    dice = [drawn(rng) for _ in BUDGETS]
    found = {gain.arm: gain for gain in gains_of(tables(dice, [("10%", "none + cps", 3)]))}
    kept = [0, 1, 2, 4]
    by_table = [(table["none + cps"] - table[BASELINE]).mean(axis=1)[kept] for table in dice]
    assert found["none + cps"].seeds == 4 and found["none + cps"].difference == pytest.approx(np.mean(by_table))
    assert found["none + bcp"].seeds == 5


def test_without_a_common_seed_nothing_is_said():
    dice = [drawn(np.random.default_rng(2), seeds=2) for _ in BUDGETS]
    gaps = [("5%", "none + cps", 0), ("10%", "none + cps", 1)]
    found = {gain.arm: gain for gain in gains_of(tables(dice, gaps))}["none + cps"]
    assert found.seeds == 0 and np.isnan(found.difference) and found.verdict == "not compared"


@pytest.mark.parametrize(
    ("dice", "p", "outcome"),
    [
        (0.01, 0.04, "helped"),
        (-0.01, 0.04, "hurt"),
        (0.01, 0.06, "no difference"),
        (0.0, 0.0, "no difference"),
        (0.01, NAN, "not compared"),
    ],
)
def test_an_arm_has_helped_where_the_corrected_test_says_so(dice, p, outcome):
    assert Gain("a", SEGMENTATION[0], (), 6, dice, (0.0, 0.1), p).verdict == outcome


def test_false_positive_cases_that_contradict_it_make_it_unclear():
    def versus(mine, others):
        return Versus(SEGMENTATION[0], 6, 0.03, (NAN, NAN), (NAN, NAN), 0.01, 0.01, (mine, others))

    def gain(*versus):
        return Gain("a", SEGMENTATION[0], versus, 6, 0.03, (0.0, 0.1), 0.01)

    assert gain(versus(20, 0), None, versus(0, 3)).verdict == "unclear"
    assert gain(versus(2, 0), None, versus(0, 3)).verdict == "helped"
