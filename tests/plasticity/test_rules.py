"""What each rule converges to."""

import torch
from torch import nn

from nissl.plasticity import HPCA, SWTA, Oja, SoftHebb, update


def gaussian(spectrum, samples, generator):
    """Samples of a Gaussian of known covariance, and its eigenvectors as rows, in order."""
    basis = torch.linalg.qr(torch.randn(len(spectrum), len(spectrum), generator=generator, dtype=torch.float64))[0]
    scaled = (
        torch.randn(samples, len(spectrum), generator=generator, dtype=torch.float64) * torch.tensor(spectrum) ** 0.5
    )
    return scaled @ basis.T, basis.T


def learn(rule, layer, data, steps, rate, unit_norm=False):
    with torch.no_grad():
        for _ in range(steps):
            layer.weight += rate * update(layer, data, rule, unit_norm=unit_norm)
    return layer.weight.detach()


def test_hpca_converges_to_the_ordered_eigenvectors():
    generator = torch.Generator().manual_seed(0)
    data, _ = gaussian([8.0, 4.0, 2.0, 1.0, 0.5], 4000, generator)
    layer = nn.Linear(5, 3, bias=False).double()
    weight = learn(HPCA(), layer, data, 1500, 0.05)
    vectors = torch.linalg.eigh(data.T @ data / len(data)).eigenvectors.flip(1).T[:3]
    torch.testing.assert_close((weight * vectors).sum(1).abs(), torch.ones(3, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(weight.norm(dim=1), torch.ones(3, dtype=torch.float64), atol=1e-6, rtol=0)


def test_centred_hpca_finds_the_components_of_the_covariance_wherever_the_mean_lies():
    data, _ = gaussian([8.0, 4.0, 2.0, 1.0, 0.5], 4000, torch.Generator().manual_seed(0))
    far = data + 10 * torch.ones(5, dtype=torch.float64)
    layer = nn.Linear(5, 3, bias=False).double()
    weight = learn(HPCA(centred=True), layer, far, 1500, 0.05)
    vectors = torch.linalg.eigh(torch.cov(far.T)).eigenvectors.flip(1).T[:3]
    torch.testing.assert_close((weight * vectors).sum(1).abs(), torch.ones(3, dtype=torch.float64), atol=1e-6, rtol=0)


def test_no_filter_wins_everywhere_for_lying_near_the_mean_where_responses_are_centred():
    generator = torch.Generator().manual_seed(5)
    data = torch.randn(500, 6, generator=generator, dtype=torch.float64) + 4
    layers = [nn.Linear(6, 8, bias=False).double() for _ in range(2)]
    winners = []
    for layer, centred in zip(layers, (False, True), strict=True):
        with torch.no_grad():
            layer.weight.copy_(nn.functional.normalize(torch.randn(8, 6, generator=generator, dtype=torch.float64)))
        rule = SWTA(5.0, standardise=True, centred=centred)
        for _ in range(200):
            with torch.no_grad():
                layer.weight += 0.05 * update(layer, data, rule)
                layer.weight.copy_(nn.functional.normalize(layer.weight))
        y = layer(data).detach()
        winners.append(len(((y - y.mean(0)) if centred else y).argmax(1).unique()))
    assert winners[0] < 8 and winners[1] == 8


def test_hpca_finds_the_known_covariance_from_samples():
    generator = torch.Generator().manual_seed(1)
    data, truth = gaussian([8.0, 4.0, 2.0, 1.0, 0.5], 10000, generator)
    layer = nn.Linear(5, 3, bias=False).double()
    weight = learn(HPCA(), layer, data, 800, 0.05)
    assert ((weight * truth[:3]).sum(1).abs() > 0.999).all()


def test_hpca_of_a_convolution_finds_the_components_of_its_patches():
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(4, 1, 24, 24, generator=generator, dtype=torch.float64)
    images = nn.functional.conv2d(
        images, torch.tensor([[[[0.2, 0.5, 0.1], [0.6, 1.0, 0.3], [0.1, 0.4, 0.1]]]]).double()
    )
    layer = nn.Conv2d(1, 2, 3, bias=False).double()
    weight = learn(HPCA(), layer, images, 2000, 0.05).flatten(1)
    patches = nn.functional.unfold(images, 3).movedim(1, 2).flatten(0, 1)
    vectors = torch.linalg.eigh(patches.T @ patches).eigenvectors.flip(1).T[:2]
    assert ((weight * vectors).sum(1).abs() > 1 - 1e-6).all()


def test_oja_brings_every_neuron_to_the_first_component():
    generator = torch.Generator().manual_seed(3)
    data, _ = gaussian([6.0, 2.0, 1.0, 0.5], 2000, generator)
    layer = nn.Linear(4, 3, bias=False).double()
    weight = learn(Oja(), layer, data, 1500, 0.05)
    first = torch.linalg.eigh(data.T @ data).eigenvectors[:, -1]
    assert ((weight @ first).abs() > 1 - 1e-6).all()


def test_swta_finds_the_centres_of_clusters():
    generator = torch.Generator().manual_seed(4)
    centres = 3 * torch.eye(3, 6, dtype=torch.float64)
    data = centres.repeat(200, 1) + 0.1 * torch.randn(600, 6, generator=generator, dtype=torch.float64)
    layer = nn.Linear(6, 3, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(data[:3] + 0.3)
    weight = learn(SWTA(10.0), layer, data, 400, 0.5, unit_norm=True)
    torch.testing.assert_close(weight, centres, atol=0.05, rtol=0)


def test_softhebb_filters_reach_unit_norm():
    generator = torch.Generator().manual_seed(5)
    data = torch.randn(500, 8, generator=generator, dtype=torch.float64)
    layer = nn.Linear(8, 4, bias=False).double()
    weight = learn(SoftHebb(3.0), layer, data, 3000, 0.2)
    torch.testing.assert_close(weight.norm(dim=1), torch.ones(4, dtype=torch.float64), atol=1e-3, rtol=0)


def test_anti_hebbian_losers_turn_away():
    y = torch.tensor([[[2.0], [1.0], [0.0]]])
    signed = SoftHebb(anti_hebbian=True).respond(y, None)
    assert signed[0, 0] > 0 and (signed[0, 1:] < 0).all()
    torch.testing.assert_close(signed.abs(), SoftHebb().respond(y, None))
