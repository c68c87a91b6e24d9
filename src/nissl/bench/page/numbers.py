"""How the numbers of a bench are written."""

import math
from collections.abc import Callable, Iterable

from nissl.bench.analysis.tables import Equivalent, Interval, Spread
from nissl.bench.run.results import Result
from nissl.metrics.metric import Metric
from nissl.reporting.run_page import fixed

UNKNOWN = "–"


def amount(metric: Metric, value: float) -> str:
    """A value with one decimal: a fraction in percent."""
    return fixed(metric.scale * value, 1).replace("-", "−")


def with_deviation(metric: Metric, spread: Spread) -> str:
    """A value and, where there is one, its standard deviation."""
    more = "" if math.isnan(spread.deviation) else f" ({amount(metric, spread.deviation)})"
    return amount(metric, spread.mean) + more


def change(metric: Metric, difference: float) -> str:
    """A difference with its sign: of fractions in percentage points."""
    rounded = round(metric.scale * difference, 1) + 0.0  # what rounds to nothing has no minus
    return UNKNOWN if math.isnan(difference) else f"{rounded:+.1f}".replace("-", "−")


def unit(metric: Metric, runs: Iterable[Result]) -> str:
    """The unit in which values of runs are printed."""
    return metric.unit_in(either(run.tested.unit for run in runs)) or "%"


def steps(metric: Metric, runs: Iterable[Result]) -> str:
    """What differences are counted in."""
    return "percentage points" if not metric.unit else unit(metric, runs)


def span(interval: Interval, text: Callable[[float], str]) -> str:
    """An interval, its ends written by `text`."""
    return UNKNOWN if math.isnan(interval[0]) else f"{text(interval[0])} to {text(interval[1])}"


def p_value(p: float) -> str:
    """A p-value, never as 0."""
    return UNKNOWN if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def labels(equivalent: Equivalent | None, ends: tuple[Equivalent, Equivalent] | None = None) -> str:
    """An annotation equivalent or its bound, and those of the ends of the interval where they differ."""
    if equivalent is None:
        return ""
    if ends and set(ends) != {equivalent}:
        return f"{labels(equivalent)} ({' to '.join(map(labels, ends))})"
    bound, count = equivalent
    return f"{bound} {fixed(count, 0 if bound or count >= 100 else 1)}".strip()


def times(value: float | None, reference: float | None) -> str:
    """How many times the reference a cost is."""
    return f"{value / reference:.2f}×" if value and reference else UNKNOWN


def either(values: Iterable[object]) -> str:
    """The value that all runs have, or each of theirs."""
    return " / ".join(dict.fromkeys(str(value) for value in values if value is not None)) or UNKNOWN
