"""Augmentation: draw, then apply.

`draw` takes random numbers and gives a `Draw`; `apply` is deterministic given the draws. Flips, exchanged axes,
rotation and scale are one matrix, so that a batch is resampled once. The matrix acts on pixel offsets from the centre
of the image, which keeps a rotation a rotation where the image is not square.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor
from torch.nn import functional

from nissl.config import AugmentConfig


@dataclass(frozen=True)
class Draw:
    """What happens to one image."""

    matrix: Float[np.ndarray, "dims dims"]
    """From an output offset to the input offset that it shows, in pixels from the centre, axes in array order."""
    contrast: float = 1.0
    """Factor about the mean, which is zero in a normalised image."""
    brightness: float = 0.0
    """Shift, in standard deviations of the image."""
    noise: float = 0.0
    """Standard deviation of the added noise, in standard deviations of the image."""
    noise_seed: int = 0
    """The noise follows from it."""


def rotation(angles: Sequence[float], dims: int) -> Float[np.ndarray, "dims dims"]:
    """Compose rotations, in radians, one in each plane of two axes: one angle in 2-D, three in 3-D."""
    matrix = np.eye(dims)
    for angle, (i, j) in zip(angles, itertools.combinations(range(dims), 2), strict=True):
        plane = np.eye(dims)
        plane[i, i] = plane[j, j] = np.cos(angle)
        plane[i, j], plane[j, i] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ plane
    return matrix


def draw(config: AugmentConfig, dims: int, rng: np.random.Generator) -> Draw:
    """Draw one change within the bounds of the settings; the generator advances by the same amount for any bounds."""
    free = dims == 2
    flip = free if config.flip is None else config.flip
    transpose = free if config.transpose is None else config.transpose
    limit = np.deg2rad((180.0 if free else 15.0) if config.rotate is None else config.rotate)
    turned = rotation(rng.uniform(-limit, limit, dims * (dims - 1) // 2).tolist(), dims)
    mirrored = np.where((rng.random(dims) < 0.5) & flip, -1.0, 1.0)
    zoom = 1 + rng.uniform(-config.scale, config.scale)
    drawn = Draw(
        matrix=np.diag(mirrored),
        contrast=1 + rng.uniform(-config.contrast, config.contrast),
        brightness=rng.uniform(-config.brightness, config.brightness),
        noise=rng.uniform(0, config.noise),
        noise_seed=int(rng.integers(2**62)),
    )
    axes = rng.permutation(dims)
    matrix = turned * mirrored / zoom if rng.random() < config.affine else drawn.matrix
    return dataclasses.replace(drawn, matrix=matrix[:, axes] if transpose else matrix)


def apply(
    images: Float[Tensor, "batch channels *space"],
    masks: Integer[Tensor, "batch *space"] | None,
    draws: Sequence[Draw],
) -> tuple[Float[Tensor, "batch channels *space"], Integer[Tensor, "batch *space"] | None]:
    """Apply one draw to each normalised image (mean 0, standard deviation 1) and to its mask.

    Images are interpolated linearly and masks take the nearest pixel; beyond its border an image goes on as its
    reflection. A draw that moves nothing leaves the pixels exactly as they are.
    """
    still = [i for i, one in enumerate(draws) if np.array_equal(one.matrix, np.eye(images.ndim - 2))]
    if len(still) < len(draws):
        grid = _grid(images, [one.matrix for one in draws])
        images = _resample(images, grid, "bilinear", still)
        if masks is not None:
            masks = _resample(masks[:, None].to(images.dtype), grid, "nearest", still)[:, 0].to(masks.dtype)
    else:
        images = images.clone()
    _change_intensities(images, draws)
    return images, masks


def _grid(images: Float[Tensor, "batch channels *space"], matrices: Sequence[np.ndarray]) -> Tensor:
    """Sampling positions in torch's coordinates: from -1 to 1 between the outer edges, last axis first."""
    half = np.array(images.shape[2:]) / 2
    normalised = np.stack(matrices) * half / half[:, None]
    theta = np.zeros((len(matrices), half.size, half.size + 1), dtype=np.float32)
    theta[:, :, :-1] = normalised[:, ::-1, ::-1]
    return functional.affine_grid(torch.from_numpy(theta).to(images.device), list(images.shape), align_corners=False)


def _resample(images: Tensor, grid: Tensor, mode: str, still: Sequence[int]) -> Tensor:
    moved = functional.grid_sample(images, grid, mode=mode, padding_mode="reflection", align_corners=False)
    for index in still:  # resampling with the identity would round
        moved[index] = images[index]
    return moved


def _change_intensities(images: Float[Tensor, "batch channels *space"], draws: Sequence[Draw]) -> None:
    """Contrast about zero, brightness and noise, in place; each is exact where it is drawn as nothing."""
    for image, one in zip(images, draws, strict=True):
        image.mul_(one.contrast).add_(one.brightness)
        if one.noise > 0:
            generator = torch.Generator().manual_seed(one.noise_seed)
            noise = torch.randn(image.shape, generator=generator, dtype=image.dtype)
            image.add_(noise.to(image.device), alpha=one.noise)
