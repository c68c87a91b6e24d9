"""Settings: what is written is read, and nothing unknown, mistyped or out of range comes through."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from nissl.config import (
    AugmentConfig,
    Config,
    DataConfig,
    SplitConfig,
    TrainConfig,
    from_tree,
    read_toml,
    to_tree,
)
from nissl.errors import InputError
from nissl.methods.settings import BCP, CPS, METHODS, Supervised, UniMatch
from nissl.nets.settings import ForeignNet, UNet, VNet
from nissl.pretrain.settings import PRETRAININGS, VAE, Hebbian, NoPretraining, UnitNorm
from nissl.runs.format import load_config


def refused(tree):
    with pytest.raises(InputError) as caught:
        from_tree(Config, tree, "run.toml")
    error = caught.value
    assert error.exit_code == 2 and error.found and error.expected and error.fix
    return error


def test_the_defaults_survive_a_file(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(tomli_w.dumps(to_tree(Config())))
    assert load_config(path) == Config()


small = st.floats(0.01, 0.99)
paths = st.none() | st.text("abc/ ü.", min_size=1).map(Path)
configs = st.builds(
    Config,
    data=st.builds(
        DataConfig,
        images=paths,
        masks=paths,
        label_map=st.text(),
        size=st.lists(st.integers(16, 512), max_size=3).map(tuple),
        sampling=st.sampled_from(["auto", "resize", "patches"]),
        limit_gib=st.integers(1, 9) | small,
    ),
    split=st.builds(SplitConfig, labels=st.text(), test_fraction=small, allow_shared_groups=st.booleans()),
    augment=st.builds(AugmentConfig, flip=st.booleans(), scale=small, noise=small),
    net=st.builds(UNet, widths=st.just((4, 8)), dropout=st.tuples(small, small))
    | st.just(VNet())
    | st.text().map(lambda text: ForeignNet(f"package:{text}")),
    pretrain=st.builds(Hebbian, rule=st.sampled_from(["swta", "hpca", "hebb"]), steps=st.integers(1, 10**6))
    | st.builds(VAE, rate=small, layers=st.sampled_from(["all", "encoder"]))
    | st.sampled_from([NoPretraining(), UnitNorm()]),
    method=st.builds(CPS, weight=small, ramp=small)
    | st.builds(UniMatch, confidence=small, dropped=small)
    | st.builds(BCP, box=small, loss=st.sampled_from(["dice", "dice+cross-entropy"]))
    | st.just(Supervised()),
    train=st.builds(TrainConfig, learning_rate=st.floats(1e-9, 10), average=small),
    seed=st.integers(0, 2**31),
    deterministic=st.booleans(),
)


@settings(max_examples=40, deadline=None)
@given(configs)
def test_any_settings_survive_a_file(tmp_path_factory, config):
    path = tmp_path_factory.mktemp("settings") / "config.toml"
    path.write_text(tomli_w.dumps(to_tree(config)), encoding="utf-8")
    assert load_config(path) == config


def test_settings_left_out_keep_their_defaults():
    assert from_tree(Config, {"train": {"steps": 5}}, "x") == Config(train=TrainConfig(steps=5))


@pytest.mark.parametrize(
    ("tree", "key", "suggestion"),
    [
        ({"sede": 1}, "sede", "`seed`"),
        ({"train": {"step": 5}}, "step", "`steps`"),
        ({"data": {"label-map": "binary"}}, "label-map", "`label_map`"),
        ({"zzzz": 1}, "zzzz", "choose from"),
    ],
)
def test_an_unknown_key_is_refused_with_a_suggestion(tree, key, suggestion):
    error = refused(tree)
    assert error.where.startswith("run.toml") and f"`{key}`" in error.found and suggestion in error.fix


@pytest.mark.parametrize(
    ("tree", "key", "expected"),
    [
        ({"seed": "1"}, "seed", "int"),
        ({"seed": True}, "seed", "int"),
        ({"seed": 1.0}, "seed", "int"),
        ({"deterministic": 1}, "deterministic", "bool"),
        ({"device": 0}, "device", "str"),
        ({"train": {"learning_rate": "fast"}}, "learning_rate", "float"),
        ({"train": {"learning_rate": True}}, "learning_rate", "float"),
        ({"train": {"optimiser": "adagrad"}}, "optimiser", "'adamw', 'adam', 'sgd"),
        ({"method": {"name": 3}}, "name", "supervised, entropy"),
        ({"method": {"name": "cps", "weight": "much"}}, "weight", "float"),
        ({"pretrain": {"name": "hebbian", "rule": "hpcaa"}}, "rule", "'swta', 'hpca'"),
        ({"method": 7}, "method", "MethodSettings"),
        ({"data": {"size": 128}}, "size", "int"),
        ({"data": {"size": ["128"]}}, "size", "int"),
        ({"data": {"images": 3}}, "images", "Path"),
        ({"train": 7}, "train", "TrainConfig"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(tree, key, expected):
    error = refused(tree)
    assert error.where.endswith(key) and expected in error.expected


def test_a_whole_number_serves_as_a_float():
    value = from_tree(Config, {"train": {"clip": 1}}, "x").train.clip
    assert value == 1.0 and type(value) is float


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("data", "size", [8]),
        ("data", "foreground", 1.5),
        ("data", "cache_gib", -1.0),
        ("data", "limit_gib", 0.0),
        ("data", "workers", -1),
        ("split", "test_fraction", 0.0),
        ("split", "test_fraction", 1.0),
        ("augment", "rotate", 181.0),
        ("augment", "scale", 1.0),
        ("augment", "contrast", -0.1),
        ("net", "widths", [16]),
        ("net", "widths", [0, 0, 0, 0, 0]),
        ("net", "dropout", [0.1]),
        ("net", "dropout", [0.1, 0.1, 0.1, 0.1, 1.0]),
        ("hebbian", "rate", 0.0),
        ("hebbian", "steps", 0),
        ("vae", "beta", -1.0),
        ("superpixel", "groups", 1),
        ("entropy", "weight", -0.1),
        ("cps", "ramp", 1.5),
        ("uamt", "passes", 0),
        ("mean-teacher", "decay", 1.0),
        ("urpc", "scales", 1),
        ("unimatch", "confidence", 1.1),
        ("bcp", "decay", -0.5),
        ("bcp", "box", 1.0),
        ("train", "steps", 0),
        ("train", "batch", -1),
        ("train", "learning_rate", 0.0),
        ("train", "learning_rate", float("nan")),
        ("train", "average", 1.0),
        ("predict", "tile", 8),
        ("predict", "halo", -1),
    ],
)
def test_a_value_out_of_range_names_its_key(section, key, value):
    table = "pretrain" if section in PRETRAININGS else "method" if section in METHODS else section
    error = refused({table: {"name": section, key: value} if table != section else {key: value}})
    assert error.where == f"{table}.{key}" and repr(value[0] if isinstance(value, list) else value) in error.found


@pytest.mark.parametrize(("content", "found"), [(None, "No such file"), (b"seed = = 1", ""), (b"\xff\xfe", "")])
def test_a_file_that_is_no_settings_file_is_named(tmp_path, content, found):
    path = tmp_path / "run.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_config(path)
    assert caught.value.where == str(path) and found in caught.value.found


@pytest.mark.parametrize(
    "dropout",
    [(0.05, 0.5), (0.05, 0.2, 0.5), (0.05, 0.133, 0.267, 0.5), (0.05, 0.1, 0.2, 0.3, 0.5)],
)
def test_dropout_follows_the_number_of_widths_and_is_written(dropout, tmp_path):
    net = UNet(widths=(4,) * len(dropout))
    assert net.dropout == dropout
    path = tmp_path / "config.toml"
    path.write_text(tomli_w.dumps(to_tree(Config(net=net))))
    assert tuple(read_toml(path)["net"]["dropout"]) == dropout
    assert load_config(path).net == net == dataclasses.replace(UNet(), widths=net.widths)


def test_dropout_of_any_depth_rises_from_the_first_of_the_five_numbers_to_the_last():
    for levels in range(2, 12):
        dropout = UNet(widths=(4,) * levels).dropout
        assert len(dropout) == levels and dropout[0] == 0.05 and dropout[-1] == 0.5
        assert list(dropout) == sorted(dropout)
        between = np.interp(np.linspace(0, 4, levels), range(5), UNet().dropout)
        assert np.allclose(dropout, between, rtol=0, atol=5.1e-4)


def test_settings_cannot_be_changed_after_they_are_checked():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().seed = 3  # type: ignore[misc]


def named_before(field):
    """Whether it is the name of one member, which the base class documents."""
    return field.target.id == "name" and field.value is not None


def test_every_setting_has_a_docstring():
    import ast

    import nissl

    places = ("config.py", "nets/settings.py", "pretrain/settings.py", "methods/settings.py")
    trees = [ast.parse((Path(nissl.__file__).parent / place).read_text()) for place in places]
    for kind in (node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)):
        if kind.name == "Config":
            continue  # its sections are documented by their classes
        for field, text in zip(kind.body, kind.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and not named_before(field):
                assert isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant), (
                    f"{kind.name}.{field.target}"
                )
