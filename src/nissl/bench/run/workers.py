"""Worker pools, which make the cells of a bench; the one of this machine."""

import json
import sys
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from nissl.bench.grid.grid import Cell
from nissl.bench.run.processes import TOKEN, end_workers, run_cell

PAUSE = 0.2
"""Seconds that a pool waits for a cell to finish before it returns to the bench."""


@dataclass(frozen=True)
class Finished:
    """A worker has finished a cell, or was lost."""

    cell: Cell
    lost: str | None = None
    """What became of the worker, where it did not come to the end of the cell."""


class WorkerPool(ABC):
    """Workers that each make one cell at a time; as a context they run inside and have stopped after it.

    A token in the folder of the bench tells the worker processes that it runs.
    """

    size: int
    """How many workers there are."""
    threads: int
    """Threads of each."""
    tries: int
    """How often a cell may lose its worker, without having come further in between, before it has failed."""

    def __init__(self, out: Path) -> None:
        self.out = out.absolute()
        self.token = self.out / f"{TOKEN}{uuid.uuid4().hex}"

    def __enter__(self) -> "WorkerPool":
        for left in self.out.glob(f"{TOKEN}*"):
            left.unlink()  # of a bench that was killed: what it left running stops
        self.token.touch()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @abstractmethod
    def free(self) -> int:
        """How many cells could be submitted now."""

    @abstractmethod
    def submit(self, cell: Cell) -> None:
        """Hand a cell to a free worker."""

    @abstractmethod
    def poll(self) -> Sequence[Finished]:
        """What finished since the last call; waits a moment for it."""

    @abstractmethod
    def stop(self) -> None:
        """Stop the workers, if they have not: those with a cell finish their step and save their state."""


def request_of(cell: Cell) -> str:
    """The line that a worker process takes: a cell, and the command that asked for it."""
    return json.dumps({"cell": cell.to_json(), "command": sys.argv})


class LocalPool(WorkerPool):
    """Worker processes on this machine."""

    tries = 1

    def __init__(self, out: Path, size: int, threads: int) -> None:
        super().__init__(out)
        self.size, self.threads = size, threads
        self._executor = ThreadPoolExecutor(size)
        self._running: dict[Future[str | None], Cell] = {}

    def free(self) -> int:
        """How many cells could be submitted now."""
        return self.size - len(self._running)

    def submit(self, cell: Cell) -> None:
        """Hand a cell to an idle process, or to a new one."""
        future = self._executor.submit(run_cell, request_of(cell), self.token, self.threads)
        self._running[future] = cell

    def poll(self) -> list[Finished]:
        """What finished since the last call; waits a moment for it."""
        done = wait(self._running, PAUSE, FIRST_COMPLETED).done
        return [Finished(self._running.pop(future), future.result()) for future in done]

    def stop(self) -> None:
        """Stop the processes: those with a cell finish their step and save their state."""
        self.token.unlink(missing_ok=True)
        self._executor.shutdown()
        end_workers(self.token)
