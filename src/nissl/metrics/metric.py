"""What a measurement gives: the metrics of a task, each with its direction and unit, the primary one first."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A number that a measurement gives for a run."""

    name: str
    """As in metrics.json and the columns of results.csv."""
    title: str
    """As people read it."""
    higher_is_better: bool
    unit: str = ""
    """Empty for a fraction from 0 to 1; `length`: mm or px, as the images state their spacing."""
    digits: int = 3
    """Decimals of a value that stands alone."""
    meaning: str = ""
    """What follows `it is`, where the title does not say it."""
    by_case: bool = True
    """Whether each line of metrics.csv has it; else it is of all cases together."""
    detail: bool = False
    """Whether it says little beside the others, and has no place in the tables of a bench."""

    @property
    def sign(self) -> int:
        """1 where more is better, else -1."""
        return 1 if self.higher_is_better else -1

    @property
    def scale(self) -> int:
        """What a value is multiplied by where it is printed with one decimal: fractions are in percent."""
        return 1 if self.unit else 100

    def unit_in(self, lengths: str) -> str:
        """The unit of values, where lengths are in `lengths`; empty for a fraction."""
        return lengths if self.unit == "length" else self.unit

    def number(self, value: float | None) -> str:
        """A value without its unit, a dash where it is not known."""
        return "–" if value is None or math.isnan(value) else f"{value:.{self.digits}f}"

    def text(self, value: float | None, lengths: str = "") -> str:
        """A value with its unit."""
        return f"{self.number(value)} {self.unit_in(lengths)}".rstrip()


SEGMENTATION = (
    Metric("dice", "Dice", higher_is_better=True),
    Metric("iou", "IoU", higher_is_better=True, detail=True),
    Metric("precision", "precision", higher_is_better=True, detail=True),
    Metric("recall", "recall", higher_is_better=True, detail=True),
    Metric("pooled_dice", "pooled Dice", True, meaning="that of the pixels of all images together", by_case=False),
    Metric("hd95", "HD95", False, "length", 1, "the larger of the two directed 95th percentiles of surface distances"),
    Metric("asd", "ASD", False, "length", 2, "the mean distance over both surfaces", detail=True),
)
"""Of a run that segments; Dice decides which arm of a bench has helped."""
