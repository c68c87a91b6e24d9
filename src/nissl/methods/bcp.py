"""Bidirectional copy-paste: boxes of labelled images in unlabelled ones, and the other way round."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor
from torch.nn import functional

from nissl.data.batches import Batch
from nissl.losses import one_hot
from nissl.methods.shared import Taught, box, masked_dice, unlabelled

Terms = dict[str, Float[Tensor, ""]]
Labelled = tuple[Float[Tensor, "batch channels *space"], Integer[Tensor, "batch *space"]]
"""Images, and a label for each pixel."""


class BidirectionalCopyPaste(Taught):
    """Mixed images learn by masks and by an averaged teacher's pseudo-labels (Bai et al. 2023, CVPR, "BCP").

    One box of 2/3 of each side, anywhere, is drawn for a step. Inwards, unlabelled images are pasted into labelled
    ones; outwards, labelled into unlabelled. Dice and cross-entropy are taken inside and outside of the box apart:
    the labelled side counts 1, the other alpha = 0.5 (`weight`; it does not ramp), and the two directions are averaged.
    In the first steps (`first`) labelled images are pasted into each other in both directions, with the masks of both,
    so that as many images pass through the network as later.

    Different from the authors' code: each image serves in both directions, with the next of the batch as partner for
    the other one (alone in the batch, itself), in the first steps as well; the teacher averages from the first step
    on; pseudo-labels are the likeliest class as it is, without keeping the largest component of each, since cells and
    glands are many.
    """

    sees = "labelled+unlabelled"

    def losses(self, batch: Batch, progress: float) -> Terms:
        """Return `dice` and `cross_entropy` by masks and, after the first steps, `pseudo_…` by pseudo-labels."""
        inside = draw_box(batch.images.shape[2:], self.settings.box).to(batch.images.device)
        own, partner = (batch.images, batch.targets), (batch.images.roll(1, 0), batch.targets.roll(1, 0))
        if progress < self.settings.first:
            return mean([*self.sides(own, partner, inside), *self.sides(partner, own, inside)], 1.0)
        fresh = unlabelled(batch)
        labels = self.teacher(fresh).argmax(1)
        guessed_inside, known_outside = self.sides((fresh, labels), partner, inside)
        known_inside, guessed_outside = self.sides(own, (fresh.roll(1, 0), labels.roll(1, 0)), inside)
        pseudo = mean([guessed_inside, guessed_outside], self.weight(1.0))
        return mean([known_outside, known_inside], 1.0) | {f"pseudo_{name}": term for name, term in pseudo.items()}

    def sides(self, front: Labelled, back: Labelled, inside: Bool[Tensor, "*space"]) -> tuple[Terms, Terms]:
        """Paste the boxes of the one into the other and compare each side with its own labels: inside, outside."""
        logits = self.networks[0](paste(front[0], back[0], inside))
        loss = self.settings.loss
        return region_losses(logits, front[1], inside, loss), region_losses(logits, back[1], ~inside, loss)


def draw_box(size: Sequence[int], side: float) -> Bool[Tensor, "*space"]:
    """Draw the place of the pasted box, whose side is a fraction of the image's."""
    return box(size, [side] * len(size), torch.rand(len(size)).tolist())


def paste(
    front: Float[Tensor, "batch channels *space"],
    back: Float[Tensor, "batch channels *space"],
    inside: Bool[Tensor, "*space"],
) -> Float[Tensor, "batch channels *space"]:
    """Take the box from the one and the rest from the other."""
    return torch.where(inside, front, back)


def region_losses(
    logits: Float[Tensor, "batch classes *space"],
    labels: Integer[Tensor, "batch *space"],
    inside: Bool[Tensor, "*space"],
    loss: str = "dice+cross-entropy",
) -> Terms:
    """Return Dice and, unless `loss` is `dice`, cross-entropy by the pixels of a region, the same in all images."""
    logits = logits.float()
    terms = {"dice": masked_dice(logits, labels, inside.expand(labels.shape))}
    if loss == "dice":
        return terms
    # Classes as probabilities: with class numbers, torch has no deterministic cross-entropy of images on a GPU.
    cross_entropy = functional.cross_entropy(logits, one_hot(labels, logits.shape[1]), reduction="none")
    return terms | {"cross_entropy": (cross_entropy * inside).sum() / (len(labels) * inside.sum()).clamp(min=1)}


def mean(terms: Sequence[Terms], weight: float) -> Terms:
    """Average terms of the same names, and weigh them."""
    return {name: weight * torch.stack([each[name] for each in terms]).mean() for name in terms[0]}
