"""A Dask cluster of processes on this machine, always ended."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

PLAIN = ["--host", "127.0.0.1", "--no-dashboard"]
HELD = ["--preload", "tests.bench.held"]
"""Whose processes a test can hold in the middle of a training."""


class Cluster:
    """A scheduler, and workers of one thread each."""

    def __init__(self, folder, **settings):
        self.folder, self.processes = folder, []
        folder.mkdir()
        self.env = (
            os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | settings
        )
        self.scheduler = self._start("scheduler", "--port", "0", "--scheduler-file", folder / "scheduler.json")
        self.address = self._wait(lambda: json.loads((folder / "scheduler.json").read_text())["address"])

    def worker(self):
        """Start a worker; a process of its own without a nanny, so that a kill is for good."""
        name = f"worker{len(self.processes)}"
        return self._start("worker", self.address, "--nthreads", "1", "--no-nanny", "--name", name, *HELD)

    def _start(self, kind, *options):
        command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", *PLAIN, *map(str, options)]
        with (self.folder / f"{kind}{len(self.processes)}.log").open("w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=self.env, cwd=self.folder)
        self.processes.append(process)
        return process

    def _wait(self, value, seconds=120):
        end = time.monotonic() + seconds
        while True:
            try:
                return value()
            except (OSError, ValueError):
                assert time.monotonic() < end and self.scheduler.poll() is None, self.said()
            time.sleep(0.1)

    def said(self):
        """What all processes have written."""
        return "\n".join(path.read_text() for path in self.folder.glob("*.log"))

    def end(self, workers_only=False):
        """Kill what is left; the processes of the cells end with their workers."""
        for process in self.processes[workers_only:]:
            process.send_signal(signal.SIGKILL)
            process.wait(60)


@contextmanager
def lent(made):
    """A cluster that several tests share: whatever they start there, they leave it without workers."""
    try:
        yield made
    finally:
        made.end(workers_only=True)


@contextmanager
def cluster(folder, **settings):
    """A cluster, and its end."""
    made = Cluster(folder, **settings)
    try:
        yield made
    finally:
        made.end()
