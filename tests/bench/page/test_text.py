"""What is printed follows from the numbers: which arm under which verdict, which warnings, which texts in a table."""

import math
from dataclasses import replace

import numpy as np
import pytest
from tests.bench.made_up import BASELINE, cell, changed, made_up, result

from nissl.bench.analysis.overview import Gain
from nissl.bench.analysis.tables import ArmRow, Spread, Table, Versus, tables_of
from nissl.bench.page import numbers, printed, text
from nissl.bench.run.cost import Cost
from nissl.bench.run.results import Published
from nissl.config import Config
from nissl.metrics.metric import SEGMENTATION

NAN = float("nan")
DICE = SEGMENTATION[0]
NOWHERE = (NAN, NAN)


def row(arm, versus=None):
    others = {name: Spread() for name in ("pooled_dice", "hd95", "published")}
    return ArmRow(arm, (), 5.0, 0.7, NOWHERE, NOWHERE, others, 0, None, versus)


def versus(dice, p, seeds=6):
    return Versus(DICE, seeds, dice, NOWHERE, NOWHERE, p, p)


def table(*rows):
    return Table("glas", "5%", BASELINE, (row(BASELINE), *rows), Config())


def finished(changes=None, **options):
    rng = np.random.default_rng(0)
    dice = {arm: rng.normal(0.7, 0.05, (3, 12)) for arm in (BASELINE, "none + cps")}
    made, results, scores = made_up(dice, **options)
    return tables_of(made, [(changes or (lambda one: one))(one) for one in results], scores, {})[0]


def codes(table):
    return [one.code for one in text.warnings(table)]


def column(found, head):
    return [row.texts[found.head.index(head)] for row in found.rows]


def test_each_arm_is_listed_once_under_its_verdict_with_its_difference():
    compared = {
        "a": versus(0.0312, 0.01),
        "b": versus(-0.02, 0.001),
        "c": versus(0.05, 0.2),
        "d": replace(versus(0.01, 0.04), over_seeds=(0.005, 0.015)),
        "e": None,
        "f": versus(0.1, NAN, seeds=1),
        "g": replace(versus(0.02, 0.01), false_positives=(60, 2)),
    }
    parts = [part.partition(": ") for part in text.verdicts(compared, BASELINE).rstrip(".").split(". ")]
    assert [(one.split(" ")[0], listed) for one, _, listed in parts] == [
        ("Better", "a (+3.1), d (+1.0; +0.5 to +1.5)"),
        ("Worse", "b (−2.0)"),
        ("Neither", "g (+2.0, false-positive cases 60 against 2)"),
        ("No", "c"),
        ("Not", "e, f"),
    ]
    assert BASELINE in parts[0][0] and "6 seeds" in parts[3][0]


def test_seeds_that_differ_are_given_as_a_range():
    compared = {"a": versus(0.03, 0.5, seeds=4), "b": versus(0.03, 0.5)}
    found = text.verdicts(compared, BASELINE)
    assert "4 to 6 seeds" in found and found.count(":") == 1
    assert ":" not in text.verdicts({}, BASELINE)


def test_the_tables_together_are_listed_best_first():
    tables = (table(), replace(table(), budget="10%"))
    gains = (
        Gain("a", DICE, (versus(-0.02, 0.001), None), 0),
        Gain("b", DICE, (versus(0.001, 0.9), versus(0.003, 0.9)), 6, 0.002, (-0.01, 0.014), 0.9),
        Gain("c", DICE, (versus(0.04, 0.01), versus(0.02, 0.3)), 6, 0.03, (0.02, 0.04), 0.01),
    )
    found = printed.overview_table(gains, tables)
    assert found.head == ("arm", "glas, 5%", "glas, 10%", "mean", "95 % over seeds", "p over seeds", "seeds")
    assert [row.texts for row in found.rows] == [
        ("c", "+4.0*", "+2.0", "+3.0", "+2.0 to +4.0", "0.010", "6"),
        ("b", "+0.1", "+0.3", "+0.2", "−1.0 to +1.4", "0.900", "6"),
        ("a", "−2.0*", "–", "–", "–", "–", "0"),
    ]
    assert "c (+3.0; +2.0 to +4.0)" in text.verdicts({gain.arm: gain for gain in gains}, BASELINE)


def test_false_positive_cases_have_a_column_where_there_are_any():
    clean = finished()
    counted = replace(clean, rows=tuple(replace(row, false_positives=7) for row in clean.rows))
    assert printed.FALSE_POSITIVES not in printed.results_table(clean).head
    found = printed.results_table(counted)
    assert column(found, printed.FALSE_POSITIVES) == ["7", "7", ""]
    assert all(len(row.texts) == len(found.head) for row in found.rows)


def test_annotation_equivalents_have_a_column_where_there_are_any():
    clean = finished()
    known = [clean.rows[0], replace(clean.rows[1], equivalent=(">", 17.0), equivalent_span=(("", 9.25), (">", 17.0)))]
    assert printed.EQUIVALENT not in printed.results_table(clean).head
    found = printed.results_table(replace(clean, rows=tuple(known)))
    assert column(found, printed.EQUIVALENT) == ["", "> 17 (9.2 to > 17)", ""]


def test_what_weakens_the_numbers_is_warned_of(monkeypatch):
    monkeypatch.setattr(text, "MANY_ERRORS", 5.0)
    assert codes(finished()) == []
    longer = finished(lambda one: changed(one, steps=600) if "cps" in one.arm else one)
    assert codes(longer) == ["unequal-steps"] and text.unequal(longer) == text.warnings(longer)
    assert all(part in text.unequal(longer)[0].text for part in (f"300: {BASELINE}", "600: none + cps"))
    failed = finished(lambda one: replace(one, status="failed") if one.seed == 2 and "cps" in one.arm else one)
    assert codes(failed) == ["incomplete"] and "1 of 6" in text.warnings(failed)[0].text
    poor = finished(lambda one: replace(one, trivial={DICE: 0.99}))
    assert codes(poor) == ["trivial"] and BASELINE in text.warnings(poor)[0].text
    few = finished(lambda one: changed(one, n_groups=4))
    assert codes(few) == ["powerless-over-units"]
    assert codes(finished(lambda one: changed(one, n_groups=8))) == ["few-units"]
    pair = finished(lambda one: replace(one, status="missing") if one.seed == 2 else one)
    assert codes(pair)[:2] == ["incomplete", "few-seeds"]


@pytest.mark.parametrize(("arms", "seeds", "errors"), [(1, 3, "4.3"), (1, 6, None), (19, 6, "5.5"), (19, 20, None)])
def test_many_arms_with_few_seeds_are_warned_to_show_large_differences_only(arms, seeds, errors):
    dice = {BASELINE: np.full((seeds, 12), 0.6)} | {f"p{n} + cps": np.full((seeds, 12), 0.7) for n in range(arms)}
    found = text.warnings(tables_of(*made_up(dice), {})[0])
    assert [one.code for one in found] == ["weak-over-seeds"] * bool(errors)
    assert all(f"{errors} standard errors" in one.text for one in found)


def test_the_least_p_that_is_named_can_be_reached():
    """With 4 groups whose differences are all alike, the test gives just the value of the warning."""
    dice = {BASELINE: np.full((3, 4), 0.6), "none + cps": np.full((3, 4), 0.7)}
    found = tables_of(*made_up(dice), {})[0]
    assert f"{found.rows[1].versus.p_cases:.2f}" in text.warnings(found)[-1].text


def test_the_published_protocol_stands_beside_the_honest_number_with_its_warning(monkeypatch):
    monkeypatch.setattr(text, "MANY_ERRORS", 5.0)
    assert printed.PUBLISHED not in printed.results_table(finished()).head
    marked = finished(lambda one: replace(one, published=Published(0.8123, 0.5)) if "cps" in one.arm else one)
    assert text.warnings(marked) == text.published([marked]) == [text.PUBLISHED]
    found = printed.results_table(marked)
    assert found.head[found.head.index(printed.PUBLISHED) - 1] == "HD95, px"
    assert column(found, printed.PUBLISHED) == ["–", "81.2 (0.0)", ""]


def test_every_row_has_a_text_for_every_column_and_the_trivial_score_is_the_last():
    for one in (finished(), finished(lambda r: replace(r, status="missing"))):
        found = printed.results_table(one)
        assert {len(row.texts) for row in found.rows} == {len(found.head)}
        assert column(found, "arm") == [f"{BASELINE} (baseline)", "none + cps", "foreground everywhere"]
        costs = printed.cost_table([one])
        assert {len(row.texts) for row in costs.rows} == {len(costs.head)} and len(costs.rows) == 2
    assert column(printed.results_table(finished()), "Dice, %")[-1] == "40.0"


def test_runs_that_are_not_done_are_counted():
    found = printed.results_table(finished(lambda one: replace(one, status="failed") if one.seed else one))
    assert column(found, "runs") == ["1 of 3; 2 failed"] * 2 + [""]
    assert all("lacking" in row.kind for row in found.rows[:2])


def test_costs_are_printed_alone_and_in_multiples_of_the_baseline():
    made = made_up({arm: np.full((2, 3), 0.7) for arm in (BASELINE, "none + cps", "none + bcp")})
    costs = {
        ("glas", BASELINE): Cost("glas", BASELINE, 1200.0, 0.0, 0.05, 500_000_000),
        ("glas", "none + cps"): Cost("glas", "none + cps", 3000.0, 0.1, 0.1, 600_000_000),
        ("glas", "none + bcp"): Cost("glas", "none + bcp", message="no"),
    }
    found = tables_of(*made, costs)
    rows = {row.texts[0]: row.texts[1:] for row in printed.cost_table(found).rows}
    assert rows["none + cps"] == (
        *("0", "0", "300", "2400", "3\u202f000", "2.50×", "0.100", "0.100", "2.00×", "600", "1.20×"),
    )
    assert rows["none + bcp"] == ("0", "0", "300", "2400", *("–",) * 7)
    assert [row.texts[-1] for row in printed.results_table(found[0]).rows] == ["1.00×", "2.50×", "–", ""]


def test_the_facts_have_sizes_length_seeds_device_and_date():
    parts = text.facts(finished()).rstrip(".").split("; ")
    facts = ("16-32-64-128-256", "1\u202f000 parameters", "3 × 64 × 64", "300 steps", "8 images", "0.01, float32")
    assert all(any(fact in part for part in parts) for fact in (*facts, "3 seeds (0, 1, 2)"))
    assert parts[-3:] == ["12 test images", "cpu", "2026-11-21"]
    dates = ["2026-11-21T23:00:00", "2026-11-23T01:00:00", "2026-11-22T01:00:00"]
    assert "2026-11-21 to 2026-11-23" in text.facts(finished(lambda one: changed(one, date=dates[one.seed])))
    assert "16-32-64-128-256" in text.facts(finished(lambda one: replace(one, status="missing")))


def test_the_headline_counts_all_cells():
    one = cell("none + cps")
    made, results, scores = made_up({BASELINE: np.full((2, 3), 0.7)})
    found = tables_of([*made, one], [*results, result(one, status="failed", message="no")], scores, {})
    assert text.headline(found) == "2 arms, 1 data set, 2 seeds: 2 of 3 runs done, 1 failed."


@pytest.mark.parametrize(
    ("equivalent", "shown"),
    [(("", 8.34), "8.3"), ((">", 17.0), "> 17"), (("<", 5.0), "< 5")],
)
def test_bounds_are_shown_as_bounds(equivalent, shown):
    assert numbers.labels(equivalent) == shown
    assert numbers.labels(equivalent, (("<", 4.0), equivalent)) == f"{shown} (< 4 to {shown})"
    assert numbers.labels(equivalent, (equivalent, equivalent)) == shown


def test_p_is_never_nought():
    assert (numbers.p_value(1e-9), numbers.p_value(0.0312), numbers.p_value(math.nan)) == ("< 0.001", "0.031", "–")


@pytest.mark.parametrize(
    ("difference", "shown"),
    [(-0.0004, "+0.0"), (-0.0006, "−0.1"), (0.0312, "+3.1"), (-0.0312, "−3.1"), (NAN, "–")],
)
def test_a_difference_has_its_sign_unless_it_rounds_to_nothing(difference, shown):
    assert numbers.change(DICE, difference) == shown
