"""What the settings of the Hebbian stage do."""

import pytest
import torch
from tests.pretrain.test_pretrain import Mixer, Pictures, configure, fresh, moved, weights

from nissl.errors import InputError
from nissl.plasticity import HPCA, SWTA
from nissl.pretrain import PRETRAININGS, pretrain
from nissl.pretrain.hebbian import make_rule
from nissl.pretrain.whitening import whitened


def test_a_response_is_what_the_settings_say():
    assert make_rule(configure("hebbian", rule="hpca")) == HPCA()
    assert make_rule(configure("hebbian", rule="hpca", response="centred")) == HPCA(centred=True)
    assert make_rule(configure("hebbian", rule="hpca", response="rectified")) == HPCA(rectified=True)
    assert make_rule(configure("hebbian", rule="swta", response="centred")) == SWTA(5.0, True, True)
    with pytest.raises(InputError, match="linear"):
        configure("hebbian", rule="swta", response="rectified")


@pytest.mark.parametrize("name", ["hebbian", "shuffled"])
def test_layer_by_layer_each_learns_in_its_turn(name):
    net, order = fresh(), []
    pretraining = PRETRAININGS[name](configure(name, order="layer-wise", steps=14))
    names = [layer for layer in weights(net) if layer != "head"]
    pretraining.begin(net)
    before = weights(net)

    def note(message):
        now = weights(net)  # to unit norm again, others may differ by rounding
        order.append([layer for layer in before if (now[layer] - before[layer]).abs().max() > 1e-4])
        before.update(now)

    pretraining.advance = note
    pretraining.go_on(net, Pictures())
    assert len(names) == 7
    assert order == [[name] for name in names for _ in range(2)]


def test_each_layer_moves_by_the_whole_step_size_at_first():
    net = fresh()
    config = configure("hebbian", order="layer-wise", steps=7, rate=0.2)
    pretraining = PRETRAININGS["hebbian"](config)
    pretraining.begin(net)
    before = weights(net)
    pretraining.go_on(net, Pictures())
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
