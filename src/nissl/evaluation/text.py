"""Scores and comparisons as text for people: fractions in tables, differences in percentage points."""

import math
from collections.abc import Iterable, Sequence

from nissl.evaluation.compare import Compared, Comparison
from nissl.evaluation.table import score_table
from nissl.metrics.metric import Metric
from nissl.metrics.statistics import Difference, smallest_p_value
from nissl.runs.folder import unfinished
from nissl.runs.format import Tree
from nissl.tasks.task import Task


def _lines(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A line of titles, and one for each row; columns are as wide as they need to be."""
    lines = [head, *rows]
    first, *others = (max(map(len, column)) for column in zip(*lines, strict=True))
    return [
        f"{name:{first}}" + "".join(f"  {text:>{width}}" for text, width in zip(texts, others, strict=True))
        for name, *texts in lines
    ]


def score_text(task: Task, metrics: Tree) -> str:
    """The scores in metrics.json of a run or of several seeds, and what to know about them."""
    table = score_table(task, metrics)
    lines, last = _lines(table.head, table.rows), []
    if "runs" in metrics:
        runs = metrics["runs"]
        lines.insert(0, f"mean over {len(runs)} seed{'s' * (len(runs) != 1)}, {_cases(metrics)}")
        values = (f"{seed}: {task.primary.text(value)}" for seed, value in runs.items())
        lines.append(f"each seed: {', '.join(values)}")
    else:
        lines.append(_cases(metrics["overall"]))
        last = [
            "One run, one seed: the interval is over test cases only. `nissl train ... --seeds 5` measures the rest."
        ]
    return "\n".join([*lines, *_warnings(metrics["warnings"]), *last, task.policy]).rstrip()


def _cases(known: Tree) -> str:
    groups = known["n_groups"]
    shown = "" if groups is None else f" of {groups} group{'s' * (groups != 1)}"
    return f"{known['n_cases']} cases{shown}"


def comparison_text(found: Comparison) -> str:
    """The sentence first, then the table of differences in points (hundredths) and the other metrics."""
    overall = found.overall
    primary, *others = overall.differences
    scale = primary.scale
    lines = [verdict_text(found), *(f"{side}: {name}" for side, name in zip("AB", found.names, strict=True))]
    lines += [f"differs in {setting}" for setting in found.settings] or ["the settings of both are the same"]
    head = ("class", f"{primary.title} A", f"{primary.title} B", "A - B", "95 % interval", "p", "pairs", "left out")
    rows = (
        (
            *(name, *(f"{scale * value:.1f}" for value in row.values), f"{scale * row.primary.mean:+.1f}"),
            f"{scale * row.primary.low:+.1f} to {scale * row.primary.high:+.1f}",
            *(f"{row.primary.p_value:.3f}", str(row.primary.n_pairs), str(row.primary.n_left_out)),
        )
        for name, row in {**found.classes, "overall": overall}.items()
    )
    lines += _lines(head, rows)
    for metric in others:
        less = "" if metric.higher_is_better else "; less is better"
        lines.append(f"overall {metric.title}: A - B is {_words(metric, overall)}{less}")
    if found.seeds:
        ends = " to ".join(f"{scale * end:+.1f}" for end in overall.over_seeds)
        seeds = ", ".join(map(str, found.seeds))
        lines.append(f"over the seeds {seeds}: {primary.title} A - B is {ends} {_steps(primary, overall)} (95 %)")
    if any(found.false_positives):
        positives = "false positives: A {}, B {} (a pair is left out where neither mask of one side shows the class)"
        lines.append(positives.format(*found.false_positives))
    begun = [f"{run}: {one.text}" for run, steps in found.unfinished.items() for one in unfinished(*steps)]
    return "\n".join([*lines, *_warnings([*begun, *found.warnings])])


def verdict_text(found: Comparison) -> str:
    """Say the verdict in one sentence, with the difference in points (hundredths) or in its unit."""
    primary, overall, seeds = next(iter(found.overall.differences)), found.overall, len(found.seeds)
    first, sign = overall.primary, -1 if primary.sign * overall.primary.mean < 0 else 1
    turned = primary.scale * primary.sign * sign
    kind = "group" if found.grouped else "case"
    where = f"{found.n_cases} cases" + (f" of {found.n_units} groups" if found.grouped else "")

    def span(low: float, high: float) -> str:
        low, high = sorted((turned * low, turned * high))
        return f"{low:.1f} to {high:.1f}"

    by_seed = f" over cases, {span(*overall.over_seeds)} over {seeds} seeds" if seeds else ""
    size, steps = primary.scale * abs(first.mean), _steps(primary, overall)
    numbers = f"{size:.1f} {primary.title} {steps} ({span(first.low, first.high)}{by_seed})"
    leader, other = ("A", "B") if sign > 0 else ("B", "A")
    if found.verdict == "too few to tell":
        units = f"{first.n_units} {kind}{'' if first.n_units == 1 else 's'}"
        seen = f" {leader} - {other} is {numbers}." if first.n_units > 1 else ""
        least = f"smallest possible p = {smallest_p_value(first.n_units):.2g}"
        return f"Cannot tell: with {units} no data could show a difference ({least}).{seen}"
    if found.verdict == "more false positives":
        more = "{} false positives against {}".format(*sorted(found.false_positives, reverse=True))
        return f"Neither is called better: {leader} gains {numbers} on these {where}, and has {more}."
    if found.verdict == "no difference seen":
        together = f"{where} and {seeds} seeds" if seeds else where
        return f"No difference that these {together} can show: {leader} - {other} is {numbers}."
    return f"{leader} is better by {numbers} on these {where}."


def _steps(metric: Metric, overall: Compared) -> str:
    """What differences are counted in."""
    return metric.unit_in(overall.unit) or "points"


def _words(metric: Metric, overall: Compared) -> str:
    difference: Difference = overall.differences[metric]
    if math.isnan(difference.mean):
        return "not known"
    mean, low, high = (metric.scale * value for value in (difference.mean, difference.low, difference.high))
    return f"{mean:+.1f} {_steps(metric, overall)} ({low:+.1f} to {high:+.1f}), p {difference.p_value:.3f}"


def _warnings(texts: Iterable[str]) -> list[str]:
    return [f"warning: {text}" for text in texts]
