"""Who makes the cells of a bench: processes on this machine, or the workers of a cluster."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from nissl.bench.grid.grid import Cell
from nissl.bench.run.cell import work
from nissl.bench.run.dask_task import ending
from nissl.bench.run.processes import start

PAUSE = 0.2
"""Seconds between two looks at the workers."""


@dataclass(frozen=True)
class Ending:
    """A worker is done with a cell."""

    cell: Cell
    lost: str | None = None
    """What became of the worker, where it did not come to the end of the cell."""


class Crew(ABC):
    """Workers that each make one cell at a time; as a context they are there inside and have stopped after it."""

    size: int
    """How many workers there are."""
    threads: int
    """Threads of each."""
    tries: int
    """How often a cell may lose its worker, without having come further in between, before it has failed."""

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @abstractmethod
    def free(self) -> int:
        """How many cells could be given now."""

    @abstractmethod
    def give(self, cell: Cell) -> None:
        """Hand a cell to a free worker."""

    @abstractmethod
    def heard(self) -> Sequence[Ending]:
        """What ended since the last look; waits a moment for it."""

    @abstractmethod
    def stop(self) -> None:
        """Stop the workers, if they have not: those at a cell finish their step and save their state."""


@dataclass
class _Worker:
    """A worker process and what it is at."""

    process: BaseProcess
    link: Connection
    cell: Cell | None = None


class Processes(Crew):
    """Worker processes on this machine.

    Args:
        out: folder of the bench.
        size: how many.
        threads: of each.

    """

    tries = 1

    def __init__(self, out: Path, size: int, threads: int) -> None:
        self.size, self.threads = size, threads
        self._out = out
        self._workers: list[_Worker] = []

    def free(self) -> int:
        """How many cells could be given now."""
        return self.size - len([worker for worker in self._workers if worker.cell])

    def give(self, cell: Cell) -> None:
        """Hand a cell to an idle process, or to a new one."""
        worker = next((worker for worker in self._workers if not worker.cell), None) or self._hire()
        worker.cell = cell
        with suppress(OSError):  # it has ended, which `heard` finds
            worker.link.send(cell)

    def heard(self) -> list[Ending]:
        """What ended since the last look; waits a moment for it."""
        by_link = {worker.link: worker for worker in self._workers}
        endings = []
        for link in wait(list(by_link), timeout=PAUSE):
            worker = by_link[link]  # type: ignore[index]
            lost = None
            try:
                worker.link.recv()
            except (EOFError, OSError):
                lost = self._buried(worker)
            if worker.cell:
                endings.append(Ending(worker.cell, lost))
            worker.cell = None
        return endings

    def stop(self) -> None:
        """Stop the processes: those at a cell finish their step and save their state."""
        for worker in self._workers:
            worker.process.terminate()
            worker.link.close()  # to one at its last step the signal says nothing: it ends with the cell
        while self._workers:
            self._buried(self._workers[-1])

    def _hire(self) -> _Worker:
        self._workers.append(_Worker(*start(work, self._out, self.threads)))
        return self._workers[-1]

    def _buried(self, worker: _Worker) -> str:
        """Take a process that ends, or has ended, off the list; return what became of it."""
        worker.process.join()
        worker.link.close()
        self._workers.remove(worker)
        return ending(worker.process.exitcode)
