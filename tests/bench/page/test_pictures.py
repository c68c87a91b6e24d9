"""The curves hold every arm that has a finished run, and their names do not cover each other."""

import base64
import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.bench.made_up import BASELINE, cell, made_up, result

from nissl.bench.analysis.overview import gains_of
from nissl.bench.analysis.tables import tables_of
from nissl.bench.page.pictures import curves_of, dataset_pictures, overview_picture, spread

ARMS = [BASELINE, *(f"none + {name}" for name in ("entropy", "mean-teacher", "uamt", "cps", "urpc", "cct", "dtc"))]


def tables(budgets=(("5%", 5), ("20%", 20)), seeds=3):
    rng = np.random.default_rng(0)
    made, results, scores = [], [], {}
    for budget, masks in budgets:
        dice = {arm: 0.6 + 0.02 * place + rng.normal(0, 0.01, (seeds, 4)) for place, arm in enumerate(ARMS)}
        part = made_up(dice, budget, masks)
        made, results, scores = made + part[0], results + part[1], scores | part[2]
    return tables_of(made, results, scores, {})


def test_the_baseline_is_first_and_the_others_from_the_best_on():
    found = curves_of(tables())
    assert [curve.arm for curve in found] == [BASELINE, *reversed(ARMS[1:])]
    assert found[0].masks.tolist() == [5, 20] and (found[0].low < found[0].values).all()


def test_the_pictures_need_neither_several_budgets_nor_several_seeds():
    for made, count in ((tables(), 2), (tables((("5%", 5),)), 1), (tables(seeds=1), 2)):
        found = dataset_pictures(made)
        assert len(found) == count
        for picture in found:
            kind, _, content = picture.source.partition(",")
            assert kind == "data:image/svg+xml;base64" and b"</svg>" in base64.b64decode(content)


def svg(picture):
    return base64.b64decode(picture.source.partition(",")[2]).decode()


def test_the_overview_has_each_arm_in_its_place_with_dots_mean_and_interval():
    made = tables()
    gains = gains_of(made)
    unknown = [replace(gains[0], arm="$a^$", versus=(None, None), difference=float("nan")), *gains[1:]]
    for asked, known in ((gains, len(gains)), (unknown, len(gains) - 1)):
        drawn = svg(overview_picture(asked, made))
        assert [drawn.count(f"<!-- {gain.arm} -->") for gain in asked] == [1] * len(asked)
        ordered = sorted(asked, key=lambda gain: -np.inf if np.isnan(gain.gain) else gain.gain)
        places = [drawn.index(f"<!-- {gain.arm} -->") for gain in ordered]
        assert places == sorted(places)  # from the axis upwards: the best on top
        markers = [part.count("<use ") for part in re.findall(r'<g id="line2d_\d+">(.*?)</g>\s*</g>', drawn, re.S)]
        assert markers.count(known) == 1 and markers.count(2 * known) == 1  # diamonds; a dot for each of two tables
        assert "LineCollection" in drawn


def test_one_budget_shows_each_arm_in_a_row_of_its_own_the_best_on_top():
    made = tables((("5%", 5),))
    (drawn,) = map(svg, dataset_pictures(made))
    ordered = [row.arm for row in sorted(made[0].rows, key=lambda row: row.value)]
    places = [drawn.index(f"<!-- {arm} -->") for arm in ordered]
    assert places == sorted(places) and "masks (logarithmic)" not in drawn
    markers = [part.count("<use ") for part in re.findall(r'<g id="line2d_\d+">(.*?)</g>\s*</g>', drawn, re.S)]
    assert markers.count(1) >= len(ordered)


def test_a_long_name_above_a_small_picture_is_broken():
    long = "hebbian hpca, all layers + supervised"
    renamed = [
        replace(one, rows=tuple(replace(row, arm=long) if row.arm == ARMS[1] else row for row in one.rows))
        for one in tables()
    ]
    beside = svg(dataset_pictures(renamed)[1])
    assert "hebbian hpca, all layers" in beside and long not in beside


def test_names_are_drawn_as_they_are_written():
    odd = " $a^$ and $b_{$"
    renamed = [
        replace(one, baseline=BASELINE + odd, rows=tuple(replace(row, arm=row.arm + odd) for row in one.rows))
        for one in tables()
    ]
    assert len(dataset_pictures(renamed)) == 2
    renamed = [replace(one, data=odd) for one in tables()]
    assert f"<!-- {odd} -->" in svg(overview_picture(gains_of(renamed), renamed))


def test_the_same_tables_give_the_same_bytes():
    assert dataset_pictures(tables()) == dataset_pictures(tables())


def test_there_is_no_picture_of_nothing():
    made, results, scores = made_up({BASELINE: np.full((2, 3), 0.7)})
    alone = tables_of(made, results, scores, {})
    assert len(dataset_pictures(alone)) == 1
    other = cell("none + cps")
    assert len(dataset_pictures(tables_of([*made, other], [*results, result(other)], scores, {}))) == 1
    assert dataset_pictures(tables_of([other], [result(other)], {}, {})) == ()
    without_baseline = [result(cell()), result(other, [0.7])], made_up({"none + cps": np.full((1, 1), 0.7)})[2]
    assert len(dataset_pictures(tables_of([cell(), other], *without_baseline, {}))) == 1


@given(st.lists(st.floats(0, 100), min_size=1, max_size=20), st.floats(0.1, 4))
def test_names_are_apart_in_order_and_within_the_axes(places, apart):
    moved = spread(sorted(places), apart, (0.0, 100.0))
    assert all(b - a >= apart - 1e-6 for a, b in pairwise(moved))
    assert moved[0] >= -1e-6 and moved[-1] <= 100 + 1e-6


def test_names_that_are_apart_stay():
    assert spread([1.0, 5.0, 9.0], 2.0, (0.0, 10.0)) == pytest.approx([1.0, 5.0, 9.0])
    assert spread([5.0, 5.0], 2.0, (0.0, 10.0)) == pytest.approx([4.0, 6.0])
