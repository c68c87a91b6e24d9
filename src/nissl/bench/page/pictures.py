"""Pictures of a bench: what each arm gains over all tables, and curves of the metric against the number of masks."""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from nissl.bench.analysis.overview import Gain
from nissl.bench.analysis.tables import ArmRow, Table
from nissl.bench.page.numbers import steps, unit
from nissl.reporting.curves import BLUE, GREEN, GREY, PURPLE, VERMILION, picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, THIN = "#1c2026", "#b4bac1"
HIGHLIGHTS = (BLUE, VERMILION, GREEN, PURPLE)
"""Colours of the arms that are best over all budgets; the others are thin and grey."""
SHIFT = 0.012
COLUMNS, TITLE = 5, 24
"""Small pictures in a row, and characters in a line of their titles."""
APART = 0.042
"""Least distance of two names at the right end, as a fraction of the height."""


@dataclass(frozen=True)
class Picture:
    """A picture and what stands below it."""

    source: str
    """SVG data URI."""
    title: str
    caption: str
    folded: str = ""
    """Summary behind which it is folded away; empty: it is shown."""


@dataclass(frozen=True)
class Curve:
    """One arm: the primary metric (fractions in percent) against masks, at the budgets where a run is done."""

    arm: str
    masks: Float[np.ndarray, "budgets"]
    values: Float[np.ndarray, "budgets"]
    low: Float[np.ndarray, "budgets"]
    high: Float[np.ndarray, "budgets"]
    """95 % interval over seeds; nan where there is none."""


def curves_of(tables: Sequence[Table]) -> list[Curve]:
    """The curve of each arm of a data set, the baseline first, then from the best on.

    The best is the one with the largest mean difference to the baseline over the budgets.
    """
    rows: dict[str, list[ArmRow]] = {}
    for table in tables:
        for row in table.rows:
            if row.done:
                rows.setdefault(row.arm, []).append(row)

    def gain(arm: str) -> float:
        gains = [row.versus.gain for row in rows[arm] if row.versus]
        return float(np.mean(gains)) if gains else -np.inf

    scale = tables[0].task.primary.scale
    order = sorted(rows, key=lambda arm: (arm != tables[0].baseline, -gain(arm)))
    made = []
    for arm in order:
        ends = sorted((row.masks, row.value, *row.over_seeds) for row in rows[arm])
        masks, *fractions = np.array(ends, dtype=np.float64).T
        made.append(Curve(arm, masks, *(scale * fraction for fraction in fractions)))
    return made


def dataset_pictures(tables: Sequence[Table]) -> tuple[Picture, ...]:
    """All arms of a data set in one picture, and each beside the baseline.

    Without a finished run there is none; with one budget, or no other arm than the baseline, the second is missing.
    """
    curves, first, metric = curves_of(tables), tables[0].baseline, tables[0].task.primary
    if not curves:
        return ()
    title, axis = metric.title, f"{metric.title}, {unit(metric, [run for table in tables for run in table.done])}"
    if len(tables) == 1:
        caption = f"Mean {title} of each arm, best on top. Black: the baseline; bars: 95 % intervals over seeds."
        return (Picture(_side_by_side(curves, first, axis, metric.sign), f"{title} of all arms", caption),)
    caption = (
        f"Mean {title} against the number of masks (arms in colour a little aside, to be told apart). Black: the "
        "baseline; in colour: the best arms over all budgets; bars: 95 % intervals over seeds."
    )
    together = Picture(_overview(curves, first, axis), f"{title} against masks, all arms", caption)
    if all(curve.arm == first for curve in curves):
        return (together,)
    caption = "Blue: the arm; grey: the baseline; shaded: 95 % intervals over seeds."
    summary = "Each arm beside the baseline"
    beside = Picture(_beside(curves, first, axis), f"{title} against masks: {summary.lower()}", caption, summary)
    return together, beside


def overview_picture(gains: Sequence[Gain], tables: Sequence[Table]) -> Picture:
    """The mean difference of each arm over all tables with its interval, best on top, and that of each table."""
    ordered = sorted(gains, key=lambda one: -np.inf if np.isnan(one.gain) else one.gain)
    metric = tables[0].task.primary
    counted = f"{steps(metric, [run for table in tables for run in table.done])} of {metric.title}"
    names = list(dict.fromkeys(table.data for table in tables))

    def draw(axes: "Axes") -> None:
        drawn = []
        axes.axvline(0, color=INK, linewidth=1)
        for name, colour in zip(names, [*HIGHLIGHTS, *[GREY] * len(names)], strict=False):
            dots = [
                (metric.scale * one.difference, place)
                for place, gain in enumerate(ordered)
                for one, table in zip(gain.versus, tables, strict=True)
                if one and table.data == name
            ]
            across, up = np.array(dots).reshape(-1, 2).T
            drawn += axes.plot(across, up, "o", color=colour, alpha=0.55, markersize=4.5)
        places = range(len(ordered))
        low, high = metric.scale * np.array([gain.over_seeds for gain in ordered]).T
        axes.hlines(places, low, high, color=INK, linewidth=1.6)
        drawn += axes.plot([metric.scale * gain.difference for gain in ordered], places, "D", color=INK, markersize=5.5)
        axes.set_xlabel(f"{counted} against {tables[0].baseline}")
        axes.legend(drawn, [*names, "mean"], loc="upper left", bbox_to_anchor=(1.0, 1.0))

    caption = (
        f"Difference to the baseline in {counted}. Diamonds: mean over all tables, with its 95 % interval over seeds; "
        "dots: each table."
    )
    drawing = _rows([gain.arm for gain in ordered], draw)
    return Picture(drawing, "Difference to the baseline of each arm in all tables", caption)


def _side_by_side(curves: Sequence[Curve], first: str, axis: str, sign: int) -> str:
    """The metric of each arm at one budget with its interval, the best on top; the baseline black, with a line."""
    ordered = sorted(curves, key=lambda curve: sign * float(curve.values[0]))

    def draw(axes: "Axes") -> None:
        for place, curve in enumerate(ordered):
            colour = INK if curve.arm == first else BLUE
            axes.hlines(place, curve.low, curve.high, color=colour, linewidth=1.6)
            axes.plot(curve.values, [place], "D", color=colour, markersize=5.5)
            if curve.arm == first:
                axes.axvline(float(curve.values[0]), color=THIN, linewidth=1, zorder=0)
        axes.set_xlabel(axis)

    return _rows([curve.arm for curve in ordered], draw)


def _rows(arms: Sequence[str], draw: Callable[["Axes"], None]) -> str:
    """Draw a picture with a row for each arm, the first at the bottom."""

    def whole(figure: "Figure") -> None:
        axes = figure.add_subplot()
        draw(axes)
        axes.set_yticks(range(len(arms)), arms)
        axes.set_ylim(-0.7, len(arms) - 0.3)

    return picture(whole, (9.0, 1.2 + 0.27 * len(arms)))


def _overview(curves: Sequence[Curve], first: str, axis: str) -> str:
    """The baseline black, the best in colour, the others thin."""
    colours = {first: INK} | dict(zip((c.arm for c in curves if c.arm != first), HIGHLIGHTS, strict=False))

    def draw(figure: "Figure") -> None:
        axes = figure.add_subplot()
        for curve in reversed(curves):
            strong = curve.arm in colours
            # Beside each other, so that the intervals can be told apart.
            shift = 1 + SHIFT * list(colours).index(curve.arm) if strong else 1.0
            colour, width = colours.get(curve.arm, THIN), 2.0 if strong else 0.8
            axes.plot(shift * curve.masks, curve.values, "o-", color=colour, linewidth=width, markersize=4 + strong)
            if strong:
                axes.vlines(shift * curve.masks, curve.low, curve.high, color=colour, linewidth=1.2)
        _masks_axis(axes, curves)
        axes.set(xlabel="masks (logarithmic)", ylabel=axis)
        _names(axes, curves, colours)

    return picture(draw, (9.0, 2.6 + 0.16 * max(len(curves), 10)))


def _beside(curves: Sequence[Curve], first: str, axis: str) -> str:
    """A small picture for each arm, with the baseline in grey; all have the same axes."""
    baseline = [curve for curve in curves if curve.arm == first]
    others = [curve for curve in curves if curve.arm != first]
    rows = -(-len(others) // COLUMNS)

    def draw(figure: "Figure") -> None:
        import matplotlib

        with matplotlib.rc_context({"font.size": 9}):
            panels = figure.subplots(rows, min(COLUMNS, len(others)), sharex=True, sharey=True, squeeze=False).flat
            for place, axes in enumerate(panels):
                if place >= len(others):
                    axes.set_visible(False)
                    continue
                for curve, colour in [*((one, GREY) for one in baseline), (others[place], BLUE)]:
                    axes.fill_between(curve.masks, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0)
                    axes.plot(curve.masks, curve.values, "o-", color=colour, linewidth=1.6, markersize=3.5)
                    axes.vlines(curve.masks, curve.low, curve.high, color=colour, linewidth=0.8)
                axes.set_title(textwrap.fill(others[place].arm, TITLE), fontsize=9, loc="left")
                _masks_axis(axes, curves)
                axes.tick_params(labelbottom=place + COLUMNS >= len(others))
            figure.supxlabel("masks (logarithmic)", fontsize=9)
            figure.supylabel(axis, fontsize=9)

    return picture(draw, (11.0, 0.5 + 1.9 * rows))


def _masks_axis(axes: "Axes", curves: Sequence[Curve]) -> None:
    """Make the axis of the masks logarithmic, with a mark at each number that was used."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set_xscale("log")
    used = sorted({round(float(masks), 1) for curve in curves for masks in curve.masks})
    axes.xaxis.set_major_locator(FixedLocator(used))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    if len(used) == 1:  # of several budgets only one has a finished run
        axes.set_xlim(used[0] / 1.1, used[0] * 1.1)


def _names(axes: "Axes", curves: Sequence[Curve], colours: dict[str, str]) -> None:
    """Write the name of each arm right of the end of its line, none over another."""
    low, high = axes.get_ylim()
    ends = sorted((float(curve.values[-1]), curve.arm) for curve in curves)
    places = spread([end for end, _ in ends], APART * (high - low), (low, high))
    right = max(float(curve.masks[-1]) for curve in curves) * (1 + SHIFT * len(colours))
    axes.set_xlim(axes.get_xlim()[0], right * 1.02)
    for (end, arm), place in zip(ends, places, strict=True):
        axes.annotate(
            arm,
            (right, end),
            (1.06, (place - low) / (high - low)),
            textcoords="axes fraction",
            color=colours.get(arm, "#5a6470"),
            fontsize=9.5,
            fontweight="bold" if arm in colours else "normal",
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": "#cfd5da", "linewidth": 0.7, "relpos": (0, 0.5), "shrinkB": 2},
        )
    axes.set_ylim(low, high)


def spread(places: Sequence[float], apart: float, within: tuple[float, float]) -> list[float]:
    """Move ascending places as little as they need to be `apart` from each other, and within two ends if they can.

    Without the ends, the least squares of the moves are those of an isotonic regression of the places, each less the
    distance of those before it.
    """
    from scipy.optimize import isotonic_regression

    steps = apart * np.arange(len(places))
    free = isotonic_regression(np.array(places) - steps).x
    moved: list[float] = (np.clip(free, within[0], max(within[0], within[1] - steps[-1])) + steps).tolist()
    return moved
