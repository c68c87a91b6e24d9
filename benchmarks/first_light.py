"""Does Hebbian pre-training help? Every arm with every seed, each an ordinary run kept whole in its own folder.

    python benchmarks/first_light.py run pocket DATA --out runs/pocket [--part 0/2]
    python benchmarks/first_light.py table runs/pocket

Stop and start at any time: finished runs are kept. Two parts side by side use two cores, one thread each.
"""

import argparse
import csv
import dataclasses
import json
import shutil
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from scipy.stats import t

from nissl import api
from nissl.config import AugmentConfig, Config, DataConfig, SplitConfig, TrainConfig
from nissl.nets.settings import UNet
from nissl.pretrain import PRETRAININGS

CONTROLS: dict[str, dict[str, Any]] = {
    "none": {},
    "unit-norm": {"name": "unit-norm", "layers": "all"},
    "warm": {"name": "warm"},
}
RULES = {
    rule: {"name": "hebbian", "rule": rule, "layers": "all", "response": "linear"}
    for rule in ("swta", "hpca", "softhebb")
}
EVERY = {
    **CONTROLS,
    **{f"{rule}, folded": arm for rule, arm in RULES.items()},
    **{f"{rule}, kept unit-norm": arm | {"handover": "unit-norm"} for rule, arm in RULES.items()},
    **{f"{rule}, encoder only": RULES[rule] | {"layers": "encoder"} for rule in ("swta", "hpca")},
    **{f"{rule}, decoder only": RULES[rule] | {"layers": "decoder"} for rule in ("swta", "hpca")},
    "hpca, shuffled": RULES["hpca"] | {"name": "shuffled"},
    "swta, folded, 2048 samples": RULES["swta"] | {"samples": 2048},
    "hpca, decoder only, 2048 samples": RULES["hpca"] | {"layers": "decoder", "samples": 2048},
}
MAIN = {**CONTROLS, "swta, folded": RULES["swta"], "hpca, folded": RULES["hpca"]}
POCKET = (8, 16, 32, 64, 128)


@dataclasses.dataclass(frozen=True)
class Grid:
    """The settings that all arms of a table share."""

    arms: dict[str, dict[str, Any]]
    seeds: int
    config: Config
    pretrain: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Options of each pre-training that has them."""


INTERPOLATED = AugmentConfig(transpose=False, affine=1.0)
"""Every image is rotated and zoomed, as when the tables were made."""
GRIDS = {
    "pocket": Grid(
        EVERY,
        6,
        Config(
            data=DataConfig(label_map="binary", size=(64, 64)),
            augment=INTERPOLATED,
            split=SplitConfig(allow_shared_groups=True),
            net=UNet(widths=POCKET),
            train=TrainConfig(steps=400, learning_rate=0.002),
        ),
        {"samples": 0},
    ),
    "full": Grid(
        MAIN,
        3,
        Config(
            data=DataConfig(label_map="binary", size=(128, 128)),
            augment=INTERPOLATED,
            split=SplitConfig(allow_shared_groups=True),
            train=TrainConfig(steps=400, learning_rate=0.002),
        ),
    ),
    "hippocampus": Grid(
        MAIN,
        2,
        Config(
            data=DataConfig(size=(32, 32, 32)),
            augment=INTERPOLATED,
            net=UNet(widths=POCKET),
            train=TrainConfig(steps=300, batch=4, learning_rate=0.002),
        ),
        {"steps": 150, "batch": 4},
    ),
}


def run(grid: Grid, data: Path, out: Path, part: tuple[int, int]) -> None:
    """Make the runs of one part; a seed's arms follow each other, so that pairs are complete early."""
    torch.set_num_threads(1)
    cells = [(seed, arm) for seed in range(grid.seeds) for arm in grid.arms]
    for seed, arm in cells[part[0] :: part[1]]:
        folder = out / f"{arm.replace(', ', '_').replace(' ', '-')}_{seed}"
        if (folder / "metrics.json").exists():
            continue
        shutil.rmtree(folder, ignore_errors=True)  # a run of this grid that was cut short
        name = grid.arms[arm].get("name", "none")
        shared = {option: value for option, value in grid.pretrain.items() if name in PRETRAININGS.owners(option)}
        pretrain = PRETRAININGS.make(**{"name": name} | shared | grid.arms[arm])
        api.train(data, folder, dataclasses.replace(grid.config, pretrain=pretrain, seed=seed))
        summary = api.evaluate(folder)
        (folder / "arm.json").write_text(json.dumps({"arm": arm, "seed": seed}))
        shutil.rmtree(folder / "predictions")
        (folder / "checkpoints" / "state.safetensors").unlink()
        (folder / "checkpoints" / "previous.state.safetensors").unlink(missing_ok=True)
        print(f"{arm}, seed {seed}: Dice {summary.overall.dice:.4f}", file=sys.stderr, flush=True)


def collect(out: Path) -> list[dict[str, Any]]:
    """Read one row per finished run."""
    rows = []
    for path in sorted(out.glob("*/arm.json")):
        overall = json.loads((path.parent / "metrics.json").read_text())["overall"]
        log = [json.loads(line) for line in (path.parent / "log.jsonl").read_text().splitlines()]
        stage_1 = json.loads((path.parent / "pretrain.json").read_text())["seconds"]
        rows.append(
            json.loads(path.read_text())
            | {key: overall[key] for key in ("dice", "pooled_dice", "hd95", "trivial_dice", "trivial_pooled_dice")}
            | {"stage_1_seconds": round(stage_1, 1), "stage_2_seconds": round(sum(line["seconds"] for line in log), 1)}
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Write the means, spreads and paired differences to `none` as Markdown, in points of Dice."""
    dice = {(row["arm"], row["seed"]): row for row in rows}
    arms = [*EVERY, *sorted({row["arm"] for row in rows} - EVERY.keys())]
    arms = [arm for arm in arms if any(row["arm"] == arm for row in rows)]
    lines = [
        "| arm | runs | mean Dice | spread (sd) | pooled Dice | difference to none | 95 % interval | better in |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm in arms:
        mine = [row for row in rows if row["arm"] == arm]
        values = [100 * row["dice"] for row in mine]
        pooled = [100 * row["pooled_dice"] for row in mine]
        pairs = [100 * (r["dice"] - dice["none", r["seed"]]["dice"]) for r in mine if ("none", r["seed"]) in dice]
        spread = f"{stdev(values):.1f}" if len(values) > 1 else "–"
        cells = [arm, str(len(values)), f"{mean(values):.1f}", spread, f"{mean(pooled):.1f}", *_difference(arm, pairs)]
        lines.append(f"| {' | '.join(cells)} |")
    trivial = rows[0]
    lines.append(
        f"| foreground everywhere | – | {100 * trivial['trivial_dice']:.1f} | – "
        f"| {100 * trivial['trivial_pooled_dice']:.1f} | – | – | – |"
    )
    return "\n".join(lines)


def _difference(arm: str, pairs: list[float]) -> list[str]:
    if arm == "none" or not pairs:
        return ["–", "–", "–"]
    if len(pairs) == 1:
        return [f"{pairs[0]:+.1f}", "–", f"{sum(p > 0 for p in pairs)} of 1"]
    half = t.ppf(0.975, len(pairs) - 1) * stdev(pairs) / len(pairs) ** 0.5
    centre = mean(pairs)
    better = f"{sum(p > 0 for p in pairs)} of {len(pairs)}"
    return [f"{centre:+.1f}", f"{centre - half:+.1f} to {centre + half:+.1f}", better]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    runs = verbs.add_parser("run")
    runs.add_argument("grid", choices=GRIDS)
    runs.add_argument("data", type=Path)
    runs.add_argument("--out", type=Path, required=True)
    runs.add_argument("--part", default="0/1")
    tables = verbs.add_parser("table")
    tables.add_argument("out", type=Path)
    tables.add_argument("--csv", type=Path, help="write every run to this file")
    given = parser.parse_args()
    if given.verb == "run":
        index, count = map(int, given.part.split("/"))
        run(GRIDS[given.grid], given.data, given.out, (index, count))
        return
    rows = collect(given.out)
    print(table(rows))
    if given.csv:
        with given.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
