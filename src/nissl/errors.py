"""Errors at the door: each names where, what was found, what was expected and the next step.

The command line prints them without a traceback and leaves with their exit code; inside the house plain Python
exceptions are used.
"""

import errno
from pathlib import Path
from typing import NamedTuple

NO_MEMORY = (
    "out of memory",  # the allocators of GPUs, oneDNN
    "allocate memory",  # torch on the CPU: "can't allocate memory", and the system's "Cannot allocate memory"
    "not enough memory",  # torch on Windows
    "bad_alloc",
    "bad allocation",
    "alloc_failed",  # cuDNN and cuBLAS
    "could not create a memory",  # oneDNN
    "could not create a primitive",  # oneDNN as well, seen under a limit of the address space
)
"""Words of libraries that have no class of their own for a lack of memory, in lower case."""


RESTORE = "restore the file from a copy, or train again"
"""The next step where a file of a run is damaged."""


class NisslError(Exception):
    """A fault that the user can mend.

    Args:
        where: the file, folder, flag or key at fault.
        found: what was there.
        expected: what should have been there.
        fix: the next step.
        code: what kind of fault it is, for callers that treat some kinds apart; the texts are for people.

    """

    exit_code = 2
    reported: bool | None = None
    """Of several processes: whether another one reports it to the user; None where all of them meet it alike."""

    def __init__(self, where: Path | str, found: str, expected: str, fix: str, code: str = "") -> None:
        self.where, self.found, self.expected, self.fix, self.code = str(where), found, expected, fix, code
        super().__init__(str(where), found, expected, fix)

    def __str__(self) -> str:
        return f"{self.where}\n  found: {self.found}\n  expected: {self.expected}\n  next step: {self.fix}"


class InputError(NisslError):
    """A command, flag, setting or folder that cannot be used; exit code 2."""


class TestSplitLocked(NisslError):
    """Something other than `evaluate` asked for a test case; exit code 2."""

    def __init__(self, case: Path | str) -> None:
        super().__init__(
            case,
            "a test case was asked for before the measurement",
            "training cases only: the test split opens for `nissl evaluate` alone",
            "take the case out of what is asked for, or move it to the training side in cases.csv",
        )


class DataError(NisslError):
    """A fault in the data: an unreadable file, a mask that does not fit; exit code 3."""

    exit_code = 3


class ResourceError(NisslError):
    """Disk, memory or time ran out; exit code 4."""

    exit_code = 4


class Caveat(NamedTuple):
    """What makes numbers less than they seem: a code for programs and a sentence for people."""

    code: str
    text: str


def out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that memory, of the CPU or a GPU, ran out.

    Torch has a class of its own only for GPUs; elsewhere the words are all there is. They are told from others with
    `memory` in them, such as an illegal access or a memory format, where trying again with less would not help.
    """
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in NO_MEMORY)
