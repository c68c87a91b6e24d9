"""What an arm costs: operations counted by hand, and probes that are made once, apart from all else."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch
from tests.bench.grids import write_grid
from tests.members import made as made_member
from tests.pretrain.driver import pretrain as run_pretraining
from tests.tiny_data import tiny_config, write_tiny
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nissl.bench.grid.grid import cells, load_grid
from nissl.bench.run import cost
from nissl.bench.run.cost import COST, STEPS, Cost, Work, estimate, measure_costs, probe, read_costs, seconds_of
from nissl.config import Config, DataConfig, TrainConfig
from nissl.learner import Problem
from nissl.methods import METHODS
from nissl.nets import factory
from nissl.pretrain import PRETRAININGS
from nissl.runs.folder import read_json
from nissl.tasks.segmentation import Segmentation
from nissl.training.session import Session

SHAPE = (3, 32, 32)
CPU = torch.device("cpu")


def work(method="supervised", pretrain="none", steps=7):
    config = tiny_config(pretrain=pretrain)
    pretraining = made_member(PRETRAININGS, pretrain, steps=steps, batch=2)
    train = dataclasses.replace(config.train, batch=4)
    changed = dataclasses.replace(config, method=METHODS.make(method), pretrain=pretraining, train=train)
    problem = Problem(Segmentation(config.task), 2, SHAPE[0], 2, SHAPE[1:], changed.net)
    return Work(changed, problem, Session(Path(), CPU))


def by_hand(net, image):
    """Operations of each convolution on one image: a multiplication and an addition for each weight and position."""
    found = []

    def count(layer, inputs, output):
        places = (inputs[0] if isinstance(layer, nn.ConvTranspose2d) else output)[0, 0].numel()
        found.append(2 * layer.weight.numel() * places)

    handles = [m.register_forward_hook(count) for m in net.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    net(image)
    for handle in handles:
        handle.remove()
    return found


def one_way(config):
    return by_hand(factory.build(config.net, 2, 3, 2, 0).eval(), torch.zeros(1, *SHAPE))


def test_a_supervised_step_is_three_passes_for_each_image_but_for_the_gradient_of_the_image():
    done = work()
    layers = one_way(done.config)
    assert done.flops_stage_2() == 4 * (3 * sum(layers) - layers[0])


def test_two_networks_cost_twice_one():
    assert work("cps").flops_stage_2() == pytest.approx(2 * work().flops_stage_2())


def counted(done, progress):
    with FlopCounterMode(display=False) as counter:
        done._train([progress], counter.get_total_flops)
    return counter.get_total_flops()


@pytest.mark.parametrize("method", METHODS)
def test_no_method_sees_fewer_images_in_a_step_than_the_masks_alone_from_the_first_step_to_the_last(method):
    least = 0.99 * work().flops_stage_2()
    for progress in (0.0, 0.2, 0.3, 0.99):
        assert counted(work(method), progress) >= least, progress


def test_the_mean_step_has_the_share_of_each_kind_of_step():
    first, later = (counted(work("bcp"), progress) for progress in (0.0, 0.5))
    assert first < later and work("bcp").flops_stage_2() == pytest.approx(0.25 * first + 0.75 * later)


def test_a_stage_without_gradient_is_a_pass_for_each_image():
    done = work(pretrain="warm", steps=300)
    assert done.flops_stage_1() == 300 * done.config.pretrain.batch * sum(one_way(done.config))


@pytest.mark.parametrize("pretrain", PRETRAININGS)
def test_the_steps_that_are_counted_stand_for_all(pretrain):
    """Against the whole stage, with every one of its steps made under the counter."""
    done = work(pretrain=pretrain)
    images, net = torch.randn(2, *SHAPE), factory.build(done.config.net, 2, 3, 2, 0)
    with FlopCounterMode(display=False) as counter:
        run_pretraining(net, dict.fromkeys(range(100), images), done.config.pretrain)
    assert done.flops_stage_1() == pytest.approx(counter.get_total_flops())
    assert (done.seconds_stage_1() > 0) == (counter.get_total_flops() > 0)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("cost")
    write_tiny(root / "tiny")
    return cells(load_grid(write_grid(root)))


def test_a_probe_measures_a_short_run(made, tmp_path):
    found = probe(made[1], tmp_path / "run")
    assert (found.data, found.arm, found.message) == ("tiny", "HPCA, folded", "")
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == STEPS
    assert found.passes > 3 * 2 * 2 and found.seconds_stage_1 > 0 and found.seconds_stage_2 > 0
    assert found.memory_bytes is None or found.memory_bytes > 50e6


@pytest.mark.slow
def test_a_probe_takes_sizes_and_length_that_the_published_protocol_sets(made, tmp_path):
    config = dataclasses.replace(Config(), protocol="parity", data=DataConfig(label_map="binary"))
    config = dataclasses.replace(config, split=made[0].config.split)
    found = probe(dataclasses.replace(made[0], config=config), tmp_path / "run")
    assert found.message == "" and found.passes is None  # its length follows the budget
    assert read_json(tmp_path / "run" / "network.json")["input"][1:] == [128, 128]


def test_each_arm_is_measured_once_and_one_that_failed_again(made, tmp_path, monkeypatch):
    asked, fails = [], {"HPCA, folded"}

    def apart(cell, threads):
        asked.append(cell.arm)
        return Cost(cell.data, cell.arm, message="no" if cell.arm in fails else "", passes=1.0, threads=threads)

    monkeypatch.setattr(cost, "_apart", apart)
    first = measure_costs(tmp_path, made, 1)
    assert (
        asked == ["none + supervised", "HPCA, folded"] and len(json.loads((tmp_path / COST).read_text())["costs"]) == 2
    )
    fails.clear()
    assert measure_costs(tmp_path, made, 1) != first and asked[2:] == ["HPCA, folded"]
    measure_costs(tmp_path, made, 1)
    assert len(asked) == 3 and all(not one.message for one in read_costs(tmp_path).values())


def test_a_new_arm_is_measured_with_the_threads_of_those_beside_it(made, tmp_path, monkeypatch):
    asked = []

    def apart(cell, threads):
        asked.append((cell.arm, threads))
        return Cost(cell.data, cell.arm, passes=1.0, threads=threads)

    monkeypatch.setattr(cost, "_apart", apart)
    plain = [cell for cell in made if cell.arm == "none + supervised"]
    measure_costs(tmp_path, plain, 2)
    measure_costs(tmp_path, plain, 1)
    assert asked == [("none + supervised", 2)]
    measure_costs(tmp_path, made, 1)
    assert asked[1:] == [("none + supervised", 1), ("HPCA, folded", 1)]


def test_a_damaged_file_of_costs_is_measured_again(made, tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "_apart", lambda cell, threads: Cost(cell.data, cell.arm))
    for text in ("[{", '[{"data": "tiny", "arm": "x", "price": 1}]', '{"a": 1}'):
        (tmp_path / COST).write_text(text)
        assert read_costs(tmp_path) == {}
    assert len(measure_costs(tmp_path, made, 1)) == 2


@pytest.mark.slow
def test_a_probe_that_fails_says_why_and_leaves_nothing(made, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    gone = dataclasses.replace(made[0], path=tmp_path / "gone")
    assert "gone" in cost._apart(gone, 1).message
    whole = cost._apart(made[0], 1)
    assert not whole.message and whole.passes > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_probe_that_is_killed_is_told(made, monkeypatch):
    die = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    monkeypatch.setattr(cost, "_command", lambda run, threads: [sys.executable, "-c", die])
    assert "SIGKILL" in cost._apart(made[0], 1).message


def test_the_estimate_takes_finished_cells_first_then_the_probe(made):
    costs = {
        ("tiny", "none + supervised"): Cost("tiny", "none + supervised", seconds_stage_1=0.0, seconds_stage_2=4.0),
        ("tiny", "HPCA, folded"): Cost("tiny", "HPCA, folded", seconds_stage_1=3.0, seconds_stage_2=4.0),
    }
    assert [seconds_of(cell, costs) for cell in made[:2]] == [12.0, 18.0]
    said = estimate(made[:2], [], costs, 1)
    assert said.startswith("estimate: 0:00:30 ") and f"2 from {STEPS} steps of a cell" in said
    failed = costs | {("tiny", "HPCA, folded"): Cost("tiny", "HPCA, folded", message="no")}
    assert "1 from no timing" in estimate(made[:2], [], failed, 1)


@pytest.mark.parametrize(("labels", "an_epoch"), [("1", 1), ("2", 1), ("3", 2), ("5", 3)])
def test_the_estimate_of_the_published_protocol_counts_its_epochs_and_its_looks(made, labels, an_epoch):
    """200 passes over the masks, two in a step, and 100 looks at two test images, a third of a step's work an image."""
    costs = {("tiny", "none + supervised"): Cost("tiny", "none + supervised", seconds_stage_1=0, seconds_stage_2=4.0)}
    config = dataclasses.replace(made[0].config, protocol="parity", train=TrainConfig())
    split = dataclasses.replace(config.split, labels=labels)
    cell = dataclasses.replace(made[0], config=dataclasses.replace(config, split=split))
    assert seconds_of(cell, costs) == pytest.approx(4 * (200 * an_epoch + 100 * 2 / (3 * 2)))
