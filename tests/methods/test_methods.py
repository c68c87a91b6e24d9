"""Every method states finite losses that reach all its networks; the losses are those of the field."""

import math

import numpy as np
import pytest
import torch

from nissl.data.batches import Batch
from nissl.learner import Problem
from nissl.losses import segmentation_losses
from nissl.methods import METHODS
from nissl.methods.method import Method
from nissl.nets import factory
from nissl.nets.settings import UNet
from nissl.tasks.segmentation import Segmentation

NET = UNet(widths=(4, 8), dropout=(0.0, 0.2))


def make(name, dims=2, classes=3, **options):
    """A method over networks of its own."""
    kind, settings = METHODS[name], METHODS.make(name, **options)
    problem = Problem(Segmentation(), dims, 2, classes, (8,) * dims, NET)
    return kind.build(settings, problem, kind.initial(settings, problem, 0), 0)


def over(net, name, **options):
    """A method over a network that is there."""
    return METHODS[name]([net], METHODS.make(name, **options))


def batch(dims=2, classes=3, count=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    size = (8,) * dims
    images, unlabelled = (torch.randn(count, 2, *size, generator=generator) for _ in range(2))
    masks = torch.randint(classes, (count, *size), generator=generator)
    return Batch(images, masks, unlabelled, tuple("ab"[:count]))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", METHODS)
def test_losses_are_finite_and_reach_every_network(name, dims):
    method = make(name, dims).train()
    for progress in (0.0, 0.5, 1.0):
        terms = method(batch(dims), progress)
        assert terms and all(term.ndim == 0 and term.isfinite() for term in terms.values())
    sum(terms.values()).backward()
    method.after_step()
    for network in method.networks:
        gradients = [parameter.grad for parameter in network.parameters()]
        assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
        assert any(gradient.abs().sum() > 0 for gradient in gradients)


@pytest.mark.parametrize("name", METHODS)
def test_dice_alone_is_the_default_without_its_cross_entropy(name):
    """Of pseudo-labels that are taken for masks as well."""
    both, alone, seen = make(name).eval(), make(name, loss="dice").eval(), batch()
    terms = []
    for method in (both, alone):
        torch.manual_seed(0)
        terms.append(method(seen, 1.0))
    left_out = {term for term in terms[0] if term.endswith("cross_entropy")}
    assert left_out and terms[1].keys() == terms[0].keys() - left_out
    same = terms[1].keys() - {"cross_pseudo"}
    assert all(torch.equal(terms[0][term], terms[1][term]) for term in same)
    if name == "cps":
        assert terms[1]["cross_pseudo"] < terms[0]["cross_pseudo"]


def test_the_weight_rises_as_the_settings_say():
    shapes = {"gaussian": lambda t: math.exp(-5 * (1 - t) ** 2), "linear": lambda t: t}
    for shape, height in shapes.items():
        method = make("entropy", weight=3.0, ramp=0.5, ramp_shape=shape)
        for progress in (0.0, 0.1, 0.25, 0.49, 0.5, 0.8, 1.0):
            assert method.weight(progress) == pytest.approx(3 * height(min(1.0, progress / 0.5)))


@pytest.mark.parametrize("name", METHODS)
def test_every_candidate_makes_logits_and_the_predictor_is_one_of_them(name):
    method = make(name).eval()
    found = method.candidates()
    assert next(iter(found.values())) is method.predictor()
    assert len(found) == {"cps": 2, "mean-teacher": 2, "uamt": 2}.get(name, 1)
    with torch.no_grad():
        assert all(network(batch().images).shape == (2, 3, 8, 8) for network in found.values())


@pytest.mark.parametrize("name", METHODS)
def test_the_predictor_makes_logits_and_is_part_of_the_method(name):
    method = make(name).eval()
    with torch.no_grad():
        assert method.predictor()(batch().images).shape == (2, 3, 8, 8)
    assert any(method.predictor() is module for module in method.modules())


@pytest.mark.parametrize("name", METHODS)
def test_following_the_loss_downhill_fits_the_masks(name):
    """The loss itself may grow: terms without masks come in on the way."""
    method, seen = make(name).train(), batch()
    optimiser = torch.optim.AdamW(method.parameters(), lr=1e-2)
    torch.manual_seed(0)
    fits = []
    for step in range(20):
        with torch.no_grad():
            fits.append(float(sum(segmentation_losses(method.predictor()(seen.images), seen.targets).values())))
        loss = sum(method(seen, step / 20).values())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        method.after_step()
    assert fits[-1] < 0.8 * fits[0]


def test_a_method_must_state_its_losses():
    with pytest.raises(NotImplementedError, match="Method"):
        Method([factory.build(NET, 2, 2, 3, 0)], METHODS.make("supervised"))(batch(), 0.0)


def slow_losses(logits, masks):
    """Soft Dice per image and class by its sums, with MONAI's terms of 1e-5, and the mean of -log p; in float64."""
    logits, masks = logits.double().numpy(), masks.numpy()
    dice, surprise = [], []
    for scores, mask in zip(logits, masks):
        shares = np.exp(scores) / np.exp(scores).sum(0)
        for label in range(len(scores)):
            truth = (mask == label).astype(np.float64)
            both = (shares[label] * truth).sum()
            dice.append(1 - (2 * both + 1e-5) / (shares[label].sum() + truth.sum() + 1e-5))
        surprise += [-math.log(shares[(mask[place], *place)]) for place in np.ndindex(mask.shape)]
    return np.mean(dice), np.mean(surprise)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("dims", [2, 3])
def test_the_losses_equal_a_slow_reference(dims, classes):
    torch.manual_seed(dims + classes)
    logits = 3 * torch.randn(3, classes, *(5, 4, 3)[:dims])
    masks = torch.randint(classes - 1, (3, *(5, 4, 3)[:dims]))  # the last class is in no mask
    losses = segmentation_losses(logits, masks)
    dice, surprise = slow_losses(logits, masks)
    assert losses["dice"].item() == pytest.approx(dice, abs=1e-6)
    assert losses["cross_entropy"].item() == pytest.approx(surprise, abs=1e-6)


@pytest.mark.parametrize("present", [2, 3])
def test_a_perfect_prediction_costs_almost_nothing(present):
    """A class that is in neither mask nor prediction costs nothing either: 1e-5 / 1e-5."""
    masks = torch.arange(64).reshape(1, 8, 8) % present
    logits = 60 * torch.nn.functional.one_hot(masks, 3).movedim(-1, 1).float()
    losses = segmentation_losses(logits, masks)
    assert losses["dice"].item() < 1e-5 and losses["cross_entropy"].item() < 1e-5
    wrong = segmentation_losses(logits.roll(1, dims=1), masks)
    assert wrong["dice"].item() > 0.6 and wrong["cross_entropy"].item() > 10


def test_the_loss_of_a_batch_is_the_mean_over_its_images():
    """So that two processes with half a batch each have the gradient of one with the whole."""
    torch.manual_seed(0)
    logits, masks = torch.randn(4, 3, 6, 6), torch.randint(3, (4, 6, 6))
    masks[0] = 0  # one image without foreground
    whole = segmentation_losses(logits, masks)
    parts = [segmentation_losses(logits[i : i + 1], masks[i : i + 1]) for i in range(4)]
    for name, term in whole.items():
        torch.testing.assert_close(term, torch.stack([part[name] for part in parts]).mean())


def test_losses_keep_their_precision_under_autocast():
    torch.manual_seed(0)
    logits, masks = torch.randn(2, 2, 64, 64).bfloat16(), torch.randint(2, (2, 64, 64))
    exact = segmentation_losses(logits.float(), masks)
    with torch.autocast("cpu", torch.bfloat16):
        half = segmentation_losses(logits, masks)
    for name, term in half.items():
        assert term.dtype == torch.float32
        torch.testing.assert_close(term, exact[name], rtol=1e-6, atol=1e-6)


def test_the_supervised_method_does_not_look_at_unlabelled_images():
    method, seen = make("supervised").eval(), batch()
    blind = Batch(seen.images, seen.targets, None, seen.ids)
    assert all(torch.equal(term, method(blind, 0.0)[name]) for name, term in method(seen, 0.0).items())
    assert METHODS["supervised"].sees == "labelled"
    assert {METHODS[name].sees for name in METHODS if name != "supervised"} == {"labelled+unlabelled"}
