import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tests.references.overlap import count, measures

from nissl.metrics.overlap import Overlap, overlap, pooled

CLASSES = 4
MASK_PAIRS = st.sampled_from([(1,), (7,), (5, 6), (3, 4, 2)]).flatmap(
    lambda shape: st.tuples(*[arrays(np.uint8, shape, elements=st.integers(0, CLASSES - 1)) for _ in range(2)])
)


@given(MASK_PAIRS)
@settings(deadline=None, max_examples=300)
def test_counts_and_measures_equal_a_loop_over_pixels(pair):
    prediction, reference = pair
    for label, found in enumerate(overlap(prediction, reference, CLASSES), start=1):
        assert (found.tp, found.fp, found.fn) == count(prediction, reference, label)
        np.testing.assert_allclose(
            (found.dice, found.iou, found.precision, found.recall), measures(prediction, reference, label), atol=1e-12
        )


def test_large_images_do_not_wrap_in_small_integers():
    whole = np.ones((300, 300), np.uint8)
    (found,) = overlap(whole, whole, 2)
    assert (found.tp, found.fp, found.fn) == (90_000, 0, 0)
    many = np.full((4, 4), 250, np.uint8)
    assert overlap(many, many, 251)[-1] == Overlap(16, 0, 0)


@given(st.lists(MASK_PAIRS, min_size=1, max_size=4))
@settings(deadline=None, max_examples=50)
def test_pooled_is_the_overlap_of_all_pixels_in_one_row(pairs):
    rows = [overlap(prediction, reference, CLASSES) for prediction, reference in pairs]
    together = overlap(*(np.concatenate([pair[side].ravel() for pair in pairs]) for side in (0, 1)), CLASSES)
    assert tuple(pooled(row[label] for row in rows) for label in range(CLASSES - 1)) == together


def test_masks_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\)"):
        overlap(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8), 2)
    with pytest.raises(ValueError, match=r"value 7.*2 classes"):
        overlap(np.full((2, 2), 7, np.uint8), np.zeros((2, 2), np.uint8), 2)
