"""The entropy term is the mean entropy per pixel, as a share of the largest, on images without masks alone."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from tests.methods.test_methods import batch, make, over

from nissl.losses import segmentation_losses
from nissl.methods.entropy import mean_entropy


def slow_entropy(logits):
    """Pixel by pixel from shares, in float64."""
    logits, found = logits.double().numpy(), []
    for scores in logits:
        for place in np.ndindex(scores.shape[1:]):
            raised = np.exp(scores[(slice(None), *place)])
            found.append(-sum(share * math.log(share) for share in raised / raised.sum()))
    return np.mean(found) / math.log(logits.shape[1])


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("dims", [2, 3])
def test_the_entropy_equals_a_slow_reference(dims, classes):
    logits = 3 * torch.randn(3, classes, *(5, 4, 3)[:dims], generator=torch.Generator().manual_seed(dims + classes))
    assert mean_entropy(logits).item() == pytest.approx(slow_entropy(logits), abs=1e-6)


def test_a_certain_network_has_no_entropy_and_an_undecided_one_all_of_it():
    certain = 200 * torch.nn.functional.one_hot(torch.arange(16).reshape(1, 4, 4) % 3, 3).movedim(-1, 1).float()
    certain.requires_grad_()
    entropy = mean_entropy(certain)
    entropy.backward()
    assert entropy.item() == 0 and certain.grad.abs().sum() == 0  # and not NaN: shares of 0 have no logarithm
    assert mean_entropy(torch.full((1, 3, 4, 4), 7.0)).item() == pytest.approx(1, abs=1e-6)


def test_the_gradient_of_the_entropy_is_that_of_the_formula():
    logits = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(0), requires_grad=True)
    mean_entropy(logits).backward()
    place, step = (1, 2, 0, 1), 1e-5
    moved = [logits.detach().double().clone() for _ in range(2)]
    moved[0][place] += step
    moved[1][place] -= step
    slope = (slow_entropy(moved[0]) - slow_entropy(moved[1])) / (2 * step)
    assert logits.grad[place].item() == pytest.approx(slope, rel=1e-4)


def test_the_terms_are_those_of_the_masks_and_the_weighted_entropy_of_the_other_images():
    seen, network = batch(), make("entropy").predictor()
    for options, full in (({}, 0.2), ({"weight": 3.0}, 3.0)):
        method = over(network, "entropy", **options).eval()
        for progress, share in ((0.0, math.exp(-5)), (0.2, math.exp(-5 / 4)), (0.4, 1), (1.0, 1)):
            terms = method(seen, progress)
            assert {name: terms.pop(name).item() for name in ("entropy",)} == {
                "entropy": pytest.approx(full * share * slow_entropy(network(seen.unlabelled).detach()), abs=1e-6)
            }
            assert terms == segmentation_losses(network(seen.images), seen.targets)


def test_images_without_masks_are_needed():
    with pytest.raises(ValueError, match="images without masks"):
        make("entropy")(dataclasses.replace(batch(), unlabelled=None), 0.0)
