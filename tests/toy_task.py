"""A task as somebody else would write it: the picture that belongs to each image, such as itself without noise."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
from torch.nn import functional

from nissl.data.cases import load_case
from nissl.data.preprocessing import resize_image
from nissl.data.targets import Targets
from nissl.imageio.formats import read_raster, write_image
from nissl.members import require, short
from nissl.metrics.metric import Metric
from nissl.tasks.settings import TASKS, TaskSettings

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
class Errors:
    """The summary of a measurement."""

    mae: float
    caveats: tuple = ()

    def to_tree(self):
        """What metrics.json holds."""
        return {"overall": {"mae": self.mae}, "classes": {}, "warnings": [caveat.text for caveat in self.caveats]}


class Restored:
    """The task itself."""

    name = NAME
    metrics = (Metric("mae", higher_is_better=False),)

    def __init__(self, settings):
        self.settings = settings

    @property
    def targets(self):
        """Pictures."""
        return Pictures(self.settings.white)

    def outputs(self, dataset):
        """One."""
        return ("intensity",)

    def values(self, files, label_map, config):
        """Nothing stands for anything."""
        return ()

    def require_learnable(self, labelled, dataset):
        """Any picture will do."""
        return {"intensity": sum(int(labelled.counts(index).sum()) for index in range(len(labelled)))}

    def losses(self, outputs, targets, loss):
        """The squared error."""
        return {"squared": functional.mse_loss(outputs[:, 0], targets)}

    def degenerate(self, outputs, targets):
        """Nothing is trivial."""
        return ""

    def decode(self, outputs):
        """The intensities."""
        return outputs[0]

    def rows(self, case, prediction, outputs):
        """The mean absolute error of a case."""
        return [(case.id, float(np.abs(prediction - case.target).mean()))]

    def to_csv(self, rows):
        """A line for each case."""
        return "".join(f"{name},{error}\n" for name, error in rows)

    def summarise(self, rows, rng, counts, caveats):
        """The mean over cases."""
        return Errors(float(np.mean([error for _, error in rows])), tuple(caveats))

    def write(self, path: Path, pieces, like, values, note):
        """Write intensities as the user's pictures have them."""
        whole = np.concatenate(list(pieces)) * self.settings.white
        write_image(path, whole.round().clip(0, self.settings.white).astype(np.uint8)[None])


def register():
    """Enter it among the tasks, as a package would."""
    TASKS.add(Restoration, Restored)
