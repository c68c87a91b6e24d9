"""Scores and comparisons as text for people: fractions in tables, differences in percentage points."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from nissl.evaluation.compare import Compared, Comparison
from nissl.metrics.metric import Metric
from nissl.metrics.statistics import Difference, smallest_p_value
from nissl.runs.folder import unfinished
from nissl.runs.format import Tree
from nissl.tasks.task import Task

Column = tuple[str, Callable[[Any], str]]
"""Title, and the text of a row."""


def _table(rows: Mapping[str, Any], *columns: Column) -> list[str]:
    """A line of titles, and one for each row by its name; columns are as wide as they need to be."""
    lines = [["class", *(title for title, _ in columns)]]
    lines += [[name, *(text(row) for _, text in columns)] for name, row in rows.items()]
    first, *others = (max(map(len, column)) for column in zip(*lines, strict=True))
    return [
        f"{name:{first}}" + "".join(f"  {text:>{width}}" for text, width in zip(texts, others, strict=True))
        for name, *texts in lines
    ]


def score_text(task: Task, metrics: Tree) -> str:
    """The scores in metrics.json as a table, one row per class, and what to know about them."""
    missing = metrics.get("not_trained", ())
    rows = {f"{name} (not trained)" if name in missing else name: row for name, row in metrics["classes"].items()}
    interval: Column = ("95 % interval", lambda row: _span(task.primary, row[f"{task.primary.name}_ci"]))
    others = [_value(metric) for metric in task.metrics[1:] if not metric.detail]
    cases: Column = ("cases", lambda row: str(row["n_cases"]))
    columns = (_value(task.primary), interval, *others, cases, *_rest(task))
    single = "One run, one seed: the interval is over test cases only. `nissl train ... --seeds 5` measures the rest."
    lines = _table({**rows, "overall": metrics["overall"]}, *columns)
    return "\n".join([*lines, *_warnings(metrics["warnings"]), single, task.policy]).rstrip()


def seeds_text(task: Task, metrics: Tree) -> str:
    """The means over seeds in metrics.json as a table, then each run."""
    primary, count = task.primary, len(metrics["runs"])
    groups = f" of {metrics['n_groups']} groups" if metrics["n_groups"] is not None else ""
    intervals: list[Column] = [
        ("95 % over seeds", lambda row: _span(primary, row[f"{primary.name}_ci_seeds"])),
        ("95 % over cases", lambda row: _span(primary, row[f"{primary.name}_ci_cases"])),
    ]
    others = [_value(metric) for metric in task.by_case[1:] if not metric.detail]
    rows = {**metrics["classes"], "overall": metrics["overall"]}
    lines = _table(rows, _value(primary), *intervals, *others, *_rest(task))
    head = f"mean over {count} seed{'s' * (count != 1)}, {metrics['n_cases']} cases{groups}"
    each = "each seed: " + ", ".join(f"{seed}: {primary.text(value)}" for seed, value in metrics["runs"].items())
    return "\n".join([head, *lines, each, *_warnings(metrics["warnings"]), task.policy]).rstrip()


def _value(metric: Metric) -> Column:
    return metric.title, lambda row: metric.text(row[metric.name], row.get("unit", ""))


def _rest(task: Task) -> list[Column]:
    """What the trivial prediction reaches, and what the task counts."""
    name = f"trivial_{task.primary.name}"
    trivial: list[Column] = [("trivial", lambda row: task.primary.text(row[name]))] if task.trivial else []
    return trivial + [(title, lambda row, key=key: str(row[key])) for key, title in task.counted.items()]


def comparison_text(found: Comparison) -> str:
    """The sentence first, then the table of differences in points (hundredths) and the other metrics."""
    overall = found.overall
    primary, *others = overall.differences
    scale = primary.scale
    lines = [verdict_text(found), *(f"{side}: {name}" for side, name in zip("AB", found.names, strict=True))]
    lines += [f"differs in {setting}" for setting in found.settings] or ["the settings of both are the same"]
    lines += _table(
        {**found.classes, "overall": overall},
        (f"{primary.title} A", lambda row: f"{scale * row.values[0]:.1f}"),
        (f"{primary.title} B", lambda row: f"{scale * row.values[1]:.1f}"),
        ("A - B", lambda row: f"{scale * row.primary.mean:+.1f}"),
        ("95 % interval", lambda row: f"{scale * row.primary.low:+.1f} to {scale * row.primary.high:+.1f}"),
        ("p", lambda row: f"{row.primary.p_value:.3f}"),
        ("pairs", lambda row: str(row.primary.n_pairs)),
        ("left out", lambda row: str(row.primary.n_left_out)),
    )
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


def _span(metric: Metric, ends: tuple[float | None, float | None]) -> str:
    return "–" if ends[0] is None else f"{metric.text(ends[0])} to {metric.text(ends[1])}"


def _warnings(texts: Iterable[str]) -> list[str]:
    return [f"warning: {text}" for text in texts]
