"""Rows of metrics.csv with a Dice that a test asks for."""

import math

from nissl.metrics.overlap import Overlap
from nissl.metrics.surface import SurfaceDistance
from nissl.tasks.scores import CaseScore

REFERENCE = 10**9
"""Pixels of the reference: so many that every Dice can be had."""


def overlap_of(dice, reference=REFERENCE):
    """Counts with this Dice, as many pixels missed as wrongly found; nan: the class is in neither mask."""
    if math.isnan(dice):
        return Overlap(0, 0, 0)
    found = round(dice * reference)
    return Overlap(found, reference - found, reference - found)


def case_score(case, dice, group="", label="gland", distance=1.0, unit="px"):
    """One class in one case."""
    return CaseScore(case, group, label, overlap_of(dice), SurfaceDistance(distance, distance, unit), 4 * REFERENCE)
