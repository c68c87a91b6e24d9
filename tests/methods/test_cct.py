"""Cross-consistency against a slow reference; who gets gradients; what the perturbations do."""

import numpy as np
import pytest
import torch
from scipy.special import softmax
from tests.methods.test_methods import NET, batch, over

from nissl.losses import segmentation_losses
from nissl.methods import METHODS
from nissl.methods.cct import channel_dropout, cross_consistency, feature_dropout, feature_noise
from nissl.nets import factory
from nissl.pretrain import PRETRAININGS


def make(dims=2, seed=0, **settings):
    return over(factory.build(NET, dims, 2, 3, seed), "cct", **settings).train()


def gradients(module):
    return [0.0 if p.grad is None else float(p.grad.abs().sum()) for p in module.parameters()]


@pytest.mark.parametrize("dims", [2, 3])
def test_the_consistency_equals_a_slow_reference(dims):
    torch.manual_seed(dims)
    main, *others = (3 * torch.randn(2, 3, *(5, 4, 3)[:dims]) for _ in range(4))
    target = softmax(main.double().numpy(), axis=1)
    expected = np.mean([np.mean((softmax(other.double().numpy(), axis=1) - target) ** 2) for other in others])
    assert cross_consistency(others, main).item() == pytest.approx(expected, rel=1e-5)


def test_the_main_prediction_gets_no_gradient():
    main, other = torch.randn(1, 2, 4, 4, requires_grad=True), torch.randn(1, 2, 4, 4, requires_grad=True)
    cross_consistency([other], main).backward()
    assert main.grad is None and other.grad.abs().sum() > 0


def test_masks_teach_the_main_decoder_and_it_teaches_the_others():
    method, seen = make(), batch()
    terms = method(seen, 1.0)
    terms["consistency"].backward(retain_graph=True)
    net = method.networks[0]
    assert sum(gradients(net.decoder)) == sum(gradients(net.head)) == 0
    assert sum(gradients(net.encoder)) > 0
    assert all(value > 0 for other in method.auxiliaries for value in gradients(other.head))
    before = gradients(method.auxiliaries)
    (terms["dice"] + terms["cross_entropy"]).backward()
    assert gradients(method.auxiliaries) == before
    assert sum(gradients(net.decoder)) > 0


def test_equal_decoders_that_see_the_same_features_agree():
    method, seen = make(), batch()
    assert method(seen, 1.0)["consistency"].item() > 1e-4
    method.perturbations = (lambda level: level,) * 3
    for other in method.auxiliaries:
        other.decoder.load_state_dict(method.networks[0].decoder.state_dict())
        other.head.load_state_dict(method.networks[0].head.state_dict())
    net = method.networks[0]
    net.encoder.eval()  # no dropout of its own
    assert method(seen, 1.0)["consistency"].item() == 0


def test_the_terms_are_those_of_the_main_decoder_and_the_consistency_rises():
    method, seen = make(weight=2.0, ramp=1.0).eval(), batch()
    expected = segmentation_losses(method.networks[0](seen.images), seen.targets)
    values = []
    for progress in (0.0, 1.0):
        torch.manual_seed(0)
        terms = method(seen, progress)
        assert list(terms) == ["dice", "cross_entropy", "consistency"]
        assert all(torch.equal(terms[name], expected[name]) for name in expected)
        values.append(terms["consistency"].item())
    assert values[0] == pytest.approx(np.exp(-5) * values[1], rel=1e-5)
    assert METHODS.make("cct").weight == 5.0


def test_the_auxiliary_decoders_are_decoders_of_their_own_near_the_pretrained_one():
    method = make()
    main = dict(method.networks[0].decoder.named_parameters())
    for other in method.auxiliaries:
        for name, weight in other.decoder.named_parameters():
            assert weight is not main[name]
            if weight.ndim == 1:
                assert torch.equal(weight, main[name])
                continue
            moved = (weight - main[name]).square().mean().sqrt() / main[name].square().mean().sqrt()
            assert float(moved.detach()) == pytest.approx(0.1, rel=0.2)
    one, two, three = (other.head.weight for other in method.auxiliaries)
    assert not torch.equal(one, two) and not torch.equal(two, three)


def test_the_auxiliary_decoders_depend_on_no_seed_and_leave_the_random_state_alone():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = make()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second = make().auxiliaries.state_dict()
    assert all(torch.equal(second[name], tensor) for name, tensor in first.auxiliaries.state_dict().items())


def test_filters_of_unit_norm_stay_so_in_every_decoder():
    net = factory.build(NET, 2, 2, 3, 0)
    PRETRAININGS["unit-norm"](net, PRETRAININGS.make("unit-norm")).restructure()
    method = over(net, "cct").train()
    optimiser = torch.optim.SGD(method.parameters(), lr=0.1)
    sum(method(batch(), 1.0).values()).backward()
    optimiser.step()
    kernels = [decoder.blocks[0][0] for decoder in (net.decoder, *(a.decoder for a in method.auxiliaries))]
    for kernel in kernels:
        torch.testing.assert_close(kernel.weight.flatten(1).norm(dim=1), torch.ones(4))
    assert len({float(kernel.weight[0, 0, 0, 0].detach()) for kernel in kernels}) == 4


# Perturbations


@pytest.mark.parametrize("dims", [2, 3])
def test_feature_noise_scales_each_feature_by_up_to_a_third(dims):
    torch.manual_seed(0)
    level = torch.randn(2, 4, *[16] * dims)
    factor = feature_noise(level) / level
    assert 0.7 <= factor.min() < 0.71 and 1.29 < factor.max() <= 1.3001
    assert factor.mean().item() == pytest.approx(1, abs=0.02)
    assert factor.std().item() == pytest.approx(0.3 / 3**0.5, rel=0.05)


@pytest.mark.parametrize("dims", [2, 3])
def test_channel_dropout_drops_whole_channels(dims):
    torch.manual_seed(0)
    level = torch.ones(20, 50, *[3] * dims)
    values = channel_dropout(level).flatten(2)
    assert torch.equal(values.amin(2), values.amax(2))
    kept = values[:, :, 0] > 0
    assert kept.double().mean().item() == pytest.approx(0.7, abs=0.05)
    torch.testing.assert_close(values[:, :, 0][kept], torch.full((int(kept.sum()),), 1 / 0.7))


@pytest.mark.parametrize("dims", [2, 3])
def test_feature_dropout_erases_the_places_of_most_attention(dims):
    torch.manual_seed(0)
    level = torch.rand(3, 4, *[8] * dims)
    level[1] *= 100  # the threshold is of each image
    disturbed = feature_dropout(level)
    erased = (disturbed == 0).all(1)
    assert torch.equal(disturbed, level * ~erased[:, None])
    for gone, seen in zip(erased, level.mean(1)):
        assert float(seen[gone].min() / seen.max()) >= 0.7 and float(seen[~gone].max() / seen.max()) < 0.9
        assert seen[~gone].max() < seen[gone].min()
