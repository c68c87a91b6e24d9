"""Several seeds: five runs on the same test cases, their mean with two intervals, and no single-seed claim."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from scipy import stats
from tests.five_seeds import command, five_seeds, read, without_split
from tests.tiny_data import FLAGS, pretrained, tiny_config

from nissl import several_seeds
from nissl.config import SplitConfig
from nissl.data.discovery import find_cases
from nissl.data.split import make_split
from nissl.errors import InputError
from nissl.runs.folder import holds_seeds
from nissl.runs.seeds import is_finished, runs_of, settings_of


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return without_split(tmp_path_factory.mktemp("tiny") / "data")


@pytest.fixture(scope="module")
def five(data, tmp_path_factory):
    return five_seeds(data, tmp_path_factory.mktemp("runs") / "five")


def test_interrupted_seeds_are_resumed_and_finished_runs_stay_as_they_are(five, data, tmp_path, capsys):
    copy = shutil.copytree(five, tmp_path / "five")
    shutil.rmtree(copy / "seed-3")
    (copy / "seed-4" / "checkpoints" / "last.safetensors").unlink()
    (copy / "seed-4" / "checkpoints" / "state.safetensors").unlink()
    before = contents(copy / "seed-1")
    assert command("evaluate", copy) == 2
    assert "seed-3, seed-4 not finished" in capsys.readouterr().err
    assert command("train", data, "--out", copy, "--resume") == 0
    shown = capsys.readouterr().err
    assert "seed 1 (2 of 5): finished before" in shown and "seed 3 (4 of 5)\n" in shown
    assert contents(copy / "seed-1") == before
    weights = "checkpoints/last.safetensors"
    for seed in (3, 4):
        assert (copy / f"seed-{seed}" / weights).read_bytes() == (five / f"seed-{seed}" / weights).read_bytes()


def test_more_seeds_can_be_added_and_none_dropped(five, data, tmp_path, capsys):
    copy = shutil.copytree(five, tmp_path / "five")
    assert command("train", data, "--out", copy, "--resume", "--seeds", "6") == 0
    assert sorted(runs_of(copy)) == [0, 1, 2, 3, 4, 5]
    assert read(copy / "seed-5" / "split.json")["test"] == read(copy / "seed-0" / "split.json")["test"]
    assert command("train", data, "--out", copy, "--resume", "--seeds", "2") == 2
    assert "every run counts" in capsys.readouterr().err


def inverted(data, folder):
    """The same names with other pixels."""
    copy = shutil.copytree(data, folder)
    for path in (copy / "images").iterdir():
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    return copy


def test_more_seeds_on_changed_data_are_refused_or_accepted_and_said(five, data, tmp_path, capsys):
    copy, other = shutil.copytree(five, tmp_path / "five"), inverted(data, tmp_path / "inverted")
    before = contents(copy)
    resumed = ["train", other, "--out", copy, "--resume", "--seeds", "6"]
    assert command(*resumed) == 2 and contents(copy) == before
    shown = capsys.readouterr().err  # no test image was opened, so that ten of twelve are known
    assert "10 cases have changed since seed-0 began" in shown and "--allow-changed" in shown
    assert command(*resumed, "--allow-changed") == 0
    summary = several_seeds.evaluate(copy)
    assert summary.changed_data == (5,) and any(text.endswith("first seed: 5.") for text in summary.warnings)
    assert read(copy / "metrics.json")["changed_data"] == [5]
    assert "other images or masks than the first seed: 5." in several_seeds.report(copy).read_text()


def test_seeds_on_the_same_data_are_not_said_to_differ(five):
    assert read(five / "metrics.json")["changed_data"] == []


def test_all_seeds_have_one_setting(five, data, capsys):
    assert command("train", data, "--out", five, "--resume", "--batch", "1") == 2
    shown = capsys.readouterr().err
    assert "train.batch: was 2, is 1" in shown and "one setting for all seeds" in shown


def test_refused_seeds_leave_nothing(data, tmp_path, capsys):
    assert command("train", data, "--out", tmp_path / "five", *FLAGS, "--seeds", "3", "--labels", "99") == 2
    assert not (tmp_path / "five").exists()
    assert command("train", data, "--out", tmp_path / "five", *FLAGS, "--seeds", "0") == 2
    assert not (tmp_path / "five").exists() and "--seeds 5" in capsys.readouterr().err


def test_a_full_folder_or_a_single_run_is_no_place_for_several_seeds(five, data, capsys):
    assert command("train", data, "--out", five, *FLAGS, "--seeds", "3") == 2
    assert "not empty" in capsys.readouterr().err
    assert command("train", data, "--out", five / "seed-0", "--resume", "--seeds", "3") == 2
    assert "one run" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["predict"])
def test_where_one_run_is_meant_several_seeds_are_refused(five, data, tmp_path, verb, capsys):
    assert command(verb, five, data / "images", "--out", tmp_path / "masks") == 2
    assert "several seeds" in (shown := capsys.readouterr().err) and "seed-0" in shown


def test_f47_runs_are_compared_seed_by_seed(five, data, tmp_path, capsys):
    assert command("train", data, "--out", tmp_path / "other", *FLAGS, "--seeds", "5", *pretrained()) == 0
    assert command("compare", five, tmp_path / "other") == 2
    assert "not measured yet" in capsys.readouterr().err
    assert command("evaluate", tmp_path / "other") == 0
    capsys.readouterr()
    assert command("compare", five, tmp_path / "other", "--json") == 0
    tree = json.loads(capsys.readouterr().out)
    sides = [read(folder / "metrics.json")["runs"] for folder in (five, tmp_path / "other")]
    gains = np.array(list(sides[0].values())) - np.array(list(sides[1].values()))
    assert tree["seeds"] == [0, 1, 2, 3, 4] and tree["overall"]["dice"]["mean"] == pytest.approx(gains.mean())
    expected = stats.t.interval(0.95, 4, gains.mean(), stats.sem(gains))
    assert tree["overall"]["dice_seeds"] == pytest.approx(expected)
    assert 'pretrain.name: A "none", B "hebbian"' in tree["settings"]
    assert tree["verdict"] == "too few to tell"  # two test cases
    assert not any("One seed each" in warning for warning in tree["warnings"])
    assert command("compare", five, tmp_path / "other" / "seed-0") == 2
    assert "holds several seeds" in capsys.readouterr().err


def test_other_seeds_are_refused(five, data, tmp_path, capsys):
    out = tmp_path / "other"
    assert command("train", data, "--out", out, *FLAGS, "--seeds", "2", "--seed", "7", "--split.seed", "0") == 0
    assert command("evaluate", out) == 0 and command("compare", five, out) == 2
    assert "seeds 0, 1, 2, 3, 4 against 7, 8" in capsys.readouterr().err


def test_the_labelled_cases_of_several_seeds_have_no_common_interval(five, tmp_path):
    copy = shutil.copytree(five, tmp_path / "five")
    summary = several_seeds.evaluate(copy, "labelled")
    assert np.isnan(summary.overall.ci_cases).all() and np.isfinite(summary.overall.ci_seeds).all()
    assert (copy / "metrics_labelled.json").exists()
    assert (copy / "metrics.json").read_bytes() == (five / "metrics.json").read_bytes()


def test_the_draw_of_test_cases_has_a_seed_of_its_own(data):
    cases = find_cases(data).cases
    drawn = [make_split(cases, SplitConfig(labels="2", seed=4), seed) for seed in range(5)]
    assert len({split.test for split in drawn}) == 1 and len({split.labelled for split in drawn}) > 1
    assert drawn[0].test == make_split(cases, SplitConfig(labels="2"), 4).test


def test_settings_of_several_seeds_differ_in_the_seed_alone():
    config = tiny_config(seed=3)
    settings = settings_of(config, [3, 4])
    assert [one.seed for one in settings.values()] == [3, 4]
    assert {one.split.seed for one in settings.values()} == {3}
    assert settings[3] == dataclasses.replace(settings[4], seed=3)


def test_what_does_not_hold_seeds_is_known(five, tmp_path):
    assert holds_seeds(five) and not holds_seeds(five / "seed-0") and not holds_seeds(tmp_path)
    assert is_finished(five / "seed-0") and not is_finished(tmp_path)


def test_a_run_is_finished_at_the_last_step_of_its_own_settings(five, tmp_path):
    run = shutil.copytree(five / "seed-0", tmp_path / "run")
    text = (run / "config.toml").read_text()
    assert text.count("\nsteps = 3\n") == 1
    (run / "config.toml").write_text(text.replace("\nsteps = 3\n", "\nsteps = 4\n"))
    assert not is_finished(run)
    (run / "config.toml").unlink()
    assert not is_finished(run)


def test_a_run_that_was_killed_before_its_last_file_is_not_finished(five, tmp_path):
    """Before it the published protocol writes its number, which a later call would never make up for."""
    run = shutil.copytree(five / "seed-0", tmp_path / "run")
    (run / "filters.npy").unlink()
    assert not is_finished(run)


def test_what_does_not_hold_seeds_has_no_page(tmp_path):
    with pytest.raises(InputError):
        several_seeds.report(tmp_path)
