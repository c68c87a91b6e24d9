"""What the network's size keeps of a mask, against counting pixel by pixel."""

import numpy as np
import pytest

from nissl.data.resizing import kept, loss, resize_mask


def spots(count, side=200, radius=1, seed=0):
    """Mask of squares that do not touch."""
    mask = np.zeros((side, side), np.uint8)
    places = np.stack(np.mgrid[5 : side - 5 : 10, 5 : side - 5 : 10], -1).reshape(-1, 2)
    for r, c in np.random.default_rng(seed).permutation(places)[:count]:
        mask[r - radius : r + radius + 1, c - radius : c + radius + 1] = 1
    return mask


@pytest.mark.parametrize("size", [(40, 40), (64, 50), (150, 300)])
def test_structures_and_dice_are_those_of_a_count_pixel_by_pixel(size):
    mask = spots(60)
    small = np.array([[mask[int((r + 0.5) * 200 / size[0]), int((c + 0.5) * 200 / size[1])] for c in range(size[1])]
                      for r in range(size[0])])  # fmt: skip
    np.testing.assert_array_equal(resize_mask(mask, size), small)
    back = np.array([[small[int((r + 0.5) * size[0] / 200), int((c + 0.5) * size[1] / 200)] for c in range(200)]
                     for r in range(200)])  # fmt: skip
    seen = 0
    for r, c in zip(*np.nonzero(mask), strict=True):
        if mask[r - 1 : r + 1, c - 1 : c + 1].sum() == 1:  # the first pixel of a square
            rows, columns = (np.floor((np.arange(n) + 0.5) * 200 / n) for n in size)
            seen += ((rows >= r) & (rows < r + 3)).any() and ((columns >= c) & (columns < c + 3)).any()
    found = kept(mask, size)
    assert (found.structures, found.seen) == (60, seen)
    assert found.dice == pytest.approx(2 * (mask & back).sum() / (mask.sum() + back.sum()))


def test_a_line_on_the_diagonal_is_one_structure_and_classes_that_touch_are_one():
    assert kept(np.eye(50, dtype=np.uint8), (20, 20)).structures == 1
    assert kept(np.repeat(np.uint8([0, 1, 2, 0]), 10)[None].repeat(40, 0), (20, 20)).structures == 1


def test_nothing_is_measured_where_nothing_can_be_lost():
    assert kept(np.zeros((50, 50), np.uint8), (20, 20)) is None
    assert kept(np.ones((20, 20), np.uint8), (20, 40)) is None
    assert not [*loss([None, None]), *loss([])]


def test_little_loss_is_not_told_and_much_is_with_its_numbers():
    assert not [*loss([kept(spots(10, radius=4), (150, 150))])]
    small = [kept(spots(60, seed=seed), (25, 25)) for seed in range(3)]
    ((found, _, fix),) = loss([*small, None])
    assert f"{sum(mask.structures - mask.seen for mask in small)} of 180 structures in 3 masks" in found
    assert f"{np.mean([mask.dice for mask in small]):.2f}" in found
    assert "--data.sampling patches" in fix and "--size" in fix
