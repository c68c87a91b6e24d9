"""Networks by name and by dotted path: they run, learn, and depend on the seed alone."""

import sys

import pytest
import torch
from tests.members import made

from nissl.errors import InputError
from nissl.nets import factory
from nissl.nets.settings import NETWORKS, VNet


def build(name, dims=2, seed=0):
    return factory.build(made(NETWORKS, name, widths=(4, 8), dropout=(0.0, 0.0)), dims, 2, 3, seed)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_runs_learns_and_round_trips(name, dims):
    net = build(name, dims)
    images = torch.randn(2, 2, *[32 if dims == 2 else 16] * dims, generator=torch.Generator().manual_seed(0))
    logits = net(images)
    assert logits.shape == (2, 3, *images.shape[2:])
    logits.square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in net.parameters())
    twin = build(name, dims, seed=1).eval()
    twin.load_state_dict(net.state_dict())
    with torch.no_grad():
        assert torch.equal(twin(images), net.eval()(images))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_stated_multiple_is_enough(name):
    net = build(name).eval()
    multiple = factory.multiple(net)
    with torch.no_grad():
        assert net(torch.zeros(1, 2, multiple, 3 * multiple)).shape == (1, 3, multiple, 3 * multiple)


@pytest.mark.parametrize("name", [*NETWORKS, "monai.networks.nets:BasicUNet"])
def test_initialisation_depends_on_the_seed_only(name):
    first = build(name).state_dict()
    torch.manual_seed(1234)
    torch.randn(3)
    again, other = build(name).state_dict(), build(name, seed=1).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", [*NETWORKS, "monai.networks.nets:BasicUNet", "no.such:Net"])
def test_the_global_random_state_is_left_alone(name):
    before = torch.get_rng_state()
    try:
        build(name)
    except InputError:
        assert name == "no.such:Net"
    assert torch.equal(torch.get_rng_state(), before)


def test_a_network_of_another_library_runs_by_its_path():
    net = build("monai.networks.nets:BasicUNet")
    assert net(torch.zeros(1, 2, 32, 32)).shape == (1, 3, 32, 32)
    assert factory.multiple(net) == factory.FOREIGN_MULTIPLE


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("unett", "unett"),
        ("monai.networks.nets.BasicUNet", "monai.networks.nets.BasicUNet"),
        ("monai.networks.nets:BasicUNett", "BasicUNett"),
        (".nets:UNet", ".nets:UNet"),
        ("", "''"),
        (":", "':'"),
        ("math:pi", "math:pi"),
        ("torch.nn:Linear", "torch.nn:Linear"),
        ("monai.networks.nets:AHNet.__name__", "AHNet"),
        ("broken_module:Net", "no luck"),
        ("broken_class:Net", "no luck"),
        ("no_module:make", "makes a dict"),
    ],
)
def test_a_bad_path_is_refused_with_what_to_write(path, found, tmp_path, monkeypatch):
    (tmp_path / "broken_module.py").write_text("raise RuntimeError('no luck')")
    arguments = "spatial_dims, in_channels, out_channels"
    (tmp_path / "broken_class.py").write_text(f"def Net({arguments}):\n    raise KeyError('no luck')")
    (tmp_path / "no_module.py").write_text(f"def make({arguments}):\n    return {{}}")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("broken_module", "broken_class", "no_module"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(InputError) as caught:
        build(path)
    error = caught.value
    assert error.where == "net.name" and found in error.found
    assert error.expected and error.fix


def test_a_path_that_names_nothing_shows_how_to_write_one():
    with pytest.raises(InputError) as caught:
        build("unett")
    assert "unet, vnet" in caught.value.expected and "package.module:Class" in caught.value.expected
    assert "`unet`" in caught.value.fix
    with pytest.raises(InputError, match=r"monai\.networks\.nets:BasicUNet"):
        build("monai.networks.nets:BasicUNett")


def test_images_that_a_network_cannot_take_are_refused_by_name():
    with pytest.raises(InputError, match=r"vnet for images of 3 channels.*\n.*\n.*--colour gray"):
        factory.build(VNet(), 2, 3, 2, seed=0)
