"""The published protocol: each part against an independent way to the same, and the whole on a few small images."""

import dataclasses
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.tiny_data import NET, opened_files, tiny_config, write_tiny

from nissl import api
from nissl.bench.protocols import ciampi2024
from nissl.bench.protocols.ciampi2024 import (
    PUBLISHED,
    THRESHOLDS,
    departures,
    histogram,
    overlaps,
    require,
    selected,
    settled,
)
from nissl.config import Config, DataConfig, TrainConfig
from nissl.data.batches import Store
from nissl.data.discovery import find_cases
from nissl.data.preprocessing import resolve
from nissl.errors import DataError, InputError
from nissl.methods import METHODS
from nissl.metrics.overlap import Overlap
from nissl.model import Model
from nissl.nets import factory
from nissl.nets.settings import UNet
from nissl.pretrain.settings import Hebbian
from nissl.runs.checkpoint import load_checkpoint
from nissl.runs.folder import WEIGHTS
from nissl.runs.format import load_config
from nissl.schedule import learning_rate
from nissl.training.loop import Trainer

TEST = ("field002", "field005")


def published(method="supervised", **settings):
    return Config(method=METHODS.make(method), protocol="parity", **settings)


def small(method="supervised", steps=7, **settings):
    """Three masks, two in a step: an epoch is of two steps."""
    return dataclasses.replace(
        tiny_config(pretrain="none", labels="3"),
        method=METHODS.make(method),
        train=TrainConfig(steps=steps, save_every=3),
        protocol="parity",
        **settings,
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny") / "data")


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    return api.train(data, tmp_path_factory.mktemp("runs") / "uamt", small("uamt"))


def read(path):
    return json.loads(path.read_text())


def log(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def weights_hash(run):
    return load_checkpoint(run / WEIGHTS)[1]["sha256"]


# Settings


@pytest.mark.parametrize(("masks", "steps"), [(1, 200), (2, 200), (5, 600), (9, 1000), (17, 1800), (85, 8600)])
def test_the_length_is_200_passes_of_two_masks_a_step(masks, steps):
    assert settled(published(), masks).train.steps == steps


@pytest.mark.parametrize("method", METHODS)
def test_settling_leaves_nothing_open_and_settling_again_changes_nothing(method):
    once = settled(published(method), 17)
    assert departures(once, 17) == ([] if method in PUBLISHED else ["method"]) and settled(once, 17) == once
    assert once.train.batch == (4 if METHODS[method].sees == "labelled+unlabelled" else 2)


def test_what_the_user_set_stays_and_is_named():
    asked = published(net=NET, train=TrainConfig(batch=6, learning_rate=0.1))
    found = settled(asked, 17)
    assert found.net == dataclasses.replace(NET, upsampling="linear")
    assert (found.train.batch, found.train.learning_rate, found.train.optimiser) == (6, 0.1, "sgd")
    assert departures(found, 17) == ["net.widths", "net.dropout", "train.batch", "train.learning_rate"]


def test_a_pretraining_is_named_since_the_published_one_is_another():
    assert departures(settled(published(pretrain=Hebbian()), 17), 17) == ["pretrain"]


def test_what_the_protocol_does_not_speak_of_is_left_alone():
    asked = published(seed=4, data=DataConfig(label_map="binary", workers=2))
    found = settled(asked, 3)
    assert (found.seed, found.split, found.pretrain, found.predict) == (4, asked.split, asked.pretrain, asked.predict)
    assert (found.data.label_map, found.data.workers) == ("binary", 2)


def published_rates(epochs=200):
    """Of the authors' scheduler, epoch by epoch: n/20 in the first 21 (from 0), then torch's StepLR of 50 epochs."""
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    after, rates = torch.optim.lr_scheduler.StepLR(optimiser, 50, gamma=0.5), []
    for epoch in range(epochs):
        if epoch > 20:
            rates.append(after.get_last_lr()[0])
            optimiser.step()
            after.step()
        else:
            rates.append(0.5 * epoch / 20)
    return rates


def test_the_learning_rate_is_the_published_one_to_an_epoch():
    config = settled(published(), 17).train
    ours = np.array([learning_rate(step, config) for step in range(config.steps)]).reshape(200, 9)
    theirs = published_rates()
    assert sum(theirs) / 0.5 == pytest.approx(101.6, abs=0.05)  # stated by those who read their code
    for epoch, rate in enumerate(theirs):
        near = ours[max(0, epoch - 1) : epoch + 1]
        assert near.min() * (epoch > 0) <= rate + 1e-9 and rate <= near.max() + 1e-9
    assert ours.mean(1).sum() == pytest.approx(sum(theirs), rel=0.01)


@pytest.mark.parametrize("epoch", [0, 1, 99, 199])
def test_the_weight_of_the_unlabelled_terms_is_the_published_one_at_the_end_of_each_epoch(epoch):
    config = settled(published("entropy"), 17).method
    method = METHODS["entropy"]([factory.build(NET, 2, 1, 2, 0)], config)
    assert method.weight((epoch + 1) / 200) == pytest.approx(5 * (epoch + 1) / 200)


def test_the_network_has_as_many_weights_as_the_published_one_but_for_its_head():
    """1,813,762 parameters were counted in theirs, with a 3x3 head of 290 and biases before BatchNorm."""
    config = settled(published(), 2).net
    net = factory.build(config, 2, 3, 2, 0)
    biases = sum(2 * width for width in config.widths) + sum(3 * width for width in config.widths[:-1])
    assert sum(parameter.numel() for parameter in net.parameters()) + biases + 290 - 34 == 1_813_762


# Thresholds


def slow_counts(shares, masks, threshold):
    """TP, FP and FN pixel by pixel."""
    tp = fp = fn = 0
    for share, label in zip(shares.flatten().tolist(), masks.flatten().tolist()):
        predicted = torch.tensor(share) > torch.tensor(threshold)
        tp, fp, fn = tp + (predicted and label), fp + (predicted and not label), fn + (not predicted and label)
    return Overlap(int(tp), int(fp), int(fn))


def shares_and_masks(seed=0, size=(3, 6, 7)):
    generator = torch.Generator().manual_seed(seed)
    masks = torch.randint(2, size, generator=generator)
    shares = (0.4 * torch.rand(size, generator=generator) + 0.3 * masks).flatten()
    shares[:50] = torch.cat([THRESHOLDS, torch.tensor([0.0, 0.0, 1.0, 1.0, 0.9])])  # where > and >= differ
    return shares.reshape(size), masks


def test_the_sweep_equals_a_loop_over_thresholds_and_pixels():
    shares, masks = shares_and_masks()
    dice, jaccard = overlaps(histogram(shares, masks))
    for place, threshold in enumerate(np.arange(0, 0.9, 0.02)):
        slow = slow_counts(shares, masks, float(threshold))
        assert dice[place].item() == pytest.approx(slow.dice, abs=1e-12)
        assert jaccard[place].item() == pytest.approx(slow.iou, abs=1e-12)
    assert len(dice) == place + 1 == 45 and THRESHOLDS[ciampi2024.HALF] == 0.5


def test_histograms_of_parts_add_up():
    shares, masks = shares_and_masks()
    parts = sum(histogram(shares[index], masks[index]) for index in range(3))
    assert torch.equal(parts, histogram(shares, masks)) and parts.sum() == masks.numel()


def test_threshold_0_is_foreground_everywhere():
    masks = torch.randint(2, (500,), generator=torch.Generator().manual_seed(1))
    shares = torch.rand(500, generator=torch.Generator().manual_seed(2)).clamp(min=1e-6)
    part = masks.double().mean()
    assert overlaps(histogram(shares, masks))[0][0].item() == pytest.approx(2 * part / (1 + part))


def look(step, jaccard, last=0.5, **more):
    fields = {"network": "a", "threshold": 0.1, "pooled_jaccard": jaccard, "pooled_dice": 2 * jaccard / (1 + jaccard)}
    return {"step": step, "loss": 1.0, "parity": {**fields, "dice_at_half": last, **more}}


def test_the_best_and_earliest_look_is_chosen_and_the_last_one_told():
    lines = [look(2, 0.3), {"step": 3}, look(4, 0.6, threshold=0.2), look(6, 0.6, network="b"), look(8, 0.1, last=0.25)]
    found = selected(lines)
    assert found.pop("pooled_dice") == pytest.approx(0.75)
    assert found == {
        **{"pooled_jaccard": 0.6, "threshold": 0.2, "step": 4, "network": "a"},
        **{"last_pooled_dice": 0.25, "validated": 4},
    }


# The run


def test_the_last_look_is_what_the_saved_weights_give_on_the_test_images(run, data):
    model, found = Model.load(run, "cpu"), find_cases(data)
    files = [file for file in found.cases if file.id in TEST]
    store = Store(files, found.label_map, resolve(load_config(run / "config.toml").data, 2))
    shares, masks = [], []
    for index in range(len(store)):
        mean, deviation = store.moments(index)
        pixels = torch.from_numpy((store[index].image - mean) / deviation)[None]
        with torch.no_grad():
            shares.append(model.predictor(pixels).softmax(1)[:, 1])
        masks.append(torch.from_numpy(store[index].target).long()[None])
    shares, masks = torch.cat(shares), torch.cat(masks)
    last = log(run)[-1]["parity"]
    assert last["dice_at_half"] == pytest.approx(slow_counts(shares, masks, 0.5).dice, abs=2e-3)
    assert read(run / "parity.json")["last_pooled_dice"] == last["dice_at_half"]
    everywhere = slow_counts(torch.ones_like(shares), masks, 0.0).dice
    assert read(run / "parity.json")["foreground_everywhere"] == pytest.approx(everywhere)


def test_an_epoch_is_one_pass_over_the_labelled_images(run):
    assert [line["step"] for line in log(run) if "parity" in line] == [2, 4, 6, 7]  # and the last step
    found = read(run / "parity.json")
    assert found["validated"] == 4 and found["step"] in (2, 4, 6, 7) and found["network"] in ("student", "teacher")
    assert found["pooled_dice"] >= found["foreground_everywhere"] - 1e-12
    assert found["pooled_dice"] >= max(line["parity"]["pooled_dice"] for line in log(run) if "parity" in line) - 1e-12


@pytest.mark.parametrize(
    ("method", "pretrain", "steps"),
    [("supervised", "none", [4, 7]), ("supervised", "hebbian", [2, 4, 6, 7]), ("entropy", "none", [2, 4, 6, 7])],
)
def test_masks_alone_are_followed_by_a_measurement_in_every_second_epoch_as_published(
    data, tmp_path, method, pretrain, steps
):
    config = dataclasses.replace(small(method), pretrain=tiny_config(pretrain=pretrain).pretrain)
    out = api.train(data, tmp_path / "run", config)
    assert [line["step"] for line in log(out) if "parity" in line] == steps


def test_the_run_shows_the_settings_that_it_used_and_what_departs_from_the_protocol(run):
    config = load_config(run / "config.toml")
    expected = settled(small("uamt"), 3)
    data = DataConfig(size=(32, 32), sampling="resize")
    assert config == dataclasses.replace(expected, data=data, augment=expected.augment.resolved(2))
    assert (config.protocol, config.train.optimiser, config.train.batch, config.method.loss) == (
        *("parity", "sgd", 4, "dice"),
    )
    assert read(run / "parity.json")["differs"] == ["data.size", "net.widths", "net.dropout", "train.steps"]
    assert set(log(run)[0]["terms"]) == {"dice", "consistency"}


def test_measuring_changes_nothing_in_the_training(run, data, tmp_path):
    config = dataclasses.replace(load_config(run / "config.toml"), protocol="nissl")
    blind = api.train(data, tmp_path / "blind", config)
    assert weights_hash(blind) == weights_hash(run) and not (blind / "parity.json").exists()


def test_f33_test_images_are_opened_under_the_published_protocol_alone(data, tmp_path):
    for protocol, seen in (("parity", set(TEST)), ("nissl", set())):
        config = dataclasses.replace(small(steps=2), protocol=protocol)
        with opened_files() as opened:
            out = api.train(data, tmp_path / protocol, config)
        for folder in ("images", "masks"):
            assert {path.stem for path in opened if path.parent == data / folder} & set(TEST) == seen
        budget = read(out / "budget.json")
        assert budget["test_masks_opened"] == len(seen) and set(budget.get("validation", [])) == seen
        assert [choice["cases"] for choice in budget["choices"] if choice["split"] == "test"] == [2] * bool(seen)


@pytest.mark.parametrize("killed_at", [2, 5, 7])
def test_a_run_that_was_killed_ends_with_the_same_choice(run, data, tmp_path, monkeypatch, killed_at):
    step = Trainer.make_step

    def dying(trainer, model, batch):
        if trainer.step == killed_at - 1:
            raise KeyboardInterrupt
        return step(trainer, model, batch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "make_step", dying)
        api.train(data, tmp_path / "run", small("uamt"))
    assert not (tmp_path / "run" / "parity.json").exists()
    api.train(data, tmp_path / "run", small("uamt") if killed_at == 5 else None, resume=True)
    assert read(tmp_path / "run" / "parity.json") == read(run / "parity.json")
    assert weights_hash(tmp_path / "run") == weights_hash(run)
    measurements = [[line.get("parity") for line in log(folder)] for folder in (tmp_path / "run", run)]
    assert measurements[0] == measurements[1]


def test_f33_every_place_that_shows_its_numbers_carries_the_warning(run, capsys):
    summary = api.evaluate(run)
    assert ciampi2024.WARNING in summary.warnings and ciampi2024.WARNING in read(run / "metrics.json")["warnings"]
    found = read(run / "parity.json")
    by_code = dict(zip(read(run / "metrics.json")["warning_codes"], summary.warnings, strict=True))
    assert by_code["published-protocol"] == ciampi2024.WARNING
    chosen = by_code["published-number"]
    assert f"{found['pooled_dice']:.4f}" in chosen and f"{found['last_pooled_dice']:.4f}" in chosen
    assert "data.size, net.widths, net.dropout, train.steps" in by_code["published-settings"]
    page = api.report(run).read_text()
    assert page.count(ciampi2024.WARNING) == 1 and "No mask was used for validation" not in page


def test_the_page_of_a_run_that_is_not_measured_carries_it_too(data, tmp_path, capsys):
    out = api.train(data, tmp_path / "run", small(steps=1))
    assert ciampi2024.WARNING in capsys.readouterr().err
    assert ciampi2024.WARNING in api.report(out).read_text()
    (out / "parity.json").unlink()
    assert ciampi2024.caveats(out) == [("published-protocol", ciampi2024.WARNING)]


def test_of_two_networks_the_better_one_is_taken(data):
    found = find_cases(data)
    files = [file for file in found.cases if file.id in TEST]
    config = settled(small("cps"), 3)
    store = Store(files, found.label_map, resolve(config.data, 2))
    method = METHODS["cps"]([factory.build(config.net, 2, 1, 2, seed) for seed in (0, 1)], config.method).train()
    states = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    measurements = ciampi2024.TestMeasurements(store, config, 3, torch.device("cpu"))
    assert measurements(method, 1) == {}
    each = [measurements._measured(name, net.eval()) for name, net in method.candidates().items()]
    taken = measurements(method, 2)["parity"]
    assert taken["pooled_jaccard"] == max(one["pooled_jaccard"] for one in each)
    assert taken["dice_at_half"] == each[0]["dice_at_half"]  # of the network that is saved
    assert each[0]["dice_at_half"] != each[1]["dice_at_half"] and method.training
    assert all(torch.equal(tensor, states[name]) for name, tensor in method.state_dict().items())


# What it is not about


def dataset(dims=2, classes=2):
    return SimpleNamespace(dims=dims, label_map=SimpleNamespace(names=("background", "a", "b")[:classes]))


def test_what_the_protocol_does_not_cover_is_refused():
    resized, patches = (Config(data=DataConfig(sampling=sampling)) for sampling in ("resize", "patches"))
    require(dataset(), resized, 1)
    for faulty in (
        (dataset(3), resized, 1),
        (dataset(2, 3), resized, 1),
        (dataset(), patches, 1),
    ):
        with pytest.raises(InputError):
            require(*faulty)
    with pytest.raises(InputError) as several:
        require(dataset(), resized, 2)
    assert several.value.where == "--protocol parity" and "2" in several.value.found


def test_volumes_are_refused_before_anything_is_made(tmp_path):
    data = write_tiny(tmp_path / "data", dims=3, count=4, test=(2,), unmasked=())
    config = dataclasses.replace(tiny_config(dims=3), data=DataConfig(), protocol="parity")
    with pytest.raises(InputError) as caught:
        api.train(data, tmp_path / "run", config)
    assert "3-D" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_test_masks_without_foreground_are_refused():
    class Empty:
        counts = staticmethod(lambda index: np.array([9, 0]))

        def __len__(self):
            return 2

    with pytest.raises(DataError, match="no foreground"):
        ciampi2024.TestMeasurements(Empty(), small(), 3, torch.device("cpu"))


def test_our_own_protocol_is_the_default_and_fixes_nothing():
    assert Config().protocol == "nissl" and math.isclose(Config().train.learning_rate, 1e-2)
    assert UNet().upsampling == "transposed"
