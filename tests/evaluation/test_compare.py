"""What is said of two runs on the same cases."""

from dataclasses import replace

import numpy as np
import pytest

from nissl.evaluation.compare import compare_scores
from nissl.evaluation.table import CaseScore

NAN = float("nan")


def rows(dice, alarms=0, empty=10):
    """Rows of one class: cases that show it, and then some that do not, the first of them with a false alarm."""
    shown = [
        CaseScore(f"case {i}", "", "gland", "both", d, d, d, d, 1.0, 1.0, "px", 5, 5, 5, 100)
        for i, d in enumerate(dice)
    ]
    clear = replace(shown[0], presence="both empty", dice=NAN, iou=NAN, hd95=NAN, tp=0, fp=0, fn=0)
    wrong = replace(clear, presence="false alarm", dice=0.0, iou=0.0, fp=5)
    return shown + [replace(wrong if i < alarms else clear, case=f"empty {i}") for i in range(empty)]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("alarms", "said"),
    [((0, 0), "is better by"), ((0, 9), "is better by"), ((9, 0), "Neither is called better")],
)
def test_the_side_with_more_dice_and_more_false_alarms_is_not_called_better(alarms, said, turned):
    rng = np.random.default_rng(0)
    dice = rng.normal(0.7, 0.1, 20)
    better, other = {0: rows(dice + 0.02, alarms[0])}, {0: rows(dice, alarms[1])}
    sides = (other, better) if turned else (better, other)
    found = compare_scores(*sides, ("x", "y"), np.random.default_rng(0))
    assert said in found.verdict and "2.0 Dice points" in found.verdict
    leader = "B" if turned else "A"
    if alarms == (9, 0):
        assert f"{leader} gains 2.0" in found.verdict and "9 false alarms against 0" in found.verdict
    else:
        assert found.verdict.startswith(f"{leader} is better")
