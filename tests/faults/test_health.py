"""Training health: what is not finite, what does not fit, and who is killed on the way."""

import pytest
from tests.train.tiny import Recipe, differing, log_of, state_of, write_files

from nissl.errors import ResourceError
from nissl.train.checkpoint import load_checkpoint
from nissl.train.run import STATE, WEIGHTS


@pytest.fixture
def files(tmp_path):
    return write_files(tmp_path / "data")


@pytest.mark.parametrize("where", ["loss", "infinite loss", "gradient"])
def test_f36_a_step_without_a_finite_gradient_is_skipped_and_logged(files, tmp_path, monkeypatch, where):
    poison(monkeypatch, [4, 6, 7], where)
    states = {}

    def keep(step, batch):
        states[step] = {name: tensor.clone() for name, tensor in state_of(trainer).items()}
        return batch

    trainer = Recipe(files).trainer(tmp_path / "run", keep)
    trainer.run()
    for step in range(1, 19):  # before the first step the optimiser has no state
        skipped = step in (4, 6, 7)
        assert (differing(states[step], states[step + 1]) == []) == skipped
    assert all(tensor.isfinite().all() for tensor in state_of(trainer).values())
    for step, line in enumerate(log_of(tmp_path / "run")):
        assert line.get("skipped") == (list(trainer.stream.ids(step)) if step in (4, 6, 7) else None)
    assert load_checkpoint(tmp_path / "run" / WEIGHTS)[1]["step"] == 20


def test_f36_not_a_number_in_an_image_reaches_neither_weights_nor_running_statistics(files, tmp_path):
    def spoil(step, batch):
        if step in (3, 5):
            batch.images[0, 0, 2, 2] = float("nan") if step == 3 else float("inf")
        return batch

    trainer = Recipe(files).trainer(tmp_path / "run", spoil)
    trainer.run()
    assert all(tensor.isfinite().all() for tensor in state_of(trainer).values())
    assert trainer.average.n_averaged == 18
    assert [line["step"] for line in log_of(tmp_path / "run") if "skipped" in line] == [4, 6]


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_f36_three_in_a_row_stop_the_run_name_the_cases_and_leave_good_weights(files, tmp_path, monkeypatch, where):
    poison(monkeypatch, [8, 9, 10], where)
    recipe = Recipe(files)
    trainer = recipe.trainer(tmp_path / "run")
    with pytest.raises(ResourceError) as caught:
        trainer.run()
    ids = trainer.stream.ids(10)
    for part in ("step 11", *ids, "no finite loss", "3 steps in a row", "nissl check", "resume"):
        assert part in str(caught.value)
    assert caught.value.exit_code == 4
    assert all(tensor.isfinite().all() for tensor in state_of(trainer).values())
    assert load_checkpoint(tmp_path / "run" / STATE)[1]["step"] == 7
    # Once the fault is mended the run goes on as if it had not been there.
    monkeypatch.undo()
    resumed = recipe.trainer(tmp_path / "run", resumed=True)
    assert resumed.resume() is None
    resumed.run()
    assert differing(state_of(recipe.whole(tmp_path / "whole")), state_of(resumed)) == []


def test_f36_two_in_a_row_do_not_stop_the_run(files, tmp_path, monkeypatch):
    poison(monkeypatch, [2, 3, 5, 6, 8, 9])
    assert Recipe(files).whole(tmp_path / "run").step == 20
