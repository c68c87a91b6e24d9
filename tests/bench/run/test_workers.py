"""Processes of this machine end when they are told to."""

import signal
import threading

import pytest

from nissl.bench.run import workers as crew


def deaf(link, out, threads):
    """A worker to which SIGTERM says nothing, as in the last step of a training."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    link.send("ready")
    while True:
        try:
            link.recv()
        except (EOFError, OSError):
            return


@pytest.mark.slow
def test_a_worker_that_misses_the_signal_ends_with_its_cell(tmp_path, monkeypatch):
    monkeypatch.setattr(crew, "work", deaf)
    workers = crew.Processes(tmp_path, 1, 1)
    process = workers._hire()
    assert process.link.recv() == "ready"
    stopping = threading.Thread(target=workers.stop, daemon=True)
    stopping.start()
    stopping.join(120)
    hangs = stopping.is_alive()
    process.process.kill()
    assert not hangs
