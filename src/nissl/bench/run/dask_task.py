"""What a worker of a Dask cluster does: look whether it sees what the bench sees, and carry cells out.

A cell runs in a process of its own, which takes the signals and the memory of a training away from the worker. That
process lives as long as its stdin is open: it saves its state and ends when the bench stops or the worker is killed.
Nothing heavy is imported here, since it would be by every worker.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from time import sleep

import filelock

PAUSE = 0.5
"""Seconds between two looks at a cell's process and at the token."""


def look(token: Path, lock: Path, folders: Sequence[Path]) -> tuple[list[str], dict[str, str]]:
    """Say what keeps this machine from making cells of a bench, and which versions it has.

    Args:
        token: a file that the bench has made in its folder.
        lock: a file that the bench holds a lock on.
        folders: those of the data.

    """
    if not _is_there(token):
        return [f"{token.parent} is not there, or another folder of that name"], versions()
    faults = [f"no such folder: {folder}" for folder in folders if not folder.is_dir()]
    try:
        with filelock.FileLock(lock, timeout=0):
            faults.append(f"the file system of {token.parent} does not lock files across machines")
    except filelock.Timeout:
        pass
    except OSError as error:
        faults.append(f"{token.parent} cannot be written: {error.strerror}")
    return faults, versions()


def versions() -> dict[str, str]:
    """Versions of what results depend on."""
    return {name: version(name) for name in ("nissl", "torch")}


def carry(lines: str, out: Path, log: Path, token: Path, threads: int) -> str | None:
    """Make a cell in a new process, and stop it when the token is gone; return what became of it where that went wrong.

    Args:
        lines: for its stdin (see `nissl.bench.run.cell.main`).
        out: folder of the bench.
        log: takes whatever the process says.
        token: a file that is there as long as the bench goes on.
        threads: of the process.

    """
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "nissl.bench.run.cell", str(out), str(threads)]
    with log.open("a", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=file, stderr=file, text=True, start_new_session=True
        )
    assert process.stdin
    with process.stdin as life:
        life.write(lines)
        life.flush()
        while process.poll() is None and _is_there(token):
            sleep(PAUSE)
    code = process.wait()  # it is bounded: see `nissl.bench.run.cell.GRACE`
    return ending(code) if code else None


def ending(code: int | None) -> str:
    """What an exit code says of a worker process that did not finish its cell."""
    if code is not None and code < 0:
        why = ": most often a lack of memory" if -code == getattr(signal, "SIGKILL", None) else ""
        return f"the worker process was ended by {signal.Signals(-code).name}{why}"
    return f"the worker process ended with exit code {code}"


def _is_there(token: Path) -> bool:
    """By opening it, at which a network file system asks the server; its answer to a mere look may be a minute old."""
    try:
        os.close(os.open(token, os.O_RDONLY))
    except FileNotFoundError:
        return False
    return True
