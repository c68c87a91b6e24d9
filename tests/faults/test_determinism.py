"""Determinism: the same seed gives the same bits, whatever else draws random numbers."""

import random

import numpy as np
import pytest
import torch
from tests.train.tiny import Recipe, differing, log_of, state_of, write_files

from nissl.train.checkpoint import load_checkpoint
from nissl.train.run import WEIGHTS


@pytest.fixture
def files(tmp_path):
    return write_files(tmp_path / "data")


def test_f13_the_same_seed_gives_the_same_weights_and_another_does_not(files, tmp_path):
    def sha256(name, seed):
        Recipe(files, pretrain="hebbian", seed=seed).whole(tmp_path / name)
        return load_checkpoint(tmp_path / name / WEIGHTS)[1]["sha256"]

    first = sha256("first", 3)
    assert sha256("second", 3) == first
    assert sha256("other", 4) != first


def test_f15_draws_from_global_state_between_steps_change_nothing(files, tmp_path):
    def draw(step, batch):
        for _ in range(step + 1):
            random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002 - as careless code does
        torch.manual_seed(step)
        return batch

    recipe = Recipe(files)
    whole = recipe.whole(tmp_path / "whole")
    disturbed = recipe.trainer(tmp_path / "disturbed", draw)
    disturbed.run()
    assert differing(state_of(whole), state_of(disturbed)) == []
    assert log_of(tmp_path / "whole") == log_of(tmp_path / "disturbed")
