"""The printed tables of a bench, from its numbers."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nissl.bench.analysis.overview import Gain
from nissl.bench.analysis.tables import ArmRow, Table, Versus
from nissl.bench.page.numbers import UNKNOWN, either, labels, p_value, percent, points, span, times, with_deviation
from nissl.bench.run.cost import Cost
from nissl.reporting.run_page import fixed, thousands

TRIVIAL_ROW = "foreground everywhere"
DIFFERENCE, FALSE_POSITIVES = "difference, percentage points", "false-positive cases"
EQUIVALENT = "annotation equivalent"
LENGTHS = ("steps_stage_1", "images_stage_1", "steps", "images_stage_2")
DICE, POOLED, PUBLISHED = "Dice, %", "pooled Dice, % (sd)", "published protocol: pooled Dice, % (sd)"


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
    """How well the arms do, a row each and the trivial score last."""
    done = table.done
    units = "patients" if done and done[0].tested.n_groups else "cases"
    reference = next(_passes(row) for row in table.rows if row.arm == table.baseline)

    def versus(text: Callable[[Versus], str]) -> Callable[[ArmRow], str]:
        return lambda row: text(row.versus) if row.versus else ""

    columns: list[tuple[str, Callable[[ArmRow], str]]] = [
        ("arm", lambda row: _name(row.arm, table.baseline)),
        ("runs", _runs),
        ("masks", lambda row: fixed(row.masks, 0)),
        (DICE, lambda row: percent(row.dice)),
        ("95 % over seeds", lambda row: span(row.over_seeds, percent)),
        (f"95 % over {units}", lambda row: span(row.over_cases, percent)),
        (POOLED, lambda row: with_deviation(row.others["pooled_dice"])),
        (PUBLISHED, lambda row: with_deviation(row.others["published"])),
        (f"HD95, {either(run.tested.unit for run in done)}", lambda row: fixed(row.others["hd95"].mean, 1)),
        (DIFFERENCE, versus(lambda one: points(one.dice))),
        ("95 % over seeds", versus(lambda one: span(one.over_seeds, points))),
        (f"95 % over {units}", versus(lambda one: span(one.over_cases, points))),
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
    trivial = {"arm": TRIVIAL_ROW, DICE: percent(table.trivial[0]), POOLED: percent(table.trivial[1])}
    last = PrintedRow(tuple(trivial.get(head, "") for head, _ in shown), "trivial")
    return PrintedTable(tuple(head for head, _ in shown), (*rows, last))


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
    ordered = sorted(gains, key=lambda gain: -math.inf if math.isnan(gain.dice) else gain.dice, reverse=True)
    places = [f"{table.data}, {table.budget}" for table in tables]
    head = ("arm", *places, "mean", "95 % over seeds", "p over seeds", "seeds")
    return PrintedTable(head, tuple(_overview_row(gain) for gain in ordered))


def _overview_row(gain: Gain) -> PrintedRow:
    shown = ("helped", "hurt")
    cells = [points(one.dice) + "*" * (one.verdict in shown) if one else UNKNOWN for one in gain.versus]
    average = (points(gain.dice), span(gain.over_seeds, points), p_value(gain.p_seeds), str(gain.seeds))
    return PrintedRow((gain.arm, *cells, *average), gain.verdict)


def cost_table(tables: Sequence[Table]) -> PrintedTable:
    """What the arms cost on a data set, from the runs with all its budgets and from the probe."""
    head = (
        *("arm", "stage 1: steps", "images", "stage 2: steps", "images", "network passes", "× baseline"),
        *("s per step, stage 1", "s per step, stage 2", "× baseline", "peak memory, MB", "× baseline"),
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
