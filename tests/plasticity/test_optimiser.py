"""A relative step moves a parameter by a fraction of its own norm, against its gradient."""

import pytest
import torch
from torch import nn

from nissl.plasticity import RelativeStep


def parameter(*shape, seed=0):
    return nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("lr", [0.02, 0.5])
def test_the_move_is_that_fraction_of_the_norm_at_any_scale(scale, lr):
    weight = parameter(3, 4)
    before = weight.detach().clone()
    weight.grad = scale * torch.randn(3, 4, dtype=torch.float64)
    RelativeStep([weight], lr=lr).step()
    move = weight.detach() - before
    torch.testing.assert_close(move.norm(), lr * before.norm())
    torch.testing.assert_close(move / move.norm(), -weight.grad / weight.grad.norm())


def test_zero_gradient_and_no_gradient_stay():
    still, none, zero = parameter(3), parameter(3, seed=1), nn.Parameter(torch.zeros(3))
    before = still.detach().clone(), none.detach().clone()
    still.grad, zero.grad = torch.zeros(3, dtype=torch.float64), torch.ones(3)
    RelativeStep([still, none, zero], lr=0.1).step()
    assert torch.equal(still, before[0]) and torch.equal(none, before[1]) and torch.equal(zero, torch.zeros(3))


def test_the_rate_of_each_group_is_used_at_the_time_of_the_step():
    one, other = parameter(5), parameter(5, seed=1)
    optimiser = RelativeStep([{"params": [one], "lr": 0.1}, {"params": [other]}], lr=0.3)
    optimiser.param_groups[0]["lr"] = 0.2
    for weight, lr in ((one, 0.2), (other, 0.3)):
        weight.grad = torch.ones(5, dtype=torch.float64)
        expected = weight.detach() - lr * weight.detach().norm() * weight.grad / weight.grad.norm()
        weight.expected = expected
    optimiser.step()
    for weight in (one, other):
        torch.testing.assert_close(weight.detach(), weight.expected)
