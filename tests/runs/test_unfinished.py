"""An interrupted run says so wherever its numbers or masks appear, by the steps made and planned."""

import json

import pytest
from tests.old_runs import DATA, old_run

import nissl
from nissl import cli
from nissl.model import Model
from nissl.runs.folder import measured_steps, unfinished

TOLD = unfinished(12, 40)[0].text


@pytest.fixture
def run(tmp_path):
    return old_run(tmp_path, "interrupted")


def command(*arguments):
    return cli.run([str(argument) for argument in arguments])


def test_the_model_knows_its_steps(run):
    model = Model.load(run, "cpu")
    assert (model.steps, model.planned_steps) == (12, 40)


@pytest.mark.parametrize("made", [(40, 40), (41, 40), (None, 40), (1, None)])
def test_only_a_run_with_steps_left_is_unfinished(made):
    assert len(unfinished(39, 40)) == 1 and not unfinished(*made)


def test_its_numbers_say_so_and_those_of_the_finished_run_do_not(run, capsys):
    assert command("evaluate", run, "--data", DATA, "--json") == 0
    shown, stored = json.loads(capsys.readouterr().out), json.loads((run / "metrics.json").read_text())
    for tree in (shown, stored):
        assert (tree["steps"], tree["planned_steps"]) == (12, 40) and TOLD in tree["warnings"]
    nissl.train(DATA, run, resume=True)
    nissl.evaluate(run, device="cpu", data=DATA)
    stored = json.loads((run / "metrics.json").read_text())
    assert (stored["steps"], stored["planned_steps"]) == (40, 40) and "unfinished" not in stored["warning_codes"]


def test_its_masks_say_so(run, tmp_path, capsys):
    assert command("predict", run, DATA / "images", "--out", tmp_path / "masks") == 0
    record = json.loads((tmp_path / "masks" / "predictions.json").read_text())
    assert (record["steps"], record["planned_steps"]) == (12, 40)
    assert f"warning: {TOLD}" in capsys.readouterr().out.splitlines()


def test_its_page_says_so_measured_or_not(run):
    assert TOLD in nissl.report(run, DATA).read_text()
    nissl.evaluate(run, device="cpu", data=DATA)
    assert TOLD in nissl.report(run, DATA).read_text()


def test_numbers_of_before_the_end_stay_those_of_an_unfinished_run(run):
    nissl.evaluate(run, device="cpu", data=DATA)
    nissl.train(DATA, run, resume=True)
    assert measured_steps(run) == (12, 40) and TOLD in nissl.report(run, DATA).read_text()
    nissl.evaluate(run, device="cpu", data=DATA)
    assert measured_steps(run) == (40, 40)


def test_a_comparison_with_it_says_so(run, tmp_path, capsys):
    nissl.evaluate(run, device="cpu", data=DATA)
    finished = old_run(tmp_path)
    assert nissl.compare(finished, run).unfinished == {str(run): (12, 40)}
    assert command("compare", run, finished) == 0
    assert f"warning: {run}: {TOLD}" in capsys.readouterr().out


def test_the_log_tells_where_an_older_measurement_does_not(run):
    nissl.evaluate(run, device="cpu", data=DATA)
    tree = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps({k: v for k, v in tree.items() if k not in ("format", "steps")}))
    assert measured_steps(run) == (12, 40)
    (run / "log.jsonl").unlink()
    assert measured_steps(run) == (None, None)
