"""3-D in bfloat16 on a CPU: small maps are computed in float32, large ones are not."""

import pytest
import torch
from torch import nn

from nissl.nets.factory import build
from nissl.nets.precise import SMALL, PreciseConvolution, make_precise
from nissl.nets.settings import ForeignNet, UNet


def gradient(layer, x, half):
    layer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        y = layer(x)
    y.float().square().mean().backward()
    return y.detach(), layer.weight.grad.clone()


@pytest.mark.parametrize("side", [1, 2, SMALL, SMALL + 1])
def test_small_maps_have_the_result_and_gradient_of_float32(side):
    torch.manual_seed(0)
    layer, x = make_precise(nn.Conv3d(4, 6, 3, padding=1)), torch.randn(2, 4, side, side, side)
    (y, grad), (exact, slope) = gradient(layer, x, half=True), gradient(layer, x, half=False)
    assert y.dtype == (torch.float32 if side <= SMALL else torch.bfloat16)
    assert torch.equal(grad, slope) is (side <= SMALL)
    torch.testing.assert_close(y.float(), exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    "settings", [UNet(widths=(4, 8), dropout=(0, 0)), ForeignNet(name="monai.networks.nets:BasicUNet")]
)
def test_all_3d_convolutions_of_every_network_are_of_this_kind(settings):
    kinds = {type(module) for module in build(settings, 3, 1, 2, 0).modules() if isinstance(module, nn.Conv3d)}
    assert kinds == {PreciseConvolution}


def test_a_step_in_bfloat16_on_small_volumes_is_finite_and_the_same_each_time():
    net = build(UNet(widths=(4, 8, 16), dropout=(0, 0, 0)), 3, 1, 2, 0).train()
    x = torch.randn(2, 1, 8, 8, 8)
    found = []
    for _ in range(3):
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            net(x).float().square().mean().backward()
        found.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    assert found[0].isfinite().all() and all(torch.equal(one, found[0]) for one in found)
