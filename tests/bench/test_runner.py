"""A bench stops and starts at any time, runs nothing twice and loses no cell."""

import json
import os
import re
import shutil
import signal

import pytest
from tests.bench.grids import (
    LONG,
    STEPS,
    TINY,
    WEIGHTS,
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
from tests.bench.here import here, probed_here
from tests.tiny_data import write_tiny

import nissl
from nissl.bench.grid.grid import cells, load_grid
from nissl.bench.run import cost
from nissl.bench.run.cell import make, reusable
from nissl.bench.run.results import folder_of, is_done, result_of
from nissl.bench.runner import _locked, bench
from nissl.config import to_tree
from nissl.data.discovery import find_cases
from nissl.data.split import Split
from nissl.errors import InputError
from nissl.nets import factory
from nissl.runs.folder import read_json


def made_run(folder, row):
    return folder / "out" / row["run"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("bench")
    write_tiny(root / "tiny")
    write_grid(root)
    with here():
        bench(root / "grid.toml", root / "out")
    return root


@pytest.mark.slow
def test_two_workers_make_what_one_makes(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cost, "_apart", probed_here(tmp_path))
    assert command("bench", folder / "grid.toml", "--out", folder / "two", "--workers", "2") == 0
    shown = capsys.readouterr()
    assert "8 cells, 0 failed" in shown.out and str(folder / "two" / "results.csv") in shown.out
    assert f"report: {folder / 'two' / 'report.html'}" in shown.out
    assert "8 of 8 cells to run on 2 workers" in shown.err and "2 from 5 steps of a cell" in shown.err
    assert "cells: 8/8" in shown.err
    assert len(hashes(folder / "out")) == 8 and hashes(folder / "two") == hashes(folder / "out")


def test_a_cell_is_an_ordinary_run(folder):
    cell = cells(load_grid(folder / "grid.toml"))[5]
    run = nissl.train(cell.path, folder / "alone", cell.config)
    nissl.evaluate(run)
    made = folder / "out" / "runs" / cell.id
    assert (made / WEIGHTS).read_bytes() == (run / WEIGHTS).read_bytes()
    assert (made / "metrics.csv").read_bytes() == (run / "metrics.csv").read_bytes()


def test_stage_1_is_taken_from_a_finished_run_of_the_same_seed(folder):
    taken = {}
    for cell in cells(load_grid(folder / "grid.toml")):
        run = folder_of(folder / "out", cell)
        origin = env(run).get("stage_1_of")
        taken[cell.id] = origin and str((run / origin).resolve().relative_to(folder / "out" / "runs"))
    shared = {f"tiny/50pct/hpca-folded/seed-{seed}": f"tiny/1/hpca-folded/seed-{seed}" for seed in (0, 1)}
    assert {name: origin for name, origin in taken.items() if origin} == shared


def test_a_stage_1_is_taken_from_finished_runs_alone_and_from_two_networks_rather_than_one(tmp_path):
    text = TINY + '[[arms]]\nmethod = "cps"\npretrain = { name = "hebbian", rule = "hpca" }\n'
    write_tiny(tmp_path / "tiny")
    made = {cell.id: cell for cell in cells(load_grid(write_grid(tmp_path, text)))}
    one, two, other, wanted = (
        made[f"tiny/{place}"]
        for place in (
            "1/hpca-folded/seed-0",
            "1/hebbian-cps/seed-0",
            "1/hpca-folded/seed-1",
            "50pct/hpca-folded/seed-0",
        )
    )
    described = {cell.id: {"path": str(cell.path.resolve()), **to_tree(cell.config)} for cell in made.values()}

    def pretend(cell, networks, done=True, **changes):
        folder = folder_of(tmp_path, cell) / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        for network in range(networks):
            (folder / f"stage1-{network}.safetensors").touch()
        if done:
            (folder.parent / "metrics.json").touch()
        tree = json.loads(json.dumps(described))
        tree[cell.id] |= changes
        (tmp_path / "cells.json").write_text(json.dumps(tree))

    pretend(other, 1)
    assert reusable(tmp_path, wanted) is None
    pretend(one, 1, done=False)
    assert reusable(tmp_path, wanted) is None
    pretend(one, 1, path="/another/folder")
    assert reusable(tmp_path, wanted) is None
    pretend(one, 1)
    assert reusable(tmp_path, wanted) == folder_of(tmp_path, one)
    pretend(two, 2)
    assert reusable(tmp_path, wanted) == folder_of(tmp_path, two)
    assert reusable(tmp_path, made["tiny/50pct/none-supervised/seed-0"]) is None


def test_a_damaged_stage_1_of_another_run_fails_no_cell(folder, tmp_path):
    write_tiny(tmp_path / "tiny")
    made = {cell.id: cell for cell in cells(load_grid(write_grid(tmp_path)))}
    first, second = made["tiny/1/hpca-folded/seed-0"], made["tiny/50pct/hpca-folded/seed-0"]
    described = {cell.id: {"path": str(cell.path.resolve()), **to_tree(cell.config)} for cell in made.values()}
    (tmp_path / "cells.json").write_text(json.dumps(described))
    make(first, tmp_path)
    stage = folder_of(tmp_path, first) / "checkpoints" / "stage1-0.safetensors"
    content = bytearray(stage.read_bytes())
    content[-1] ^= 1
    stage.write_bytes(content)
    make(second, tmp_path)
    run = folder_of(tmp_path, second)
    assert is_done(tmp_path, second) and "stage_1_of" not in env(run)
    assert (run / WEIGHTS).read_bytes() == (folder_of(folder / "out", second) / WEIGHTS).read_bytes()
    assert "the pre-training is made anew" in (tmp_path / "logs" / f"{second.id}.log").read_text()


def test_results_have_a_row_for_each_cell(folder):
    made = cells(load_grid(folder / "grid.toml"))
    found = rows(folder / "out")
    assert [row["run"] for row in found] == [f"runs/{cell.id}" for cell in made]
    for row, cell in zip(found, made):
        overall = json.loads((folder / "out" / row["run"] / "metrics.json").read_text())["overall"]
        assert (row["data"], row["budget"], row["arm"], row["seed"]) == ("tiny", cell.budget, cell.arm, str(cell.seed))
        assert row["status"] == "done" and row["message"] == ""
        assert float(row["dice"]) == overall["dice"] and float(row["pooled_dice"]) == overall["pooled_dice"]
        assert int(row["masks_seen"]) == (1 if cell.budget == "1" else 3)
        assert (row["steps"], row["n_cases"], row["images_stage_2"]) == ("3", "2", "6")
        weights = sum(each.numel() for each in factory.build(cell.config.net, 2, 1, 2, 0).parameters())
        assert (row["parameters"], row["input"], row["protocol"]) == (str(weights), "1x32x32", "nissl")
        assert (
            float(row["trivial_dice"]) == overall["trivial_dice"]
            and row["device"] == env(made_run(folder, row))["device"]
        )
        assert int(row["images_stage_1"]) == (4 if "HPCA" in cell.arm else 0)
        assert float(row["seconds_stage_2"]) > 0 and (float(row["seconds_stage_1"]) > 0) == ("HPCA" in cell.arm)


def test_results_are_read_from_the_runs_and_not_from_an_older_table(folder, capsys):
    before = (folder / "out" / "results.csv").read_text()
    (folder / "out" / "results.csv").write_text(before.replace("done", "failed"))
    dates = [path.stat().st_mtime_ns for path in sorted((folder / "out" / "runs").rglob("*.json"))]
    assert command("bench", folder / "grid.toml", "--out", folder / "out") == 0
    assert (folder / "out" / "results.csv").read_text() == before
    assert [path.stat().st_mtime_ns for path in sorted((folder / "out" / "runs").rglob("*.json"))] == dates
    assert "to run" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_cell_is_done_at_the_length_that_its_protocol_states(tmp_path):
    """200 epochs of one mask, where the settings of the cell, as they are before the data are seen, say 1000 steps."""
    write_tiny(tmp_path / "tiny")
    text = LONG.replace("[settings]", '[settings]\nprotocol = "parity"').replace("seeds = 2", "seeds = 1")
    text = re.sub("(?m)^train = .*", "train = { save_every = 100 }", text)
    (cell,) = cells(load_grid(write_grid(tmp_path, text)))
    assert (cell.config.protocol, cell.config.train.steps) == ("parity", 1000)
    make(cell, tmp_path / "out")
    assert is_done(tmp_path / "out", cell)
    result = result_of(tmp_path / "out", cell)
    assert (result.status, result.training.steps, result.training.images_stage_2) == ("done", 200, 400)
    assert result.training.masks_seen == 1


def test_the_test_cases_are_those_of_every_seed(tmp_path):
    write_tiny(tmp_path / "tiny", count=12)
    (tmp_path / "tiny" / "cases.csv").unlink()
    text = TINY.replace('["1", "50%"]', '["2"]').replace("seeds = 2", "seeds = 3")
    with here():
        bench(write_grid(tmp_path, text[: text.rindex("[[arms]]")]), tmp_path / "out")
    made = [Split.from_tree(read_json(path)) for path in (tmp_path / "out").rglob("split.json")]
    assert len(made) == 3 and len({split.test for split in made}) == 1 and len({split.labelled for split in made}) > 1


@pytest.mark.slow
def test_a_bench_that_is_stopped_goes_on_and_runs_nothing_twice(tmp_path):
    (_, cell), (first, second) = prepared(tmp_path, LONG)
    path, held = tmp_path / "grid.toml", hold(second)
    process = started(tmp_path, module="tests.bench.held")
    wait_for(lambda: (first / "metrics.json").is_file() and len(lines(second / "log.jsonl")) >= AFTER, process)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=240)[1]
    assert process.returncode == 143 and "stopped; resume with: nissl bench" in said
    assert [row["status"] for row in rows(tmp_path / "out")] == ["done", "missing"]
    assert "1 of 2; 1 missing" in (tmp_path / "out" / "tables.md").read_text()
    assert "1 of 2 runs done, 0 failed, 1 missing" in (tmp_path / "out" / "report.html").read_text()
    half, kept = len(lines(second / "log.jsonl")), env(first)
    assert AFTER <= half < STEPS and (second / "checkpoints" / "state.safetensors").is_file()
    held.unlink()
    with here():
        outcome = bench(path, tmp_path / "out")
    assert [result.status for result in outcome.results] == ["done", "done"]
    assert env(first) == kept and "continued" not in kept and len(env(second)["continued"]) == 1
    assert [json.loads(line)["step"] for line in lines(second / "log.jsonl")] == list(range(1, STEPS + 1))
    alone = nissl.train(cell.path, tmp_path / "alone", cell.config)
    assert (second / WEIGHTS).read_bytes() == (alone / WEIGHTS).read_bytes()


@pytest.mark.slow
def test_ctrl_c_lets_running_cells_save_their_state_and_the_bench_goes_on(tmp_path):
    _, runs = prepared(tmp_path, LONG)
    path, held = tmp_path / "grid.toml", [hold(run) for run in runs]
    process = started(tmp_path, "--workers", "2", module="tests.bench.held")
    wait_for(lambda: all(len(lines(run / "log.jsonl")) >= AFTER for run in runs), process)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=240)[1]
    assert process.returncode == 130 and "stopped; resume with: nissl bench" in said, said
    halves = [len(lines(run / "log.jsonl")) for run in runs]
    assert all(AFTER <= half < STEPS for half in halves)
    assert all((run / "checkpoints" / "state.safetensors").is_file() for run in runs)
    assert [row["status"] for row in rows(tmp_path / "out")] == ["missing", "missing"]
    for file in held:
        file.unlink()
    with here():
        assert command("bench", path, "--out", tmp_path / "out", "--workers", "2") == 0
    for run, half in zip(runs, halves):
        assert [json.loads(line)["step"] for line in lines(run / "log.jsonl")] == list(range(1, STEPS + 1))
        assert len(env(run)["continued"]) == 1
        log = (tmp_path / "out" / "logs" / run.relative_to(tmp_path / "out" / "runs")).with_suffix(".log").read_text()
        assert f"training: {half + 1}/{STEPS}" in log
    with here():
        bench(path, tmp_path / "alone")
    assert hashes(tmp_path / "out") == hashes(tmp_path / "alone")


@pytest.mark.slow
def test_the_cell_of_a_killed_worker_has_failed_and_the_others_go_on(tmp_path):
    first = prepared(tmp_path, LONG)[1][0]
    hold(first)
    process = started(tmp_path, module="tests.bench.held")
    wait_for(lambda: len(lines(first / "log.jsonl")) >= AFTER, process)
    os.kill(int((first / ".nissl.owner").read_text().split()[1]), signal.SIGKILL)
    said = process.communicate(timeout=240)[1]
    assert process.returncode == 4 and "ended by SIGKILL: most often a lack of memory" in said
    assert [row["status"] for row in rows(tmp_path / "out")] == ["failed", "done"]


@pytest.mark.slow
def test_a_failed_cell_is_told_and_tried_again(tmp_path, capsys):
    write_tiny(tmp_path / "tiny")
    text = TINY.replace('["1", "50%"]', '["1", "100%"]').replace("seeds = 2", "seeds = 1")
    path = write_grid(tmp_path, text[: text.rindex("[[arms]]")])
    one, every = cells(load_grid(path))
    seen = nissl.train(one.path, tmp_path / "alone", one.config) / "split.json"
    labelled = Split.from_tree(read_json(seen)).labelled
    unseen = next(
        c.target for c in find_cases(one.path).cases if c.target and c.split == "train" and c.id not in labelled
    )
    whole = unseen.read_bytes()
    unseen.write_bytes(whole[: len(whole) // 2])
    with here():
        assert command("bench", path, "--out", tmp_path / "out") == 4
    assert "2 cells, 1 failed" in (shown := capsys.readouterr()).out and f"failed: runs/{every.id}" in shown.err
    good, bad = rows(tmp_path / "out")
    assert (good["status"], bad["status"], bad["dice"]) == ("done", "failed", "") and unseen.name in bad["message"]
    assert unseen.name in (tmp_path / "out" / "report.html").read_text()
    unseen.write_bytes(whole)
    with here():
        assert command("bench", path, "--out", tmp_path / "out") == 0
    assert [row["status"] for row in rows(tmp_path / "out")] == ["done", "done"]


def test_a_folder_keeps_to_its_grid(folder, tmp_path, capsys):
    def refused(text, *told):
        before = (folder / "out" / "cells.json").read_bytes()
        assert command("bench", write_grid(folder, text), "--out", folder / "out") == 2
        shown = capsys.readouterr().err
        assert all(part in shown for part in told), shown
        assert (folder / "out" / "cells.json").read_bytes() == before

    try:
        refused(
            TINY.replace("steps = 3,", "steps = 4,"), "cell tiny/1/none-supervised/seed-0: train.steps: was 3, is 4"
        )
        refused(TINY.replace("seeds = 2", "seeds = 1"), "4 cells of this bench are not in the grid", "seed-1")
        (tmp_path / "else").mkdir()
        (tmp_path / "else" / "file").touch()
        assert command("bench", folder / "grid.toml", "--out", tmp_path / "else") == 2
        assert "not empty: file" in capsys.readouterr().err
        assert command("bench", write_grid(folder), "--out", tmp_path / "none", "--workers", "0") == 2
    finally:
        write_grid(folder)


def test_a_bench_that_was_killed_before_it_began_can_begin(folder, tmp_path):
    for name in ("grid.toml", ".nissl.bench-0123", ".cells.json.x.tmp"):
        (tmp_path / name).touch()
    with _locked(tmp_path):
        pass
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=r"not empty: notes\.txt"), _locked(tmp_path):
        pass


def test_numbers_of_an_earlier_start_do_not_make_a_cell_done(folder, tmp_path, monkeypatch):
    cell = cells(load_grid(folder / "grid.toml"))[0]
    run = shutil.copytree(folder_of(folder / "out", cell), folder_of(tmp_path, cell))
    assert is_done(tmp_path, cell)
    whole = (run / "log.jsonl").read_text()
    (run / "log.jsonl").write_text(whole[: whole.rindex('{"step"')])

    def stopped(*arguments, **options):
        (run / "log.jsonl").write_text(whole)
        raise SystemExit(143)

    monkeypatch.setattr("nissl.api.train", stopped)
    with pytest.raises(SystemExit):
        make(cell, tmp_path)
    assert (run / "log.jsonl").is_file() and not is_done(tmp_path, cell)


def test_a_bench_of_a_version_with_fewer_settings_goes_on(folder):
    cells_file = folder / "out" / "cells.json"
    before = cells_file.read_text()
    older = json.loads(before)
    del older["format"]
    for settings in older.values():
        del settings["protocol"], settings["train"]["clip"]
    try:
        cells_file.write_text(json.dumps(older))
        assert command("bench", folder / "grid.toml", "--out", folder / "out") == 0
        assert json.loads(cells_file.read_text()) == json.loads(before)
        older[next(iter(older))]["train"]["clip"] = 0.5
        cells_file.write_text(json.dumps(older))
        assert command("bench", folder / "grid.toml", "--out", folder / "out") == 2
    finally:
        cells_file.write_text(before)


def test_a_grid_may_grow(folder):
    before = hashes(folder / "out")
    try:
        with here():
            grown = bench(write_grid(folder, TINY.replace("seeds = 2", "seeds = [0, 1, 5]")), folder / "out")
    finally:
        write_grid(folder)
    assert len(grown.results) == 12 and not grown.failed
    assert before.items() <= hashes(folder / "out").items()
