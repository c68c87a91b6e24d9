"""Masks of whole images of any size: through the network's input size, or in tiles at full resolution.

Beyond the image and its mask, memory is that of one tile and one strip; `peak_bytes` states it before work starts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Int, Num, UInt8
from torch import Tensor, nn

from nissl import nets
from nissl.data.dataset import KEPT, moments, resize_image
from nissl.errors import DataError
from nissl.train.loop import autocast
from nissl.train.run import Model

STRIP = 2**22
"""Values of an image that are worked on at once outside the network."""
LIBRARIES = 64 * 2**20
"""Bytes that the libraries take for themselves at their first use."""

Place = tuple[slice, ...]
Piece = tuple[Place, Float32[np.ndarray, "classes *piece"]]


@dataclass(frozen=True)
class Tile:
    """A part of an image, in its pixels along each axis: the network sees `window`, of which `core` is kept."""

    window: Place
    core: Place


def predict_mask(model: Model, image: Num[np.ndarray, "channels *space"]) -> UInt8[np.ndarray, "*space"]:
    """Return the class of each pixel, in the image's own geometry.

    Raises:
        DataError: the image has other channels or dimensions than the network was trained on.

    """
    labels = np.empty(image.shape[1:], np.uint8)
    for place, logits in pieces(model, image):
        labels[place] = logits.argmax(axis=0)
    return labels


def pieces(model: Model, image: Num[np.ndarray, "channels *space"]) -> Iterator[Piece]:
    """Serve the logits piece by piece, each with its place in the image; every pixel comes exactly once.

    In `resize` sampling the image is resized and normalised as in training and the logits are resized back linearly,
    strip by strip. In `patches` sampling it is cut into tiles that see a halo around what is kept: where the halo is at
    least the radius of the network's receptive field, the result is that of the whole image at once. (Networks that
    normalise by statistics of their input, such as InstanceNorm, have an unbounded receptive field.)

    Raises:
        DataError: the image has other channels or dimensions than the network was trained on.

    """
    require_fit(model, image)
    return (_resized if model.config.data.sampling == "resize" else _tiled)(model, image)


def require_fit(model: Model, image: Num[np.ndarray, "channels *space"], where: Path | str = "image") -> None:
    """Refuse an image that the network was not made for.

    Raises:
        DataError: other channels or dimensions than in training.

    """
    fix = "convert it to the kind of the training images, or train on images of this kind"
    if image.ndim - 1 != model.dims:
        raise DataError(where, f"a {image.ndim - 1}-D image", f"{model.dims}-D, as the training images", fix)
    if len(image) != model.channels:
        found, expected = f"{len(image)} channel{'s' * (len(image) > 1)}", f"{model.channels}, as the training images"
        raise DataError(where, found, expected, fix)


def tile_size(model: Model) -> tuple[int, int]:
    """Core and halo of a tile along each axis, in pixels, both multiples of what the network needs.

    The settings are for 2-D. In 3-D they are taken to the power 2/3 (512 and 96 become 64 and 32), so that a core has
    as many voxels as it has pixels in 2-D: the same length would need hundreds of times the memory.
    """
    step = nets.multiple(model.net)
    setting = model.config.predict
    core, halo = (round(size ** (2 / model.dims), 3) for size in (setting.tile, setting.halo))
    return max(1, int(core // step)) * step, int(-(-halo // step)) * step


def plan(shape: Sequence[int], core: int, halo: int) -> Iterator[Tile]:
    """Cut a shape into tiles; the cores cover it without overlap.

    A window is `core + 2 * halo` long at most. It ends at the border of the image, where no halo is needed: the core is
    longer there, and an image as small as a window is one tile.
    """
    for parts in product(*(list(_cuts(size, core, halo)) for size in shape)):
        yield Tile(tuple(window for window, _ in parts), tuple(kept for _, kept in parts))


def _cuts(size: int, core: int, halo: int) -> Iterator[tuple[slice, slice]]:
    """Window and core of each tile along one axis."""
    start = 0
    while start < size:
        first = max(0, start - halo)
        last = min(size, first + core + 2 * halo)
        stop = size if last == size else last - halo
        yield slice(first, last), slice(start, stop)
        start = stop


def peak_bytes(model: Model, shape: Sequence[int]) -> int:
    """Bound the bytes that the prediction of an image of spatial size `shape` needs beyond the image itself.

    It is the sum of: the mask; 24 bytes for each value of a strip (float64, its deviation, its square); for each pixel
    that the network sees at once the outputs of all its layers, as if none were ever freed, and 16 bytes for each
    channel and class; in `resize` sampling 16 bytes for each value of the half-resized image and logits; the libraries'
    own. On a GPU the part of the network is memory of the GPU.
    """
    size, channels, classes = model.config.data.size, model.channels, len(model.classes)
    if model.config.data.sampling == "resize":
        seen, widest = size, tuple(max(pair) for pair in zip(size, shape, strict=True))
        half = channels * prod(size[:-1]) * shape[-1] + classes * shape[0] * prod(size[1:])
    else:
        core, halo = tile_size(model)
        widest, half = _padded(model, shape), 0
        seen = tuple(min(length, core + 2 * halo) for length in widest)
    line = max(channels, classes) * max(prod(widest[1:]), prod(widest[:-1]))
    network = prod(seen) * (_bytes_per_pixel(model) + 16 * (channels + classes))
    return prod(shape) + 24 * max(STRIP, line) + network + 16 * half + LIBRARIES


def _bytes_per_pixel(model: Model) -> int:
    """Size of the outputs of all layers for one pixel of the input, counted on a small one."""
    counts: list[int] = []

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        counts.append(output.numel() * output.element_size())

    layers = [module for module in model.net.modules() if not any(module.children())]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    side = (2 * nets.multiple(model.net),) * model.dims
    try:
        with torch.inference_mode():
            model.net(torch.zeros(1, model.channels, *side, device=model.device))
    finally:
        for hook in hooks:
            hook.remove()
    return -(-sum(counts) // prod(side))


def _logits(
    model: Model, pixels: Float32[np.ndarray, "channels *window"], kept: Place
) -> Float32[np.ndarray, "classes *core"]:
    """Run the network on one normalised image, in the precision that the settings say."""
    with torch.inference_mode(), autocast(model.device, model.config.train.precision):
        logits: Tensor = model.net(torch.from_numpy(pixels)[None].to(model.device))[0]
    return logits[(slice(None), *kept)].float().cpu().numpy()


def _tiled(model: Model, image: Num[np.ndarray, "channels *space"]) -> Iterator[Piece]:
    space = image.shape[1:]
    padded = _padded(model, space)
    before = [(total - have) // 2 for total, have in zip(padded, space, strict=True)]
    mean, deviation = _moments_in_strips(image)
    for tile in plan(padded, *tile_size(model)):
        place, kept, seen = [], [], [np.arange(len(image))]
        for window, core, shift, size in zip(tile.window, tile.core, before, space, strict=True):
            start, stop = max(0, core.start - shift), min(size, core.stop - shift)
            place.append(slice(start, stop))
            kept.append(slice(start + shift - window.start, stop + shift - window.start))
            seen.append(_mirrored(np.arange(window.start, window.stop) - shift, size))
        if all(part.start < part.stop for part in place):  # else the tile lies in the padding
            pixels = (_as_kept(image[np.ix_(*seen)]) - mean) / deviation
            yield tuple(place), _logits(model, pixels, tuple(kept))


def _padded(model: Model, space: Sequence[int]) -> tuple[int, ...]:
    """Size of an image once it is padded: a training patch at least, and a multiple of what the network needs."""
    step = nets.multiple(model.net)
    return tuple(-(-max(pair) // step) * step for pair in zip(space, model.config.data.size, strict=True))


def _mirrored(positions: Int[np.ndarray, "n"], size: int) -> Int[np.ndarray, "n"]:
    """Positions inside an axis for those beyond its ends, as `np.pad` does by `symmetric`, without a padded copy."""
    positions = positions % (2 * size)
    inside: Int[np.ndarray, "n"] = np.minimum(positions, 2 * size - 1 - positions)
    return inside


def _resized(model: Model, image: Num[np.ndarray, "channels *space"]) -> Iterator[Piece]:
    small = _shrunk(image, model.config.data.size)
    mean, deviation = moments(small)
    space, everything = image.shape[1:], (slice(None),) * model.dims
    logits = _logits(model, (small - mean) / deviation, everything)
    # Linear resizing works axis by axis: the first axis at once, and the others for a few of its lines at a time.
    tall = resize_image(logits, (space[0], *logits.shape[2:]))
    for rows in _strips(space[0], len(logits) * prod(map(max, space[1:], logits.shape[2:]))):
        yield (rows, *everything[1:]), resize_image(tall[:, rows], (rows.stop - rows.start, *space[1:]))


def _shrunk(image: Num[np.ndarray, "channels *space"], size: Sequence[int]) -> Num[np.ndarray, "channels *size"]:
    """`resize_image` in strips: it makes a float copy of all it is given. The last axis comes last, at once."""
    wide = np.empty((len(image), *size[:-1], image.shape[-1]), np.float32)
    for columns in _strips(image.shape[-1], len(image) * prod(map(max, image.shape[1:-1], size[:-1]))):
        part = image[..., columns].astype(np.float32)  # real numbers, so that integers are rounded only once
        wide[..., columns] = resize_image(part, (*size[:-1], part.shape[-1]))
    small: Num[np.ndarray, "channels *size"] = resize_image(wide, size)
    return np.rint(small).astype(image.dtype) if image.dtype in KEPT else small


def _moments_in_strips(image: Num[np.ndarray, "channels *space"]) -> Float32[np.ndarray, "two channels *ones"]:
    """`moments` of an image of any size: NumPy's `std` alone would take eight bytes for each value."""
    axes = tuple(range(1, image.ndim))
    strips = _strips(image.shape[1], len(image) * prod(image.shape[2:]))
    count = prod(image.shape[1:])

    def total(centre: np.ndarray | float, power: int) -> np.ndarray:
        parts = ((_as_kept(image[:, rows]) - np.float64(centre)) ** power for rows in strips)
        sums: np.ndarray = np.sum([part.sum(axis=axes, keepdims=True) for part in parts], axis=0)
        return sums

    mean = total(0.0, 1) / count
    deviation = np.sqrt(total(mean, 2) / count)
    varies = image.max(axis=axes, keepdims=True) > image.min(axis=axes, keepdims=True)
    return np.stack([mean, np.where(varies, deviation, 1)]).astype(np.float32)


def _as_kept(pixels: np.ndarray) -> np.ndarray:
    """The type in which the training keeps pixels."""
    return pixels if pixels.dtype in KEPT else pixels.astype(np.float32)


def _strips(length: int, values: int) -> list[slice]:
    """Cut an axis so that each strip, with so many values for each line, has at most `STRIP`, or is one line."""
    lines = max(1, STRIP // max(1, values))
    return [slice(start, min(length, start + lines)) for start in range(0, length, lines)]
