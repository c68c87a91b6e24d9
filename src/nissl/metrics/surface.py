"""Distance between the surfaces of two masks, in mm where the spacing is known and in pixels where it is not."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

# MONAI 1.6.1 was the first choice here (get_edge_surface_distance). Measured on one core: it computes in float32, so a
# distance of 100 mm is known to 8e-6 mm only, and it takes 3.9 ms against 1.9 ms below at 128 x 128, after an import of
# 2.4 s; its bare metrics turn the HD95 of a complete miss into the best value. Hence scipy, in float64.


class SurfaceDistance(NamedTuple):
    """Distances between two surfaces, in the unit of the spacing."""

    hd95: float
    """The larger of the two directed 95th percentiles (linear interpolation between the order statistics)."""
    asd: float
    """Average symmetric surface distance: mean over the pixels of both surfaces together."""


def surface_distance(
    prediction: Bool[np.ndarray, "*space"],
    reference: Bool[np.ndarray, "*space"],
    spacing: tuple[float, ...] | None = None,
) -> SurfaceDistance:
    """Measure how far the surfaces of two masks are apart.

    The surface is the pixels of the mask with a neighbour along an axis that is not in it, or is outside the image;
    distances are between pixel centres. Empty masks as in `Overlap`: neither present gives nan, one absent gives the
    diagonal of the image, which no distance exceeds.

    Args:
        prediction: pixels of one class.
        reference: the same, of the same shape.
        spacing: distance of neighbouring pixels along each axis in mm; without it the unit is pixels.

    """
    steps = spacing or (1.0,) * reference.ndim
    if not prediction.any() and not reference.any():
        return SurfaceDistance(float("nan"), float("nan"))
    if not prediction.any() or not reference.any():
        worst = float(np.linalg.norm(np.multiply(reference.shape, steps)))
        return SurfaceDistance(worst, worst)
    window = _bounds(prediction | reference)
    there, back = _directed(prediction[window], reference[window], steps)
    hd95 = max(np.percentile(there, 95), np.percentile(back, 95))
    return SurfaceDistance(float(hd95), float(np.concatenate([there, back]).mean()))


def _directed(
    prediction: Bool[np.ndarray, "*space"], reference: Bool[np.ndarray, "*space"], spacing: tuple[float, ...]
) -> tuple[Float[np.ndarray, "predicted"], Float[np.ndarray, "reference"]]:
    """From each pixel of one surface to the nearest of the other, both ways."""
    from scipy.ndimage import binary_erosion, distance_transform_edt

    surfaces = [mask & ~binary_erosion(mask) for mask in (prediction, reference)]
    to_prediction, to_reference = (distance_transform_edt(~surface, sampling=spacing) for surface in surfaces)
    return to_reference[surfaces[0]], to_prediction[surfaces[1]]


def _bounds(mask: Bool[np.ndarray, "*space"]) -> tuple[slice, ...]:
    """Smallest box around the mask: both surfaces lie in it, so distances in it are the distances."""
    axes = range(mask.ndim)
    lines = [np.flatnonzero(mask.any(axis=tuple(a for a in axes if a != axis))) for axis in axes]
    return tuple(slice(int(line[0]), int(line[-1]) + 1) for line in lines)
