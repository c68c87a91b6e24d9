"""The printed tables of a bench, from its numbers."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nissl.bench.analysis.overview import Gain
from nissl.bench.analysis.tables import ArmRow, Interval, Table, Versus
from nissl.bench.page.numbers import (
    UNKNOWN,
    amount,
    change,
    either,
    labels,
    p_value,
    span,
    steps,
    times,
    unit,
    with_deviation,
)
from nissl.bench.run.cost import Cost
from nissl.bench.run.results import Result
from nissl.metrics.metric import Metric
from nissl.reporting.run_page import fixed, thousands

FALSE_POSITIVES, EQUIVALENT = "false-positive cases", "annotation equivalent"
PUBLISHED = "published protocol: pooled Dice, % (sd)"
LENGTHS = ("steps_stage_1", "images_stage_1", "steps", "images_stage_2")


Column = Callable[[ArmRow], str]
"""The text of a row."""


@dataclass(frozen=True)
class PrintedRow:
    """A row of a printed table."""

    texts: tuple[str, ...]
    kind: str = ""
    """`baseline`, a verdict, `lacking` (some run is not done) or `trivial`."""


@dataclass(frozen=True)
class PrintedTable:
    """A printed table."""

    head: tuple[str, ...]
    rows: tuple[PrintedRow, ...]


def results_table(table: Table) -> PrintedTable:
    """How well the arms do, a row each and the trivial prediction last."""
    done, (primary, *others) = table.done, table.metrics
    units = "patients" if done and done[0].tested.n_groups else "cases"
    reference = next(_passes(row) for row in table.rows if row.arm == table.baseline)

    def value(number: float) -> str:
        return amount(primary, number)

    def versus(text: Callable[[Versus], str]) -> Column:
        return lambda row: text(row.versus) if row.versus else ""

    def size(one: Versus, ends: Interval) -> str:
        return span(ends, lambda end: change(one.metric, end))

    columns: list[tuple[str, Column]] = [
        ("arm", lambda row: _name(row.arm, table.baseline)),
        ("runs", _runs),
        ("masks", lambda row: fixed(row.masks, 0)),
        (_title(primary, done), lambda row: value(row.value)),
        ("95 % over seeds", lambda row: span(row.over_seeds, value)),
        (f"95 % over {units}", lambda row: span(row.over_cases, value)),
        *((_title(metric, done), _other(metric)) for metric in others),
        (PUBLISHED, lambda row: with_deviation(primary, row.others["published"])),
        (f"difference, {steps(primary, done)}", versus(lambda one: change(primary, one.difference))),
        ("95 % over seeds", versus(lambda one: size(one, one.over_seeds))),
        (f"95 % over {units}", versus(lambda one: size(one, one.over_cases))),
        ("p over seeds", versus(lambda one: p_value(one.p_seeds))),
        (f"p over {units}", versus(lambda one: p_value(one.p_cases))),
        (FALSE_POSITIVES, lambda row: str(row.false_positives)),
        (EQUIVALENT, lambda row: labels(row.equivalent, row.equivalent_span)),
        ("compute", lambda row: times(_passes(row), reference)),
    ]
    needed = {
        PUBLISHED: any(run.published for run in done),
        FALSE_POSITIVES: any(row.false_positives for row in table.rows),
        EQUIVALENT: any(row.equivalent for row in table.rows),
    }
    shown = [(head, text) for head, text in columns if needed.get(head, True)]
    rows = [PrintedRow(tuple(text(row) for _, text in shown), _kind(row, table)) for row in table.rows]
    if table.task.trivial:
        known = {_title(one, done): amount(one, table.trivial.get(one, math.nan)) for one in table.metrics}
        texts = {"arm": table.task.trivial} | {head: text for head, text in known.items() if text != UNKNOWN}
        rows.append(PrintedRow(tuple(texts.get(head, "") for head, _ in shown), "trivial"))
    return PrintedTable(tuple(head for head, _ in shown), tuple(rows))


def _title(metric: Metric, runs: Sequence[Result]) -> str:
    """The heading of a metric: one of all cases together has no interval over them, but a deviation over seeds."""
    return f"{metric.title}, {unit(metric, runs)}{'' if metric.by_case else ' (sd)'}"


def _other(metric: Metric) -> Column:
    """How a metric beside the primary one is printed."""
    if metric.by_case:
        return lambda row: amount(metric, row.others[metric.name].mean)
    return lambda row: with_deviation(metric, row.others[metric.name])


def _passes(row: ArmRow) -> float | None:
    return row.cost.passes if row.cost else None


def _kind(row: ArmRow, table: Table) -> str:
    kind = "baseline" if row.arm == table.baseline else row.versus.verdict if row.versus else ""
    return f"{kind} lacking".strip() if len(row.done) < len(row.runs) else kind


def _name(arm: str, baseline: str) -> str:
    return arm + (" (baseline)" if arm == baseline else "")


def _runs(row: ArmRow) -> str:
    """How many runs are done and, where that is not all, what came of the others."""
    lacking = [f"{row.count(status)} {status}" for status in ("failed", "missing") if row.count(status)]
    return f"{len(row.done)} of {len(row.runs)}; {', '.join(lacking)}" if lacking else str(len(row.done))


def overview_table(gains: Sequence[Gain], tables: Sequence[Table]) -> PrintedTable:
    """The difference of each arm in every table and on average, best first; a star where a table shows it."""
    ordered = sorted(gains, key=lambda one: -math.inf if math.isnan(one.gain) else one.gain, reverse=True)
    places = [f"{table.data}, {table.budget}" for table in tables]
    head = ("arm", *places, "mean", "95 % over seeds", "p over seeds", "seeds")
    return PrintedTable(head, tuple(_overview_row(gain) for gain in ordered))


def _overview_row(gain: Gain) -> PrintedRow:
    def size(difference: float) -> str:
        return change(gain.metric, difference)

    shown = ("helped", "hurt")
    cells = [size(one.difference) + "*" * (one.verdict in shown) if one else UNKNOWN for one in gain.versus]
    average = (size(gain.difference), span(gain.over_seeds, size), p_value(gain.p_seeds), str(gain.seeds))
    return PrintedRow((gain.arm, *cells, *average), gain.verdict)


def cost_table(tables: Sequence[Table]) -> PrintedTable:
    """What the arms cost on a data set, from the runs with all its budgets and from the probe."""
    head = (
        *("arm", "pre-training: steps", "images", "training: steps", "images", "network passes", "× baseline"),
        *("s per step, pre-training", "s per step, training", "× baseline", "peak memory, MB", "× baseline"),
    )
    costs = {row.arm: row.cost or Cost(tables[0].data, row.arm) for row in tables[0].rows}
    rows = []
    for arm, cost in costs.items():
        runs = [run for table in tables for row in table.rows if row.arm == arm for run in row.done]
        lengths = (either(getattr(run.training, name) for run in runs) for name in LENGTHS)
        texts = (_name(arm, tables[0].baseline), *lengths, *_measured(cost, costs[tables[0].baseline]))
        rows.append(PrintedRow(texts, "baseline" if arm == tables[0].baseline else ""))
    return PrintedTable(head, tuple(rows))


def _measured(cost: Cost, reference: Cost) -> tuple[str, ...]:
    return (
        thousands(round(cost.passes)) if cost.passes is not None else UNKNOWN,
        times(cost.passes, reference.passes),
        fixed(cost.seconds_stage_1 or None),
        fixed(cost.seconds_stage_2),
        times(cost.seconds_stage_2, reference.seconds_stage_2),
        thousands(round(cost.memory_bytes / 1e6)) if cost.memory_bytes else UNKNOWN,
        times(cost.memory_bytes, reference.memory_bytes),
    )
