"""The consistency counts where the mean of the teacher's passes is certain, and is a mean over those pixels."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from tests.methods.test_mean_teacher import apart, shares_of
from tests.methods.test_methods import batch
from torch import nn

from nissl.methods import mean_teacher
from nissl.methods.uamt import certain, masked_distance


def random_shares(seed, classes=3, space=(5, 4)):
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(4 * torch.randn(2, classes, *space, generator=generator), dim=1)


def slow_certain(shares, progress):
    """Pixel by pixel, in float64."""
    shares = np.asarray(shares, np.float64)
    threshold = (0.75 + 0.25 * math.exp(-5 * (1 - progress) ** 2)) * math.log(shares.shape[1])
    mask = np.zeros((len(shares), *shares.shape[2:]), bool)
    for image, *place in np.ndindex(mask.shape):
        pixel = shares[(image, slice(None), *place)]
        mask[(image, *place)] = -sum(share * math.log(share) for share in pixel if share > 0) < threshold
    return mask


def slow_distance(shares, target, mask):
    """Sum over certain pixels and classes, by their number."""
    total, places = 0.0, np.argwhere(np.asarray(mask))
    for image, *place in places:
        pixel = (image, slice(None), *place)
        total += np.sum((np.asarray(shares, np.float64)[pixel] - np.asarray(target, np.float64)[pixel]) ** 2)
    return total / (shares.shape[1] * max(1, len(places)))


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("space", [(5, 4), (5, 4, 3)])
def test_mask_and_distance_equal_a_slow_reference(progress, space):
    mean, shares, target = (random_shares(seed, space=space) for seed in range(3))
    mean = 0.7 * mean + 0.1  # near enough to undecided that some pixels are above the threshold and some below
    mask = certain(mean, progress)
    assert np.array_equal(mask, slow_certain(mean, progress)) and mask.any()
    assert not mask.all() or progress == 1
    found = masked_distance(shares, target, mask)
    assert found.item() == pytest.approx(slow_distance(shares, target, mask), rel=1e-5)


@pytest.mark.parametrize("classes", [2, 5])
def test_the_threshold_rises_to_the_largest_entropy_of_any_number_of_classes(classes):
    undecided = torch.full((1, classes, 2, 2), 1 / classes)
    sure = torch.zeros(1, classes, 2, 2).index_fill(1, torch.tensor(0), 1.0)
    nearly = torch.lerp(undecided, sure, 0.1)
    assert not certain(undecided, 0.0).any() and certain(sure, 0.0).all()
    assert not certain(nearly, 0.0).any() and certain(nearly, 1.0).all()


def test_nothing_is_certain_and_the_distance_is_zero_with_a_gradient_of_zero():
    shares, target = random_shares(0).requires_grad_(), random_shares(1)
    distance = masked_distance(shares, target, torch.zeros(2, 5, 4, dtype=torch.bool))
    distance.backward()
    assert distance.item() == 0 and shares.grad.abs().sum() == 0


def test_all_is_certain_and_the_distance_is_that_of_the_mean_teacher():
    shares, target = random_shares(0), random_shares(1)
    distance = masked_distance(shares, target, torch.ones(2, 5, 4, dtype=torch.bool))
    torch.testing.assert_close(distance, nn.functional.mse_loss(shares, target))


def test_uncertain_pixels_have_no_gradient():
    shares, target = random_shares(0).requires_grad_(), random_shares(1)
    mask = torch.arange(40).reshape(2, 5, 4) % 3 == 0
    masked_distance(shares, target, mask).backward()
    assert torch.equal(shares.grad.abs().sum(1) > 0, mask)


@pytest.mark.parametrize("progress", [0.0, 0.7, 1.0])
def test_the_term_is_the_weighted_distance_where_the_teacher_is_certain(monkeypatch, progress):
    """Without noise all passes are the same: their mean is the teacher's output."""
    monkeypatch.setattr(mean_teacher, "noisy", lambda images: images)
    method, seen = apart("uamt"), batch()
    with torch.no_grad():
        method.teacher.average.module.head.weight *= 2  # certain here and there
    student, teacher = (
        shares_of(network, seen.unlabelled) for network in (method.networks[0], method.teacher.average.module)
    )
    mask = slow_certain(teacher, progress)
    assert mask.any() and (not mask.all() or progress == 1)
    expected = method.weight(progress) * slow_distance(student, teacher, mask)
    assert method(seen, progress)["consistency"].item() == pytest.approx(expected, rel=1e-5)


def test_the_uncertainty_is_that_of_the_mean_of_eight_passes_each_with_its_own_noise_and_dropout():
    method, seen = apart("uamt").train(), batch()
    inputs, outputs = [], []
    network = method.teacher.average.module

    def note(_, given, made):
        inputs.append(given[0])
        outputs.append(made.softmax(1))

    network.register_forward_hook(note)
    torch.manual_seed(0)
    found = method.distance(random_shares(3, space=(8, 8)), seen.unlabelled, 0.5)
    assert len(inputs) == 9
    assert all(not torch.equal(one, other) for one, other in itertools.pairwise(inputs))
    assert all((given - seen.unlabelled).abs().max() <= 0.2 + 1e-6 for given in inputs)
    mask = slow_certain(torch.stack(outputs[:8]).mean(0), 0.5)
    expected = slow_distance(random_shares(3, space=(8, 8)), outputs[8], mask)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_a_teacher_that_is_certain_of_nothing_teaches_nothing():
    method, seen = apart("uamt").train(), batch()
    with torch.no_grad():
        for parameter in method.teacher.average.module.head.parameters():
            parameter.zero_()
    terms = method(dataclasses.replace(seen, targets=torch.zeros_like(seen.targets)), 0.0)
    assert terms["consistency"].item() == 0 and all(term.isfinite() for term in terms.values())
