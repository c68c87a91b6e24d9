"""Surface distances by all pairs of surface pixels."""

import itertools
import math

import numpy as np


def surface_pixels(mask):
    """Pixels of the mask that have a neighbour along an axis outside of it or of the image."""
    pixels = set(map(tuple, np.argwhere(mask).tolist()))
    found = []
    for pixel in sorted(pixels):
        neighbours = [
            tuple(v + step * (a == axis) for a, v in enumerate(pixel))
            for axis, step in itertools.product(range(mask.ndim), (-1, 1))
        ]
        if any(neighbour not in pixels for neighbour in neighbours):
            found.append(pixel)
    return found


def all_pairs(prediction, reference, spacing):
    """HD95 and average symmetric surface distance of two masks that are not empty."""
    one, other = surface_pixels(prediction), surface_pixels(reference)

    def nearest(start, goals):
        return min(
            math.sqrt(sum(((a - b) * s) ** 2 for a, b, s in zip(start, goal, spacing, strict=True))) for goal in goals
        )

    there = [nearest(pixel, other) for pixel in one]
    back = [nearest(pixel, one) for pixel in other]
    return max(percentile(there, 0.95), percentile(back, 0.95)), math.fsum(there + back) / len(there + back)


def percentile(values, share):
    """Linear interpolation between the order statistics."""
    ordered, position = sorted(values), share * (len(values) - 1)
    low = math.floor(position)
    high = min(low + 1, len(values) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])
