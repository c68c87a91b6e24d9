import math

import pytest
import torch
from torch import nn

from nissl.config import TrainConfig
from nissl.learner import Learner
from nissl.nets import factory
from nissl.nets.settings import UNet
from nissl.schedule import learning_rate


class Over(Learner):
    """A learner of one network, of which some parameters learn at a fraction of the rate."""

    def __init__(self, net, slow=(), fraction=1.0):
        super().__init__()
        self.net, self.fine_tuning = net, (slow, fraction)


def make_optimiser(net, config, slow=(), fraction=1.0):
    return Over(net, slow, fraction).optimiser(config)


def rates(**settings):
    config = TrainConfig(learning_rate=0.5, **settings)
    return [learning_rate(step, config) for step in range(config.steps)]


@pytest.mark.parametrize("schedule", ["cosine", "step"])
def test_warmup_is_linear_and_reaches_the_peak(schedule):
    curve = rates(steps=40, warmup=0.2, schedule=schedule)
    assert curve[:8] == pytest.approx([0.5 * (step + 1) / 8 for step in range(8)])
    assert max(curve) == curve[7] == 0.5


def test_cosine_falls_along_a_half_cosine_to_zero():
    curve = rates(steps=1000, warmup=0.1)[100:]
    expected = [0.25 * (1 + math.cos(math.pi * step / 900)) for step in range(900)]
    assert curve == pytest.approx(expected)
    assert curve == sorted(curve, reverse=True)
    assert 0 < curve[-1] < 1e-5 * 0.5


def test_step_schedule_halves_at_each_quarter():
    curve = rates(steps=16, warmup=0, schedule="step")
    assert curve == [0.5] * 4 + [0.25] * 4 + [0.125] * 4 + [0.0625] * 4


def test_the_step_schedule_counts_quarters_of_all_steps_from_the_end_of_the_warm_up():
    curve = rates(steps=40, warmup=0.2, schedule="step")[8:]
    assert curve == [0.5] * 10 + [0.25] * 10 + [0.125] * 10 + [0.0625] * 2


def test_quarters_of_a_number_that_four_does_not_divide():
    curve = rates(steps=10, warmup=0, schedule="step")
    assert [curve.count(rate) for rate in (0.5, 0.25, 0.125, 0.0625)] == [3, 2, 3, 2]


@pytest.mark.parametrize("schedule", ["cosine", "step"])
def test_without_warmup_the_first_step_is_at_the_peak(schedule):
    assert rates(steps=20, warmup=0, schedule=schedule)[0] == 0.5


@pytest.mark.parametrize("schedule", ["cosine", "step"])
@pytest.mark.parametrize("warmup", [0, 0.1, 1])
def test_one_step_learns_at_the_peak(schedule, warmup):
    assert rates(steps=1, warmup=warmup, schedule=schedule) == [0.5]


def test_warmup_of_the_whole_run_ends_at_the_peak():
    assert rates(steps=4, warmup=1) == [0.125, 0.25, 0.375, 0.5]


@pytest.mark.parametrize("schedule", ["cosine", "step"])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("warmup", [0, 0.07, 0.5, 1])
def test_every_rate_moves_the_weights_and_none_passes_the_peak(schedule, steps, warmup):
    assert all(0 < rate <= 0.5 for rate in rates(steps=steps, warmup=warmup, schedule=schedule))


@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
def test_weights_of_one_dimension_do_not_decay(optimiser):
    net = factory.build(UNet(widths=(4, 8), dropout=(0, 0)), 2, 1, 2, seed=0)
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    make_optimiser(net, TrainConfig(optimiser=optimiser, learning_rate=0.1, weight_decay=0.5)).step()
    for name, parameter in net.named_parameters():
        share = 1.0 if parameter.ndim == 1 else 0.95  # 1 - 0.1 * 0.5
        torch.testing.assert_close(parameter, share * before[name])
    assert {parameter.ndim for parameter in net.parameters()} == {1, 4}


def test_each_parameter_that_learns_is_in_one_group_and_frozen_ones_in_none():
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    net[0].weight.requires_grad_(False)
    optimiser = make_optimiser(net, TrainConfig())
    held = [id(parameter) for group in optimiser.param_groups for parameter in group["params"]]
    learning = {id(parameter) for parameter in net.parameters() if parameter.requires_grad}
    assert len(held) == len(set(held)) and set(held) == learning


@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
def test_parameters_apart_learn_at_their_share_of_the_rate(optimiser):
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    config = TrainConfig(optimiser=optimiser, learning_rate=0.1, weight_decay=0)
    made = make_optimiser(net, config, list(net[0].parameters()), 0.25)
    shares = {id(p): group["share"] for group in made.param_groups for p in group["params"]}
    assert shares == {id(p): 0.25 if p is net[0].weight or p is net[0].bias else 1.0 for p in net.parameters()}
    usual = make_optimiser(net, config, list(net[0].parameters()), 1.0)
    assert [len(group["params"]) for group in usual.param_groups] == [2, 4]
