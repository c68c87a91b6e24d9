"""Run every cell of a grid, in worker processes; stop and start again at any time.

DIR/grid.toml cells.json      the grid as it was started, and the settings of each of its cells
DIR/runs/DATA/BUDGET/ARM/seed-N/      an ordinary run folder each, or failed.json in it
DIR/logs/DATA/BUDGET/ARM/seed-N.log   what a run says while it works
DIR/cost.json                 what each arm costs on each data set
DIR/results.csv               a row for each cell
DIR/tables.md report.html     what they come to
"""

import json
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

import filelock
import torch

from nissl import jobs
from nissl.bench.cost import measure_costs
from nissl.bench.estimate import estimate
from nissl.bench.grid import Cell, cells, load_grid
from nissl.bench.page import write_page
from nissl.bench.results import CELLS, FAILED, Result, folder_of, is_bench, one_line, read_results, write_results
from nissl.config import to_tree
from nissl.errors import InputError
from nissl.evaluate.runs import differing
from nissl.files import write_whole
from nissl.progress import track
from nissl.train.record import LOCK
from nissl.train.run import read_json, write_json
from nissl.train.signals import Interrupted, stop_signals

GRID, LOGS = "grid.toml", "logs"
PAUSE = 0.2
"""Seconds between two looks for a signal."""


@dataclass(frozen=True)
class Outcome:
    """What a bench came to."""

    table: Path
    """results.csv."""
    page: Path
    """report.html."""
    results: tuple[Result, ...]

    @property
    def failed(self) -> list[Result]:
        """The cells that failed."""
        return [result for result in self.results if result.status == "failed"]


def bench(grid: Path | str, out: Path | str, workers: int = 1) -> Outcome:
    """Train and measure every cell of a grid that is not done yet.

    Finished cells stay as they are, interrupted ones go on, failed ones are tried again. The threads of the machine are
    divided between the workers; their number can change the last bits of a result, as it does in any run.

    Args:
        grid: the grid file (see `nissl.bench.grid`).
        out: folder of the bench: new or empty, or that of the same grid or a part of it.
        workers: processes that train side by side, each one cell at a time.

    Raises:
        InputError: as of `load_grid`; or the folder holds something else, is in use, or has cells of other settings.
        DataError: as of `load_grid`.
        Interrupted: SIGINT or SIGTERM came; running cells have saved their state.

    """
    if workers < 1:
        raise InputError("--workers", str(workers), "1 or more", "leave it out for one")
    loaded, out = load_grid(grid), Path(out)
    all_cells = cells(loaded)
    threads = max(1, torch.get_num_threads() // workers)
    with _held(out):
        _require_same(out, all_cells)
        write_whole(out / GRID, loaded.text)
        write_json(out / CELLS, _described(all_cells))
        results = {cell: result for cell, result in zip(all_cells, read_results(out, all_cells), strict=True)}
        table = write_results(out, list(results.values()))
        todo = [cell for cell, result in results.items() if result.status != "done"]
        try:
            costs = measure_costs(out, all_cells, threads)
            if todo:
                print(f"{len(todo)} of {len(results)} cells to run on {workers} workers", file=sys.stderr, flush=True)
                print(estimate(todo, list(results.values()), costs, workers), file=sys.stderr, flush=True)
                _Bench(out, results, threads).run(todo, workers)
        finally:
            page = write_page(out, all_cells, list(results.values()))
    return Outcome(table, page, tuple(results.values()))


@contextmanager
def _held(out: Path) -> Iterator[None]:
    """Hold the folder against another bench; refuse one that holds something else."""
    if out.exists() and not out.is_dir():
        raise InputError(out, "a file", "a folder for the bench", "choose another --out")
    present = sorted(path.name for path in out.iterdir() if path.name != LOCK) if out.exists() else []
    if present and not is_bench(out):
        found = f"not empty: {', '.join(present[:4])}"
        raise InputError(out, found, "a new or empty folder, or that of a bench", "choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(out / LOCK, timeout=0):
            yield
    except filelock.Timeout as error:
        fix = "wait, or choose another --out"
        raise InputError(out, "in use by another bench", "a folder of its own for each bench", fix) from error


def _described(all_cells: Sequence[Cell]) -> dict[str, dict[str, object]]:
    """Data and settings of each cell, as they read back from JSON."""
    tree = {cell.id: {"path": str(cell.path.resolve()), **to_tree(cell.config)} for cell in all_cells}
    described: dict[str, dict[str, object]] = json.loads(json.dumps(tree))
    return described


def _require_same(out: Path, all_cells: Sequence[Cell]) -> None:
    """Refuse a grid that changes or drops a cell of the bench in this folder; it may add some."""
    if not is_bench(out):
        return
    before: Mapping[str, dict[str, object]] = read_json(out / CELLS)
    now = _described(all_cells)
    fix = "put it back, or start a new bench in another --out"
    dropped = [name for name in before if name not in now]
    if dropped:
        found = f"{len(dropped)} cells of this bench are not in the grid, such as {dropped[0]}"
        raise InputError(out, found, "the same grid, or one with more: every run counts, none is dropped", fix)
    for name, settings in before.items():
        changed = differing(settings, now[name], ("was", "is"))
        if changed:
            raise InputError(out, f"cell {name}: {'; '.join(changed)}", "the settings that the bench began with", fix)


@dataclass
class _Worker:
    """A worker process and what it is at."""

    process: SpawnProcess
    link: Connection
    cell: Cell | None = None


@dataclass
class _Bench:
    """The bench while it runs."""

    out: Path
    results: dict[Cell, Result]
    threads: int
    crew: list[_Worker] = field(default_factory=list)

    def run(self, todo: Sequence[Cell], workers: int) -> None:
        """Run cells; each is handed to one worker, by this process alone, so that none is taken twice."""
        waiting = deque(todo)
        finished = len(self.results) - len(todo)
        try:
            with stop_signals() as caught, track(len(self.results), "cells", finished) as advance:
                self.crew = [self._hire() for _ in range(min(workers, len(todo)))]
                while self.crew:
                    for worker in self.crew:
                        if worker.cell is None and waiting and not caught:
                            self._give(worker, waiting.popleft())
                    self.crew = [worker for worker in self.crew if worker.cell or self._dismiss(worker)]
                    for worker in self._heard():
                        assert worker.cell is not None
                        advance(self._record(worker.cell))
                        worker.cell = None
                    if caught:
                        break
                    self._replace(len(waiting))
                if caught:
                    raise Interrupted(128 + caught[-1])
        finally:
            self._stop()
            for cell in list(self.results):
                if self.results[cell].status != "done":
                    self.results[cell] = read_results(self.out, [cell])[0]
            write_results(self.out, list(self.results.values()))

    def _hire(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs, self.out, self.threads))
        process.start()
        theirs.close()
        return _Worker(process, ours)

    def _give(self, worker: _Worker, cell: Cell) -> None:
        worker.cell = cell
        with suppress(OSError):  # it has ended, which `_heard` finds
            worker.link.send(cell)

    def _dismiss(self, worker: _Worker) -> bool:
        """Let a worker go that has nothing to do; never true, for it is not of the crew any more."""
        worker.link.close()
        worker.process.join()
        return False

    def _heard(self) -> list[_Worker]:
        """Workers that are done with their cell, well or not; a killed one's cell is entered as failed."""
        by_link = {worker.link: worker for worker in self.crew}
        heard = []
        for link in wait(list(by_link), timeout=PAUSE):
            worker = by_link[link]  # type: ignore[index]
            try:
                worker.link.recv()
            except (EOFError, OSError):
                worker.process.join()
                assert worker.cell is not None
                enter_failure(folder_of(self.out, worker.cell), _ending(worker.process.exitcode))
            heard.append(worker)
        return heard

    def _replace(self, waiting: int) -> None:
        """Hire for workers that were killed, while there is work for them."""
        for place, worker in enumerate(self.crew):
            if waiting and not worker.process.is_alive():
                worker.link.close()
                self.crew[place] = self._hire()

    def _record(self, cell: Cell) -> str:
        result = self.results[cell] = read_results(self.out, [cell])[0]
        write_results(self.out, list(self.results.values()))
        return f"{cell.id}: " + (f"Dice {result.dice:.3f}" if result.dice is not None else result.status)

    def _stop(self) -> None:
        """End all workers: those at work finish their step and save their state."""
        for worker in self.crew:
            worker.process.terminate()
        for worker in self.crew:
            worker.process.join()


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        why = ": most often a lack of memory" if -code == getattr(signal, "SIGKILL", None) else ""
        return f"the worker process was ended by {signal.Signals(-code).name}{why}"
    return f"the worker process ended with exit code {code}"


def work(link: Connection, out: Path, threads: int) -> None:
    """Make the cells that come over the link, until it is closed: the whole life of a worker process."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # Ctrl-C reaches the first process alone, which then asks the workers to stop
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    torch.set_num_threads(threads)
    while True:
        try:
            cell = link.recv()
        except EOFError:
            return
        make(cell, out)
        link.send(cell.id)


def make(cell: Cell, out: Path) -> None:
    """Train and measure a cell in this process; what goes wrong is written to its folder."""
    run, log = folder_of(out, cell), (out / LOGS / cell.id).with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file, redirect_stderr(file):
        print(f"{_now()} {cell.id}", file=sys.stderr)
        try:
            for stale in (FAILED, "metrics.json"):  # with its numbers, a cell is done
                (run / stale).unlink(missing_ok=True)
            begun = (run / "config.toml").is_file()
            jobs.train(cell.path, run, cell.config, resume=begun)
            jobs.evaluate(run, device=cell.config.device)
        except Exception as error:  # whatever it is, the other cells go on
            print(f"failed: {error}", file=sys.stderr)
            enter_failure(run, one_line(error))


def enter_failure(run: Path, message: str) -> None:
    """Write down that a cell failed, and why."""
    run.mkdir(parents=True, exist_ok=True)
    write_json(run / FAILED, {"message": message, "date": _now()})


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
