"""What a worker process does: make cells, one after another."""

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from datetime import datetime, timezone
from pathlib import Path
from queue import SimpleQueue
from time import sleep

import filelock
import torch

from nissl import api
from nissl.bench.grid.grid import Cell
from nissl.bench.run.processes import is_there
from nissl.bench.run.results import CELLS, FAILED, RUNS, folder_of, one_line, result_of
from nissl.config import to_tree
from nissl.errors import NisslError
from nissl.pretrain.settings import Stepped
from nissl.runs.folder import read_json, write_json
from nissl.runs.reuse import checkpoints_of, stage_1_settings

LOGS = "logs"
PAUSE = 0.5
"""Seconds between two queries for the token."""
GRACE = 300.0
"""Seconds that a step and its saving may take when a worker is asked to stop; after that it is ended."""


def make(cell: Cell, out: Path) -> None:
    """Train and measure a cell in this process; what goes wrong is written to its folder."""
    run, log = folder_of(out, cell), log_of(out, cell)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file, redirect_stderr(file), _alone(lock_of(out, cell)):
        if result_of(out, cell).status == "done":  # by the worker that was waited for
            return
        print(f"{_now()} {cell.id}", file=sys.stderr)
        try:
            for stale in (FAILED, "metrics.json"):  # with its numbers, a cell is done
                (run / stale).unlink(missing_ok=True)
            _train(cell, run, reusable(out, cell))
            api.evaluate(run, device=cell.config.device)
        except Exception as error:  # whatever it is, the other cells go on
            print(f"failed: {error}", file=sys.stderr)
            enter_failure(run, one_line(error))


def _train(cell: Cell, run: Path, other: Path | None) -> None:
    """Train from the pre-training of another run, made anew where it cannot be reused: no cell fails by it."""
    begun = (run / "config.toml").is_file()
    try:
        api.train(cell.path, run, cell.config, resume=begun, pretrained=other)
    except NisslError as error:
        if other is None or (run / "config.toml").is_file() != begun:
            raise
        print(f"the pre-training is made anew: {one_line(error)}", file=sys.stderr)
        api.train(cell.path, run, cell.config, resume=begun)


def reusable(out: Path, cell: Cell) -> Path | None:
    """Find a finished run with the pre-training of a cell: of the same seed, with any budget and any method."""
    if not isinstance(cell.config.pretrain, Stepped):
        return None
    wanted = str(cell.path.resolve()), stage_1_settings(to_tree(cell.config))
    described = read_json(out / CELLS)
    runs = [out / RUNS / name for name, tree in described.items() if (tree["path"], stage_1_settings(tree)) == wanted]
    finished = [run for run in runs if (run / "metrics.json").is_file() and checkpoints_of(run)]
    # One of two networks rather than of one, for a method that asks for two.
    return max(finished, key=lambda run: len(checkpoints_of(run)), default=None)


def log_of(out: Path, cell: Cell) -> Path:
    """What a run writes to stderr."""
    return (out / LOGS / cell.id).with_suffix(".log")


def lock_of(out: Path, cell: Cell) -> Path:
    """Held while a worker makes a cell, its measurement included."""
    return (out / LOGS / cell.id).with_suffix(".lock")


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other worker makes the cell: one that was believed dead, or that outlived its bench."""
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        print(f"{_now()} another worker makes this cell: waiting for it to end", file=sys.stderr, flush=True)
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


def main() -> None:
    """Make the cells that come over stdin, and write the id of each to stdout: the whole life of a worker process.

    `python -m nissl.bench.run.cell TOKEN THREADS`; the folder of the token is that of the bench. A line of stdin is a
    request (see `nissl.bench.run.workers.request_of`).
    """
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    token, threads = Path(sys.argv[1]), int(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    torch.set_num_threads(threads)
    requests: SimpleQueue[str] = SimpleQueue()
    for watch in (_read, _watch):
        threading.Thread(target=watch, args=(token, requests), daemon=True).start()
    try:
        while request := requests.get():
            tree = json.loads(request)
            cell, sys.argv = Cell.from_json(tree["cell"]), tree["command"]
            log = log_of(token.parent, cell)
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as file:  # what libraries write past Python, such as the last words of a crash
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            make(cell, token.parent)
            print(cell.id, file=answers, flush=True)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not disturb the end of Python


def _read(token: Path, requests: "SimpleQueue[str]") -> None:
    """Queue the lines of stdin; stop when it is closed: on purpose, or because whoever held it was killed."""
    with open(0, encoding="utf-8", closefd=False) as lines:  # not sys.stdin, whose lock the end of Python asks for
        for line in lines:
            requests.put(line)
    _stop(requests)


def _watch(token: Path, requests: "SimpleQueue[str]") -> None:
    """Stop when the bench has stopped."""
    while is_there(token):
        sleep(PAUSE)
    _stop(requests)


def _stop(requests: "SimpleQueue[str]") -> None:
    """Stop this process from a thread: a training saves its state; one that the signal misses ends with the cell."""
    requests.put("")
    signal.raise_signal(signal.SIGTERM)
    sleep(GRACE)
    os._exit(128 + signal.SIGTERM)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


if __name__ == "__main__":
    main()
