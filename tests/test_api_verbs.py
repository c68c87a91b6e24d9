"""The whole job: train, evaluate, predict, report, on images of a few pixels."""

import dataclasses
import hashlib
import json
import math
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tests.tiny_data import NET, tiny_config, write_tiny

import nissl
from nissl import api
from nissl.config import DataConfig
from nissl.errors import DataError, InputError
from nissl.imageio.formats import read_raster, write_image, write_mask
from nissl.methods import METHODS
from nissl.methods.settings import Supervised
from nissl.nets import factory
from nissl.nets.settings import ForeignNet, UNet, VNet
from nissl.plasticity import plastic_layers
from nissl.pretrain.settings import NoPretraining
from nissl.runs.checkpoint import load_checkpoint
from nissl.runs.folder import WEIGHTS
from nissl.runs.format import FORMAT, load_config
from nissl.tasks.scores import COLUMNS
from nissl.training.loop import Trainer

RUN_FILES = {
    *("config.toml", "split.json", "data.json", "env.json", "network.json", "pretrain.json", "budget.json"),
    *("model.json", "log.jsonl", "pretrain.jsonl", "filters.npy", "filters_start.npy"),
    *("checkpoints/last.safetensors", "checkpoints/state.safetensors", "checkpoints/previous.state.safetensors"),
    "checkpoints/stage1-0.safetensors",
}
FACTS = {"split": "test", "cases": 2, "steps": 5, "planned_steps": 5}
MEASURED = {"metrics.csv", "metrics.json", "report.html"}
KEYS = {"dice", "dice_ci", "pooled_dice", "hd95", "n_cases", "trivial_dice"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny") / "data")


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    return api.train(data, tmp_path_factory.mktemp("runs") / "first", tiny_config())


@pytest.fixture(scope="module")
def measured(run):
    summary = api.evaluate(run)
    api.report(run)
    return summary


def files_in(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def read(path):
    return json.loads(path.read_text())


def weights_hash(run):
    return load_checkpoint(run / WEIGHTS)[1]["sha256"]


def test_the_run_folder_has_every_file_and_no_other(run, measured):
    names = files_in(run)
    predictions = {name for name in names if name.startswith("predictions/")}
    assert names - predictions == RUN_FILES | MEASURED
    assert predictions == {"predictions/field002.png", "predictions/field005.png"}


def test_a_run_is_readable_without_our_code(run, data):
    asked = tiny_config()
    assert load_config(run / "config.toml") == dataclasses.replace(
        asked,
        data=DataConfig(size=(32, 32), sampling="resize"),
        augment=dataclasses.replace(asked.augment, flip=True, rotate=180.0, transpose=True),
        pretrain=dataclasses.replace(asked.pretrain, layers="decoder", response="centred"),
        train=dataclasses.replace(asked.train, precision="float32"),
    )
    facts, split = read(run / "data.json"), read(run / "split.json")
    assert (facts["name"], facts["dims"], facts["channels"]) == ("data", 2, 1)
    assert facts["classes"] == ["background", "foreground"]
    assert split["test"] == ["field002", "field005"] and len(split["labelled"]) == 2
    assert sorted(split["labelled"] + split["unlabelled"]) == [f"field{n:03d}" for n in (0, 1, 3, 4, 6, 7)]
    assert read(run / "budget.json")["masks_seen"] == split["labelled"]
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert all(math.isclose(line["loss"], sum(line["terms"].values()), rel_tol=1e-5) for line in lines)
    assert read(run / "pretrain.json")["name"] == "hebbian"


def test_the_weights_load_into_a_plain_network_without_our_loader(run):
    net = factory.build(NET, 2, 1, 2, seed=3)
    state = {name: torch.from_numpy(value) for name, value in load_file(run / "checkpoints/last.safetensors").items()}
    net.load_state_dict(state)
    facts = read(run / "network.json")
    assert facts["parameters"] == sum(parameter.numel() for parameter in net.parameters())
    assert facts["input"] == [1, 32, 32]
    first = next(plastic_layers(net))[1].weight.detach().numpy()
    np.testing.assert_array_equal(np.load(run / "filters.npy"), first)
    assert np.load(run / "filters_start.npy").shape == first.shape


def test_multiply_adds_are_those_of_the_convolutions(run):
    """Counted by hand, for 32 x 32 pixels, one channel, widths 4 and 8, two classes."""
    fine, coarse = 32 * 32, 16 * 16
    expected = fine * 9 * (1 * 4 + 4 * 4) + coarse * 9 * (4 * 8 + 8 * 8)  # encoder
    expected += coarse * 8 * 4 * 4 + fine * 9 * (8 * 4 + 4 * 4) + fine * 4 * 2  # decoder and head
    assert read(run / "network.json")["multiply_adds"] == expected


def test_hashes_are_of_the_files_that_training_opened_and_of_no_other(run, data):
    split = read(run / "split.json")
    for case in read(run / "data.json")["cases"]:
        image, mask = data / "images" / f"{case['id']}.png", data / "masks" / f"{case['id']}.png"
        trained = case["id"] not in split["test"]
        assert case["image_sha256"] == (hashlib.sha256(image.read_bytes()).hexdigest() if trained else None)
        labelled = case["id"] in split["labelled"]
        assert case["mask_sha256"] == (hashlib.sha256(mask.read_bytes()).hexdigest() if labelled else None)


def test_the_same_seed_gives_the_same_weights_and_another_other_ones(data, run, tmp_path):
    torch.manual_seed(99)
    assert weights_hash(api.train(data, tmp_path / "again", tiny_config())) == weights_hash(run)
    assert weights_hash(api.train(data, tmp_path / "other", tiny_config(seed=1))) != weights_hash(run)


def test_budgets_of_one_seed_are_nested(data, tmp_path):
    sides = []
    for labels in ("1", "2", "50%", "5"):
        out = api.train(data, tmp_path / labels.strip("%"), tiny_config(pretrain="none", steps=1, labels=labels))
        sides.append(set(read(out / "split.json")["labelled"]))
    assert [len(side) for side in sides] == [1, 2, 3, 5]
    assert all(smaller < larger for smaller, larger in pairwise(sides))


def test_evaluate_says_for_each_class_and_overall_what_papers_report(run, measured):
    tree = measured.to_tree()
    assert read(run / "metrics.json") == {"format": FORMAT} | tree | FACTS
    assert set(tree["classes"]) == {"foreground"} and set(tree["classes"]["foreground"]) >= KEYS
    assert tree["overall"] == tree["classes"]["foreground"]
    assert tree["overall"]["n_cases"] == 2 and tree["overall"]["n_groups"] == 2
    rows = COLUMNS.from_csv((run / "metrics.csv").read_text())
    assert [row.case for row in rows] == ["field002", "field005"]


def test_scores_are_those_of_the_masks_in_the_folder(run, data, measured):
    """Dice by hand, from the files of prediction and reference."""
    dice, both, total = [], 0, 0
    for name in ("field002", "field005"):
        one, other = (
            read_raster(folder / f"{name}.png").pixels[0] > 0 for folder in (run / "predictions", data / "masks")
        )
        dice.append(2 * (one & other).sum() / (one.sum() + other.sum()))
        both, total = both + (one & other).sum(), total + one.sum() + other.sum()
    assert measured.overall.dice == pytest.approx(np.mean(dice))
    assert measured.overall.pooled_dice == pytest.approx(2 * both / total)


def test_labelled_cases_are_measured_beside_not_instead(run, measured):
    before = (run / "metrics.json").read_bytes()
    summary = api.evaluate(run, "labelled")
    assert (run / "metrics.json").read_bytes() == before
    assert read(run / "metrics_labelled.json")["split"] == "labelled" and summary.overall.n_cases == 2
    for name in ("metrics_labelled.json", "metrics_labelled.csv"):
        (run / name).unlink()
    for path in (run / "predictions_labelled").iterdir():
        path.unlink()
    (run / "predictions_labelled").rmdir()


def test_masks_of_a_folder_are_those_of_evaluate(run, data, measured, tmp_path):
    result = api.predict(run, data / "images", tmp_path / "masks")
    assert len(result.written) == 8 and not result.failed
    for name in ("field002", "field005"):
        ours, theirs = (
            read_raster(folder / f"{name}.png").pixels for folder in (tmp_path / "masks", run / "predictions")
        )
        np.testing.assert_array_equal(ours, theirs)


def test_the_report_is_one_file_with_the_numbers(run, measured):
    page = (run / "report.html").read_text()
    assert f"{measured.overall.dice:.3f}" in page or f"{100 * measured.overall.dice:.1f}" in page
    assert "field002" in page and 'src="http' not in page


def test_the_whole_job_in_3d(tmp_path):
    data = write_tiny(tmp_path / "data", dims=3, count=4, test=(2,), unmasked=(3,))
    run = api.train(data, tmp_path / "run", tiny_config(dims=3, steps=2))
    summary = api.evaluate(run)
    assert set(summary.to_tree()["overall"]) >= KEYS and summary.overall.n_cases == 1
    prediction = read_raster(run / "predictions" / "field002.nii.gz")
    reference = read_raster(data / "masks" / "field002.nii.gz")
    assert prediction.pixels.shape == reference.pixels.shape
    np.testing.assert_allclose(prediction.affine, reference.affine)
    result = api.predict(run, data / "images", tmp_path / "masks")
    assert len(result.written) == 4 and not result.failed
    assert api.report(run) == run / "report.html" and (run / "report.html").stat().st_size > 10_000
    assert read(run / "data.json")["dims"] == 3 and load_config(run / "config.toml").data.sampling == "patches"


def test_a_finished_run_that_is_resumed_stays_as_it_is(data, tmp_path):
    out = api.train(data, tmp_path / "run", tiny_config())
    before = weights_hash(out), (out / "log.jsonl").read_bytes()
    assert api.train(data, out, resume=True) == out
    assert (weights_hash(out), (out / "log.jsonl").read_bytes()) == before


def test_a_run_killed_before_its_first_checkpoint_starts_again(data, run, tmp_path, monkeypatch):
    """Its log does not hold the steps twice."""
    save = Trainer.save

    def killed(trainer):
        if trainer.stage.weights:
            raise KeyboardInterrupt
        save(trainer)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "save", killed)
        api.train(data, tmp_path / "run", tiny_config())
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 2
    api.train(data, tmp_path / "run", resume=True)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert weights_hash(tmp_path / "run") == weights_hash(run)


def test_a_whole_number_in_python_is_no_other_setting(data, tmp_path):
    """config.toml has it with a point."""
    config = dataclasses.replace(tiny_config(), augment=dataclasses.replace(tiny_config().augment, scale=0))
    api.train(data, tmp_path / "run", config)
    api.train(data, tmp_path / "run", config, resume=True)


def test_a_resumed_run_with_other_settings_is_refused(data, run):
    before = {name: (run / name).read_bytes() for name in files_in(run)}
    with pytest.raises(InputError) as caught:
        api.train(data, run, tiny_config(steps=6), resume=True)
    assert "train.steps was 5, is 6" in caught.value.found
    assert {name: (run / name).read_bytes() for name in files_in(run)} == before


def test_a_size_that_the_network_cannot_take_is_refused_before_anything_is_made(data, tmp_path):
    config = dataclasses.replace(tiny_config(), data=DataConfig(size=(33,)))
    with pytest.raises(InputError) as caught:
        api.train(data, tmp_path / "deep" / "run", config)
    assert "(34, 34)" in caught.value.found and "--size 34" in caught.value.fix
    assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize(
    "name", ["monai.networks.nets:BasicUNetPlusPlus", "torch.nn:Identity", "monai.networks.nets:X"]
)
def test_a_network_that_is_none_is_refused_before_anything_is_made(data, tmp_path, name):
    config = dataclasses.replace(tiny_config(pretrain="none"), net=ForeignNet(name))
    with pytest.raises(InputError) as caught:
        api.train(data, tmp_path / "run", config)
    assert name.split(":")[1] in caught.value.found + caught.value.where
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("method", "batch", "pretrain", "images", "key"),
    [
        ("supervised", 1, "none", 2, "train.batch"),
        ("entropy", 2, "none", 2, "train.batch"),
        ("supervised", 2, "hebbian", 1, "pretrain.batch"),
    ],
)
def test_steps_of_one_image_of_one_pixel_are_refused_before_anything_is_made(
    data, tmp_path, method, batch, pretrain, images, key
):
    """At 16 x 16, the fifth level has one pixel; two images of it can be normalised, and larger ones alone too."""
    config = tiny_config(pretrain=pretrain, steps=1)
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, size=(16,)),
        net=UNet(widths=(2, 2, 2, 2, 2)),
        method=METHODS.make(method),
        pretrain=config.pretrain if pretrain == "none" else dataclasses.replace(config.pretrain, batch=images),
        train=dataclasses.replace(config.train, batch=batch),
    )
    with pytest.raises(InputError) as caught:
        api.train(data, tmp_path / "run", config)
    assert caught.value.where == key and "--size" in caught.value.fix and not (tmp_path / "run").exists()
    wider = dataclasses.replace(config, data=dataclasses.replace(config.data, size=(32,)))
    api.train(data, tmp_path / "run", wider)


def test_a_part_that_the_network_does_not_have_is_refused_before_anything_is_made(data, tmp_path):
    config = tiny_config()
    config = dataclasses.replace(config, net=VNet(), pretrain=dataclasses.replace(config.pretrain, layers="decoder"))
    with pytest.raises(InputError, match=r"pretrain\.layers"):
        api.train(data, tmp_path / "run", config)
    assert not (tmp_path / "run").exists()


def test_a_foreign_network_goes_the_whole_way(data, tmp_path):
    net = ForeignNet("monai.networks.nets:BasicUNet")
    config = dataclasses.replace(tiny_config(steps=1), net=net)
    run = api.train(data, tmp_path / "run", config)
    assert api.evaluate(run).overall.n_cases == 2


@pytest.mark.parametrize(
    ("change", "key", "near"),
    [
        ({"method": Supervised("supervized")}, "method.name", "supervised"),
        ({"pretrain": NoPretraining("hebb")}, "pretrain.name", "hebbian"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(data, tmp_path, change, key, near):
    with pytest.raises(InputError) as caught:
        api.train(data, tmp_path / "run", dataclasses.replace(tiny_config(), **change))
    assert caught.value.where == key and f"`{near}`" in caught.value.fix
    assert not (tmp_path / "run").exists()


def test_a_test_mask_that_is_gone_is_named(data, run, tmp_path):
    moved = data / "masks" / "field005.png"
    hidden = moved.rename(tmp_path / "field005.png")
    try:
        with pytest.raises(InputError) as caught:
            api.evaluate(run)
        assert "field005" in caught.value.where and "mask" in caught.value.found
    finally:
        hidden.rename(moved)


def test_a_test_case_that_is_gone_is_named(data, run, tmp_path):
    paths = [data / folder / "field005.png" for folder in ("images", "masks")]
    hidden = [path.rename(tmp_path / path.parent.name) for path in paths]
    table = (data / "cases.csv").read_text()
    (data / "cases.csv").write_text("".join(line for line in table.splitlines(keepends=True) if "field005" not in line))
    try:
        with pytest.raises(InputError, match="field005"):
            api.evaluate(run)
    finally:
        (data / "cases.csv").write_text(table)
        for path, away in zip(paths, hidden):
            away.rename(path)


def test_images_of_another_kind_are_refused_before_the_run_starts(tmp_path):
    data = write_tiny(tmp_path / "data")
    write_image(data / "images" / "field004.png", np.zeros((3, 32, 32), np.uint8))
    with pytest.raises(DataError) as caught:
        api.train(data, tmp_path / "run", tiny_config())
    assert "field004" in caught.value.where and "3 channels" in caught.value.found
    assert not (tmp_path / "run").exists()


def test_check_writes_nothing_and_counts_its_progress(data, capsys):
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    report = nissl.check(data)
    assert not report.errors and report.facts["images"] == 8 and report.facts["masks"] == 7
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == before
    assert "checking: 8/8" in capsys.readouterr().err


def test_the_deterministic_mode_is_that_of_the_caller_afterwards(data, tmp_path):
    for before, warn_only in ((True, True), (True, False), (False, False)):
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        api.train(data, tmp_path / f"{before} {warn_only}", tiny_config(pretrain="none", steps=1))
        assert torch.are_deterministic_algorithms_enabled() is before
        assert torch.is_deterministic_algorithms_warn_only_enabled() is warn_only
    torch.use_deterministic_algorithms(False)


def test_a_run_with_folders_of_other_names_works_from_another_place_and_with_moved_data(tmp_path, monkeypatch):
    """Images in the data root, masks beside it, both typed from the working folder."""
    root = write_tiny(tmp_path / "work" / "data")
    (root / "images").rename(root / "scans")
    (root / "masks").rename(tmp_path / "work" / "drawn")
    monkeypatch.chdir(tmp_path / "work")
    config = tiny_config(pretrain="none", steps=2)
    folders = dataclasses.replace(config.data, images=Path("data/scans"), masks=Path("drawn"))
    api.train("data", "run", dataclasses.replace(config, data=folders))
    found = api.evaluate("run", device="cpu").overall.dice
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run = tmp_path / "work" / "run"
    assert api.evaluate(run, device="cpu").overall.dice == found
    moved = shutil.move(tmp_path / "work" / "data", tmp_path / "moved" / "data")
    shutil.move(tmp_path / "work" / "drawn", tmp_path / "moved" / "drawn")
    assert api.evaluate(run, device="cpu", data=moved).overall.dice == found
    assert api.report(run, moved).read_text().count('alt="Reference and prediction') == 2
    api.train(moved, run, resume=True)
    assert read(run / "env.json")["continued"][0]["changed"] == []


def test_a_mask_of_several_classes_is_learnt_and_scored_by_class(tmp_path):
    data = write_tiny(tmp_path / "data", count=6, test=(2,), unmasked=())
    for path in (data / "masks").iterdir():
        mask = read_raster(path).pixels[0]
        mask[:16] *= 2
        write_mask(path, mask)
    config = tiny_config(steps=1)
    labels = dataclasses.replace(config.data, label_map="0=background,1=low,2=high")
    run = api.train(data, tmp_path / "run", dataclasses.replace(config, data=labels))
    tree = api.evaluate(run).to_tree()
    assert set(tree["classes"]) == {"low", "high"} and all(set(scores) >= KEYS for scores in tree["classes"].values())


def _learning(method, batch):
    train = dataclasses.replace(tiny_config().train, batch=batch, steps=2)
    return dataclasses.replace(tiny_config(), method=METHODS.make(method), train=train)


@pytest.mark.parametrize(("method", "labelled", "unlabelled"), [("supervised", 4, 0), ("entropy", 2, 2), ("cps", 2, 2)])
def test_a_step_sees_as_many_images_with_every_method(data, tmp_path, monkeypatch, method, labelled, unlabelled):
    seen = []
    step = Trainer.make_step

    def counted(trainer, model, batch):
        if trainer.stage.weights:
            seen.append((len(batch.images), 0 if batch.unlabelled is None else len(batch.unlabelled)))
        return step(trainer, model, batch)

    monkeypatch.setattr(Trainer, "make_step", counted)
    config = _learning(method, 4)
    run = api.train(data, tmp_path / "run", config)
    assert seen == [(labelled, unlabelled)] * 2
    networks = 2 if method == "cps" else 1
    assert read(run / "pretrain.json")["images"] == networks * config.pretrain.steps * config.pretrain.batch


def test_an_odd_number_of_images_cannot_be_halved(data, tmp_path):
    config = _learning("entropy", 3)
    with pytest.raises(InputError, match="even number"):
        api.train(data, tmp_path / "run", config)
    assert not (tmp_path / "run").exists()
