"""A task as somebody else would write it: the picture that belongs to each image, such as itself without noise."""

import io
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Annotated

import numpy as np
from PIL import Image
from torch.nn import functional

from nissl.data.cases import load_case
from nissl.data.preprocessing import resize_image
from nissl.data.targets import Targets
from nissl.files import data_uri
from nissl.imageio.formats import read_raster, write_image
from nissl.members import require, short
from nissl.metrics.metric import Metric
from nissl.tasks.rows import Columns
from nissl.tasks.settings import TASKS, TaskSettings
from nissl.tasks.task import Task

NAME = "toy-restoration"


@dataclass(frozen=True)
class Restoration(TaskSettings):
    """Give each pixel its intensity in another picture."""

    name: Annotated[str, short("task")] = NAME
    white: float = 255.0
    """The intensity that is 1 for the network."""

    def __post_init__(self):
        require(self.white > 0, "task.white", self.white, "more than 0")


@dataclass(frozen=True)
class Pictures(Targets):
    """Pictures of one channel, from 0 to 1."""

    white: float

    def read(self, file, label_map, config):
        """Read image and picture."""
        case = load_case(replace(file, target=None), label_map, config)
        picture = read_raster(file.target).pixels[0] if file.target else None
        return replace(case, target=None if picture is None else (picture / self.white).astype(np.float32))

    def resized(self, target, size):
        """Interpolate linearly."""
        return resize_image(target[None], size)[0]

    def counts(self, target, outputs):
        """There are no classes."""
        return np.array([target.size])


@dataclass(frozen=True)
class Error:
    """How far a picture is from what it should be: a line of metrics.csv."""

    case: str
    group: str
    label: str
    mae: float


class Restored(Task):
    """The task itself."""

    name = NAME
    metrics = (Metric("mae", "mean error", higher_is_better=False),)
    columns = Columns(
        {name: attrgetter(name) for name in ("case", "group", "label", "mae")},
        lambda line: Error(line["case"], line["group"], line["label"], float(line["mae"])),
    )

    @property
    def targets(self):
        """Pictures."""
        return Pictures(self.settings.white)

    def outputs(self, dataset):
        """One."""
        return ("intensity",)

    def require_learnable(self, labelled, dataset):
        """Any picture will do."""
        return {"intensity": sum(int(labelled.counts(index).sum()) for index in range(len(labelled)))}

    def losses(self, outputs, targets, loss):
        """The squared error."""
        return {"squared": functional.mse_loss(outputs[:, 0], targets)}

    def decode(self, outputs):
        """The intensities."""
        return outputs[0]

    def rows(self, case, prediction, outputs):
        """The mean absolute error of a case."""
        return [Error(case.id, case.group or "", *outputs, float(np.abs(prediction - case.target).mean()))]

    def picture(self, case, prediction):
        """What was predicted, as it is."""
        buffer = io.BytesIO()
        Image.fromarray((prediction.target * 255).clip(0, 255).astype(np.uint8)).save(buffer, "png")
        return data_uri(buffer.getvalue(), "image/png")

    def write(self, path: Path, pieces, like, values, note):
        """Write intensities as the user's pictures have them."""
        whole = np.concatenate(list(pieces)) * self.settings.white
        write_image(path, whole.round().clip(0, self.settings.white).astype(np.uint8)[None])


def register():
    """Enter it among the tasks, as a package would."""
    TASKS.add(Restoration, Restored)
