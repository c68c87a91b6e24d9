"""Being asked to stop: the step is finished, the state is saved, and the process leaves with 130 or 143."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(SystemExit):
    """The run was asked to stop, saved its state and can be resumed; exit code 130 or 143."""


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM, to be answered after the step; a second Ctrl-C stops at once.

    A second SIGTERM does not: a scheduler and torchrun may each send one, and the state would not be saved.
    """
    caught: list[int] = []

    def catch(number: int, frame: FrameType | None) -> None:
        if caught and number == signal.SIGINT:
            os._exit(128 + number)
        caught.append(number)

    try:
        before = {number: signal.signal(number, catch) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals are the caller's
        yield caught
        return
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
