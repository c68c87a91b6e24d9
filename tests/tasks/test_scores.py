import json
import math
from dataclasses import asdict, replace
from operator import attrgetter

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nissl.errors import DataError
from nissl.tasks.scores import COLUMNS, score_case, summarise

NAMES = ("background", "head", "body")
SHAPE = (5, 6)
MASKS = arrays(np.uint8, SHAPE, elements=st.integers(0, 2))


def score_all(predictions, references, spacing=None):
    pairs = zip(predictions, references, strict=True)
    return [row for i, (p, r) in enumerate(pairs) for row in score_case(f"case {i}", None, p, r, NAMES, spacing)]


def summary_of(rows):
    return summarise(rows, np.random.default_rng(0))


def random_rows(cases=12, groups=4, seed=0):
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(cases):
        reference = rng.integers(0, 3, SHAPE, dtype=np.uint8)
        prediction = np.where(rng.random(SHAPE) < 0.7, reference, 0).astype(np.uint8)
        rows += score_case(f"case {i}", f"patient {i % groups}", prediction, reference, NAMES, (0.5, 2.0))
    return rows


def test_means_are_over_cases_and_overall_is_the_mean_over_classes():
    rows = random_rows()
    summary = summary_of(rows)
    for label, scores in summary.classes.items():
        mine = [row for row in rows if row.label == label]
        assert scores.dice == pytest.approx(np.mean([row.overlap.dice for row in mine]))
        assert scores.distance.hd95 == pytest.approx(np.mean([row.distance.hd95 for row in mine]))
        tp, fp, fn = (sum(getattr(row.overlap, name) for row in mine) for name in ("tp", "fp", "fn"))
        assert scores.pooled_dice == pytest.approx(2 * tp / (2 * tp + fp + fn))
        assert scores.dice_ci[0] < scores.dice < scores.dice_ci[1]
        assert (scores.n_cases, scores.n_groups, scores.distance.unit) == (12, 4, "mm")
    for name in ("dice", "iou", "precision", "recall", "pooled_dice", "distance.hd95", "distance.asd", "trivial_dice"):
        mean = np.mean([attrgetter(name)(scores) for scores in summary.classes.values()])
        assert attrgetter(name)(summary.overall) == pytest.approx(mean)


def test_trivial_row_is_the_score_of_predicting_one_class_everywhere():
    rng = np.random.default_rng(0)
    references = [rng.integers(0, 3, SHAPE, dtype=np.uint8) for _ in range(5)] + [np.zeros(SHAPE, np.uint8)]
    summary = summary_of(score_all(references, references))
    for label in (1, 2):
        everywhere = [np.full(SHAPE, label, np.uint8)] * len(references)
        expected = summary_of(score_all(everywhere, references)).classes[NAMES[label]]
        assert summary.classes[NAMES[label]].trivial_dice == pytest.approx(expected.dice)
        assert summary.classes[NAMES[label]].trivial_pooled_dice == pytest.approx(expected.pooled_dice)


def test_with_one_class_overall_is_that_class():
    rows = [row for row in random_rows() if row.label == "head"]
    summary = summary_of(rows)
    assert summary.overall == summary.classes["head"]


def test_few_cases_or_few_patients_are_warned_about():
    assert "Only 4 test groups" in summary_of(random_rows(cases=12, groups=4)).warnings[0]
    assert "Only 3 test groups" in summary_of(random_rows(cases=3)).warnings[0]
    ungrouped = [replace(row, group="") for row in random_rows(cases=9)]
    assert "Only 9 test cases" in summary_of(ungrouped).warnings[0]
    assert summary_of(random_rows(cases=12, groups=12)).warnings == ()


def in_pixels(row):
    return replace(row, distance=replace(row.distance, unit="px"))


def test_mm_and_pixels_are_never_averaged_together():
    rows = random_rows(cases=12, groups=12)
    mixed = summary_of([in_pixels(row) if row.case == "case 0" else row for row in rows])
    assert mixed.overall.distance.unit == "mixed"
    assert math.isnan(mixed.overall.distance.hd95)
    assert any("mm and px" in warning for warning in mixed.warnings)


def test_summary_is_plain_json_without_nan():
    none = np.zeros(SHAPE, np.uint8)
    text = json.dumps(summary_of(score_all([none], [none])).to_tree(), allow_nan=False)
    tree = json.loads(text)
    assert tree["overall"]["dice"] is None
    assert tree["overall"]["dice_ci"] == [None, None]
    assert tree["classes"]["head"]["n_both_empty"] == 1


def test_rows_survive_csv():
    none = np.zeros(SHAPE, np.uint8)
    rows = random_rows() + score_case('comma, "quote"\nline', None, none, none, NAMES, None)
    text = COLUMNS.to_csv(rows)
    assert "nan" not in text.split("comma")[1]
    for before, after in zip(rows, COLUMNS.from_csv(text), strict=True):
        np.testing.assert_equal(asdict(after), asdict(before))


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (("dice", "dise"), "no column dice"),
        ((",mm,", ",mm,x"), "line 2: invalid"),
        ((",mm,", "x,mm,"), "line 2: could"),
    ],
)
def test_a_damaged_csv_is_refused_by_name(damage, found):
    with pytest.raises(DataError) as error:
        COLUMNS.from_csv(COLUMNS.to_csv(random_rows()).replace(*damage), "run/metrics.csv")
    for part in ("run/metrics.csv", found, "the columns case, group", "nissl evaluate"):
        assert part in str(error.value)


def test_a_summary_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no case"):
        summary_of([])
