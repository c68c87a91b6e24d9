"""Plots of a run as data URIs, in vector form: loss, learning rate, change of layers, Dice of each case."""

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from nissl.files import data_uri
from nissl.metrics.metric import Metric
from nissl.reporting.contents import Filters, Tree

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours of Okabe and Ito (2008), which colour-blind readers can tell apart.
BLUE, VERMILION, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8a8a8a"
STYLE: Any = {
    "svg.hashsalt": "nissl",  # the same run gives the same bytes
    "font.size": 11,
    "text.parse_math": False,  # names are drawn as they are written
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": "#222222",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8e8e8",
    "legend.frameon": False,
}
SHOWN_FILTERS = 64


def plot(draw: Callable[["Axes"], None]) -> str:
    """Draw one plot and return it as an SVG data URI."""
    return picture(lambda figure: draw(figure.add_subplot()), (6.0, 3.4))


def picture(draw: Callable[["Figure"], None], size: tuple[float, float]) -> str:
    """Draw a figure of a size in inches and return it as an SVG data URI; no figure is kept."""
    import matplotlib
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return data_uri(buffer.getvalue(), "image/svg+xml")


def smooth(values: Float[np.ndarray, "steps"]) -> Float[np.ndarray, "steps"]:
    """Running mean over a twentieth of the values, shorter at the ends; values that are not finite are left out."""
    half = len(values) // 40
    finite = np.isfinite(values)
    total, count = (np.concatenate([[0.0], np.cumsum(v)]) for v in (np.where(finite, values, 0.0), finite))
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    found = count[high] - count[low]
    mean: Float[np.ndarray, "steps"] = np.full(len(values), np.nan)
    np.divide(total[high] - total[low], found, out=mean, where=found > 0)
    return mean


def loss_curve(log: Sequence[Tree]) -> str:
    """Loss by step: every logged value in grey, running means of the sum and of its terms in colour."""
    steps, loss = _column(log, "step"), _column(log, "loss")
    terms = sorted({name for row in log for name in row.get("terms", {})})

    def draw(axes: "Axes") -> None:
        axes.plot(steps, loss, color="#c8c8c8", linewidth=0.8)
        axes.plot(steps, smooth(loss), color="#222222", linewidth=2, label="loss")
        for name, colour in zip(terms, (BLUE, VERMILION, GREEN, PURPLE) * len(terms), strict=False):
            values = _column([row.get("terms", {}) for row in log], name)
            axes.plot(steps, smooth(values), color=colour, linewidth=1.5, label=name.replace("_", " "))
        axes.set(xlabel="step", ylabel="loss", ylim=(0, None) if np.nanmin(loss, initial=0) >= 0 else None)
        axes.legend(loc="upper right")

    return plot(draw)


def rate_curve(log: Sequence[Tree]) -> str:
    """Learning rate by step."""

    def draw(axes: "Axes") -> None:
        axes.plot(_column(log, "step"), _column(log, "learning_rate"), color=BLUE, linewidth=2)
        axes.set(xlabel="step", ylabel="learning rate", ylim=(0, None))

    return plot(draw)


def change_curve(curves: Sequence[Tree]) -> str:
    """Relative change of each layer's weights in the pre-training, the first layer dark and the last light."""
    steps = [row["step"] for row in curves]
    change = np.array([row["change"] for row in curves], dtype=np.float64)

    def draw(axes: "Axes") -> None:
        import matplotlib
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize

        depth = ScalarMappable(Normalize(1, max(change.shape[1], 2)), matplotlib.colormaps["cividis"])
        for column, colour in zip(change.T, depth.to_rgba(np.arange(1, change.shape[1] + 1)), strict=True):
            axes.plot(steps, 100 * column, color=colour, linewidth=1.4)
        axes.set(xlabel="step of the pre-training", ylabel="change, % of the norm", ylim=(0, None))
        assert axes.figure is not None
        bar = axes.figure.colorbar(depth, ax=axes, ticks=[1, change.shape[1]])
        bar.ax.set_yticklabels(["first layer", "last layer"])

    return plot(draw)


def case_plot(metric: Metric, values: Sequence[float], trivial: tuple[str, float] | None, unit: str) -> str:
    """A metric of every test case, worst first, beside the mean of the trivial prediction where there is one."""

    def draw(axes: "Axes") -> None:
        from matplotlib.ticker import MaxNLocator

        places = np.arange(1, len(values) + 1)
        axes.vlines(places, 0, values, color="#c9dcea", linewidth=1.2)
        axes.plot(places, values, "o", color=BLUE, markersize=4)
        if trivial is not None:
            label, level = f"{trivial[0]} (mean)", trivial[1]
            axes.axhline(level, color=VERMILION, linestyle="--", linewidth=1.5, label=label)
            axes.legend(loc="lower right", facecolor="white", framealpha=0.9, frameon=True, edgecolor="white")
        unit_shown = f", {metric.unit_in(unit)}" if metric.unit_in(unit) else ""
        axes.set(
            xlabel="test case, worst first",
            ylabel=f"{metric.title}{unit_shown}",
            ylim=(0, 1.02 if metric.higher_is_better and not metric.unit else None),
        )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(visible=False, axis="x")

    return plot(draw)


def filter_grid(filters: Filters) -> str:
    """First-layer filters as tiles, each scaled to its largest weight: grey is zero.

    Three input channels are shown as red, green and blue, any other number by their mean; of a 3-D kernel the middle
    slice is shown.
    """
    from PIL import Image

    shown = filters[:SHOWN_FILTERS, :, filters.shape[2] // 2] if filters.ndim == 5 else filters[:SHOWN_FILTERS]
    colours = shown if shown.shape[1] == 3 else shown.mean(axis=1, keepdims=True).repeat(3, axis=1)
    largest = np.abs(colours).max(axis=(1, 2, 3), keepdims=True)
    tiles = 0.5 + 0.5 * colours / np.where(largest > 0, largest, 1)
    count, _, height, width = tiles.shape
    columns = min(8, count)
    rows = -(-count // columns)
    framed = np.ones((rows * columns, height + 1, width + 1, 3))
    framed[:count, :height, :width] = np.moveaxis(tiles, 1, -1)
    grid = framed.reshape(rows, columns, height + 1, width + 1, 3).swapaxes(1, 2)
    sheet = grid.reshape(rows * (height + 1), columns * (width + 1), 3)[:-1, :-1]
    large = (255 * np.nan_to_num(sheet)).round().astype(np.uint8).repeat(12, axis=0).repeat(12, axis=1)
    buffer = io.BytesIO()
    Image.fromarray(large).save(buffer, format="PNG")
    return data_uri(buffer.getvalue(), "image/png")


def _column(rows: Sequence[Tree], name: str) -> Float[np.ndarray, "rows"]:
    return np.array([np.nan if row.get(name) is None else row[name] for row in rows], dtype=np.float64)
