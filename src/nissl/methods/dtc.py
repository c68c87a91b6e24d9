"""Dual-task consistency: the mask that a signed distance implies should be the mask that is predicted."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn

from nissl.data.batches import Batch
from nissl.methods import settings
from nissl.methods.auxiliary import fixed_draws, sizes
from nissl.methods.method import Method
from nissl.methods.shared import unlabelled
from nissl.nets.unet import CONVOLUTION


class DTC(Method):
    """Dual-task consistency (Luo et al. 2021).

    A second head, 1x1 and tanh, regresses the signed distance to each foreground class; the targets are made of the
    masks as they come, after augmentation. On all images the two heads should agree.
    """

    sees = "labelled+unlabelled"
    needs_parts = True

    def __init__(self, networks: Sequence[nn.Module], options: settings.DTC) -> None:
        super().__init__(networks, options)
        found = sizes(self.networks[0], "dtc")
        with fixed_draws():
            self.distance = CONVOLUTION[found.dims](found.widths[-1], found.classes - 1, 1)

    def losses(self, batch: Batch, progress: float) -> dict[str, Float[Tensor, ""]]:
        """Return `dice`, `cross_entropy`, `distance` (regression) and `consistency`, the mean over all images."""
        logits, distances = self.both(batch.images)
        target = signed_distances(batch.targets, logits.shape[1])
        pairs = (logits, distances), self.both(unlabelled(batch))
        consistency = [task_consistency(*pair, self.settings.steepness) for pair in pairs]
        return self.supervised_losses(logits, batch.targets) | {
            "distance": self.settings.regression * F.mse_loss(distances, target),
            "consistency": self.weight(progress) * torch.stack(consistency).mean(),  # as many images in each
        }

    def both(
        self, images: Float[Tensor, "batch channels *space"]
    ) -> tuple[Float[Tensor, "batch classes *space"], Float[Tensor, "batch foreground *space"]]:
        """Return logits, and signed distances from -1 to 1 of each foreground class."""
        encoder, decoder, head = self.parts()
        finest = decoder(encoder(images))[-1]
        return head(finest), torch.tanh(self.distance(finest).float())


def task_consistency(
    logits: Float[Tensor, "batch classes *space"],
    distances: Float[Tensor, "batch foreground *space"],
    steepness: float,
) -> Float[Tensor, ""]:
    """Return the mean of (sigmoid(-k distance) - softmax)^2 over pixels and foreground classes; both get gradients."""
    return F.mse_loss(torch.sigmoid(-steepness * distances), logits.float().softmax(1)[:, 1:])


def signed_distances(masks: Integer[Tensor, "batch *space"], classes: int) -> Float[Tensor, "batch foreground *space"]:
    """Signed Euclidean distance to the border of each foreground class, from -1 (deepest inside) to 1 (farthest away).

    The border lies between pixels, half a pixel from those beside it, so that no pixel has distance 0 and the sign is
    the mask. In pixels, whatever their spacing; scaled inside and outside by the largest distance there, per image and
    class. A class that is not in an image is far away everywhere (1), one that fills it is everywhere inside (-1).
    """
    labels = masks.cpu().numpy()
    maps = [[_signed_distance(mask == label) for label in range(1, classes)] for mask in labels]
    return torch.from_numpy(np.array(maps, np.float32)).to(masks.device)


def _signed_distance(inside: Bool[np.ndarray, "*space"]) -> Float[np.ndarray, "*space"]:
    from scipy.ndimage import distance_transform_edt

    if inside.all() or not inside.any():
        return np.full(inside.shape, -1.0 if inside.all() else 1.0)

    def scaled(region: Bool[np.ndarray, "*space"]) -> Float[np.ndarray, "*space"]:
        distance: Float[np.ndarray, "*space"] = np.maximum(distance_transform_edt(region) - 0.5, 0)
        return distance / float(distance.max())

    signed: Float[np.ndarray, "*space"] = scaled(~inside) - scaled(inside)
    return signed
