"""What is said of two runs on the same cases."""

from dataclasses import replace

import numpy as np
import pytest
from tests.made_up_scores import case_score

from nissl.evaluation.compare import compare_scores
from nissl.evaluation.text import verdict_text
from nissl.metrics.overlap import Overlap
from nissl.metrics.statistics import paired_difference, smallest_p_value
from nissl.tasks.segmentation import Segmentation

NAN = float("nan")


def rows(dice, positives=0, empty=10):
    """Rows of one class: cases that show it, and then some that do not, the first of them with a false positive."""
    shown = [case_score(f"case {i}", value) for i, value in enumerate(dice)]
    clear = case_score("empty", NAN, distance=NAN)
    wrong = replace(clear, overlap=Overlap(0, 5, 0))
    return shown + [replace(wrong if i < positives else clear, case=f"empty {i}") for i in range(empty)]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("positives", "expected"),
    [((0, 0), "{} better"), ((0, 9), "{} better"), ((9, 0), "more false positives")],
)
def test_the_side_with_more_dice_and_more_false_positives_is_not_called_better(positives, expected, turned):
    rng = np.random.default_rng(0)
    dice = rng.normal(0.7, 0.1, 20)
    better, other = {0: rows(dice + 0.02, positives[0])}, {0: rows(dice, positives[1])}
    sides = (other, better) if turned else (better, other)
    found = compare_scores(Segmentation(), *sides, ("x", "y"), np.random.default_rng(0))
    leader, text = "B" if turned else "A", verdict_text(found)
    assert found.verdict == expected.format(leader) and "2.0 Dice points" in text
    if positives == (9, 0):
        assert f"{leader} gains 2.0" in text and "9 false positives against 0" in text
    else:
        assert text.startswith(f"{leader} is better")


@pytest.mark.parametrize(("count", "least"), [(1, "1"), (2, "0.5"), (4, "0.12"), (5, "0.062")])
def test_where_no_data_could_show_a_difference_that_is_said_and_no_verdict_given(count, least):
    """Every case of A is better by more than the noise, and still no p-value below 0.05 is possible."""
    found = compare_scores(
        Segmentation(), {0: rows([0.9] * count)}, {0: rows([0.2] * count)}, ("x", "y"), np.random.default_rng(0)
    )
    assert found.verdict == "too few to tell" and found.overall.primary.n_units == count
    text = verdict_text(found)
    assert text.startswith("Cannot tell") and f"smallest possible p = {least})" in text and "No difference" not in text


def test_the_same_gain_on_six_cases_is_a_difference():
    found = compare_scores(
        Segmentation(), {0: rows([0.9] * 6)}, {0: rows([0.2] * 6)}, ("x", "y"), np.random.default_rng(0)
    )
    assert found.verdict == "A better" and found.overall.primary.p_value == smallest_p_value(6)


@pytest.mark.parametrize("units", range(2, 9))
def test_the_smallest_p_value_is_that_of_differences_all_of_one_sign(units):
    rng = np.random.default_rng(units)
    found = paired_difference(rng.uniform(0.1, 1, units), None, rng)
    assert found.p_value == pytest.approx(smallest_p_value(units)) and found.n_units == units


def test_groups_count_and_not_their_cases():
    """Eight cases of four patients, all better: the patients are the units."""
    sides = [
        {0: [replace(row, group=f"patient {n % 4}") for n, row in enumerate(rows([d] * 8, empty=0))]}
        for d in (0.8, 0.7)
    ]
    found = compare_scores(Segmentation(), *sides, ("x", "y"), np.random.default_rng(0))
    assert (found.verdict, found.overall.primary.n_units, found.overall.primary.n_pairs) == ("too few to tell", 4, 8)
    assert "4 groups" in verdict_text(found) and "0.12)" in verdict_text(found)
