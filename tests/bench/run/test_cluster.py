"""A bench on a Dask cluster makes what it makes on one machine, whatever is killed on the way."""

import json
import signal
import sys
import time

import filelock
import pytest
from tests.bench.grids import (
    LONG,
    STEPS,
    command,
    env,
    hashes,
    lines,
    prepared,
    rows,
    started,
    wait_for,
    write_grid,
)
from tests.bench.held import AFTER, hold
from tests.bench.here import here
from tests.bench.run.clusters import cluster, lent
from tests.tiny_data import write_tiny

from nissl.bench.grid.grid import Cell, cells, load_grid
from nissl.bench.run import cluster as module
from nissl.bench.run.cell import lock_of, log_of
from nissl.bench.run.processes import TOKEN, probe_worker, versions
from nissl.bench.runner import bench

psutil = pytest.importorskip("psutil", reason="comes with Dask")
pytest.importorskip("distributed")

SAVING = LONG.replace("save_every = 1000", "save_every = 10")
"""Two cells that are saved on the way."""


def process_of(run):
    """The process that is at a run, and the worker that started it."""
    made = psutil.Process(int((run / ".nissl.owner").read_text().split()[1]))
    return made, made.parent()


def steps(run):
    return [json.loads(line)["step"] for line in lines(run / "log.jsonl")]


def starts(folder, cell):
    return len([line for line in lines(log_of(folder / "out", cell)) if line.endswith(cell.id)])


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A scheduler for the tests that leave it as it is."""
    with cluster(tmp_path_factory.mktemp("shared") / "cluster") as made:
        yield made


@pytest.fixture(scope="module")
def in_process(tmp_path_factory):
    """What the cells are without a cluster."""
    folder = tmp_path_factory.mktemp("alone")
    prepared(folder, SAVING)
    with here():
        bench(folder / "grid.toml", folder / "out")
    return hashes(folder / "out")


def test_a_cell_is_the_same_after_its_way_through_text(tmp_path):
    write_tiny(tmp_path / "tiny")
    for cell in cells(load_grid(write_grid(tmp_path))):
        assert Cell.from_json(cell.to_json()) == cell


@pytest.mark.slow
def test_cells_of_a_killed_worker_go_on_with_another_and_nothing_is_made_twice(tmp_path, shared, in_process):
    made, (first, second) = prepared(tmp_path, SAVING)
    held = [hold(first), hold(second)]
    with lent(shared) as dask:
        dask.worker()
        dask.worker()
        process = started(tmp_path, "--cluster", dask.address)
        wait_for(lambda: len(lines(first / "log.jsonl")) >= AFTER, process)
        process_of(first)[1].kill()
        wait_for(lambda: len(lines(second / "log.jsonl")) >= AFTER, process)
        process_of(second)[0].kill()  # what the system does where memory is short
        for path in held:
            path.unlink()
        said = process.communicate(timeout=300)[1]
    assert process.returncode == 0, said
    assert "was lost; another worker resumes it" in said and "ended by SIGKILL: most often a lack of memory" in said
    assert [row["status"] for row in rows(tmp_path / "out")] == ["done", "done"]
    for cell, run in zip(made, (first, second)):
        assert starts(tmp_path, cell) == 2 and len(env(run)["continued"]) == 1
        assert steps(run) == list(range(1, STEPS + 1))
    assert hashes(tmp_path / "out") == in_process


@pytest.mark.slow
def test_a_killed_scheduler_leaves_a_bench_that_goes_on_without_it(tmp_path, in_process):
    made, (first, second) = prepared(tmp_path, SAVING)
    held = hold(second)
    with cluster(tmp_path / "cluster") as dask:
        dask.worker()
        process = started(tmp_path, "--cluster", dask.address)
        wait_for(lambda: (first / "metrics.json").is_file() and len(lines(second / "log.jsonl")) >= AFTER, process)
        dask.scheduler.kill()
        said = process.communicate(timeout=300)[1]
        assert process.returncode == 4, said
        assert dask.address in said and "the cluster has gone away" in said and "finished cells are kept" in said
        assert [row["status"] for row in rows(tmp_path / "out")] == ["done", "missing"]
        half = steps(second)
        assert AFTER <= len(half) < STEPS and (second / "checkpoints" / "state.safetensors").is_file()
        dates = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
        held.unlink()
        with here():
            assert command("bench", tmp_path / "grid.toml", "--out", tmp_path / "out") == 0
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == dates
    assert starts(tmp_path, made[0]) == 1 and starts(tmp_path, made[1]) == 2
    assert steps(second) == list(range(1, STEPS + 1))
    assert hashes(tmp_path / "out") == in_process


@pytest.mark.slow
def test_ctrl_c_lets_the_workers_save_and_the_bench_waits_for_its_first_worker(tmp_path, shared):
    made, (first, second) = prepared(tmp_path, SAVING, measured=False)
    held = hold(first)
    with lent(shared) as dask:
        process = started(tmp_path, "--cluster", dask.address)
        assert "there is no worker" in process.stderr.readline()
        dask.worker()
        wait_for(lambda: len(lines(first / "log.jsonl")) >= AFTER, process)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=300)[1]
        assert process.returncode == 130 and f"--cluster {dask.address}" in said, said
        half = steps(first)
        assert AFTER <= len(half) < STEPS and (first / "checkpoints" / "state.safetensors").is_file()
        assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(TOKEN)]
        time.sleep(2)
        assert steps(first) == half and not second.exists()
        held.unlink()
        assert command("bench", tmp_path / "grid.toml", "--out", tmp_path / "out", "--cluster", dask.address) == 0
    assert starts(tmp_path, made[0]) == 2 and len(env(first)["continued"]) == 1
    assert steps(first) == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_a_worker_that_is_believed_dead_keeps_its_cell_and_the_next_one_waits(tmp_path):
    (cell,), (run,) = prepared(tmp_path, SAVING.replace("seeds = 2", "seeds = 1"))
    held, log = hold(run), log_of(tmp_path / "out", cell)
    with cluster(tmp_path / "cluster", DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL="2s") as dask:
        dask.worker()
        process = started(tmp_path, "--cluster", dask.address)
        wait_for(lambda: len(lines(run / "log.jsonl")) >= AFTER, process)
        process_of(run)[1].suspend()
        dask.worker()
        wait_for(lambda: "another worker makes this cell: waiting" in log.read_text(), process)
        held.unlink()
        said = process.communicate(timeout=300)[1]
    assert process.returncode == 0 and "was lost; another worker resumes it" in said, said
    assert starts(tmp_path, cell) == 1 and "continued" not in env(run)
    assert steps(run) == list(range(1, STEPS + 1))
    assert not lock_of(tmp_path / "out", cell).exists()


@pytest.mark.slow
def test_a_cell_that_keeps_losing_its_worker_has_failed(tmp_path, shared):
    first = prepared(tmp_path, LONG)[1][0]
    hold(first)
    with lent(shared) as dask:
        dask.worker()
        process = started(tmp_path, "--cluster", dask.address)
        killed = 0
        while killed < module.ClusterPool.tries:
            wait_for(lambda: len(lines(first / "log.jsonl")) >= AFTER, process)
            process_of(first)[0].kill()
            (first / "log.jsonl").unlink()
            killed += 1
        said = process.communicate(timeout=300)[1]
    assert process.returncode == 4, said
    found = rows(tmp_path / "out")
    assert [row["status"] for row in found] == ["failed", "done"] and "SIGKILL" in found[0]["message"]


@pytest.mark.slow
def test_a_cluster_that_cannot_make_cells_is_refused(tmp_path, monkeypatch, capsys):
    write_tiny(tmp_path / "tiny")
    path = write_grid(tmp_path)

    def refused(*told):
        assert command("bench", path, "--out", tmp_path / "out", "--cluster", dask.address) == 2
        shown = capsys.readouterr().err
        assert all(part in shown for part in told), shown
        assert not (tmp_path / "out" / "cells.json").exists()
        return shown

    with cluster(tmp_path / "cluster") as dask:
        dask.worker()
        monkeypatch.setattr(
            module, "probe_worker", lambda *where: (["no such folder: /data"], versions() | {"torch": "1.0"})
        )
        shown = refused("worker tcp://127.0.0.1:", "no such folder: /data", "under the same paths", "next step: ")
        assert f"warning: workers have torch 1.0, here it is {versions()['torch']}" in shown
        monkeypatch.setattr(module, "probe_worker", lambda *where: __import__("no_such_package"))
        refused("ModuleNotFoundError: No module named 'no_such_package'")
        monkeypatch.undo()
        monkeypatch.setattr(module, "ANSWER", 2.0)
        dask.scheduler.send_signal(signal.SIGSTOP)
        refused(dask.address, "no scheduler answers", "next step: start it with `dask scheduler`")
        dask.end()
        refused(dask.address, "no scheduler answers")


def test_an_address_that_is_none_and_workers_beside_a_cluster_are_refused(tmp_path, monkeypatch, capsys):
    write_tiny(tmp_path / "tiny")
    path = write_grid(tmp_path)
    for options, told in {
        ("--cluster", "carrier-pigeon://here"): "no scheduler answers",
        ("--cluster", "tcp://127.0.0.1:1", "--workers", "2"): "leave it out: the cluster has its own",
    }.items():
        assert command("bench", path, "--out", tmp_path / "out", *options) == 2
        assert told in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert command("bench", path, "--out", tmp_path / "out", "--cluster", "tcp://127.0.0.1:1") == 2
    assert "pip install 'nissl[cluster]'" in capsys.readouterr().err


def test_a_worker_sees_what_is_missing_on_its_machine(tmp_path):
    token, lock = tmp_path / "token", tmp_path / "lock"
    assert "is not there" in probe_worker(token, lock, [tmp_path])[0][0]
    token.touch()
    with filelock.FileLock(lock):
        assert probe_worker(token, lock, [tmp_path]) == ([], versions())
        assert probe_worker(token, lock, [tmp_path / "data"])[0] == [f"no such folder: {tmp_path / 'data'}"]
    assert "does not lock files across machines" in probe_worker(token, lock, [tmp_path])[0][0]
