"""Directions of axes and spacings that differ between the cases of one set, as those of several scanners do."""

from collections import defaultdict
from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Float

APART = 1.1
"""Ratio of the largest to the smallest spacing along an axis from which there is a warning."""
LISTED = 4
Place = tuple[tuple[float, ...] | None, str]
"""Spacing in mm along each axis, None if unknown, and where the axes point (`RAS`), empty if unknown."""


def direction_of(affine: Float[np.ndarray, "4 4"] | None) -> str:
    """The letters of NIfTI for where the axes of an affine point: right or left, front or back, up or down."""
    if affine is None:
        return ""
    from nibabel.orientations import aff2axcodes  # with nibabel come pydicom and half a second

    return "".join(code or "?" for code in aff2axcodes(affine))


def differences(places: Mapping[str, Place]) -> Iterator[tuple[str, str, str]]:
    """Say what was found, expected and can be done where cases, by their ids, lie in space in several ways."""
    directions, spacings = defaultdict(list), defaultdict(list)
    for name, (spacing, direction) in places.items():
        if direction:
            directions[direction].append(name)
        if spacing:
            spacings[" x ".join(f"{length:.3g}" for length in spacing) + " mm"].append(name)
    if len(directions) > 1:
        fix = "bring them to one direction, for instance with nibabel.as_closest_canonical, masks as well"
        yield f"axes of {len(directions)} directions: {_listed(directions)}", "the same direction in all cases", fix
    lengths = [spacing for spacing, _ in places.values() if spacing]
    if len({len(spacing) for spacing in lengths}) == 1 and np.ptp(np.log(lengths), axis=0).max() > np.log(APART):
        fix = "resample them to one spacing, masks as well: patches are cut at each file's own resolution"
        yield f"{len(spacings)} spacings: {_listed(spacings)}", f"equal spacings, to {APART:g} times", fix


def _listed(kinds: Mapping[str, list[str]]) -> str:
    """The most frequent kinds, each with the number of its cases and one of them."""
    ranked = sorted(kinds.items(), key=lambda kind: -len(kind[1]))
    parts = [f"{kind} ({len(names)} cases, such as {names[0]})" for kind, names in ranked[:LISTED]]
    return ", ".join(parts) + (f" and {len(kinds) - LISTED} more" if len(kinds) > LISTED else "")
