"""Dice, one-hot images and blur equal those of MONAI bit for bit, gradients too: older runs are repeated exactly."""

import pytest
import torch
from monai.losses import DiceCELoss, DiceLoss
from monai.networks import one_hot as monai_one_hot
from monai.networks.layers import gaussian_1d, separable_filtering
from torch.nn import functional

from nissl.losses import one_hot, segmentation_losses, soft_dice
from nissl.methods.shared import masked_dice
from nissl.methods.unimatch import blurred

SIZES = [(9, 7), (64, 64), (7, 6, 5), (32, 24, 16)]
sizes = pytest.mark.parametrize("size", SIZES, ids=str)
types = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def made_up(size, dtype, classes, seed=0):
    """Logits and masks of three images: the last class is in no mask, the first mask is empty."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(3, classes, *size, generator=generator, dtype=dtype)
    masks = torch.randint(classes - 1, (3, *size), generator=generator)
    masks[0] = 0
    return logits, masks


def value_and_gradient(loss, logits):
    leaf = logits.clone(memory_format=torch.preserve_format).requires_grad_()
    value = loss(leaf)
    value.backward()
    return value.detach(), leaf.grad


def assert_same_bits(loss, reference, logits):
    found, wanted = value_and_gradient(loss, logits), value_and_gradient(reference, logits)
    assert all(torch.equal(one, other) and one.dtype == other.dtype for one, other in zip(found, wanted, strict=True))
    assert found[1].any()


def layouts(logits):
    return [logits, logits.to(memory_format=torch.channels_last if logits.ndim == 4 else torch.channels_last_3d)]


@types
@sizes
@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("seed", range(5))
def test_soft_dice_is_monais(size, dtype, classes, seed):
    logits, masks = made_up(size, dtype, classes, seed)
    truth, theirs = one_hot(masks, classes), DiceLoss(softmax=True)
    for lying in layouts(logits):
        assert_same_bits(lambda x: soft_dice(x.softmax(1), truth), lambda x: theirs(x, truth), lying)


@types
@sizes
def test_the_losses_by_masks_are_those_with_monai(size, dtype):
    logits, masks = made_up(size, dtype, 4)
    truth = monai_one_hot(masks[:, None], 4)

    def theirs(x):
        x = x.float()
        return DiceLoss(softmax=True)(x, truth) + functional.cross_entropy(x, truth)

    for lying in layouts(logits):
        assert_same_bits(lambda x: sum(segmentation_losses(x, masks).values()), theirs, lying)


@types
@sizes
def test_masked_dice_is_monais_of_masked_probabilities(size, dtype):
    logits, masks = made_up(size, dtype, 3)
    where = torch.rand(masks.shape, generator=torch.Generator().manual_seed(1)) < 0.4
    where[1] = False
    marked, truth = where[:, None].float(), monai_one_hot(masks[:, None], 3)
    for lying in layouts(logits):
        assert_same_bits(
            lambda x: masked_dice(x, masks, where),
            lambda x: DiceLoss()(x.float().softmax(1) * marked, truth * marked),
            lying,
        )


@types
@sizes
def test_dice_plus_cross_entropy_of_groups_is_monais(size, dtype):
    """As the superpixels use it, whose truth has its channels last in memory."""
    logits, groups = made_up(size, dtype, 4)
    truth = functional.one_hot(groups, 4).movedim(-1, 1).to(logits)
    for lying in layouts(logits):
        assert_same_bits(
            lambda x: soft_dice(x.softmax(1), truth) + functional.cross_entropy(x, truth),
            lambda x: DiceCELoss(softmax=True)(x, truth),
            lying,
        )


@sizes
def test_one_hot_images_are_those_of_monai_and_of_torch(size):
    for dtype in (torch.uint8, torch.int32, torch.int64):
        masks = made_up(size, torch.float32, 4)[1].to(dtype)
        found = one_hot(masks, 4)
        assert torch.equal(found, functional.one_hot(masks.long(), 4).movedim(-1, 1).float())
        assert found.stride() == monai_one_hot(masks[:, None], 4).stride() and found.dtype == torch.float32


@types
@sizes
def test_blur_is_monais(size, dtype):
    for seed, deviation in enumerate((0.1, 0.4, 1.0, 1.7, 2.0)):
        image = torch.randn(3, *size, generator=torch.Generator().manual_seed(seed), dtype=dtype)
        kernel = gaussian_1d(torch.tensor(deviation), approx="sampled", normalize=True)
        wanted = separable_filtering(image[None], [kernel] * len(size), mode="replicate")[0]
        assert torch.equal(blurred(image, deviation), wanted)
