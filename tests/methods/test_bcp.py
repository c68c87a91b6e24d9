"""Bidirectional copy-paste: every pixel and its label come from one source, and count as that source does."""

import numpy as np
import pytest
import torch
from tests.methods.test_methods import batch, make, over
from tests.methods.test_unimatch import slow_dice

from nissl.data.batches import Batch
from nissl.methods import bcp
from nissl.methods.bcp import draw_box, paste, region_losses

SIZES = [(30, 24), (12, 15, 18)]


@pytest.mark.parametrize("size", SIZES)
def test_the_box_has_two_thirds_of_each_side_and_lies_anywhere(size):
    torch.manual_seed(0)
    boxes = [draw_box(size, 2 / 3) for _ in range(200)]
    corners = {tuple(inside.nonzero()[0].tolist()) for inside in boxes}
    for inside in boxes:
        first, last = inside.nonzero()[0], inside.nonzero()[-1]
        assert (last - first + 1).tolist() == [2 * side // 3 for side in size]
        assert inside.sum() == (last - first + 1).prod()
    for axis, side in enumerate(size):
        assert {corner[axis] for corner in corners} == set(range(side - 2 * side // 3 + 1))


def test_a_box_of_everything_gives_the_front_and_each_pixel_has_one_source():
    front, back = torch.rand(2, 3, 8, 8), -torch.rand(2, 3, 8, 8)
    assert torch.equal(paste(front, back, torch.ones(8, 8, dtype=torch.bool)), front)
    assert torch.equal(paste(front, back, torch.zeros(8, 8, dtype=torch.bool)), back)
    inside = draw_box((8, 8), 2 / 3)
    mixed = paste(front, back, inside)
    assert torch.equal(mixed == front, inside.expand_as(front)) and torch.equal(mixed == back, ~inside.expand_as(front))


def slow_losses(logits, labels, inside):
    """Dice image by image, and the mean of -log p over the region, in float64."""
    shares = np.exp(logits.double().numpy())
    shares /= shares.sum(1, keepdims=True)
    true = np.take_along_axis(shares, labels.numpy()[:, None], 1)[:, 0]
    dice = slow_dice(logits, labels, inside.expand(labels.shape))
    return dice, float(np.mean(-np.log(true[:, inside.numpy()])))


@pytest.mark.parametrize("size", SIZES)
def test_the_losses_of_a_region_equal_a_slow_reference(size):
    torch.manual_seed(1)
    logits, labels, inside = 3 * torch.randn(2, 3, *size), torch.randint(2, (2, *size)), draw_box(size, 2 / 3)
    dice, surprise = slow_losses(logits, labels, inside)
    losses = region_losses(logits, labels, inside)
    assert losses["dice"].item() == pytest.approx(dice, abs=1e-6)
    assert losses["cross_entropy"].item() == pytest.approx(surprise, abs=1e-6)
    nothing = region_losses(logits, labels, torch.zeros_like(inside))
    assert all(term.item() == 0 for term in nothing.values())


class Told(torch.nn.Module):
    """A network whose logits are its input, and which keeps what passes."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.seen = []

    def forward(self, images):
        self.seen.append(images)
        return self.scale * images


def reference(seen, inside, labels):
    """The four regions of the paper's two mixed images, in numpy: masks count 1, pseudo-labels 0.5, directions 1/2."""
    images, masks, fresh, box = seen.images.numpy(), seen.targets.numpy(), seen.unlabelled.numpy(), inside.numpy()
    partner = [(number - 1) % len(images) for number in range(len(images))]
    inwards = torch.from_numpy(np.where(box, fresh, images[partner]))
    outwards = torch.from_numpy(np.where(box, images, fresh[partner]))
    known = [
        slow_losses(inwards, torch.from_numpy(masks[partner]), ~inside),
        slow_losses(outwards, torch.from_numpy(masks), inside),
    ]
    guessed = [slow_losses(inwards, labels, inside), slow_losses(outwards, labels[partner], ~inside)]
    return (inwards, outwards), np.mean(known, axis=0), 0.5 * np.mean(guessed, axis=0)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("dims", [2, 3])
def test_the_terms_equal_a_slow_reference_in_both_directions(monkeypatch, dims, count):
    seen, method = batch(dims, classes=2, count=count), over(Told(), "bcp")
    inside = draw_box((8,) * dims, 2 / 3)
    monkeypatch.setattr(bcp, "draw_box", lambda size, side: inside)
    terms = method(seen, 0.6)
    views, known, guessed = reference(seen, inside, seen.unlabelled.argmax(1))
    for passed, wanted in zip(method.networks[0].seen, views, strict=True):
        assert torch.equal(passed, wanted)
    found = [terms[name].item() for name in ("dice", "cross_entropy", "pseudo_dice", "pseudo_cross_entropy")]
    assert found == pytest.approx([*known, *guessed], abs=1e-6) and len(terms) == 4


def test_first_only_labelled_images_are_mixed_in_both_directions_by_the_masks_of_both(monkeypatch):
    seen, method = batch(classes=2, count=3), over(Told(), "bcp")
    inside, partner = draw_box((8, 8), 2 / 3), [2, 0, 1]
    monkeypatch.setattr(bcp, "draw_box", lambda size, side: inside)
    terms = method(Batch(seen.images, seen.targets, None, seen.ids), 0.24)
    one, other = method.networks[0].seen
    assert torch.equal(one, torch.where(inside, seen.images, seen.images[partner]))
    assert torch.equal(other, torch.where(inside, seen.images[partner], seen.images))
    regions = [
        slow_losses(one, seen.targets, inside),
        slow_losses(one, seen.targets[partner], ~inside),
        slow_losses(other, seen.targets[partner], inside),
        slow_losses(other, seen.targets, ~inside),
    ]
    assert [terms["dice"].item(), terms["cross_entropy"].item()] == pytest.approx(np.mean(regions, axis=0), abs=1e-6)
    assert set(terms) == {"dice", "cross_entropy"} and len(method(seen, 0.25)) == 4


def test_labels_come_from_the_teacher_who_is_the_running_average_and_has_no_gradient():
    method = make("bcp").train()
    (student,) = method.networks
    start = student.head.weight.detach().clone()
    for number in (1.0, 3.0):  # after them the teacher is the mean of the two: its decay starts at none
        student.head.weight.data.fill_(number)
        method.after_step()
    teacher = method.teacher.average.module.head.weight
    assert not torch.equal(start, teacher) and torch.allclose(teacher, torch.tensor(2.0))
    seen = batch()
    sum(method(seen, 1.0).values()).backward()
    assert all(parameter.grad is None for parameter in method.teacher.parameters())
    # The student learns what the teacher says, not what it says itself.
    bias = method.teacher.average.module.head.bias
    dice = []
    for label in range(3):
        bias.fill_(0.0)[label] = 1e4
        student.head.bias.data = torch.tensor([1e4, 0.0, 0.0])
        dice.append(method(seen, 1.0)["pseudo_cross_entropy"].item())
    assert dice[0] < 1 < 1000 < min(dice[1:])


def test_the_weight_may_be_set_and_does_not_ramp():
    seen, net = batch(), make("bcp").networks[0]
    totals = []
    for options, progress in (({}, 0.3), ({}, 1.0), ({"weight": 1.0}, 0.5), ({"weight": 0.0}, 0.5)):
        method = over(net, "bcp", **options).eval()
        torch.manual_seed(2)
        totals.append(method(seen, progress)["pseudo_dice"].item())
    assert totals[0] == totals[1] == pytest.approx(totals[2] / 2) and totals[2] > 0.01 and totals[3] == 0
