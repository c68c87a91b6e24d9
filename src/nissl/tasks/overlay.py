"""Outlines of reference and prediction on the image."""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Num, UInt8

from nissl.files import data_uri

COLOURS = ("#56B4E9", "#E69F00", "#CC79A7", "#F0E442", "#009E73", "#D55E00", "#FFFFFF")
"""Of the classes in turn, after Okabe and Ito (2008): colour-blind readers can tell them apart."""
RIM = "#101010"
"""Dark, so that the outlines are visible on any tissue."""
REFERENCE, PREDICTION, DASHES = 4.4, 2.4, (0, (2.5, 2.5))
"""Widths of the solid and of the dashed outline, narrower, so that both show where they coincide."""
LARGEST = 640


@dataclass(frozen=True)
class Masks:
    """What an overlay shows: an image with its two masks, spacing in mm along each axis if known.

    `turned` says that the first axis points right and the second up, as NIfTI stores volumes, rather than rows first.
    """

    image: Num[np.ndarray, "channels *space"]
    reference: UInt8[np.ndarray, "*space"]
    prediction: UInt8[np.ndarray, "*space"]
    spacing: tuple[float, ...] | None = None
    turned: bool = False


def colour_of(label: int) -> str:
    """Colour of a class, from 1 on."""
    return COLOURS[(label - 1) % len(COLOURS)]


def draw_overlay(masks: Masks) -> str:
    """Draw the outlines of each class on the image, as a JPEG data URI.

    Of a volume, the slice with the largest reference area is drawn, across the axis with the widest spacing.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patheffects import withStroke

    plane = _thinned(_slice(masks) if masks.reference.ndim == 3 else masks)
    height, width = np.multiply(plane.reference.shape, plane.spacing or (1.0, 1.0))
    scale = LARGEST / 100 / max(height, width)
    figure = Figure(figsize=(width * scale, height * scale), dpi=100)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.imshow(displayed(plane.image), aspect="auto", cmap="gray", vmin=0, vmax=1, interpolation="bilinear")
    rows, columns = (np.arange(-1, size + 1) for size in plane.reference.shape)
    for classes, width, style in ((plane.reference, REFERENCE, "solid"), (plane.prediction, PREDICTION, DASHES)):
        for label in np.unique(classes[classes > 0]):
            inside = np.pad(classes == label, 1).astype(np.float64)
            line: Any = {"colors": colour_of(label), "linewidths": width, "linestyles": [style]}
            drawn = axes.contour(columns, rows, inside, levels=[0.5], **line)
            drawn.set_path_effects([withStroke(linewidth=width + 1.4, foreground=RIM)])
    axes.set(xlim=(-0.5, plane.reference.shape[1] - 0.5), ylim=(plane.reference.shape[0] - 0.5, -0.5))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="jpeg", pil_kwargs={"quality": 88, "subsampling": 0})
    return data_uri(buffer.getvalue(), "image/jpeg")


def displayed(image: Num[np.ndarray, "channels height width"]) -> Float[np.ndarray, "height width *rgb"]:
    """Bring an image to 0-1 for display: RGB as it is, otherwise the first channel; contrast from the 1 % extremes."""
    shown = np.moveaxis(image, 0, -1) if image.shape[0] == 3 else image[0]
    if shown.dtype == np.uint8 and image.shape[0] == 3:
        return np.asarray(shown / 255.0)
    finite = shown[np.isfinite(shown)].astype(np.float64)
    low, high = np.percentile(finite, [0.5, 99.5]) if finite.size else (0.0, 1.0)
    return np.clip((np.nan_to_num(shown.astype(np.float64)) - low) / max(high - low, 1e-12), 0, 1)


def _slice(masks: Masks) -> Masks:
    """One slice of a volume, upright; among equal spacings it lies across the slow axis of the file format."""
    spacing = masks.spacing or (1.0, 1.0, 1.0)
    axis = max(range(3), key=lambda a: (spacing[a], a if masks.turned else -a))
    index = _fullest(masks.reference > 0, masks.prediction > 0, axis)
    parts = (masks.image, axis + 1), (masks.reference, axis), (masks.prediction, axis)
    image, reference, prediction = (
        np.rot90(array.take(index, axis=across), k=int(masks.turned), axes=(-2, -1)) for array, across in parts
    )
    kept = tuple(step for a, step in enumerate(spacing) if a != axis)
    return Masks(image, reference, prediction, kept[::-1] if masks.turned else kept)


def _fullest(reference: Bool[np.ndarray, "x y z"], prediction: Bool[np.ndarray, "x y z"], axis: int) -> int:
    """Slice with the most reference, else with the most prediction, else the middle."""
    others = tuple(a for a in range(3) if a != axis)
    for mask in (reference, prediction):
        if mask.any():
            return int(np.argmax(mask.sum(axis=others)))
    return int(reference.shape[axis] // 2)


def _thinned(masks: Masks) -> Masks:
    """Leave out rows and columns that the page could not show."""
    step = max(1, max(masks.reference.shape) // LARGEST)
    whole = masks.image, masks.reference, masks.prediction
    image, reference, prediction = (array[..., ::step, ::step] for array in whole)
    return Masks(image, reference, prediction, masks.spacing)
