"""Superpixels as masks: the groups are those of a slow reference, follow the image, and can be learnt."""

import math

import numpy as np
import pytest
import torch
from skimage.segmentation import slic
from tests.pretrain.driver import image_batch, learner_of, pretrain
from tests.pretrain.smooth import WIDE, Smooth
from tests.pretrain.test_pretrain import Pictures, configure, fresh
from torch.nn import functional

from nissl.pretrain.superpixel import COMPACTNESS, SEGMENTS, brightness_groups

SUPERPIXEL = configure("superpixel", rate=1e-3)


def reference(image, groups):
    """Group of each superpixel: the number of quantiles of the superpixels' means that lie below its own."""
    pixels = image.double().numpy()
    labels = slic(pixels, SEGMENTS, COMPACTNESS, channel_axis=0, convert2lab=False)
    means = {label: pixels[:, labels == label].mean() for label in np.unique(labels)}
    ordered = sorted(means.values())
    found = np.zeros(labels.shape, np.int64)
    for label, mean in means.items():
        for cut in range(1, groups):
            place = cut / groups * (len(ordered) - 1)
            low, share = int(place), place % 1
            high = ordered[min(low + 1, len(ordered) - 1)]
            found[labels == label] += mean > ordered[low] * (1 - share) + high * share + 1e-6
    return found


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_groups_are_those_of_the_reference(dims, channels):
    image = Pictures(dims, 16, 1, channels)[4][0]
    groups = brightness_groups(image, 4)
    assert (groups.numpy() == reference(image, 4)).mean() > 0.99  # a mean on a cut may fall to either side
    share = torch.bincount(groups.flatten(), minlength=4) / groups.numel()
    assert (share > 0.1).all()
    assert [float(image.mean(0)[groups == group].mean()) for group in range(4)] == sorted(
        float(image.mean(0)[groups == group].mean()) for group in range(4)
    )


def test_the_groups_follow_an_edge_of_the_image():
    image = torch.zeros(1, 32, 32)
    image[0, 4:17, 6:23] = 3
    for groups in (2, 4):
        found = brightness_groups(image, groups)
        inside = image[0] > 0
        assert found[inside].unique().numel() == 1 and (found[~inside] == 0).all() and (found[inside] > 0).all()


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("size", [1, 2, 16])
def test_an_image_without_structure_is_of_one_group(dims, size):
    for value in (0.0, 2.5, float("nan")):
        assert (brightness_groups(torch.full((2, *[size] * dims), value), 4) == 0).all()


def test_the_loss_is_soft_dice_plus_cross_entropy():
    net, images = fresh().eval(), Pictures()[0]
    pretraining = learner_of(net, SUPERPIXEL)
    with torch.no_grad():
        (loss,) = pretraining(image_batch(images), 0.0).values()
        logits = pretraining.extra(net.decoder(net.encoder(images))[-1])
    groups = torch.stack([brightness_groups(image, 4) for image in images])
    shares, truth = logits.softmax(1), functional.one_hot(groups, 4).movedim(-1, 1).float()
    overlap = 2 * (shares * truth).sum((2, 3)) / (shares.sum((2, 3)) + truth.sum((2, 3)))
    expected = (1 - overlap).mean() + functional.cross_entropy(logits, groups)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_groups_of_new_images_are_predicted_better_than_at_the_start(dims):
    report = pretrain(fresh(dims, config=WIDE), Smooth(dims), configure("superpixel", rate=1e-3, steps=60, batch=4))
    loss = [point["loss"] for point in report.curves]
    assert sum(loss[-10:]) < 0.85 * sum(loss[:10])
    assert sum(loss[-10:]) / 10 < math.log(4) + 0.75 - 0.2  # four groups, each as likely as the others
    assert (report.steps, report.images, report.layers) == (60, 240, [])
