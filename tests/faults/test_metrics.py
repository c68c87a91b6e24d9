"""Metrics that cannot be flattered: empty masks, spacing, agreement with other libraries, intervals, pairs."""

import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage
from scipy.spatial import distance as scipy_distance
from scipy.spatial.distance import cdist
from tests.made_up_scores import overlap_of
from tests.references.overlap import count, measures
from tests.references.surface import all_pairs, surface_pixels
from tests.tiny_data import FLAGS, write_tiny

from nissl import cli
from nissl.imageio.formats import read_raster, write_image, write_mask
from nissl.metrics.overlap import overlap
from nissl.metrics.statistics import bootstrap_interval, paired_difference
from nissl.metrics.surface import SurfaceDistance, surface_distance
from nissl.runs.checkpoint import load_checkpoint, save_checkpoint
from nissl.runs.folder import WEIGHTS
from nissl.tasks.scores import COLUMNS, CaseScore, EmptyMasks, score_case, summarise

NAMES = ("background", "head", "body")
SHAPE = (5, 6)
MASKS = arrays(np.uint8, SHAPE, elements=st.integers(0, 2))


def command(*arguments):
    return cli.run([str(argument) for argument in arguments])


def read(path):
    return json.loads(path.read_text())


def score_all(predictions, references, spacing=None):
    pairs = zip(predictions, references, strict=True)
    return [row for i, (p, r) in enumerate(pairs) for row in score_case(f"case {i}", None, p, r, NAMES, spacing)]


def summary_of(rows):
    return summarise(rows, np.random.default_rng(0))


# Empty masks


@pytest.mark.parametrize(
    ("prediction", "reference", "presence", "value"),
    [(0, 0, "both empty", np.nan), (0, 1, "missed", 0.0), (1, 0, "false positive", 0.0), (1, 1, "both", 1.0)],
)
@pytest.mark.parametrize("spacing", [None, (2.0, 0.5)])
def test_f42_empty_masks_have_the_documented_values(prediction, reference, presence, value, spacing):
    masks = [np.full((3, 4), filled, np.uint8) for filled in (prediction, reference)]
    (row,) = score_case("a", None, *masks, ("background", "cell"), spacing)
    overlap = row.overlap
    assert overlap.presence == presence
    np.testing.assert_equal((overlap.dice, overlap.iou, overlap.precision, overlap.recall), (value,) * 4)
    diagonal = 5.0 if spacing is None else np.hypot(6.0, 2.0)
    worst = {"both empty": np.nan, "both": 0.0}.get(presence, diagonal)
    np.testing.assert_allclose((row.distance.hd95, row.distance.asd), (worst, worst))


def test_f42_counts_of_empty_masks_stand_beside_the_means():
    none, head = np.zeros(SHAPE, np.uint8), np.ones(SHAPE, np.uint8)
    summary = summary_of(score_all([none, none, head, head], [none, head, none, head]))
    found = summary.classes["head"]
    assert (found.n_cases, found.empty) == (4, EmptyMasks(1, 1, 1))
    assert found.dice == pytest.approx(1 / 3)
    assert found.distance.hd95 == pytest.approx(2 / 3 * np.hypot(*SHAPE))
    body = summary.classes["body"]
    assert np.isnan(body.dice) and body.empty.n_both_empty == 4
    assert summary.overall.dice == found.dice, "a class that is nowhere has no part in the mean over classes"
    assert "not applicable" in summary.policy


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose test cases are one with an empty mask and one without."""
    folder = tmp_path_factory.mktemp("empty")
    data = write_tiny(folder / "data")
    write_mask(data / "masks" / "field002.png", np.zeros((32, 32), np.uint8))
    assert command("train", data, "--out", folder / "run", *FLAGS) == 0
    return folder / "run"


def calling_every_pixel(run, label):
    """Change the weights so that the network says one class everywhere."""
    tensors, facts = load_checkpoint(run / WEIGHTS)
    tensors["head.weight"] = torch.zeros_like(tensors["head.weight"])
    tensors["head.bias"] = torch.tensor([10.0 * (label == 0), 10.0 * (label == 1)])
    save_checkpoint(run / WEIGHTS, tensors, {"step": facts["step"]})


@pytest.mark.parametrize(("label", "missed", "wrong", "empty"), [(0, 1, 0, 1), (1, 0, 1, 0)])
def test_f42_command_line_and_page_print_the_counts_and_the_policy(run, tmp_path, capsys, label, missed, wrong, empty):
    copy = shutil.copytree(run, tmp_path / "run")
    calling_every_pixel(copy, label)
    assert command("evaluate", copy) == 0 and command("report", copy) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("trivial")[1].split() == ["missed", "false", "positive", "both", "empty"]
    assert lines[1].split()[-3:] == [str(missed), str(wrong), str(empty)]
    page = (copy / "report.html").read_text()
    assert f"<td>{missed}</td><td>{wrong}</td><td>{empty}</td></tr>" in page
    for text in ("\n".join(lines), page):
        assert "not applicable" in text and "the diagonal of the image" in text
    overall = read(copy / "metrics.json")["overall"]
    assert (overall["n_missed"], overall["n_false_positive"], overall["n_both_empty"]) == (missed, wrong, empty)
    assert overall["hd95"] >= np.hypot(32, 32) / 2 - 1e-9


@given(st.lists(st.tuples(MASKS, MASKS), min_size=1, max_size=5))
@settings(deadline=None, max_examples=80)
def test_f43_shrinking_predictions_to_nothing_never_improves_a_mean(pairs):
    """Class by class and case by case, wherever the reference shows the class; elsewhere it mends a false positive."""
    predictions, references = [p.copy() for p, _ in pairs], [r for _, r in pairs]
    before = summary_of(score_all(predictions, references)).overall
    for prediction, reference in zip(predictions, references):
        for label in (1, 2):
            if not (reference == label).any():
                continue
            prediction[prediction == label] = 0
            after = summary_of(score_all(predictions, references)).overall
            for name in ("dice", "iou", "precision", "recall"):
                assert getattr(after, name) <= getattr(before, name) + 1e-12
            assert after.distance.hd95 >= before.distance.hd95 - 1e-12
            assert after.distance.asd >= before.distance.asd - 1e-12
            before = after


@given(MASKS, MASKS, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=80)
def test_f43_taking_right_pixels_away_one_by_one_never_improves_dice(prediction, reference, order):
    prediction = prediction.copy()
    places = np.argwhere((prediction == reference) & (reference > 0)).tolist()
    order.shuffle(places)
    dice = [o.dice for o in overlap(prediction, reference, 3)]
    for place in places:
        label = reference[tuple(place)]
        prediction[tuple(place)] = 0
        now = [o.dice for o in overlap(prediction, reference, 3)]
        assert now[label - 1] < dice[label - 1]
        dice = now


# Spacing


def random_mask(rng, shape, share):
    field = ndimage.gaussian_filter(rng.standard_normal(shape), 1.0)
    return field > np.quantile(field, 1 - share)


@pytest.mark.parametrize("seed", range(6))
def test_f44_distances_in_mm_equal_brute_force_and_differ_from_pixels(seed):
    rng = np.random.default_rng(seed)
    spacing = (0.5, 0.5, 2.0)
    prediction, reference = random_mask(rng, (9, 8, 7), 0.3), random_mask(rng, (9, 8, 7), 0.1)
    (row,) = score_case("a", None, prediction.astype(np.uint8), reference.astype(np.uint8), NAMES[:2], spacing)
    (pixel,) = score_case("a", None, prediction.astype(np.uint8), reference.astype(np.uint8), NAMES[:2], None)
    mm, px = row.distance, pixel.distance
    np.testing.assert_allclose((mm.hd95, mm.asd), all_pairs(prediction, reference, spacing), atol=1e-6)
    np.testing.assert_allclose((px.hd95, px.asd), all_pairs(prediction, reference, (1, 1, 1)), atol=1e-6)
    assert mm.hd95 != px.hd95 and (mm.unit, px.unit) == ("mm", "px")


def test_f44_a_known_distance_has_the_known_length():
    a, b = np.zeros((2, 9, 9, 9), bool)
    a[4, 4, 2], b[4, 4, 5] = True, True
    assert surface_distance(a, b, (0.5, 0.5, 2.0)) == SurfaceDistance(6.0, 6.0, "mm")
    assert surface_distance(a, b) == SurfaceDistance(3.0, 3.0, "px")


def test_f44_the_table_of_a_run_is_in_mm_where_the_files_state_a_spacing(tmp_path):
    """From NIfTI files to metrics.csv; the same pixels in files without spacing give px."""
    data = write_tiny(tmp_path / "data", dims=3, count=4, test=(2,), unmasked=())
    spacing = (0.5, 0.5, 2.0)
    for path in sorted(data.glob("*/*.nii.gz")):
        write_image(path, read_raster(path).pixels, spacing)
    flags = ("--labels", "2", "--size", "16", "--widths", "4", "8", "--net.dropout", "0", "0", "--batch", "2")
    assert command("train", data, "--out", tmp_path / "run", *flags, "--steps", "2") == 0
    assert command("evaluate", tmp_path / "run") == 0
    (row,) = COLUMNS.from_csv((tmp_path / "run" / "metrics.csv").read_text())
    assert row.distance.unit == "mm" and read(tmp_path / "run" / "metrics.json")["overall"]["unit"] == "mm"
    masks = [
        read_raster(tmp_path / "run" / "predictions" / "field002.nii.gz"),
        read_raster(data / "masks" / "field002.nii.gz"),
    ]
    assert masks[0].spacing == pytest.approx(spacing)
    one, other = (np.array(surface_pixels(mask.pixels[0] > 0)) * spacing for mask in masks)
    apart = cdist(one, other)
    expected = max(np.percentile(apart.min(axis=axis), 95) for axis in (0, 1))
    assert row.overlap.presence == "both" and row.distance.hd95 == pytest.approx(expected, abs=1e-6)


# Agreement with other libraries, on 500 random masks


@pytest.fixture(scope="module")
def masks():
    """500 pairs of masks with up to two classes; some are empty on one side or on both."""
    rng = np.random.default_rng(45)
    pairs = np.zeros((2, 500, 12, 10), np.uint8)
    for index in range(500):
        for side in range(2):
            for label in (1, 2):
                if rng.random() < 0.85:
                    pairs[side, index][random_mask(rng, (12, 10), rng.uniform(0.03, 0.4))] = label
    return pairs


def values_of(row):
    """Dice, IoU, HD95, ASD of a row."""
    return row.overlap.dice, row.overlap.iou, row.distance.hd95, row.distance.asd


@pytest.fixture(scope="module")
def ours(masks):
    """Dice, IoU, HD95, ASD of each pair and class: `(500, 2, 4)`; and where the class is in both masks."""
    rows = [score_case("a", None, p, r, NAMES, None) for p, r in zip(*masks)]
    values = np.array([[values_of(row) for row in pair] for pair in rows])
    presence = np.array([[row.overlap.presence for row in pair] for pair in rows])
    assert {"both", "missed", "false positive", "both empty"} == set(presence.ravel())
    return values, presence


def one_hot(masks):
    return torch.from_numpy(np.stack([masks == label for label in range(3)], axis=1))


def test_f45_all_equal_brute_force(masks, ours):
    values, presence = ours
    for index, (prediction, reference) in enumerate(zip(*masks)):
        for label in (1, 2):
            found = overlap(prediction, reference, 3)[label - 1]
            assert (found.tp, found.fp, found.fn) == count(prediction, reference, label)
            np.testing.assert_allclose(
                values[index, label - 1, :2], measures(prediction, reference, label)[:2], atol=1e-12
            )
            if presence[index, label - 1] == "both":
                expected = all_pairs(prediction == label, reference == label, (1.0, 1.0))
                np.testing.assert_allclose(values[index, label - 1, 2:], expected, atol=1e-6)


def test_f45_overlap_equals_scipy_where_the_class_is_on_both_sides(masks, ours):
    values, presence = ours
    for index, label in np.argwhere(presence == "both").tolist():
        p, r = (side[index].ravel() == label + 1 for side in masks)
        expected = (1 - scipy_distance.dice(p, r), 1 - scipy_distance.jaccard(p, r))
        np.testing.assert_allclose(values[index, label, :2], expected, atol=1e-6)


def test_f45_torchmetrics_agrees_but_for_empty_masks(masks, ours):
    from torchmetrics.functional.segmentation import dice_score, mean_iou

    values, presence = ours
    prediction, reference = (torch.from_numpy(side.astype(np.int64)) for side in masks)
    given = {"num_classes": 3, "include_background": False, "input_format": "index"}
    dice = dice_score(prediction, reference, average="none", **given).numpy()
    iou = mean_iou(prediction, reference, per_class=True, **given).numpy()
    both, absent = presence == "both", presence == "both empty"
    np.testing.assert_allclose(dice[both], values[both, 0], atol=1e-6)
    np.testing.assert_allclose(iou[both], values[both, 1], atol=1e-6)
    one_side = ~both & ~absent
    assert (dice[one_side] == 0).all() and (iou[one_side] == 0).all() and (values[one_side, :2] == 0).all()
    # docs/metrics.md lists the disagreement: IoU of two empty masks is -1 there.
    assert np.isnan(dice[absent]).all() and (iou[absent] == -1).all() and np.isnan(values[absent, :2]).all()


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.5, 2.0)])
def test_f45_monai_agrees_but_for_empty_masks(masks, spacing):
    """On 150 of the pairs: MONAI takes 25 ms for one."""
    from monai.metrics import compute_average_surface_distance, compute_dice, compute_hausdorff_distance, compute_iou

    masks = masks[:, :150]
    prediction, reference = (one_hot(side).float() for side in masks)
    rows = [score_case("a", None, p, r, NAMES, spacing) for p, r in zip(*masks)]
    values = np.array([[values_of(row) for row in pair] for pair in rows])
    presence = np.array([[row.overlap.presence for row in pair] for pair in rows])
    options = {"include_background": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI warns of each empty mask
        found = np.stack(
            [
                compute_dice(prediction, reference, **options),
                compute_iou(prediction, reference, **options),
                compute_hausdorff_distance(prediction, reference, percentile=95, spacing=spacing, **options),
                compute_average_surface_distance(prediction, reference, symmetric=True, spacing=spacing, **options),
            ],
            axis=-1,
        )
    both = presence == "both"
    np.testing.assert_allclose(found[both], values[both], rtol=1e-6, atol=1e-6)
    missed, positive = presence == "missed", presence == "false positive"
    assert both.any() and missed.any() and positive.any() and (presence == "both empty").any()
    # docs/metrics.md lists the disagreements: a false positive has no Dice there, and neither has a distance.
    assert (found[missed][:, :2] == 0).all() and np.isnan(found[positive][:, :2]).all()
    assert not np.isfinite(found[missed | positive][:, 2:]).any()
    assert (values[missed | positive][:, :2] == 0).all() and (values[missed | positive][:, 2:] > 0).all()


# Intervals

POPULATIONS = {
    "10 cases, beta(8, 2)": (lambda rng: (rng.beta(8, 2, 10), None), 0.8),
    "10 cases, beta(9, 1)": (lambda rng: (rng.beta(9, 1, 10), None), 0.9),
    "10 cases, beta(2, 1/2)": (lambda rng: (rng.beta(2, 0.5, 10), None), 0.8),
    "20 cases, beta(8, 2)": (lambda rng: (rng.beta(8, 2, 20), None), 0.8),
    "80 cases, beta(9, 1)": (lambda rng: (rng.beta(9, 1, 80), None), 0.9),
    "80 cases, a tenth missed": (lambda rng: (np.where(rng.random(80) < 0.1, 0, rng.beta(8, 2, 80)), None), 0.72),
    "20 cases, two classes": (lambda rng: (two_classes(rng, 20), None), 0.75),
    "20 patients, 5 cases each": (lambda rng: patients(rng, 20, 5), 0.7),
    "10 patients, 1 to 8 cases": (lambda rng: patients(rng, 10, (1, 2, 3, 4, 5, 6, 7, 8, 3, 5)), 0.7),
}


def two_classes(rng, count):
    """The second class is rarer: it is in seven cases of ten."""
    values = np.column_stack([rng.beta(8, 2, count), rng.beta(7, 3, count)])
    values[rng.random(count) > 0.7, 1] = np.nan
    return values


def patients(rng, count, cases):
    names = np.repeat(np.arange(count), cases)
    level = rng.normal(0.7, 0.1, count)
    return level[names] + rng.normal(0, 0.02, len(names)), [str(name) for name in names]


def coverage(trials, draw, truth, seed):
    rng = np.random.default_rng(seed)
    intervals = [bootstrap_interval(*draw(rng), rng, resamples=1000) for _ in range(trials)]
    return np.mean([low <= truth <= high for low, high in intervals])


@pytest.mark.parametrize("population", POPULATIONS)
def test_f46_95_percent_intervals_cover_the_mean_of_a_known_population(population):
    draw, truth = POPULATIONS[population]
    share = coverage(
        500 if population.startswith("80 ") else 1000, draw, truth, seed=46
    )  # each takes four times as long
    print(population, share)
    assert 0.92 <= share <= 0.98


def test_f46_an_interval_over_the_cases_of_few_patients_would_be_too_narrow():
    """Why groups are resampled whole."""
    assert coverage(200, lambda rng: (patients(rng, 20, 5)[0], None), 0.7, seed=1) < 0.8


def test_f46_fewer_than_ten_cases_are_warned_of_on_command_line_and_page(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "run")
    assert command("evaluate", copy) == 0 and command("report", copy) == 0
    said = "Only 2 test groups: the interval over them is itself uncertain"
    assert f"warning: {said}" in capsys.readouterr().out and said in (copy / "report.html").read_text()


def test_f46_a_single_run_says_that_its_interval_is_over_cases_only(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "run")
    assert command("evaluate", copy) == 0 and command("report", copy) == 0
    assert "One run, one seed: the interval is over test cases only" in capsys.readouterr().out
    assert "one run with one seed</b> (0)" in (copy / "report.html").read_text()


# Two runs on the same cases


MANY = 10**6
"""Times the pixels that a picture has, so that every Dice can be had."""


def write_run(folder, dice, groups=None, label="cell", pixels=1000 * MANY, area=200 * MANY, unit="px"):
    """A measured run folder with one class: only what `compare` reads."""
    folder.mkdir(parents=True)
    rows = [
        CaseScore(
            case=f"case{n:03}",
            group=groups[n] if groups else "",
            label=label,
            overlap=overlap_of(value, area),
            distance=SurfaceDistance(10 * (1 - value), 1 - value, unit),
            pixels=pixels,
        )
        for n, value in enumerate(dice)
    ]
    (folder / "metrics.csv").write_text(COLUMNS.to_csv(rows))
    (folder / "config.toml").write_text("seed = 0\n")
    return folder


def scores(count=40, gain=0.0, seed=0):
    rng = np.random.default_rng(seed)
    base = rng.beta(6, 3, count)
    return base, np.clip(base + gain + rng.normal(0, 0.03, count), 0, 1)


def test_f47_the_better_run_is_named_with_interval_and_p_value_in_points(tmp_path, capsys):
    base, better = scores(gain=0.04)
    a, b = write_run(tmp_path / "a", better), write_run(tmp_path / "b", base)
    assert command("compare", a, b) == 0
    shown = capsys.readouterr().out
    expected = 100 * np.mean(better - base)
    assert shown.startswith(f"A is better by {expected:.1f} Dice points (") and "on these 40 cases." in shown
    assert "warning: One seed each" in shown
    assert command("compare", b, a, "--json") == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree["verdict"] == "B better"
    found = tree["overall"]["dice"]
    assert found["mean"] == pytest.approx(-expected / 100) and found["low"] < found["mean"] < found["high"] < 0
    assert found["p_value"] < 0.001 and (found["n_pairs"], found["n_left_out"]) == (40, 0)
    assert tree["overall"]["hd95"]["mean"] > 0 and tree["overall"]["iou"]["mean"] < 0 and tree["n_units"] == 40


def test_f47_runs_that_do_not_differ_are_said_not_to_and_the_cases_are_counted(tmp_path, capsys):
    base, other = scores(gain=0.0)
    base[3] = other[3] = np.nan
    assert command("compare", write_run(tmp_path / "a", base), write_run(tmp_path / "b", other)) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("No difference that these 40 cases can show: ") and " 39         1" in shown


def test_f47_the_larger_uncertainty_of_patients_is_taken(tmp_path, capsys):
    """Five patients, all of whose images gain or lose together: 40 images are no proof."""
    base, _ = scores()
    groups = [f"p{n % 5}" for n in range(40)]
    gain = np.array([0.08, 0.05, -0.03, 0.06, -0.01])[np.arange(40) % 5]
    alone = command("compare", write_run(tmp_path / "a", base * 0.8 + gain), write_run(tmp_path / "b", base * 0.8))
    assert alone == 0 and capsys.readouterr().out.startswith("A is better by 3.0")
    a, b = (write_run(tmp_path / f"{n}g", base * 0.8 + change, groups) for n, change in (("a", gain), ("b", 0)))
    assert command("compare", a, b) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("Cannot tell: with 5 groups")
    assert "warning: Only 5 groups to compare on" in shown


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"count": 38}, "2 of 40 cases are on one side only: case038, case039"),
        ({"label": "nerve"}, "classes cell against nerve"),
        ({"unit": "mm"}, "other units of distance in case000"),
        ({"pixels": 900 * MANY}, f"{200 * MANY} of {1000 * MANY} pixels are cell against {200 * MANY} of {900 * MANY}"),
        ({"area": 210 * MANY}, f"{200 * MANY} of {1000 * MANY} pixels are cell against {210 * MANY} of {1000 * MANY}"),
        ({"groups": [f"p{n}" for n in range(40)]}, "other groups (patients) in case000"),
    ],
)
def test_f47_unpaired_runs_are_refused_by_name(tmp_path, capsys, change, found):
    base, other = scores()
    other = other[: change.pop("count", 40)]
    a, b = write_run(tmp_path / "a", base), write_run(tmp_path / "b", other, **change)
    assert command("compare", a, b) == 2
    shown = capsys.readouterr().err
    assert found in shown and str(a) in shown and "so that the cases are pairs" in shown


def test_f47_a_run_that_was_not_measured_is_refused(tmp_path, capsys):
    a, b = write_run(tmp_path / "a", scores()[0]), write_run(tmp_path / "b", scores()[1])
    (b / "metrics.csv").unlink()
    assert command("compare", a, b) == 2
    assert "not measured yet" in capsys.readouterr().err


def test_f47_by_chance_alone_one_comparison_in_twenty_finds_a_difference():
    """Both conditions of the verdict, on 400 pairs of equal runs over 12 cases."""
    rng = np.random.default_rng(47)
    wrong = 0
    for _ in range(400):
        base = rng.beta(6, 3, 12)
        one, other = (base + rng.normal(0, 0.05, 12) for _ in range(2))
        found = paired_difference(one - other, None, rng)
        wrong += found.p_value < 0.05 and found.low * found.high > 0
    assert 0.02 <= wrong / 400 <= 0.08
