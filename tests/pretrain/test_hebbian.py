"""What the settings of the Hebbian stage do."""

import pytest
import torch
from tests.pretrain.driver import CPU, Served, learner_of, pretrain, run
from tests.pretrain.test_pretrain import Mixer, Pictures, configure, fresh, moved, noting, weights
from torch import nn

from nissl.errors import InputError
from nissl.plasticity import HPCA, SWTA
from nissl.pretrain.hebbian import make_rule
from nissl.pretrain.settings import Hebbian
from nissl.pretrain.whitening import whitened
from nissl.training.session import Control, Session


def test_a_response_is_what_the_settings_say():
    assert make_rule(configure("hebbian", rule="hpca")) == HPCA()
    assert make_rule(configure("hebbian", rule="hpca", response="centred")) == HPCA(centred=True)
    assert make_rule(configure("hebbian", rule="hpca", response="rectified")) == HPCA(rectified=True)
    assert make_rule(Hebbian(rule="hpca")) == HPCA(centred=True)
    assert make_rule(Hebbian(rule="swta")) == SWTA(5.0, True, False)
    assert make_rule(configure("hebbian", rule="swta", response="centred")) == SWTA(5.0, True, True)
    with pytest.raises(InputError, match="linear"):
        configure("hebbian", rule="swta", response="rectified")


@pytest.mark.parametrize("name", ["hebbian", "shuffled"])
def test_layer_by_layer_each_learns_in_its_turn(tmp_path, name):
    net, order = fresh(), []
    names = [layer for layer in weights(net) if layer != "head"]
    pretraining = learner_of(net, configure(name, order="layer-wise", steps=14))
    before = weights(net)

    def note(message):
        now = weights(net)  # to unit norm again, others may differ by rounding
        order.append([layer for layer in before if (now[layer] - before[layer]).abs().max() > 1e-4])
        before.update(now)

    run(pretraining, Served(Pictures()), Session(tmp_path, CPU, control=Control(track=noting(note))))
    assert len(names) == 7
    assert order == [[name] for name in names for _ in range(2)]


def test_each_layer_moves_by_the_whole_step_size_at_first(tmp_path):
    net = fresh()
    pretraining = learner_of(net, configure("hebbian", order="layer-wise", steps=7, rate=0.2))
    before = weights(net)
    run(pretraining, Served(Pictures()), Session(tmp_path, CPU))
    start = {name: tensor / tensor.norm() for name, tensor in before.items() if name != "head"}
    for name, tensor in start.items():
        change = (weights(net)[name] / weights(net)[name].norm() - tensor).norm()
        assert 0.05 < change < 0.25, name  # one step of a fifth of the norm each, then brought back to unit filters


def test_layer_by_layer_an_unused_layer_is_passed_over():
    net = Mixer()
    report = pretrain(net, Pictures(), configure("hebbian", order="layer-wise", steps=6))
    assert [row["name"] for row in report.layers] == ["embed", "mix", "unused"]
    assert all(row["relative_change"] > 0.01 for row in report.layers[:2])


def test_whitened_images_lead_to_other_filters_than_the_images():
    plain, white = fresh(), fresh()
    pretrain(plain, Pictures(), configure("hebbian"))
    pretrain(white, Pictures(), configure("hebbian", whiten=True))
    assert len(moved(weights(plain), weights(white))) == 7


@pytest.mark.parametrize(("dims", "size"), [(2, 40), (3, 15)])
def test_whitening_takes_the_correlations_away(dims, size):
    images = Pictures(dims, size, batch=6)[0]
    images[:, 1] = 0.5 * images[:, 0] + 0.2 * images[:, 1]
    white = whitened(images)
    assert white.shape == images.shape and white.dtype == images.dtype
    for before, after in zip(correlations(images), correlations(white), strict=True):
        assert abs(before) > 0.5 and abs(after) < abs(before) / 2
    assert 0.3 < float(white.var()) < 1.5


def correlations(images):
    """Between the channels, and between neighbours along the last axis."""
    channels = torch.corrcoef(images.movedim(1, 0).flatten(1))[0, 1]
    neighbours = torch.corrcoef(torch.stack([images[..., 1:].flatten(), images[..., :-1].flatten()]))[0, 1]
    return float(channels), float(neighbours)


def test_a_flat_image_whitens_to_nothing():
    white = whitened(torch.ones(2, 3, 16, 16))
    assert torch.equal(white, torch.zeros_like(white))


def test_what_is_reported_of_the_shuffled_control_is_that_of_shuffled_filters():
    trained, shuffled = (pretrain(fresh(), Pictures(), configure(name, steps=20)) for name in ("hebbian", "shuffled"))
    explained = [[row["variance_explained"] for row in report.layers[:4]] for report in (trained, shuffled)]
    assert all(after < before for before, after in zip(*explained, strict=True))


@pytest.mark.parametrize("dims", [2, 3])
def test_an_image_that_is_not_finite_is_skipped_under_whitening_too(dims):
    class Torn(Pictures):
        def __getitem__(self, step):
            images = super().__getitem__(step)
            return images.index_fill(0, torch.tensor(0), torch.nan) if step == 1 else images

    net, told = fresh(dims), []
    control = Control(track=noting(told.append))
    pretrain(net, Torn(dims), configure("hebbian", whiten=True, steps=4), control=control)
    assert [message.startswith("skipped") for message in told] == [False, True, False, False]
    assert all(weight.isfinite().all() for weight in weights(net).values())


class Up(nn.Module):
    """One transposed layer between the images and the head."""

    def __init__(self, dims):
        super().__init__()
        self.up = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[dims](6, 3, 2, stride=2, bias=False)
        self.head = {2: nn.Conv2d, 3: nn.Conv3d}[dims](3, 2, 1)

    def forward(self, x):
        return self.head(self.up(x))


class Ellipsoid:
    """Images whose channels have known principal components, the columns of `axes`, of falling variance."""

    def __init__(self, dims):
        self.axes = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(9)))[0]
        self.shape = 6, 4, *[6] * dims

    def __getitem__(self, step):
        noise = torch.randn(self.shape, generator=torch.Generator().manual_seed(step))
        spread = torch.tensor([4.0, 2.0, 1.0, 0.3, 0.1, 0.03]).sqrt().view(-1, *[1] * (noise.ndim - 1))
        return torch.tensordot(self.axes, spread * noise, dims=1).movedim(1, 0)


@pytest.mark.parametrize("dims", [2, 3])
def test_hpca_finds_the_ordered_components_at_each_offset_of_a_transposed_layer(dims):
    torch.manual_seed(1)
    net, images = Up(dims), Ellipsoid(dims)
    pretrain(net, images, configure("hebbian", rule="hpca", steps=300, rate=0.05))
    filters = nn.functional.normalize(net.up.weight.detach().flatten(2), dim=0)  # inputs, outputs, offsets
    along = torch.einsum("ion,ik->nok", filters, images.axes[:, :3]).abs()
    torch.testing.assert_close(along, torch.eye(3).expand_as(along), atol=0.12, rtol=0)
