"""Settings of the tasks, and their registry."""

from dataclasses import dataclass
from typing import Annotated

from nissl.members import Members, Settings, short


@dataclass(frozen=True)
class TaskSettings(Settings):
    """What is learnt."""

    name: Annotated[str, short("task")]
    """`segmentation`: the class of each pixel."""


@dataclass(frozen=True)
class Segmentation(TaskSettings):
    """Give each pixel its class."""

    name: Annotated[str, short("task")] = "segmentation"


TASKS: Members[TaskSettings] = Members("task", TaskSettings, {Segmentation: "nissl.tasks.segmentation:Segmentation"})
