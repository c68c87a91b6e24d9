"""Runs of an older format work in every way; those of a newer one, and bad files, are refused by name."""

import json
import shutil
from pathlib import Path

import pytest
from tests.old_runs import DATA, old_run

import nissl
from nissl import several_seeds
from nissl.config import Config, SplitConfig, to_tree
from nissl.errors import DataError, InputError
from nissl.model import Model
from nissl.runs.checkpoint import load_checkpoint
from nissl.runs.folder import STATE, holds_seeds, read_json, write_json
from nissl.runs.format import CONTENT, FORMAT, load_config, upgraded
from nissl.runs.provenance import flat
from nissl.runs.reuse import stage_1_settings
from nissl.runs.seeds import runs_of
from nissl.tasks.scores import COLUMNS

STORED = ("data.json", "split.json", "env.json", "budget.json", "metrics.json", "pretrain.json", "network.json")


def read(path):
    return json.loads(path.read_text())


@pytest.fixture
def run(tmp_path):
    return old_run(tmp_path)


# Runs of format 1


def test_an_old_run_is_measured_as_it_was_when_it_was_made(run):
    before = read(run / "metrics.json")
    summary = nissl.evaluate(run, device="cpu", data=DATA)
    assert summary.overall.dice == pytest.approx(before["overall"]["dice"], abs=1e-3)
    measured = read(run / "metrics.json")
    assert (measured["steps"], measured["planned_steps"]) == (8, 8)
    assert read(run / "metrics.json")["format"] == FORMAT


def test_an_old_run_predicts(run, tmp_path):
    result = nissl.predict(run, DATA / "images", tmp_path / "masks", "cpu")
    assert len(result.written) == 8 and not result.failed and (result.steps, result.planned_steps) == (8, 8)


def test_an_old_run_has_a_page_and_is_compared(run, tmp_path):
    page = nissl.report(run, DATA).read_text()
    assert page.count('alt="Reference and prediction') == 2 and "Not on this page" not in page
    other = old_run(tmp_path / "other")
    assert nissl.compare(run, other).overall.primary.mean == 0


def test_an_old_interrupted_run_is_resumed_and_ends(tmp_path):
    run = old_run(tmp_path, "interrupted")
    nissl.train(DATA, run, resume=True)
    assert load_checkpoint(run / STATE)[1]["step"] == 40
    assert (Model.load(run, "cpu").steps, Model.load(run, "cpu").planned_steps) == (40, 40)
    assert read(run / "env.json")["continued"][0]["changed"] == []
    assert [read_json(run / name) for name in STORED if (run / name).exists()]


def test_a_new_run_reuses_the_first_stage_of_an_old_one(run, tmp_path):
    settings = load_config(run / "config.toml")
    made = nissl.train(DATA, tmp_path / "new", settings, pretrained=run)
    first = "checkpoints/stage1-0.safetensors"
    assert (made / first).read_bytes() == (run / first).read_bytes()


def test_several_seeds_of_the_old_format_are_read_and_grow(tmp_path):
    out = tmp_path / "two"
    shutil.copytree(old_run(tmp_path), out / "seed-0")
    shutil.copy(out / "seed-0" / "config.toml", out / "config.toml")
    for folder in (out, out / "seed-0"):  # as the first of several seeds stores it
        text = (folder / "config.toml").read_text()
        (folder / "config.toml").write_text(text.replace("transductive = false", "transductive = false\nseed = 0"))
    (out / "series.json").write_text('{"seeds": [0]}')
    assert holds_seeds(out) and list(runs_of(out)) == [0]
    several_seeds.train(DATA, out, seeds=2, resume=True)
    assert list(runs_of(out)) == [0, 1] and read(out / "seeds.json") == {"format": FORMAT, "seeds": [0, 1]}
    assert several_seeds.evaluate(out, device="cpu", data=DATA).changed_data == ()


def test_sessions_of_the_old_format_are_those_of_the_version_that_began(run):
    tree = read(run / "env.json") | {"continued": [{"torch": "2", "changed": []}]}
    (run / "env.json").write_text(json.dumps(tree))
    assert read_json(run / "env.json")["continued"] == [{"nissl": tree["nissl"], "torch": "2", "changed": []}]


def test_settings_of_an_old_bench_are_upgraded_cell_by_cell(tmp_path):
    (tmp_path / "cells.json").write_text(json.dumps({"a": {"path": "x", "seed": 1}}))
    assert read_json(tmp_path / "cells.json") == {"a": {"path": "x", "seed": 1}}


def test_settings_written_by_hand_may_be_new_without_naming_a_format():
    tree = to_tree(Config(split=SplitConfig(labels="7")))
    assert upgraded(tree, 1) == tree == upgraded(tree, FORMAT)
    assert stage_1_settings(upgraded(tree, 1)) == stage_1_settings(tree)


@pytest.mark.parametrize("old", [1, 2])
def test_false_positives_were_called_false_alarms(run, old):
    tree, lines = read(run / "metrics.json"), (run / "metrics.csv").read_text().splitlines()
    assert "n_false_alarm" in tree["overall"] and "a false alarm" in tree["policy"]
    tree["overall"]["n_false_alarm"] = tree["classes"]["foreground"]["n_false_alarm"] = 3
    (run / "metrics.json").write_text(json.dumps(tree if old == 1 else {"format": old, **tree}))
    found = read_json(run / "metrics.json")
    assert "alarm" not in json.dumps(found) and "a false positive" in found["policy"]
    assert found["overall"]["n_false_positive"] == found["classes"]["foreground"]["n_false_positive"] == 3
    row = "false alarms of cells,,foreground,false alarm,0.0,0.0,0.0,0.0,90.5,90.5,px,0,7,0,4096"
    (run / "metrics.csv").write_text("\n".join([*lines, row]))
    *_, last = COLUMNS.from_csv((run / "metrics.csv").read_text())
    assert (last.case, last.overlap.presence) == ("false alarms of cells", "false positive")
    page = nissl.report(run, DATA).read_text()
    assert "false positive" in page and "alarm" not in page.replace("false alarms of cells", "")
    other = old_run(run.parent / "other")
    (other / "metrics.csv").write_text((run / "metrics.csv").read_text())
    assert nissl.compare(run, other).false_positives == (1, 1)


# What is written now


def test_every_file_that_is_read_back_names_its_format(run):
    nissl.evaluate(run, device="cpu", data=DATA)
    made = nissl.train(DATA, run.parent / "new", load_config(run / "config.toml"))
    nissl.evaluate(made, device="cpu")
    assert {name: read(made / name)["format"] for name in STORED} == dict.fromkeys(STORED, FORMAT)
    assert (made / "config.toml").read_text().startswith(f"format = {FORMAT}\n")
    old, new = (flat(to_tree(load_config(folder / "config.toml"))) for folder in (run, made))
    left_open = {key for key, value in old.items() if value == '"auto"'}
    assert {key: old[key] for key in old.keys() - left_open}.items() <= new.items()  # which says what it was then
    assert not any("format" in read_json(made / name) for name in STORED)


# Newer and bad files


@pytest.mark.parametrize("name", ["data.json", "split.json", "budget.json", "config.toml"])
def test_a_newer_file_is_refused_by_name(run, name):
    path = run / name
    text = path.read_text()
    newer = FORMAT + 1
    path.write_text(
        f"format = {newer}\n{text}" if name == "config.toml" else text.replace("{", f'{{"format": {newer}, ', 1)
    )
    for use in (lambda: nissl.evaluate(run, device="cpu", data=DATA), lambda: nissl.report(run)):
        with pytest.raises(InputError) as caught:
            use()
        assert caught.value.where.endswith(name) and f"newer Nissl (format {newer})" in caught.value.found


@pytest.mark.parametrize("found", [0, -1, "2", 2.0, True, None])
def test_a_format_that_is_none_is_refused(tmp_path, found):
    (tmp_path / "a.json").write_text(json.dumps({"format": found}))
    with pytest.raises(InputError, match=r"a\.json\n  found: format "):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("text", ["[]", "3", "null", '"text"'])
def test_what_is_no_object_is_refused_by_name(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=r"a\.json\n  found: it holds a "):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, keys in CONTENT.items() for key in keys])
def test_a_file_without_what_it_must_hold_is_refused_by_name(tmp_path, name, key):
    whole = {key: kind() for key, kind in CONTENT[name].items()}
    write_json(tmp_path / name, whole)
    assert read_json(tmp_path / name) == whole
    for bad in ({k: v for k, v in whole.items() if k != key}, whole | {key: None}):
        write_json(tmp_path / name, bad)
        with pytest.raises(DataError) as caught:
            read_json(tmp_path / name)
        assert Path(caught.value.where).name == name and f"`{key}`" in caught.value.found
