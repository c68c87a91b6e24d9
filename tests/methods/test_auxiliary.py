"""Methods that reach into a network: what they find there, and how one without parts is refused."""

import pytest
import torch
from tests.methods.test_methods import over
from tests.tiny_data import ANY_NET, write_tiny
from tests.training.tiny import TRAIN, Recipe, make_stream, write_files

from nissl import cli
from nissl.errors import InputError
from nissl.methods.auxiliary import Sizes, fixed_draws, sizes
from nissl.nets import factory
from nissl.nets.settings import UNet, VNet
from nissl.training.loop import Trainer
from nissl.training.session import Stage

REACHING = ["urpc", "cct", "dtc"]


@pytest.mark.parametrize("dims", [2, 3])
def test_the_sizes_of_a_network_are_found_and_it_is_left_alone(dims):
    net = factory.build(UNet(widths=(4, 6, 8), dropout=(0.1, 0.2, 0.3)), dims, 2, 5, seed=0).train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state = torch.get_rng_state()
    assert sizes(net, "urpc") == Sizes(dims, (8, 6, 4), 5)
    assert net.training and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_fixed_draws_are_alike_and_change_nothing_outside():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    drawn = []
    for _ in range(2):
        with fixed_draws():
            drawn.append(torch.rand(3))
    assert torch.equal(*drawn) and torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("name", REACHING)
def test_a_network_without_parts_is_refused(name):
    with pytest.raises(InputError, match=f"VNet, with --method {name}"):
        over(factory.build(VNet(), 2, 1, 2, seed=0), name)


@pytest.mark.parametrize("name", REACHING)
def test_a_network_without_parts_is_refused_from_the_command_line_before_the_run_begins(tmp_path, capsys, name):
    data, out = write_tiny(tmp_path / "data"), tmp_path / "run"
    assert cli.run(["train", str(data), "--out", str(out), *ANY_NET, "--method", name, "--net", "vnet"]) == 2
    told = capsys.readouterr().err
    for part in (f"VNet, with --method {name}", "encoder, decoder and head", "--net unet"):
        assert part in told
    assert "Traceback" not in told and not (out / "config.toml").exists()


@pytest.mark.parametrize("name", REACHING)
def test_what_a_method_adds_is_laid_out_as_the_network_also_in_a_resumed_run(tmp_path, name):
    """Of networks as they are built: convolutions in another layout would round differently."""
    recipe = Recipe(write_files(tmp_path / "data"))
    net = recipe.problem().network(seed=0)
    trainer = Trainer(over(net, name), make_stream(recipe.files), Stage("", TRAIN, 0), recipe.session(tmp_path))
    kernels = [weight for weight in trainer.learner.parameters() if weight.ndim == 4]
    assert len(kernels) > len([weight for weight in net.parameters() if weight.ndim == 4])
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in kernels)
