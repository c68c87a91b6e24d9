"""The optimisers without torch's compiler: the same weights and states, and a process that never loads it."""

import os
import subprocess
import sys

import pytest
import torch
from tests.tiny_data import write_tiny

from nissl import optimisers


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_weights_and_states_are_those_of_torch(name):
    def trained(kind):
        weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
        optimiser = kind([{"params": [weight]}], lr=0.1, weight_decay=0.01)
        for step in range(5):
            if step == 3:  # as in a resumed training
                state = optimiser.state_dict()
                optimiser = kind([weight], lr=0.5)
                optimiser.load_state_dict(state)
            optimiser.zero_grad()
            (weight.sin() ** 2).sum().backward()
            optimiser.step()
        assert weight.requires_grad
        return weight, optimiser.state_dict()["state"]

    weight, state = trained(getattr(optimisers, name))
    expected, its_state = trained(getattr(torch.optim, name))
    assert torch.equal(weight, expected)
    assert state.keys() == its_state.keys()
    for key, value in state[0].items() if state else ():
        assert (value is None) == (its_state[0][key] is None)
        assert value is None or torch.equal(value, its_state[0][key])


def test_a_training_does_not_load_the_compiler(tmp_path):
    """One process for all: a compiler that the first has loaded is there after the last."""
    code = """
import sys
from pathlib import Path
from nissl import api
from tests.tiny_data import tiny_config

for pretrain in ("none", "hebbian", "vae"):
    api.train(Path("data"), Path(pretrain), tiny_config(pretrain=pretrain))
    if "torch" not in sys.modules or "torch._dynamo" in sys.modules:
        sys.exit(f"with {pretrain}")
"""
    write_tiny(tmp_path / "data")
    places = os.pathsep.join(sys.path)
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": places})
