"""The contract of a task: everything that is not written once for all of them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from jaxtyping import Float, Float32
from torch import Tensor

from nissl.config import DataConfig
from nissl.data.batches import Store
from nissl.data.cases import Case, CaseFile, Dataset
from nissl.data.targets import Targets
from nissl.errors import Caveat
from nissl.imageio.formats import Raster
from nissl.imageio.label_map import LabelMap
from nissl.metrics.metric import Metric
from nissl.tasks.settings import TASKS, TaskSettings


class Task(Protocol):
    """What is learnt; it is chosen by name and has settings of its own (`nissl.tasks.settings`)."""

    name: ClassVar[str]
    metrics: ClassVar[tuple[Metric, ...]]
    """What a measurement gives, the primary metric first."""

    @property
    def targets(self) -> Targets:
        """How targets are read and cut."""
        ...

    def __init__(self, settings: Any) -> None: ...

    def outputs(self, dataset: Dataset) -> tuple[str, ...]:
        """Names of the outputs of the network, one for each channel."""
        ...

    def values(self, files: Iterable[CaseFile], label_map: LabelMap, config: DataConfig) -> tuple[int | str, ...]:
        """What stands for each output in the files that the user made, so that predictions are written alike."""
        ...

    def require_learnable(self, labelled: Store, dataset: Dataset) -> dict[str, int]:
        """Refuse labelled cases from which nothing can be learnt; return how often each output is in them.

        Raises:
            DataError: there is nothing to learn.

        """
        ...

    def losses(
        self, outputs: Float[Tensor, "batch outputs *space"], targets: Tensor, loss: str
    ) -> dict[str, Float[Tensor, ""]]:
        """Compare outputs with targets: named terms, means over images."""
        ...

    def degenerate(self, outputs: Iterable[Tensor], targets: Tensor) -> str:
        """Say in a sentence that outputs are trivial although the targets are not; empty where they are not."""
        ...

    def decode(self, outputs: Float32[np.ndarray, "outputs *space"]) -> np.ndarray:
        """Make the prediction from the outputs of a piece of an image."""
        ...

    def rows(self, case: Case, prediction: np.ndarray, outputs: Sequence[str]) -> Sequence[Any]:
        """Measure one case: its lines of metrics.csv."""
        ...

    def to_csv(self, rows: Sequence[Any]) -> str:
        """The content of metrics.csv."""
        ...

    def summarise(
        self, rows: Sequence[Any], rng: np.random.Generator, counts: Mapping[str, int], caveats: Sequence[Caveat]
    ) -> Any:
        """Summarise the lines of all cases; `counts` as of `require_learnable`. Its `to_tree()` is metrics.json."""
        ...

    def write(
        self, path: Path, pieces: Iterator[np.ndarray], like: Raster, values: Sequence[int | str], note: str
    ) -> None:
        """Write the prediction of an image, which comes in bands of rows, in its geometry.

        Args:
            path: of a kind that `imageio.formats.mask_suffix` gives for the image.
            pieces: what `decode` gives, in order along the first axis.
            like: the image.
            values: as of `values`.
            note: where the prediction comes from.

        """
        ...


def task_of(options: TaskSettings) -> Task:
    """Make the task of these settings."""
    made: Task = TASKS[options.name](options)
    return made
