"""Masks made of superpixels: learning by segmenting what the image itself offers, a comparator of the Hebbian one."""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from nissl.data.batches import Batch
from nissl.losses import soft_dice
from nissl.nets.unet import CONVOLUTION
from nissl.pretrain.gradient import BackPropagation

SEGMENTS = 100
"""Superpixels asked for in an image or volume as the network sees it."""
COMPACTNESS = 0.1
"""Weight of nearness against likeness, for images scaled to 0..1 (scikit-image's advice for grey values)."""


class Superpixel(BackPropagation):
    """Predict, for each pixel, how bright its superpixel is among those of the image, in `groups` groups.

    The image is cut into SLIC superpixels (Achanta et al. 2012), which are sorted by mean brightness into groups of
    about as many superpixels each; a head of its own predicts the group, with Dice and cross-entropy as with masks.

    The published comparator (Ciampi et al. 2024) takes one region grown from a random pixel as the mask. The image
    does not tell which pixel was drawn, so that the best answer there is an average over all of them. Here the
    mask follows from the image: what is learnt is which pixels belong together, and their place in the whole image.
    Superpixels as labels without an annotator are those of Ouyang et al. (2020), who also show the network an example.
    """

    def layers(self) -> nn.Module:
        """Make the 1x1 convolution from the finest features to the groups."""
        _, _, head = self.encoder_decoder_head()
        assert isinstance(head.weight, Tensor) and isinstance(head.in_channels, int)
        return CONVOLUTION[head.weight.ndim - 2](head.in_channels, self.settings.groups, 1)

    def losses(self, batch: Batch, progress: float) -> dict[str, Float[Tensor, ""]]:
        """Return the sum of Dice and cross-entropy as `dice_cross_entropy`."""
        (encoder, decoder, _), images, count = self.encoder_decoder_head(), batch.images, self.settings.groups
        logits = self.extra(decoder(encoder(images))[-1])
        groups = torch.stack([brightness_groups(image, count) for image in images.cpu()]).to(images.device)
        # Classes as probabilities: with class numbers, torch has no deterministic cross-entropy of images on a GPU.
        truth = F.one_hot(groups, count).movedim(-1, 1).to(logits)
        return {"dice_cross_entropy": soft_dice(logits.softmax(1), truth) + F.cross_entropy(logits, truth)}


def brightness_groups(image: Float[Tensor, "channels *space"], groups: int) -> Int64[Tensor, "*space"]:
    """Group of each pixel, 0 the darkest: the superpixels' means over pixels and channels, cut at their quantiles.

    Superpixels of one brightness share a group, so that an image without structure is all 0. NaN and infinity count as
    0, the mean of a normalised image: the loss shows them, in every process at the same time.
    """
    from skimage.segmentation import slic  # takes a second to import

    # In double precision: means of different superpixels of one brightness come out the same.
    pixels = image.nan_to_num(0.0, 0.0, 0.0).double().numpy()
    labels = slic(
        pixels, SEGMENTS, COMPACTNESS, channel_axis=0, convert2lab=False, start_label=0, enforce_connectivity=True
    )
    places = labels.ravel()
    sums = np.bincount(places, weights=pixels.mean(axis=0).ravel())
    sizes = np.bincount(places)
    present = sizes > 0
    means = np.round(sums / np.maximum(sizes, 1), 6)
    cuts = np.quantile(means[present], np.arange(1, groups) / groups)
    return torch.from_numpy(np.searchsorted(cuts, means, side="left")[labels])
