"""Worker processes of this machine: one makes many cells, and all end when they are told to."""

import subprocess
import sys
import threading

import pytest
from tests.bench.grids import LONG, STEPS, lines, wait_for, write_grid
from tests.tiny_data import write_tiny

from nissl.bench.grid.grid import cells, load_grid
from nissl.bench.run import processes
from nissl.bench.run.results import folder_of, is_done
from nissl.bench.run.workers import LocalPool, request_of

DEAF = """
import os, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for line in sys.stdin:
    print("done", flush=True)
"""


def start(source):
    """A worker process of this source."""

    def started(token, threads):
        pipe = subprocess.PIPE
        return subprocess.Popen([sys.executable, "-c", source], stdin=pipe, stdout=pipe, text=True)

    return started


@pytest.fixture
def made(tmp_path):
    write_tiny(tmp_path / "tiny")
    (tmp_path / "out").mkdir()
    return cells(load_grid(write_grid(tmp_path, LONG.replace(f"steps = {STEPS},", "steps = 3,"))))


def finished(pool, cell):
    pool.submit(cell)
    found = []
    while not found:
        found = pool.poll()
    return found


@pytest.mark.slow
def test_one_process_makes_many_cells_and_has_ended_after_the_pool(made, tmp_path, monkeypatch):
    starts = []
    monkeypatch.setattr(
        processes, "_start_worker", lambda *a, real=processes._start_worker: starts.append(real(*a)) or starts[-1]
    )
    with LocalPool(tmp_path / "out", 1, 1) as pool:
        assert [[one.lost for one in finished(pool, cell)] for cell in made] == [[None], [None]]
        assert pool.free() == 1 and starts[0].poll() is None
    assert len(starts) == 1 and starts[0].returncode is not None
    assert all(is_done(tmp_path / "out", cell) for cell in made)
    assert not list((tmp_path / "out").glob(f"{processes.TOKEN}*"))


def test_a_process_that_ends_on_its_own_is_lost_and_the_next_cell_gets_another(made, tmp_path, monkeypatch):
    with LocalPool(tmp_path / "out", 1, 1) as pool:
        monkeypatch.setattr(processes, "_start_worker", start("import sys; sys.stdin.readline(); sys.exit(7)"))
        (found,) = finished(pool, made[0])
        assert found.cell == made[0] and "exit code 7" in found.lost
        monkeypatch.setattr(processes, "_start_worker", start(DEAF))
        assert finished(pool, made[1])[0].lost is None


def test_an_idle_process_that_was_killed_costs_no_cell(made, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "_start_worker", start(DEAF))
    with LocalPool(tmp_path / "out", 1, 1) as pool:
        finished(pool, made[0])
        (process,) = processes._idle[pool.token, 1]
        process.kill()
        process.wait()
        assert finished(pool, made[1])[0].lost is None


def test_a_worker_that_misses_the_signal_ends_with_its_cell(made, tmp_path, monkeypatch):
    """Such as in the last step of a training."""
    monkeypatch.setattr(processes, "_start_worker", start(DEAF.replace("print", "import time; time.sleep(1); print")))
    with LocalPool(tmp_path / "out", 1, 1) as pool:
        pool.submit(made[0])
        stopping = threading.Thread(target=pool.stop, daemon=True)
        stopping.start()
        stopping.join(60)
        assert not stopping.is_alive()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stdin is closed", "the token is gone"])
def test_a_process_saves_its_state_and_ends_when_the_bench_has(tmp_path, how):
    """Also a bench that was killed, at which its pipes are closed."""
    write_tiny(tmp_path / "tiny")
    cell = cells(load_grid(write_grid(tmp_path, LONG.replace(f"steps = {STEPS},", "steps = 3000,"))))[0]
    (tmp_path / "out").mkdir()
    token, run = tmp_path / "out" / "token", folder_of(tmp_path / "out", cell)
    (tmp_path / "out" / "cells.json").write_text("{}")
    token.touch()
    with processes._start_worker(token, 1) as process:
        process.stdin.write(request_of(cell) + "\n")
        process.stdin.flush()
        wait_for(lambda: len(lines(run / "log.jsonl")) > 5, process)
        process.stdin.close() if how == "stdin is closed" else token.unlink()
        assert process.wait(60) == 143
    assert 5 < len(lines(run / "log.jsonl")) < 3000 and (run / "checkpoints" / "state.safetensors").is_file()
