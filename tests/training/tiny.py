"""A small network, a few small images, and the loop on them: a run of 20 steps takes a fraction of a second."""

import dataclasses
import json

import numpy as np
import torch

from nissl.nets import factory
from nissl.config import AugmentConfig, DataConfig, NetConfig, PretrainConfig, TrainConfig
from nissl.data.batches import ImageStream, Schedule, Store, Stream, resolve
from nissl.data.cases import CaseFile
from nissl.errors import DataError
from nissl.imageio.formats import read_header, write_image, write_mask
from nissl.imageio.label_map import LabelMap
from nissl.methods import METHODS
from nissl.pretrain import PRETRAININGS
from nissl.runs.checkpoint import pack_optimiser
from nissl.training.distributed import World, synchronise
from nissl.training.loop import CHANNELS_LAST, Trainer, lay_out

NET = NetConfig(widths=(4, 8), dropout=(0.1, 0.1))
SURE = NetConfig(widths=(4, 8), dropout=(0.0, 0.0))
TRAIN = TrainConfig(steps=20, batch=2, save_every=7, learning_rate=1e-2)
PRETRAIN = PretrainConfig(layers="all", steps=3, batch=2)
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
        write_mask(file.mask, mask)
        files.append(file)
    return files


def make_store(files, with_masks=True):
    size = read_header(files[0].image).shape
    return Store(files, LabelMap.parse("binary"), resolve(DataConfig(size=size), len(size)), with_masks=with_masks)


def make_stream(files, batch=TRAIN.batch, world=ALONE):
    schedule = Schedule(1, batch, world.rank, world.size)
    return Stream(make_store(files[:3]), make_store(files[3:], with_masks=False), AugmentConfig(), schedule)


class Images:
    """Images for pre-training, laid out as the network, in its precision."""

    def __init__(self, files, world=ALONE, batch=PRETRAIN.batch, dtype=torch.float32):
        schedule = Schedule(2, batch, world.rank, world.size)
        self.stream = ImageStream(make_store(files, with_masks=False), AugmentConfig(), schedule)
        self.dtype = dtype

    def __getitem__(self, step):
        images = self.stream[step].to(self.dtype)
        return images.contiguous(memory_format=CHANNELS_LAST[images.ndim])

    def ids(self, step):
        return self.stream.ids(step)


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
    pretrain_config: PretrainConfig = PRETRAIN
    net: NetConfig = NET
    seed: int = 3
    workers: int = 0
    world: World = dataclasses.field(default_factory=World)

    def networks(self):
        """The networks as they are initialised."""
        dims = 2 if self.files[0].image.suffix == ".png" else 3
        networks = [factory.build(self.net, dims, 1, 2, self.seed + index) for index in range(METHODS[self.method].count)]
        for net in networks:
            lay_out(net)
            if self.world.size > 1:
                synchronise(net)
        return networks

    def pretraining(self):
        """What pre-trains them."""
        return PRETRAININGS[self.pretrain](dataclasses.replace(self.pretrain_config, name=self.pretrain), self.seed)

    def trainer(self, folder, change=None, resumed=False):
        """A trainer; with `resumed` the networks are made anew and only restructured, as on the command line."""
        kind, networks = METHODS[self.method], self.networks()
        for net in networks:
            pretraining = self.pretraining()
            if resumed:
                pretraining.restructure(net)
            else:
                pretraining.run(net, Images(self.files, self.world))
        stream = make_stream(self.files, self.config.batch, self.world)
        stream = Changed(stream, change) if change else stream
        folder.mkdir(exist_ok=True)
        return Trainer(kind(networks), stream, self.config, folder, self.seed, CPU, self.world, self.workers)

    def whole(self, folder):
        """A trainer after a run without interruption."""
        trainer = self.trainer(folder)
        trainer.run()
        return trainer


def state_of(trainer):
    """Everything that a trainer must have again after a resume."""
    method = {f"method.{name}": tensor for name, tensor in trainer.method.state_dict().items()}
    average = {f"average.{name}": tensor for name, tensor in trainer.average.state_dict().items()}
    return method | average | pack_optimiser(trainer.optimiser)[0]


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
