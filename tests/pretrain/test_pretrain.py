"""What every pre-training keeps and changes: it sees images, and leaves a plain network that learns as any other."""

from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tests.members import made
from tests.pretrain.driver import CPU, learner_of, pretrain
from torch import nn
from torch.nn import functional

from nissl.errors import InputError
from nissl.nets import factory
from nissl.nets.settings import NETWORKS, ForeignNet, UNet
from nissl.plasticity import RULES, plastic_layers
from nissl.pretrain import PRETRAININGS
from nissl.pretrain.gradient import BackPropagation
from nissl.pretrain.pretraining import Pretraining, excluded, head
from nissl.pretrain.unit_norm import UnitNorm, normalise
from nissl.runs.checkpoint import plain_state
from nissl.training.session import Control, Session

NET = UNet(widths=(4, 8), dropout=(0.3, 0.3))
OPTIONS = {"layers": "all", "response": "linear", "steps": 3, "batch": 2, "rate": 0.1}
"""Of each pre-training that has them."""
HANDOVERS = ["fold", "unit-norm"]
LEARNING = ["hebbian", "shuffled"]
HANDED_OVER = [*LEARNING, "untrained"]
GRADIENT = [name for name, kind in PRETRAININGS.items() if issubclass(kind, BackPropagation)]
"""Those that back-propagate a loss without masks, to compare the Hebbian family with."""
FORWARD = [name for name in PRETRAININGS if name not in GRADIENT]


@pytest.fixture
def no_backward(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("back-propagation was run")

    monkeypatch.setattr(torch.autograd, "backward", refuse)
    monkeypatch.setattr(torch.autograd, "grad", refuse)
    monkeypatch.setattr(torch.Tensor, "backward", refuse)


class Pictures:
    """Smooth random images by step; notes which steps were asked for."""

    def __init__(self, dims=2, size=16, batch=2, channels=2):
        self.shape, self.asked = (batch, channels, *[size] * dims), []

    def __getitem__(self, step):
        self.asked.append(step)
        noise = torch.randn(self.shape, generator=torch.Generator().manual_seed(step))
        pool = {2: functional.avg_pool2d, 3: functional.avg_pool3d}[noise.ndim - 2]
        return 3 * pool(noise, 3, stride=1, padding=1)


def fresh(dims=2, seed=0, config=NET):
    return factory.build(config, dims, 2, 3, seed)


def configure(name, **changes):
    return made(PRETRAININGS, name, **OPTIONS | changes)


def weights(net):
    """Effective weights of the plastic layers."""
    return {name: layer.weight.detach().clone() for name, layer in plastic_layers(net)}


def statistics(net):
    """Running means and variances, without the counters."""
    return {name: tensor.clone() for name, tensor in net.named_buffers() if "running" in name}


def moved(before, after):
    return [name for name in before if not torch.equal(before[name], after[name])]


@pytest.mark.parametrize("name", PRETRAININGS)
def test_a_pretraining_sees_images_and_nothing_else(name):
    assert PRETRAININGS[name].sees == "images"


@pytest.mark.parametrize("handover", HANDOVERS)
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", PRETRAININGS)
def test_the_network_stays_one_that_trains_and_has_a_plain_state(name, dims, handover):
    net, images = fresh(dims), Pictures(dims)
    shape, mode = [(n, p.shape, p.requires_grad) for n, p in net.named_parameters()], net.training
    report = pretrain(net, images, configure(name, handover=handover))
    assert report.name == name and net.training is mode
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert sorted(p.shape for p in net.parameters()) == sorted(shape for _, shape, _ in shape)
    plain = fresh(dims, seed=9)
    assert plain_state(net).keys() == plain.state_dict().keys()
    plain.load_state_dict(plain_state(net))
    x = images[99]
    with torch.no_grad():
        torch.testing.assert_close(plain.eval()(x), net.eval()(x), rtol=1e-5, atol=1e-6)
    before = weights(net)
    optimiser = torch.optim.SGD(net.train().parameters(), lr=0.1)
    net(x).square().mean().backward()
    optimiser.step()
    assert sorted(moved(before, weights(net))) == sorted(before)


@pytest.mark.parametrize("handover", HANDOVERS)
@pytest.mark.parametrize("name", FORWARD)
def test_no_backpropagation_is_run(name, handover, no_backward):
    pretrain(fresh(), Pictures(), configure(name, handover=handover))


@pytest.mark.parametrize("name", PRETRAININGS)
def test_the_same_seed_gives_the_same_network(name):
    states = []
    for noise in (1, 2):
        net = fresh()
        torch.manual_seed(noise)  # nothing may depend on the global state
        pretrain(net, Pictures(), configure(name), seed=5)
        states.append(net.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("name", PRETRAININGS)
def test_the_global_random_state_is_left_alone(name):
    before = torch.get_rng_state()
    pretrain(fresh(), Pictures(), configure(name))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("handover", HANDOVERS)
@pytest.mark.parametrize("name", PRETRAININGS)
def test_the_head_is_left_to_the_masks(name, handover):
    net = fresh()
    weight, bias = net.head.weight.detach().clone(), net.head.bias.detach().clone()
    pretrain(net, Pictures(), configure(name, handover=handover))
    assert torch.equal(net.head.weight, weight) and torch.equal(net.head.bias, bias)


@pytest.mark.parametrize("name", PRETRAININGS)
def test_only_what_sees_images_moves_the_normalisation_statistics(name):
    net, images = fresh(), Pictures()
    before = statistics(net)
    report = pretrain(net, images, configure(name))
    sees = name in (*HANDED_OVER, *GRADIENT, "warm")
    assert bool(images.asked) is sees and report.images == (6 if sees else 0)
    assert moved(before, statistics(net)) == (list(before) if sees else [])


@pytest.mark.parametrize("name", ["none", "warm"])
def test_controls_without_learning_leave_all_weights(name):
    net = fresh()
    before = {key: parameter.detach().clone() for key, parameter in net.named_parameters()}
    pretrain(net, Pictures(), configure(name))
    assert not moved(before, dict(net.named_parameters()))


def test_warm_sees_what_the_hebbian_stage_sees():
    warm, hebbian = Pictures(), Pictures()
    pretrain(fresh(), warm, configure("warm"))
    pretrain(fresh(), hebbian, configure("hebbian"))
    assert warm.asked == hebbian.asked[:3] == list(range(3))


@pytest.mark.parametrize("name", LEARNING)
def test_folding_gives_each_layer_the_norm_of_its_initialisation(name):
    net = fresh()
    before = weights(net)
    pretrain(net, Pictures(), configure(name))
    after = weights(net)
    for key in before:
        torch.testing.assert_close(after[key].norm(), before[key].norm(), rtol=1e-5, atol=0)
        assert (key != "head") == (not torch.allclose(after[key], before[key], atol=1e-3))


def filter_norms(layer):
    """Norm of what each output channel reads, in a loop."""
    weight = layer.weight.detach()
    if not layer.transposed:
        return torch.stack([one.norm() for one in weight])
    ins, outs = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    return torch.stack(
        [weight[g * ins : (g + 1) * ins, o].norm() for g in range(layer.groups) for o in range(outs)],
    )


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_can_be_pretrained(network):
    config = made(NETWORKS, network, widths=NET.widths, dropout=NET.dropout)
    net, images = fresh(config=config), Pictures(size=32)
    before = weights(net)
    report = pretrain(net, images, configure("hebbian", handover="unit-norm"))
    assert sorted(moved(before, weights(net))) == sorted(before.keys() - {head(fresh(config=config))})
    assert all(weight.isfinite().all() for weight in weights(net).values()) and report.layers
    plain = fresh(config=config)
    plain.load_state_dict(plain_state(net))
    with torch.no_grad():
        torch.testing.assert_close(plain.eval()(images[9]), net.eval()(images[9]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [*HANDED_OVER, "unit-norm"])
def test_kept_unit_norm_holds_through_later_steps(name):
    net, images = fresh(), Pictures()
    pretrain(net, images, configure(name, handover="unit-norm"))
    optimiser = torch.optim.SGD(net.parameters(), lr=0.5)
    for step in range(3):
        for _, layer in plastic_layers(net, ("head",)):
            torch.testing.assert_close(filter_norms(layer), torch.ones(layer.out_channels), rtol=1e-5, atol=0)
        optimiser.zero_grad()
        net(images[step]).square().mean().backward()
        optimiser.step()
    assert (filter_norms(net.head) - 1).abs().min() > 1e-3


GROUPED = [
    nn.Conv2d(4, 6, 3, groups=2),
    nn.ConvTranspose2d(4, 6, 3),
    nn.ConvTranspose2d(4, 6, 2, groups=2),
    nn.ConvTranspose3d(4, 6, 2, groups=2),
]


@pytest.mark.parametrize("laid", [False, True])
@pytest.mark.parametrize("layer", GROUPED)
def test_unit_norm_is_that_of_what_each_output_reads(layer, laid):
    if laid:
        Session(Path(), CPU).place(layer)
    before = layer.weight.detach().clone()
    normalise([layer], "T-summed")
    torch.testing.assert_close(filter_norms(layer), torch.ones(6))
    torch.testing.assert_close(UnitNorm(layer)(before), layer.weight.detach())
    direction = layer.weight.detach() / before
    assert (direction > 0).all()


@pytest.mark.parametrize("layer", GROUPED[1:])
def test_in_transposed_layers_the_reading_says_what_a_filter_is(layer):
    start = layer.weight.detach().clone()
    normalise([layer], "S")
    torch.testing.assert_close(layer.weight.flatten(1).norm(dim=1), torch.ones(4))
    normalise([layer], "T")
    for group in layer.weight.chunk(layer.groups):  # inputs of the group, its outputs, offsets
        for column in group.flatten(2).unbind(1):
            torch.testing.assert_close(column.norm(dim=0), torch.ones(column.shape[1]))
    assert (layer.weight / start > 0).all()


@pytest.mark.parametrize("transposed", ["T", "T-summed", "S"])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_a_filter_of_zeros_stays_zero(kind, transposed):
    layer = kind(3, 3, 3)
    with torch.no_grad():
        layer.weight[1] = 0
        layer.weight[:, 2] = 0
    normalise([layer], transposed)
    assert (layer.weight[1] == 0).all() and (layer.weight[:, 2] == 0).all() and layer.weight.isfinite().all()


@pytest.mark.parametrize("handover", HANDOVERS)
@pytest.mark.parametrize("name", [*LEARNING, "unit-norm"])
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_only_the_chosen_part_changes(part, name, handover):
    net = fresh()
    before = weights(net)
    report = pretrain(net, Pictures(), configure(name, layers=part, handover=handover))
    changed = [key for key in before if not torch.allclose(before[key], weights(net)[key], atol=1e-4)]
    assert changed == [key for key in before if key.startswith(part)]
    assert [row["name"] for row in report.layers] == (changed if name in LEARNING else [])


@pytest.mark.parametrize("name", [*LEARNING, "unit-norm"])
def test_left_to_itself_a_rule_and_its_controls_change_the_decoder(name):
    chosen, automatic = fresh(), fresh()
    pretrain(chosen, Pictures(), configure(name, layers="decoder"))
    pretrain(automatic, Pictures(), configure(name, layers="auto"))
    assert PRETRAININGS.make(name).layers == "auto"
    assert all(torch.equal(weight, weights(automatic)[key]) for key, weight in weights(chosen).items())


@pytest.mark.parametrize("name", GRADIENT)
def test_left_to_itself_back_propagation_changes_all_parts(name):
    assert learner_of(fresh(), configure(name, layers="auto")).excluded() == ("head",)


class Halves(nn.Module):
    """A foreign network: its head lies in the decoder."""

    def __init__(self, *inner):
        super().__init__()
        self.encoder = nn.Conv2d(2, 4, 3, padding=1)
        self.decoder = nn.Sequential(*inner, nn.Conv2d(4, 3, 1))

    def forward(self, x):
        return self.decoder(functional.relu(self.encoder(x)))


def test_a_head_inside_the_decoder_does_not_learn_without_masks():
    net = Halves(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
    before = weights(net)
    report = pretrain(net, Pictures(), configure("hebbian", layers="auto"))
    assert [row["name"] for row in report.layers] == ["decoder.0"]
    assert [key for key in before if not torch.equal(before[key], weights(net)[key])] == ["decoder.0"]


def test_where_the_decoder_is_the_head_alone_all_else_learns():
    report = pretrain(Halves(), Pictures(), configure("hebbian", layers="auto"))
    assert [row["name"] for row in report.layers] == ["encoder"]
    with pytest.raises(InputError, match="decoder"):
        pretrain(Halves(), Pictures(), configure("hebbian", layers="decoder"))


def ranked(weight, transposed):
    """Values of each filter in order of size, scaled to norm 1."""
    rows = (weight.movedim(1, 0) if transposed else weight).flatten(1)
    return (rows / rows.norm()).sort(dim=1).values, rows / rows.norm()


@pytest.mark.parametrize("dims", [2, 3])
def test_shuffling_keeps_the_values_of_each_filter_but_not_their_order(dims):
    trained, shuffled = fresh(dims), fresh(dims)
    pretrain(trained, Pictures(dims), configure("hebbian"), seed=3)
    pretrain(shuffled, Pictures(dims), configure("shuffled"), seed=3)
    for (name, one), (_, other) in zip(plastic_layers(trained, ("head",)), plastic_layers(shuffled, ("head",))):
        values, order = zip(
            ranked(one.weight.detach(), one.transposed), ranked(other.weight.detach(), other.transposed)
        )
        torch.testing.assert_close(*values, rtol=1e-5, atol=1e-7)
        assert (order[0] - order[1]).norm() > 0.5, name
    again = fresh(dims)
    pretrain(again, Pictures(dims), configure("shuffled"), seed=4)
    assert not torch.equal(again.encoder.blocks[0][0].weight, shuffled.encoder.blocks[0][0].weight)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_untrained_control_is_what_the_hebbian_stage_hands_over_after_steps_of_no_size(dims):
    trained, untrained, start = fresh(dims), fresh(dims), fresh(dims)
    pretrain(trained, Pictures(dims), configure("hebbian", rate=1e-30))
    pretrain(untrained, Pictures(dims), configure("untrained"))
    for name, tensor in trained.state_dict().items():
        torch.testing.assert_close(untrained.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)
    before, after = weights(start), weights(untrained)
    for name, tensor in before.items():
        torch.testing.assert_close(after[name].norm(), tensor.norm())
        assert (after[name] * tensor >= 0).all()  # no filter has turned
        if name != "head":
            assert not torch.equal(after[name], tensor), name


@pytest.mark.parametrize("optimiser", ["relative", "sgd", "adam"])
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_learns_under_every_optimiser(rule, optimiser):
    net = fresh()
    before = weights(net)
    report = pretrain(net, Pictures(), configure("hebbian", rule=rule, optimiser=optimiser, rate=0.02))
    assert report.rule == rule and len(report.curves) == 3
    for name, weight in weights(net).items():
        assert weight.isfinite().all()
        assert torch.equal(weight, before[name]) is (name == "head")


def test_the_rate_falls_linearly_so_that_steps_shrink():
    """Unit vectors in a layer: a relative step of rate r turns it by about r at most, and the rate falls to zero."""
    report = pretrain(fresh(), Pictures(), configure("hebbian", steps=40, rate=0.01))
    change = torch.tensor([row["change"] for row in report.curves])
    assert (change[0] <= 0.0101).all() and (change[0] > 0.001).all()
    assert (change[-1] <= sum(0.01 * (1 - step / 40) for step in range(40)) * 1.05).all()


def test_the_report_has_a_row_for_each_layer_and_at_most_so_many_points():
    report = pretrain(fresh(), Pictures(), configure("hebbian", steps=130))
    names = [name for name, _ in plastic_layers(fresh(), ("head",))]
    assert [row["name"] for row in report.layers] == names
    assert all(len(point["change"]) == len(names) for point in report.curves)
    assert 50 <= len(report.curves) <= 70 and report.curves[-1]["step"] == 130
    assert [row["relative_change"] for row in report.layers] == report.curves[-1]["change"]
    assert [row["units"] for row in report.layers] == [4, 4, 8, 8, 4, 4, 4]
    assert (report.steps, report.images) == (130, 260)


@pytest.mark.parametrize("name", PRETRAININGS)
def test_progress_is_told_of_each_step(name):
    told = []
    report = pretrain(fresh(), Pictures(), configure(name), control=Control(track=noting(told.append)))
    assert len(told) == report.steps == (3 if name in (*HANDED_OVER, *GRADIENT, "warm") else 0)


def noting(note):
    """A tracker that hands each message to a function."""

    @contextmanager
    def track(total, what, start=0):
        yield note

    return track


def captured(net, images):
    """Inputs of the convolutions in training mode, dropout off."""
    inputs = {}
    handles = [
        layer.register_forward_hook(lambda layer, x, _, name=name: inputs.update({name: x[0]}))
        for name, layer in plastic_layers(net, ("head",))
    ]
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    with torch.no_grad():
        net(images[500])
    for handle in handles:
        handle.remove()
    return inputs


def share_explained(layer, x):
    patches = functional.unfold(x.double(), 3, padding=1).movedim(1, 2).flatten(0, 1)
    basis = torch.linalg.qr(layer.weight.detach().double().flatten(1).T)[0]
    return float(((patches @ basis) ** 2).sum() / (patches**2).sum())


def test_hpca_explains_more_of_its_input_than_random_filters_do():
    """The first layer sees the same input before and after, so that trained and random filters compare."""
    trained, start, other = fresh(), fresh(), fresh(seed=7)
    report = pretrain(trained, Pictures(), configure("hebbian", rule="hpca", steps=60, rate=0.1))
    x = Pictures()[500]
    share = {net: share_explained(net.encoder.blocks[0][0], x) for net in (trained, start, other)}
    assert share[trained] > share[start] + 0.2 and share[trained] > share[other] + 0.2
    row = report.layers[0]
    assert row["variance_explained"] == pytest.approx(share[trained], abs=0.05)
    deeper = captured(trained, Pictures())["encoder.blocks.0.4"]
    random = [share_explained(net.encoder.blocks[0][4], deeper) for net in (start, other)]
    assert share_explained(trained.encoder.blocks[0][4], deeper) > max(random)


@pytest.mark.parametrize("handover", HANDOVERS)
@pytest.mark.parametrize("name", PRETRAININGS)
def test_restructuring_gives_the_form_that_running_leaves(name, handover):
    """A resumed run does not pre-train again: it restructures, and loads."""
    ran, restructured = fresh(), fresh(seed=1)
    config = configure(name, handover=handover)
    pretrain(ran, Pictures(), config)
    Session(Path(), CPU).place(restructured)
    learner_of(restructured, config).restructure()
    assert ran.state_dict().keys() == restructured.state_dict().keys()
    restructured.load_state_dict(ran.state_dict())
    with torch.no_grad():
        x = Pictures()[0]
        assert torch.equal(ran.eval()(x), restructured.eval()(x))


@pytest.mark.parametrize("name", [*HANDED_OVER, "unit-norm"])
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_a_network_without_that_part_is_refused(name, part):
    net = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 3, 1))
    with pytest.raises(InputError) as caught:
        pretrain(net, Pictures(), configure(name, layers=part))
    error = caught.value
    assert error.where == "pretrain.layers" and part in error.found and "`all`" in error.expected
    assert "0, 1" in error.expected and "--layers all" in error.fix


def test_the_head_of_a_foreign_network_is_its_last_layer():
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 3, 1))
    assert head(net) == "2" and excluded(net, "all") == ("2",)
    assert head(fresh()) == "head"
    assert head(factory.build(ForeignNet("monai.networks.nets:BasicUNet"), 2, 2, 3, 0)) == "final_conv"


class Mixer(nn.Module):
    """A network with linear layers over tokens, biases, and a layer that is not used."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.unused = nn.Conv2d(2, 6, 4, stride=4), nn.Linear(6, 5), nn.Linear(3, 3)
        self.head = nn.Conv2d(5, 3, 1)

    def forward(self, x):
        tokens = self.embed(x).flatten(2).movedim(1, 2)
        mixed = self.mix(tokens).movedim(2, 1).unflatten(2, (4, 4))
        return functional.interpolate(self.head(mixed), scale_factor=4.0)


@pytest.mark.parametrize("rule", ["hpca", "swta"])
def test_networks_with_linear_layers_over_tokens_learn_too(rule):
    net = Mixer()
    unused = net.unused.weight / net.unused.weight.norm(dim=1, keepdim=True)
    report = pretrain(net, Pictures(), configure("hebbian", rule=rule))
    assert [(row["name"], row["units"]) for row in report.layers] == [("embed", 6), ("mix", 5), ("unused", 3)]
    assert report.layers[2]["dead_units"] == 3 and report.layers[2]["relative_change"] < 1e-6
    assert all(row["relative_change"] > 0.01 for row in report.layers[:2])
    torch.testing.assert_close(functional.normalize(net.unused.weight), unused)
    if rule == "hpca":
        assert all(0 < row["variance_explained"] <= 1 for row in report.layers[:2])


def test_the_base_does_nothing():
    net = fresh()
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    images = Pictures()
    report = pretrain(net, images, configure("none"))
    assert PRETRAININGS["none"] is Pretraining
    assert not moved(before, net.state_dict()) and not images.asked and report.steps == 0
