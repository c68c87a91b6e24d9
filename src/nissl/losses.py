"""How logits are compared with masks: soft Dice and cross-entropy."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor

SMOOTHING = 1e-5
"""Added above and below, so that a class which neither mask nor prediction holds costs nothing."""


def one_hot(labels: Integer[Tensor, "batch *space"], classes: int) -> Float[Tensor, "batch classes *space"]:
    """Return 1.0 in the channel of each pixel's class; not `F.one_hot`, which takes 8 bytes a value, channels last."""
    empty = torch.zeros(len(labels), classes, *labels.shape[1:], device=labels.device)
    return empty.scatter_(1, labels[:, None].long(), 1.0)


def soft_dice(
    probabilities: Float[Tensor, "batch classes *space"], truth: Float[Tensor, "batch classes *space"]
) -> Float[Tensor, ""]:
    """Return 1 - Dice per image and class, background included, then the mean (Milletari et al. 2016).

    The order of operations is that of MONAI's `DiceLoss`: runs made with it are repeated bit for bit.
    """
    space = tuple(range(2, probabilities.ndim))
    both = (probabilities * truth).sum(space)
    wrong, missed = probabilities.sum(space) - both, truth.sum(space) - both
    overlap = (2 * both + SMOOTHING) / (2 * (both + 0.5 * wrong + 0.5 * missed) + SMOOTHING)
    return (1 - overlap).mean()


def segmentation_losses(
    logits: Float[Tensor, "batch classes *space"],
    masks: Integer[Tensor, "batch *space"],
    loss: str = "dice+cross-entropy",
) -> dict[str, Float[Tensor, ""]]:
    """Return `soft_dice` and the cross-entropy per pixel; the first alone where `loss` is `dice`.

    Per image, not per batch, so that a batch split over processes has the same loss.
    """
    logits = logits.float()  # sums over many pixels, also under autocast
    # Classes as probabilities: with class numbers, torch has no deterministic cross-entropy of images on a GPU.
    truth = one_hot(masks, logits.shape[1])
    terms = {"dice": soft_dice(logits.softmax(1), truth)}
    return terms if loss == "dice" else terms | {"cross_entropy": F.cross_entropy(logits, truth)}
