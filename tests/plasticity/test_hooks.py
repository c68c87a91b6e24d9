"""Plasticity of a network is the update of each layer, taken from what passes through it."""

import pytest
import torch
from torch import nn

from nissl.plasticity import HPCA, SWTA, Plasticity, RelativeStep, plastic_layers, update


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.LeakyReLU(inplace=True),
        nn.ConvTranspose2d(4, 3, 2, stride=2),
        nn.Flatten(),
        nn.Linear(3 * 8 * 8, 5),
    ).double()


def images(count=3, seed=1):
    return torch.randn(count, 2, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weights(net):
    return {name: layer.weight.detach().clone() for name, layer in plastic_layers(net)}


def inputs_of(net, x):
    """What each layer sees, caught without our hooks."""
    seen = {}
    for name, module in net.named_children():
        seen[name] = x.detach().clone()
        x = module(x)
    return seen


def plain_step(net, lr=1.0):
    return torch.optim.SGD(net.parameters(), lr=lr)


@pytest.mark.parametrize("rule", [HPCA(), SWTA(5.0, standardise=True)])
@pytest.mark.parametrize("form", ["T", "S"])
def test_every_layer_moves_by_the_update_of_what_it_saw(rule, form):
    net, x = small_net(), images()
    before, seen = weights(net), inputs_of(net, x)
    expected = {name: update(net.get_submodule(name), seen[name], rule, transposed=form) for name in before}
    with Plasticity(net, rule, transposed=form) as plasticity:
        net(x)
        plasticity.step(plain_step(net, lr=0.5))
    for name, weight in weights(net).items():
        torch.testing.assert_close(weight, before[name] + 0.5 * expected[name], rtol=1e-12, atol=1e-14)


def test_raw_filters_respond_where_unit_norm_is_off():
    net, x = small_net(), images()
    before, seen = weights(net), inputs_of(net, x)
    expected = {name: update(net.get_submodule(name), seen[name], HPCA(), unit_norm=False) for name in before}
    with Plasticity(net, HPCA(), unit_norm=False) as plasticity:
        net(x)
        plasticity.step(plain_step(net))
    for name, weight in weights(net).items():
        torch.testing.assert_close(weight, before[name] + expected[name], rtol=1e-12, atol=1e-14)


def test_forward_passes_before_a_step_are_averaged_over_samples():
    together, apart, x = small_net(), small_net(), images(5)
    for net, batches in ((together, [x]), (apart, [x[:1], x[1:]])):
        with Plasticity(net, HPCA()) as plasticity:
            for batch in batches:
                net(batch)
            plasticity.step(plain_step(net))
    for name, weight in weights(apart).items():
        torch.testing.assert_close(weight, weights(together)[name], rtol=1e-12, atol=1e-14)


def test_sums_start_anew_after_a_step():
    once, twice, x = small_net(), small_net(), images()
    with Plasticity(once, HPCA()) as plasticity:
        once(x)
        plasticity.step(plain_step(once, lr=0.0))
        once(x)
        plasticity.step(plain_step(once))
    with Plasticity(twice, HPCA()) as plasticity:
        twice(x)
        plasticity.step(plain_step(twice))
    for name, weight in weights(once).items():
        torch.testing.assert_close(weight, weights(twice)[name])


def test_a_layer_used_twice_learns_from_both():
    layer = nn.Linear(3, 3, bias=False).double()
    net, x = nn.Sequential(layer, layer), torch.randn(4, 3, dtype=torch.float64)
    y = layer(x).detach()
    expected = layer.weight.detach() + update(layer, torch.cat([x, y]), HPCA())
    with Plasticity(net, HPCA()) as plasticity:
        net(x)
        plasticity.step(plain_step(net))
    torch.testing.assert_close(layer.weight.detach(), expected, rtol=1e-12, atol=1e-14)


def test_excluded_modules_do_not_learn_with_all_inside_them():
    net = nn.ModuleDict({"body": nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), "body2": nn.Linear(3, 2)})
    before = weights(net)
    with Plasticity(net, HPCA(), exclude=("body",)) as plasticity:
        net["body2"](net["body"](torch.randn(4, 3)))
        plasticity.step(plain_step(net))
    after = weights(net)
    assert list(plasticity.layers) == ["body2"]
    assert torch.equal(before["body.0"], after["body.0"]) and torch.equal(before["body.1"], after["body.1"])
    assert not torch.equal(before["body2"], after["body2"])


def test_an_unknown_exclusion_is_refused_with_the_list():
    with pytest.raises(ValueError, match=r"no module named haed; there are 0, 1, 2, 3, 4"):
        Plasticity(small_net(), HPCA(), exclude=("haed",))


def test_a_network_without_plastic_layers_is_refused():
    with pytest.raises(ValueError, match="no Linear, Conv or ConvTranspose"):
        Plasticity(nn.Sequential(nn.ReLU()), HPCA())
    with pytest.raises(ValueError, match="may learn"):
        Plasticity(nn.Sequential(nn.Linear(2, 2)), HPCA(), exclude=("0",))


def hooks(net):
    return sum(len(module._forward_hooks) for module in net.modules())


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("graph", [False, True])
def test_hooks_and_grad_mode_are_as_before_after_the_block(fails, graph):
    net = small_net()
    with torch.set_grad_enabled(graph):
        try:
            with Plasticity(net, HPCA()):
                assert hooks(net) == 3 and not torch.is_grad_enabled()
                assert not net(images()).requires_grad
                if fails:
                    raise KeyError
        except KeyError:
            assert fails
        assert hooks(net) == 0 and torch.is_grad_enabled() is graph


def test_a_step_needs_a_forward_pass():
    net = small_net()
    with Plasticity(net, HPCA()) as plasticity, pytest.raises(RuntimeError, match="forward"):
        plasticity.step(plain_step(net))


def test_nothing_but_the_weights_changes():
    net = small_net()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with Plasticity(net, HPCA()) as plasticity:
        net(images())
        plasticity.step(plain_step(net))
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name]) is name.endswith("bias")
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())


def test_a_layer_that_the_network_does_not_use_stays():
    net = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    before = weights(net)
    with Plasticity(net, HPCA()) as plasticity:
        net[0](torch.randn(4, 3))
        plasticity.step(plain_step(net))
    assert torch.equal(weights(net)["1"], before["1"]) and not torch.equal(weights(net)["0"], before["0"])


def test_memory_format_changes_nothing():
    plain, laid, x = small_net()[:3], small_net()[:3], images()
    laid = laid.to(memory_format=torch.channels_last)
    for net, batch in ((plain, x), (laid, x.contiguous(memory_format=torch.channels_last))):
        with Plasticity(net, SWTA(5.0, standardise=True)) as plasticity:
            net(batch)
            plasticity.step(RelativeStep(net.parameters(), lr=0.1))
    for name, weight in weights(laid).items():
        torch.testing.assert_close(weight, weights(plain)[name], rtol=1e-10, atol=1e-12)
    assert laid[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_half_precision_of_activations_moves_full_weights():
    exact, half, x = small_net().float(), small_net().float(), images().float()
    for net, enabled in ((exact, False), (half, True)):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled), Plasticity(net, HPCA()) as plasticity:
            net(x)
            plasticity.step(plain_step(net, lr=0.1))
    for name, weight in weights(half).items():
        assert weight.dtype == torch.float32
        moved, wanted = (
            weight - weights(small_net().float())[name],
            weights(exact)[name] - weights(small_net().float())[name],
        )
        assert torch.linalg.vector_norm(moved - wanted) < 0.05 * torch.linalg.vector_norm(wanted)
