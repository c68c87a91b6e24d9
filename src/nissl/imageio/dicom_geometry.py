"""Where the slices of a volume lie: their order, their distance, and the affine that NIfTI would give them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from nissl.imageio.raster import UnusableError

EXPECTED = "slices of one series, one behind the other at equal distances"
ALIKE, EVEN, STRAIGHT = 1e-3, 0.05, 0.1
"""Tolerances: of directions and pixel spacing (relative), of slice distances (relative), of tilt (in pixels)."""


@dataclass(frozen=True)
class Slice:
    """One image plane as its header describes it; lengths in mm, in the patient coordinates of DICOM."""

    where: str
    """Which one it is, in words that name no file."""
    corner: tuple[float, ...]
    direction: tuple[float, ...]
    """Of a row (growing column), then of a column (growing row)."""
    spacing: tuple[float, ...]
    """Between rows, then between columns."""
    slope: float
    intercept: float


@dataclass(frozen=True)
class Grid:
    """A volume in space: which slice comes where, and the affine of x, y, z in the convention of NIfTI."""

    order: tuple[int, ...]
    spacing: tuple[float, ...]
    affine: Float[np.ndarray, "4 4"]


def stacked(planes: Sequence[Slice]) -> Grid | None:
    """Put slices in the order of their positions; None where no slice states one.

    Raises:
        UnusableError: slices that are not parallel, missing, double, or shifted against each other.

    """
    if not any(plane.corner and plane.direction for plane in planes):
        return None
    first = planes[0]
    for plane in planes:
        if not (plane.corner and plane.direction and plane.spacing):
            found = f"{plane.where} states no position, direction or pixel spacing"
            raise UnusableError(found, EXPECTED, "remove it, or export the series again")
        same = np.allclose(plane.direction, first.direction, rtol=0, atol=ALIKE)
        if not same or not np.allclose(plane.spacing, first.spacing, rtol=ALIKE, atol=0):
            what = "pixel spacing" if same else "direction"
            fix = "keep one orientation in a folder: localisers and reformatted views are series of their own"
            raise UnusableError(f"{plane.where} differs from {first.where} in its {what}", EXPECTED, fix)
    along_row, along_column = np.array(first.direction[:3]), np.array(first.direction[3:])
    lengths = (along_row @ along_row, along_column @ along_column, 1 + along_row @ along_column)
    if not np.allclose(lengths, 1, rtol=0, atol=ALIKE):
        raise UnusableError(f"{first.where}: rows and columns that do not stand upright on each other", EXPECTED)
    normal = np.cross(along_row, along_column)
    corners = np.array([plane.corner for plane in planes])
    depths = corners @ normal
    order = np.argsort(depths, kind="stable")
    _require_even(np.diff(depths[order]), [planes[index].where for index in order])
    step = (corners[order[-1]] - corners[order[0]]) / (len(planes) - 1)
    sideways = np.linalg.norm(step - (step @ normal) * normal) * (len(planes) - 1)
    if not sideways <= STRAIGHT * min(first.spacing):
        found = f"a tilted stack: its last slice lies {sideways:.3g} mm beside its first"
        fix = "convert the series to NIfTI with a tool that undoes the tilt, such as dcm2niix"
        raise UnusableError(found, EXPECTED, fix)
    affine = np.eye(4)
    affine[:3] = np.stack([along_row * first.spacing[1], along_column * first.spacing[0], step, corners[order[0]]], 1)
    affine[:2] *= -1  # DICOM counts to the left and to the back, NIfTI to the right and to the front
    spacing = (first.spacing[1], first.spacing[0], float(np.linalg.norm(step)))
    return Grid(tuple(order.tolist()), spacing, affine)


def _require_even(gaps: Float[np.ndarray, "gaps"], places: Sequence[str]) -> None:
    """Refuse two slices at one position and a gap where slices are missing."""
    usual = float(np.median(gaps))
    double = np.flatnonzero(~(gaps > EVEN * usual))
    if double.size:
        one, other = places[double[0] :][:2]
        found = f"two slices at one position: {one} and {other}"
        fix = "give each time point, echo or segment a folder of its own, or remove the copy"
        raise UnusableError(found, EXPECTED, fix)
    uneven = np.flatnonzero(np.abs(gaps - usual) > EVEN * usual)
    if uneven.size:
        one, other = places[uneven[0] :][:2]
        found = f"slices {gaps[uneven[0]]:.4g} mm apart ({one} and {other}), where {usual:.4g} mm is usual"
        raise UnusableError(found, EXPECTED, "add the missing slices, or resample the series to equal distances")
