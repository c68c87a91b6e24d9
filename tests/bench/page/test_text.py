"""What is printed follows from the numbers, and says no more."""

import math
from dataclasses import replace

import numpy as np
import pytest
from tests.bench.made_up import BASELINE, cell, made_up, result

from nissl.bench.analysis.overview import Gain
from nissl.bench.analysis.tables import Row, Table, Versus, tables_of
from nissl.bench.page import text as words
from nissl.bench.run.cost import Cost
from nissl.config import Config

NAN = float("nan")
NOWHERE = (NAN, NAN)


def row(arm, versus=None):
    return Row(arm, (), 5.0, 0.7, NOWHERE, NOWHERE, 0.7, 0.01, 10.0, NAN, NAN, 0, None, versus)


def versus(dice, p, seeds=6):
    return Versus(seeds, dice, NOWHERE, NOWHERE, p, p)


def table(*rows):
    return Table("glas", "5%", BASELINE, (row(BASELINE), *rows), Config())


def finished(changes=None, **options):
    rng = np.random.default_rng(0)
    dice = {arm: rng.normal(0.7, 0.05, (3, 12)) for arm in (BASELINE, "none + cps")}
    made, results, scores = made_up(dice, **options)
    return tables_of(made, [(changes or (lambda one: one))(one) for one in results], scores, {})[0]


def test_the_sentence_lists_every_arm_once_under_what_came_of_it():
    said = words.sentence(
        table(
            row("a", versus(0.0312, 0.01)),
            row("b", versus(-0.02, 0.001)),
            row("c", versus(0.05, 0.2)),
            row("d", versus(0.01, 0.04)),
            row("e"),
            row("f", versus(0.1, NAN, seeds=1)),
        )
    )
    assert said == (
        "Helped, against none + supervised: a (+3.1), d (+1.0). Hurt, against none + supervised: b (−2.0). "
        "No difference that 6 seeds show: c. Not compared, for too few finished runs: e, f."
    )


def test_the_tables_together_are_listed_best_first_and_told_in_a_sentence():
    tables = (table(), replace(table(), budget="10%"))
    gains = (
        Gain("a", (versus(-0.02, 0.001), None), 0),
        Gain("b", (versus(0.001, 0.9), versus(0.003, 0.9)), 6, 0.002, (-0.01, 0.014), 0.9),
        Gain("c", (versus(0.04, 0.01), versus(0.02, 0.3)), 6, 0.03, (0.02, 0.04), 0.01),
    )
    sheet = words.overview_sheet(gains, tables)
    assert sheet.head == ("arm", "glas, 5%", "glas, 10%", "mean", "95 % over seeds", "p over seeds", "seeds")
    assert [line.texts for line in sheet.lines] == [
        ("c", "+4.0*", "+2.0", "+3.0", "+2.0 to +4.0", "0.010", "6"),
        ("b", "+0.1", "+0.3", "+0.2", "−1.0 to +1.4", "0.900", "6"),
        ("a", "−2.0*", "–", "–", "–", "–", "0"),
    ]
    assert words.overview_sentence(gains, tables) == (
        "On average over 2 tables, better than none + supervised: c (+3.0; +2.0 to +4.0); no difference is shown: b; "
        "not compared, for too few seeds with a number in all: a."
    )


def test_what_false_alarms_contradict_is_told_with_their_numbers():
    said = words.sentence(table(row("a", replace(versus(0.02, 0.01), false_alarms=(60, 2)))))
    assert said == (
        "Neither helped nor hurt, as Dice and false alarms say the opposite: a (+2.0, false alarms 60 against 2)."
    )


def test_false_alarms_have_a_column_where_there_are_any():
    clean = finished()
    alarmed = replace(clean, rows=tuple(replace(row, false_alarms=7) for row in clean.rows))
    assert "false alarms" not in words.results_sheet(clean).head
    sheet = words.results_sheet(alarmed)
    assert [line.texts[sheet.head.index("false alarms")] for line in sheet.lines[:2]] == ["7", "7"]
    assert all(len(line.texts) == len(sheet.head) for line in sheet.lines)


def test_the_sentence_leaves_out_what_did_not_happen_and_names_the_seeds():
    said = words.sentence(table(row("a", versus(0.03, 0.5, seeds=4)), row("b", versus(0.03, 0.5))))
    assert said == "No difference that 4 to 6 seeds show: a, b."
    assert words.sentence(table()) == "There is one arm, and nothing to compare it with."


def test_what_weakens_the_numbers_is_said(monkeypatch):
    monkeypatch.setattr(words, "MANY_ERRORS", 5.0)
    assert words.warnings(finished()) == []
    longer = finished(lambda one: replace(one, steps=600) if "cps" in one.arm else one)
    assert "same number of steps in stage 2 (300: none + supervised; 600: none + cps)" in words.warnings(longer)[0]
    assert words.unequal(longer) == words.warnings(longer)[:1]
    failed = finished(lambda one: replace(one, status="failed") if one.seed == 2 and "cps" in one.arm else one)
    assert "1 of 6 runs have no result (1 failed, 0 missing)" in words.warnings(failed)[0]
    poor = finished(lambda one: replace(one, trivial_dice=0.99))
    assert words.warnings(poor) == [f"No better than calling every pixel foreground: {BASELINE}, none + cps."]
    few = finished(lambda one: replace(one, n_groups=4))
    assert words.warnings(few) == [
        "With 4 test groups (patients) the corrected p over them cannot fall below 0.12: nothing can be shown."
    ]
    assert "below 10" in words.warnings(finished(lambda one: replace(one, n_groups=8)))[0]


@pytest.mark.parametrize(("arms", "seeds", "errors"), [(1, 3, "4.3"), (1, 6, None), (19, 6, "5.5"), (19, 20, None)])
def test_many_arms_with_few_seeds_are_said_to_show_large_differences_only(arms, seeds, errors):
    dice = {BASELINE: np.full((seeds, 12), 0.6)} | {f"p{n} + cps": np.full((seeds, 12), 0.7) for n in range(arms)}
    said = words.warnings(tables_of(*made_up(dice), {})[0])
    assert [f"from {errors} standard errors on" in text for text in said] == [True] * bool(errors)


def test_the_least_p_that_is_named_can_be_reached():
    """With 4 groups whose differences are all alike, the test gives just the value of the warning."""
    dice = {BASELINE: np.full((3, 4), 0.6), "none + cps": np.full((3, 4), 0.7)}
    found = tables_of(*made_up(dice), {})[0]
    assert f"below {found.rows[1].versus.p_cases:.2f}" in words.warnings(found)[-1]


def test_the_published_protocol_stands_beside_the_honest_number_with_its_line(monkeypatch):
    monkeypatch.setattr(words, "MANY_ERRORS", 5.0)
    assert not any("published" in text for text in words.results_sheet(finished()).head)
    changed = finished(
        lambda one: replace(one, protocol="parity", parity_pooled_dice=0.8123) if "cps" in one.arm else one
    )
    sheet, said = words.results_sheet(changed), words.warnings(changed)
    assert said == [words.PARITY[0].upper() + words.PARITY[1:] + "."]
    column = sheet.head.index("published protocol: pooled Dice, % (sd)")
    assert sheet.head[column - 1] == "pooled Dice, % (sd)"
    assert [line.texts[column] for line in sheet.lines] == ["–", "81.2 (0.0)", ""]


def test_every_line_has_a_text_for_every_column_and_the_trivial_score_is_the_last():
    for one in (finished(), finished(lambda r: replace(r, status="missing"))):
        sheet = words.results_sheet(one)
        assert {len(line.texts) for line in sheet.lines} == {len(sheet.head)}
        assert [line.texts[0] for line in sheet.lines] == [f"{BASELINE} (baseline)", "none + cps", words.TRIVIAL]
        costs = words.cost_sheet([one])
        assert {len(line.texts) for line in costs.lines} == {len(costs.head)} and len(costs.lines) == 2
    assert words.results_sheet(finished()).lines[-1].texts[3] == "40.0"


def test_runs_that_are_not_done_are_told():
    sheet = words.results_sheet(finished(lambda one: replace(one, status="failed") if one.seed else one))
    assert [line.texts[1] for line in sheet.lines] == ["1 of 3; 2 failed"] * 2 + [""]
    assert all("lacking" in line.kind for line in sheet.lines[:2])


def test_costs_are_printed_alone_and_in_multiples_of_the_baseline():
    made = made_up({arm: np.full((2, 3), 0.7) for arm in (BASELINE, "none + cps", "none + bcp")})
    costs = {
        ("glas", BASELINE): Cost("glas", BASELINE, 1200.0, 0.0, 0.05, 500_000_000),
        ("glas", "none + cps"): Cost("glas", "none + cps", 3000.0, 0.1, 0.1, 600_000_000),
        ("glas", "none + bcp"): Cost("glas", "none + bcp", message="no"),
    }
    found = tables_of(*made, costs)
    lines = {line.texts[0]: line.texts[1:] for line in words.cost_sheet(found).lines}
    assert lines["none + cps"] == (
        *("0", "0", "300", "2400", "3\u202f000", "2.50×", "0.100", "0.100", "2.00×", "600", "1.20×"),
    )
    assert lines["none + bcp"] == ("0", "0", "300", "2400", *("–",) * 7)
    assert [line.texts[-1] for line in words.results_sheet(found[0]).lines] == ["1.00×", "2.50×", "–", ""]


def test_sizes_length_seeds_device_and_date_are_told():
    said = words.facts(finished())
    lengths = ("300 steps of stage 2 with 8 images each", "learning rate 0.01, float32")
    for part in ("16-32-64-128-256", "1\u202f000 parameters", "3 × 64 × 64", *lengths, "3 seeds (0, 1, 2)"):
        assert part in said
    assert said.endswith("12 test images; cpu; 2026-11-21.")
    dates = ["2026-11-21T23:00:00", "2026-11-23T01:00:00", "2026-11-22T01:00:00"]
    assert "2026-11-21 to 2026-11-23" in words.facts(finished(lambda one: replace(one, date=dates[one.seed])))
    assert "no run is done yet" in words.facts(finished(lambda one: replace(one, status="missing")))


def test_the_headline_counts_all_cells():
    one = cell("none + cps")
    made, results, scores = made_up({BASELINE: np.full((2, 3), 0.7)})
    found = tables_of([*made, one], [*results, result(one, status="failed", message="no")], scores, {})
    assert words.headline(found) == "2 arms, 1 data set, 2 seeds: 2 of 3 runs done, 1 failed."


@pytest.mark.parametrize(
    ("needed", "text"),
    [(("", 8.34), "8.3"), ((">", 17.0), "> 17"), (("<", 5.0), "< 5")],
)
def test_bounds_are_said_as_bounds(needed, text):
    assert words.needed_text(needed) == text
    assert words.needed_text(needed, (("<", 4.0), needed)) == f"{text} (< 4 to {text})"
    assert words.needed_text(needed, (needed, needed)) == text


def test_numbers_keep_their_signs_and_p_is_never_nought():
    assert (words.points_of(0.0312), words.points_of(-0.0312), words.points_of(math.nan)) == ("+3.1", "−3.1", "–")
    assert (words.p_text(1e-9), words.p_text(0.0312), words.p_text(math.nan)) == ("< 0.001", "0.031", "–")


@pytest.mark.parametrize(("difference", "text"), [(-0.0004, "+0.0"), (-0.0006, "−0.1"), (0.0312, "+3.1"), (NAN, "–")])
def test_a_difference_has_its_sign_unless_it_rounds_to_nothing(difference, text):
    assert words.points_of(difference) == text
