"""Members own their settings: an option of another one is refused by name, and nothing stays open in a run."""

import dataclasses
import subprocess
import sys

import pytest
import tomli_w
import torch
from tests.tiny_data import NET, tiny_config, write_tiny
from torch import nn

from nissl.config import Config, from_tree, to_tree
from nissl.data.discovery import find_cases
from nissl.data.split import make_split
from nissl.errors import InputError
from nissl.learner import Learner
from nissl.methods import METHODS
from nissl.methods.settings import Supervised
from nissl.nets.settings import NETWORKS
from nissl.pretrain import PRETRAININGS
from nissl.runs.format import load_config
from nissl.training.network import resolve_settings

TABLES = {"net": NETWORKS, "pretrain": PRETRAININGS, "method": METHODS}
MEMBERS = [(table, name) for table, members in TABLES.items() for name in members]
HEAVY = ("torch", "numpy", "scipy", "monai")


def options_of(members, name):
    return {field.name: field.default for field in dataclasses.fields(members.settings(name)) if field.name != "name"}


@pytest.mark.parametrize(("table", "name"), MEMBERS)
def test_every_member_can_be_made_and_has_an_implementation(table, name):
    members, base = TABLES[table], nn.Module if table == "net" else Learner
    settings = members.make(name)
    assert settings.name == name and name in members and settings == members.settings(name)()
    assert getattr(from_tree(Config, {table: {"name": name}}, "x"), table) == settings
    assert members.make(name, **options_of(members, name)) == settings
    assert issubclass(members[name], base)


@pytest.mark.parametrize(("table", "name"), MEMBERS)
def test_an_option_of_another_member_is_refused_and_its_owners_are_named(tmp_path, table, name):
    members, own = TABLES[table], options_of(TABLES[table], name)
    foreign = {}
    for other in members:
        foreign |= {key: (value, other) for key, value in options_of(members, other).items() if key not in own}
    assert foreign or name == "unet"
    path = tmp_path / "run.toml"
    for option, (value, owner) in foreign.items():
        tree = {table: {"name": name, option: value}}
        path.write_text(tomli_w.dumps(tree))
        for refused in (
            lambda tree=tree: from_tree(Config, tree, "run.toml"),
            lambda: load_config(path),
            lambda option=option, value=value: members.make(name, **{option: value}),
        ):
            with pytest.raises(InputError) as caught:
                refused()
            error = caught.value
            assert f"`{option}`" in error.found and f"`{name}`" in error.found and owner in members.owners(option)
            assert all(known in error.fix for known in members.owners(option)) and all(
                key in error.expected for key in own
            )


def test_an_option_of_none_is_refused_with_the_nearest_of_the_member():
    with pytest.raises(InputError) as caught:
        from_tree(Config, {"method": {"name": "bcp", "boxx": 0.5}}, "run.toml")
    assert "`boxx`" in caught.value.found and "`box`" in caught.value.fix
    with pytest.raises(InputError, match="supervised, entropy"):
        from_tree(Config, {"method": {"name": "bpc2"}}, "run.toml")


def test_without_a_name_the_options_are_those_of_the_default_member():
    assert from_tree(Config, {"method": {"loss": "dice"}}, "x").method == Supervised(loss="dice")
    with pytest.raises(InputError, match="supervised"):
        from_tree(Config, {"method": {"weight": 1.0}}, "x")


def test_what_is_not_in_a_registry_is_not_a_member():
    for members in TABLES.values():
        assert "no such" not in members and "package:Class" not in members and 3 not in members
    assert NETWORKS.settings("package:Class")("package:Class").name == "package:Class"


def test_all_settings_are_made_without_torch():
    modules = [f"nissl.{package}.settings" for package in ("nets", "pretrain", "methods")]
    code = f"""
import importlib, sys
for module in map(importlib.import_module, {modules}):
    (members,) = (found for name, found in vars(module).items() if name in ("NETWORKS", "PRETRAININGS", "METHODS"))
    assert len(members) > 1 and all(members.make(name).name == name for name in members)
print([name for name in {HEAVY} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


# What settings come to on data


@pytest.fixture(scope="module", params=[2, 3])
def data(request, tmp_path_factory):
    folder = write_tiny(tmp_path_factory.mktemp("tiny") / "data", request.param, 5, (2,), (4,))
    dataset = find_cases(folder, Config().data)
    return dataset, make_split(dataset.cases, tiny_config().split, 0)


@pytest.mark.parametrize("protocol", ["nissl", "parity"])
@pytest.mark.parametrize(("table", "name"), [("net", "vnet"), *(pair for pair in MEMBERS if pair[0] != "net")])
def test_resolved_settings_leave_nothing_open_and_resolving_again_changes_nothing(data, table, name, protocol):
    if protocol == "parity" and data[0].dims == 3:
        pytest.skip("the published protocol is about 2-D images")
    config = dataclasses.replace(Config(net=NET, protocol=protocol), **{table: TABLES[table].make(name)})
    once = resolve_settings(config, *data, torch.device("cpu"))
    assert resolve_settings(once, *data, torch.device("cpu")) == once
    tree = to_tree(once)
    assert all(tree["augment"][key] is not None for key in ("flip", "rotate", "transpose"))
    assert tree["data"]["sampling"] != "auto" and len(tree["data"]["size"]) == data[0].dims
    assert tree["train"]["precision"] == "float32"
    assert "auto" not in (tree["pretrain"].get("layers"), tree["pretrain"].get("response"))
    assert from_tree(Config, tree, "config.toml") == once
