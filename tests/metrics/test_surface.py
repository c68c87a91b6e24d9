import numpy as np
import pytest
from scipy import ndimage
from tests.references.surface import all_pairs, surface_pixels

from nissl.metrics.surface import SurfaceDistance, surface_distance


def random_mask(rng, shape, share=0.5):
    field = ndimage.gaussian_filter(rng.standard_normal(shape), 1.0)
    return field > np.quantile(field, 1 - share)


@pytest.mark.parametrize(("shape", "spacing"), [((9, 8, 7), (0.5, 0.5, 2.0)), ((13, 17), (0.7, 1.3)), ((13, 17), None)])
@pytest.mark.parametrize("seed", range(6))
def test_distances_equal_all_pairs(shape, spacing, seed):
    rng = np.random.default_rng(seed)
    prediction, reference = random_mask(rng, shape, 0.3), random_mask(rng, shape, 0.1)
    found = surface_distance(prediction, reference, spacing)
    assert found.unit == ("mm" if spacing else "px")
    np.testing.assert_allclose(
        (found.hd95, found.asd), all_pairs(prediction, reference, spacing or (1.0,) * len(shape)), atol=1e-6
    )


@pytest.mark.parametrize("shape", [(6,), (5, 5), (4, 5, 3)])
def test_distance_to_itself_is_zero_and_order_does_not_matter(shape):
    rng = np.random.default_rng(3)
    a, b = random_mask(rng, shape), random_mask(rng, shape, 0.2)
    assert surface_distance(a, a) == SurfaceDistance(0.0, 0.0, "px")
    assert surface_distance(a, b) == surface_distance(b, a)


def test_no_distance_exceeds_that_of_a_miss():
    a, b = np.zeros((2, 7, 11), bool)
    a[0, 0], b[-1, -1] = True, True
    assert surface_distance(a, b).hd95 < surface_distance(a, np.zeros_like(a)).hd95


def test_a_mask_that_fills_the_image_has_the_border_as_surface():
    assert len(surface_pixels(np.ones((5, 5), bool))) == 16
    whole, hole = np.ones((5, 5), bool), np.zeros((5, 5), bool)
    hole[2, 2] = True
    found = surface_distance(hole, whole)
    np.testing.assert_allclose((found.hd95, found.asd), all_pairs(hole, whole, (1.0, 1.0)))
