"""What the known differences to the authors' code are worth, under the published protocol and with masks alone.

The preset departs from the code of Ciampi et al. (arXiv 2412.03192) where `nissl/bench/protocols/ciampi2024.py` says
so. Each way here puts one of these back as theirs, the last all of them, the decay of every weight as well; an odd
number of masks is still cycled through, and convolutions still have no bias. Two runs at a time, one thread each;
finished ones are kept. Prints the pooled Dice so chosen (on the test images, as the protocol does) and that of the last
weights at 0.5.

    python benchmarks/parity_differences.py data/glas OUT --labels 10%
"""

import csv
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import tyro
from torch import Tensor, nn

from nissl import api
from nissl.config import Config, DataConfig, SplitConfig, TrainConfig
from nissl.data.batches import Store
from nissl.learner import Learner
from nissl.nets import factory
from nissl.nets.unet import UNet

MEAN, DEVIATION = (0.788, 0.512, 0.785), (0.428, 0.508, 0.426)
"""Of GlaS in their code, of pixels from 0 to 1."""


@dataclass(frozen=True)
class Differences:
    """Train the plain network with each way of closing the distance."""

    data: tyro.conf.Positional[Path]
    out: tyro.conf.Positional[Path]
    labels: str = "10%"
    seeds: int = 3


def fixed_moments(store: Store, index: int) -> np.ndarray:
    """The same normalisation for every image."""
    return 255 * np.array([MEAN, DEVIATION], np.float32).reshape(2, 3, 1, 1)


def their_dice(probabilities: Tensor, truth: Tensor) -> Tensor:
    """Dice with squares, over the whole batch, smoothed by 1."""
    from monai.losses import DiceLoss

    loss: Tensor = DiceLoss(squared_pred=True, batch=True, smooth_nr=1, smooth_dr=1)(probabilities, truth)
    return loss


def their_network(*arguments: Any) -> nn.Module:
    """The U-Net with ReLU and aligned corners in the decoder, scales around 1, and a 3x3 head."""
    net, seed = BUILD(*arguments), arguments[-1]
    assert isinstance(net, UNet)
    for parent in [*net.decoder.modules()]:
        for name, child in parent.named_children():
            if isinstance(child, nn.LeakyReLU):
                setattr(parent, name, nn.ReLU(inplace=True))
            if isinstance(child, nn.Upsample):
                child.align_corners = True
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.02, generator)
    classes, features = net.head.weight.shape[:2]
    net.head = nn.Conv2d(features, classes, 3, padding=1)
    for name, parameter in net.head.named_parameters():
        nn.init.kaiming_normal_(parameter, generator=generator) if name == "weight" else nn.init.zeros_(parameter)
    return net


def their_groups(learner: Learner, weight_decay: float) -> list[dict[str, Any]]:
    """Everything decays."""
    return [{"params": [*learner.parameters()], "weight_decay": weight_decay, "share": 1.0}]


BUILD = factory.build
NORMALISATION = [patch.object(Store, "moments", fixed_moments)]
DICE = [patch("nissl.methods.shared.soft_dice", their_dice)]
NETWORK = [patch("nissl.learner.build", their_network)]
DECAY = [patch.object(Learner, "parameter_groups", their_groups)]
WAYS: dict[str, list[Any]] = {
    "preset": [],
    "their normalisation": NORMALISATION,
    "their Dice": DICE,
    "their network": NETWORK,
    "all of theirs": NORMALISATION + DICE + NETWORK + DECAY,
}


def train(data: Path, run: Path, labels: str, way: str, seed: int) -> dict[str, Any]:
    """Make one run where it is not finished, and return what it chose."""
    torch.set_num_threads(1)
    config = Config(
        data=DataConfig(label_map="binary"),
        split=SplitConfig(labels, allow_shared_groups=True),
        train=TrainConfig(precision="bfloat16"),
        protocol="parity",
        seed=seed,
    )
    if not (run / "parity.json").exists():
        with ExitStack() as stack:
            for change in WAYS[way]:
                stack.enter_context(change)
            api.train(data, run, config, resume=(run / "config.toml").exists())
    chosen: dict[str, Any] = json.loads((run / "parity.json").read_text())
    return {"way": way, "seed": seed, **{key: chosen[key] for key in ("pooled_dice", "threshold", "last_pooled_dice")}}


def main(wanted: Differences) -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, context) as pool:
        jobs_of = [
            pool.submit(train, wanted.data, wanted.out / f"{way.replace(' ', '-')}-{seed}", wanted.labels, way, seed)
            for seed, way in product(range(wanted.seeds), WAYS)
        ]
        rows = [job.result() for job in jobs_of]
    with (wanted.out / "differences.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    for way, key in product(WAYS, ("pooled_dice", "last_pooled_dice")):
        values = [100 * row[key] for row in rows if row["way"] == way]
        print(f"{way}, {key}: {mean(values):.1f} ({', '.join(f'{value:.1f}' for value in values)})")


if __name__ == "__main__":
    main(tyro.cli(Differences))
