"""Means over folds of a finished bench, as Markdown: Dice of each arm, and its paired difference to the first arm.

The training loss is the mean of the last steps, so that fitting the masks and generalising from them can be told apart.

Data sets named `SETTING-fold-N` or `fold-N` are the folds of one setting. A pair is one fold and one seed; the interval
takes the pairs as independent, which folds of the same few masks are not quite: read it as the least uncertainty.
"""

import csv
import json
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated

import tyro
from scipy.stats import t

LEVEL = 0.95
LAST = 20
"""Steps whose mean is the training loss."""


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
    losses: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        setting, fold = re.fullmatch(r"(?:(.+)-)?(fold-\d+)", row["data"]).groups()  # type: ignore[union-attr]
        found[setting or "", row["arm"]][fold, row["budget"], row["seed"]] = 100 * float(row["dice"])
        losses[setting or "", row["arm"]].append(last_loss(asked.out / row["run"]))
    baseline = rows[0]["arm"]
    print("| setting | arm | runs | Dice, % | sd | difference, points | 95 % | training loss |")
    print("| --- | --- | --: | --: | --: | --: | --: | --: |")
    for (setting, arm), dice in sorted(found.items(), key=lambda item: -mean(item[1].values())):
        pairs = [dice[key] - value for key, value in found[setting, baseline].items() if key in dice]
        compared = f"{mean(pairs):+.1f} | {interval(pairs)}" if arm != baseline else " | "
        spread = f"{stdev(dice.values()):.1f}" if len(dice) > 1 else "–"
        loss = mean(losses[setting, arm])
        print(f"| {setting} | {arm} | {len(dice)} | {mean(dice.values()):.1f} | {spread} | {compared} | {loss:.2f} |")


def last_loss(run: Path) -> float:
    """Mean loss of the last steps of a run."""
    lines = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()[-LAST:]
    return mean(float(json.loads(line)["loss"]) for line in lines)


def interval(differences: list[float]) -> str:
    """Interval of Student's t around the mean."""
    if len(differences) < 2:
        return "–"
    half = t.ppf((1 + LEVEL) / 2, len(differences) - 1) * stdev(differences) / len(differences) ** 0.5
    return f"{mean(differences) - half:+.1f} to {mean(differences) + half:+.1f}"


if __name__ == "__main__":
    main(tyro.cli(Means))
