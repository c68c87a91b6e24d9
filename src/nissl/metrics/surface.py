"""Distance between the surfaces of two masks, in mm where the spacing is known and in pixels where it is not."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

# MONAI 1.6.1 was the first choice here (get_edge_surface_distance). Measured on one core: it computes in float32, so a
# distance of 100 mm is known to 8e-6 mm only, and it takes 3.9 ms against 1.9 ms below at 128 x 128, after an import of
# 2.4 s; its bare metrics turn the HD95 of a complete miss into the best value. Hence scipy, in float64.


Unit = Literal["mm", "px", "mixed"]


@dataclass(frozen=True)
class SurfaceDistance:
    """Distances between two surfaces, or their means over cases."""

    hd95: float
    """The larger of the two directed 95th percentiles (linear interpolation between the order statistics)."""
    asd: float
    """Average symmetric surface distance: mean over the pixels of both surfaces together."""
    unit: Unit
    """`mm` where the image states its spacing, else `px`; `mixed` where some images do."""


def surface_distance(
    prediction: Bool[np.ndarray, "*space"],
    reference: Bool[np.ndarray, "*space"],
    spacing: tuple[float, ...] | None = None,
) -> SurfaceDistance:
    """Measure how far the surfaces of two masks are apart.

    The surface is the pixels of the mask with a neighbour along an axis that is not in it, or is outside the image;
    distances are between pixel centres. Empty masks as in `Overlap`: neither present gives nan, one absent gives the
    diagonal of the image, which no distance exceeds. The spacing is that of the pixels along each axis, in mm; without
    it the unit is pixels.
    """
    steps = spacing or (1.0,) * reference.ndim
    unit: Unit = "mm" if spacing else "px"
    if not prediction.any() and not reference.any():
        return SurfaceDistance(float("nan"), float("nan"), unit)
    if not prediction.any() or not reference.any():
        worst = float(np.linalg.norm(np.multiply(reference.shape, steps)))
        return SurfaceDistance(worst, worst, unit)
    window = _bounds(prediction | reference)
    there, back = _directed(prediction[window], reference[window], steps)
    hd95 = max(np.percentile(there, 95), np.percentile(back, 95))
    return SurfaceDistance(float(hd95), float(np.concatenate([there, back]).mean()), unit)


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
