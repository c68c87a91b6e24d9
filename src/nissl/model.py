"""What a run leaves: its predictor, and the description (model.json) that says how to use it, with or without Nissl."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from nissl.config import Config, DataConfig, Precision, PredictConfig, from_tree, to_tree
from nissl.data.preprocessing import Preprocessing
from nissl.errors import DataError
from nissl.nets.factory import build
from nissl.nets.settings import NetSettings, UNet
from nissl.runs.checkpoint import load_checkpoint
from nissl.runs.folder import WEIGHTS, choose_device, read_json, refuse_pickle, write_json
from nissl.runs.format import load_config
from nissl.tasks.settings import Segmentation, TaskSettings
from nissl.tasks.task import Task, task_of

MODEL = "model.json"


@dataclass(frozen=True)
class Reading:
    """How files are read."""

    axes: str = ""
    limit_gib: float = 1.0


@dataclass(frozen=True)
class Description:
    """The content of model.json: all that is needed to use the weights."""

    preprocessing: Preprocessing
    channels: int
    classes: tuple[str, ...]
    net: NetSettings = field(default_factory=UNet)
    kind: Literal["network"] = "network"
    """What the predictor is: images `(batch, channels, *space)` to logits `(batch, classes, *space)`."""
    task: TaskSettings = field(default_factory=Segmentation)
    values: tuple[int | str, ...] = ()
    """What stands for each class in masks: a value, or a colour `#rrggbb`. Class numbers where it is empty."""
    reading: Reading = field(default_factory=Reading)
    predict: PredictConfig = field(default_factory=PredictConfig)
    precision: Precision = "float32"
    planned_steps: int = 0
    """Steps of the training; weights with fewer are those of an unfinished run."""

    @classmethod
    def of(
        cls, config: Config, channels: int, classes: tuple[str, ...], values: tuple[int | str, ...]
    ) -> "Description":
        """Make the description of a training from its resolved settings and its data."""
        return cls(
            Preprocessing.fitted(config.data),
            channels,
            classes,
            config.net,
            task=config.task,
            values=values,
            reading=Reading(config.data.axes, config.data.limit_gib),
            predict=config.predict,
            precision=config.train.precision,
            planned_steps=config.train.steps,
        )

    def save(self, run: Path) -> None:
        """Write model.json."""
        write_json(run / MODEL, to_tree(self))

    @classmethod
    def load(cls, run: Path) -> "Description":
        """Read the description of a run; one that an earlier version left without is made from its settings and data.

        Raises:
            InputError: the folder is not a run, or a file of it holds what is unknown.
            DataError: a file of it is damaged.

        """
        if (run / MODEL).exists():
            return from_tree(cls, read_json(run / MODEL), str(run / MODEL))
        data, config = read_json(run / "data.json"), load_config(run / "config.toml")
        return cls.of(config, data["channels"], tuple(data["classes"]), tuple(data.get("values", ())))


@dataclass(frozen=True)
class Model:
    """A trained predictor and what is needed to use it on new images."""

    predictor: nn.Module
    """In evaluation mode, on `device`."""
    description: Description
    device: torch.device
    weights: str = "0" * 64
    """SHA-256 of the weights."""
    steps: int = 0
    """Steps that the weights have behind them."""

    @property
    def task(self) -> Task:
        """What it has learnt."""
        return task_of(self.description.task)

    @property
    def preprocessing(self) -> Preprocessing:
        """How images become its input."""
        return self.description.preprocessing

    @property
    def dims(self) -> int:
        """Axes of space."""
        return self.preprocessing.dims

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.description.channels

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of its outputs."""
        return self.description.classes

    @property
    def values(self) -> tuple[int | str, ...]:
        """What stands for each class in masks."""
        return self.description.values

    @property
    def planned_steps(self) -> int:
        """Steps of the training."""
        return self.description.planned_steps

    @property
    def reading(self) -> DataConfig:
        """The settings by which files are read as the training read them."""
        reading, colour = self.description.reading, self.preprocessing.colour
        return DataConfig(axes=reading.axes, limit_gib=reading.limit_gib, colour=colour)

    def with_values(self, values: tuple[int | str, ...]) -> "Model":
        """The same, with other values in masks."""
        return dataclasses.replace(self, description=dataclasses.replace(self.description, values=values))

    @classmethod
    def load(cls, run: Path, device: str = "auto") -> "Model":
        """Load the model of a run.

        Raises:
            InputError: the folder is not a run, a file that could run code of its own is given in its place, or
                model.json holds what is unknown.
            DataError: the weights are missing, damaged, or of another network than model.json states.

        """
        refuse_pickle(run)
        description = Description.load(run)
        refuse_pickle(run / WEIGHTS)
        tensors, facts = load_checkpoint(run / WEIGHTS)
        dims, outputs = description.preprocessing.dims, len(description.classes)
        net = build(description.net, dims, description.channels, outputs, seed=0)
        try:
            net.load_state_dict(tensors)
        except RuntimeError as error:
            found = f"weights of another network ({str(error).splitlines()[-1].strip()})"
            expected = f"those of {description.net.name} with {outputs} outputs, as in {MODEL}"
            raise DataError(run / WEIGHTS, found, expected, f"restore the weights or {MODEL} of this run") from error
        place = choose_device(device)
        return cls(net.to(place).eval(), description, place, facts["sha256"], int(facts["step"]))
