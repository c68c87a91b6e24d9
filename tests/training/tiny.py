"""A small network, a few small images, and the loop on them: a run of 20 steps takes a fraction of a second."""

import dataclasses
import json
import multiprocessing
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from tests.members import made
from tests.pretrain.driver import learner_of, run

from nissl.config import AugmentConfig, DataConfig, TrainConfig
from nissl.data.batches import Schedule, Store, Stream
from nissl.data.cases import CaseFile
from nissl.data.preprocessing import resolve
from nissl.errors import DataError
from nissl.imageio.formats import read_header, write_image, write_mask
from nissl.imageio.label_map import LabelMap
from nissl.learner import Problem
from nissl.methods import METHODS
from nissl.nets.settings import NetSettings, UNet
from nissl.pretrain import PRETRAININGS
from nissl.runs.checkpoint import load_checkpoint, pack_optimiser
from nissl.tasks.segmentation import Segmentation
from nissl.training.distributed import World
from nissl.training.loop import Trainer
from nissl.training.session import Session, Stage

NET = UNet(widths=(4, 8), dropout=(0.1, 0.1))
SURE = UNet(widths=(4, 8), dropout=(0.0, 0.0))
TRAIN = TrainConfig(steps=20, batch=2, save_every=7, learning_rate=1e-2)
PRETRAIN = {"layers": "all", "steps": 3, "batch": 2}
"""Options of each pre-training that has them."""
CPU = torch.device("cpu")
ALONE = World()


def write_files(folder, dims=2, count=5, side=16):
    """Noisy 16 x 16 (x 16) images with a bright box, and their masks."""
    folder.mkdir(parents=True, exist_ok=True)
    suffix = "png" if dims == 2 else "nii.gz"
    files = []
    for number in range(count):
        rng = np.random.default_rng(number)
        mask = np.zeros((side,) * dims, np.uint8)
        mask[tuple(slice(start, start + 7) for start in rng.integers(0, 9, dims))] = 1
        image = rng.integers(0, 100, (1, *mask.shape)) + 100 * mask
        file = CaseFile(f"case{number}", folder / f"image{number}.{suffix}", folder / f"mask{number}.{suffix}")
        write_image(file.image, image.astype(np.uint8))
        write_mask(file.target, mask)
        files.append(file)
    return files


def make_store(files, with_masks=True):
    size = read_header(files[0].image).shape
    return Store(files, LabelMap.parse("binary"), resolve(DataConfig(size=size), len(size)), with_masks=with_masks)


def make_stream(files, batch=TRAIN.batch, world=ALONE):
    schedule = Schedule(1, batch, world.rank, world.size)
    return Stream(make_store(files[:3]), make_store(files[3:], with_masks=False), AugmentConfig(), schedule)


def make_images(files, world=ALONE, batch=PRETRAIN["batch"]):
    """A stream of images for pre-training."""
    schedule = Schedule(2, batch, world.rank, world.size)
    return Stream(None, make_store(files, with_masks=False), AugmentConfig(), schedule)


class Changed:
    """A stream in which `change(step, batch)` is done to each batch as it is fetched."""

    def __init__(self, stream, change):
        self.stream, self.change = stream, change

    def __getitem__(self, step):
        return self.change(step, self.stream[step])

    def ids(self, step):
        return self.stream.ids(step)


def crash_at(last):
    """A file that goes missing at a step."""

    def change(step, batch):
        if step == last:
            raise DataError("image.png", "gone", "a file", "put it back")
        return batch

    return change


@dataclasses.dataclass
class Recipe:
    """Makes trainers of one run: the first as it starts, later ones as they resume."""

    files: list
    method: str = "supervised"
    pretrain: str = "none"
    config: TrainConfig = TRAIN
    options: dict = dataclasses.field(default_factory=lambda: PRETRAIN)
    """Of the pre-training."""
    net: NetSettings = NET
    seed: int = 3
    workers: int = 0
    world: World = dataclasses.field(default_factory=World)

    def session(self, folder):
        """Where it runs."""
        return Session(folder, CPU, self.world, workers=self.workers)

    def problem(self):
        """What is learnt."""
        dims = 2 if self.files[0].image.suffix == ".png" else 3
        return Problem(Segmentation(), dims, 1, 2, read_header(self.files[0].image).shape, self.net)

    def pretraining(self, net):
        """What pre-trains a network."""
        return learner_of(net, made(PRETRAININGS, self.pretrain, **self.options), self.seed)

    def networks(self):
        """The networks as they are initialised, by name."""
        made = METHODS[self.method].initial(METHODS.make(self.method), self.problem(), self.seed)
        for net in made.values():
            self.session(Path()).place(net)
        return made

    def trainer(self, folder, change=None, resumed=False):
        """A trainer; with `resumed` the networks are made anew and only restructured, as on the command line."""
        kind, settings, networks = METHODS[self.method], METHODS.make(self.method), self.networks()
        for net in networks.values():
            pretraining = self.pretraining(net)
            if resumed:
                pretraining.restructure()
                continue
            with tempfile.TemporaryDirectory() as place:
                run(pretraining, make_images(self.files, self.world), Session(Path(place), CPU, self.world))
        folder.mkdir(exist_ok=True)
        stream = make_stream(self.files, self.config.batch, self.world)
        stream = Changed(stream, change) if change else stream
        learner = kind.build(settings, self.problem(), networks, self.seed)
        return Trainer(learner, stream, Stage("training", self.config, self.seed), self.session(folder))

    def whole(self, folder):
        """A trainer after a run without interruption."""
        trainer = self.trainer(folder)
        trainer.run()
        return trainer


def state_of(trainer):
    """Everything that a trainer must have again after a resume."""
    learner = {f"learner.{name}": tensor for name, tensor in trainer.learner.state_dict().items()}
    average = {f"average.{name}": tensor for name, tensor in trainer.average.state_dict().items()}
    return learner | average | pack_optimiser(trainer.optimiser)[0]


def differing(one, other):
    """Names of tensors that are not the same bit for bit."""
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


def log_of(folder):
    """The lines of the log, without the time that they took."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def poison(monkeypatch, steps, where="loss", method="supervised"):
    """Make the loss of a method, or only its gradient, useless at some steps."""

    class Poisoned(METHODS[method]):
        def losses(self, batch, progress):
            terms = super().losses(batch, progress)
            if round(progress * TRAIN.steps) not in steps:
                return terms
            weight = self.networks[0].head.weight
            bad = {"loss": weight.sum() * float("nan"), "infinite loss": weight.sum().exp() * float("inf")}
            # sqrt has an infinite slope at 0: the loss is finite, its gradient is 0 times infinity
            return terms | {"bad": bad.get(where, (weight * 0).sum().sqrt())}

    monkeypatch.setitem(METHODS, method, Poisoned)


def worker_processes(patience=20.0):
    """Worker processes that this process still has; torch gives each a few seconds to end on a busy machine."""
    end = time.monotonic() + patience
    while multiprocessing.active_children() and time.monotonic() < end:
        time.sleep(0.05)
    return multiprocessing.active_children()


def differing_files(one, other, paths):
    """Of these files of two runs, those that do not hold the same tensors bit for bit."""
    return [path for path in paths if differing(load_checkpoint(one / path)[0], load_checkpoint(other / path)[0])]
