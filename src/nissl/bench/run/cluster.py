"""The workers of a Dask cluster as the worker pool of a bench.

Dask sends each cell to a worker and says which workers there are. All else stays with the bench: which cell goes
where, that a worker has one at a time, and what becomes of the cell of a worker that is lost. The runs go through the
shared file system.
"""

import asyncio
import functools
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

import filelock

from nissl.bench.grid.grid import Cell
from nissl.bench.run.cell import lock_of
from nissl.bench.run.processes import probe_worker, run_cell, versions
from nissl.bench.run.results import one_line
from nissl.bench.run.workers import PAUSE, Finished, WorkerPool, request_of
from nissl.errors import InputError, ResourceError
from nissl.progress import warn
from nissl.runs.provenance import LOCK

if TYPE_CHECKING:
    from distributed import Client, Future

ANSWER = 15.0
"""Seconds that a scheduler has to answer, and present workers to answer the probe."""
REFRESH = 1.0
"""Seconds between two queries for the list of workers."""
STOP = 120.0
"""Seconds that the bench waits for its cells to save their state. They do so also when it has left."""


@dataclass
class _ClusterWorker:
    """A worker of the cluster and its cell."""

    threads: int
    probe: "Future"
    """Its answer to `probe_worker`."""
    usable: bool | None = None
    """None: it has not answered yet."""
    cell: Cell | None = None
    task: "Future | None" = None


class ClusterPool(WorkerPool):
    """The workers of a Dask cluster, also those that join it later; all see the same folders of bench and data.

    The address is that of the scheduler, such as tcp://10.0.0.1:8786.
    """

    tries = 3

    def __init__(self, address: str, out: Path, folders: Sequence[Path]) -> None:
        super().__init__(out)
        self.address = address
        self._folders = [folder.absolute() for folder in folders]
        self._workers: dict[str, _ClusterWorker] = {}
        self._listed: Mapping[str, Mapping[str, Any]] = {}
        self._listed_at = float("-inf")
        self._warn_once = functools.cache(warn)

    @property
    def size(self) -> int:  # type: ignore[override]
        """Workers that are there now."""
        return max(1, len(self._workers))

    @property
    def threads(self) -> int:  # type: ignore[override]
        """The most that one has."""
        return max((worker.threads for worker in self._workers.values()), default=1)

    def __enter__(self) -> "ClusterPool":
        """Connect, wait for a worker and probe those that are there.

        Raises:
            InputError: Dask is not installed, the scheduler does not answer, or a worker cannot make cells.

        """
        self._client = _connected(self.address)
        try:
            super().__enter__()
            self._await_workers()
        except BaseException:
            self.stop()
            raise
        return self

    def free(self) -> int:
        """How many cells could be submitted now."""
        return len(self._idle())

    def submit(self, cell: Cell) -> None:
        """Hand a cell to a free worker."""
        address = self._idle()[0]
        worker = self._workers[address]
        worker.cell = cell
        worker.task = self._send(address, run_cell, request_of(cell), self.token, worker.threads)

    def poll(self) -> list[Finished]:
        """What finished since the last call; waits a moment for it.

        Raises:
            ResourceError: the scheduler is gone.

        """
        sleep(PAUSE)
        self._refresh()
        finished = []
        for address, worker in list(self._workers.items()):
            gone = address not in self._listed
            if worker.cell and worker.task and (gone or worker.task.done()):
                lost = f"the worker {address} was lost" if gone else _result(worker.task)
                finished.append(Finished(worker.cell, lost))
                worker.cell = worker.task = None
            if gone:
                del self._workers[address]
        for fault in self._faults():
            warn(f"{fault}; it gets no cell")
        return finished

    def stop(self) -> None:
        """Stop the workers: those with a cell finish their step and save their state; wait for it for a while."""
        self.token.unlink(missing_ok=True)
        until = monotonic() + STOP
        for worker in self._workers.values():
            if worker.cell:
                lock = lock_of(self.out, worker.cell)
                with suppress(filelock.Timeout, OSError), filelock.FileLock(lock, timeout=max(0, until - monotonic())):
                    lock.unlink(missing_ok=True)
        self._workers.clear()
        with suppress(OSError, asyncio.TimeoutError):  # of a scheduler that is gone
            self._client.close(timeout=ANSWER)

    def _await_workers(self) -> None:
        """Wait until a worker can make cells; refuse the cluster if one of those that are there cannot."""
        until = monotonic() + ANSWER
        while True:
            self._refresh()
            if faults := self._faults():
                expected = "this folder, the data and the same packages, under the same paths on every worker"
                fix = "start the workers where they are, or choose an --out that they all share"
                raise InputError("--cluster", "; ".join(faults), expected, fix)
            known = [worker.usable for worker in self._workers.values()]
            if any(known) and (None not in known or monotonic() > until):
                return
            sleep(PAUSE)

    def _refresh(self) -> None:
        """Ask the scheduler, now and then, which workers there are; probe those that are new."""
        if self._client.status != "running":
            raise self._gone()
        if monotonic() - self._listed_at < REFRESH:
            return
        try:
            identity = self._client.sync(self._client.scheduler.identity, n_workers=-1, callback_timeout=ANSWER)
        except (OSError, asyncio.TimeoutError) as error:
            raise self._gone() from error
        self._listed_at, self._listed = monotonic(), identity["workers"]
        for address, facts in self._listed.items():
            if address not in self._workers:
                probe = self._send(address, probe_worker, self.token, self.out / LOCK, self._folders)
                self._workers[address] = _ClusterWorker(facts["nthreads"], probe)
        if not self._listed:
            self._warn_once(f"there is no worker at {self.address}: waiting for one")

    def _gone(self) -> ResourceError:
        found = "the cluster has gone away: its scheduler does not answer any more"
        fix = "give the same command again, with another --cluster or without: finished cells are kept"
        return ResourceError(self.address, found, "a scheduler that answers until the last cell", fix)

    def _faults(self) -> list[str]:
        """Take the answers of new workers; return why some cannot make cells."""
        faults = []
        for address, worker in self._workers.items():
            if worker.usable is None and worker.probe.done():
                answer = _result(worker.probe)
                found, theirs = ([answer], {}) if isinstance(answer, str) else answer
                worker.usable = not found
                faults += [f"worker {address}: {fault}" for fault in found]
                for name, here in versions().items():
                    if theirs.get(name, here) != here:
                        self._warn_once(f"workers have {name} {theirs[name]}, here it is {here}: results may differ")
        return faults

    def _idle(self) -> list[str]:
        return [
            address
            for address, worker in self._workers.items()
            if worker.usable and not worker.cell and self._listed.get(address, {}).get("status") == "running"
        ]

    def _send(self, address: str, function: Callable[..., object], *arguments: object) -> "Future":
        """Have a function run on one worker; by a key of its own, so that no earlier result is taken for it."""
        return self._client.submit(function, *arguments, key=f"nissl-{uuid.uuid4().hex}", workers=[address])


def _connected(address: str) -> "Client":
    try:
        from distributed import Client
    except ImportError as error:
        expected = "Dask, which sends cells to other machines"
        raise InputError("--cluster", "Dask is not installed", expected, "pip install 'nissl[cluster]'") from error
    came: list[Client | Exception] = []

    def connect() -> None:
        try:
            came.append(Client(address, timeout=ANSWER, set_as_default=False))
        except Exception as error:
            came.append(error)

    # Dask's own limit does not hold where a scheduler takes the connection and then says nothing (2026.8).
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(2 * ANSWER)
    if came and not isinstance(came[0], Exception):
        return came[0]
    why = (str(came[0]) or type(came[0]).__name__) if came else f"no answer within {2 * ANSWER:.0f} s"
    expected = "the address of a Dask scheduler, such as tcp://10.0.0.1:8786"
    fix = "start it with `dask scheduler`, which prints its address, and check the host and port"
    raise InputError("--cluster", f"{address}: no scheduler answers ({why})", expected, fix)


def _result(task: "Future") -> Any:
    """What a task that is done has returned, or in words why there is nothing."""
    try:
        return task.result(timeout=ANSWER)
    except (Exception, asyncio.CancelledError) as error:  # of any kind: what a worker raises comes through here
        return one_line(error)
