import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.train.tiny import (
    NET,
    PRETRAIN,
    TRAIN,
    Recipe,
    crash_at,
    differing,
    log_of,
    make_stream,
    state_of,
    write_files,
)
from torch.nn.utils import parametrize

from nissl import nets
from nissl.errors import DataError, ResourceError
from nissl.methods import METHODS
from nissl.methods.supervised import Supervised
from nissl.pretrain import PRETRAININGS
from nissl.train import loop
from nissl.train.checkpoint import load_checkpoint
from nissl.train.loop import Interrupted, plain_state
from nissl.train.run import STATE, WEIGHTS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def files(tmp_path):
    return write_files(tmp_path / "data")


def crash_and_resume(recipe, folder):
    """Seven steps that are saved, two that are not, a crash; then a new trainer that goes on to the end."""
    with pytest.raises(DataError, match="gone"):
        recipe.trainer(folder, crash_at(9)).run()
    assert [line["step"] for line in log_of(folder)] == list(range(1, 10))
    with (folder / "log.jsonl").open("ab") as log:
        log.write(b'\x00\xff\n{"step": "?"}\n[]\n{"step": 10, "loss": 0.1')
    resumed = recipe.trainer(folder, resumed=True)
    assert resumed.resume() is None
    assert resumed.step == 7
    resumed.run()
    return resumed


def require_equal_runs(recipe, folder):
    whole = recipe.whole(folder / "whole")
    resumed = crash_and_resume(recipe, folder / "resumed")
    assert differing(state_of(whole), state_of(resumed)) == []
    assert log_of(folder / "resumed") == log_of(folder / "whole")
    assert [line["step"] for line in log_of(folder / "whole")] == list(range(1, 21))
    for name in (WEIGHTS, STATE):
        (ours, facts), (theirs, others) = (load_checkpoint(folder / run / name) for run in ("whole", "resumed"))
        assert differing(ours, theirs) == [] and facts == others and facts["step"] == 20


# Resume


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("method", METHODS)
def test_f03_f04_every_method_resumes_bit_for_bit(tmp_path, method, dims):
    require_equal_runs(Recipe(write_files(tmp_path / "data", dims), method=method), tmp_path)


@pytest.mark.parametrize("handover", ["fold", "unit-norm"])
@pytest.mark.parametrize("pretrain", PRETRAININGS)
def test_f04_every_pretraining_resumes_bit_for_bit(files, tmp_path, pretrain, handover):
    settings = replace(PRETRAIN, handover=handover)
    require_equal_runs(Recipe(files, pretrain=pretrain, pretrain_config=settings), tmp_path)


def test_f04_pretraining_in_3d_resumes_bit_for_bit(tmp_path):
    settings = replace(PRETRAIN, handover="unit-norm")
    recipe = Recipe(write_files(tmp_path / "data", 3), pretrain="hebbian", pretrain_config=settings)
    require_equal_runs(recipe, tmp_path)


def test_f04_momentum_resumes_bit_for_bit(files, tmp_path):
    require_equal_runs(Recipe(files, config=replace(TRAIN, optimiser="sgd", schedule="step", clip=0)), tmp_path)


def test_f03_f05_worker_processes_change_nothing_across_a_resume(files, tmp_path):
    alone = Recipe(files).whole(tmp_path / "alone")
    resumed = crash_and_resume(Recipe(files, workers=2), tmp_path / "resumed")
    assert differing(state_of(alone), state_of(resumed)) == []
    assert log_of(tmp_path / "resumed") == log_of(tmp_path / "alone")


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


@pytest.mark.parametrize("saves", range(1, 9))
def test_f01_a_kill_during_any_write_of_a_checkpoint_resumes_to_the_same_end(files, tmp_path, monkeypatch, saves):
    """Each save makes two files and a second name: three renames."""
    recipe = Recipe(files, config=replace(TRAIN, steps=6, save_every=2))
    whole = recipe.whole(tmp_path / "whole")
    done, rename = [], Path.replace

    def killed(self, target):
        done.append(target)
        if len(done) == saves:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        recipe.trainer(tmp_path / "run").run()
    monkeypatch.undo()
    resumed = recipe.trainer(tmp_path / "run", resumed=True)
    if (tmp_path / "run" / STATE).exists():
        assert resumed.resume() is None
        assert resumed.step in (2, 4)
    else:
        assert saves <= 2
    resumed.run()
    assert differing(state_of(whole), state_of(resumed)) == []
    assert log_of(tmp_path / "run") == log_of(tmp_path / "whole")
    ours, theirs = (load_checkpoint(tmp_path / run / WEIGHTS)[0] for run in ("run", "whole"))
    assert differing(ours, theirs) == []


def test_f06_a_damaged_state_gives_way_to_the_one_before_which_is_kept_until_a_good_one_is_there(files, tmp_path):
    recipe, folder = Recipe(files), tmp_path / "run"
    whole = recipe.whole(tmp_path / "whole")
    with pytest.raises(DataError):
        recipe.trainer(folder, crash_at(16)).run()
    state, previous = folder / STATE, (folder / STATE).with_name("previous.state.safetensors")
    altered = bytearray(state.read_bytes())
    altered[-3] ^= 1
    state.write_bytes(altered)
    good = previous.read_bytes()

    resumed = recipe.trainer(folder, crash_at(15), resumed=True)
    warning = resumed.resume()
    for part in (str(state), "checksum differs", "the checkpoint before it, of step 7, is used"):
        assert part in warning
    with pytest.raises(DataError):
        resumed.run()
    assert load_checkpoint(state)[1]["step"] == 14
    assert previous.read_bytes() == good
    again = recipe.trainer(folder, resumed=True)
    assert again.resume() is None
    again.run()
    assert differing(state_of(whole), state_of(again)) == []
    assert load_checkpoint(previous)[1]["step"] == 14


def test_f09_another_torch_version_is_named(files, tmp_path, monkeypatch):
    recipe = Recipe(files)
    recipe.whole(tmp_path / "run")
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    warning = recipe.trainer(tmp_path / "run", resumed=True).resume()
    monkeypatch.undo()
    assert torch.__version__ in warning and "9.9.9" in warning and "not bit for bit" in warning


def test_resume_without_a_checkpoint_is_refused_by_name(files, tmp_path):
    with pytest.raises(DataError, match=r"state\.safetensors\n  found: no such file"):
        Recipe(files).trainer(tmp_path / "run", resumed=True).resume()


# Determinism


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
        assert differing(saved, trainer.method.predictor().state_dict()) == []


def test_the_log_tells_what_was_done(files, tmp_path):
    trainer = Recipe(files).whole(tmp_path / "run")
    for step, line in enumerate(json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()):
        assert line["step"] == step + 1
        assert line["loss"] == pytest.approx(sum(line["terms"].values()))
        assert line["learning_rate"] == loop.learning_rate(step, trainer.config)
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


def poison(monkeypatch, steps, where="loss"):
    """Make the loss, or only its gradient, useless at some steps."""

    class Poisoned(Supervised):
        def losses(self, batch, progress):
            terms = super().losses(batch, progress)
            if round(progress * TRAIN.steps) not in steps:
                return terms
            weight = self.networks[0].head.weight
            bad = {"loss": weight.sum() * float("nan"), "infinite loss": weight.sum().exp() * float("inf")}
            # sqrt has an infinite slope at 0: the loss is finite, its gradient is 0 times infinity
            return terms | {"bad": bad.get(where, (weight * 0).sum().sqrt())}

    monkeypatch.setitem(METHODS, "supervised", Poisoned)


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


# Stopping

SCRIPT = """
import os, signal, sys
import torch
from pathlib import Path
from tests.train.tiny import Recipe, write_files

torch.set_num_threads(1)

def stop(step, batch):
    if step == 5:
        os.kill(os.getpid(), signal.SIGTERM)
    return batch

folder = Path(sys.argv[1])
Recipe(write_files(folder / "data")).trainer(folder / "run", stop).run()
"""


def test_f12_sigterm_saves_the_state_and_exits_143(files, tmp_path):
    recipe = Recipe(files)
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert child.returncode == 143, child.stderr
    assert "Traceback" not in child.stderr
    resumed = recipe.trainer(tmp_path / "run", resumed=True)
    assert resumed.resume() is None
    assert resumed.step == 6
    resumed.run()
    assert differing(state_of(recipe.whole(tmp_path / "whole")), state_of(resumed)) == []
    assert log_of(tmp_path / "run") == log_of(tmp_path / "whole")


def stop_at(last, *numbers):
    def change(step, batch):
        if step == last:
            for number in numbers:
                os.kill(os.getpid(), number)
        return batch

    return change


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [0, 6, 18])
def test_f12_a_signal_is_answered_after_the_step(files, tmp_path, number, step):
    recipe = Recipe(files)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as caught:
        recipe.trainer(tmp_path / "run", stop_at(step, number)).run()
    assert caught.value.code == 128 + number
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    resumed = recipe.trainer(tmp_path / "run", resumed=True)
    resumed.resume()
    assert resumed.step == step + 1


def test_f12_a_signal_in_the_last_step_finds_a_finished_run(files, tmp_path):
    trainer = Recipe(files).trainer(tmp_path / "run", stop_at(19, signal.SIGTERM))
    trainer.run()
    assert trainer.step == load_checkpoint(tmp_path / "run" / WEIGHTS)[1]["step"] == 20


@pytest.mark.parametrize(
    ("numbers", "code"),
    [
        ((signal.SIGINT, signal.SIGINT), "at once: 130"),
        ((signal.SIGTERM, signal.SIGINT), "at once: 130"),
        ((signal.SIGTERM, signal.SIGTERM), 143),
    ],
)
def test_f12_a_second_ctrl_c_stops_at_once_and_a_second_sigterm_waits_for_the_state(
    files, tmp_path, monkeypatch, numbers, code
):
    def leave(status):
        raise SystemExit(f"at once: {status}")

    monkeypatch.setattr(loop.os, "_exit", leave)
    with pytest.raises(SystemExit) as caught:
        Recipe(files).trainer(tmp_path / "run", stop_at(4, *numbers)).run()
    assert caught.value.code == code
    assert (tmp_path / "run" / STATE).exists() == (code == 143)


def test_f12_no_worker_process_outlives_an_interrupted_run(files, tmp_path):
    import multiprocessing

    def stop(step, batch):  # in the worker: its parent is the process that trains
        if step == 4:
            os.kill(os.getppid(), signal.SIGTERM)
        return batch

    with pytest.raises(Interrupted):
        Recipe(files, workers=1).trainer(tmp_path / "run", stop).run()
    assert multiprocessing.active_children() == []


def test_f10_a_full_disk_under_the_log_is_said(files, tmp_path):
    trainer = Recipe(files).trainer(tmp_path / "run")
    (tmp_path / "run" / "log.jsonl").symlink_to("/dev/full")
    with pytest.raises(ResourceError, match=r"log\.jsonl\n  found: disk full\n.*\n  next step: free some space"):
        trainer.run()


# Plain weights


@pytest.mark.parametrize("pretrain", PRETRAININGS)
@pytest.mark.parametrize("dims", [2, 3])
def test_plain_weights_compute_the_same_and_leave_the_trained_network_as_it_is(tmp_path, pretrain, dims):
    settings = replace(PRETRAIN, handover="unit-norm")
    recipe = Recipe(
        write_files(tmp_path / "data", dims),
        pretrain=pretrain,
        pretrain_config=settings,
        config=replace(TRAIN, steps=4),
    )
    trainer = recipe.trainer(tmp_path / "run")
    trainer.run()
    trained = trainer.method.predictor().eval()
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    images = make_stream(recipe.files)[0].images
    expected = trained(images)

    plain = nets.build(NET, dims, 1, 2, seed=99).eval()
    plain.load_state_dict(plain_state(trained))
    torch.testing.assert_close(plain(images), expected, rtol=0, atol=1e-6)
    assert differing(trained.state_dict(), before) == []
    assert torch.equal(trained(images), expected)
    kept = any(map(parametrize.is_parametrized, trained.modules()))
    assert kept == (pretrain in ("unit-norm", "hebbian", "shuffled"))
    trainer.config = replace(trainer.config, steps=6)
    trainer.run()
    assert differing(trainer.method.state_dict(), {f"networks.0.{name}": t for name, t in before.items()}) != []

    saved = nets.build(NET, dims, 1, 2, seed=99).eval()
    saved.load_state_dict(load_checkpoint(tmp_path / "run" / WEIGHTS)[0])
    torch.testing.assert_close(saved(images), trainer.average.module.eval()(images), rtol=0, atol=1e-6)
