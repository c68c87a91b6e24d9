import dataclasses
import json

import pytest
import tomli_w
import torch
from tests.training.tiny import NET, PRETRAIN, TRAIN, Recipe, make_stream, write_files

from nissl.config import Config, DataConfig, to_tree
from nissl.errors import DataError, InputError
from nissl.model import Model
from nissl.nets import factory
from nissl.runs.checkpoint import load_checkpoint
from nissl.runs.folder import WEIGHTS, choose_device, read_json, write_json

CONFIG = Config(data=DataConfig(sampling="resize", size=(16, 16)), net=NET, train=TRAIN, seed=3)


@pytest.fixture
def run(tmp_path):
    """A finished run."""
    recipe = Recipe(write_files(tmp_path / "data"), config=dataclasses.replace(TRAIN, steps=4))
    trainer = recipe.whole(tmp_path / "run")
    describe(tmp_path / "run")
    return trainer


def describe(folder, **facts):
    size = (16,) * facts.get("dims", 2)
    config = dataclasses.replace(CONFIG, data=DataConfig(sampling="resize", size=size))
    (folder / "config.toml").write_text(tomli_w.dumps(to_tree(config)))
    write_json(folder / "data.json", {"dims": 2, "channels": 1, "classes": ["background", "cell"], "cases": []} | facts)


# load_model


def test_a_loaded_model_gives_what_the_averaged_weights_gave(run):
    model = Model.load(run.session.folder, "cpu")
    images = make_stream(Recipe(write_files(run.session.folder.parent / "data")).files)[0].images
    assert not model.predictor.training
    run.session.place(model.predictor)  # other layouts are summed in another order
    with torch.no_grad():
        assert torch.equal(model.predictor(images), run.average.module.eval()(images))
    assert (model.dims, model.channels, model.classes) == (2, 1, ("background", "cell"))
    assert model.description.net == CONFIG.net and model.planned_steps == CONFIG.train.steps
    assert model.weights == load_checkpoint(run.session.folder / WEIGHTS)[1]["sha256"]
    assert model.device == torch.device("cpu")


def test_a_run_with_filters_of_unit_norm_loads_as_a_plain_network(tmp_path):
    recipe = Recipe(
        write_files(tmp_path / "data", dims=3),
        pretrain="hebbian",
        options=PRETRAIN | {"handover": "unit-norm"},
        config=dataclasses.replace(TRAIN, steps=4),
    )
    trainer = recipe.whole(tmp_path / "run")
    describe(tmp_path / "run", dims=3)
    model = Model.load(tmp_path / "run", "cpu")
    images = make_stream(recipe.files)[0].images
    with torch.no_grad():
        torch.testing.assert_close(model.predictor(images), trainer.average.module.eval()(images), rtol=0, atol=1e-6)
    assert model.predictor.state_dict().keys() == factory.build(NET, 3, 1, 2, 0).state_dict().keys()


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError) as caught:
        Model.load(tmp_path / "nowhere", "cpu")
    for part in ("nowhere", "no such file", "the folder of a run made by `nissl train`", "check the folder"):
        assert part in str(caught.value)


def test_another_folder_is_refused_and_stays_as_it_is(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"data\.json"):
        Model.load(tmp_path, "cpu")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_run_without_its_settings_is_refused_by_name(run):
    (run.session.folder / "config.toml").unlink()
    with pytest.raises(InputError, match=r"config\.toml\n  found: cannot be read"):
        Model.load(run.session.folder, "cpu")


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\x00", b""])
def test_damaged_facts_are_refused_by_name(run, content):
    (run.session.folder / "data.json").write_bytes(content)
    with pytest.raises(DataError, match=r"data\.json\n  found: unreadable .*\n  expected: the JSON that the run wrote"):
        Model.load(run.session.folder, "cpu")


def test_missing_weights_are_refused_by_name(run):
    (run.session.folder / WEIGHTS).unlink()
    with pytest.raises(DataError, match=r"last\.safetensors\n  found: no such file"):
        Model.load(run.session.folder, "cpu")


def test_f06_altered_weights_are_refused_by_name(run):
    path = run.session.folder / WEIGHTS
    altered = bytearray(path.read_bytes())
    altered[-1] ^= 128
    path.write_bytes(altered)
    with pytest.raises(DataError, match=r"last\.safetensors\n  found: checksum differs"):
        Model.load(run.session.folder, "cpu")


@pytest.mark.parametrize("facts", [{"channels": 3}, {"classes": ["a", "b", "c"]}, {"dims": 3}])
def test_weights_that_do_not_fit_the_settings_are_refused_by_name(run, facts):
    describe(run.session.folder, **facts)
    with pytest.raises(DataError) as caught:
        Model.load(run.session.folder, "cpu")
    for part in ("last.safetensors", "weights of another network", "those of unet with", "restore"):
        assert part in str(caught.value)


def test_json_is_readable_by_anyone_and_comes_back(tmp_path):
    content = {"name": "größe", "list": [1, 2.5, None], "tuple": (1,)}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == json.loads(json.dumps(content))
    assert "größe" in (tmp_path / "a.json").read_text(encoding="utf-8")


# Devices


def test_auto_is_a_gpu_where_there_is_one(monkeypatch):
    for there in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert choose_device("auto").type == ("cuda" if there else "cpu")


@pytest.mark.parametrize("name", ["cpu", "cpu:0"])
def test_a_device_is_chosen_by_name(name):
    assert choose_device(name) == torch.device(name)


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "", "cpu:x", "cuda:-1"])
def test_a_device_that_is_not_here_is_named(name):
    with pytest.raises(InputError) as caught:
        choose_device(name)
    for part in ("device", f"found: {name}", "auto, cpu or cuda", "leave it to `auto`"):
        assert part in str(caught.value)
    assert "\n" not in caught.value.found
