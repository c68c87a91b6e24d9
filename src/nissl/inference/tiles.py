"""Masks of whole images of any size: through the network's input size, or in tiles at full resolution.

The image is read region by region and the mask is served band by band, so that memory is that of a band, a tile and a
strip; `nissl.inference.memory` states it before work starts.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, product
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Num
from torch import Tensor

from nissl.data.batches import CHANNELS_LAST
from nissl.data.preprocessing import Preprocessing, Statistics, kept_type, moments_in_strips, resize_image
from nissl.errors import DataError, out_of_memory
from nissl.imageio.tiff_regions import STRIP, Pixels, row_strips
from nissl.inference.memory import MemoryFallback, padded_shape, tile_size
from nissl.model import Model
from nissl.training.precision import autocast

Place = tuple[slice, ...]
Piece = tuple[Place, Float32[np.ndarray, "classes *piece"]]


@dataclass(frozen=True)
class Tile:
    """A part of an image, in its pixels along each axis: the network sees `window`, of which `core` is kept."""

    window: Place
    core: Place


def predict_mask(
    model: Model, image: Pixels | Num[np.ndarray, "channels *space"], fallback: MemoryFallback | None = None
) -> np.ndarray:
    """Return the prediction for each pixel, such as its class, in the image's own geometry.

    `fallback` is what is given up where memory runs out; one for many images says each once.

    Raises:
        DataError: the image has other channels or dimensions than the network was trained on.
        ResourceError: too little memory even for the smallest tile.

    """
    return np.concatenate([band for _, band in bands(model, image, fallback)])


def bands(model: Model, image: Pixels, fallback: MemoryFallback | None = None) -> Iterator[tuple[slice, np.ndarray]]:
    """Serve the prediction band by band, in order along the first axis; arguments and errors as above.

    In `resize` sampling the image is resized and normalised as in training and the logits are resized back linearly,
    strip by strip. In `patches` sampling it is cut into tiles that see a halo around what is kept: where the halo is at
    least the radius of the network's receptive field, the result is that of the whole image at once. (Networks that
    normalise by statistics of their input, such as InstanceNorm, have an unbounded receptive field.) Where memory runs
    out, a tile is cut into smaller ones with the same halo.
    """
    task = model.task
    for rows, served in pieces(model, image, fallback or MemoryFallback(model)):
        band: np.ndarray | None = None
        for (first, *others), outputs in served:
            piece = task.decode(outputs)
            band = np.empty((rows.stop - rows.start, *image.shape[2:]), piece.dtype) if band is None else band
            band[(slice(first.start - rows.start, first.stop - rows.start), *others)] = piece
        assert band is not None
        yield rows, band


def pieces(model: Model, image: Pixels, fallback: MemoryFallback) -> Iterator[tuple[slice, Iterator[Piece]]]:
    """Rows of the image, each with its logits piece by piece and their places; every pixel comes exactly once."""
    require_fit(model, image)
    fallback.begin()
    try:
        yield from (_resized if model.preprocessing.sampling == "resize" else _tiled)(model, image, fallback)
    finally:
        model.predictor.to(model.device)


def require_fit(model: Model, image: Pixels, where: Path | str = "image") -> None:
    """Refuse, by a DataError, an image of other channels or dimensions than in training."""
    fix = "convert it to the kind of the training images, or train on images of this kind"
    channels, *space = image.shape
    if len(space) != model.dims:
        raise DataError(where, f"a {len(space)}-D image", f"{model.dims}-D, as the training images", fix)
    if channels != model.channels:
        found, expected = f"{channels} channel{'s' * (channels > 1)}", f"{model.channels}, as the training images"
        raise DataError(where, found, expected, fix)


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


def _logits(
    model: Model, pixels: Float32[np.ndarray, "channels *window"], kept: Place
) -> Float32[np.ndarray, "classes *core"]:
    """Run the network on one normalised image, in the precision that the settings say."""
    images = torch.from_numpy(pixels)[None].to(model.device).contiguous(memory_format=CHANNELS_LAST[pixels.ndim + 1])
    with torch.inference_mode(), autocast(model.device, model.description.precision):
        logits: Tensor = model.predictor(images)[0]
    return logits[(slice(None), *kept)].float().cpu().numpy()


@dataclass(frozen=True)
class _Tiling:
    """An image that is cut into tiles: how it is padded, and how it is normalised."""

    image: Pixels
    padded: tuple[int, ...]
    before: tuple[int, ...]
    preprocessing: Preprocessing
    statistics: Statistics

    def pixels(self, window: Place) -> Float32[np.ndarray, "channels *window"]:
        """Normalised pixels of a window of the padded image, mirrored at the borders of the image."""
        box, picks = [], []
        for part, before, size, padded in zip(window, self.before, self.image.shape[1:], self.padded, strict=True):
            # The padded image itself would be a copy: only the positions along its axes are padded.
            seen = np.pad(np.arange(size), (before, padded - size - before), "symmetric")[part]
            box.append(slice(int(seen.min()), int(seen.max()) + 1))
            picks.append(seen - box[-1].start)
        region = self.image[(slice(None), *box)]
        if region.shape[1:] != tuple(map(len, picks)) or any((np.diff(pick) != 1).any() for pick in picks):
            region = region[np.ix_(np.arange(len(region)), *picks)]
        return self.preprocessing.normalised(kept_type(region), self.statistics)

    def place(self, core: Place) -> Place:
        """Place in the image of a core in the padded image; empty where it lies in the padding."""
        spans = zip(core, self.before, self.image.shape[1:], strict=True)
        return tuple(slice(max(0, part.start - shift), min(size, part.stop - shift)) for part, shift, size in spans)


def _tiled(model: Model, image: Pixels, fallback: MemoryFallback) -> Iterator[tuple[slice, Iterator[Piece]]]:
    space = image.shape[1:]
    padded = padded_shape(model, space)
    before = tuple((total - have) // 2 for total, have in zip(padded, space, strict=True))
    tiling = _Tiling(image, padded, before, model.preprocessing, moments_in_strips(image))
    for _, row in groupby(plan(padded, *tile_size(model)), key=lambda tile: tile.core[0].start):
        tiles = [tile for tile in row if all(part.start < part.stop for part in tiling.place(tile.core))]
        if tiles:
            yield tiling.place(tiles[0].core)[0], (piece for tile in tiles for piece in _pieces(tiling, tile, fallback))


def _pieces(tiling: _Tiling, tile: Tile, fallback: MemoryFallback) -> Iterator[Piece]:
    """Predict a tile, cut into smaller ones where memory ran out."""
    core = fallback.core
    for part in _parts(tile, fallback, tiling.padded):
        place = tiling.place(part.core)
        if not all(span.start < span.stop for span in place):
            continue
        logits = None
        if fallback.core == core:  # else an earlier part ran out of memory
            shifts = [before - seen.start for before, seen in zip(tiling.before, part.window, strict=True)]
            kept = tuple(slice(at.start + by, at.stop + by) for at, by in zip(place, shifts, strict=True))
            logits = _attempt(fallback, partial(tiling.pixels, part.window), kept)
        if logits is None:
            yield from _pieces(tiling, part, fallback)
        else:
            yield place, logits


def _parts(tile: Tile, fallback: MemoryFallback, padded: Sequence[int]) -> Iterator[Tile]:
    """The tile, or smaller ones with the same halo that cover its core."""
    core, halo = tile_size(fallback.model)
    step = fallback.core or core
    if step == core:
        yield tile
        return
    cuts = ([slice(at, min(at + step, part.stop)) for at in range(part.start, part.stop, step)] for part in tile.core)
    for spans in product(*cuts):
        ends = zip(spans, padded, strict=True)
        yield Tile(tuple(slice(max(0, at.start - halo), min(total, at.stop + halo)) for at, total in ends), spans)


def _attempt(
    fallback: MemoryFallback, pixels: Callable[[], Float32[np.ndarray, "channels *window"]], kept: Place
) -> Float32[np.ndarray, "classes *core"] | None:
    """Logits of what is kept of a window; None where memory ran out and less is tried next, if there is less."""
    try:
        return _logits(fallback.active_model, pixels(), kept)
    except (MemoryError, RuntimeError, OSError) as error:
        if not out_of_memory(error):
            raise
    fallback.next_attempt()  # not inside the handler: the error holds on to the tensors of the failed attempt
    return None


def _resized(model: Model, image: Pixels, fallback: MemoryFallback) -> Iterator[tuple[slice, Iterator[Piece]]]:
    space, everything = image.shape[1:], (slice(None),) * model.dims
    normalised = model.preprocessing(image)
    while (logits := _attempt(fallback, lambda: normalised, everything)) is None:
        pass
    # Linear resizing works axis by axis: the first axis at once, and the others for a few of its lines at a time.
    tall = resize_image(logits, (space[0], *logits.shape[2:]))
    widest = (len(logits), space[0], *map(max, space[1:], logits.shape[2:]))
    for rows in row_strips(widest, STRIP):
        strip = resize_image(tall[:, rows], (rows.stop - rows.start, *space[1:]))
        yield rows, iter([((rows, *everything[1:]), strip)])
