"""Scores and comparisons as text for people: Dice as shares in tables, differences in points."""

import math
from collections.abc import Iterable

from nissl.evaluation.compare import Compared, Comparison
from nissl.evaluation.seeds import SeedsSummary
from nissl.metrics.statistics import Difference, smallest_p_value
from nissl.tasks.scores import Summary, unfinished

COUNTS = f"{'missed':>7} {'false alarm':>12} {'both empty':>11}"


def score_text(summary: Summary) -> str:
    """The scores as a table, one row per class, and what to know about them."""
    header = (
        f"{'class':20} {'Dice':>6} {'95 % interval':>16} {'pooled':>7} {'HD95':>8} {'cases':>6} {'trivial':>8} {COUNTS}"
    )
    lines = [header]
    for name, scores in {**summary.classes, "overall": summary.overall}.items():
        shown = f"{name} (not trained)" if name in summary.not_trained else name
        lines.append(
            f"{shown:20} {scores.dice:6.3f} {_span(scores.dice_ci):>16} {scores.pooled_dice:7.3f} "
            f"{f'{scores.hd95:.1f} {scores.unit}':>8} {scores.n_cases:6d} {scores.trivial_dice:8.3f} "
            f"{scores.n_missed:7d} {scores.n_false_alarm:12d} {scores.n_both_empty:11d}"
        )
    single = "One run, one seed: the interval is over test cases only. `nissl train ... --seeds 5` measures the rest."
    return "\n".join([*lines, *_warnings(summary.warnings), single, summary.policy])


def seeds_text(summary: SeedsSummary) -> str:
    """The means over seeds as a table, then each run."""
    count = len(summary.runs)
    seeds = f"{count} seeds" if count > 1 else "1 seed"
    over = f"{summary.n_cases} cases" + (f" of {summary.n_groups} groups" if summary.n_groups is not None else "")
    lines = [
        f"mean over {seeds}, {over}",
        f"{'class':20} {'Dice':>6} {'95 % over seeds':>16} {'95 % over cases':>16} {'HD95':>8} {'trivial':>8} {COUNTS}",
    ]
    for name, scores in {**summary.classes, "overall": summary.overall}.items():
        lines.append(
            f"{name:20} {scores.dice:6.3f} {_span(scores.dice_ci_seeds):>16} {_span(scores.dice_ci_cases):>16} "
            f"{f'{scores.hd95:.1f} {scores.unit}':>8} {scores.trivial_dice:8.3f} "
            f"{scores.n_missed:7d} {scores.n_false_alarm:12d} {scores.n_both_empty:11d}"
        )
    lines.append("each seed: " + ", ".join(f"{seed}: {dice:.3f}" for seed, dice in summary.runs.items()))
    return "\n".join([*lines, *_warnings(summary.warnings), summary.policy])


def comparison_text(found: Comparison) -> str:
    """The sentence first, then the table of differences in points (hundredths) and the distances."""
    lines = [verdict_text(found), f"A: {found.a}", f"B: {found.b}"]
    lines += [f"differs in {setting}" for setting in found.settings] or ["the settings of both are the same"]
    header = f"{'class':20} {'Dice A':>7} {'Dice B':>7} {'A - B':>6} {'95 % interval':>16} {'p':>6} {'pairs':>6}"
    lines.append(f"{header} {'left out':>9}")
    for name, row in {**found.classes, "overall": found.overall}.items():
        lines.append(
            f"{name:20} {100 * row.dice_a:7.1f} {100 * row.dice_b:7.1f} {_points(row.dice)} "
            f"{row.dice.n_pairs:6d} {row.dice.n_left_out:9d}"
        )
    overall = found.overall
    lines.append(f"overall IoU: A - B is {_words(overall.iou, 100, 'points')}")
    lines.append(f"overall HD95: A - B is {_words(overall.hd95, 1, overall.unit)}; less is better")
    if found.seeds:
        lines.append(f"over the seeds {', '.join(map(str, found.seeds))}: Dice A - B is {_over_seeds(overall)}")
    alarms = "false alarms: A {}, B {} (a pair is left out where neither mask of one side shows the class)"
    lines.append(alarms.format(*found.false_alarms))
    begun = [f"{run}: {one.text}" for run, steps in found.unfinished.items() for one in unfinished(*steps)]
    return "\n".join([*lines, *_warnings([*begun, *found.warnings])])


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
    if found.verdict == "more false alarms":
        more = "{} false alarms against {}".format(*sorted(found.false_alarms, reverse=True))
        return f"Neither is called better: {leader} gains {numbers} on these {where}, and has {more}."
    if found.verdict == "no difference seen":
        together = f"{where} and {seeds} seeds" if seeds else where
        return f"No difference that these {together} can show: {leader} - {other} is {numbers}."
    return f"{leader} is better by {numbers} on these {where}."


def _points(difference: Difference) -> str:
    low, high = 100 * difference.low, 100 * difference.high
    return f"{100 * difference.mean:+6.1f} {f'{low:+.1f} to {high:+.1f}':>16} {difference.p_value:6.3f}"


def _words(difference: Difference, factor: float, unit: str) -> str:
    if math.isnan(difference.mean):
        return "not known"
    mean, low, high = (factor * value for value in (difference.mean, difference.low, difference.high))
    return f"{mean:+.1f} {unit} ({low:+.1f} to {high:+.1f}), p {difference.p_value:.3f}"


def _over_seeds(overall: Compared) -> str:
    low, high = (100 * end for end in overall.dice_seeds)
    return f"{low:+.1f} to {high:+.1f} points (95 %)"


def _span(ends: tuple[float, float]) -> str:
    return "–" if math.isnan(ends[0]) else f"{ends[0]:.3f} to {ends[1]:.3f}"


def _warnings(texts: Iterable[str]) -> list[str]:
    return [f"warning: {text}" for text in texts]
