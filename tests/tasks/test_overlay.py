import base64
import io

import numpy as np
import pytest
from PIL import Image

from nissl.tasks.overlay import COLOURS, Masks, colour_of, displayed, draw_overlay

FIRST = colour_of(1)


def pixels(masks):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(draw_overlay(masks).split(",")[1])))).astype(int)


def like(picture, colour, tolerance=60):
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return np.abs(picture - rgb).sum(axis=-1) < tolerance


def box(shape, *slices):
    mask = np.zeros(shape, np.uint8)
    mask[slices] = 1
    return mask


def test_outlines_lie_on_the_edges_of_the_masks():
    shape = (40, 64)
    reference, prediction = box(shape, slice(5, 15), slice(10, 30)), box(shape, slice(20, 35), slice(40, 60))
    picture = pixels(Masks(np.zeros((1, *shape), np.float32), reference, prediction))
    assert picture.shape == (400, 640, 3)
    found, lower = like(picture, FIRST), np.arange(400)[:, None] > 175
    for mask, outline in ((reference, found & ~lower), (prediction, found & lower)):
        rows, columns = np.nonzero(outline)
        inside = np.argwhere(mask)
        assert len(rows) > 100
        np.testing.assert_allclose((rows.min() / 10, columns.min() / 10), inside.min(axis=0), atol=0.5)
        np.testing.assert_allclose((rows.max() / 10, columns.max() / 10), inside.max(axis=0) + 1, atol=0.5)
        middle = np.s_[(rows.min() + rows.max()) // 2, (columns.min() + columns.max()) // 2]
        assert picture[middle].max() < 40


def test_empty_and_full_masks_are_drawn():
    empty, full = np.zeros((32, 32), np.uint8), np.ones((32, 32), np.uint8)
    picture = pixels(Masks(np.zeros((3, 32, 32), np.uint8), full, empty))
    assert like(picture, FIRST, 120)[0].mean() > 0.8, "a solid line along the whole edge"
    assert like(pixels(Masks(np.zeros((3, 32, 32), np.uint8), empty, empty)), FIRST).sum() == 0


def test_each_class_has_a_colour_in_both_masks_and_the_masks_differ_by_line():
    reference, prediction = np.zeros((2, 32, 32), np.uint8)
    for label, left in ((1, 2), (2, 12), (3, 22)):
        reference[2:14, left : left + 8] = label
        prediction[18:30, left : left + 8] = label
    picture = pixels(Masks(np.full((1, 32, 32), 0.5), reference, prediction))
    for label, left in ((1, 2), (2, 12), (3, 22)):
        columns = slice(20 * left + 20, 20 * left + 140)  # the upper edges, without the corners
        drawn, dashed = (
            like(picture[20 * row - 6 : 20 * row + 6, columns], colour_of(label)).any(axis=0) for row in (2, 18)
        )
        assert drawn.mean() > 0.95 and 0.3 < dashed.mean() < 0.8
        others = [colour_of(other) for other in (1, 2, 3) if other != label]
        assert not any(like(picture[:, columns], colour).any() for colour in others)


def test_colours_are_told_apart_in_grey_and_by_those_who_see_no_red_and_green():
    """By the simulation of Viénot, Brettel and Mollon (1999) for protanopes and deuteranopes."""
    rgb = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in COLOURS]) / 255
    seen = {
        "protanopes": np.array([[0.1124, 0.8876, 0], [0.1124, 0.8876, 0], [0.0040, -0.0040, 1]]),
        "deuteranopes": np.array([[0.2928, 0.7072, 0], [0.2928, 0.7072, 0], [-0.0223, 0.0223, 1]]),
    }
    for name, matrix in seen.items():
        shown = (np.clip(rgb**2.2 @ matrix.T, 0, 1)) ** (1 / 2.2)
        apart = np.abs(shown[:, None] - shown).sum(axis=-1) + 9 * np.eye(len(shown))
        assert apart.min() > 0.15, (name, np.unravel_index(apart.argmin(), apart.shape))
    assert len(set(COLOURS)) == len(COLOURS) and colour_of(len(COLOURS) + 1) == colour_of(1)


@pytest.mark.parametrize(("turned", "axis"), [(True, 2), (False, 0)])
def test_the_slice_with_the_largest_reference_is_shown(turned, axis):
    image, reference = np.zeros((1, 20, 20, 20)), np.zeros((20, 20, 20), np.uint8)
    reference[8:12, 8:12, 8:12] = 1
    wide = tuple(slice(13, 14) if a == axis else slice(2, 18) for a in range(3))
    reference[wide] = 1
    image[(0, *wide)] = 1.0
    picture = pixels(Masks(image, reference, np.zeros_like(reference), turned=turned))
    rows, _ = np.nonzero(like(picture, FIRST))
    assert (rows.max() - rows.min()) / 32 == pytest.approx(16, abs=0.5)
    assert picture[320, 320].min() > 200


def test_slices_lie_across_the_widest_spacing_and_keep_their_proportions():
    volume = np.zeros((10, 20, 30), np.uint8)
    picture = pixels(Masks(np.zeros((1, *volume.shape)), volume, volume, (3.0, 1.0, 2.0)))
    assert picture.shape[:2] == (213, 640), "20 x 1 mm by 30 x 2 mm"
    picture = pixels(Masks(np.zeros((1, *volume.shape)), volume, volume, (1.0, 1.0, 2.0), turned=True))
    assert picture.shape[:2] == (640, 320), "the second axis points up"


def test_the_second_axis_of_a_turned_volume_points_up():
    volume = np.zeros((16, 16, 4), np.uint8)
    volume[1:5, 11:15, 2] = 1
    rows, columns = np.nonzero(like(pixels(Masks(np.zeros((1, 16, 16, 4)), volume, volume * 0, turned=True)), FIRST))
    assert rows.max() < 320
    assert columns.max() < 320


def test_large_images_are_thinned():
    mask = np.zeros((2000, 1000), np.uint8)
    mask[500:1500, 250:750] = 1
    picture = pixels(Masks(np.zeros((1, *mask.shape), np.uint16), mask, mask))
    assert picture.shape[:2] == (640, 320)


def test_contrast_of_any_depth_fills_the_range_and_rgb_stays_as_it_is():
    ramp = np.linspace(100, 900, 400).reshape(1, 20, 20)
    for image in (ramp.astype(np.uint16), ramp.astype(np.float32) - 5000):
        shown = displayed(image)
        assert (shown.min(), shown.max()) == (0.0, 1.0)
        assert np.corrcoef(shown.ravel(), ramp.ravel())[0, 1] > 0.999
    rgb = np.random.default_rng(0).integers(0, 256, (3, 5, 6), dtype=np.uint8)
    np.testing.assert_allclose(displayed(rgb), np.moveaxis(rgb, 0, -1) / 255)
    assert np.isfinite(displayed(np.full((1, 4, 4), np.nan))).all()
    assert displayed(np.zeros((5, 4, 4))).shape == (4, 4)
