import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.training.tiny import (
    NET,
    PRETRAIN,
    TRAIN,
    Recipe,
    crash_at,
    differing,
    log_of,
    make_stream,
    poison,
    write_files,
)
from torch.nn.utils import parametrize

from nissl.errors import DataError, InputError
from nissl.methods import METHODS
from nissl.methods.supervised import Supervised
from nissl.nets import factory
from nissl.pretrain import PRETRAININGS
from nissl.runs.checkpoint import load_checkpoint, plain_state
from nissl.runs.folder import STATE, WEIGHTS
from nissl.schedule import learning_rate

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def files(tmp_path):
    return write_files(tmp_path / "data")


# Resume


def test_resuming_a_finished_run_changes_nothing(files, tmp_path):
    recipe = Recipe(files)
    recipe.whole(tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    again = recipe.trainer(tmp_path / "run", resumed=True)
    again.resume()
    again.run()
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_a_run_killed_before_its_first_checkpoint_starts_its_log_anew(files, tmp_path):
    recipe = Recipe(files)
    with pytest.raises(DataError):
        recipe.trainer(tmp_path / "run", crash_at(3)).run()
    recipe.whole(tmp_path / "run")
    assert [line["step"] for line in log_of(tmp_path / "run")] == list(range(1, 21))


def test_resume_without_a_checkpoint_is_refused_by_name(files, tmp_path):
    with pytest.raises(DataError) as caught:
        Recipe(files).trainer(tmp_path / "run", resumed=True).resume()
    assert caught.value.where == str(tmp_path / "run" / STATE)


def test_a_run_goes_on_with_another_decay_but_not_with_another_optimiser(files, tmp_path):
    Recipe(files).whole(tmp_path / "run")
    changed = Recipe(files, config=replace(TRAIN, weight_decay=0.9)).trainer(tmp_path / "run", resumed=True)
    changed.resume()
    assert {group["weight_decay"] for group in changed.optimiser.param_groups} == {0.9, 0.0}
    other = Recipe(files, config=replace(TRAIN, optimiser="sgd")).trainer(tmp_path / "run", resumed=True)
    with pytest.raises(InputError) as refused:
        other.resume()
    assert refused.value.where == str(tmp_path / "run" / STATE)


# Determinism


def test_a_run_leaves_the_global_random_states_alone(files, tmp_path):
    def states():
        numpy_state = np.random.get_state()  # noqa: NPY002 - what the user's own code may draw from
        return torch.get_rng_state().tolist(), numpy_state[1].tolist(), numpy_state[2], random.getstate()

    trainer = Recipe(files).trainer(tmp_path / "run")
    torch.manual_seed(5)
    before = states()
    trainer.run()
    assert states() == before


# Averaged weights


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_the_averaged_weights_are_the_stated_average(files, tmp_path, monkeypatch, decay):
    seen = []

    class Watched(Supervised):
        def after_step(self):
            seen.append({name: tensor.double() for name, tensor in self.predictor().state_dict().items()})

    monkeypatch.setitem(METHODS, "supervised", Watched)
    trainer = Recipe(files, config=replace(TRAIN, average=decay)).whole(tmp_path / "run")
    expected = seen[0]
    for count, weights in enumerate(seen[1:], start=1):
        share = min(decay, count / (count + 9))
        expected = {name: share * expected[name] + (1 - share) * weights[name] for name in weights}
    assert len(seen) == 20
    for name, tensor in trainer.average.module.state_dict().items():
        exact = seen[-1][name] if name.endswith("num_batches_tracked") else expected[name]
        torch.testing.assert_close(tensor.double(), exact.double(), rtol=1e-5, atol=1e-6)
    saved = load_checkpoint(tmp_path / "run" / WEIGHTS)[0]
    assert differing(saved, trainer.average.module.state_dict()) == []
    if decay == 0:
        assert differing(saved, trainer.learner.predictor().state_dict()) == []


def test_the_log_tells_what_was_done(files, tmp_path):
    trainer = Recipe(files).whole(tmp_path / "run")
    for step, line in enumerate(json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()):
        assert line["step"] == step + 1
        assert line["loss"] == pytest.approx(sum(line["terms"].values()))
        assert line["learning_rate"] == learning_rate(step, trainer.stage.train)
        assert line["gradient"] > 0 and line["seconds"] >= 0 and "skipped" not in line
    losses = [line["loss"] for line in log_of(tmp_path / "run")]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


def test_nothing_is_in_the_log_that_json_does_not_know(files, tmp_path, monkeypatch):
    poison(monkeypatch, [4])
    Recipe(files).whole(tmp_path / "run")

    def refuse(word):
        raise AssertionError(word)

    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line, parse_constant=refuse)["loss"] is None for line in lines] == [n == 4 for n in range(20)]


# Steps without a finite gradient


# Stopping


# Plain weights


@pytest.mark.parametrize("pretrain", PRETRAININGS)
@pytest.mark.parametrize("dims", [2, 3])
def test_plain_weights_compute_the_same_and_leave_the_trained_network_as_it_is(tmp_path, pretrain, dims):
    recipe = Recipe(
        write_files(tmp_path / "data", dims),
        pretrain=pretrain,
        options=PRETRAIN | {"handover": "unit-norm"},
        config=replace(TRAIN, steps=4),
    )
    trainer = recipe.trainer(tmp_path / "run")
    trainer.run()
    trained = trainer.learner.predictor().eval()
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    images = make_stream(recipe.files)[0].images
    expected = trained(images)

    plain = factory.build(NET, dims, 1, 2, seed=99).eval()
    plain.load_state_dict(plain_state(trained))
    torch.testing.assert_close(plain(images), expected, rtol=1e-6, atol=1e-6)  # logits are near 8: three roundings
    assert differing(trained.state_dict(), before) == []
    assert torch.equal(trained(images), expected)
    kept = any(map(parametrize.is_parametrized, trained.modules()))
    assert kept == (pretrain in ("unit-norm", "hebbian", "shuffled", "untrained"))
    trainer.stage = replace(trainer.stage, train=replace(trainer.stage.train, steps=6))
    trainer.run()
    assert differing(trainer.learner.state_dict(), {f"networks.0.{name}": t for name, t in before.items()}) != []

    saved = factory.build(NET, dims, 1, 2, seed=99).eval()
    saved.load_state_dict(load_checkpoint(tmp_path / "run" / WEIGHTS)[0])
    torch.testing.assert_close(saved(images), trainer.average.module.eval()(images), rtol=1e-6, atol=1e-6)
