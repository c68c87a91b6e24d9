"""Learning from the masks alone: Dice and cross-entropy."""

import functools
from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor

from nissl.data.dataset import Batch
from nissl.methods.method import Method


class Supervised(Method):
    """The baseline: soft Dice plus cross-entropy on the labelled images; the others are not looked at."""

    def losses(self, batch: Batch, progress: float) -> dict[str, Float[Tensor, ""]]:
        """Return the terms `dice` and `cross_entropy`."""
        return segmentation_losses(self.networks[0](batch.images), batch.masks)


def segmentation_losses(
    logits: Float[Tensor, "batch classes *space"], masks: Integer[Tensor, "batch *space"]
) -> dict[str, Float[Tensor, ""]]:
    """Return soft Dice (per image and class, background included, then the mean) and cross-entropy per pixel.

    Per image, not per batch, so that a batch split over processes has the same loss.
    """
    from monai.networks import one_hot  # MONAI takes 3 s to import

    logits = logits.float()  # sums over many pixels, also under autocast
    # Classes as shares: with class numbers, torch has no deterministic cross-entropy of images on a GPU.
    shares = one_hot(masks[:, None], logits.shape[1])
    return {"dice": _dice()(logits, shares), "cross_entropy": F.cross_entropy(logits, shares)}


@functools.cache
def _dice() -> Callable[[Tensor, Tensor], Tensor]:
    from monai.losses import DiceLoss

    loss: Callable[[Tensor, Tensor], Tensor] = DiceLoss(softmax=True)
    return loss
