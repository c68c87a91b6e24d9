"""Overlap of two masks: counts, Dice, IoU, precision and recall of one case, and Dice of all pixels together."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import UInt8

Presence = Literal["both", "missed", "false positive", "both empty"]

EMPTY_POLICY = (
    "Empty masks. A class that is neither in the reference nor in the prediction is not applicable: it is left out of "
    "the means and counted. A missed class (only in the reference) and a false positive (only in the prediction) have "
    "Dice, IoU, precision and recall 0, and as surface distance the diagonal of the image, the worst value there is."
)


@dataclass(frozen=True)
class Overlap:
    """Pixel counts of one class in one case: true positive, false positive, false negative.

    Empty masks, the policy of the whole house: a class that is neither in the reference nor in the prediction is not
    applicable (`nan`; left out of the means and counted); a missed class and a false positive have Dice, IoU, precision
    and recall 0 and a surface distance of one image diagonal. So emptying the prediction of a class that is there never
    improves a mean; emptying that of a class that is not there mends a false positive, and takes its 0 out of the mean.
    """

    tp: int
    fp: int
    fn: int

    @property
    def presence(self) -> Presence:
        """Where the class is: in both masks, in the reference or the prediction only, or in neither."""
        prediction = self.tp + self.fp
        if self.reference:
            return "both" if prediction else "missed"
        return "false positive" if prediction else "both empty"

    @property
    def reference(self) -> int:
        """TP + FN: pixels of the class in the reference."""
        return self.tp + self.fn

    @property
    def dice(self) -> float:
        """2 TP / (2 TP + FP + FN)."""
        return self._share(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def iou(self) -> float:
        """TP / (TP + FP + FN)."""
        return self._share(self.tp, self.tp + self.fp + self.fn)

    @property
    def precision(self) -> float:
        """TP / (TP + FP)."""
        return self._share(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """TP / (TP + FN)."""
        return self._share(self.tp, self.tp + self.fn)

    def _share(self, part: int, whole: int) -> float:
        if self.presence == "both":
            return part / whole
        return float("nan") if self.presence == "both empty" else 0.0


def overlap(
    prediction: UInt8[np.ndarray, "*space"], reference: UInt8[np.ndarray, "*space"], classes: int
) -> tuple[Overlap, ...]:
    """Pixel counts of every class but the background (class 0), in the order of the classes.

    Masks hold the class of each pixel; the background counts among the classes.

    Raises:
        ValueError: the shapes differ, or a value is not a class.

    """
    if prediction.shape != reference.shape:
        raise ValueError(f"prediction is {prediction.shape}, reference is {reference.shape}")
    largest = max(int(prediction.max(initial=0)), int(reference.max(initial=0)))
    if largest >= classes:
        raise ValueError(f"a mask has the value {largest}, but there are {classes} classes")
    pairs = reference.astype(np.intp).ravel() * classes + prediction.ravel()
    table = np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)
    both, in_reference, in_prediction = np.diagonal(table), table.sum(axis=1), table.sum(axis=0)
    return tuple(
        Overlap(int(both[c]), int(in_prediction[c] - both[c]), int(in_reference[c] - both[c]))
        for c in range(1, classes)
    )


def pooled(cases: Iterable[Overlap]) -> Overlap:
    """One class over all cases, their pixels taken together; its Dice is the pooled Dice of the papers."""
    rows = list(cases)
    return Overlap(sum(o.tp for o in rows), sum(o.fp for o in rows), sum(o.fn for o in rows))
