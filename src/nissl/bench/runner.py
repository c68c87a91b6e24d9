"""Run every cell of a grid, in worker processes; stop and start again at any time.

DIR/grid.toml cells.json      the grid as it was started, and the settings of each of its cells
DIR/runs/DATA/BUDGET/ARM/seed-N/      an ordinary run folder each, or failed.json in it
DIR/logs/DATA/BUDGET/ARM/seed-N.log   what a run writes to stderr
DIR/cost.json                 what each arm costs on each data set
DIR/results.csv               a row for each cell
DIR/tables.md report.html     the tables and the page of them
"""

import sys
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock
import torch

from nissl.bench.grid.grid import Cell, cells, load_grid
from nissl.bench.page.page import write_page
from nissl.bench.run.cell import enter_failure
from nissl.bench.run.cluster import ClusterPool
from nissl.bench.run.cost import estimate, measure_costs
from nissl.bench.run.preflight import require_separate, require_unchanged, require_workable
from nissl.bench.run.processes import TOKEN
from nissl.bench.run.results import CELLS, Result, folder_of, is_bench, read_results, result_of, write_results
from nissl.bench.run.workers import LocalPool, WorkerPool
from nissl.config import Config, from_tree, to_tree
from nissl.errors import InputError
from nissl.evaluation.compare_runs import differing
from nissl.files import write_whole
from nissl.progress import track, warn
from nissl.runs.folder import read_json, write_json
from nissl.runs.provenance import LOCK
from nissl.training.signals import Interrupted, stop_signals

GRID = "grid.toml"


@dataclass(frozen=True)
class BenchResult:
    """What came of a bench."""

    table: Path
    """results.csv."""
    page: Path
    """report.html."""
    results: tuple[Result, ...]

    @property
    def failed(self) -> list[Result]:
        """The cells that failed."""
        return [result for result in self.results if result.status == "failed"]


def bench(grid: Path | str, out: Path | str, workers: int | None = None, cluster: str | None = None) -> BenchResult:
    """Train and measure every cell of a grid that is not done yet.

    Finished cells stay as they are, interrupted ones are resumed, failed ones are tried again. The threads of the
    machine are divided between the workers; their number can change the last bits of a result, as it does in any run.

    Args:
        grid: the grid file (see `nissl.bench.grid.grid`).
        out: folder of the bench: new or empty, or that of the same grid or a part of it.
        workers: processes of this machine that train side by side, each one cell at a time; None is one.
        cluster: address of a Dask scheduler, whose workers then make the cells; they have `out` and the data under the
            same absolute paths.

    Raises:
        InputError: as of `load_grid`; or an arm cannot work with the images; or the folder holds something else, is in
            use, or has cells of other settings or data; or the cluster does not answer or cannot make cells.
        DataError: as of `load_grid`.
        ResourceError: the cluster went away. The same call resumes, on another one or without.
        Interrupted: SIGINT or SIGTERM came; running cells have saved their state.

    """
    if cluster is not None and workers is not None:
        raise InputError("--workers", "given beside --cluster", "one of them", "leave it out: the cluster has its own")
    if workers is not None and workers < 1:
        raise InputError("--workers", str(workers), "1 or more", "leave it out for one")
    loaded, out = load_grid(grid), Path(out)
    all_cells = cells(loaded)
    with _locked(out):
        _require_same(out, all_cells)
        results = dict(zip(all_cells, read_results(out, all_cells), strict=True))
        todo = [cell for cell, result in results.items() if result.status != "done"]
        require_workable(todo, here=cluster is None)
        require_separate(todo)
        require_unchanged(out, all_cells, todo)
        with _worker_pool(out, [source.path for source in loaded.data], workers or 1, cluster) as pool:
            write_whole(out / GRID, loaded.text)
            write_json(out / CELLS, _described(all_cells))
            table = write_results(out, list(results.values()))
            try:
                costs = measure_costs(out, all_cells, pool.threads)
                if todo:
                    print(f"{len(todo)} of {len(results)} cells to run on {pool.size} workers", file=sys.stderr)
                    print(estimate(todo, list(results.values()), costs, pool.size), file=sys.stderr, flush=True)
                    _Bench(out, results, pool).run(todo)
            finally:
                page = write_page(out, all_cells, list(results.values()))
    return BenchResult(table, page, tuple(results.values()))


def _worker_pool(out: Path, folders: Sequence[Path], workers: int, cluster: str | None) -> WorkerPool:
    if cluster is not None:
        return ClusterPool(cluster, out, folders)
    return LocalPool(out, workers, max(1, torch.get_num_threads() // workers))


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Lock the folder against another bench; refuse one that holds something else."""
    if out.exists() and not out.is_dir():
        raise InputError(out, "a file", "a folder for the bench", "choose another --out")
    left = (TOKEN, f".{CELLS}.", f".{GRID}.")  # by a bench that was killed before it began, as these two
    names = sorted(path.name for path in out.iterdir()) if out.exists() else []
    present = [name for name in names if name not in (LOCK, GRID) and not name.startswith(left)]
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


def _described(all_cells: Sequence[Cell]) -> dict[str, Any]:
    """Data and settings of each cell."""
    return {cell.id: {"path": str(cell.path.resolve()), **to_tree(cell.config)} for cell in all_cells}


def _completed(settings: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Give settings that an older version wrote the defaults of those that it did not have."""
    known = {key: value for key, value in settings.items() if key != "path"}
    return {"path": settings["path"], **to_tree(from_tree(Config, known, str(out / CELLS)))}


def _require_same(out: Path, all_cells: Sequence[Cell]) -> None:
    """Refuse a grid that changes or drops a cell of the bench in this folder; it may add some."""
    if not is_bench(out):
        return
    before, now = read_json(out / CELLS), _described(all_cells)
    fix = "put it back (into the grid, if it is a default that has changed), or start a new bench in another --out"
    dropped = [name for name in before if name not in now]
    if dropped:
        found = f"{len(dropped)} cells of this bench are not in the grid, such as {dropped[0]}"
        raise InputError(out, found, "the same grid, or one with more: every run counts, none is dropped", fix)
    for name, settings in before.items():
        if changed := differing(_completed(settings, out), now[name], ("was", "is")):
            raise InputError(out, f"cell {name}: {'; '.join(changed)}", "the settings that the bench began with", fix)


@dataclass
class _Bench:
    """The bench while it runs."""

    out: Path
    results: dict[Cell, Result]
    pool: WorkerPool
    losses: Counter[Cell] = field(default_factory=Counter)
    """How often a cell has lost its worker without having come further in between."""
    reached: dict[Cell, int] = field(default_factory=dict)
    """How far it had come when it last did."""

    def run(self, todo: Sequence[Cell]) -> None:
        """Run cells; each is submitted to one worker, by this process alone, so that none is made twice."""
        waiting, running = deque(todo), 0
        done = len(self.results) - len(todo)
        try:
            with stop_signals() as caught, track(len(self.results), "cells", done) as advance:
                while waiting or running:
                    if caught:
                        raise Interrupted(128 + caught[-1])
                    for _ in range(min(self.pool.free(), len(waiting))):
                        self.pool.submit(waiting.popleft())
                        running += 1
                    for finished in self.pool.poll():
                        running -= 1
                        if finished.lost and self._may_retry(finished.cell):
                            warn(f"{finished.cell.id}: {finished.lost}; another worker resumes it")
                            waiting.append(finished.cell)
                            continue
                        if finished.lost:
                            enter_failure(folder_of(self.out, finished.cell), finished.lost)
                        advance(self._record(finished.cell))
        finally:
            self.pool.stop()
            for cell in list(self.results):
                if self.results[cell].status != "done":
                    self.results[cell] = result_of(self.out, cell)
            write_results(self.out, list(self.results.values()))

    def _may_retry(self, cell: Cell) -> bool:
        """Whether a cell that has lost its worker is submitted again: not if it seems to be what kills them."""
        saved = [path.stat().st_mtime_ns for path in folder_of(self.out, cell).glob("checkpoints/*.safetensors")]
        reached = max(saved, default=0)
        if reached > self.reached.get(cell, 0):
            self.losses[cell] = 0
        self.reached[cell] = reached
        self.losses[cell] += 1
        return self.losses[cell] < self.pool.tries

    def _record(self, cell: Cell) -> str:
        result = self.results[cell] = result_of(self.out, cell)
        write_results(self.out, list(self.results.values()))
        primary, score = next(iter(result.scores.items()))
        unit = result.tested.unit or ""
        return f"{cell.id}: " + (result.status if score is None else f"{primary.title} {primary.text(score, unit)}")
