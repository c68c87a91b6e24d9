"""One training: what it is made of."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nissl.config import Config
from nissl.data.cases import Dataset
from nissl.data.split import Split
from nissl.learner import Problem
from nissl.methods import METHODS
from nissl.pretrain import PRETRAININGS
from nissl.pretrain.pretraining import Pretraining
from nissl.tasks.task import Task, task_of
from nissl.training.session import Session


@dataclass(frozen=True)
class Job:
    """What is trained, on which cases, and where."""

    config: Config
    dataset: Dataset
    split: Split
    session: Session
    pretrained: Path | None = None
    """The run whose pre-trained networks are reused."""

    @property
    def problem(self) -> Problem:
        """What is to be learnt."""
        dataset, config, task = self.dataset, self.config, self.task
        outputs = len(task.outputs(dataset))
        return Problem(task, dataset.dims, dataset.channels, outputs, config.data.size, config.net)

    @property
    def task(self) -> Task:
        """What is learnt."""
        return task_of(self.config.task)

    @property
    def method(self) -> Any:
        """Class of the method."""
        return METHODS[self.config.method.name]

    @property
    def pretraining(self) -> type[Pretraining]:
        """Class of the pre-training."""
        kind: type[Pretraining] = PRETRAININGS[self.config.pretrain.name]
        return kind
