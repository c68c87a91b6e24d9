"""A method of somebody else's runs from the settings to a mask without a change of ours.

It is among METHODS (tests/conftest.py), so that every test over all methods holds for it: resume, determinism, NaN,
memory and several processes.
"""

import json

import pytest
from tests.tiny_data import FLAGS, pretrained, write_tiny
from tests.toy_method import NAME, Distillation
from tests.training.tiny import log_of

from nissl import api, cli
from nissl.errors import InputError
from nissl.methods import METHODS
from nissl.runs.checkpoint import load_checkpoint
from nissl.runs.folder import STATE
from nissl.runs.format import load_config


def test_its_options_are_its_own():
    assert METHODS.make(NAME, agreement=1.0, temperature=4.0) == Distillation(agreement=1.0, temperature=4.0)
    assert METHODS.owners("temperature") == [NAME]
    with pytest.raises(InputError, match=NAME):
        METHODS.make("cps", temperature=4.0)
    with pytest.raises(InputError, match="temperature"):
        METHODS.make(NAME, temperature=0.0)


def test_it_runs_from_the_command_line_to_a_mask_with_both_networks_pretrained(tmp_path):
    data, out = write_tiny(tmp_path / "data"), tmp_path / "run"
    flags = [*FLAGS, *pretrained("vae"), "--method", NAME, "--method.temperature", "3"]
    assert cli.run(["train", str(data), "--out", str(out), *flags]) == 0
    assert load_config(out / "config.toml").method == Distillation(temperature=3.0)
    state = load_checkpoint(out / STATE)[0]
    small, large = (state[f"learner.networks.{index}.head.weight"].shape[1] for index in (0, 1))
    assert (small, large) == (4, 8)
    assert json.loads((out / "pretrain.json").read_text())["images"] == 2 * 2 * 2  # networks, steps, images
    assert {"dice", "cross_entropy", "agreement"} == set(log_of(out)[0]["terms"])
    assert api.evaluate(out).overall.n_cases == 2
