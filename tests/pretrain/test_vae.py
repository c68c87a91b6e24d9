"""The auto-encoder: its terms are those of the field, all passes through the latent, and it learns to reconstruct."""

import dataclasses
from pathlib import Path

import pytest
import torch
from tests.pretrain.driver import CPU, Served, image_batch, learner_of, pretrain, trainer_of
from tests.pretrain.smooth import WIDE, Smooth
from tests.pretrain.test_pretrain import Pictures, configure, fresh
from torch import nn
from torch.distributions import Normal, kl_divergence

from nissl.errors import InputError
from nissl.nets import factory
from nissl.nets.settings import VNet
from nissl.pretrain.vae import divergence
from nissl.training.session import Session

VAE = configure("vae", rate=1e-3)


def begun(net, seed=0):
    return learner_of(net, VAE, seed)


def test_the_divergence_is_that_of_torch():
    generator = torch.Generator().manual_seed(0)
    mean, log_variance = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(torch.tensor(0.0), torch.tensor(1.0)))
    torch.testing.assert_close(divergence(mean, log_variance), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_loss_is_twice_the_negative_evidence_bound_per_value_of_the_image(dims):
    net, images = fresh(dims).eval(), Pictures(dims)[0]
    pretraining, caught = begun(net), {}
    handles = [
        layer.register_forward_hook(lambda layer, x, y, name=name: caught.update({name: (x[0], y)}))
        for name, layer in (*pretraining.extra.items(), ("decoder", net.decoder))
    ]
    with torch.no_grad():
        terms = pretraining(image_batch(images), 0.0)
    for handle in handles:
        handle.remove()
    mean, deviation = caught["mean"][1], (caught["log_variance"][1] / 2).exp()
    decoded = Normal(caught["reconstruction"][1], 1.0)
    constant = Normal(torch.zeros(()), 1.0).log_prob(torch.zeros(()))
    nats = kl_divergence(Normal(mean, deviation), Normal(0.0, 1.0)).sum()
    bound = (decoded.log_prob(images) - constant).sum() - nats
    torch.testing.assert_close(sum(terms.values()), -2 * bound / images.numel(), rtol=1e-5, atol=0)
    torch.testing.assert_close(terms["reconstruction"], (caught["reconstruction"][1] - images).square().mean())
    # The decoder gets the sample, and nothing that went past it.
    *finer, latent = caught["decoder"][0]
    assert finer and all((skip == 0).all() for skip in finer)
    drawn = (latent - mean) / deviation
    assert abs(float(drawn.mean())) < 0.2 and abs(float(drawn.std()) - 1) < 0.2


def test_the_noise_is_of_the_image_and_the_step_whatever_the_pieces():
    pretraining, like, seen = begun(fresh()), torch.zeros(4, 8, 3, 3), image_batch(torch.zeros(4, 2, 16, 16))
    whole = pretraining._noise(like, seen)
    pieces = [pretraining._noise(like[:2], part) for part in seen.parts(2)]
    torch.testing.assert_close(torch.cat(pieces), whole)
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(pretraining._noise(like, dataclasses.replace(seen, step=1)), whole)
    assert not torch.equal(begun(fresh(), seed=1)._noise(like, seen), whole)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_reconstruction_gets_better_than_the_mean_of_the_image(dims):
    net = fresh(dims, config=WIDE)
    report = pretrain(net, Smooth(dims), dataclasses.replace(VAE, steps=60, batch=4))
    error = [point["terms"]["reconstruction"] for point in report.curves]
    assert sum(error[-10:]) < 0.85 * sum(error[:10])
    assert sum(error[-10:]) / 10 < 0.9  # the images have a variance of 1
    assert [point["step"] for point in report.curves] == list(range(1, 61))
    assert all(point["loss"] == pytest.approx(sum(point["terms"].values())) for point in report.curves)
    assert (report.steps, report.images, report.layers) == (60, 240, [])


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_only_the_chosen_part_learns(part):
    net = fresh()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    pretrain(net, Pictures(), dataclasses.replace(VAE, layers=part))
    changed = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    assert changed and all(name.startswith(part) for name in changed)
    assert {name for name in before if name.startswith(part) and "0.0.weight" in name} <= changed


def test_a_filter_of_the_decoder_that_reads_only_a_closed_connection_stays():
    net = fresh()
    before = net.decoder.blocks[0][0].weight.detach().clone()
    pretrain(net, Pictures(), VAE)
    after = net.decoder.blocks[0][0].weight
    assert torch.equal(after[:, :4], before[:, :4]) and not torch.equal(after[:, 4:], before[:, 4:])


@pytest.mark.parametrize("name", ["vae", "superpixel"])
def test_a_network_without_parts_is_refused_with_what_to_do(name):
    for net in (factory.build(VNet(), 2, 1, 2, 0), nn.Sequential(nn.Conv2d(1, 2, 1))):
        with pytest.raises(InputError) as caught:
            pretrain(net, Pictures(), configure(name))
        for words in ("net.name", type(net).__name__, f"--pretrain {name}", "encoder, decoder and head", "--net unet"):
            assert words in str(caught.value)


def test_a_gradient_that_is_not_finite_changes_no_weight(tmp_path):
    net = fresh()
    pretraining = begun(net)
    with torch.no_grad():
        pretraining.extra["log_variance"].bias.fill_(200)  # its exponential overflows
    trainer = trainer_of(pretraining, Served(Pictures()), Session(Path(tmp_path), CPU))
    before = {name: tensor.clone() for name, tensor in pretraining.state_dict().items()}
    with trainer.learning() as model:
        line = trainer.make_step(model, trainer.stream[0])
    assert line["loss"] is None and "skipped" in line
    assert all(torch.equal(tensor, before[name]) for name, tensor in pretraining.state_dict().items())
    assert not trainer.optimiser.state and all(parameter.grad is None for parameter in net.parameters())
