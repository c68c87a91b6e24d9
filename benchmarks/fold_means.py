"""Means over folds of a finished bench, as Markdown: Dice of each arm, and its paired difference to the first arm.

Data sets named `SETTING-fold-N` or `fold-N` are the folds of one setting. A pair is one fold and one seed; the interval
takes the pairs as independent, which folds of the same few masks are not quite: read it as the least uncertainty.
"""

import csv
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated

import tyro
from scipy.stats import t

LEVEL = 0.95


@dataclass(frozen=True)
class Means:
    """Read DIR/results.csv and print a table, best first."""

    out: Annotated[Path, tyro.conf.Positional]
    """Folder of the bench."""


def main(asked: Means) -> None:
    """Print a line for each setting and arm."""
    with (asked.out / "results.csv").open(newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row["status"] == "done"]
    found: dict[tuple[str, str], dict[tuple[str, str, str], float]] = defaultdict(dict)
    for row in rows:
        setting, fold = re.fullmatch(r"(?:(.+)-)?(fold-\d+)", row["data"]).groups()  # type: ignore[union-attr]
        found[setting or "", row["arm"]][fold, row["budget"], row["seed"]] = 100 * float(row["dice"])
    baseline = rows[0]["arm"]
    print("| setting | arm | runs | Dice, % | sd | difference, points | 95 % |")
    print("| --- | --- | --: | --: | --: | --: | --: |")
    for (setting, arm), dice in sorted(found.items(), key=lambda item: -mean(item[1].values())):
        pairs = [dice[key] - value for key, value in found[setting, baseline].items() if key in dice]
        compared = f"{mean(pairs):+.1f} | {interval(pairs)}" if arm != baseline else " | "
        spread = f"{stdev(dice.values()):.1f}" if len(dice) > 1 else "–"
        print(f"| {setting} | {arm} | {len(dice)} | {mean(dice.values()):.1f} | {spread} | {compared} |")


def interval(differences: list[float]) -> str:
    """Interval of Student's t around the mean."""
    if len(differences) < 2:
        return "–"
    half = t.ppf((1 + LEVEL) / 2, len(differences) - 1) * stdev(differences) / len(differences) ** 0.5
    return f"{mean(differences) - half:+.1f} to {mean(differences) + half:+.1f}"


if __name__ == "__main__":
    main(tyro.cli(Means))
