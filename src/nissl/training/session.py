"""Where a stage of a training runs: its folder, its processes, its device, and who may watch or stop it."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nissl.config import TrainConfig
from nissl.data.batches import CHANNELS_LAST
from nissl.learner import Learner
from nissl.progress import Tracker, track
from nissl.runs.folder import LOG, STATE, WEIGHTS
from nissl.training.distributed import World, synchronise


@dataclass(frozen=True)
class Control:
    """Who watches a training, and who may stop it, from any thread."""

    should_stop: Callable[[], bool] = lambda: False
    """Asked after each step: the state is then saved and `Interrupted` raised."""
    track: Tracker = track
    after_step: Callable[[Learner, int], dict[str, Any]] | None = None
    """Called after each step of the last stage with the learner and the number of steps made; what it returns is added
    to the step's line of the log."""

    def and_after_step(self, more: Callable[[Learner, int], dict[str, Any]]) -> "Control":
        """Have another one called after each step too."""
        first = self.after_step or (lambda learner, step: {})
        return replace(self, after_step=lambda learner, step: first(learner, step) | more(learner, step))


@dataclass(frozen=True)
class Session:
    """This process at work on a run."""

    folder: Path
    device: torch.device
    world: World = field(default_factory=World)
    control: Control = field(default_factory=Control)
    workers: int = 0
    """Processes that prepare batches."""

    def place(self, module: nn.Module) -> None:
        """Bring a module to the device, its weights in the layout in which convolutions run fastest."""
        if self.world.size > 1:
            synchronise(module)
        module.to(self.device)
        for parameter in module.parameters():
            if parameter.ndim in CHANNELS_LAST:
                parameter.data = parameter.data.contiguous(memory_format=CHANNELS_LAST[parameter.ndim])


@dataclass(frozen=True)
class Stage:
    """One stage of a training: how long, how, and under which names it is kept in the run folder."""

    title: str
    """What the progress shows."""
    train: TrainConfig
    seed: int
    """Of dropout and of whatever else a learner draws; a function of (seed, step, rank) at each step, so that a resumed
    run draws what the uninterrupted one would have."""
    state: Path = STATE
    """What a resumed run needs."""
    weights: Path | None = WEIGHTS
    """The averaged weights of the predictor; None for a stage that hands its networks over."""
    log: Path = LOG
