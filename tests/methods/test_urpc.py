"""Pyramid consistency against a slow reference, and what it must be where the scales agree."""

import numpy as np
import pytest
import torch
from scipy.special import softmax
from tests.methods.test_methods import batch, over

from nissl.losses import segmentation_losses
from nissl.methods import METHODS
from nissl.methods.urpc import pyramid_consistency
from nissl.nets import factory
from nissl.nets.settings import UNet


def make(widths, dims=2, **settings):
    net = factory.build(UNet(widths=widths, dropout=(0.0,) * len(widths)), dims, 2, 3, seed=1)
    return over(net, "urpc", **settings).train()


def slow_consistency(scales):
    """The formula, image by image and pixel by pixel, in float64."""
    totals = []
    for image in range(len(scales[0])):
        shares = [softmax(logits[image].double().numpy(), axis=0) for logits in scales]
        together = sum(shares) / len(shares)
        for share in shares:
            uncertainty = np.zeros(share.shape[1:])
            for place in np.ndindex(uncertainty.shape):
                for p, q in zip(share[(slice(None), *place)], together[(slice(None), *place)]):
                    uncertainty[place] += p * np.log(p / q)
            certainty = np.exp(-uncertainty)
            rectified = np.mean((share - together) ** 2 * certainty) / (certainty.mean() + 1e-8)
            totals.append(rectified + uncertainty.mean())
    return np.mean(totals)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("count", [2, 4])
def test_the_consistency_equals_a_slow_reference(count, dims):
    torch.manual_seed(count)
    scales = [3 * torch.randn(2, 3, *(5, 4, 3)[:dims]) for _ in range(count)]
    assert pyramid_consistency(scales).item() == pytest.approx(slow_consistency(scales), rel=1e-5)


def test_scales_that_agree_cost_nothing_and_pull_nowhere():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 6, 6)
    scales = [(logits + shift).requires_grad_() for shift in (0, 2, -1)]  # softmax does not see a shift
    loss = pyramid_consistency(scales)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert all(scale.grad.abs().max() < 1e-6 for scale in scales)


def test_certain_scales_that_contradict_each_other_stay_finite():
    logits = torch.tensor([200.0, -200.0]).reshape(1, 2, 1, 1).expand(1, 2, 4, 4)
    scales = [logits.clone().requires_grad_(), (-logits).clone().requires_grad_()]
    loss = pyramid_consistency(scales)
    loss.backward()
    assert loss.item() == pytest.approx(0.25 + np.log(2), rel=1e-5)  # the uncertainty is at most log(scales)
    assert all(scale.grad.isfinite().all() for scale in scales)


def test_the_loss_of_a_batch_is_the_mean_over_its_images():
    torch.manual_seed(0)
    scales = [torch.randn(4, 3, 5, 5) * (1 + torch.arange(4)).view(4, 1, 1, 1) for _ in range(3)]
    images = [pyramid_consistency([scale[i : i + 1] for scale in scales]) for i in range(4)]
    torch.testing.assert_close(pyramid_consistency(scales), torch.stack(images).mean())


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("widths", "scales"), [((4, 8), 2), ((4, 6, 8, 10), 4), ((2, 4, 6, 8, 10), 4)])
def test_the_finest_four_levels_predict_at_full_size_and_the_last_is_the_network(widths, scales, dims):
    method, images = make(widths, dims).eval(), torch.randn(1, 2, *[16] * dims)
    with torch.no_grad():
        pyramid = method.pyramid(images)
        assert [logits.shape for logits in pyramid] == [(1, 3, *[16] * dims)] * scales
        assert torch.equal(pyramid[-1], method.predictor()(images))


def test_a_coarse_scale_is_a_linear_map_of_its_level():
    """A level of four pixels in a row, enlarged twice: the values between are those of a hand calculation."""
    method = make((4, 8)).eval()
    with torch.no_grad():
        method.heads[0].weight.zero_()
        method.heads[0].weight[:, 0] = 1
        method.heads[0].bias.zero_()
        method.networks[0].decoder.register_forward_hook(
            lambda decoder, inputs, levels: [torch.tensor([0.0, 4.0, 8.0, 0.0]).expand(1, 8, 4, 4), levels[-1]]
        )
        (coarse, _) = method.pyramid(torch.randn(1, 2, 8, 8))
    assert coarse[0, 2, 5].tolist() == [0, 1, 3, 5, 7, 6, 2, 0]


def test_the_terms_are_means_over_scales_and_the_consistency_rises():
    method, seen = make((4, 6, 8), weight=0.5, ramp=1.0), batch(classes=3)
    labelled = [segmentation_losses(logits, seen.targets) for logits in method.pyramid(seen.images)]
    expected = pyramid_consistency(method.pyramid(seen.unlabelled))
    for progress, share in ((0.0, np.exp(-5)), (0.5, np.exp(-1.25)), (1.0, 1.0)):
        terms = method(seen, progress)
        assert list(terms) == ["dice", "cross_entropy", "consistency"]
        for name in ("dice", "cross_entropy"):
            torch.testing.assert_close(terms[name], sum(scale[name] for scale in labelled) / 3)
        torch.testing.assert_close(terms["consistency"], 0.5 * share * expected, rtol=1e-5, atol=1e-7)
    assert METHODS.make("urpc").weight == 0.2
