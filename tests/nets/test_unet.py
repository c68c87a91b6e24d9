"""The U-Net is one code for 2-D and 3-D, with the parts and the size that its paper states."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from nissl.nets import factory, settings
from nissl.nets.unet import UNet

SMALL = settings.UNet(widths=(4, 6, 8), dropout=(0.0, 0.1, 0.2))
SIZES = {2: (16, 24), 3: (8, 12, 16)}
KINDS = {2: (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d), 3: (nn.Conv3d, nn.ConvTranspose3d, nn.BatchNorm3d)}


def unet(dims=2, config=SMALL, channels=2, classes=3):
    return factory.build(config, dims, channels, classes, seed=0)


def parameters_by_formula(dims, channels, classes, widths, transposed):
    """Count by hand: 3-wide kernels without bias, two numbers of BatchNorm per channel, a head with bias."""

    def block(a, b):
        return 3**dims * (a * b + b * b) + 2 * 2 * b

    total = block(channels, widths[0]) + sum(block(a, b) for a, b in pairwise(widths))
    for fine, coarse in pairwise(widths):
        total += coarse * fine * (2**dims if transposed else 1) + block(2 * fine, fine)
    return total + widths[0] * classes + classes


@pytest.mark.parametrize("dims", [2, 3])
def test_logits_have_the_size_of_the_images(dims):
    images = torch.randn(2, 2, *SIZES[dims])
    assert unet(dims)(images).shape == (2, 3, *SIZES[dims])


@pytest.mark.parametrize("dims", [2, 3])
def test_features_halve_and_double_level_by_level(dims):
    net, size = unet(dims), SIZES[dims]
    down = net.encoder(torch.randn(1, 2, *size))
    assert [f.shape for f in down] == [(1, w, *(s // 2**k for s in size)) for k, w in enumerate(SMALL.widths)]
    up = net.decoder(down)
    assert [f.shape for f in up] == [f.shape for f in reversed(down)]
    assert torch.equal(up[0], down[-1])


@pytest.mark.parametrize("dims", [2, 3])
def test_the_parts_are_those_of_the_dimension(dims):
    net = unet(dims)
    wrong = KINDS[5 - dims]
    assert not any(isinstance(module, wrong) for module in net.modules())
    convolution, transposed, norm = KINDS[dims]
    count = {kind: sum(isinstance(module, kind) for module in net.modules()) for kind in KINDS[dims]}
    assert count == {convolution: 2 * 5 + 1, transposed: 2, norm: 2 * 5}


@pytest.mark.parametrize("upsampling", ["transposed", "linear"])
@pytest.mark.parametrize(("dims", "channels", "classes"), [(2, 3, 2), (3, 1, 3)])
def test_the_default_network_has_as_many_parameters_as_the_formula(dims, channels, classes, upsampling):
    config = settings.UNet(upsampling=upsampling)
    net = factory.build(config, dims, channels, classes, seed=0)
    expected = parameters_by_formula(dims, channels, classes, (16, 32, 64, 128, 256), upsampling == "transposed")
    assert sum(parameter.numel() for parameter in net.parameters()) == expected


def test_transposed_layers_double_without_overlap_and_linear_ones_interpolate():
    transposed, linear = (
        unet().decoder.ups[0],
        unet(config=settings.UNet(widths=(4, 6), dropout=(0.0, 0.0), upsampling="linear")).decoder.ups[0],
    )
    assert (transposed.kernel_size, transposed.stride, transposed.bias) == ((2, 2), (2, 2), None)
    assert not any(isinstance(module, nn.ConvTranspose2d) for module in linear.modules())
    with torch.no_grad():
        linear[0].weight.copy_(torch.eye(4, 6)[:, :, None, None])
        ramp = torch.arange(4.0).expand(1, 6, 4, 4)
        expected = torch.tensor([0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0])
        torch.testing.assert_close(linear(ramp)[0, 0], expected.expand(8, 8))


@pytest.mark.parametrize("upsampling", ["transposed", "linear"])
@pytest.mark.parametrize("dims", [2, 3])
def test_a_wrong_size_is_refused_with_the_padded_size(dims, upsampling):
    net = unet(dims, settings.UNet(widths=SMALL.widths, dropout=SMALL.dropout, upsampling=upsampling))
    assert factory.multiple(net) == 4
    size = (16, 18, 5)[:dims]
    padded = (16, 20, 8)[:dims]
    with pytest.raises(ValueError) as caught:
        net(torch.zeros(1, 2, *size))
    assert str(size) in str(caught.value) and f"pad it to {padded}" in str(caught.value)
    assert net(torch.zeros(1, 2, *padded)).shape[2:] == padded


def test_only_the_head_has_a_bias_and_dropout_is_that_of_its_level():
    net = unet()
    assert [name for name, _ in net.named_parameters() if name.endswith("bias")][-1] == "head.bias"
    assert not any(
        module.bias is not None
        for name, module in net.named_modules()
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and name != "head"
    )
    rates = [module.p for module in net.encoder.modules() if isinstance(module, nn.Dropout)]
    assert rates == list(SMALL.dropout)
    assert all(module.p == 0 for module in net.decoder.modules() if isinstance(module, nn.Dropout))


@pytest.mark.parametrize("dims", [2, 3])
def test_initialisation_keeps_the_variance_of_the_signal(dims):
    net = UNet(dims, 3, 2, settings.UNet(widths=(64, 128), dropout=(0.0, 0.0)))
    for module in net.modules():
        if isinstance(module, KINDS[dims][0]):
            fan_in = module.weight[0].numel()
            expected = (2 / (1 + 0.01**2) / fan_in) ** 0.5
        elif isinstance(module, KINDS[dims][1]):
            expected = (
                module.in_channels**-0.5
            )  # one position of the input reaches each output, and no rectifier follows
        else:
            continue
        if module.weight.numel() > 500:
            torch.testing.assert_close(module.weight.std().item(), expected, rtol=0.1, atol=0)
    assert (net.head.bias == 0).all()


@pytest.mark.parametrize(("name", "kind"), [("leaky-relu", nn.LeakyReLU), ("relu", nn.ReLU), ("silu", nn.SiLU)])
def test_the_activation_is_the_one_asked_for_and_the_start_is_the_same(name, kind):
    net, plain = unet(config=replace(SMALL, activation=name)), unet()
    assert SMALL.activation == "leaky-relu"
    # Two in each block: three in the encoder, two in the decoder.
    assert [type(module) for module in net.modules() if type(module) in (nn.LeakyReLU, nn.ReLU, nn.SiLU)] == [kind] * 10
    assert all(torch.equal(weight, plain.state_dict()[key]) for key, weight in net.state_dict().items())
