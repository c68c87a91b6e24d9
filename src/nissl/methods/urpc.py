"""Uncertainty-rectified pyramid consistency: predictions at several scales of the decoder should agree."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nissl.data.batches import Batch
from nissl.methods import settings
from nissl.methods.auxiliary import fixed_draws, sizes
from nissl.methods.method import Method
from nissl.methods.shared import unlabelled
from nissl.nets.unet import CONVOLUTION, LINEAR_MODE

EPSILON = 1e-8


class URPC(Method):
    """Uncertainty-rectified pyramid consistency (Luo et al. 2021, 2022).

    Each of the finest levels of the decoder predicts, the coarser ones by 1x1 heads of the method's own, and all learn
    from the masks. On images without masks each should predict what they predict together, the more so where it is
    certain (`pyramid_consistency`).
    """

    sees = "labelled+unlabelled"
    needs_parts = True

    def __init__(self, networks: Sequence[nn.Module], options: settings.URPC) -> None:
        super().__init__(networks, options)
        found = sizes(self.networks[0], "urpc")
        with fixed_draws():
            heads = [CONVOLUTION[found.dims](width, found.classes, 1) for width in found.widths[-options.scales : -1]]
        self.heads = nn.ModuleList(heads)

    def losses(self, batch: Batch, progress: float) -> dict[str, Float[Tensor, ""]]:
        """Return `dice` and `cross_entropy`, each the mean over scales, and `consistency`."""
        scales = [self.supervised_losses(logits, batch.targets) for logits in self.pyramid(batch.images)]
        terms = {name: torch.stack([scale[name] for scale in scales]).mean() for name in scales[0]}
        consistency = pyramid_consistency(self.pyramid(unlabelled(batch)))
        return terms | {"consistency": self.weight(progress) * consistency}

    def pyramid(self, images: Float[Tensor, "batch channels *space"]) -> list[Float[Tensor, "batch classes *space"]]:
        """Return each scale's logits, brought linearly to the images' size; the network's own are the last."""
        encoder, decoder, head = self.parts()
        levels = decoder(encoder(images))[-self.settings.scales :]
        size, mode = images.shape[2:], LINEAR_MODE[images.ndim - 2]
        coarse = [own(level) for own, level in zip(self.heads, levels[:-1], strict=True)]
        return [*(F.interpolate(logits, size, mode=mode, align_corners=False) for logits in coarse), head(levels[-1])]


def pyramid_consistency(scales: Sequence[Float[Tensor, "batch classes *space"]]) -> Float[Tensor, ""]:
    """Return how far the predictions at several scales are from their mean, where they are certain.

    With p_i = softmax of scale i, q their mean and v_i = KL(p_i || q) per pixel, the mean over scales and images of

        mean((p_i - q)^2 exp(-v_i)) / (mean exp(-v_i) + eps) + mean v_i

    with means over pixels (and classes). The direction is that of the paper's equation for the uncertainty, in which v
    is at most log(scales); published code has both. Per image, not per batch, so that a batch split over processes has
    the same loss. No term is detached, as in the paper.
    """
    log_probabilities = torch.stack([F.log_softmax(logits.float(), 1) for logits in scales])  # scales first
    together = log_probabilities.logsumexp(0) - math.log(len(scales))
    probabilities = log_probabilities.exp()
    uncertainty = (probabilities * (log_probabilities - together)).sum(2, keepdim=True)
    certainty = torch.exp(-uncertainty)
    distance = (probabilities - together.exp()).square()
    axes = tuple(range(2, probabilities.ndim))
    rectified = (distance * certainty).mean(axes) / (certainty.mean(axes) + EPSILON)
    return (rectified + uncertainty.mean(axes)).mean()
