"""What a method draws in the loop (noise, boxes, dropout) is new at each step and in each process."""

import copy
from dataclasses import replace

import pytest
import torch
from tests.training.tiny import NET, SURE, TRAIN, Recipe, make_stream, write_files

from nissl.methods import METHODS
from nissl.training.distributed import World

STEPS = 2
DRAW_THEMSELVES = {"mean-teacher", "uamt", "cct", "unimatch", "bcp"}
"""Methods that draw also where the network has no dropout."""


def outcome(method, batch):
    """The terms of a copy: with the same weights and the same batch they depend on nothing but what is drawn."""
    with torch.no_grad():
        terms = copy.deepcopy(method).train().losses(batch, 0.5)
    return tuple(term.item() for term in terms.values())


def outcomes(monkeypatch, recipe, rank, folder):
    """What the method draws in each step of the loop, seen by what it makes of one batch with its first weights."""
    batch, found = make_stream(recipe.files)[0], []

    class Observed(METHODS[recipe.method]):
        def losses(self, given, progress):
            with torch.random.fork_rng():
                found.append(outcome(start, batch))
            return super().losses(given, progress)

    monkeypatch.setitem(METHODS, recipe.method, Observed)
    trainer = recipe.trainer(folder)
    # Of another process, without the other processes.
    trainer.session = replace(trainer.session, world=World(rank, 1))
    start = copy.deepcopy(trainer.learner)
    start.__class__ = METHODS[recipe.method].__base__
    trainer.run()
    monkeypatch.undo()
    return start, batch, found


def draws(method, batch):
    """Whether the terms depend on the state of the generator."""
    seen = set()
    for seed in range(3):
        torch.manual_seed(seed)
        seen.add(outcome(method, batch))
    return len(seen) > 1


@pytest.mark.parametrize("net", [NET, SURE], ids=["dropout", "no dropout"])
@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_draws_differs_from_step_to_step_and_between_processes(monkeypatch, tmp_path, name, net):
    files = write_files(tmp_path / "data")
    recipe = Recipe(files, method=name, net=net, config=replace(TRAIN, steps=STEPS))
    found = []
    for rank in range(2):
        method, batch, these = outcomes(monkeypatch, recipe, rank, tmp_path / f"run {rank}")
        assert len(these) == STEPS
        found += these
    assert draws(method, batch) or (net is SURE and name not in DRAW_THEMSELVES)
    assert len(set(found)) == (2 * STEPS if draws(method, batch) else 1)
