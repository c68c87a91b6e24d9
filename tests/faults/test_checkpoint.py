"""Checkpoint and resume: whatever happens to a run, it goes on as if nothing had happened, or says what is lost."""

import copyreg
import dataclasses
import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.pretrain import driver
from tests.tiny_data import FLAGS, pretrained, write_tiny
from tests.training.tiny import (
    CPU,
    PRETRAIN,
    TRAIN,
    Changed,
    Recipe,
    crash_at,
    differing,
    log_of,
    make_images,
    state_of,
    worker_processes,
    write_files,
)

from nissl import cli, progress
from nissl.errors import DataError, ResourceError
from nissl.methods import METHODS
from nissl.pretrain import PRETRAININGS
from nissl.runs import checkpoint
from nissl.runs.checkpoint import load_checkpoint, load_newest
from nissl.runs.folder import STATE, WEIGHTS
from nissl.training import signals
from nissl.training.session import Session
from nissl.training.signals import Interrupted

ROOT = Path(__file__).resolve().parents[2]
SHORT = replace(TRAIN, steps=5, save_every=2)
"""Long enough to be saved twice and to be stopped between."""


@pytest.fixture
def files(tmp_path):
    return write_files(tmp_path / "data")


def crash_and_resume(recipe, folder):
    """Steps that are saved, one or two that are not, a crash; then a new trainer that resumes and runs to the end."""
    saved = recipe.config.save_every
    last = min(saved + 2, 2 * saved - 1)
    with pytest.raises(DataError) as caught:
        recipe.trainer(folder, crash_at(last)).run()
    assert caught.value.found == "gone" and worker_processes() == []
    assert [line["step"] for line in log_of(folder)] == list(range(1, last + 1))
    with (folder / "log.jsonl").open("ab") as log:
        log.write(b'\x00\xff\n{"step": "?"}\n[]\n{"step": %d, "loss": 0.1' % (last + 1))
    resumed = recipe.trainer(folder, resumed=True)
    assert resumed.resume() is None
    assert resumed.step == saved
    resumed.run()
    return resumed


def require_equal_runs(recipe, folder):
    whole = recipe.whole(folder / "whole")
    resumed = crash_and_resume(recipe, folder / "resumed")
    assert differing(state_of(whole), state_of(resumed)) == []
    assert log_of(folder / "resumed") == log_of(folder / "whole")
    assert [line["step"] for line in log_of(folder / "whole")] == list(range(1, recipe.config.steps + 1))
    for name in (WEIGHTS, STATE):
        (ours, facts), (theirs, others) = (load_checkpoint(folder / run / name) for run in ("whole", "resumed"))
        assert differing(ours, theirs) == [] and facts == others and facts["step"] == recipe.config.steps


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("method", METHODS)
def test_f03_f04_every_method_resumes_bit_for_bit(tmp_path, method, dims):
    require_equal_runs(Recipe(write_files(tmp_path / "data", dims), method=method, config=SHORT), tmp_path)


@pytest.mark.parametrize("handover", ["fold", "unit-norm"])
@pytest.mark.parametrize("pretrain", PRETRAININGS)
def test_f04_every_pretraining_resumes_bit_for_bit(files, tmp_path, pretrain, handover):
    require_equal_runs(
        Recipe(files, pretrain=pretrain, options=PRETRAIN | {"handover": handover}, config=SHORT), tmp_path
    )


def test_f04_pretraining_in_3d_resumes_bit_for_bit(tmp_path):
    options = PRETRAIN | {"handover": "unit-norm"}
    recipe = Recipe(write_files(tmp_path / "data", 3), pretrain="hebbian", options=options)
    require_equal_runs(recipe, tmp_path)


def test_f04_momentum_resumes_bit_for_bit(files, tmp_path):
    require_equal_runs(Recipe(files, config=replace(TRAIN, optimiser="sgd", schedule="step", clip=0)), tmp_path)


def test_f03_f05_worker_processes_change_nothing_across_a_resume(files, tmp_path):
    alone = Recipe(files).whole(tmp_path / "alone")
    resumed = crash_and_resume(Recipe(files, workers=2), tmp_path / "resumed")
    assert differing(state_of(alone), state_of(resumed)) == []
    assert log_of(tmp_path / "resumed") == log_of(tmp_path / "alone")


def test_no_worker_process_stays_where_tracebacks_travel_with_errors(files, tmp_path):
    """As with Dask, which pickles them: an error from a worker then holds the frames in which it was read."""
    support = pytest.importorskip("tblib.pickling_support", reason="comes with Dask")
    before = dict(copyreg.dispatch_table)
    support.install(DataError)
    try:
        crash_and_resume(Recipe(files, workers=1, config=SHORT), tmp_path)  # it looks for worker processes
    finally:
        copyreg.dispatch_table.clear()
        copyreg.dispatch_table.update(before)


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


SCRIPT = """
import os, signal, sys
import torch
from pathlib import Path
from tests.training.tiny import Recipe, write_files

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

    monkeypatch.setattr(signals.os, "_exit", leave)
    with pytest.raises(SystemExit) as caught:
        Recipe(files).trainer(tmp_path / "run", stop_at(4, *numbers)).run()
    assert caught.value.code == code
    assert (tmp_path / "run" / STATE).exists() == (code == 143)


def test_f12_no_worker_process_outlives_an_interrupted_run(files, tmp_path):
    def stop(step, batch):  # in the worker: its parent is the process that trains
        if step == 4:
            os.kill(os.getppid(), signal.SIGTERM)
        return batch

    with pytest.raises(Interrupted):
        Recipe(files, workers=1).trainer(tmp_path / "run", stop).run()
    assert worker_processes() == []


def test_f10_a_full_disk_under_the_log_is_said(files, tmp_path):
    trainer = Recipe(files).trainer(tmp_path / "run")
    (tmp_path / "run" / "log.jsonl").symlink_to("/dev/full")
    with pytest.raises(ResourceError) as caught:
        trainer.run()
    assert caught.value.where == str(tmp_path / "run" / "log.jsonl") and caught.value.found == "disk full"


# Kills


@pytest.mark.slow
@pytest.mark.parametrize("kills", [10, pytest.param(50, marks=pytest.mark.full)])
def test_f01_kills_at_random_moments_lose_no_more_than_a_step(tmp_path, kills):
    """Each of the runs that the kills fall into ends as the run without a kill, bit for bit."""
    write_tiny(tmp_path / "data")
    command = [sys.executable, "-m", "tests.faults.killed", str(tmp_path / "data"), str(tmp_path), str(kills)]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)
    assert child.returncode == 0, child.stderr
    states = json.loads((tmp_path / "states.json").read_text())
    assert len(states) == kills and len(set(states)) >= kills // 5  # they fell into many moments
    assert any(state.startswith(("pre-training", "training")) for state in states)
    assert kills < 50 or any(state.startswith("pre-training") for state in states)
    whole, runs = tmp_path / "whole", sorted(tmp_path.glob("run[0-9]"))
    for folder in runs:
        for name in (WEIGHTS, STATE):
            assert load_checkpoint(folder / name)[1]["sha256"] == load_checkpoint(whole / name)[1]["sha256"]
        assert log_of(folder) == log_of(whole)
        assert {p.relative_to(folder) for p in folder.rglob("*")} == {p.relative_to(whole) for p in whole.rglob("*")}


@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_f02_a_kill_between_write_flush_and_rename_leaves_the_state_as_it_was(files, tmp_path, moment):
    """A real SIGKILL inside the save of step 14: the state of step 7 is there, byte for byte."""
    recipe = Recipe(files)
    with pytest.raises(DataError):
        recipe.trainer(tmp_path / "run", crash_at(9)).run()
    state = tmp_path / "run" / STATE
    before = state.read_bytes()
    child = os.fork()
    if child == 0:
        trainer = recipe.trainer(tmp_path / "run", die_in_write(moment, state.name), resumed=True)
        trainer.resume()
        trainer.run()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert state.read_bytes() == before
    resumed = recipe.trainer(tmp_path / "run", resumed=True)
    assert resumed.resume() is None and resumed.step == 7
    resumed.run()
    assert differing(state_of(recipe.whole(tmp_path / "whole")), state_of(resumed)) == []


def die_in_write(moment, name):
    """From step 14 on, be killed where the file of this name is written, flushed or renamed."""

    def change(step, batch):
        if step != 13:
            return batch

        def dying(original, concerns):
            def call(*arguments, **options):
                if concerns(arguments):
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*arguments, **options)

            return call

        def of_the_state(arguments):
            handle = f"/proc/self/fd/{arguments[0]}" if moment == "fsync" else arguments[0]
            return str(Path(handle).resolve().name).startswith(f".{name}.")

        if moment == "write":
            Path.open = dying(Path.open, of_the_state)
        elif moment == "fsync":
            os.fsync = dying(os.fsync, of_the_state)
        else:
            Path.replace = dying(Path.replace, of_the_state)
        return batch

    return change


# Pre-training


def stage_of(recipe, folder, change=None):
    """Pre-train a network in a folder, from where it was stopped; gives the network and the facts."""
    (net,) = recipe.networks().values()
    images = make_images(recipe.files)
    images = Changed(images, change) if change else images
    folder.mkdir(exist_ok=True)
    facts = driver.run(recipe.pretraining(net), images, Session(folder, CPU), save_every=3)
    return net, json.dumps(dataclasses.asdict(facts), sort_keys=True)


@pytest.mark.parametrize(("handover", "optimiser"), [("fold", "relative"), ("unit-norm", "adam")])
@pytest.mark.parametrize("pretrain", PRETRAININGS)
def test_f04_f12_every_pretraining_that_is_stopped_goes_on_bit_for_bit(files, tmp_path, pretrain, handover, optimiser):
    options = PRETRAIN | {"steps": 8, "handover": handover, "optimiser": optimiser, "rate": 0.01}
    recipe = Recipe(files, pretrain=pretrain, options=options)
    whole, report = stage_of(recipe, tmp_path / "whole")
    if json.loads(report)["steps"]:
        for last, number in ((1, signal.SIGTERM), (5, signal.SIGINT)):
            with pytest.raises(Interrupted) as caught:
                stage_of(recipe, tmp_path / "stopped", stop_at(last, number))
            assert caught.value.code == 128 + number
            assert load_newest(tmp_path / "stopped" / STATE)[1]["step"] == last + 1
    for _ in range(2):  # the second finds it finished
        resumed, again = stage_of(recipe, tmp_path / "stopped")
        assert differing(whole.state_dict(), resumed.state_dict()) == []
        assert again == report


def test_f12_a_stop_while_stage_1_finishes_is_heard_and_what_is_finished_stays(files, tmp_path):
    recipe = Recipe(files, pretrain="hebbian", options=PRETRAIN | {"steps": 8})
    whole, report = stage_of(recipe, tmp_path / "whole")
    with pytest.raises(Interrupted) as caught:
        stage_of(recipe, tmp_path / "stopped", stop_at(8, signal.SIGTERM))  # the batch on which it measures
    assert caught.value.code == 128 + signal.SIGTERM
    resumed, again = stage_of(recipe, tmp_path / "stopped", stop_at(8, signal.SIGKILL))
    assert differing(whole.state_dict(), resumed.state_dict()) == [] and again == report


def test_f06_a_damaged_checkpoint_of_stage_1_gives_way_to_the_one_before(files, tmp_path, capsys):
    recipe = Recipe(files, pretrain="hebbian", options=PRETRAIN | {"steps": 8})
    whole, report = stage_of(recipe, tmp_path / "whole")
    with pytest.raises(Interrupted):
        stage_of(recipe, tmp_path / "run", stop_at(4, signal.SIGTERM))
    path = tmp_path / "run" / STATE
    path.write_bytes(path.read_bytes()[:-7])
    resumed, again = stage_of(recipe, tmp_path / "run")
    told = capsys.readouterr().err
    assert path.name in told and "step 3" in told
    assert differing(whole.state_dict(), resumed.state_dict()) == [] and again == report


# The command


@pytest.fixture
def data(tmp_path):
    return write_tiny(tmp_path / "tiny")


def train(data, out, *more):
    return ["train", str(data), "--out", str(out), *FLAGS, "--train.save_every", "1", *more]


def leave(arguments):
    """Exit code of a command, however it leaves."""
    try:
        return cli.run([str(argument) for argument in arguments])
    except SystemExit as left:
        return left.code


@pytest.mark.parametrize("kept", [0, 0.01, 0.5, 0.99])
def test_f07_a_state_cut_short_is_named_and_the_one_before_is_used(data, tmp_path, capsys, kept):
    assert leave(train(data, tmp_path / "whole")) == leave(train(data, tmp_path / "run")) == 0
    state = tmp_path / "run" / STATE
    content = state.read_bytes()
    state.write_bytes(content[: int(kept * len(content))])
    capsys.readouterr()
    assert leave(["train", data, "--out", tmp_path / "run", "--resume"]) == 0
    told = capsys.readouterr().err
    for part in ("state.safetensors", "unreadable", "step 2"):
        assert part in told
    hashes = [load_checkpoint(tmp_path / run / STATE)[1]["sha256"] for run in ("whole", "run")]
    assert hashes[0] == hashes[1]


def test_f08_other_settings_need_a_word_and_the_report_says_so(data, tmp_path, capsys):
    run, again = tmp_path / "run", ["train", data, "--out", tmp_path / "run", "--resume"]
    assert leave(train(data, run)) == 0
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert leave([*again, "--steps", "5", "--seed", "3"]) == 2
    told = capsys.readouterr().err
    for part in ("train.steps was 3, is 5", "seed was 0, is 3", "--allow-changed"):
        assert part in told
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert leave([*again, "--steps", "5", "--allow-changed"]) == 0
    assert [line["step"] for line in log_of(run)] == [1, 2, 3, 4, 5]
    assert leave(["report", run]) == 0
    page = (run / "report.html").read_text()
    assert "train.steps was 3, is 5" in page and "not exact" in page


def test_f08_a_changed_image_needs_a_word(data, tmp_path, capsys):
    assert leave(train(data, tmp_path / "run")) == 0
    seen = json.loads((tmp_path / "run" / "split.json").read_text())["labelled"][0]
    path = data / "images" / f"{seen}.png"
    path.write_bytes(path.read_bytes() + b"\x00")
    assert leave(["train", data, "--out", tmp_path / "run", "--resume"]) == 2
    assert seen in capsys.readouterr().err


def test_f08_a_state_that_does_not_fit_the_new_settings_is_refused_also_with_the_word(data, tmp_path, capsys):
    assert leave(train(data, tmp_path / "run")) == 0
    wider = ["--widths", "4", "16", "--allow-changed"]
    assert leave(["train", data, "--out", tmp_path / "run", "--resume", *wider]) == 2
    assert str(tmp_path / "run" / STATE) in capsys.readouterr().err


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of one megabyte; only root may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("a small disk can be mounted by root only")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.mark.parametrize("stage", ["stage1-0.safetensors", "state.safetensors"])
def test_f10_a_full_disk_is_said_and_the_run_goes_on_later(data, tmp_path, small_disk, capsys, stage):
    """The disk fills up once the first checkpoint of a stage is there."""
    more = ["--widths", "8", "16", *pretrained(), "--pretrain.steps", "4", "--steps", "6"]
    assert leave(train(data, tmp_path / "whole", *more)) == 0
    out = small_disk / "run"
    with filling(small_disk, stage):
        assert leave(train(data, out, *more)) == 4
    told = capsys.readouterr().err
    assert "disk full" in told and " MB of free space" in told and str(out) in told and "Traceback" not in told
    assert load_newest(out / "checkpoints" / stage)[2] is None
    (small_disk / "ballast").unlink()
    subprocess.run(["mount", "-o", "remount,size=16m", small_disk], check=True)
    assert leave(["train", data, "--out", out, "--resume"]) == 0
    hashes = [load_checkpoint(run / STATE)[1]["sha256"] for run in (tmp_path / "whole", out)]
    assert hashes[0] == hashes[1]


@contextmanager
def filling(disk, stage):
    """Fill a disk as soon as the first checkpoint of a stage has its name."""
    rename = Path.replace

    def watched(self, target):
        done = rename(self, target)
        if Path(target).name == stage and not (disk / "ballast").exists():
            with (disk / "ballast").open("wb", buffering=0) as ballast, suppress(OSError):
                while True:
                    ballast.write(bytes(4096))
        return done

    Path.replace = watched
    try:
        yield
    finally:
        Path.replace = rename


PHASED = ["--pretrain", "hebbian", "--pretrain.steps", "4", "--data.workers", "1", "--steps", "5"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The run into whose phases the signals fall, without a signal."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert leave(train(write_tiny(folder / "tiny"), folder / "run", *PHASED)) == 0
    return folder / "run"


PHASES = {"reading": "reading", "pre-training": "pre-training (hebbian)", "training": "training"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("phase", [*PHASES, "saving"])
def test_f12_a_signal_in_any_phase_is_answered_and_the_run_goes_on(data, tmp_path, undisturbed, phase, number):
    # As the command has them; a shell that starts the tests in the background has SIGINT ignored.
    handlers = {signal.SIGTERM: lambda number, frame: sys.exit(128 + number), signal.SIGINT: signal.default_int_handler}
    before = {each: signal.signal(each, handler) for each, handler in handlers.items()}
    try:
        with signalled(phase, number):
            assert leave(train(data, tmp_path / "run", *PHASED)) == 128 + number
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert worker_processes() == []
    begun = (tmp_path / "run" / "config.toml").exists()
    assert begun == (phase != "reading")
    again = ["train", data, "--out", tmp_path / "run", "--resume"] if begun else train(data, tmp_path / "run", *PHASED)
    assert leave(again) == 0
    hashes = [load_checkpoint(run / STATE)[1]["sha256"] for run in (undisturbed, tmp_path / "run")]
    assert hashes[0] == hashes[1]
    assert log_of(tmp_path / "run") == log_of(undisturbed)


@contextmanager
def signalled(phase, number):
    """Send this process a signal: at the second line of a progress bar, or inside the second write of the state."""
    module, name = (checkpoint, "write_whole") if phase == "saving" else (progress, "_lines")
    original, calls = getattr(module, name), []

    def written(path, content):
        if path.name == STATE.name:
            calls.append(path)
            if len(calls) == 2:
                os.kill(os.getpid(), number)
        return original(path, content)

    @contextmanager
    def shown(total, what, start):
        with original(total, what, start) as show:

            def watched(done, text):
                show(done, text)
                if what == PHASES[phase] and done == start + 2 and not calls:
                    calls.append(done)
                    os.kill(os.getpid(), number)

            yield watched

    setattr(module, name, written if phase == "saving" else shown)
    try:
        yield
    finally:
        setattr(module, name, original)
