"""What a measurement gives: the metrics of a task, each with its direction and unit, the primary one first."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A number that a measurement gives for a run."""

    name: str
    """As in metrics.json and the columns of results.csv."""
    higher_is_better: bool
    unit: str = ""
    """Empty for a fraction from 0 to 1; `length`: mm or px, as the images state their spacing."""


SEGMENTATION = (
    Metric("dice", higher_is_better=True),
    Metric("pooled_dice", higher_is_better=True),
    Metric("hd95", higher_is_better=False, unit="length"),
)
"""Of a run that segments; Dice decides which arm of a bench has helped."""
