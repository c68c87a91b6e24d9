"""UniMatch: views, boxes and pseudo-labels, each against an independent way to the same."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d
from tests.methods.test_methods import batch, make, over

from nissl.errors import InputError
from nissl.losses import segmentation_losses
from nissl.methods import unimatch
from nissl.methods.shared import box, masked_dice
from nissl.methods.unimatch import Strong, apply, draw, draw_box, dropped, pseudo_labels
from nissl.nets import factory
from nissl.nets.settings import VNet

SIZES = [(40, 32), (20, 18, 16)]


def slow_dice(logits, labels, where):
    """Sums over marked pixels, image by image and class by class, in float64."""
    losses = []
    for scores, truth, marked in zip(logits.double().numpy(), labels.numpy(), where.numpy()):
        shares = np.exp(scores - scores.max(0))
        shares /= shares.sum(0)
        for label in range(len(scores)):
            share, true = shares[label][marked], truth[marked] == label
            losses.append(1 - (2 * share[true].sum() + 1e-5) / (share.sum() + true.sum() + 1e-5))
    return np.mean(losses)


@pytest.mark.parametrize("size", SIZES)
def test_masked_dice_equals_a_slow_reference(size):
    torch.manual_seed(0)
    logits, labels = 3 * torch.randn(3, 4, *size), torch.randint(3, (3, *size))
    where = torch.rand(3, *size) < torch.tensor([0.0, 0.01, 0.7]).reshape(3, *[1] * len(size))
    assert masked_dice(logits, labels, where).item() == pytest.approx(slow_dice(logits, labels, where), abs=1e-6)
    everywhere = torch.ones_like(where)
    torch.testing.assert_close(
        masked_dice(logits, labels, everywhere), segmentation_losses(logits, labels)["dice"], rtol=1e-6, atol=1e-7
    )


def test_pixels_that_are_not_marked_have_no_say_and_no_gradient():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 8, 8, requires_grad=True), torch.randint(3, (2, 8, 8))
    where = torch.rand(2, 8, 8) < 0.5
    loss = masked_dice(logits, labels, where)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (gradient.abs().sum(1) > 0).equal(where)
    other = torch.where(where[:, None], logits, 9 * torch.randn(2, 3, 8, 8))
    torch.testing.assert_close(masked_dice(other, torch.where(where, labels, 2 - labels), where), loss)


@pytest.mark.parametrize("size", SIZES)
def test_a_draw_of_nothing_is_the_identity(size):
    images = torch.randn(2, 3, *size)
    assert torch.equal(apply(images, [Strong(), Strong()]), images)


@pytest.mark.parametrize("size", SIZES)
def test_strong_views_equal_a_reference_of_scipy(size):
    torch.manual_seed(1)
    images = torch.randn(4, 2, *size)
    draws = [Strong(1.4, -0.3, 1.7), Strong(0.6), Strong(blur=0.4), Strong(brightness=0.5)]
    for image, one, changed in zip(images.double().numpy(), draws, apply(images, draws)):
        wanted = image * one.contrast + one.brightness
        for axis in range(1, len(size) + 1) if one.blur else ():
            wanted = gaussian_filter1d(wanted, one.blur, axis=axis, mode="nearest")
        np.testing.assert_allclose(changed.numpy(), wanted, atol=1e-5)


def test_blur_keeps_a_constant_and_the_input():
    images = torch.full((1, 1, 9, 9), 1.5)
    torch.testing.assert_close(apply(images, [Strong(blur=2.0)]), images)
    with torch.autocast("cpu", torch.bfloat16):
        assert apply(torch.randn(1, 1, 9, 9), [Strong(blur=2.0)]).dtype == torch.float32
    assert (images == 1.5).all()


def test_draws_follow_the_global_generator_and_keep_their_bounds():
    torch.manual_seed(3)
    first = [draw() for _ in range(2000)]
    torch.manual_seed(3)
    assert first == [draw() for _ in range(2000)]
    assert all(0.5 <= one.contrast <= 1.5 and -0.5 <= one.brightness <= 0.5 for one in first)
    assert all(one.blur == 0 or 0.1 <= one.blur <= 2 for one in first)
    assert np.mean([one.contrast == 1 for one in first]) == pytest.approx(0.2, abs=0.03)
    assert np.mean([one.blur == 0 for one in first]) == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize("size", [(200, 100), (60, 50, 40)])
def test_boxes_are_whole_and_keep_their_bounds(size):
    torch.manual_seed(4)
    boxes = [draw_box(size) for _ in range(400)]
    pasted = [inside.numpy() for inside in boxes if inside.any()]
    assert len(pasted) == pytest.approx(200, abs=40)
    for inside in pasted:
        spans = [np.flatnonzero(inside.any(axis=tuple({*range(len(size))} - {axis}))) for axis in range(len(size))]
        lengths = [span[-1] - span[0] + 1 for span in spans]
        assert inside.sum() == math.prod(lengths)
        assert inside.mean() <= 0.4
        sides = [length / whole for length, whole in zip(lengths, size)]
        assert max(sides) * 0.27 <= min(sides)  # a pixel less than 0.3 by rounding
    assert min(inside.mean() for inside in pasted) == pytest.approx(0.02, abs=0.01)


def test_a_box_lies_where_it_is_told():
    assert box((6, 4), [0.5, 0.5], [0.0, 0.999]).nonzero().tolist() == [[y, x] for y in range(3) for x in (2, 3)]
    assert box((5, 5), [1.0, 1.0], [0.9, 0.1]).all() and not box((5, 5), [0.1, 1.0], [0.9, 0.1]).any()


def test_pseudo_labels_are_the_likeliest_class_where_it_is_sure():
    logits = torch.tensor([0.96, 0.94, 0.04]).log()[None, None] - torch.tensor([0.04, 0.06, 0.96]).log()[None, None]
    labels, sure = pseudo_labels(torch.cat([torch.zeros_like(logits), logits], dim=1), 0.95)
    assert labels.tolist() == [[1, 1, 0]] and sure.tolist() == [[True, False, True]]


@pytest.mark.parametrize("size", SIZES)
def test_changed_features_lack_whole_channels(size):
    torch.manual_seed(5)
    features = torch.rand(8, 64, *size) + 0.5
    changed = dropped(features, 0.5)
    gone = (changed == 0).flatten(2).all(-1)
    torch.testing.assert_close(changed, torch.where(gone.reshape(8, 64, *[1] * len(size)), 0.0, 2 * features))
    assert gone.float().mean() == pytest.approx(0.5, abs=0.1) and len({tuple(row.tolist()) for row in gone}) == 8


@pytest.mark.parametrize("dims", [2, 3])
def test_without_a_sure_pixel_nothing_is_learnt_from_images_without_masks(dims):
    method, seen = make("unimatch", dims).train(), batch(dims)
    torch.nn.init.zeros_(method.networks[0].head.weight)
    terms = method(seen, 1.0)
    assert all(terms[name].item() == 0 for name in ("strong_1", "strong_2", "features"))
    sum(terms.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in method.parameters())


class Told(torch.nn.Module):
    """An encoder, decoder and head without weights of note: the logits are the image, and what passes is kept."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder, self.head = Wrapped(), torch.nn.Identity(), torch.nn.Identity()
        self.seen = []

    def forward(self, images):
        self.seen.append(images)
        return self.head(self.decoder(self.encoder(images))[-1])


class Wrapped(torch.nn.Module):
    """Features of one level."""

    def forward(self, images):
        return [images]


def test_the_terms_are_those_of_the_definition_and_boxes_move_images_and_labels_alike(monkeypatch):
    """Where the strong views change no intensity, each pixel's logits are those that its pseudo-label came from."""
    monkeypatch.setattr(unimatch, "draw", Strong)
    monkeypatch.setattr(unimatch, "dropped", lambda features, fraction: fraction * features)
    seen, method = batch(count=6, classes=2), over(Told(), "unimatch")
    seen.unlabelled.mul_(4)
    torch.manual_seed(6)
    terms = method(seen, 0.0)
    labels, sure = seen.unlabelled.argmax(1), seen.unlabelled.softmax(1).max(1).values >= 0.95
    assert 0.2 < sure.float().mean() < 0.8
    half = slow_dice(0.5 * seen.unlabelled, labels, sure)
    assert terms["features"].item() == pytest.approx(2 * 0.5 * half, abs=1e-6)
    known = {tuple(pixel) for pixel in seen.unlabelled.movedim(1, -1).reshape(-1, 2).tolist()}
    for name, view in zip(("strong_1", "strong_2"), method.networks[0].seen[0].chunk(2), strict=True):
        assert not torch.equal(view, seen.unlabelled)
        assert {tuple(pixel) for pixel in view.movedim(1, -1).reshape(-1, 2).tolist()} <= known
        own = slow_dice(view, view.argmax(1), view.softmax(1).max(1).values >= 0.95)
        assert terms[name].item() == pytest.approx(2 * 0.25 * own, abs=1e-6)


def test_no_gradient_passes_through_pseudo_labels(monkeypatch):
    """With features that are all dropped, and views that are not the images, nothing of the weak pass is left."""
    monkeypatch.setattr(unimatch, "dropped", lambda features, fraction: torch.zeros_like(features))
    monkeypatch.setattr(unimatch, "draw", lambda: Strong(contrast=0.0))
    seen = batch(count=2, classes=2)
    seen.unlabelled.mul_(9).requires_grad_()
    terms = over(Told(), "unimatch")(seen, 0.0)
    loss = terms["strong_1"] + terms["strong_2"] + terms["features"]
    assert loss > 0.1
    loss.backward()
    assert not seen.unlabelled.grad.any()


@pytest.mark.parametrize("dims", [2, 3])
def test_changed_features_are_normalised_beside_the_others(dims):
    """What the running statistics average is what training has normalised by: never changed features alone."""
    method, seen, sizes = make("unimatch", dims).train(), batch(dims), []
    decoder = method.networks[0].decoder
    decoder.register_forward_pre_hook(lambda _, given: sizes.append([len(level) for level in given[0]]))
    method(seen, 1.0)
    levels, masked, others = len(sizes[0]), len(seen.images), len(seen.unlabelled)
    assert sizes == [[masked + 2 * others] * levels, [2 * others] * levels]


def test_the_weight_may_be_set_and_does_not_ramp():
    seen = batch(count=2)
    net = make("unimatch").networks[0]
    net.head.weight.data.mul_(50)
    totals = []
    for options, progress in (({}, 0.0), ({}, 1.0), ({"weight": 1.0}, 0.5), ({"weight": 0.0}, 0.5)):
        method = over(net, "unimatch", **options).train()
        torch.manual_seed(7)
        terms = method(seen, progress)
        totals.append(sum(terms[name].item() for name in ("strong_1", "strong_2", "features")))
    assert totals[0] == totals[1] == pytest.approx(2 * totals[2]) and totals[2] > 0.01 and totals[3] == 0


def test_a_network_without_parts_is_refused():
    net = factory.build(VNet(), 2, 1, 2, 0)
    with pytest.raises(InputError, match="VNet, with --method unimatch"):
        over(net, "unimatch")
