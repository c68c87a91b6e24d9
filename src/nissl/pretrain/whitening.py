"""Whitening of images: neighbouring pixels and channels become uncorrelated, with equal variance."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

SIDE = {2: 5, 3: 3}
"""Side of the patches whose correlations are taken away."""
FLOOR = 0.01
"""Directions of less variance than this fraction of the mean one are noise and are not made louder."""
TINY = 1e-12
"""Variance of images that are flat."""
CONVOLUTION = {2: F.conv2d, 3: F.conv3d}


@torch.no_grad()
def whitened(images: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch channels *space"]:
    """Whiten a batch by the covariance C of its own patches: ZCA, x -> (C + floor)^(-1/2) x (Bell and Sejnowski 1997).

    The rows of that matrix which give the middle pixel are filters, with which the images are convolved.
    Images that are not finite stay as they are, and the step that takes them is skipped as without whitening.
    """
    dims, channels = images.ndim - 2, images.shape[1]
    side = SIDE[dims]
    patches = images
    for axis in range(2, images.ndim):
        patches = patches.unfold(axis, side, side)  # patches side by side are enough
    rows = patches.movedim(1, dims + 1).reshape(-1, channels * side**dims).double()
    if not rows.isfinite().all():
        return images
    rows = rows - rows.mean(0)
    values, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
    scale = (values.clamp(min=0) + FLOOR * values.mean()).clamp(min=TINY).rsqrt()
    matrix = ((vectors * scale) @ vectors.T).view(channels, side**dims, channels, *[side] * dims)
    filters = matrix[:, side**dims // 2].to(images.dtype)
    border = [side // 2] * (2 * dims)
    return CONVOLUTION[dims](F.pad(images - images.mean(), border, mode="reflect"), filters)
