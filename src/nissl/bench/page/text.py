"""What the numbers of a bench mean, as sentences, warnings and facts."""

import math
from collections.abc import Mapping, Sequence

from nissl.bench.analysis.overview import Gain
from nissl.bench.analysis.tables import Table, Verdict, Versus
from nissl.bench.page.numbers import UNKNOWN, change, either, span
from nissl.bench.run.cost import STEPS
from nissl.errors import Caveat
from nissl.evaluation.compare import SIGNIFICANT
from nissl.nets.settings import UNet
from nissl.reporting.run_page import PRINTED_NAMES, counted, thousands
from nissl.tasks.rows import FEW

PUBLISHED = Caveat(
    "published-protocol",
    "Published protocol: the checkpoint and the threshold were chosen on the test images, whose masks are not counted "
    "among those of the budget; for comparison only.",
)
SHOWN = ("helped", "hurt")
MANY_ERRORS = 4.0
"""Standard errors from which on a test is called weak; a single comparison of many seeds takes two."""


def verdicts(compared: Mapping[str, Versus | Gain | None], baseline: str) -> str:
    """State which arms helped and which did not, in one table or on average over several."""
    listed: dict[Verdict, list[str]] = {}
    for arm, one in compared.items():
        verdict: Verdict = one.verdict if one else "not compared"
        listed.setdefault(verdict, []).append(arm + (_size(one) if one else ""))
    seeds = sorted({one.seeds for one in compared.values() if one and one.verdict != "not compared"})
    shown_by = "" if not seeds else counted(seeds[0], "seed") if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    meaning: dict[Verdict, str] = {
        "helped": f"Better than {baseline}",
        "hurt": f"Worse than {baseline}",
        "unclear": "Neither better nor worse, as the false-positive cases contradict the difference",
        "no difference": f"No difference shown by {shown_by}",
        "not compared": "Not compared, for too few finished runs",
    }
    parts = [f"{text}: {', '.join(listed[verdict])}." for verdict, text in meaning.items() if verdict in listed]
    return " ".join(parts) or "There is one arm, and nothing to compare it with."


def _size(one: Versus | Gain) -> str:
    """The difference with its interval, or what contradicts it."""
    size = change(one.metric, one.difference)
    if one.verdict == "unclear":
        mine, others = one.false_positives
        return f" ({size}, false-positive cases {mine} against {others})"
    interval = span(one.over_seeds, lambda end: change(one.metric, end))
    return f" ({size}{'' if math.isnan(one.over_seeds[0]) else f'; {interval}'})" if one.verdict in SHOWN else ""


def warnings(table: Table) -> list[Caveat]:
    """List what makes the numbers of a table less than they seem."""
    found = unequal(table) + published([table])
    lacking = [run for row in table.rows for run in row.runs if run.status != "done"]
    if lacking:
        failed = sum(run.status == "failed" for run in lacking)
        whole = sum(len(row.runs) for row in table.rows)
        counts = f"{len(lacking)} of {whole} runs have no result ({failed} failed, {len(lacking) - failed} missing)"
        found.append(Caveat("incomplete", f"{counts}: means are over those that are done."))
    primary, trivial = table.task.primary, table.trivial
    poor = [row.arm for row in table.rows if primary.sign * (row.value - trivial.get(primary, math.nan)) <= 0]
    if poor:
        found.append(Caveat("trivial", f"No better than {table.task.trivial}: {', '.join(poor)}."))
    if table.done and max(len(row.done) for row in table.rows) < 3:
        found.append(Caveat("few-seeds", "Fewer than three seeds: the intervals and tests over them say little."))
    return found + _weakness(table)


def unequal(table: Table) -> list[Caveat]:
    """Warn where the arms did not learn from the masks for as long, by steps or images."""
    found = []
    for what, field in (("steps", "steps"), ("images", "images_stage_2")):
        arms: dict[int | None, list[str]] = {}
        for row in table.rows:
            for value in sorted({getattr(run.training, field) for run in row.done}):
                arms.setdefault(value, []).append(row.arm)
        if len(arms) > 1:
            listed = "; ".join(f"{value}: {', '.join(names)}" for value, names in arms.items())
            text = f"The arms do not train with the same number of {what} ({listed}): they cannot be compared."
            found.append(Caveat(f"unequal-{what}", text))
    return found


def published(tables: Sequence[Table]) -> list[Caveat]:
    """Warn where numbers of the published protocol are shown."""
    return [PUBLISHED] if any(run.published for table in tables for run in table.done) else []


def _weakness(table: Table) -> list[Caveat]:
    """Warn where a test finds large differences only, or nothing, however large it is."""
    arms, first = len(table.rows) - 1, next(iter(table.done), None)
    if not arms or not first or not first.tested.n_cases:
        return []
    groups = first.tested.n_groups
    units, kind = (groups, "groups (patients)") if groups else (first.tested.n_cases, "cases")
    return _over_seeds(arms, max(len(row.done) for row in table.rows)) + _over_units(arms, units, kind)


def _over_seeds(arms: int, seeds: int) -> list[Caveat]:
    """From how many standard errors on the best of all arms counts: its p is multiplied by their number."""
    from scipy.stats import t as student

    least = float(student.isf(SIGNIFICANT / (2 * arms), seeds - 1)) if seeds > 1 else 0.0
    if least < MANY_ERRORS:
        return []
    text = (
        f"With {seeds} seeds and {counted(arms, 'arm')} beside the baseline, the test over seeds shows a difference "
        f"from {least:.1f} standard errors on: smaller ones take more seeds or fewer arms."
    )
    return [Caveat("weak-over-seeds", text)]


def _over_units(arms: int, units: int, kind: str) -> list[Caveat]:
    """What so few cases or groups cannot show."""
    least = min(1.0, arms * 2.0 ** (1 - units))
    if least >= SIGNIFICANT:
        bound = f"the corrected p over them cannot fall below {least:.2f}: nothing can be shown."
        return [Caveat("powerless-over-units", f"With {units} test {kind} {bound}")]
    text = f"Only {units} test {kind}: below {FEW}, take what is tested over them as a hint."
    return [Caveat("few-units", text)] if units < FEW else []


def title(table: Table) -> str:
    """Data set, budget and masks."""
    masks = sorted({run.training.masks_seen for run in table.done if run.training.masks_seen is not None})
    number = f" ({' / '.join(counted(count, 'mask') for count in masks)})" if masks else ""
    return f"{table.data}, {table.budget}{number}"


def facts(table: Table) -> str:
    """Sizes, length, seeds, device and date of the runs of a table."""
    config, done = table.config, [run.training for run in table.done]
    net = PRINTED_NAMES.get(config.net.name, config.net.name)
    net += f", widths {'-'.join(map(str, config.net.widths))}" if isinstance(config.net, UNet) else ""
    seeds = sorted({run.seed for row in table.rows for run in row.runs})
    asked = f"{counted(len(seeds), 'seed')} ({', '.join(map(str, seeds))})"
    if not done:
        return f"{net}; {counted(config.train.steps, 'step')}; {asked}; no run is done yet."
    sizes = sorted({run.parameters for run in done if run.parameters})
    tested = table.done[0].tested
    days = sorted({(run.date or "")[:10] for run in done})
    parts = [
        f"{net}, {' to '.join(thousands(size) for size in dict.fromkeys((sizes[0], sizes[-1])))} parameters",
        f"input {either(run.input for run in done).replace('x', ' × ')}",
        *_lengths(table),
        asked,
        f"{tested.n_cases} test images" + (f" of {tested.n_groups} groups (patients)" if tested.n_groups else ""),
        either(run.device for run in done),
        " to ".join(dict.fromkeys((days[0], days[-1]))),
    ]
    return "; ".join(parts) + "."


def _lengths(table: Table) -> list[str]:
    """Steps and images of both stages, and how the training with masks learns."""
    done, train = [run.training for run in table.done], table.config.train
    stage_1 = either(run.steps_stage_1 for run in done if run.steps_stage_1)
    shown = sorted({run.images_stage_2 // run.steps for run in done if run.images_stage_2 and run.steps})
    found = [f"{stage_1} steps of pre-training, where there is one"] if stage_1 != UNKNOWN else []
    found.append(f"{either(run.steps for run in done)} steps of training with {either(shown)} images each")
    if not published([table]):  # which has settings of its own
        precision = "float32 (on a GPU bfloat16)" if train.precision == "auto" else train.precision
        found.append(f"learning rate {train.learning_rate:g}, {precision}")
    return found


def cost_facts(tables: Sequence[Table]) -> str:
    """Where steps and images come from, and on what the rest was measured."""
    devices = either(row.cost.device for row in tables[0].rows if row.cost)
    measured = f"{STEPS} steps of each arm, on {devices}" if devices != UNKNOWN else "not measured yet"
    return f"Steps and images: of the finished runs, counted each time. Passes, time and memory: {measured}."


def headline(tables: Sequence[Table]) -> str:
    """How large the bench is, and how far it got, in one sentence."""
    runs = [run for table in tables for row in table.rows for run in row.runs]
    status = [run.status for run in runs]
    kinds = {"arm": "arm", "data": "data set", "seed": "seed"}
    size = ", ".join(counted(len({getattr(run, name) for run in runs}), kind) for name, kind in kinds.items())
    left = f", {status.count('missing')} missing" if "missing" in status else ""
    return (
        f"{size}: {status.count('done')} of {counted(len(status), 'run')} done, {status.count('failed')} failed{left}."
    )
