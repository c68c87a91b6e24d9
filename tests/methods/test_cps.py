"""Each network learns from the other's hard labels, and from its own mistakes only through the masks."""

import numpy as np
import pytest
import torch
from tests.methods.test_methods import batch, make, slow_losses

from nissl.methods.cps import pseudo_loss


def slow_pseudo(one, other):
    """Dice plus cross-entropy against the label of the largest logit, pixel by pixel in float64."""
    labels = torch.zeros(len(other), *other.shape[2:], dtype=torch.long)
    for image, *place in np.ndindex(*labels.shape):
        scores = [float(other[(image, label, *place)]) for label in range(other.shape[1])]
        labels[(image, *place)] = scores.index(max(scores))
    return sum(slow_losses(one, labels))


def logits(seed, dims=2):
    return 3 * torch.randn(2, 3, *(5, 4, 3)[:dims], generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dims", [2, 3])
def test_the_loss_against_the_others_labels_equals_a_slow_reference(dims):
    one, other = logits(0, dims), logits(1, dims)
    assert pseudo_loss(one, other).item() == pytest.approx(slow_pseudo(one, other), abs=1e-5)


def test_no_gradient_flows_through_the_labels():
    one, other = logits(0).requires_grad_(), logits(1).requires_grad_()
    pseudo_loss(one, other).backward()
    assert one.grad.abs().sum() > 0 and other.grad is None


@pytest.mark.parametrize("dims", [2, 3])
def test_the_terms_are_summed_over_both_networks_and_the_labels_over_all_images(dims):
    method, seen = make("cps", dims).eval(), batch(dims)
    with torch.no_grad():
        labelled = [network(seen.images) for network in method.networks]
        one, other = (torch.cat([first, network(seen.unlabelled)]) for first, network in zip(labelled, method.networks))
        terms = method(seen, 1.0)
    dice, surprise = (sum(pair) for pair in zip(*(slow_losses(each, seen.targets) for each in labelled)))
    assert terms["dice"].item() == pytest.approx(dice, abs=1e-5)
    assert terms["cross_entropy"].item() == pytest.approx(surprise, abs=1e-5)
    pseudo = slow_pseudo(one, other) + slow_pseudo(other, one)
    assert terms["cross_pseudo"].item() == pytest.approx(1.5 * pseudo, rel=1e-5)
    assert method.predictor() is method.networks[0]


def test_identical_networks_have_the_loss_of_their_own_labels():
    method, seen = make("cps").eval(), batch()
    method.networks[1].load_state_dict(method.networks[0].state_dict())
    with torch.no_grad():
        own = torch.cat([method.networks[0](images) for images in (seen.images, seen.unlabelled)])
        terms = method(seen, 1.0)
    assert terms["cross_pseudo"].item() == pytest.approx(1.5 * 2 * slow_pseudo(own, own), rel=1e-5)


def test_networks_start_apart_and_become_each_others_pupils():
    """With no masks to follow, each moves towards the labels of the other."""
    method, seen = make("cps").train(), batch()
    weights = [network.head.weight for network in method.networks]
    assert not torch.equal(*weights)

    def agreement():
        with torch.no_grad():
            one, other = (network(seen.unlabelled).argmax(1) for network in method.networks)
        return (one == other).double().mean().item()

    torch.manual_seed(0)
    before, optimiser = agreement(), torch.optim.AdamW(method.parameters(), lr=1e-2)
    for _ in range(30):
        optimiser.zero_grad()
        method(seen, 1.0)["cross_pseudo"].backward()
        optimiser.step()
    assert agreement() > before + 0.2
