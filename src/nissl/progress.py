"""Progress of long work, on stderr: a bar on a terminal, plain lines elsewhere; stdout stays clean."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from time import monotonic
from typing import Protocol

PAUSE = 10.0
"""Least seconds between two plain lines; the first and the last are always written."""

Advance = Callable[[str], None]


class Tracker(Protocol):
    """What `track` is, so that callers can bring their own."""

    def __call__(self, total: int, what: str, start: int = 0) -> AbstractContextManager[Advance]:
        """Show the progress of `total` units of work; the function counts one as done, with a short message."""


def warn(text: str) -> None:
    """Say on stderr what the user should know; of several processes the first speaks."""
    if is_first_process():
        print(f"warning: {text}", file=sys.stderr, flush=True)


def is_first_process() -> bool:
    """Say whether this is the process that writes and prints, of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def track(total: int, what: str, start: int = 0) -> Iterator[Advance]:
    """Show how far the work is, its speed, the time left and the last message; `start` units were done before.

    `with track(steps, "training") as advance:` and then `advance("loss 0.123")` after each step. Under torchrun only
    the process of rank 0 shows anything.
    """
    if not is_first_process():
        yield lambda message: None
        return
    began, done = monotonic(), start
    with (_bar if sys.stderr.isatty() else _lines)(total, what, start) as show:

        def advance(message: str) -> None:
            nonlocal done
            done += 1
            pace = max(monotonic() - began, 1e-9) / (done - start)
            speed = f"{1 / pace:.1f}/s" if pace <= 1 else f"{pace:.1f} s each"
            show(done, f"{speed}, {timedelta(seconds=round((total - done) * pace))} left  {message}")

        yield advance


@contextmanager
def _bar(total: int, what: str, start: int) -> Iterator[Callable[[int, str], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    name, rest = (TextColumn(f"{{task.{field}}}", markup=False) for field in ("description", "fields[rest]"))
    with Progress(name, BarColumn(), MofNCompleteColumn(), rest, console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=total, completed=start, rest="")
        yield lambda done, text: progress.update(task, completed=done, rest=text)


@contextmanager
def _lines(total: int, what: str, _: int) -> Iterator[Callable[[int, str], None]]:
    shown_at, waiting = float("-inf"), ""

    def show(done: int, text: str) -> None:
        nonlocal shown_at, waiting
        waiting = f"{what}: {done}/{total}  {text}"
        if monotonic() - shown_at >= PAUSE:
            print(waiting, file=sys.stderr, flush=True)
            shown_at, waiting = monotonic(), ""

    try:
        yield show
    finally:
        if waiting:
            print(waiting, file=sys.stderr, flush=True)
