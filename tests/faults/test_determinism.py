"""Determinism: the same seed gives the same bits, whatever else draws random numbers."""

import json
import random
import re
import tempfile
import warnings
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from tests.five_seeds import command, five_seeds, read, without_split
from tests.members import made
from tests.pretrain.driver import run
from tests.tiny_data import FLAGS, write_tiny
from tests.training.tiny import (
    CPU,
    NET,
    TRAIN,
    Changed,
    Recipe,
    crash_at,
    differing,
    log_of,
    make_images,
    state_of,
    write_files,
)

from nissl import cli
from nissl.errors import DataError
from nissl.methods import METHODS
from nissl.nets.settings import NETWORKS
from nissl.pretrain import PRETRAININGS
from nissl.runs.checkpoint import load_checkpoint
from nissl.runs.folder import WEIGHTS
from nissl.runs.format import load_config
from nissl.training.session import Session

SHORT = replace(TRAIN, steps=4)


@pytest.fixture
def files(tmp_path):
    return write_files(tmp_path / "data")


def sha256(recipe, folder):
    recipe.whole(folder)
    return load_checkpoint(folder / WEIGHTS)[1]["sha256"]


@contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.use_deterministic_algorithms(False)


def once_and_with_threads(members, threaded):
    """Each member on one thread; some on four as well, and all of them where the tests run in full."""
    others = {name: () if name in threaded else pytest.mark.full for name in members}
    return [(name, 1) for name in members] + [pytest.param(name, 4, marks=mark) for name, mark in others.items()]


@pytest.mark.parametrize(("method", "count"), once_and_with_threads(METHODS, {"supervised", "unimatch"}))
def test_f13_the_same_seed_gives_the_same_weights_with_every_method(files, tmp_path, method, count):
    with threads(count):
        hashes = [sha256(Recipe(files, method=method, config=SHORT), tmp_path / name) for name in ("one", "two")]
        assert hashes[0] == hashes[1]
        assert sha256(Recipe(files, method=method, config=SHORT, seed=4), tmp_path / "other seed") != hashes[0]


@pytest.mark.parametrize(("pretrain", "count"), once_and_with_threads(PRETRAININGS, {"hebbian", "vae"}))
def test_f13_the_same_seed_gives_the_same_weights_after_every_pretraining(files, tmp_path, pretrain, count):
    with threads(count):
        recipe = Recipe(files, pretrain=pretrain, config=SHORT)
        hashes = [sha256(recipe, tmp_path / name) for name in ("one", "two")]
        assert hashes[0] == hashes[1]


@pytest.mark.parametrize("network", NETWORKS)
def test_f03_f13_every_network_resumes_bit_for_bit(tmp_path, network):
    """Images of 32 x 32: after four halvings there is something left to normalise."""
    settings = made(NETWORKS, network, widths=NET.widths, dropout=NET.dropout)
    recipe = Recipe(write_files(tmp_path / "data", side=32), net=settings, config=replace(TRAIN, steps=2, save_every=1))
    whole = recipe.whole(tmp_path / "whole")
    with pytest.raises(DataError):
        recipe.trainer(tmp_path / "run", crash_at(1)).run()
    resumed = recipe.trainer(tmp_path / "run", resumed=True)
    resumed.resume()
    assert resumed.step == 1
    resumed.run()
    assert differing(state_of(whole), state_of(resumed)) == []


def test_f13_without_the_mode_the_report_says_that_it_is_not_exact(tmp_path):
    data = write_tiny(tmp_path / "data")
    for flag, words in (("--deterministic", "the same seed gives the same bits"), ("--no-deterministic", "not exact")):
        out = tmp_path / flag.strip("-")
        assert cli.run(["train", str(data), "--out", str(out), *FLAGS, flag]) == 0
        assert cli.run(["report", str(out)]) == 0
        assert words in (out / "report.html").read_text()


@pytest.mark.parametrize("method", METHODS)
def test_f15_draws_from_global_state_between_steps_change_nothing(files, tmp_path, method):
    def draw(step, batch):
        for _ in range(step + 1):
            random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002 - as careless code does
        torch.manual_seed(step)
        return batch

    recipe = Recipe(files, method=method, config=SHORT)
    whole = recipe.whole(tmp_path / "whole")
    disturbed = recipe.trainer(tmp_path / "disturbed", draw)
    disturbed.run()
    assert differing(state_of(whole), state_of(disturbed)) == []
    assert log_of(tmp_path / "whole") == log_of(tmp_path / "disturbed")


@pytest.mark.parametrize("pretrain", PRETRAININGS)
def test_f15_draws_from_global_state_change_nothing_in_any_pretraining(files, tmp_path, pretrain):
    def draw(step, batch):
        torch.manual_seed(step), torch.rand(step + 1), np.random.rand()  # noqa: NPY002 - as careless code does
        return batch

    recipe = Recipe(files, pretrain=pretrain)
    nets_of_both = [net for _ in range(2) for net in recipe.networks().values()]
    for net, images in zip(nets_of_both, (make_images(files), Changed(make_images(files), draw))):
        place = Session(Path(tempfile.mkdtemp(dir=tmp_path)), CPU)
        run(recipe.pretraining(net), images, place)
    assert differing(*(net.state_dict() for net in nets_of_both)) == []


# Seeds


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    folder = tmp_path_factory.mktemp("series")
    return five_seeds(without_split(folder / "data"), folder / "five")


def test_f16_five_seeds_are_five_ordinary_runs_on_the_same_test_cases(five):
    runs = [five / f"seed-{seed}" for seed in range(5)]
    splits = [read(run / "split.json") for run in runs]
    assert {path.name for path in five.iterdir() if path.is_dir()} == {run.name for run in runs}
    assert len({tuple(split["test"]) for split in splits}) == 1 and {split["test_seed"] for split in splits} == {0}
    assert len({tuple(split["labelled"]) for split in splits}) > 1, "each seed draws its masks"
    assert [load_config(run / "config.toml").seed for run in runs] == [0, 1, 2, 3, 4]
    assert command("evaluate", runs[3]) == 0 and command("report", runs[3]) == 0


def test_f16_mean_and_both_intervals_are_those_of_the_runs(five, capsys):
    tree = read(five / "metrics.json")
    dice = [read(five / f"seed-{seed}" / "metrics.json")["overall"]["dice"] for seed in range(5)]
    assert list(tree["runs"].values()) == dice and tree["overall"]["dice"] == pytest.approx(np.mean(dice))
    assert tree["overall"]["dice_ci_seeds"] == pytest.approx(stats.t.interval(0.95, 4, np.mean(dice), stats.sem(dice)))
    assert tree["overall"]["dice_sd"] == pytest.approx(np.std(dice, ddof=1))
    low, high = tree["overall"]["dice_ci_cases"]
    assert low < tree["overall"]["dice"] < high and tree["n_cases"] == 2
    assert command("evaluate", five) == 0
    shown = capsys.readouterr().out
    assert "mean over 5 seeds, 2 cases" in shown and "95 % over seeds" in shown and "95 % over cases" in shown
    assert "warning: Only 2 test cases" in shown and all(f"{value:.3f}" in shown for value in dice)
    assert command("evaluate", five, "--json") == 0
    assert json.loads(capsys.readouterr().out)["overall"] == tree["overall"]


def test_f16_the_page_claims_no_single_seed_and_links_to_every_run(five):
    page = (five / "report.html").read_text()
    tree = read(five / "metrics.json")
    low, high = tree["overall"]["dice_ci_seeds"]
    assert f"mean over 5 seeds: 95 % interval {low:.2f} to {high:.2f} over seeds" in page
    links = re.findall(r'href="([^"]*)"', page)
    assert links == [f"seed-{seed}/report.html" for seed in range(5)]
    assert all((five / link).is_file() for link in links) and "nor the best" in page
    assert "Content-Security-Policy" in page and "<script" not in page
    for seed in range(5):
        assert f"one run with one seed</b> ({seed})" in (five / f"seed-{seed}" / "report.html").read_text()


# A GPU


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is at hand")
def test_f14_the_same_seed_on_a_gpu_gives_the_same_weights_or_the_operation_is_named(tmp_path):
    data, told = write_tiny(tmp_path / "data"), []
    for name in ("one", "two"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert command("train", data, "--out", tmp_path / name, *FLAGS, "--device", "cuda") == 0
        told += [str(warning.message) for warning in caught]
    hashes = {load_checkpoint(tmp_path / name / WEIGHTS)[1]["sha256"] for name in ("one", "two")}
    assert len(hashes) == 1 or any("does not have a deterministic" in text for text in told)
