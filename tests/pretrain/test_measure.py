"""The measures of a layer equal slow references over unfolded patches."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from nissl.plasticity import HPCA, SWTA, Oja, SoftHebb
from nissl.pretrain.measure import measure


def images(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def rows(layer, x, rule):
    return measure(layer, {"layer": layer}, x, rule)[0]


@torch.no_grad()
def positions(layer, x):
    """Responses without bias at each position, (positions, units)."""
    if isinstance(layer, nn.Linear):
        return functional.linear(x, layer.weight).reshape(-1, layer.out_features)
    bias = layer.bias.view(-1, *[1] * (x.ndim - 2)) if layer.bias is not None else 0.0
    return (layer(x) - bias).movedim(1, -1).reshape(-1, layer.out_channels)


LAYERS = {
    "conv2d": (lambda: nn.Conv2d(2, 5, 3, padding=1), (2, 2, 6, 7)),
    "strided": (lambda: nn.Conv2d(2, 4, (3, 2), stride=2, padding=1, bias=False), (2, 2, 7, 6)),
    "conv3d": (lambda: nn.Conv3d(2, 5, 2), (2, 2, 4, 3, 5)),
    "linear": (lambda: nn.Linear(4, 3), (6, 4)),
    "tokens": (lambda: nn.Linear(4, 3), (2, 5, 4)),
    "transposed": (lambda: nn.ConvTranspose2d(3, 4, 2, stride=2), (2, 3, 4, 5)),
}


def made(name):
    torch.manual_seed(sum(map(ord, name)))
    make, shape = LAYERS[name]
    return make(), images(*shape)


@pytest.mark.parametrize("name", LAYERS)
def test_sparsity_is_that_of_treves_and_rolls(name):
    layer, x = made(name)
    shares = []
    for y in positions(layer, x).tolist():
        mean, square = sum(map(abs, y)) / len(y), sum(value**2 for value in y) / len(y)
        shares.append(mean**2 / square)
    assert rows(layer, x, Oja())["sparsity"] == pytest.approx(1 - sum(shares) / len(shares), abs=1e-5)


def test_sparsity_is_0_where_all_respond_alike_and_near_1_where_one_does():
    layer = nn.Linear(3, 100, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.ones(100, 3))
        assert rows(layer, images(5, 3), Oja())["sparsity"] == pytest.approx(0, abs=1e-5)
        layer.weight[1:] = 0
        assert rows(layer, images(5, 3), Oja())["sparsity"] == pytest.approx(0.99, abs=1e-5)


@pytest.mark.parametrize("rule", [SWTA(), SoftHebb()])
@pytest.mark.parametrize("name", LAYERS)
def test_under_competition_dead_units_win_nowhere(name, rule):
    layer, x = made(name)
    winners = {max(range(len(y)), key=y.__getitem__) for y in positions(layer, x).tolist()}
    row = rows(layer, x, rule)
    assert row["dead_units"] == row["units"] - len(winners)
    with torch.no_grad():
        (layer.weight if layer.weight.shape[0] == row["units"] else layer.weight.movedim(1, 0))[0] = 0
    zeroed = rows(layer, x.abs(), rule)
    winners = {max(range(len(y)), key=y.__getitem__) for y in positions(layer, x.abs()).tolist()}
    assert zeroed["dead_units"] == row["units"] - len(winners)


@pytest.mark.parametrize("name", LAYERS)
def test_without_competition_dead_units_hardly_vary(name):
    layer, x = made(name)
    assert rows(layer, x, Oja())["dead_units"] == 0
    with torch.no_grad():
        (layer.weight if not getattr(layer, "transposed", False) else layer.weight.movedim(1, 0))[1] *= 1e-3
    variances = positions(layer, x).double().var(0)
    expected = sum(variance < 1e-4 * variances.mean() for variance in variances.tolist())
    assert rows(layer, x, Oja())["dead_units"] == expected == 1


def test_a_layer_in_which_nothing_varies_is_dead_as_a_whole():
    assert rows(nn.Conv2d(2, 3, 3), torch.zeros(2, 2, 5, 5), Oja())["dead_units"] == 3


def patches(layer, x):
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, x.shape[-1])
    x = functional.pad(x, layer._reversed_padding_repeated_twice)
    for axis, (width, step) in enumerate(zip(layer.kernel_size, layer.stride), start=2):
        x = x.unfold(axis, width, step)
    dims = len(layer.kernel_size)
    return x.movedim(1, dims + 1).flatten(dims + 1).flatten(0, dims)


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "transposed"])
def test_variance_explained_is_the_share_inside_the_span(name):
    layer, x = made(name)
    X = patches(layer, x).double()
    assert math.prod(X.shape) > 0 and X.shape[1] == layer.weight[0].numel()
    basis = torch.linalg.qr(layer.weight.detach().double().flatten(1).T)[0]
    expected = float((X @ basis).square().sum() / X.square().sum())
    assert rows(layer, x, HPCA())["variance_explained"] == pytest.approx(expected, rel=1e-4)
    assert 0 < expected < 1


def test_as_many_independent_filters_as_inputs_explain_everything():
    layer = nn.Conv2d(1, 9, 3, padding=1)
    assert rows(layer, images(2, 1, 6, 6), HPCA())["variance_explained"] == pytest.approx(1, abs=1e-4)


def test_equal_filters_explain_as_much_as_one():
    one, many = nn.Conv2d(2, 1, 3, bias=False), nn.Conv2d(2, 4, 3, bias=False)
    with torch.no_grad():
        many.weight.copy_(one.weight.expand(4, -1, -1, -1) * torch.tensor([1.0, 2, 3, -4]).view(4, 1, 1, 1))
    x = images(2, 2, 6, 6)
    single = rows(one, x, HPCA())["variance_explained"]
    assert rows(many, x, HPCA())["variance_explained"] == pytest.approx(single, rel=1e-3)


@pytest.mark.parametrize(
    ("layer", "rule"),
    [(nn.Conv2d(2, 4, 3), SWTA()), (nn.ConvTranspose2d(2, 4, 2), HPCA()), (nn.Conv2d(2, 4, 3, groups=2), HPCA())],
)
def test_variance_explained_is_left_out_where_it_says_nothing(layer, rule):
    assert rows(layer, images(1, 2, 5, 5), rule)["variance_explained"] is None


def test_hooks_are_removed_also_when_the_network_fails():
    layer = nn.Conv2d(2, 4, 3)
    with pytest.raises(RuntimeError):
        rows(layer, images(1, 3, 5, 5), HPCA())
    assert not layer._forward_hooks
