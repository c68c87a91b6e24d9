"""What is lost where a mask is resized to the network's size: structures, and Dice of even a perfect mask."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

LEAST_SEEN, LEAST_DICE = 0.9, 0.9
"""Fraction of the structures, and mean Dice of perfect masks, below which there is a warning."""


@dataclass(frozen=True)
class Kept:
    """Of one mask: its connected pieces, those with a pixel at the network's size, and its Dice there and back."""

    size: tuple[int, ...]
    structures: int
    seen: int
    dice: float


def resize_mask(mask: UInt8[np.ndarray, "*space"], size: Sequence[int]) -> UInt8[np.ndarray, "*size"]:
    """Resize by taking the nearest pixel."""
    for axis, (old, new) in enumerate(zip(mask.shape, size, strict=True)):
        picks = ((np.arange(new) + 0.5) * old / new).astype(np.intp)
        mask = mask.take(picks, axis)
    return mask


def kept(mask: UInt8[np.ndarray, "*space"], size: Sequence[int]) -> Kept | None:
    """Measure what a size keeps of the foreground of a mask; None where it has none, or no axis becomes shorter."""
    from scipy import ndimage

    foreground = mask > 0
    if not foreground.any() or all(new >= old for new, old in zip(size, mask.shape, strict=True)):
        return None
    pieces, count = ndimage.label(foreground, np.ones((3,) * mask.ndim))
    back = resize_mask(resize_mask(foreground, size), mask.shape)
    dice = 2 * np.count_nonzero(foreground & back) / (np.count_nonzero(foreground) + np.count_nonzero(back))
    seen = np.unique(resize_mask(pieces, size))
    return Kept(tuple(size), count, int(np.count_nonzero(seen)), float(dice))


def loss(masks: Iterable[Kept | None]) -> Iterator[tuple[str, str, str]]:
    """Say what was found, expected and can be done where much is lost."""
    measured = [mask for mask in masks if mask is not None]
    structures, seen = sum(mask.structures for mask in measured), sum(mask.seen for mask in measured)
    dice = float(np.mean([mask.dice for mask in measured])) if measured else 1.0
    if seen < LEAST_SEEN * structures or dice < LEAST_DICE:
        size = f"{' x '.join(map(str, measured[0].size))} pixels"
        found = f"{structures - seen} of {structures} structures in {len(measured)} masks cannot be seen at {size}, "
        found += f"and a perfect mask of that size has Dice {dice:.2f} at full size"
        fix = "add --data.sampling patches, or a larger --size"
        yield found, "structures of two pixels or more at the network's size", fix
