"""The contract of a task: everything that is not written once for all of them."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

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
from nissl.tasks.rows import Columns
from nissl.tasks.settings import TASKS, TaskSettings
from nissl.tasks.summary import summarise


class Task(ABC):
    """What is learnt; it is chosen by name and has settings of its own (`nissl.tasks.settings`)."""

    name: ClassVar[str]
    metrics: ClassVar[tuple[Metric, ...]]
    """What a measurement gives, the primary metric first."""
    columns: ClassVar[Columns[Any]]
    """Of metrics.csv."""
    classes: ClassVar[bool] = False
    """Whether a prediction holds classes, by their numbers or by what stands for them in the user's files."""
    counted: ClassVar[Mapping[str, str]] = {}
    """What a summary counts beside the metrics: names in metrics.json, each with the words for it."""
    trivial: ClassVar[str] = ""
    """The prediction of which a summary gives the metrics too, as `trivial_dice`: what a network has to beat."""
    policy: ClassVar[str] = ""
    """What is to be known about the numbers, in a few sentences below them."""

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    @property
    def primary(self) -> Metric:
        """The metric that decides what is better."""
        return self.metrics[0]

    @property
    def by_case(self) -> list[Metric]:
        """The metrics that each row has."""
        return [metric for metric in self.metrics if metric.by_case]

    @property
    @abstractmethod
    def targets(self) -> Targets:
        """How targets are read and cut."""

    @abstractmethod
    def outputs(self, dataset: Dataset) -> tuple[str, ...]:
        """Names of the outputs of the network, one for each channel."""

    def values(self, files: Iterable[CaseFile], label_map: LabelMap, config: DataConfig) -> tuple[int | str, ...]:
        """What stands for each output in the files that the user made, so that predictions are written alike.

        By default nothing does.
        """
        return ()

    @abstractmethod
    def require_learnable(self, labelled: Store, dataset: Dataset) -> dict[str, int]:
        """Refuse labelled cases from which nothing can be learnt; return how often each output is in them.

        Raises:
            DataError: there is nothing to learn.

        """

    @abstractmethod
    def losses(
        self, outputs: Float[Tensor, "batch outputs *space"], targets: Tensor, loss: str
    ) -> dict[str, Float[Tensor, ""]]:
        """Compare outputs with targets: named terms, means over images."""

    def degenerate(self, outputs: Iterable[Tensor], targets: Tensor) -> str:
        """Say in a sentence that outputs are trivial although the targets are not; empty where they are not."""
        return ""

    @abstractmethod
    def decode(self, outputs: Float32[np.ndarray, "outputs *space"]) -> np.ndarray:
        """Make the prediction from the outputs of a piece of an image."""

    @abstractmethod
    def rows(self, case: Case, prediction: np.ndarray, outputs: Sequence[str]) -> Sequence[Any]:
        """Measure one case: its lines of metrics.csv."""

    def summarise(
        self, rows: Sequence[Any], rng: np.random.Generator, counts: Mapping[str, int], caveats: Sequence[Caveat]
    ) -> Any:
        """Summarise the rows of all cases; `counts` as of `require_learnable`.

        Its `to_tree()` is metrics.json: `classes` by name, `overall`, `warnings` and `warning_codes`. Each class, and
        overall, has the metrics by name, `n_cases`, `n_groups`, the interval of the primary metric (as `dice_ci`), and
        where there are any the `unit` of lengths, what is `counted` and what the trivial prediction reaches.
        """
        return summarise(rows, self.columns, self.metrics, rng, caveats)

    def alike(self, row: Any) -> Mapping[str, str]:
        """What two runs must have in common in a row beside its group, in words by kind: else they are no pair."""
        return {}

    def unit(self, row: Any) -> str:
        """The unit of the lengths in a row: mm or px."""
        return ""

    def false_positives(self, rows: Sequence[Any]) -> int:
        """Rows with a wrong prediction where a right one has no metric, so that differences leave out the pair."""
        return 0

    def remark(self, row: Any) -> str:
        """What is to be said about a row beside its metrics, in a word or two."""
        return ""

    def picture(self, case: Case, prediction: Case) -> str:
        """Draw a case with its target and its prediction, as a data URI; empty where there is nothing to see.

        `prediction` is the case with what was predicted as its target, read from its file.
        """
        return ""

    def legend(self, outputs: Sequence[str]) -> Sequence[tuple[str, str]]:
        """What colours mean in the pictures: names with their colours."""
        return ()

    @abstractmethod
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


def task_of(options: TaskSettings) -> Task:
    """Make the task of these settings."""
    made: Task = TASKS[options.name](options)
    return made


def unit_of(task: Task, rows: Sequence[Any]) -> str:
    """The unit of the lengths in rows, `mixed` where there are several; empty where none are measured."""
    units = set(map(task.unit, rows))
    return units.pop() if len(units) == 1 else "mixed"
