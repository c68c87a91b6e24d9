"""Run a pre-training of one network on the real loop, with images that a test makes."""

import dataclasses
import tempfile
from pathlib import Path

import torch

from nissl.data.batches import Batch
from nissl.pretrain import PRETRAININGS
from nissl.pretrain.settings import Stepped
from nissl.runs.checkpoint import has_checkpoint
from nissl.runs.folder import STATE
from nissl.training.loop import Trainer, run_stage
from nissl.training.session import Session, Stage
from nissl.training.stages import _report, pretraining_loop

CPU = torch.device("cpu")


class Served:
    """Images by step, as batches that hold nothing else; `images` may be any object that gives them for a step."""

    def __init__(self, images):
        self.images = images

    def __getitem__(self, step):
        images = self.images[step]
        return image_batch(images, step, self.ids(step))

    def ids(self, step):
        return (f"images of step {step}",)


def image_batch(images, step=0, ids=(), first=0):
    """A batch of images alone."""
    return Batch(images, torch.empty(len(images), 0, dtype=torch.long), None, ids, step, first)


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a pre-training says of itself, as in `pretrain.json`."""

    name: str
    steps: int
    images: int
    rule: str | None
    layers: list
    curves: list


def learner_of(net, settings, seed=0):
    """What pre-trains a network."""
    return PRETRAININGS[settings.name](net, settings, seed)


def stage_of(learner, **changes):
    """The stage of a pre-training, as in a run; `changes` are those of its settings of the loop."""
    train = dataclasses.replace(pretraining_loop(learner.settings), **changes)
    return Stage("pre-training", train, learner.seed, weights=None)


def trainer_of(learner, stream, session):
    """The loop over a pre-training that makes steps."""
    return Trainer(learner, stream, stage_of(learner), session)


def run(learner, stream, session, **changes):
    """Make all steps, from a checkpoint in the folder if there is one, and finish; return the facts."""
    session.place(learner)
    if not isinstance(learner.settings, Stepped):
        return Facts(**learner.finish(lambda step: ()))
    trainer = run_stage(learner, stream, stage_of(learner, **changes), session, has_checkpoint(session.folder / STATE))
    return Facts(**_report(session.folder, trainer))


def pretrain(net, images, settings, seed=0, **place):
    """Pre-train a network in place on images by step; `place` are arguments of `Session`, such as `control`."""
    with tempfile.TemporaryDirectory() as folder:
        return run(learner_of(net, settings, seed), Served(images), Session(Path(folder), CPU, **place))
