"""What the tables of a bench say, as text: the cells of printed tables, facts, warnings and plain sentences."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nissl.bench.analysis.overview import Gain
from nissl.bench.analysis.tables import Interval, Needed, Row, Table, unlike
from nissl.bench.run.cost import STEPS, Cost
from nissl.bench.run.results import Result
from nissl.evaluation.compare import SIGNIFICANT
from nissl.evaluation.table import FEW
from nissl.nets.settings import UNet
from nissl.reporting.run_page import PRINTED_NAMES, counted, fixed, thousands

PARITY = (
    "published protocol: the checkpoint and the threshold were chosen on the test images, whose masks are not counted "
    "among those of the budget; for comparison only"
)
TRIVIAL = "foreground everywhere"
MANY_ERRORS = 4.0
"""Standard errors from which on a test is called weak; a single comparison of many seeds takes two."""


@dataclass(frozen=True)
class Line:
    """A row of a printed table."""

    texts: tuple[str, ...]
    kind: str = ""
    """`baseline`, `helped`, `hurt`, `lacking` (some run is not done) or `trivial`."""


@dataclass(frozen=True)
class Sheet:
    """A printed table."""

    head: tuple[str, ...]
    lines: tuple[Line, ...]


def sentence(table: Table) -> str:
    """Say which arms helped and which did not: with both corrected p-values below 0.05, or else no difference."""
    compared = {row.arm: row.versus for row in table.rows if row.arm != table.baseline}
    by_outcome: dict[str, list[str]] = {}
    for arm, one in compared.items():
        outcome = one.outcome if one else "not compared"
        points = f" ({points_of(one.dice)})" if one and outcome in ("helped", "hurt") else ""
        if one and outcome == "unclear":
            mine, others = one.false_alarms
            points = f" ({points_of(one.dice)}, false alarms {mine} against {others})"
        by_outcome.setdefault(outcome, []).append(arm + points)
    seeds = sorted({one.seeds for one in compared.values() if one and one.outcome != "not compared"})
    parts = [
        f"{verb}, against {table.baseline}: {', '.join(by_outcome[verb])}."
        for verb in ("helped", "hurt")
        if verb in by_outcome
    ]
    if "unclear" in by_outcome:
        listed = ", ".join(by_outcome["unclear"])
        parts.append(f"neither helped nor hurt, as Dice and false alarms say the opposite: {listed}.")
    if "no difference" in by_outcome:
        how_many = counted(seeds[0], "seed") if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
        verb = "shows" if seeds == [1] else "show"
        parts.append(f"no difference that {how_many} {verb}: {', '.join(by_outcome['no difference'])}.")
    if "not compared" in by_outcome:
        parts.append(f"not compared, for too few finished runs: {', '.join(by_outcome['not compared'])}.")
    return " ".join(part[0].upper() + part[1:] for part in parts) or "There is one arm, and nothing to compare it with."


def overview_sentence(gains: Sequence[Gain], tables: Sequence[Table]) -> str:
    """Say which arms helped on average over all tables, with interval, and which did not."""
    by_outcome: dict[str, list[str]] = {}
    for gain in gains:
        size = ""
        if gain.outcome in ("helped", "hurt"):
            size = f" ({points_of(gain.dice)}; {points_span(gain.over_seeds)})"
        if gain.outcome == "unclear":
            size = f" ({points_of(gain.dice)}, false alarms {gain.false_alarms[0]} against {gain.false_alarms[1]})"
        by_outcome.setdefault(gain.outcome, []).append(gain.arm + size)
    said = {
        "helped": f"better than {tables[0].baseline}",
        "hurt": f"worse than {tables[0].baseline}",
        "unclear": "neither, as Dice and false alarms say the opposite",
        "no difference": "no difference is shown",
        "not compared": "not compared, for too few seeds with a number in all",
    }
    parts = [f"{said[outcome]}: {', '.join(by_outcome[outcome])}" for outcome in said if outcome in by_outcome]
    return f"On average over {len(tables)} tables, {'; '.join(parts)}."


def overview_sheet(gains: Sequence[Gain], tables: Sequence[Table]) -> Sheet:
    """The difference of each arm in every table and on average, best first; a star where a table shows it."""
    ordered = sorted(gains, key=lambda gain: -math.inf if math.isnan(gain.dice) else gain.dice, reverse=True)
    places = [f"{table.data}, {table.budget}" for table in tables]
    head = ("arm", *places, "mean", "95 % over seeds", "p over seeds", "seeds")
    return Sheet(head, tuple(_overview_line(gain) for gain in ordered))


def _overview_line(gain: Gain) -> Line:
    cells = [
        points_of(one.dice) + ("*" if one.outcome in ("helped", "hurt") else "") if one else "–" for one in gain.versus
    ]
    average = (points_of(gain.dice), points_span(gain.over_seeds), p_text(gain.p_seeds), str(gain.seeds))
    return Line((gain.arm, *cells, *average), gain.outcome)


def unequal(table: Table) -> list[str]:
    """Say where the arms did not learn from the masks for as long."""
    found = []
    for what, values in unlike(table).items():
        listed = "; ".join(f"{value}: {', '.join(arms)}" for value, arms in values.items())
        found.append(f"The arms do not have the same number of {what} in stage 2 ({listed}): they cannot be compared.")
    return found


def warnings(table: Table) -> list[str]:
    """List what makes the numbers of a table less than they seem."""
    found = unequal(table)
    found += protocol([table])
    lacking = [run for row in table.rows for run in row.runs if run.status != "done"]
    if lacking:
        failed = sum(run.status == "failed" for run in lacking)
        whole = sum(len(row.runs) for row in table.rows)
        found.append(
            f"{len(lacking)} of {whole} runs have no result ({failed} failed, {len(lacking) - failed} missing): "
            "means are over those that are done."
        )
    poor = [row.arm for row in table.rows if row.dice <= table.trivial[0]]
    if poor:
        found.append(f"No better than calling every pixel foreground: {', '.join(poor)}.")
    most = max((len(row.done) for row in table.rows), default=0)
    if table.done and most < 3:
        found.append("Fewer than three seeds: the intervals and tests over them say little.")
    return found + _weakness(table)


def protocol(tables: Sequence[Table]) -> list[str]:
    """Say where numbers of the published protocol are shown."""
    marked = any(run.protocol == "parity" for table in tables for run in table.done)
    return [PARITY[0].upper() + PARITY[1:] + "."] if marked else []


def _weakness(table: Table) -> list[str]:
    """Say where a test finds large differences only, or nothing, however large it is."""
    arms, first = len(table.rows) - 1, next(iter(table.done), None)
    if not arms or not first or not first.n_cases:
        return []
    seeds = max(len(row.done) for row in table.rows)
    units, kind = (first.n_groups, "groups (patients)") if first.n_groups else (first.n_cases, "cases")
    return _over_seeds(arms, seeds) + _over_cases(arms, units, kind)


def _over_seeds(arms: int, seeds: int) -> list[str]:
    """Say from how many standard errors on the best of all arms counts: its p is multiplied by their number."""
    from scipy.stats import t as student

    if seeds < 2:
        return []
    least = float(student.isf(SIGNIFICANT / (2 * arms), seeds - 1))
    if least < MANY_ERRORS:
        return []
    return [
        f"With {seeds} seeds and {counted(arms, 'arm')} beside the baseline, the test over seeds shows a difference "
        f"from {least:.1f} standard errors on: smaller ones take more seeds or fewer arms."
    ]


def _over_cases(arms: int, units: int, kind: str) -> list[str]:
    """Say what so few cases or groups cannot show."""
    least = min(1.0, arms * 2.0 ** (1 - units))
    if least >= SIGNIFICANT:
        return [
            f"With {units} test {kind} the corrected p over them cannot fall below {least:.2f}: nothing can be shown."
        ]
    return [f"Only {units} test {kind}: below {FEW}, take what is said over them as a hint."] if units < FEW else []


def title(table: Table) -> str:
    """Data set, budget and masks."""
    masks = sorted({run.masks_seen for run in table.done if run.masks_seen is not None})
    number = f" ({' / '.join(counted(count, 'mask') for count in masks)})" if masks else ""
    return f"{table.data}, {table.budget}{number}"


def facts(table: Table) -> str:
    """Sizes, length, seeds, device and date of the runs of a table."""
    config, done = table.config, table.done
    net = PRINTED_NAMES.get(config.net.name, config.net.name)
    widths = f", widths {'-'.join(map(str, config.net.widths))}" if isinstance(config.net, UNet) else ""
    seeds = sorted({run.seed for row in table.rows for run in row.runs})
    asked = f"{counted(len(seeds), 'seed')} ({', '.join(map(str, seeds))})"
    if not done:
        return f"{net}{widths}; {counted(config.train.steps, 'step')}; {asked}; no run is done yet."
    sizes = [int(run.parameters) for run in done if run.parameters]
    spread = thousands(min(sizes)) + (f" to {thousands(max(sizes))}" if min(sizes) < max(sizes) else "")
    tested = f"{done[0].n_cases} test images" + (
        f" of {done[0].n_groups} groups (patients)" if done[0].n_groups else ""
    )
    parts = [
        f"{net}{widths}, {spread} parameters",
        f"input {either(run.input for run in done).replace('x', ' × ')}",
        *_lengths(table),
        asked,
        tested,
        either(run.device for run in done),
        " to ".join(sorted({date(min(done, key=started)), date(max(done, key=started))})),
    ]
    return "; ".join(parts) + "."


def _lengths(table: Table) -> list[str]:
    """Steps and images of both stages, and how stage 2 learns."""
    done, train = table.done, table.config.train
    pretrained = [run for run in done if run.steps_stage_1]
    shown = {run.images_stage_2 // run.steps for run in done if run.images_stage_2 and run.steps}
    stage_1 = f"{either(run.steps_stage_1 for run in pretrained)} steps of stage 1, where there is one"
    found = [stage_1] if pretrained else []
    found.append(f"{either(run.steps for run in done)} steps of stage 2 with {either(sorted(shown))} images each")
    if not protocol([table]):  # which has settings of its own
        precision = "float32 (on a GPU bfloat16)" if train.precision == "auto" else train.precision
        found.append(f"learning rate {train.learning_rate:g}, {precision}")
    return found


def started(run: Result) -> str:
    """When a run began, to be sorted by."""
    return run.date or ""


def date(run: Result) -> str:
    """The day on which a run began."""
    return started(run)[:10]


def results_sheet(table: Table) -> Sheet:
    """How well the arms do, a row each and the trivial score last."""
    first = next(iter(table.done), None)
    units = "patients" if first and first.n_groups else "cases"
    parity, alarms = any(run.protocol == "parity" for run in table.done), any(row.false_alarms for row in table.rows)
    head = (
        *("arm", "runs", "masks", "Dice, %", "95 % over seeds", f"95 % over {units}", "pooled Dice, % (sd)"),
        *(("published protocol: pooled Dice, % (sd)",) if parity else ()),
        *(
            f"HD95, {either(run.unit for run in table.done)}",
            "difference, points",
            "95 % over seeds",
            f"95 % over {units}",
        ),
        *("p over seeds", f"p over {units}", *(("false alarms",) if alarms else ())),
        *(("masks the baseline needs",) if needs(table) else ()),
        "compute",
    )
    lines = [_result_line(row, table, parity, alarms) for row in table.rows]
    everywhere = [TRIVIAL, "", "", percent(table.trivial[0]), "", "", percent(table.trivial[1])]
    padded = everywhere + [""] * (len(head) - len(everywhere))
    return Sheet(head, (*lines, Line(tuple(padded), "trivial")))


def needs(table: Table) -> bool:
    """Say whether it is known of any arm how many masks the baseline needs for its Dice."""
    return any(row.needed for row in table.rows)


def _result_line(row: Row, table: Table, parity: bool, alarms: bool) -> Line:
    one, reference = row.versus, next(other.cost for other in table.rows if other.arm == table.baseline)
    kind: str = "baseline" if row.arm == table.baseline else one.outcome if one else ""
    if row.count("failed") or row.count("missing"):
        kind += " lacking"
    published = (with_spread(row.parity, row.parity_sd),) if parity else ()
    texts = (
        row.arm + (" (baseline)" if row.arm == table.baseline else ""),
        runs_text(row),
        fixed(row.masks, 0),
        percent(row.dice),
        span(row.over_seeds),
        span(row.over_cases),
        with_spread(row.pooled, row.pooled_sd),
        *published,
        fixed(row.hd95, 1),
        points_of(one.dice) if one else "",
        points_span(one.over_seeds) if one else "",
        points_span(one.over_cases) if one else "",
        p_text(one.p_seeds) if one else "",
        p_text(one.p_cases) if one else "",
        *((str(row.false_alarms),) if alarms else ()),
        *((needed_text(row.needed, row.needed_span) if row.needed else "",) if needs(table) else ()),
        times(row.cost, reference, "passes"),
    )
    return Line(texts, kind.strip())


def cost_sheet(tables: Sequence[Table]) -> Sheet:
    """What the arms cost on a data set, from the runs with all its budgets and from the probe."""
    head = (
        *("arm", "stage 1: steps", "images", "stage 2: steps", "images", "network passes", "× baseline"),
        *("s per step, stage 1", "s per step, stage 2", "× baseline", "peak memory, MB", "× baseline"),
    )
    baseline = tables[0].baseline
    costs = {row.arm: row.cost for row in tables[0].rows}
    lines = []
    for arm, cost in costs.items():
        runs = [run for table in tables for row in table.rows if row.arm == arm for run in row.done]
        texts = (
            arm + (" (baseline)" if arm == baseline else ""),
            either(run.steps_stage_1 for run in runs),
            either(run.images_stage_1 for run in runs),
            either(run.steps for run in runs),
            either(run.images_stage_2 for run in runs),
            thousands(round(cost.passes)) if cost and cost.passes is not None else "–",
            times(cost, costs[baseline], "passes"),
            fixed(cost.seconds_stage_1 or None) if cost else "–",
            fixed(cost.seconds_stage_2) if cost else "–",
            times(cost, costs[baseline], "seconds_stage_2"),
            thousands(round(cost.memory_bytes / 1e6)) if cost and cost.memory_bytes else "–",
            times(cost, costs[baseline], "memory_bytes"),
        )
        lines.append(Line(texts, "baseline" if arm == baseline else ""))
    return Sheet(head, tuple(lines))


def cost_facts(tables: Sequence[Table]) -> str:
    """Where steps and images come from, and on what the rest was measured."""
    devices = either(row.cost.device for row in tables[0].rows if row.cost)
    measured = f"{STEPS} steps of each arm, on {devices}" if devices != "–" else "not measured yet"
    said = f"Steps and images: of the finished runs, counted each time. Passes, time and memory: {measured}."
    return " ".join([said, *protocol(tables)])


def headline(tables: Sequence[Table]) -> str:
    """Say in one sentence how large the bench is, and how far it got."""
    runs = [run for table in tables for row in table.rows for run in row.runs]
    status = [run.status for run in runs]
    arms, seeds = ({getattr(run, name) for run in runs} for name in ("arm", "seed"))
    size = f"{counted(len(arms), 'arm')}, {counted(len({table.data for table in tables}), 'data set')}"
    left = f", {status.count('missing')} missing" if "missing" in status else ""
    whole = f"{status.count('done')} of {counted(len(status), 'run')} done, {status.count('failed')} failed{left}"
    return f"{size}, {counted(len(seeds), 'seed')}: {whole}."


def runs_text(row: Row) -> str:
    """How many runs are done and, where that is not all, what came of the others."""
    lacking = [f"{row.count(status)} {status}" for status in ("failed", "missing") if row.count(status)]
    done = len(row.done)
    return f"{done} of {len(row.runs)}; {', '.join(lacking)}" if lacking else str(done)


def needed_text(needed: Needed, ends: tuple[Needed, Needed] | None = None) -> str:
    """Masks that the baseline needs, or the bound, and what the ends of the interval come to, where that is another."""
    if ends and set(ends) != {needed}:
        return f"{needed_text(needed)} ({' to '.join(map(needed_text, ends))})"
    bound, masks = needed
    number = fixed(masks, 0 if bound or masks >= 100 else 1)
    return f"{bound} {number}".strip()


def times(cost: Cost | None, reference: Cost | None, field: str) -> str:
    """How many times that of the reference a cost is."""
    value, unit = ((getattr(one, field) if one else None) for one in (cost, reference))
    return f"{value / unit:.2f}×" if value and unit else "–"


def percent(value: float) -> str:
    """A share in hundredths, with one decimal."""
    return fixed(100 * value, 1).replace("-", "−")


def with_spread(mean: float, deviation: float) -> str:
    """A share and, where there is one, its standard deviation, in hundredths."""
    return percent(mean) + ("" if math.isnan(deviation) else f" ({percent(deviation)})")


def points_of(difference: float) -> str:
    """A difference of Dice in points (hundredths), with its sign."""
    rounded = round(100 * difference, 1) + 0.0  # what rounds to nothing has no minus
    return "–" if math.isnan(difference) else f"{rounded:+.1f}".replace("-", "−")


def points_span(interval: Interval) -> str:
    """An interval of a difference in points."""
    return "–" if math.isnan(interval[0]) else f"{points_of(interval[0])} to {points_of(interval[1])}"


def span(interval: Interval) -> str:
    """An interval of Dice in hundredths."""
    return "–" if math.isnan(interval[0]) else f"{percent(interval[0])} to {percent(interval[1])}"


def p_text(p: float) -> str:
    """A p-value, never as 0."""
    return "–" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def either(values: Iterable[object]) -> str:
    """What the runs agree on, or all that they say; a dash where they say nothing."""
    return " / ".join(dict.fromkeys(str(value) for value in values if value is not None)) or "–"
