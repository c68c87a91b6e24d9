"""What a machine does for a bench: probe what it can see, and hand cells to worker processes of its own.

The bench itself and the workers of a Dask cluster use the same functions. A worker process (`nissl.bench.run.cell`)
makes many cells, since its imports take longer than a short cell; it takes the signals and the memory of a training
away from whoever started it. It lives as long as its stdin is open and the token of the bench is there: when the bench
stops, or the starter is killed, it saves its state and ends. Nothing heavy is imported here.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import filelock

TOKEN = ".nissl.bench-"
"""How the name of a token begins: a file in the folder of a bench, there as long as the bench runs."""
_idle: dict[tuple[Path, int], list["subprocess.Popen[str]"]] = {}
"""Worker processes of this process without a cell, by token and threads."""


def probe_worker(token: Path, lock: Path, folders: Sequence[Path]) -> tuple[list[str], dict[str, str]]:
    """List what keeps this machine from making cells of a bench, and the versions that it has.

    The bench holds a lock on the file `lock`; the folders are those of the data.
    """
    if not is_there(token):
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


def run_cell(request: str, token: Path, threads: int) -> str | None:
    """Have a worker process make a cell, and wait for it; return what became of the process where it was lost.

    The request is a line for its stdin (see `nissl.bench.run.cell.main`).
    """
    idle = _idle.setdefault((token, threads), [])
    while idle and idle[-1].poll() is not None:  # it was killed meanwhile
        _end_worker(idle.pop())
    process = idle.pop() if idle else _start_worker(token, threads)
    assert process.stdin and process.stdout
    answer = ""
    with suppress(OSError):  # it has ended
        process.stdin.write(f"{request}\n")
        process.stdin.flush()
        answer = process.stdout.readline()
    if answer:
        idle.append(process)
        return None
    return describe_exit(_end_worker(process))


def end_workers(token: Path) -> None:
    """End the worker processes of a bench that have no cell."""
    for key in [key for key in _idle if key[0] == token]:
        for process in _idle.pop(key):
            _end_worker(process)


def _start_worker(token: Path, threads: int) -> "subprocess.Popen[str]":
    """Start a worker process; Ctrl-C does not reach it."""
    command = [sys.executable, "-m", "nissl.bench.run.cell", str(token), str(threads)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, encoding="utf-8", start_new_session=True)


def _end_worker(process: "subprocess.Popen[str]") -> int:
    """Wait for the end of a worker process, which is bounded by `nissl.bench.run.cell.GRACE`; return its exit code."""
    assert process.stdin and process.stdout
    with suppress(OSError):
        process.stdin.close()
    code = process.wait()
    process.stdout.close()
    return code


def describe_exit(code: int) -> str:
    """What an exit code says of a worker process that did not finish its work."""
    if code < 0:
        why = ": most often a lack of memory" if -code == getattr(signal, "SIGKILL", None) else ""
        return f"the worker process was ended by {signal.Signals(-code).name}{why}"
    return f"the worker process ended with exit code {code}"


def is_there(token: Path) -> bool:
    """By opening it, at which a network file system asks the server; a mere query may be answered from its memory."""
    try:
        os.close(os.open(token, os.O_RDONLY))
    except FileNotFoundError:
        return False
    return True
