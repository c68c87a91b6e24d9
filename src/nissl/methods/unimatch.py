"""UniMatch: confident labels of an image must hold for its strongly changed copies, and for changed features."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor
from torch.nn import functional

from nissl.data.batches import Batch
from nissl.methods.method import Method
from nissl.methods.shared import box, masked_dice, unlabelled

JITTERED, BLURRED, PASTED = 0.8, 0.5, 0.5
"""Fractions of the images whose intensities change, that are blurred, and that get a box of another image."""


class UniMatch(Method):
    """Weak-to-strong consistency of images, twice, and of features (Yang et al. 2023, CVPR, "UniMatch").

    The unlabelled images, as they come from the augmentation, give pseudo-labels: the likeliest class where its
    probability is at least `confidence`. By them learn two strong views (intensities, blur, boxes of other images) and
    the same features with half of their channels dropped, weighted 0.25, 0.25 and 0.5; nothing ramps. As in the
    authors' code for medical images these three losses are Dice alone, on the confident pixels.

    As there, all images pass together, with the changed features beside the others in the decoder, and so do the strong
    views: one by one, features of double the variance would enter the running statistics and nothing else. Different
    from that code: boxes come from images of the same batch, whose pseudo-labels are at hand (so a batch in parts mixes
    within a part); Dice has no squares in its denominator and is per image, where that code sums over the batch.
    """

    sees = "labelled+unlabelled"
    needs_parts = True

    def losses(self, batch: Batch, progress: float) -> dict[str, Float[Tensor, ""]]:
        """Return the terms of `supervised`, and `strong_1`, `strong_2` and `features`."""
        net, images, weight = self.networks[0], unlabelled(batch), self.weight(1.0)
        encoder, decoder, head = self.parts()
        masked = len(batch.images)
        features = encoder(torch.cat([batch.images, images]))
        together = [torch.cat([level, dropped(level[masked:], self.settings.dropped)]) for level in features]
        seen, weak, changed = head(decoder(together)[-1]).split([masked, len(images), len(images)])
        labels, confident = pseudo_labels(weak.detach(), self.settings.confidence)
        views, known = [], []
        for _ in range(2):
            view = apply(images, [draw() for _ in images])
            partner = torch.randperm(len(images)).to(images.device)
            inside = torch.stack([draw_box(images.shape[2:]) for _ in images]).to(images.device)
            views.append(torch.where(inside[:, None], view[partner], view))
            known.append(
                (torch.where(inside, labels[partner], labels), torch.where(inside, confident[partner], confident))
            )
        strong = net(torch.cat(views)).chunk(2)
        terms = self.supervised_losses(seen, batch.targets)
        for place, (logits, taught) in enumerate(zip(strong, known, strict=True), start=1):
            terms[f"strong_{place}"] = 0.25 * weight * masked_dice(logits, *taught)
        return terms | {"features": 0.5 * weight * masked_dice(changed, labels, confident)}


def pseudo_labels(
    logits: Float[Tensor, "batch classes *space"], confidence: float
) -> tuple[Integer[Tensor, "batch *space"], Bool[Tensor, "batch *space"]]:
    """Return the most likely class of each pixel, and whether it is confident: at least so probable."""
    probability, labels = logits.float().softmax(1).max(1)
    return labels, probability >= confidence


def dropped(
    features: Float[Tensor, "batch channels *space"], fraction: float
) -> Float[Tensor, "batch channels *space"]:
    """Drop a fraction of the channels, whole ones, each image's own."""
    return torch.feature_dropout(features, fraction, train=True)


@dataclass(frozen=True)
class Strong:
    """How the intensities of one image change."""

    contrast: float = 1.0
    """Factor about the mean, which is zero in a normalised image."""
    brightness: float = 0.0
    """Shift, in standard deviations of the image."""
    blur: float = 0.0
    """Standard deviation of a Gaussian, in pixels."""


def draw() -> Strong:
    """Draw for one image: contrast 0.5 to 1.5 and brightness -0.5 to 0.5, blur 0.1 to 2 (ranges of the paper).

    The paper's factor of brightness, 0.5 to 1.5, is that shift where the mean is as large as the deviation.
    """
    jitter, contrast, brightness, blur, sigma = torch.rand(5).tolist()
    sharp = Strong(0.5 + contrast, brightness - 0.5) if jitter < JITTERED else Strong()
    return Strong(sharp.contrast, sharp.brightness, 0.1 + 1.9 * sigma if blur < BLURRED else 0.0)


def apply(
    images: Float[Tensor, "batch channels *space"], draws: Sequence[Strong]
) -> Float[Tensor, "batch channels *space"]:
    """Change normalised images, one draw for each; exact where a draw changes nothing."""
    changed = []
    for image, one in zip(images, draws, strict=True):
        image = image * one.contrast + one.brightness
        if one.blur > 0:
            with torch.autocast(image.device.type, enabled=False):  # images keep their precision
                image = blurred(image, one.blur)
        changed.append(image)
    return torch.stack(changed)


def blurred(image: Float[Tensor, "channels *space"], deviation: float) -> Float[Tensor, "channels *space"]:
    """Filter with a Gaussian of a standard deviation in pixels, cut at four of them; the edge goes on outside."""
    tail = int(max(4 * deviation, 0.5) + 0.5)
    places, sigma = torch.arange(-tail, tail + 1.0), torch.tensor(deviation)
    kernel = torch.exp(-0.5 / (sigma * sigma) * places**2)
    kernel = (kernel / kernel.sum()).to(image)
    dims, channels = image.ndim - 1, len(image)
    image = functional.pad(image[None], [tail] * 2 * dims, mode="replicate")
    convolve = functional.conv2d if dims == 2 else functional.conv3d
    for axis in range(dims):
        shape = [-1 if place == axis else 1 for place in range(dims)]
        image = convolve(image, kernel.expand(channels, 1, -1).reshape(channels, 1, *shape), groups=channels)
    return image[0]


def draw_box(size: Sequence[int]) -> Bool[Tensor, "*space"]:
    """Draw where another image is pasted: nowhere, or 0.02 to 0.4 of the image (CutMix, bounds of the paper).

    Sides, as fractions of the image's, differ by a factor of 1 / 0.3 at most; none is longer than the image.
    """
    pasted, area, *rest = torch.rand(2 + 2 * len(size)).tolist()
    if pasted >= PASTED:
        return torch.zeros(*size, dtype=torch.bool)
    stretch = [(one - 0.5) * math.log(1 / 0.3) for one in rest[: len(size)]]
    middle = math.log(0.02 + 0.38 * area) / len(size) - sum(stretch) / len(size)
    return box(size, [min(1.0, math.exp(middle + one)) for one in stretch], rest[len(size) :])
