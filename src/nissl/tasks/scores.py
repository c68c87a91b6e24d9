"""The table of results: one row per case and class, and its summary per class and overall."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter
from typing import Any, cast

import numpy as np
from jaxtyping import UInt8

from nissl.errors import Caveat
from nissl.metrics.overlap import EMPTY_POLICY, Overlap, overlap, pooled
from nissl.metrics.statistics import bootstrap_interval, mean_over_classes
from nissl.metrics.surface import SurfaceDistance, Unit, surface_distance
from nissl.tasks.rows import Columns, labels_of, units_of, without_nan
from nissl.tasks.summary import few_units

FIELDS = (
    *("case", "group", "label"),
    *("overlap.presence", "overlap.dice", "overlap.iou", "overlap.precision", "overlap.recall"),
    *("distance.hd95", "distance.asd", "distance.unit"),
    *("overlap.tp", "overlap.fp", "overlap.fn", "pixels"),
)
"""The columns of metrics.csv: where their values stand in a `CaseScore`; the last part is the name."""


@dataclass(frozen=True)
class CaseScore:
    """One class in one case: a line of metrics.csv."""

    case: str
    group: str
    """Patient, animal or slide; empty where there is none."""
    label: str
    """Name of the class."""
    overlap: Overlap
    distance: SurfaceDistance
    pixels: int
    """Pixels of the image."""


def _row(line: Mapping[str, str]) -> CaseScore:
    counts = Overlap(int(line["tp"]), int(line["fp"]), int(line["fn"]))
    distance = SurfaceDistance(float(line["hd95"] or "nan"), float(line["asd"] or "nan"), cast(Unit, line["unit"]))
    return CaseScore(line["case"], line["group"], line["label"], counts, distance, int(line["pixels"]))


COLUMNS = Columns({path.split(".")[-1]: attrgetter(path) for path in FIELDS}, _row)
"""Of metrics.csv; what follows from the counts of a line is computed anew when it is read."""


@dataclass(frozen=True)
class EmptyMasks:
    """Cases (overall: cases and classes) in which a mask does not show the class."""

    n_both_empty: int
    """In neither mask: left out of the means."""
    n_missed: int
    n_false_positive: int


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
    distance: SurfaceDistance
    """nan where the unit is `mixed`."""
    n_cases: int
    n_groups: int | None
    """Groups, a case without one counting as its own; None where no case has a group."""
    empty: EmptyMasks
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
        return tree_of(self)


def tree_of(summary: Any) -> dict[str, Any]:
    """A summary as nested dictionaries of plain values for JSON, nan as None."""
    tree: dict[str, Any] = without_nan(asdict(summary))
    classes = {name: _flat(scores) for name, scores in tree["classes"].items()}
    return tree | {"classes": classes, "overall": _flat(tree["overall"])}


def _flat(scores: dict[str, Any]) -> dict[str, Any]:
    """Put what a part holds in its place."""
    flat: dict[str, Any] = {}
    for name, value in scores.items():
        flat |= value if isinstance(value, dict) else {name: value}
    return flat


def score_case(
    case_id: str,
    group: str | None,
    prediction: UInt8[np.ndarray, "*space"],
    reference: UInt8[np.ndarray, "*space"],
    class_names: Sequence[str],
    spacing: tuple[float, ...] | None,
) -> list[CaseScore]:
    """Measure one case by the class of each pixel: a row for each class but the background, the first of the names.

    `group` is its patient and `spacing` the mm along each axis, if known.

    Raises:
        ValueError: the shapes differ, or a value is not a class.

    """
    rows = []
    for label, counts in enumerate(overlap(prediction, reference, len(class_names)), start=1):
        distance = surface_distance(prediction == label, reference == label, spacing)
        rows.append(CaseScore(case_id, group or "", class_names[label], counts, distance, reference.size))
    return rows


def summarise(
    rows: Sequence[CaseScore],
    rng: np.random.Generator,
    not_trained: Sequence[str] = (),
    warnings: Sequence[Caveat] = (),
) -> Summary:
    """Summarise the rows of all cases: per class, and overall as the mean over classes.

    `not_trained` are the classes that no labelled mask showed; the given warnings are told before those of the rows.

    Raises:
        ValueError: there are no rows.

    """
    if not rows:
        raise ValueError("no case was measured")
    labels = labels_of(rows)
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
    members, units = units_of(chosen), {row.distance.unit for row in chosen}
    dice = COLUMNS.matrix(chosen, "dice", labels)
    means = ("iou", "precision", "recall", "hd95", "asd")
    iou, precision, recall, hd95, asd = (mean_over_classes(COLUMNS.matrix(chosen, name, labels)) for name in means)
    unit: Unit = units.pop() if len(units) == 1 else "mixed"
    if unit == "mixed":
        hd95 = asd = math.nan
    presence = [row.overlap.presence for row in chosen]
    counts = [[row.overlap for row in chosen if row.label == label] for label in labels]
    trivial = [[_everywhere(row) for row in chosen if row.label == label] for label in labels]
    return Scores(
        dice=mean_over_classes(dice),
        dice_ci=bootstrap_interval(dice, members, rng),
        iou=iou,
        precision=precision,
        recall=recall,
        pooled_dice=_mean([pooled(cases).dice for cases in counts]),
        distance=SurfaceDistance(hd95, asd, unit),
        n_cases=len(dice),
        n_groups=len(set(members)) if members else None,
        empty=EmptyMasks(*(presence.count(one) for one in ("both empty", "missed", "false positive"))),
        trivial_dice=_mean([_mean([case.dice for case in cases]) for cases in trivial]),
        trivial_pooled_dice=_mean([pooled(cases).dice for cases in trivial]),
    )


def _everywhere(row: CaseScore) -> Overlap:
    """Counts of the prediction that calls every pixel this class."""
    return Overlap(row.overlap.reference, row.pixels - row.overlap.reference, 0)


def _mean(values: Sequence[float]) -> float:
    return mean_over_classes(np.array(values, dtype=np.float64))


def _warnings(overall: Scores) -> list[Caveat]:
    warnings = few_units(overall.n_cases, overall.n_groups)
    if overall.distance.unit == "mixed":
        text = "Some images state their spacing and some do not: distances in mm and px have no common mean."
        warnings.append(Caveat("mixed-units", text))
    return warnings
