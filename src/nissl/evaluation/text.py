"""Scores and comparisons as text for people: Dice as fractions in tables, differences in percentage points."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from nissl.evaluation.compare import Comparison
from nissl.evaluation.seeds import SeedsSummary
from nissl.metrics.statistics import Difference, smallest_p_value
from nissl.tasks.scores import Summary, unfinished

Column = tuple[str, int, Callable[[Any], str]]
"""Title, width, and the text of a row."""
DICE: Column = ("Dice", 6, lambda scores: f"{scores.dice:.3f}")
REST: tuple[Column, ...] = (
    ("trivial", 8, lambda scores: f"{scores.trivial_dice:.3f}"),
    ("missed", 7, lambda scores: str(scores.empty.n_missed)),
    ("false positive", 15, lambda scores: str(scores.empty.n_false_positive)),
    ("both empty", 11, lambda scores: str(scores.empty.n_both_empty)),
)


def _table(rows: Mapping[str, object], *columns: Column) -> list[str]:
    """A line of titles, and one for each row by its name."""
    lines = {"class": [title for title, _, _ in columns]}
    lines |= {name: [text(row) for _, _, text in columns] for name, row in rows.items()}
    return [
        " ".join([f"{name:20}", *(f"{text:>{width}}" for text, (_, width, _) in zip(texts, columns, strict=True))])
        for name, texts in lines.items()
    ]


def score_text(summary: Summary) -> str:
    """The scores as a table, one row per class, and what to know about them."""
    untrained = {name: f"{name} (not trained)" for name in summary.not_trained}
    rows = {untrained.get(name, name): scores for name, scores in summary.classes.items()}
    lines = _table(
        {**rows, "overall": summary.overall},
        DICE,
        ("95 % interval", 16, lambda scores: _span(scores.dice_ci)),
        ("pooled", 7, lambda scores: f"{scores.pooled_dice:.3f}"),
        ("HD95", 8, lambda scores: f"{scores.distance.hd95:.1f} {scores.distance.unit}"),
        ("cases", 6, lambda scores: str(scores.n_cases)),
        *REST,
    )
    single = "One run, one seed: the interval is over test cases only. `nissl train ... --seeds 5` measures the rest."
    return "\n".join([*lines, *_warnings(summary.warnings), single, summary.policy])


def seeds_text(summary: SeedsSummary) -> str:
    """The means over seeds as a table, then each run."""
    groups = f" of {summary.n_groups} groups" if summary.n_groups is not None else ""
    count = len(summary.runs)
    lines = _table(
        {**summary.classes, "overall": summary.overall},
        DICE,
        ("95 % over seeds", 16, lambda scores: _span(scores.dice_ci_seeds)),
        ("95 % over cases", 16, lambda scores: _span(scores.dice_ci_cases)),
        ("HD95", 8, lambda scores: f"{scores.hd95:.1f} {scores.unit}"),
        *REST,
    )
    head = f"mean over {count} seed{'s' * (count != 1)}, {summary.n_cases} cases{groups}"
    each = "each seed: " + ", ".join(f"{seed}: {dice:.3f}" for seed, dice in summary.runs.items())
    return "\n".join([head, *lines, each, *_warnings(summary.warnings), summary.policy])


def comparison_text(found: Comparison) -> str:
    """The sentence first, then the table of differences in points (hundredths) and the distances."""
    lines = [verdict_text(found), *(f"{side}: {name}" for side, name in zip("AB", found.names, strict=True))]
    lines += [f"differs in {setting}" for setting in found.settings] or ["the settings of both are the same"]
    lines += _table(
        {**found.classes, "overall": found.overall},
        ("Dice A", 7, lambda row: f"{100 * row.dice_a:.1f}"),
        ("Dice B", 7, lambda row: f"{100 * row.dice_b:.1f}"),
        ("A - B", 6, lambda row: f"{100 * row.dice.mean:+.1f}"),
        ("95 % interval", 16, lambda row: f"{100 * row.dice.low:+.1f} to {100 * row.dice.high:+.1f}"),
        ("p", 6, lambda row: f"{row.dice.p_value:.3f}"),
        ("pairs", 6, lambda row: str(row.dice.n_pairs)),
        ("left out", 9, lambda row: str(row.dice.n_left_out)),
    )
    overall = found.overall
    lines.append(f"overall IoU: A - B is {_words(overall.iou, 100, 'points')}")
    lines.append(f"overall HD95: A - B is {_words(overall.hd95, 1, overall.unit)}; less is better")
    if found.seeds:
        ends = " to ".join(f"{100 * end:+.1f}" for end in overall.dice_seeds)
        lines.append(f"over the seeds {', '.join(map(str, found.seeds))}: Dice A - B is {ends} points (95 %)")
    positives = "false positives: A {}, B {} (a pair is left out where neither mask of one side shows the class)"
    begun = [f"{run}: {one.text}" for run, steps in found.unfinished.items() for one in unfinished(*steps)]
    return "\n".join([*lines, positives.format(*found.false_positives), *_warnings([*begun, *found.warnings])])


def verdict_text(found: Comparison) -> str:
    """Say the verdict in one sentence, with the difference in points of Dice (hundredths)."""
    dice, seeds, sign = found.overall.dice, len(found.seeds), -1 if found.overall.dice.mean < 0 else 1
    kind = "group" if found.grouped else "case"
    where = f"{found.n_cases} cases" + (f" of {found.n_units} groups" if found.grouped else "")

    def span(low: float, high: float) -> str:
        low, high = sorted((100 * sign * low, 100 * sign * high))
        return f"{low:.1f} to {high:.1f}"

    by_seed = f" over cases, {span(*found.overall.dice_seeds)} over {seeds} seeds" if seeds else ""
    numbers = f"{100 * abs(dice.mean):.1f} Dice points ({span(dice.low, dice.high)}{by_seed})"
    leader, other = ("A", "B") if sign > 0 else ("B", "A")
    if found.verdict == "too few to tell":
        units = f"{dice.n_units} {kind}{'' if dice.n_units == 1 else 's'}"
        seen = f" {leader} - {other} is {numbers}." if dice.n_units > 1 else ""
        least = f"smallest possible p = {smallest_p_value(dice.n_units):.2g}"
        return f"Cannot tell: with {units} no data could show a difference ({least}).{seen}"
    if found.verdict == "more false positives":
        more = "{} false positives against {}".format(*sorted(found.false_positives, reverse=True))
        return f"Neither is called better: {leader} gains {numbers} on these {where}, and has {more}."
    if found.verdict == "no difference seen":
        together = f"{where} and {seeds} seeds" if seeds else where
        return f"No difference that these {together} can show: {leader} - {other} is {numbers}."
    return f"{leader} is better by {numbers} on these {where}."


def _words(difference: Difference, factor: float, unit: str) -> str:
    if math.isnan(difference.mean):
        return "not known"
    mean, low, high = (factor * value for value in (difference.mean, difference.low, difference.high))
    return f"{mean:+.1f} {unit} ({low:+.1f} to {high:+.1f}), p {difference.p_value:.3f}"


def _span(ends: tuple[float, float]) -> str:
    return "–" if math.isnan(ends[0]) else f"{ends[0]:.3f} to {ends[1]:.3f}"


def _warnings(texts: Iterable[str]) -> list[str]:
    return [f"warning: {text}" for text in texts]
