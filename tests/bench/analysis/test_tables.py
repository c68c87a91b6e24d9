"""The numbers of the tables, against scipy and counting by hand."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from scipy import stats
from tests.bench.made_up import BASELINE, cell, changed, made_up, result, scores

from nissl.bench.analysis.tables import Versus, baseline_of, equivalent_of, tables_of
from nissl.bench.page.text import unequal
from nissl.bench.run.cost import Cost
from nissl.config import Config
from nissl.methods.settings import CPS
from nissl.metrics.metric import SEGMENTATION
from nissl.metrics.overlap import Overlap
from nissl.metrics.statistics import bootstrap_interval
from nissl.metrics.surface import SurfaceDistance
from nissl.pretrain.settings import Hebbian

NAN = float("nan")
ARMS = ("none + cps", BASELINE, "none + bcp")


def drawn(gains, seeds=5, cases=9, seed=0):
    rng = np.random.default_rng(seed)
    hard = rng.normal(0.7, 0.1, cases)
    return {arm: hard + gain + rng.normal(0, 0.02, (seeds, cases)) for arm, gain in gains.items()}


def table(dice, **changes):
    made = made_up(dice, **changes)
    return tables_of(*made, {})[0]


def by_hand(differences, groups=None):
    """The sign-flip test by every assignment of signs to the groups."""
    names = groups or list(range(len(differences)))
    units = sorted(set(names))
    count = 0
    for signs in product((-1, 1), repeat=len(units)):
        flipped = [d * signs[units.index(name)] for d, name in zip(differences, names, strict=True)]
        count += abs(np.mean(flipped)) >= abs(np.mean(differences)) - 1e-12
    return count / 2 ** len(units)


def test_a_row_has_the_mean_and_both_intervals():
    dice = drawn({BASELINE: 0.0, "none + cps": 0.03})
    found = {row.arm: row for row in table(dice).rows}
    for arm, values in dice.items():
        row, means = found[arm], values.mean(axis=1)
        assert row.value == pytest.approx(values.mean()) and row.others["pooled_dice"].mean == pytest.approx(
            values.mean() + 0.01
        )
        expected = stats.t.interval(0.95, 4, means.mean(), stats.sem(means))
        assert row.over_seeds == pytest.approx(expected)
        assert row.over_cases == pytest.approx(bootstrap_interval(values.mean(axis=0), None, np.random.default_rng(0)))
        assert row.others["pooled_dice"].deviation == pytest.approx(np.std(means, ddof=1)) and row.masks == 5


def test_differences_are_paired_by_seed_and_corrected_over_the_arms():
    dice = drawn({"none + cps": 0.03, BASELINE: 0.0, "none + bcp": 0.004})
    found = {row.arm: row.versus for row in table(dice).rows}
    assert found[BASELINE] is None
    raw = {"p_seeds": {}, "p_cases": {}}
    for arm in ("none + cps", "none + bcp"):
        gaps = dice[arm] - dice[BASELINE]
        raw["p_seeds"][arm] = stats.ttest_rel(dice[arm].mean(axis=1), dice[BASELINE].mean(axis=1)).pvalue
        raw["p_cases"][arm] = by_hand(gaps.mean(axis=0))
        assert (found[arm].seeds, found[arm].difference) == (5, pytest.approx(gaps.mean()))
        assert found[arm].over_seeds[0] < gaps.mean() < found[arm].over_seeds[1]
    for name, values in raw.items():
        small, large = sorted(values, key=values.get)
        assert getattr(found[small], name) == pytest.approx(min(1, 2 * values[small]))
        assert getattr(found[large], name) == pytest.approx(max(min(1, 2 * values[small]), values[large]))


def test_patients_are_the_units_where_they_are_known():
    dice = drawn({BASELINE: 0.0, "none + cps": 0.03}, cases=12)
    groups = {i: f"patient {i % 4}" for i in range(12)}
    found = next(row for row in table(dice, groups=groups).rows if row.arm == "none + cps")
    gaps = (dice["none + cps"] - dice[BASELINE]).mean(axis=0)
    assert found.versus.p_cases == pytest.approx(by_hand(gaps, list(groups.values())))


def test_an_arm_that_lacks_a_seed_is_compared_on_those_of_both_and_every_cell_is_counted():
    dice = drawn({BASELINE: 0.0, "none + cps": 0.03})
    made, results, by_run = made_up(dice)
    results[1] = result(made[1])
    results[8] = result(made[8], status="failed", message="out of memory")
    rows = tables_of(made, results, by_run, {})[0].rows
    assert [(len(row.done), row.count("failed"), row.count("missing")) for row in rows] == [(4, 0, 1), (4, 1, 0)]
    gaps = (dice["none + cps"] - dice[BASELINE])[[0, 2, 4]]
    assert rows[1].versus.seeds == 3 and rows[1].versus.difference == pytest.approx(gaps.mean())


def test_arms_without_a_finished_run_stay_in_the_table():
    made, results, by_run = made_up(drawn({BASELINE: 0.0}))
    made += [cell("none + cps", seed=seed) for seed in range(5)]
    results += [result(one) for one in made[5:]]
    row = tables_of(made, results, by_run, {})[0].rows[1]
    assert (row.arm, row.count("missing"), row.versus) == ("none + cps", 5, None) and np.isnan(row.value)
    empty = tables_of(made[5:], results[5:], {}, {})[0]
    assert [row.arm for row in empty.rows] == ["none + cps"] and empty.baseline == "none + cps"


def test_a_run_without_scores_or_of_other_cases_counts_as_failed():
    made, results, by_run = made_up(drawn({BASELINE: 0.0, "none + cps": 0.03}))
    del by_run[results[6].run]
    by_run[results[7].run] = scores([0.5] * 8)
    row = tables_of(made, results, by_run, {})[0].rows[1]
    assert row.count("failed") == 2 and row.versus.seeds == 3


def test_the_baseline_is_plain_training_or_the_first_arm():
    plain, hebbian = Config(), Config(pretrain=Hebbian())
    assert baseline_of({"x": hebbian, "y": plain, "z": plain}) == "y"
    assert baseline_of({"x": hebbian, "y": Config(method=CPS())}) == "x"


@pytest.mark.parametrize(
    ("p_seeds", "p_cases", "dice", "outcome"),
    [
        (0.01, 0.02, 0.03, "helped"),
        (0.01, 0.02, -0.03, "hurt"),
        (0.01, 0.05, 0.03, "no difference"),
        (0.06, 0.001, -0.03, "no difference"),
        (NAN, 0.001, 0.03, "not compared"),
    ],
)
def test_an_arm_helped_or_hurt_only_where_both_tests_say_so(p_seeds, p_cases, dice, outcome):
    assert Versus(SEGMENTATION[0], 6, dice, (0.0, 0.1), (0.0, 0.1), p_seeds, p_cases).verdict == outcome


def test_annotation_equivalents_are_read_off_a_rising_curve():
    curve = [(5, 0.6), (10, 0.7), (40, 0.8)]
    grid = np.exp(np.linspace(np.log(5), np.log(40), 20001))
    heights = np.interp(np.log(grid), np.log([5, 10, 40]), [0.6, 0.7, 0.8])
    for here, own in curve:
        for dice in (0.6, 0.63, 0.7, 0.745, 0.8):
            kind, masks = equivalent_of(curve[::-1], here, dice - own)
            assert kind == "" and masks == pytest.approx(grid[np.searchsorted(heights, dice - 1e-9)], rel=1e-3)
        assert equivalent_of(curve, here, 0.81 - own) == (">", 40)
        assert equivalent_of(curve, here, 0.59 - own) == ("<", 5)
    assert equivalent_of([(5, 0.6)], 5, 0.0) == ("", 5)


def test_a_curve_that_falls_is_levelled_first():
    curve = [(5, 0.6), (10, 0.72), (20, 0.68), (40, 0.8)]
    for here in (10, 20):  # both at 0.7 then
        assert equivalent_of(curve, here, 0.0) == ("", here)
        kind, masks = equivalent_of(curve, here, 0.05)
        assert kind == "" and masks == pytest.approx(20 * 2**0.5)


def test_an_arm_equal_to_a_baseline_that_falls_needs_its_own_masks():
    parts = [
        made_up({arm: np.full((2, 3), level) for arm in (BASELINE, "none + cps")}, budget, masks)
        for budget, masks, level in (("5%", 5, 0.72), ("10%", 9, 0.7), ("20%", 17, 0.76))
    ]
    merged = [[one for part in parts for one in part[place]] for place in (0, 1)]
    tables = tables_of(*merged, parts[0][2] | parts[1][2] | parts[2][2], {})
    assert [one.rows[1].equivalent for one in tables] == [("", 5), ("", 9), ("", 17)]


def test_a_budget_at_which_the_baseline_lacks_a_run_is_no_point_of_its_curve():
    parts = [
        made_up({BASELINE: np.full((2, 3), level), "none + cps": np.full((2, 3), level + 0.05)}, budget, masks)
        for budget, masks, level in (("5%", 5, 0.6), ("10%", 10, 0.62), ("20%", 20, 0.7))
    ]
    parts[2][1][1] = result(parts[2][0][1])
    merged = [[one for part in parts for one in part[place]] for place in (0, 1)]
    tables = tables_of(*merged, parts[0][2] | parts[1][2] | parts[2][2], {})
    assert [one.rows[1].equivalent for one in tables] == [(">", 10), (">", 10), None]


def test_one_budget_gives_no_annotation_equivalent():
    tables = tables_of(*made_up({BASELINE: np.full((2, 3), 0.6), "none + cps": np.full((2, 3), 0.7)}), {})
    assert tables[0].rows[1].equivalent is None


@pytest.mark.parametrize("gain", [1e-7, -1e-7, 4e-4, -4e-4])
def test_what_is_printed_as_no_gain_is_worth_no_masks(gain):
    for here in (5, 10, 40):
        assert equivalent_of([(5, 0.6), (10, 0.7), (40, 0.8)], here, gain) == ("", here)


def test_a_difference_of_rounding_is_not_shown_by_many_equal_seeds():
    """Without its limit such an arm would have helped by +0.0 points, with p below 0.001."""
    dice = np.random.default_rng(0).uniform(0.6, 0.9, (6, 30))
    row = tables_of(*made_up({BASELINE: dice, "warm + supervised": dice + 5e-6}), {})[0].rows[1]
    assert row.versus.p_seeds == 1.0 and row.versus.verdict == "no difference"


def with_false_positives(dice, counts):
    """Add cases in which the class is not there to a bench; `counts` has the false positives of each run."""
    made, results, by_run = made_up(dice)
    most = max(counts.values())
    for one, run in zip(made, results, strict=True):
        rows = by_run[run.run]
        for number in range(most):
            wrong = number < counts.get((one.arm, one.seed), 0)
            rows.append(replace(rows[0], case=f"empty {number}", overlap=Overlap(0, 5 if wrong else 0, 0)))
    return made, results, by_run


def test_more_dice_with_more_false_positives_has_not_helped():
    dice = drawn({BASELINE: 0.0, "none + cps": 0.03}, seeds=6)
    more = with_false_positives(dice, {}.fromkeys([("none + cps", seed) for seed in range(6)], 10))
    rows = tables_of(*more, {})[0].rows
    assert rows[1].versus.difference > 0.02 and max(rows[1].versus.p_seeds, rows[1].versus.p_cases) < 0.05
    assert (rows[1].versus.verdict, rows[1].versus.false_positives, rows[1].equivalent) == ("unclear", (60, 0), None)
    assert [row.false_positives for row in rows] == [0, 60]
    fewer = with_false_positives(dice, {}.fromkeys([(BASELINE, seed) for seed in range(6)], 10))
    assert tables_of(*fewer, {})[0].rows[1].versus.verdict == "helped"


def test_a_false_positive_of_one_seed_weighs_in_the_interval_as_in_the_mean():
    dice = {BASELINE: np.full((6, 20), 0.75) + np.random.default_rng(0).normal(0, 0.03, (6, 20))}
    made, results, by_run = with_false_positives(dice, {(BASELINE, 0): 12})
    row = tables_of(made, results, by_run, {})[0].rows[0]
    assert row.over_cases[0] < row.value < row.over_cases[1]
    assert row.value == pytest.approx(np.mean([dice[BASELINE][0].sum() / 32, *dice[BASELINE][1:].mean(axis=1)]))


@pytest.mark.parametrize(
    "changes",
    [
        {"group": "patient 9"},
        {"distance": SurfaceDistance(1.0, 1.0, "mm")},
        {"overlap": Overlap(4, 5, 5)},
        {"pixels": 121},
        {"label": "tumour"},
    ],
)
def test_a_run_of_other_groups_units_or_masks_than_most_counts_as_failed(changes):
    made, results, by_run = made_up(drawn({BASELINE: 0.0, "none + cps": 0.03}))
    by_run[results[0].run] = [replace(row, **changes) for row in by_run[results[0].run]]
    rows = tables_of(made, results, by_run, {})[0].rows
    assert [row.count("failed") for row in rows] == [1, 0] and rows[0].runs[0].message


def test_annotation_equivalents_come_from_the_baseline_of_all_budgets_of_the_data_set():
    parts = [
        made_up({BASELINE: np.full((2, 3), level), "none + cps": np.full((2, 3), level + 0.05)}, budget, masks)
        for budget, masks, level in (("5%", 5, 0.6), ("20%", 20, 0.7))
    ]
    merged = [parts[0][place] + parts[1][place] for place in (0, 1)]
    tables = tables_of(*merged, parts[0][2] | parts[1][2], {})
    needed = [{row.arm: row.equivalent for row in one.rows} for one in tables]
    assert needed[0] == {BASELINE: None, "none + cps": ("", pytest.approx(10))}
    assert needed[1]["none + cps"] == (">", 20)


def test_a_missing_seed_is_no_gain_in_masks():
    """The arm is the baseline itself, without its worst seed."""
    dice = np.array([[0.5], [0.7], [0.75]]).repeat(4, axis=1)
    made, results, scores = made_up({BASELINE: dice, "none + cps": dice})
    results[3] = result(made[3])
    more = made_up({BASELINE: dice + 0.1, "none + cps": dice + 0.1}, "10%", 10)
    row = tables_of(made + more[0], results + more[1], scores | more[2], {})[0].rows[1]
    assert row.value > 0.7 and row.equivalent == ("", 5)


def test_unequal_steps_or_images_are_found():
    made, results, by_run = made_up(drawn({BASELINE: 0.0, "none + cps": 0.03}))
    assert unequal(tables_of(made, results, by_run, {})[0]) == []
    results = [changed(one, images_stage_2=4800) if one.arm == "none + cps" else one for one in results]
    (found,) = unequal(tables_of(made, results, by_run, {})[0])
    assert found.code == "unequal-images" and f"(2400: {BASELINE}; 4800: none + cps)" in found.text


def test_costs_go_to_their_arm_and_data_set():
    made = made_up(drawn({BASELINE: 0.0, "none + cps": 0.03}))
    cost = Cost("glas", "none + cps", passes=10.0)
    rows = tables_of(*made, {("glas", "none + cps"): cost, ("other", BASELINE): replace(cost, data="other")})[0].rows
    assert [row.cost for row in rows] == [None, cost]
