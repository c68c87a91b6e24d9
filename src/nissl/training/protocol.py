"""Published protocols of training, for comparison with their numbers: their contract, and where each one is.

Training as Nissl does it never opens a test mask. A published protocol may choose on the test images; it alone opens
their masks, and what it makes of the numbers goes with them.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from nissl.config import Config
from nissl.data.batches import Cache
from nissl.data.cases import Dataset
from nissl.errors import Caveat
from nissl.learner import Learner
from nissl.training.job import Job

PROTOCOLS: Mapping[str, str] = {"parity": "nissl.bench.protocols.ciampi2024"}
"""The module of each, which has the functions of `PublishedProtocol`."""


class Watcher(Protocol):
    """Follows a training on the test images."""

    def __call__(self, learner: Learner, step: int) -> dict[str, Any]:
        """Return what a step of the last stage adds to its line of the log."""

    def write(self, run: Path) -> None:
        """Write what was found into the folder of a run that has ended."""


class PublishedProtocol(Protocol):
    """How a training departs from Nissl's own."""

    def settled(self, config: Config, masks: int) -> Config:
        """Fill in what the protocol fixes, for so many labelled images; settling twice changes nothing."""

    def require(self, dataset: Dataset, config: Config, processes: int) -> None:
        """Refuse, by an InputError, what the protocol does not cover."""

    def choices(self, test: Sequence[str]) -> list[dict[str, Any]]:
        """What is chosen on the masks of these test cases, as budget.json tells it."""

    def watcher(self, job: Job, whole: Dataset, cache: Cache) -> Watcher:
        """Open the test cases of `whole`, not locked there; a DataError where nothing can be measured on them."""

    def caveats(self, run: Path) -> list[Caveat]:
        """Say what the protocol makes of the numbers of a run, the most important first."""


def published(name: str) -> PublishedProtocol | None:
    """The published protocol of this name; None for Nissl's own way."""
    return None if name not in PROTOCOLS else cast("PublishedProtocol", import_module(PROTOCOLS[name]))
