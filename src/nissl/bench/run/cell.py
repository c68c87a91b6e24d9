"""What a worker process does: make cells, one after the other."""

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from datetime import datetime, timezone
from multiprocessing.connection import Connection
from pathlib import Path
from time import sleep

import filelock
import torch

from nissl import api
from nissl.bench.grid.grid import Cell
from nissl.bench.run.results import CELLS, FAILED, RUNS, folder_of, one_line, read_results
from nissl.config import Config, from_tree, to_tree
from nissl.errors import NisslError
from nissl.pretrain import PRETRAININGS
from nissl.runs.folder import read_json, write_json
from nissl.runs.reuse import checkpoints_of, stage_1_settings

LOGS = "logs"
GRACE = 300.0
"""Seconds that a step and its saving may take when a worker is asked to stop; after that it is ended."""


def work(link: Connection, out: Path, threads: int) -> None:
    """Make the cells that come over the link, until it is closed: the whole life of a local worker process."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # Ctrl-C reaches the first process alone, which then asks the workers to stop
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    torch.set_num_threads(threads)
    while True:
        try:
            cell = link.recv()
            make(cell, out)
            link.send(cell.id)
        except (EOFError, BrokenPipeError, ConnectionResetError):  # `make` itself raises none
            return


def make(cell: Cell, out: Path) -> None:
    """Train and measure a cell in this process; what goes wrong is written to its folder."""
    run, log = folder_of(out, cell), log_of(out, cell)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file, redirect_stderr(file), _alone(lock_of(out, cell)):
        if read_results(out, [cell])[0].status == "done":  # by the worker that was waited for
            return
        print(f"{_now()} {cell.id}", file=sys.stderr)
        try:
            for stale in (FAILED, "metrics.json"):  # with its numbers, a cell is done
                (run / stale).unlink(missing_ok=True)
            _train(cell, run, alike(out, cell))
            api.evaluate(run, device=cell.config.device)
        except Exception as error:  # whatever it is, the other cells go on
            print(f"failed: {error}", file=sys.stderr)
            enter_failure(run, one_line(error))


def _train(cell: Cell, run: Path, other: Path | None) -> None:
    """Train from the stage 1 of another run, but for its sake no cell fails: without, where it cannot be taken."""
    begun = (run / "config.toml").is_file()
    try:
        api.train(cell.path, run, cell.config, resume=begun, pretrained=other)
    except NisslError as error:
        if other is None or (run / "config.toml").is_file() != begun:
            raise
        print(f"stage 1 is made anew: {one_line(error)}", file=sys.stderr)
        api.train(cell.path, run, cell.config, resume=begun)


def alike(out: Path, cell: Cell) -> Path | None:
    """Find a finished run of the bench with the stage 1 of a cell: of the same seed, with any budget and any method."""
    if not PRETRAININGS[cell.config.pretrain.name](cell.config.pretrain).steps:
        return None
    wanted = str(cell.path.resolve()), stage_1_settings(to_tree(cell.config))
    described = read_json(out / CELLS)
    runs = [out / RUNS / name for name, tree in described.items() if (tree["path"], stage_1_settings(tree)) == wanted]
    finished = [run for run in runs if (run / "metrics.json").is_file() and checkpoints_of(run)]
    # One of two networks rather than of one, for a method that asks for two.
    return max(finished, key=lambda run: len(checkpoints_of(run)), default=None)


def log_of(out: Path, cell: Cell) -> Path:
    """What a run says while it works."""
    return (out / LOGS / cell.id).with_suffix(".log")


def lock_of(out: Path, cell: Cell) -> Path:
    """Held while a worker is at a cell, its measurement included."""
    return (out / LOGS / cell.id).with_suffix(".lock")


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other worker is at the cell: one that was believed dead, or that outlived its bench."""
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        print(f"{_now()} another worker is at this cell: waiting for it to end", file=sys.stderr, flush=True)
        lock.acquire(poll_interval=1.0)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held; whoever waits for it makes another
        lock.release()


def enter_failure(run: Path, message: str) -> None:
    """Write down that a cell failed, and why."""
    run.mkdir(parents=True, exist_ok=True)
    write_json(run / FAILED, {"message": message, "date": _now()})


def as_text(cell: Cell) -> str:
    """A cell in a line of JSON, for a worker of a cluster; its data by their absolute path."""
    tree = {"data": cell.data, "budget": cell.budget, "arm": cell.arm, "seed": cell.seed}
    return json.dumps(tree | {"path": str(cell.path.absolute()), "config": to_tree(cell.config)})


def from_text(text: str) -> Cell:
    """Read what `as_text` wrote."""
    tree = json.loads(text)
    config = from_tree(Config, tree.pop("config"), "cell")
    return Cell(path=Path(tree.pop("path")), config=config, **tree)


def main() -> None:
    """Make the cell that comes over stdin: the whole life of a process on a cluster (see `nissl.bench.run.dask_task`).

    `python -m nissl.bench.run.cell OUT THREADS`; the lines of stdin are the cell and the command that asked for it.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    out, threads = Path(sys.argv[1]), int(sys.argv[2])
    cell, sys.argv = from_text(sys.stdin.readline()), json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    torch.set_num_threads(threads)
    make(cell, out)


def _end_with_stdin() -> None:
    """Stop this process, saving its state, when stdin is closed: on purpose, or because who holds it was killed."""
    sys.stdin.read()
    signal.raise_signal(signal.SIGTERM)
    sleep(GRACE)
    os._exit(128 + signal.SIGTERM)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


if __name__ == "__main__":
    main()
