"""From the pixels of a file to the input of a network: the only place that resizes and normalises images.

Training cuts patches from images that it keeps in memory, prediction reads regions of images of any size, an export has
the description alone: all three call what is here.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float32, Num
from torch.nn import functional

from nissl.config import DataConfig
from nissl.errors import InputError
from nissl.imageio.tiff_regions import STRIP, Pixels, row_strips

KEPT = (np.uint8, np.uint16, np.int16)
"""Types of pixels that are kept as they are; all others become float32."""
Statistics = Float32[np.ndarray, "two channels *ones"]
"""Mean and standard deviation of each channel."""


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the input of a network; stored in model.json."""

    sampling: Literal["resize", "patches"]
    """Whether the whole image is resized to `size`, or patches of that size are cut at full resolution."""
    size: tuple[int, ...]
    """In pixels along each axis."""
    colour: Literal["as-found", "gray", "rgb"] = "as-found"
    """To how many channels images are brought."""
    normalisation: Literal["image"] = "image"
    """`image`: each channel of each image to mean 0 and standard deviation 1, by its own pixels."""

    @classmethod
    def fitted(cls, config: DataConfig) -> "Preprocessing":
        """Make the description that resolved settings ask for."""
        assert config.sampling != "auto"
        return cls(config.sampling, config.size, config.colour)

    @property
    def dims(self) -> int:
        """Axes of space."""
        return len(self.size)

    def resized(self, image: Pixels | Num[np.ndarray, "channels *space"]) -> Num[np.ndarray, "channels *size"]:
        """Bring an image to the network's resolution, in strips of lines that need little memory."""
        if self.sampling == "patches":
            return kept_type(image[:, :])
        channels, lines, *rest = image.shape
        narrow = np.empty((channels, lines, *self.size[1:]), np.float32)
        for rows in row_strips((channels, lines, *map(max, rest, self.size[1:])), STRIP):
            part = image[:, rows]
            narrow[:, rows] = resize_image(part, (part.shape[1], *self.size[1:]))
        return resize_image(narrow, self.size)

    def normalised(
        self, pixels: Num[np.ndarray, "channels *part"], statistics: Statistics
    ) -> Float32[np.ndarray, "channels *part"]:
        """Normalise a part of an image by the statistics of the whole."""
        mean, deviation = statistics
        return np.asarray((pixels - mean) / deviation)

    def __call__(self, image: Pixels | Num[np.ndarray, "channels *space"]) -> Float32[np.ndarray, "channels *size"]:
        """Make the input of the network from a whole image; in `patches` sampling its size stays."""
        pixels = self.resized(image)
        return self.normalised(pixels, moments(pixels))


def resolve(config: DataConfig, dims: int) -> DataConfig:
    """Fill in `sampling` and `size` for 2-D or 3-D data: resize to 128 in 2-D, patches of 32 in 3-D by default.

    Raises:
        InputError: `size` has neither one number nor one for each axis.

    """
    sampling = config.sampling if config.sampling != "auto" else ("resize" if dims == 2 else "patches")
    size = config.size or ((128,) if dims == 2 else (32,))
    if len(size) not in (1, dims):
        found, expected = f"{len(size)} numbers for {dims}-D images", f"one number, or {dims}"
        raise InputError("data.size", found, expected, "give the size again")
    return dataclasses.replace(config, sampling=sampling, size=size if len(size) == dims else size * dims)


def resize_image(
    image: Num[np.ndarray, "channels *space"], size: Sequence[int]
) -> Float32[np.ndarray, "channels *size"]:
    """Resize by linear interpolation, with antialiasing where it shrinks; whole numbers become means that are not.

    Nothing is rounded: of photon counts of 0 and 1 little would be left. The last axis comes first and the first axis
    last, so that strips of lines can be made narrower one by one and give the same bits.
    """
    pixels = torch.from_numpy(image.astype(np.float32))
    options: dict[str, Any] = {"mode": "bilinear", "antialias": True, "align_corners": False}
    for axis, length in reversed([*enumerate(size, start=1)]):  # linear interpolation is separable, in any dimension
        if pixels.shape[axis] != length:
            lines = pixels.movedim(axis, -1)
            # The axis goes last: torch 2.13 gives wrong values, and no error, where the last axis has length 1.
            flat = lines.reshape(1, 1, -1, lines.shape[-1])
            flat = functional.interpolate(flat, size=(flat.shape[2], length), **options)
            pixels = flat.reshape(*lines.shape[:-1], length).movedim(-1, axis)
    return np.ascontiguousarray(pixels.numpy())


def moments(image: Num[np.ndarray, "channels *space"]) -> Statistics:
    """Mean and standard deviation of each channel of one case; a constant channel counts as deviation 1."""
    axes = tuple(range(1, image.ndim))
    mean = image.mean(axis=axes, dtype=np.float64, keepdims=True)
    deviation = image.std(axis=axes, dtype=np.float64, keepdims=True)
    varies = image.max(axis=axes, keepdims=True) > image.min(axis=axes, keepdims=True)
    return np.stack([mean, np.where(varies, deviation, 1)]).astype(np.float32)


def moments_in_strips(image: Pixels) -> Statistics:
    """`moments` of an image of any size in one pass over its lines.

    Means and squares of deviations of two parts are joined by Chan, Golub and LeVeque (1979), equation 2.1, in float64.
    """
    axes = tuple(range(1, len(image.shape)))
    count, mean, squares = 0, np.zeros((image.shape[0], *(1,) * len(axes))), np.zeros(1)
    lowest, highest = np.array(np.inf), np.array(-np.inf)
    for rows in row_strips(image.shape, STRIP):
        part = kept_type(image[:, rows])
        here, more = part.mean(axis=axes, dtype=np.float64, keepdims=True), prod(part.shape[1:])
        off = here - mean
        spread = np.square(part - here).sum(axis=axes, keepdims=True)
        squares = squares + spread + off**2 * (count * more / (count + more))
        count, mean = count + more, mean + off * (more / (count + more))
        lowest = np.minimum(lowest, part.min(axis=axes, keepdims=True))
        highest = np.maximum(highest, part.max(axis=axes, keepdims=True))
    return np.stack([mean, np.where(lowest != highest, np.sqrt(squares / count), 1)]).astype(np.float32)


def kept_type(pixels: np.ndarray) -> np.ndarray:
    """The type in which pixels are kept."""
    return pixels if pixels.dtype in KEPT else pixels.astype(np.float32)
