"""The table of results: one row per case and class, and its summary per class and overall."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, UInt8

from nissl.errors import Caveat, DataError
from nissl.metrics.overlap import EMPTY_POLICY, Overlap, Presence, overlap, pooled
from nissl.metrics.statistics import bootstrap_interval, mean_over_classes
from nissl.metrics.surface import surface_distance

Unit = Literal["mm", "px", "mixed"]
FEW = 10


@dataclass(frozen=True)
class CaseScore:
    """One class in one case: a line of metrics.csv. Empty masks as in `Overlap`; nan is not applicable."""

    case: str
    group: str
    """Patient, animal or slide; empty where there is none."""
    label: str
    """Name of the class."""
    presence: Presence
    dice: float
    iou: float
    precision: float
    recall: float
    hd95: float
    """95th percentile of the surface distances, in `unit`."""
    asd: float
    """Average symmetric surface distance, in `unit`."""
    unit: Unit
    """`mm` where the image states its spacing, else `px`."""
    tp: int
    fp: int
    fn: int
    pixels: int
    """Pixels of the image."""


@dataclass(frozen=True)
class Scores:
    """Means over the applicable cases of one class, or of several classes and then over these."""

    dice: float
    dice_ci: tuple[float, float]
    """95 % bootstrap interval over cases, or over groups where groups are known."""
    iou: float
    precision: float
    recall: float
    pooled_dice: float
    """Dice of all pixels of all cases together."""
    hd95: float
    """In `unit`; nan where the unit is `mixed`."""
    asd: float
    unit: Unit
    n_cases: int
    n_groups: int | None
    """Groups, a case without one counting as its own; None where no case has a group."""
    n_both_empty: int
    """Cases (overall: cases and classes) in neither mask: left out of the means."""
    n_missed: int
    n_false_positive: int
    trivial_dice: float
    """Mean Dice of predicting the class in every pixel of every image: what a score has to beat."""
    trivial_pooled_dice: float


@dataclass(frozen=True)
class Summary:
    """What metrics.json says."""

    classes: dict[str, Scores]
    overall: Scores
    warnings: tuple[str, ...]
    warning_codes: tuple[str, ...]
    """What kind of warning each is; older files do not have them."""
    not_trained: tuple[str, ...] = ()
    """Classes that no labelled mask showed: they count in the means, and were not learnt."""
    policy: str = EMPTY_POLICY

    def to_tree(self) -> dict[str, Any]:
        """Nested dictionaries of plain values for JSON, nan as None."""
        tree = without_nan(asdict(self))
        assert isinstance(tree, dict)
        return tree


def unfinished(steps: int | None, planned_steps: int | None) -> list[Caveat]:
    """Say that a run has steps left; nothing where it has none, or where that is not known."""
    if steps is None or planned_steps is None or steps >= planned_steps:
        return []
    text = f"The run is unfinished: {steps:,} of {planned_steps:,} steps. Finish it with --resume."
    return [Caveat("unfinished", text)]


def score_case(
    case_id: str,
    group: str | None,
    prediction: UInt8[np.ndarray, "*space"],
    reference: UInt8[np.ndarray, "*space"],
    class_names: Sequence[str],
    spacing: tuple[float, ...] | None,
) -> list[CaseScore]:
    """Measure one case: a row for each class but the background.

    Args:
        case_id: name of the case.
        group: its patient, if known.
        prediction: class of each pixel.
        reference: the same, of the same shape.
        class_names: names of all classes, the background first.
        spacing: mm along each axis, if known.

    Raises:
        ValueError: the shapes differ, or a value is not a class.

    """
    rows = []
    for label, counts in enumerate(overlap(prediction, reference, len(class_names)), start=1):
        distance = surface_distance(prediction == label, reference == label, spacing)
        rows.append(
            CaseScore(
                case=case_id,
                group=group or "",
                label=class_names[label],
                presence=counts.presence,
                dice=counts.dice,
                iou=counts.iou,
                precision=counts.precision,
                recall=counts.recall,
                hd95=distance.hd95,
                asd=distance.asd,
                unit="mm" if spacing else "px",
                tp=counts.tp,
                fp=counts.fp,
                fn=counts.fn,
                pixels=reference.size,
            )
        )
    return rows


def summarise(
    rows: Sequence[CaseScore],
    rng: np.random.Generator,
    not_trained: Sequence[str] = (),
    warnings: Sequence[Caveat] = (),
) -> Summary:
    """Summarise the rows of all cases: per class, and overall as the mean over classes.

    Args:
        rows: as `score_case` gives them.
        rng: source of the draws of the intervals.
        not_trained: classes that no labelled mask showed.
        warnings: what else makes the numbers less than they seem.

    Raises:
        ValueError: there are no rows.

    """
    if not rows:
        raise ValueError("no case was measured")
    labels = list(dict.fromkeys(row.label for row in rows))
    seed = int(rng.integers(2**63))  # the same draws for every class: with one class, `overall` is that class
    classes = {label: _scores(rows, [label], np.random.default_rng(seed)) for label in labels}
    overall = _scores(rows, labels, np.random.default_rng(seed))
    untrained = [
        Caveat("not-trained", f"The class `{name}` was not trained: no labelled mask shows it.") for name in not_trained
    ]
    told = [*warnings, *untrained, *_warnings(overall)]
    texts, codes = tuple(one.text for one in told), tuple(one.code for one in told)
    return Summary(classes, overall, texts, codes, tuple(not_trained))


def _scores(rows: Sequence[CaseScore], labels: Sequence[str], rng: np.random.Generator) -> Scores:
    """Means over the cases, then over the labels."""
    chosen = [row for row in rows if row.label in labels]
    groups = {row.case: row.group for row in chosen}
    grouped = any(groups.values())
    members = units_of(groups) if grouped else None
    units = {row.unit for row in chosen}
    unit: Unit = units.pop() if len(units) == 1 else "mixed"
    dice = score_matrix(chosen, "dice", labels)
    mean = {name: mean_over_classes(score_matrix(chosen, name, labels)) for name in ("iou", "precision", "recall")}
    distance = {name: mean_over_classes(score_matrix(chosen, name, labels)) for name in ("hd95", "asd")}
    absent = [row.presence for row in chosen]
    counts = {label: [Overlap(r.tp, r.fp, r.fn) for r in chosen if r.label == label] for label in labels}
    trivial = {label: [_everywhere(row) for row in chosen if row.label == label] for label in labels}
    return Scores(
        dice=mean_over_classes(dice),
        dice_ci=bootstrap_interval(dice, members, rng),
        **mean,
        pooled_dice=_mean([pooled(counts[label]).dice for label in labels]),
        **(distance if unit != "mixed" else dict.fromkeys(distance, math.nan)),
        unit=unit,
        n_cases=len(groups),
        n_groups=len(set(members)) if members else None,
        n_both_empty=absent.count("both empty"),
        n_missed=absent.count("missed"),
        n_false_positive=absent.count("false positive"),
        trivial_dice=_mean([_mean([o.dice for o in trivial[label]]) for label in labels]),
        trivial_pooled_dice=_mean([pooled(trivial[label]).dice for label in labels]),
    )


def units_of(groups: Mapping[str, str]) -> list[str]:
    """What is independent, for each case in order: its group or, where it has none, the case itself."""
    return [f"group {group}" if group else f"case {case}" for case, group in groups.items()]


def _everywhere(row: CaseScore) -> Overlap:
    """Counts of the prediction that calls every pixel this class."""
    reference = row.tp + row.fn
    return Overlap(reference, row.pixels - reference, 0)


def score_matrix(rows: Sequence[CaseScore], field: str, labels: Sequence[str]) -> Float[np.ndarray, "cases classes"]:
    """One field of the rows by case, in the order of the rows, and class."""
    cases = {case: index for index, case in enumerate(dict.fromkeys(row.case for row in rows))}
    matrix = np.full((len(cases), len(labels)), np.nan)
    for row in rows:
        matrix[cases[row.case], labels.index(row.label)] = getattr(row, field)
    return matrix


def _mean(values: Sequence[float]) -> float:
    return mean_over_classes(np.array(values, dtype=np.float64))


def _warnings(overall: Scores) -> list[Caveat]:
    warnings = []
    units, kind = (overall.n_cases, "cases") if overall.n_groups is None else (overall.n_groups, "groups")
    if units < FEW:
        text = f"Only {units} test {kind}: the interval over them is itself uncertain. Below {FEW}, take it as a hint."
        warnings.append(Caveat("few-units", text))
    if overall.unit == "mixed":
        text = "Some images state their spacing and some do not: distances in mm and px have no common mean."
        warnings.append(Caveat("mixed-units", text))
    return warnings


def without_nan(value: Any) -> Any:
    """Nested plain values with None in the place of nan, which JSON does not have."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def scores_to_csv(rows: Sequence[CaseScore]) -> str:
    """Write the rows as metrics.csv; nan becomes an empty field."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(CaseScore)], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: "" if value is None else value for key, value in without_nan(asdict(row)).items()})
    return text.getvalue()


def scores_from_csv(text: str, where: str = "metrics.csv") -> list[CaseScore]:
    """Read the rows of a metrics.csv.

    Raises:
        DataError: a column is missing or a value is of the wrong kind.

    """
    kinds = {field.name: field.type for field in fields(CaseScore)}
    expected, fix = f"the columns {', '.join(kinds)}", "run `nissl evaluate` again"
    lines = csv.DictReader(io.StringIO(text))
    try:
        absent = [name for name in kinds if name not in (lines.fieldnames or ())]
        if absent:
            raise DataError(where, f"no column {', '.join(absent)}", expected, fix)
        return [CaseScore(**{name: _parse(kind, line[name]) for name, kind in kinds.items()}) for line in lines]
    except (ValueError, TypeError, csv.Error) as error:
        raise DataError(where, f"line {lines.line_num}: {error}", expected, fix) from error


def _parse(kind: object, text: str) -> Any:
    if kind is float:
        return float(text) if text != "" else math.nan
    if kind == Presence:
        return text.replace("false alarm", "false positive")  # the word of formats 1 and 2
    return int(text) if kind is int else text
