"""Jobs that give the same result in one process and in several; started as processes of their own by the test.

    python -m tests.training.processes FOLDER        with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set

Each process writes the result of each job to `FOLDER/JOB of RANK`.
"""

import os
import signal
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tests.pretrain.driver import learner_of, run
from tests.training.tiny import CPU, SURE, TRAIN, Recipe, make_images, write_files
from torch import nn

from nissl.nets import factory
from nissl.plasticity import HPCA, SWTA, Plasticity
from nissl.pretrain import PRETRAININGS
from nissl.runs.checkpoint import save_checkpoint
from nissl.training.distributed import SynchronisedBatchNorm, World, joined, synchronise
from nissl.training.loop import Trainer
from nissl.training.session import Session

BATCH = 4
"""Images of a step over all processes."""
NORMS = {
    "plain": {"num_features": 3},
    "not affine": {"num_features": 3, "affine": False},
    "plain average": {"num_features": 3, "momentum": None},
    "no running statistics": {"num_features": 3, "track_running_stats": False},
}


def make_net(files, world):
    dims = 2 if files[0].image.suffix == ".png" else 3
    net = factory.build(SURE, dims, 1, 2, seed=0).double()
    if world.size > 1:
        synchronise(net)
    return net


def plasticity(files, world, rule):
    """Four Hebbian steps by hand."""
    net = make_net(files, world)
    stream = Doubled(make_images(files, world, BATCH))
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    with Plasticity(net, rule, exclude=("head",)) as hooks:
        for step in range(4):
            net(stream[step].to(CPU).images)
            hooks.step(optimiser)
    return net.state_dict()


def pretraining(files, world, folder, name, **options):
    """The whole of a pre-training."""
    net = make_net(files, world)
    learner = learner_of(net, PRETRAININGS.make(name, **{"steps": 4, "batch": BATCH} | options))
    folder.mkdir()
    run(learner, Doubled(make_images(files, world, BATCH)), Session(folder, CPU, world))
    return net.state_dict()


class Doubled:
    """Another stream in float64, with a chance to do something at each step."""

    def __init__(self, stream, act=None):
        self.stream, self.act = stream, act or (lambda step, batch: None)

    def __getitem__(self, step):
        batch = self.stream[step]
        self.act(step, batch)
        unlabelled = None if batch.unlabelled is None else batch.unlabelled.double()
        return replace(batch, images=batch.images.double(), unlabelled=unlabelled)

    def ids(self, step):
        return self.stream.ids(step)


def make_trainer(files, world, folder, act=None, method="supervised", **settings):
    config = replace(TRAIN, steps=8, batch=BATCH, save_every=100, precision="float32", **settings)
    trainer = Recipe(files, method=method, config=config, net=SURE, world=world).trainer(folder)
    return Trainer(trainer.learner.double(), Doubled(trainer.stream, act), trainer.stage, trainer.session)


def training(files, world, folder, **settings):
    """Eight steps of the loop."""
    trainer = make_trainer(files, world, folder, **settings)
    trainer.run()
    assert trainer.learner.predictor().head.weight.dtype == torch.float64
    return trainer.average.state_dict() | trainer.learner.state_dict()


def spoilt(files, world, folder):
    """The last image of step 3 is not a number: in several processes only the last of them sees it."""

    def spoil(step, batch):
        if step == 3 and world.rank == world.size - 1:
            batch.images[-1, 0, 4, 4] = float("nan")

    trainer = make_trainer(files, world, folder, spoil)
    trainer.run()
    return trainer.learner.state_dict() | {"skipped": trainer.average.n_averaged}


def stopped(files, world, folder):
    """Only the last process is asked to stop, in its third step."""

    def stop(step, batch):
        if step == 2 and world.rank == world.size - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    trainer = make_trainer(files, world, folder, stop)
    try:
        trainer.run()
    except SystemExit as left:
        return {"step": torch.tensor(trainer.step), "code": torch.tensor(left.code)}
    raise AssertionError("the signal was not heard")


def normalisation(world, name, dims, dtype=torch.float64):
    """Two batches through BatchNorm, with gradients: outputs, gradients and statistics of this process's share."""
    kind = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dims]
    generator = torch.Generator().manual_seed(dims)
    layer = kind(**NORMS[name], dtype=torch.float64)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    layer = layer.float() if dtype == torch.bfloat16 else layer
    net = nn.Sequential(layer)
    if world.size > 1:
        synchronise(net)
        assert isinstance(net[0], SynchronisedBatchNorm)
    share = slice(world.rank * BATCH // world.size, (world.rank + 1) * BATCH // world.size)
    result = {}
    for step in range(2):
        x = (5 + torch.randn(BATCH, 3, *[6] * dims, generator=generator, dtype=torch.float64)).to(dtype)
        weights = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        mine = x[share].clone().requires_grad_()
        y = net(mine)
        (y.square() * weights[share]).sum().backward()
        result |= {f"y{step}": y.detach(), f"gradient{step}": mine.grad}
    for parameter, tensor in layer.named_parameters():
        total = tensor.grad.clone()
        if world.size > 1:
            torch.distributed.all_reduce(total)
        result[f"gradient of {parameter}"] = total
    if layer.track_running_stats:
        result["evaluated"] = net.eval()(x[share]).detach()
    return result | {name: tensor.clone() for name, tensor in net.state_dict().items()}


def agreement(world):
    """What the processes decide together."""
    values = world.mean(torch.tensor([float(world.rank), 1.0]))
    return {"mean": values, "largest": torch.tensor(world.largest(10 + world.rank, CPU))}


@dataclass(frozen=True)
class Place:
    """Where a job works, and as whom; each process has files of its own, which are the same."""

    folder: Path
    world: World

    @property
    def own(self):
        """An empty folder of this process."""
        return Path(tempfile.mkdtemp(dir=self.folder)) / "own"

    @property
    def flat(self):
        return write_files(self.folder / f"flat{self.world.rank}")

    @property
    def deep(self):
        return write_files(self.folder / f"deep{self.world.rank}", dims=3)


SAME = {
    "plasticity swta": lambda p: plasticity(p.flat, p.world, SWTA(5.0, standardise=True)),
    "plasticity hpca": lambda p: plasticity(p.flat, p.world, HPCA()),
    "plasticity swta 3-D": lambda p: plasticity(p.deep, p.world, SWTA(5.0, standardise=True)),
    "pretraining swta": lambda p: pretraining(p.flat, p.world, p.own, "hebbian", layers="all", rule="swta", samples=0),
    "pretraining hpca, thinned": lambda p: pretraining(p.flat, p.world, p.own, "hebbian", layers="all", samples=256),
    "pretraining vae": lambda p: pretraining(p.flat, p.world, p.own, "vae"),
    "pretraining superpixel": lambda p: pretraining(p.flat, p.world, p.own, "superpixel"),
    "pretraining warm": lambda p: pretraining(p.flat, p.world, p.own, "warm"),
    "training": lambda p: training(p.flat, p.world, p.folder / "training"),
    "training, sgd": lambda p: training(p.flat, p.world, p.folder / "sgd", optimiser="sgd"),
    "training, cps": lambda p: training(p.flat, p.world, p.folder / "cps", method="cps"),
    "training 3-D": lambda p: training(p.deep, p.world, p.folder / "training 3-D"),
    "spoilt": lambda p: spoilt(p.flat, p.world, p.folder / "spoilt"),
}
"""Jobs after which all processes have what one has."""

NORMALISATIONS = {
    f"{name} {dims}-D": lambda p, name=name, dims=dims: normalisation(p.world, name, dims)
    for name in NORMS
    for dims in (1, 2, 3)
}
OWN = {
    "agreement": lambda p: agreement(p.world),
    "stopped": lambda p: stopped(p.flat, p.world, p.folder / "stopped"),
    "half precision": lambda p: normalisation(p.world, "plain", 2, torch.bfloat16),
    **NORMALISATIONS,
}
"""Jobs that give each process a result of its own."""


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    with joined(CPU) as world:
        place = Place(folder, world)
        for name, job in (SAME | OWN).items():
            save_checkpoint(folder / f"{name} of {world.rank}", job(place), {})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
