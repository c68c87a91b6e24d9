"""What holds for every task: the same bits again and after a resume, a measurement, a prediction of each image."""

import json
import math
from dataclasses import replace

import pytest
from tests.tiny_data import tiny_config, write_tiny
from tests.training.tiny import differing_files, log_of

from nissl import api
from nissl.errors import ResourceError
from nissl.runs.folder import STATE, WEIGHTS
from nissl.tasks.settings import TASKS
from nissl.training.session import Control
from nissl.training.signals import Interrupted


@pytest.fixture(scope="module", params=TASKS)
def config(request):
    """Short settings of a task."""
    return replace(tiny_config(), task=TASKS.make(request.param))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Images with masks, which other tasks take for pictures."""
    return write_tiny(tmp_path_factory.mktemp("tiny") / "data")


@pytest.fixture(scope="module")
def run(config, data, tmp_path_factory):
    """A run without interruption."""
    return api.train(data, tmp_path_factory.mktemp("runs") / "run", config)


def test_the_same_settings_give_the_same_bits(run, config, data, tmp_path):
    again = api.train(data, tmp_path / "again", config)
    assert not differing_files(run, again, (WEIGHTS, STATE))


def test_a_run_that_is_stopped_and_resumed_ends_with_the_same_bits(run, config, data, tmp_path):
    asked = iter(range(1000))
    with pytest.raises(Interrupted):
        api.train(data, tmp_path / "run", config, control=Control(should_stop=lambda: next(asked) == 4))
    api.train(data, tmp_path / "run", config, resume=True)
    assert not differing_files(run, tmp_path / "run", (WEIGHTS, STATE))
    assert log_of(tmp_path / "run") == log_of(run)


def test_a_loss_that_is_not_finite_ends_the_training(config, data, tmp_path, monkeypatch):
    kind = TASKS[config.task.name]

    class Poisoned(kind):
        def losses(self, outputs, targets, loss):
            return {name: term * math.nan for name, term in super().losses(outputs, targets, loss).items()}

    monkeypatch.setitem(TASKS, config.task.name, Poisoned)
    with pytest.raises(ResourceError):
        api.train(data, tmp_path / "run", replace(config, train=replace(config.train, steps=60)))


def test_it_is_measured_by_its_primary_metric(run, config):
    summary = api.evaluate(run).to_tree()
    primary = TASKS[config.task.name].metrics[0].name
    stored = json.loads((run / "metrics.json").read_text())
    assert stored["overall"][primary] == summary["overall"][primary] and math.isfinite(summary["overall"][primary])
    assert len(list((run / "predictions").iterdir())) == stored["cases"] == 2


def test_each_image_gets_a_prediction_in_its_format(run, data, tmp_path):
    result = api.predict(run, data / "images", tmp_path / "out")
    assert len(result.written) == 8 and not result.failed
