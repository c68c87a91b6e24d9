"""The scores of metrics.json as a table of texts, for the terminal and for the pages."""

from collections.abc import Sequence
from dataclasses import dataclass

from nissl.metrics.metric import Metric
from nissl.runs.format import Tree
from nissl.tasks.task import Task

SPREADS = {
    "ci": "95 % interval",
    "ci_seeds": "95 % over seeds",
    "ci_cases": "95 % over {units}",
    "sd": "standard deviation over seeds",
}
"""What metrics.json says of the primary metric beside its mean, by the ending of the name: of a run, or of several."""


@dataclass(frozen=True)
class ScoreTable:
    """Head and rows, the first column with the names of the classes."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def score_table(task: Task, metrics: Tree, details: bool = False) -> ScoreTable:
    """Lay out the scores of a run, or of several seeds: each class and, where there are several, their mean.

    `details` adds the metrics that say little beside the others.
    """
    overall, primary, trivial = metrics["overall"], task.primary, f"trivial_{task.primary.name}"
    units = "cases" if metrics.get("n_groups", overall.get("n_groups")) is None else "groups"
    spreads = {f"{primary.name}_{ending}": title.format(units=units) for ending, title in SPREADS.items()}
    spreads = {name: title for name, title in spreads.items() if name in overall}
    others = [metric for metric in task.metrics[1:] if details or not metric.detail]
    others = [metric for metric in others if metric.name in overall]
    missing = metrics.get("not_trained", ())
    rows = {f"{name} (not trained)" if name in missing else name: row for name, row in metrics["classes"].items()}
    if len(rows) != 1:
        rows["mean over classes"] = overall
    head = (
        *("class", _title(primary, overall), *spreads.values(), *(_title(metric, overall) for metric in others)),
        *(["trivial"] if task.trivial else []),
        *task.counted.values(),
    )
    texts = (
        (
            *(name, primary.number(row[primary.name])),
            *(_spread(primary, row[spread]) for spread in spreads),
            *(metric.number(row[metric.name]) for metric in others),
            *([primary.number(row[trivial])] if task.trivial else []),
            *(str(row[key]) for key in task.counted),
        )
        for name, row in rows.items()
    )
    return ScoreTable(head, tuple(texts))


def _title(metric: Metric, overall: Tree) -> str:
    return ", ".join(filter(None, (metric.title, metric.unit_in(overall.get("unit", "")))))


def _spread(metric: Metric, value: float | Sequence[float | None] | None) -> str:
    """An interval, or a deviation."""
    if not isinstance(value, Sequence):
        return metric.number(value)
    return metric.number(None) if value[0] is None else " to ".join(map(metric.number, value))
