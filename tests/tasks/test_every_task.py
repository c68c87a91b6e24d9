"""What holds for every task: the same bits again and after a resume, a measurement, a prediction of each image."""

import csv
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from tests.tiny_data import tiny_config, write_tiny
from tests.training.tiny import differing_files, log_of

from nissl import api, cli, several_seeds
from nissl.bench import runner
from nissl.bench.analysis.tables import Versus
from nissl.bench.grid.grid import Cell
from nissl.bench.run import workers
from nissl.bench.run.cell import make
from nissl.bench.run.cost import Cost
from nissl.errors import InputError, ResourceError
from nissl.evaluation.text import comparison_text
from nissl.pretrain import PRETRAININGS
from nissl.runs.folder import STATE, WEIGHTS
from nissl.runs.format import load_config
from nissl.tasks.rows import labels_of
from nissl.tasks.settings import TASKS
from nissl.tasks.task import task_of
from nissl.training.session import Control
from nissl.training.signals import Interrupted

GRID = """\
budgets = ["2"]
seeds = 2
[data.tiny]
path = "{data}"
[settings]
data = {{ size = [32] }}
net = {{ widths = [4, 8], dropout = [0.0, 0.1] }}
train = {{ steps = 2, batch = 2 }}
task = {{ name = "{task}" }}
[[arms]]
name = "plain"
pretrain = "none"
[[arms]]
name = "filters"
pretrain = "unit-norm"
"""


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


def test_its_page_has_the_primary_metric_and_a_picture_of_each_test_case(run, config):
    task = task_of(config.task)
    found = api.evaluate(run).to_tree()["overall"]
    page = api.report(run).read_text()
    value = task.primary.text(found[task.primary.name], found.get("unit", ""))
    assert f">{value}</td>" in page and f"<th>{task.primary.title}</th>" in page
    assert page.count('alt="Reference and prediction of') == 2 and "Not on this page" not in page


def test_its_rows_are_read_back_from_metrics_csv(run, config):
    task = task_of(config.task)
    api.evaluate(run)
    text = (run / "metrics.csv").read_text()
    rows = task.columns.from_csv(text)
    assert task.columns.to_csv(rows) == text
    assert {row.case for row in rows} == {path.stem for path in (run / "predictions").iterdir()}
    for metric in task.by_case:
        assert np.isfinite(task.columns.matrix(rows, metric.name, labels_of(rows))).any()


def test_two_runs_are_compared_by_its_metrics(run, config, data, tmp_path):
    other = api.train(data, tmp_path / "other", replace(config, seed=1))
    measured = [api.evaluate(each).to_tree()["overall"] for each in (run, other)]
    found, primary = api.compare(run, other), task_of(config.task).primary
    assert found.overall.values == pytest.approx([each[primary.name] for each in measured])
    assert found.overall.primary.mean == pytest.approx(found.overall.values[0] - found.overall.values[1])
    assert found.to_tree()["overall"][f"{primary.name}_a"] == found.overall.values[0]
    assert primary.title in comparison_text(found)
    assert api.compare(run, run).overall.primary.mean == 0


def test_several_seeds_are_summarised_by_its_metrics(config, data, tmp_path, capsys):
    primary = task_of(config.task).primary
    short = replace(config, pretrain=PRETRAININGS.make("none"), train=replace(config.train, steps=2))
    several_seeds.train(data, tmp_path / "two", short, seeds=2)
    assert cli.run(["evaluate", str(tmp_path / "two")]) == 0
    found = json.loads((tmp_path / "two" / "metrics.json").read_text())
    assert found["overall"][primary.name] == pytest.approx(np.mean(list(found["runs"].values())))
    assert primary.title in capsys.readouterr().out
    page = several_seeds.report(tmp_path / "two").read_text()
    assert f">{primary.number(found['overall'][primary.name])}</td>" in page and "95 % over seeds" in page


def test_a_bench_compares_arms_by_its_metrics(config, data, tmp_path, monkeypatch):
    def here(request, token, threads):  # another process does not know the task of the tests
        make(Cell.from_json(json.loads(request)["cell"]), token.parent)

    monkeypatch.setattr(workers, "run_cell", here)
    monkeypatch.setattr(
        runner, "measure_costs", lambda out, cells, threads: {(c.data, c.arm): Cost(c.data, c.arm) for c in cells}
    )
    task = task_of(config.task)
    (tmp_path / "grid.toml").write_text(GRID.format(data=data, task=config.task.name))
    outcome = runner.bench(tmp_path / "grid.toml", tmp_path / "out")
    assert not outcome.failed
    table = list(csv.DictReader(outcome.table.read_text().splitlines()))
    for row in table:
        measured = json.loads((tmp_path / "out" / row["run"] / "metrics.json").read_text())["overall"]
        assert float(row[task.primary.name]) == measured[task.primary.name]
    page = outcome.page.read_text()
    mean = task.primary.scale * np.mean([float(row[task.primary.name]) for row in table if row["arm"] == "plain"])
    assert f"<td>{mean:.1f}</td>" in page and f"{task.primary.title} is the mean" in page


def test_an_arm_with_better_values_of_the_primary_metric_is_called_better(config):
    """Whether more or less of it is better."""
    task = task_of(config.task)
    for gain, outcome in ((0.1, "helped"), (-0.1, "hurt")):
        versus = Versus(task.primary, 6, task.primary.sign * gain, (math.nan,) * 2, (math.nan,) * 2, 0.01, 0.01)
        assert versus.verdict == outcome


def test_runs_of_two_tasks_are_not_compared(run, data, tmp_path):
    kinds = [name for name in TASKS if name != load_config(run / "config.toml").task.name]
    other = api.train(data, tmp_path / "other", replace(tiny_config(pretrain="none"), task=TASKS.make(kinds[0])))
    for each in (run, other):
        api.evaluate(each)
    with pytest.raises(InputError) as caught:
        api.compare(run, other)
    assert kinds[0] in caught.value.found
