"""The processes of a bench: each starts afresh, but for the imports that all of them need."""

import multiprocessing
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

PRELOADED = ["nissl.bench.run.cost", "nissl.bench.run.cell", "torch._dynamo"]
"""Imported once, in a process that does nothing else, of which the others are copies: imports take longer than a short
cell. None of them may start threads that compute, or use a GPU: a copy would not have them."""


def start(target: Callable[..., object], *arguments: object) -> tuple[BaseProcess, Connection]:
    """Start `target(link, *arguments)` in a process; return it and the other end of the link."""
    if sys.platform == "linux":  # elsewhere a copy of a process that has loaded torch is not safe, or cannot be made
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
    else:
        context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs, *arguments))
    process.start()
    theirs.close()
    return process, ours
