"""The published protocol of Ciampi et al. (arXiv 2412.03192) for 2-D images, for comparison only.

After every epoch (a pass over the labelled images; every second one for the plain U-Net, VAE and superpixel) the
networks are measured **on the test images**, at the resolution of the network, and the epoch, threshold and network
with the best pooled Jaccard index give the published number. So that number is no measurement of what a user gets: that
is `nissl evaluate` of the same run, whose weights are the last.

As read from the authors' code: SGD 0.5 with momentum 0.9 and weight decay 5e-5; a warm-up of 20 epochs, then halved
every 50; 200 epochs of 2 labelled images a step (and as many unlabelled ones); Dice loss alone; 128x128; flips,
transposition and turns by 90 degrees; the weight of the unlabelled terms rising linearly to 5. Known to differ here: an
epoch cycles on where the number of masks is odd; images are normalised each by itself, not by the data set's mean; Dice
is taken per image and without squares; biases and normalisation do not decay; of the network, the head is one 1x1
convolution, the decoder has leaky activations as the encoder, its upsampling does not align the corners, and scales of
normalisation begin at 1 instead of around it; each method is as its own file states it.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from nissl.config import Config
from nissl.data.batches import Cache, Store
from nissl.data.cases import Dataset
from nissl.errors import Caveat, DataError, InputError
from nissl.learner import Learner
from nissl.methods import METHODS
from nissl.methods.method import Method
from nissl.runs.folder import LOG, read_json, write_json
from nissl.training.job import Job
from nissl.training.precision import autocast
from nissl.training.stages import chosen

WARNING = "published protocol: checkpoint and threshold were chosen on the test images; for comparison only"
SELECTED = "parity.json"
CHOSEN = "pooled Dice so chosen"
"""How the sentence begins that gives the number."""
EPOCHS, LABELLED, WEIGHT = 200, 2, 5.0
SELDOM = ("none", "vae", "superpixel")
"""Pre-trainings after which a training on masks alone is measured in every second epoch, all others in each."""
PUBLISHED = ("supervised", "entropy", "uamt", "cps", "urpc", "cct")
"""Methods of the published comparison in 2-D. Its Hebbian stage differs from ours: all layers by SWTA, filters kept at
unit norm, steps of Adam at 1e-6."""
THRESHOLDS = torch.arange(45) / 50
"""Of the probability of the foreground. The first one, 0, is the mask that is foreground everywhere."""
HALF = 25
"""Where 0.5 is among them."""
BATCH = 16
"""Test images that go through a network at once."""


def fixed(method: str, masks: int) -> dict[str, dict[str, Any]]:
    """The settings that the protocol fixes for a method and a number of masks, as nested tables of `Config`."""
    return {
        "data": {"size": (128, 128), "sampling": "resize"},
        "augment": {"flip": True, "transpose": True, "rotate": 0.0}
        | dict.fromkeys(("scale", "contrast", "brightness", "noise"), 0.0),
        "net": {
            "name": "unet",
            "widths": (16, 32, 64, 128, 256),
            "dropout": (0.05, 0.1, 0.2, 0.3, 0.5),
            "upsampling": "linear",
        },
        "method": {"weight": WEIGHT, "ramp": 1.0, "ramp_shape": "linear", "loss": "dice"},
        "train": {
            "steps": EPOCHS * -(-masks // LABELLED),
            "batch": LABELLED * (2 if METHODS[method].sees != "labelled" else 1),
            "optimiser": "sgd",
            "learning_rate": 0.5,
            "weight_decay": 5e-5,
            "schedule": "step",
            "warmup": 0.1,
            "clip": 0.0,
            "average": 0.0,
            "precision": "float32",
        },
    }


def settled(config: Config, masks: int) -> Config:
    """Fill in what the protocol fixes; a setting that is not at its default stays as it is (see `departures`).

    Settling twice changes nothing, so that a run goes on from its own settings.
    """
    default, parts = dataclasses.replace(Config(), method=METHODS.make(config.method.name)), {}
    for part, values in fixed(config.method.name, masks).items():
        now, usual = getattr(config, part), getattr(default, part)
        free = {k: v for k, v in values.items() if hasattr(now, k) and getattr(now, k) == getattr(usual, k, None)}
        parts[part] = dataclasses.replace(now, **free)
    return dataclasses.replace(config, **parts)


def departures(config: Config, masks: int) -> list[str]:
    """Name the settings that are not those of the protocol, a pre-training and a method that it does not have."""
    settings = [
        f"{part}.{key}"
        for part, values in fixed(config.method.name, masks).items()
        for key, value in values.items()
        if getattr(getattr(config, part), key, value) != value
    ]
    pretrained = ["pretrain"] if config.pretrain.name != "none" else []
    return settings + pretrained + (["method"] if config.method.name not in PUBLISHED else [])


def epochs_between(config: Config) -> int:
    """Epochs from one measurement on the test images to the next."""
    return 1 if METHODS[config.method.name].sees != "labelled" or config.pretrain.name not in SELDOM else 2


def require(dataset: Dataset, config: Config, processes: int) -> None:
    """Refuse what the protocol does not cover.

    Raises:
        InputError: the data are not 2-D with one foreground class, or are cut into patches, or several processes train.

    """
    classes = len(dataset.label_map.names)
    if dataset.dims != 2 or classes != 2:
        found = f"{dataset.dims}-D images and {classes} classes"
        expected = "2-D images, background and one foreground: what the published protocol is about"
        raise InputError("--protocol parity", found, expected, "leave it out")
    if config.data.sampling != "resize":
        expected = "resize, with --protocol parity"
        raise InputError("data.sampling", config.data.sampling, expected, "leave one of them out")
    if processes > 1:
        expected = "one process, which measures after every epoch"
        raise InputError("--protocol parity", f"{processes} processes", expected, "start it without torchrun")


def choices(test: Sequence[str]) -> list[dict[str, Any]]:
    """What is chosen on the masks of these test cases, as budget.json tells it."""
    made = "the best pooled Jaccard index on the test images, for parity.json alone"
    return [{"choice": "epoch, threshold and network", "made": made, "split": "test", "cases": len(test)}]


def watcher(job: Job, whole: Dataset, cache: Cache) -> "TestMeasurements":
    """Open the test cases of `whole`, which are not locked there.

    Raises:
        DataError: they cannot be read, or none shows any foreground.

    """
    files, data = chosen(whole, job.split.test), job.config.data
    store = Store(files, whole.label_map, data, with_masks=True, cache=cache, targets=job.task.targets)
    return TestMeasurements(store, job.config, len(job.split.labelled), job.session.device)


def histogram(
    foreground: Float[Tensor, "*pixels"], masks: Integer[Tensor, "*pixels"]
) -> Integer[Tensor, "classes thresholds_and_one"]:
    """Count pixels by their class, and by how many thresholds their probability of the foreground is above."""
    bins = len(THRESHOLDS) + 1
    above = torch.bucketize(foreground.flatten(), THRESHOLDS.to(foreground))
    return torch.bincount(masks.flatten() * bins + above, minlength=2 * bins).reshape(2, bins)


def overlaps(
    counts: Integer[Tensor, "classes thresholds_and_one"],
) -> tuple[Float[Tensor, "thresholds"], Float[Tensor, "thresholds"]]:
    """Pooled Dice and Jaccard index of the foreground at each threshold, of what `histogram` counted."""
    false, true = counts.double().flip(1).cumsum(1).flip(1)[:, 1:]
    total = counts[1].double().sum()
    return 2 * true / (true + false + total), true / (false + total)


@dataclass(frozen=True)
class TestMeasurements:
    """Measures the networks of a method on the test images at the end of each epoch.

    It is what the control of a training calls after each step.

    Raises:
        DataError: no test mask shows any foreground.

    """

    store: Store
    """The test cases with their masks."""
    config: Config
    masks: int
    """Number of labelled images."""
    device: torch.device

    def __post_init__(self) -> None:
        if not self._pixels()[1]:
            raise DataError("the test masks", "no foreground in any", "structures to measure", "draw some")

    def __call__(self, learner: Learner, step: int) -> dict[str, Any]:
        """Return the best threshold and network at this step for the log, or nothing between two measurements."""
        streams = 2 if METHODS[self.config.method.name].sees != "labelled" else 1
        epoch = -(-self.masks // (self.config.train.batch // streams))
        if step % (epoch * epochs_between(self.config)) and step != self.config.train.steps:
            return {}
        assert isinstance(learner, Method)
        learner.eval()
        found = [self._measured(name, net) for name, net in learner.candidates().items()]
        learner.train()
        best = max(found, key=lambda one: float(one["pooled_jaccard"]))
        return {"parity": best | {"dice_at_half": found[0]["dice_at_half"]}}

    def write(self, run: Path) -> None:
        """Choose among the measurements in the log of a run that has ended and write parity.json."""
        lines = [json.loads(line) for line in (run / LOG).read_text(encoding="utf-8").splitlines()]
        background, foreground = self._pixels()
        content = {
            **selected(lines),
            "foreground_everywhere": 2 * foreground / (2 * foreground + background),
            "differs": departures(self.config, self.masks),
            "warning": WARNING,
        }
        write_json(run / SELECTED, content)

    def _pixels(self) -> tuple[int, int]:
        background, foreground = np.sum([self.store.counts(index) for index in range(len(self.store))], axis=0)
        return int(background), int(foreground)

    @torch.inference_mode()
    def _measured(self, name: str, network: nn.Module) -> dict[str, Any]:
        counts = torch.zeros(2, len(THRESHOLDS) + 1, dtype=torch.long, device=self.device)
        for start in range(0, len(self.store), BATCH):
            images, masks = self._batch(range(start, min(start + BATCH, len(self.store))))
            with autocast(self.device, self.config.train.precision):
                logits = network(images.to(self.device, memory_format=torch.channels_last))
            counts += histogram(logits.float().softmax(1)[:, 1], masks.to(self.device))
        dice, jaccard = overlaps(counts.cpu())
        place = int(jaccard.argmax())
        return {
            "network": name,
            "threshold": round(float(THRESHOLDS[place]), 2),
            "pooled_jaccard": float(jaccard[place]),
            "pooled_dice": float(dice[place]),
            "dice_at_half": float(dice[HALF]),
        }

    def _batch(
        self, places: Iterable[int]
    ) -> tuple[Float[Tensor, "batch channels *space"], Integer[Tensor, "batch *space"]]:
        images, masks = [], []
        for index in places:
            case = self.store[index]
            assert case.target is not None
            images.append(self.store.preprocessing.normalised(case.image, self.store.moments(index)))
            masks.append(case.target)
        return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(masks)).long()


def selected(lines: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Choose the measurement with the best pooled Jaccard index from the lines of a log, the earliest of equal ones."""
    found = [line["parity"] | {"step": line["step"]} for line in lines if "parity" in line]
    best = max(found, key=lambda one: float(one["pooled_jaccard"]))
    return {
        **{key: best[key] for key in ("pooled_dice", "pooled_jaccard", "threshold", "step", "network")},
        "last_pooled_dice": found[-1]["dice_at_half"],
        "validated": len(found),
    }


def caveats(run: Path) -> list[Caveat]:
    """Say what the protocol makes of the numbers of a run."""
    if not (run / SELECTED).is_file():  # the run has not ended
        return [Caveat("published-protocol", WARNING)]
    found = read_json(run / SELECTED)
    chosen = (
        f"{CHOSEN}, at the network's resolution: {found['pooled_dice']:.4f} (step {found['step']}, "
        f"threshold {found['threshold']:.2f}, of {found['validated']} measurements); last weights, threshold 0.50: "
        f"{found['last_pooled_dice']:.4f}; foreground everywhere: {found['foreground_everywhere']:.4f}"
    )
    differs = f"the settings differ from the published protocol in {', '.join(found['differs'])}"
    told = [Caveat("published-protocol", WARNING), Caveat("published-number", chosen)]
    return [*told, *([Caveat("published-settings", differs)] if found["differs"] else [])]
