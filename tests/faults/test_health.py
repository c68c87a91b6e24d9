"""Training health: what is not finite, what does not fit, and who is killed on the way."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.members import made
from tests.pretrain.driver import learner_of, run
from tests.tiny_data import FLAGS, pretrained, write_tiny
from tests.training.several import environment, finish, start
from tests.training.tiny import (
    CPU,
    NET,
    PRETRAIN,
    SURE,
    TRAIN,
    Changed,
    Recipe,
    crash_at,
    differing,
    log_of,
    make_images,
    make_stream,
    poison,
    state_of,
    worker_processes,
    write_files,
)
from torch import nn

from nissl import cli
from nissl.errors import DataError, ResourceError
from nissl.methods import METHODS
from nissl.nets import factory
from nissl.nets.settings import NETWORKS
from nissl.pretrain import PRETRAININGS
from nissl.runs.checkpoint import load_checkpoint
from nissl.runs.folder import STATE, WEIGHTS
from nissl.training.loop import Trainer
from nissl.training.session import Session, Stage

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def files(tmp_path):
    return write_files(tmp_path / "data")


# What is not finite


def with_every_method(first, others):
    """One kind of fault with every method; the others, which a method does not tell apart, with one of them."""
    return [(method, first) for method in METHODS] + [("supervised", other) for other in others]


@pytest.mark.parametrize(("method", "where"), with_every_method("gradient", ["loss", "infinite loss"]))
def test_f36_a_step_without_a_finite_gradient_is_skipped_and_logged(files, tmp_path, monkeypatch, where, method):
    poison(monkeypatch, [4, 6, 7], where, method)
    states = {}

    def keep(step, batch):
        states[step] = {name: tensor.clone() for name, tensor in state_of(trainer).items()}
        return batch

    trainer = Recipe(files, method=method).trainer(tmp_path / "run", keep)
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


@pytest.mark.parametrize("network", NETWORKS)
def test_f36_not_a_number_in_an_image_leaves_every_network_whole(tmp_path, network):
    def spoil_one(step, batch):
        if step == 1:
            batch.images[0, 0, 2, 2] = float("nan")
        return batch

    recipe = Recipe(
        write_files(tmp_path / "data", side=32),
        net=made(NETWORKS, network, widths=NET.widths, dropout=NET.dropout),
        config=replace(TRAIN, steps=3),
    )
    trainer = recipe.trainer(tmp_path / "run", spoil_one)
    trainer.run()
    assert all(tensor.isfinite().all() for tensor in state_of(trainer).values())
    assert [line["step"] for line in log_of(tmp_path / "run") if "skipped" in line] == [2]


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


def test_f36_images_without_masks_are_named_where_they_are_not_finite(files, tmp_path):
    """Half of what a step sees: who is sent to the images with masks alone looks in vain."""

    def spoil_unlabelled(step, batch):
        if step in (3, 4, 5):
            batch.unlabelled[0, 0, 2, 2] = float("nan")
        return batch

    trainer = Recipe(files, method="cps").trainer(tmp_path / "run", spoil_unlabelled)
    with pytest.raises(ResourceError) as caught:
        trainer.run()
    masks, others = ({file.id for file in samples.store.files} for samples in trainer.stream.stream._samples)
    named = str(caught.value).split("cases ")[1].splitlines()[0].split(", ")
    assert set(named) & masks and set(named) & others and set(named) <= masks | others


def test_f36_steps_in_a_row_are_counted_across_an_interruption(files, tmp_path, monkeypatch):
    poison(monkeypatch, [3, 4, 5])
    recipe = Recipe(files, config=replace(TRAIN, save_every=1))
    with pytest.raises(DataError):
        recipe.trainer(tmp_path / "run", crash_at(5)).run()
    resumed = recipe.trainer(tmp_path / "run", resumed=True)
    resumed.resume()
    assert resumed.step == 5
    with pytest.raises(ResourceError) as stopped:
        resumed.run()
    assert stopped.value.where.startswith("training, step 6, ")


def test_f36_they_are_counted_across_an_interruption_of_a_pretraining(files, tmp_path):
    recipe = Recipe(files, pretrain="vae", options=PRETRAIN | {"steps": 8})

    def stage(images):
        (net,) = recipe.networks().values()
        return run(recipe.pretraining(net), images, Session(tmp_path, CPU), save_every=1)

    gone = Changed(make_images(files), lambda step, images: crash_at(5)(step, spoil(3, 4)(step, images)))
    with pytest.raises(DataError):
        stage(gone)
    with pytest.raises(ResourceError, match="step 6"):
        stage(Changed(make_images(files), spoil(3, 4, 5)))


def test_f36_two_in_a_row_do_not_stop_the_run(files, tmp_path, monkeypatch):
    poison(monkeypatch, [2, 3, 5, 6, 8, 9])
    assert Recipe(files).whole(tmp_path / "run").step == 20


def spoil(*steps):
    """Images with NaN or infinity at some steps."""

    def change(step, batch):
        if step in steps:
            batch.images[0, 0, 3, 3] = float("nan") if step % 2 else float("inf")
        return batch

    return change


@pytest.mark.parametrize("pretrain", PRETRAININGS)
def test_f36_not_a_number_in_an_image_leaves_every_pretraining_whole(files, tmp_path, pretrain):
    recipe = Recipe(files, pretrain=pretrain, options=PRETRAIN | {"steps": 8, "optimiser": "adam"})
    (net,) = recipe.networks().values()
    report = run(recipe.pretraining(net), Changed(make_images(files), spoil(2, 3, 5)), Session(tmp_path, CPU))
    assert all(tensor.isfinite().all() for tensor in net.state_dict().values())
    lines = log_of(tmp_path) if report.steps else []
    assert [line["step"] for line in lines if "skipped" in line] == ([3, 4, 6] if report.steps else [])
    assert len(lines) == report.steps and "NaN" not in json.dumps(dataclasses.asdict(report))


@pytest.mark.parametrize("pretrain", PRETRAININGS)
def test_f36_three_in_a_row_stop_every_pretraining_and_name_the_cases(files, tmp_path, pretrain):
    recipe = Recipe(files, pretrain=pretrain, options=PRETRAIN | {"steps": 8})
    (net,), images = recipe.networks().values(), make_images(files)
    pretraining = recipe.pretraining(net)
    if not pretraining.steps:
        return
    with pytest.raises(ResourceError) as caught:
        run(pretraining, Changed(images, spoil(3, 4, 5)), Session(tmp_path, CPU))
    for part in ("pre-training, step 6", *images.ids(5), "3 steps in a row", "nissl check", "resume"):
        assert part in str(caught.value)
    assert caught.value.exit_code == 4
    assert all(tensor.isfinite().all() for tensor in net.state_dict().values())


# Nothing is found


def test_f37_a_network_that_finds_no_foreground_is_told_with_the_shares_of_the_classes(files, tmp_path, capsys):
    def blind(trainer):
        with torch.no_grad():
            for network in (trainer.learner.predictor(), trainer.average.module):
                network.head.bias.copy_(torch.tensor([50.0, -50.0]))
        return trainer

    config = replace(TRAIN, save_every=2, learning_rate=1e-6, steps=11)
    trainer = blind(Recipe(files, config=config).trainer(tmp_path / "run"))
    trainer.run()
    lines = log_of(tmp_path / "run")
    assert [line["step"] for line in lines if "warning" in line] == [6]
    told = capsys.readouterr().err
    share = f"class 1: {float((trainer.stream[5].targets == 1).double().mean()):.2%}"
    for part in ("3 checkpoints in a row", "every pixel background", share, "--steps", "--data.foreground"):
        assert part in told and part in lines[5]["warning"]


def test_f37_nothing_is_told_where_foreground_is_found_or_the_masks_are_empty(files, tmp_path, capsys):
    Recipe(files, config=replace(TRAIN, save_every=2), seed=0).whole(tmp_path / "found")

    def empty(step, batch):
        batch.targets.zero_()
        return batch

    Recipe(files, config=replace(TRAIN, save_every=2), seed=0).trainer(tmp_path / "empty", empty).run()
    assert "warning" not in capsys.readouterr().err


# Memory


def small(most, error):
    """A U-Net without normalisation and dropout, for which memory ends above some images at once."""
    net = factory.build(SURE, 2, 1, 2, seed=0)
    for block in (*net.encoder.blocks, *net.decoder.blocks):
        block[1] = block[5] = nn.Identity()

    def fill(encoder, inputs):
        if len(inputs[0]) > most and encoder.training:
            raise error()
        return inputs[0].to(next(encoder.parameters()).dtype)

    net.encoder.register_forward_pre_hook(fill)
    return net


NO_MEMORY = {
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "cpu": lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory"),
    "python": MemoryError,
}


def small_trainer(files, folder, method, most, error=None):
    config = replace(TRAIN, steps=8, batch=4, optimiser="sgd", learning_rate=0.05)
    networks = {name: small(most, error) for name in Recipe(files, method=method).networks()}
    learner = METHODS[method].build(METHODS.make(method), Recipe(files).problem(), networks, 3)
    folder.mkdir(exist_ok=True)
    # In float64: a steep loss, such as that of dtc, enlarges what sums in another order round differently.
    stage, stream = Stage("training", config, 3), make_stream(files, config.batch)
    return Trainer(learner.double(), stream, stage, Session(folder, CPU))


def draws(trainer):
    """Whether a method takes random numbers."""
    before = torch.get_rng_state()
    with torch.no_grad():
        trainer.learner(trainer.stream[0], 0.5)
    return not torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("method", "kind"), with_every_method("cpu", sorted(NO_MEMORY.keys() - {"cpu"})))
def test_f38_without_memory_the_batch_passes_in_parts_and_the_result_is_the_same(files, tmp_path, capsys, method, kind):
    together = 2 if method == "unimatch" else 1  # which passes images with and without masks at once
    whole = small_trainer(files, tmp_path / "whole", method, 4 * together)
    whole.run()
    assert "out of memory" not in capsys.readouterr().err
    parted = small_trainer(files, tmp_path / "parted", method, together, NO_MEMORY[kind])
    parted.run()
    told = capsys.readouterr().err
    assert "2 parts of 2" in told and "4 parts of 1" in told
    assert told.count("step 1 ") == told.count("out of memory") == 2
    assert all(line["parts"] == 4 for line in log_of(tmp_path / "parted"))
    if not draws(whole):  # what is drawn for parts is not what is drawn for the whole
        one, other = (trainer.learner.networks[0].state_dict() for trainer in (whole, parted))
        for name in one:
            torch.testing.assert_close(other[name], one[name], rtol=1e-6, atol=1e-6)
        for line, like in zip(log_of(tmp_path / "parted"), log_of(tmp_path / "whole")):
            assert line["loss"] == pytest.approx(like["loss"], rel=1e-5)
    # A resumed run does not run into it again.
    again = small_trainer(files, tmp_path / "parted", method, together, NO_MEMORY[kind])
    again.stage = replace(again.stage, train=replace(again.stage.train, steps=10))
    again.resume()
    again.run()
    assert "out of memory" not in capsys.readouterr().err


def test_f38_an_image_that_does_not_fit_alone_ends_the_run(files, tmp_path):
    with pytest.raises(MemoryError):
        small_trainer(files, tmp_path / "run", "supervised", 0, MemoryError).run()


@pytest.mark.parametrize("pretrain", PRETRAININGS)
def test_f38_a_pretraining_without_memory_takes_its_batches_in_parts(files, tmp_path, pretrain):
    """HPCA of linear responses is a mean over samples, so that parts change nothing but the order of a sum."""
    options = PRETRAIN | {"batch": 4, "handover": "unit-norm", "samples": 0, "response": "linear"}
    results = []
    for most in (4, 2):
        net, folder = small(most, NO_MEMORY["cpu"]), tmp_path / str(most)
        folder.mkdir()
        learner = learner_of(net, made(PRETRAININGS, pretrain, **options))
        facts = run(learner, make_images(files, batch=4), Session(folder, CPU))
        parts = {line.get("parts", 1) for line in log_of(folder)} if facts.steps else {1}
        assert parts == {4 // most if facts.steps else 1}
        results.append(net.state_dict())
    for name, tensor in results[0].items():
        torch.testing.assert_close(results[1][name], tensor, rtol=1e-5, atol=1e-6)


LIMITED = """
import resource, sys
from dataclasses import replace
from pathlib import Path
import torch
from tests.training.tiny import TRAIN, Recipe, write_files

torch.set_num_threads(1)
folder, limited = Path(sys.argv[1]), sys.argv[2] == "limited"
config = replace(TRAIN, steps=2, batch=16, save_every=1)
trainer = Recipe(write_files(folder / "data", side=224), config=config).trainer(folder / "run")
warm = Recipe(write_files(folder / "small", side=32), config=replace(config, steps=1)).whole(folder / "warm")
if limited:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + 200 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
trainer.run()
"""


@pytest.mark.slow
def test_f38_a_real_limit_of_memory_is_met_by_parts(tmp_path):
    """16 images of 224 x 224 need about 640 MB in the step; the process may take 200 MB more than it has."""
    for name in ("free", "limited"):
        command = [sys.executable, "-c", LIMITED, str(tmp_path / name), name]
        (tmp_path / name).mkdir()
        # What is freed shall leave the address space, which is what the limit counts.
        env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
        child = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=200, check=False)
        assert child.returncode == 0, child.stderr
        assert ("out of memory" in child.stderr) == (name == "limited")
    lines = log_of(tmp_path / "limited" / "run")
    assert [line["step"] for line in lines] == [1, 2] and lines[0]["parts"] > 1
    # The network normalises by batch, so that the loss is near and not the same.
    assert lines[0]["loss"] == pytest.approx(log_of(tmp_path / "free" / "run")[0]["loss"], rel=0.05)


# Processes that are killed


@pytest.mark.xdist_group("alone")
def test_f40_a_killed_worker_ends_the_run_with_the_names_of_its_cases(files, tmp_path):
    def die(step, batch):
        if step == 4:
            os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does where memory runs out
        return batch

    trainer = Recipe(files, workers=1, config=replace(TRAIN, save_every=2)).trainer(tmp_path / "run", die)
    began = time.monotonic()
    with pytest.raises(ResourceError) as caught:
        trainer.run()
    assert time.monotonic() - began < 60
    for part in (*trainer.stream.ids(4), "was killed", "data.workers", "resume"):
        assert part in str(caught.value)
    resumed = Recipe(files, workers=1).trainer(tmp_path / "run", resumed=True)
    resumed.resume()
    resumed.run()
    assert resumed.step == 20 and worker_processes() == []


@pytest.mark.slow
@pytest.mark.xdist_group("alone")
def test_f40_a_killed_process_of_several_ends_the_run_with_a_message_and_the_run_goes_on(tmp_path):
    data, out, env = write_tiny(tmp_path / "data"), tmp_path / "run", environment()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
    launcher += ["--master-port", env["MASTER_PORT"], "-m", "nissl", "train", str(data), "--out", str(out)]
    process = start([*launcher, *FLAGS, "--steps", "100000", "--train.save_every", "5"], env)
    try:
        wait_for(lambda: (out / STATE).exists(), process)
        os.kill(process_of_rank(1, process.pid), signal.SIGKILL)
        began = time.monotonic()
        (errors,) = finish([process])
    finally:
        process.kill()
    assert time.monotonic() - began < 60
    assert process.returncode not in (0, None)
    assert "another process of this run was killed" in errors and "--resume" in errors
    assert cli.run(["train", str(data), "--out", str(out), "--resume", "--steps", "9", "--allow-changed"]) == 0


def wait_for(condition, process):
    until = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.05)


def process_of_rank(rank, parent):
    """Find a process that torchrun started."""
    for folder in Path("/proc").iterdir():
        with suppress(OSError, IndexError):
            if folder.name.isdigit() and int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1]) == parent:
                variables = (folder / "environ").read_bytes().split(b"\0")
                if f"RANK={rank}".encode() in variables:
                    return int(folder.name)
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.slow
def test_an_error_that_all_processes_meet_is_told_once(tmp_path):
    data, env = write_tiny(tmp_path / "data"), environment()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
    launcher += ["--master-port", env["MASTER_PORT"], "-m", "nissl", "train", str(data), "--out", str(tmp_path / "run")]
    image = data / "images" / "field000.png"
    image.write_bytes(image.read_bytes()[:-200])
    (errors,) = finish([start([*launcher, *FLAGS, *pretrained()], env)])
    assert errors.count("field000.png\n  found: ") == 1
