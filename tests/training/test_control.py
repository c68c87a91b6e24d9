"""Who watches a training may stop it, from any thread; the first stage has the workers and the precision of the run."""

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from tests.tiny_data import tiny_config, write_tiny
from tests.training.tiny import differing, log_of

from nissl import api
from nissl.runs.checkpoint import load_checkpoint, load_newest
from nissl.runs.folder import STATE, WEIGHTS, checkpoint_of
from nissl.training.session import Control
from nissl.training.signals import Interrupted

STAGES = {"pre-training": checkpoint_of, "training": lambda run, network: run / STATE}


def settings(pretrain, **train):
    config = tiny_config(pretrain=pretrain, steps=6)
    pretraining = dataclasses.replace(config.pretrain, steps=6)
    return dataclasses.replace(config, pretrain=pretraining, train=dataclasses.replace(config.train, **train))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny") / "data")


@pytest.fixture(scope="module", params=["hebbian", "vae"])
def whole(request, data, tmp_path_factory):
    """A run without interruption."""
    return api.train(data, tmp_path_factory.mktemp("runs") / request.param, settings(request.param)), request.param


def bits(run, path=WEIGHTS):
    return load_checkpoint(run / path)[0]


@pytest.mark.parametrize("stage", STAGES)
def test_another_thread_stops_a_stage_and_the_resumed_run_ends_with_the_same_bits(data, tmp_path, whole, stage):
    run, pretrain = whole
    reached, stop = threading.Event(), threading.Event()

    @contextmanager
    def track(total, what, start=0):
        steps = iter(range(start + 1, total + 1))

        def advance(message):
            if next(steps) == 3 and what.startswith(stage):
                reached.set()
                assert stop.wait(60)

        yield advance

    with ThreadPoolExecutor(1) as pool:
        control = Control(should_stop=stop.is_set, track=track)
        training = pool.submit(api.train, data, tmp_path / "run", settings(pretrain), control=control)
        assert reached.wait(120)
        stop.set()
        assert isinstance(training.exception(), Interrupted)
    _, facts, fault = load_newest(STAGES[stage](tmp_path / "run", 0))
    assert facts["step"] == 3 and fault is None
    assert (tmp_path / "run" / STATE).exists() == (stage == "training")
    api.train(data, tmp_path / "run", resume=True)
    assert differing(bits(tmp_path / "run"), bits(run)) == []
    assert log_of(tmp_path / "run") == log_of(run)


def test_a_training_that_is_not_asked_to_stop_asks_after_each_step(data, tmp_path):
    asked = []
    control = Control(should_stop=lambda: bool(asked.append(1)))
    api.train(data, tmp_path / "run", settings("hebbian"), control=control)
    assert len(asked) == 6 + 1 + 6  # once more after the pre-training has finished


def test_the_first_stage_has_the_same_bits_with_worker_processes(data, tmp_path, whole):
    run, pretrain = whole
    config = settings(pretrain)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, workers=2))
    other = api.train(data, tmp_path / "run", config)
    for path in (checkpoint_of(other, 0).relative_to(other), WEIGHTS):
        assert differing(bits(other, path), bits(run, path)) == []


def test_the_first_stage_runs_in_bfloat16(data, tmp_path, whole):
    run, pretrain = whole
    other = api.train(data, tmp_path / "run", settings(pretrain, precision="bfloat16"))
    path = checkpoint_of(other, 0).relative_to(other)
    half, full = bits(other, path), bits(run, path)
    assert all(tensor.isfinite().all() for tensor in half.values() if tensor.is_floating_point())
    learnt = [name for name in differing(half, full) if name.endswith("weight")]
    assert learnt and all(half[name].dtype == torch.float32 for name in learnt)
    largest = max(float((half[name] - full[name]).abs().max() / full[name].abs().max()) for name in learnt)
    assert largest < 0.5  # near, all the same
