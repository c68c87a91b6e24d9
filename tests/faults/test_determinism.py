"""Determinism: the same seed gives the same bits, whatever else draws random numbers."""

import random
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.tiny_data import FLAGS, write_tiny
from tests.train.tiny import NET, TRAIN, Changed, Images, Recipe, crash_at, differing, log_of, state_of, write_files

from nissl import cli, nets
from nissl.errors import DataError
from nissl.methods import METHODS
from nissl.pretrain import PRETRAININGS
from nissl.train.checkpoint import load_checkpoint
from nissl.train.run import WEIGHTS

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


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("method", METHODS)
def test_f13_the_same_seed_gives_the_same_weights_with_every_method(files, tmp_path, method, count):
    with threads(count):
        hashes = [sha256(Recipe(files, method=method), tmp_path / name) for name in ("one", "two")]
        assert hashes[0] == hashes[1]
        assert sha256(Recipe(files, method=method, seed=4), tmp_path / "other seed") != hashes[0]


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("pretrain", PRETRAININGS)
def test_f13_the_same_seed_gives_the_same_weights_after_every_pretraining(files, tmp_path, pretrain, count):
    with threads(count):
        recipe = Recipe(files, pretrain=pretrain, config=SHORT)
        hashes = [sha256(recipe, tmp_path / name) for name in ("one", "two")]
        assert hashes[0] == hashes[1]


@pytest.mark.parametrize("network", nets.NETWORKS)
def test_f03_f13_every_network_resumes_bit_for_bit(tmp_path, network):
    """Images of 32 x 32: after four halvings there is something left to normalise."""
    settings = replace(NET, name=network)
    recipe = Recipe(write_files(tmp_path / "data", side=32), net=settings, config=replace(SHORT, save_every=2))
    whole = recipe.whole(tmp_path / "whole")
    with pytest.raises(DataError):
        recipe.trainer(tmp_path / "run", crash_at(3)).run()
    resumed = recipe.trainer(tmp_path / "run", resumed=True)
    resumed.resume()
    assert resumed.step == 2
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

    recipe = Recipe(files, method=method)
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
    nets_of_both = recipe.networks() + recipe.networks()
    for net, images in zip(nets_of_both, (Images(files), Changed(Images(files), draw))):
        recipe.pretraining().run(net, images)
    assert differing(*(net.state_dict() for net in nets_of_both)) == []
