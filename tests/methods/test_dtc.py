"""The signed distance of known shapes, and the terms against slow references."""

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax
from tests.methods.test_methods import NET, batch, over

from nissl.losses import segmentation_losses
from nissl.methods import METHODS
from nissl.methods.dtc import signed_distances, task_consistency
from nissl.nets import factory


def make(dims=2, classes=3, **settings):
    return over(factory.build(NET, dims, 2, classes, seed=0), "dtc", **settings).train()


def slow_distance(inside):
    """Half a pixel less than the distance to the nearest pixel of the other side, over the largest such, by loops."""
    places = [np.array(list(zip(*np.nonzero(side)))) for side in (inside, ~inside)]
    distance = np.zeros(inside.shape)
    for place in np.ndindex(inside.shape):
        others = places[int(inside[place])]
        distance[place] = np.sqrt(((others - np.array(place)) ** 2).sum(1)).min() - 0.5
    return np.where(inside, -distance / distance[inside].max(), distance / distance[~inside].max())


@pytest.mark.parametrize("dims", [2, 3])
def test_the_signed_distances_equal_a_slow_reference(dims):
    rng = np.random.default_rng(dims)
    masks = rng.integers(0, 4, (2, *(9, 8, 7)[:dims])) // 2 * rng.integers(1, 3, (2, *(9, 8, 7)[:dims]))
    found = signed_distances(torch.from_numpy(masks), 3)
    assert found.shape == (2, 2, *(9, 8, 7)[:dims]) and found.dtype == torch.float32
    for image, mask in zip(found.numpy(), masks):
        for label in (1, 2):
            np.testing.assert_allclose(image[label - 1], slow_distance(mask == label), atol=1e-6)


def test_a_box_is_deepest_in_its_middle_and_its_border_lies_between_pixels():
    mask = torch.zeros(1, 1, 16, dtype=torch.long)
    mask[..., 4:9] = 1
    distance = signed_distances(mask, 2)[0, 0, 0]
    inside, outside = [0.5, 1.5, 2.5, 1.5, 0.5], [3.5, 2.5, 1.5, 0.5]
    torch.testing.assert_close(distance[4:9], -torch.tensor(inside) / 2.5)
    torch.testing.assert_close(distance[:4], torch.tensor(outside) / 6.5)
    assert distance[-1] == 1 and distance[6] == -1


def test_a_disc_has_the_distance_to_its_circle():
    axes = torch.arange(65) - 32.0
    radius = (axes[:, None] ** 2 + axes**2).sqrt()
    distance = signed_distances((radius <= 20).long()[None], 2)[0, 0]
    inside = radius <= 20
    assert torch.equal(distance < 0, inside) and torch.equal(distance > 0, ~inside)
    assert distance.min() == distance[32, 32] == -1 and distance.max() == 1
    pixels = distance[inside] * 20.5  # about half a pixel beyond the last one that is inside
    assert (pixels - (radius[inside] - 20.25)).abs().max() < 1
    assert distance[(radius - 20).abs() < 0.5].abs().max() < 0.08


def test_an_absent_class_is_far_everywhere_and_one_that_fills_the_image_is_inside():
    masks = torch.stack([torch.zeros(4, 5), torch.full((4, 5), 2)]).long()
    found = signed_distances(masks, 3)
    assert (found[0] == 1).all() and (found[1, 0] == 1).all() and (found[1, 1] == -1).all()


def test_an_object_of_one_pixel_and_its_negative_are_finite():
    mask = torch.zeros(1, 5, 5, dtype=torch.long)
    mask[0, 2, 2] = 1
    for masks in (mask, 1 - mask):
        found = signed_distances(masks, 2)[0, 0]
        assert found.isfinite().all() and torch.equal(found < 0, masks[0] == 1) and found.abs().max() == 1


@pytest.mark.parametrize("dims", [2, 3])
def test_the_consistency_equals_a_slow_reference(dims):
    torch.manual_seed(dims)
    size = (5, 4, 3)[:dims]
    logits, distances = 3 * torch.randn(2, 3, *size), 0.01 * torch.randn(2, 2, *size)
    implied = expit(-1500 * distances.double().numpy())
    expected = np.mean((implied - softmax(logits.double().numpy(), axis=1)[:, 1:]) ** 2)
    assert task_consistency(logits, distances, 1500.0).item() == pytest.approx(expected, rel=1e-5)


def test_a_perfect_prediction_is_consistent_with_the_distances_of_its_masks():
    """The sign of each pixel is its class: sigmoid(-1500 distance) is the mask, also of an object of one pixel."""
    masks = torch.zeros(1, 16, 16, dtype=torch.long)
    masks[0, 2:9, 3:8], masks[0, 12, 12] = 1, 2
    logits = 60 * torch.nn.functional.one_hot(masks, 3).movedim(-1, 1).float()
    assert task_consistency(logits, signed_distances(masks, 3), 1500.0).item() < 1e-12
    assert task_consistency(logits, -signed_distances(masks, 3), 1500.0).item() > 0.9


def test_the_consistency_pulls_at_both_heads():
    method, seen = make(), batch()
    with torch.no_grad():
        method.distance.weight.mul_(1e-3)  # near the border, where the sigmoid is not flat
        method.distance.bias.zero_()
    method(seen, 1.0)["consistency"].backward()
    assert method.distance.weight.grad.abs().sum() > 0
    assert method.networks[0].head.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("dims", [2, 3])
def test_the_terms_are_weighted_and_the_consistency_rises(dims):
    method, seen = make(dims, weight=2.0, ramp=1.0).eval(), batch(dims)
    logits, distances = method.both(seen.images)
    others = method.both(seen.unlabelled)
    assert distances.shape == (2, 2, *[8] * dims) and distances.abs().max() <= 1
    torch.testing.assert_close(logits, method.predictor()(seen.images))
    target = signed_distances(seen.targets, 3)
    regression = 0.3 * np.mean((distances.detach().double().numpy() - target.double().numpy()) ** 2)
    consistency = (task_consistency(logits, distances, 1500.0) + task_consistency(*others, 1500.0)) / 2
    for progress, share in ((0.0, np.exp(-5)), (1.0, 1.0)):
        terms = method(seen, progress)
        assert list(terms) == ["dice", "cross_entropy", "distance", "consistency"]
        for name, term in segmentation_losses(logits, seen.targets).items():
            torch.testing.assert_close(terms[name], term)
        assert terms["distance"].item() == pytest.approx(regression, rel=1e-5)
        torch.testing.assert_close(terms["consistency"], 2 * share * consistency, rtol=1e-5, atol=1e-7)
    assert method.settings.weight == 2.0 and METHODS.make("dtc").weight == 1.0
