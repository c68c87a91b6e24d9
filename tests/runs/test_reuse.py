"""A pre-training that is reused is the one that would have been made, or it is refused."""

import dataclasses
import json
import shutil

import pytest
import tomli_w
from tests.tiny_data import tiny_config, write_tiny

from nissl import api
from nissl.config import read_toml, to_tree
from nissl.errors import DataError, InputError
from nissl.imageio.formats import read_raster, write_image
from nissl.methods import METHODS
from nissl.runs.checkpoint import load_checkpoint
from nissl.runs.folder import WEIGHTS
from nissl.runs.provenance import flat
from nissl.runs.reuse import NOT_STAGE_1, STAGE_1, stage_1_settings
from nissl.training.loop import Trainer


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny") / "data")


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    return api.train(data, tmp_path_factory.mktemp("runs") / "first", tiny_config())


@pytest.fixture
def other(run, tmp_path):
    """A copy of the run, to be changed."""
    return shutil.copytree(run, tmp_path / "other")


def read(path):
    return json.loads(path.read_text())


def changed(path, **content):
    path.write_text(json.dumps(read(path) | content))


def weights(run):
    return load_checkpoint(run / WEIGHTS)[1]["sha256"]


def learning(method, labels="50%"):
    split = dataclasses.replace(tiny_config().split, labels=labels)
    return dataclasses.replace(tiny_config(), method=METHODS.make(method), split=split)


def test_it_gives_the_bits_of_one_made_here_whatever_the_budget(data, tmp_path, run):
    alone = api.train(data, tmp_path / "alone", learning("supervised"))
    shared = api.train(data, tmp_path / "shared", learning("supervised"), pretrained=run)
    assert len(read(shared / "budget.json")["masks_seen"]) != len(read(run / "budget.json")["masks_seen"])
    assert weights(shared) == weights(alone)
    origin = read(shared / "env.json")
    assert (shared / origin["stage_1_of"]).resolve() == run.resolve() and origin["exact"] is True
    seconds = {"seconds": 0.0}
    assert read(shared / "pretrain.json") | seconds == read(alone / "pretrain.json") | seconds


@pytest.mark.parametrize("networks", [1, 2])
def test_as_many_networks_are_taken_as_there_are(data, tmp_path, run, monkeypatch, networks):
    """Of a method with two networks the second is made here where the other run has one alone: to the same bits."""
    alone = api.train(data, tmp_path / "alone", learning("cps", "2"))
    made, whole = set(), Trainer.save

    def noted(trainer):
        made.add(trainer.stage.state.name)
        whole(trainer)

    monkeypatch.setattr(Trainer, "save", noted)
    shared = api.train(data, tmp_path / "shared", learning("cps"), pretrained=run if networks == 1 else alone)
    assert made - {"state.safetensors"} == ({"stage1-1.safetensors"} if networks == 1 else set())
    monkeypatch.undo()
    assert weights(shared) == weights(api.train(data, tmp_path / "again", learning("cps")))


def test_a_run_with_a_stage_1_of_its_own_goes_on_with_that(data, tmp_path, other):
    """Also where the other one is gone meanwhile: the same command with --resume goes on."""
    longer = dataclasses.replace(tiny_config(), train=dataclasses.replace(tiny_config().train, steps=7))
    mine = shutil.copytree(other, tmp_path / "mine")
    before = (mine / "checkpoints" / "stage1-0.safetensors").read_bytes()
    api.train(data, mine, longer, resume="changed", pretrained=tmp_path / "gone")
    assert (mine / "checkpoints" / "stage1-0.safetensors").read_bytes() == before
    assert "stage_1_of" not in read(mine / "env.json")


def another(value):
    """A value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return value + "x" if isinstance(value, str) else [*value, 1]


def test_every_setting_of_stage_1_counts_and_no_other_one(monkeypatch):
    tree = to_tree(tiny_config())  # every option of a Hebbian pre-training is among them
    before = stage_1_settings(tree)
    for key in flat(tree):
        room, _, name = key.partition(".")
        table = tree[room] if name else tree
        place = name or room
        monkeypatch.setitem(table, place, another(table[place]))
        counts = room in STAGE_1 and key not in NOT_STAGE_1
        assert (stage_1_settings(tree) != before) == counts, key
        monkeypatch.undo()
    parts = {key.partition(".")[0] for key in flat(tree)}
    assert parts - set(STAGE_1) == {"device", "method", "predict", "split", "task", "train"}
    assert set(NOT_STAGE_1) - set(flat(tree)) == {"data.images", "data.masks"}  # which are not given


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"seed": 4}, "seed is 0 there, 4 here"),
        ({"pretrain": dataclasses.replace(tiny_config().pretrain, rate=0.5)}, "pretrain.rate is"),
        ({"augment": dataclasses.replace(tiny_config().augment, affine=0.7)}, "augment.affine is 0.2 there, 0.7 here"),
    ],
)
def test_one_that_began_otherwise_is_refused_before_anything_is_written(data, tmp_path, run, change, found):
    with pytest.raises(InputError, match=found):
        api.train(data, tmp_path / "run", dataclasses.replace(tiny_config(), **change), pretrained=run)
    assert not (tmp_path / "run").exists()


def test_a_setting_that_the_other_does_not_name_counts_as_another(data, tmp_path, other):
    tree = read_toml(other / "config.toml")
    del tree["augment"]["affine"]
    (other / "config.toml").write_text(tomli_w.dumps(tree))
    with pytest.raises(InputError, match=r"augment\.affine is None there"):
        api.train(data, tmp_path / "run", tiny_config(), pretrained=other)


def test_one_of_other_images_is_refused(tmp_path, run):
    other = write_tiny(tmp_path / "data")
    path = sorted((other / "images").glob("field000.*"))[0]
    write_image(path, read_raster(path).pixels // 2)
    with pytest.raises(InputError, match="training images differ: 1, such as field000"):
        api.train(other, tmp_path / "run", tiny_config(), pretrained=run)


def test_one_of_other_classes_is_refused(data, tmp_path, other):
    changed(other / "data.json", classes=["background", "gland", "nerve"])
    with pytest.raises(InputError, match=r"classes are .*nerve"):
        api.train(data, tmp_path / "run", tiny_config(), pretrained=other)


def test_one_whose_settings_were_changed_on_the_way_is_refused(data, tmp_path, other):
    """Its config.toml is that of its end, and not of its pre-training."""
    rate = dataclasses.replace(tiny_config().pretrain, rate=0.5)
    steps = dataclasses.replace(tiny_config().train, steps=7)
    config = dataclasses.replace(tiny_config(), pretrain=rate, train=steps)
    api.train(data, other, config, resume="changed")
    with pytest.raises(InputError, match="it was continued with other settings"):
        api.train(data, tmp_path / "run", config, pretrained=other)


def test_where_there_is_none_it_is_said(data, tmp_path, other):
    with pytest.raises(InputError, match="nowhere"):
        api.train(data, tmp_path / "run", tiny_config(), pretrained=tmp_path / "nowhere")
    shutil.rmtree(other / "checkpoints")
    with pytest.raises(InputError, match="no pre-trained network in it"):
        api.train(data, tmp_path / "run", tiny_config(), pretrained=other)


def test_a_damaged_one_is_refused_by_its_own_name(data, tmp_path, other):
    path = other / "checkpoints" / "stage1-0.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="other/checkpoints/stage1-0"):
        api.train(data, tmp_path / "run", tiny_config(), pretrained=other)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "facts", [{"nissl": "0"}, {"torch": "1.0"}, {"threads": 64}, {"processes": 2}, {"exact": False}]
)
def test_a_run_is_not_called_exact_where_its_stage_1_was_made_elsewhere(data, tmp_path, other, facts):
    changed(other / "env.json", **facts)
    made = api.train(data, tmp_path / "run", tiny_config(), pretrained=other)
    assert read(made / "env.json")["exact"] is False
