"""Overlap by a loop over pixels."""

import math

import numpy as np


def count(prediction, reference, label):
    """True positives, false positives, false negatives of one class."""
    tp = fp = fn = 0
    for p, r in zip(prediction.ravel().tolist(), reference.ravel().tolist(), strict=True):
        tp += p == label and r == label
        fp += p == label and r != label
        fn += p != label and r == label
    return tp, fp, fn


def measures(prediction, reference, label):
    """Dice, IoU, precision, recall by their definitions on sets; 0 or nan where a set is empty."""
    p = set(np.flatnonzero(prediction == label).tolist())
    r = set(np.flatnonzero(reference == label).tolist())
    if not p and not r:
        return (math.nan,) * 4
    if not p or not r:
        return (0.0,) * 4
    return 2 * len(p & r) / (len(p) + len(r)), len(p & r) / len(p | r), len(p & r) / len(p), len(p & r) / len(r)
