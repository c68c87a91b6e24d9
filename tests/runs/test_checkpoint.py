import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from nissl.errors import DataError, ResourceError
from nissl.runs.checkpoint import (
    has_checkpoint,
    load_checkpoint,
    load_newest,
    pack_optimiser,
    save_checkpoint,
    unpack_optimiser,
)

TENSORS = {
    "float": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
    "double": torch.tensor([0.1, float("inf"), float("nan")], dtype=torch.float64),
    "half": torch.randn(5, generator=torch.Generator().manual_seed(1)).bfloat16(),
    "integer": torch.tensor([-(2**62), 7]),
    "byte": torch.arange(256, dtype=torch.uint8),
    "flags": torch.tensor([True, False, True]),
    "single": torch.tensor(3.5),
    "count": torch.tensor(7),
    "empty": torch.zeros(0, 4),
    "empty flags": torch.zeros(0, dtype=torch.bool),
}
FACTS = {"step": 7, "groups": [{"lr": 0.1, "betas": [0.9, 0.999], "params": [0, 1], "foreach": None}], "name": "größe"}


def bits(tensor):
    return (tensor.dtype, tuple(tensor.shape), tensor.contiguous().flatten().view(torch.uint8).tolist())


def same(one, other):
    return one.keys() == other.keys() and all(bits(one[name]) == bits(other[name]) for name in one)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "state.safetensors"
    save_checkpoint(path, TENSORS, FACTS)
    return path


# What was written is read


def test_every_kind_of_tensor_and_the_facts_come_back(path):
    tensors, facts = load_checkpoint(path)
    assert same(tensors, TENSORS)
    checksum = facts.pop("sha256")
    assert facts == FACTS
    assert len(checksum) == 64


def test_any_pytorch_code_can_read_the_tensors(path):
    assert same(safetensors.torch.load_file(path), TENSORS)


def test_the_same_content_has_the_same_checksum_and_any_other_has_another(tmp_path):
    path = tmp_path / "a.safetensors"
    first = save_checkpoint(path, TENSORS, FACTS)
    assert save_checkpoint(path, dict(reversed(TENSORS.items())), FACTS) == first
    flipped = TENSORS | {"count": torch.tensor(6)}
    assert save_checkpoint(path, flipped, FACTS) != first
    assert save_checkpoint(path, TENSORS, FACTS | {"step": 8}) != first
    assert save_checkpoint(path, TENSORS | {"float": TENSORS["float"].view(4, 3)}, FACTS) != first
    renamed = {name.replace("float", "fleat"): tensor for name, tensor in TENSORS.items()}
    assert save_checkpoint(path, renamed, FACTS) != first


def test_layout_and_gradients_do_not_matter(tmp_path):
    weight = torch.randn(4, 3, 2, 2)
    odd = weight.clone().contiguous(memory_format=torch.channels_last).requires_grad_()
    one = save_checkpoint(tmp_path / "one", {"weight": weight}, {})
    assert save_checkpoint(tmp_path / "two", {"weight": odd}, {}) == one
    assert torch.equal(load_checkpoint(tmp_path / "two")[0]["weight"], weight)


def test_tied_weights_are_kept_under_both_names(tmp_path):
    encoder, decoder = nn.Linear(3, 3), nn.Linear(3, 3)
    decoder.weight = encoder.weight
    state = nn.ModuleDict({"encoder": encoder, "decoder": decoder}).state_dict()
    save_checkpoint(tmp_path / "tied", state, {})
    assert same(load_checkpoint(tmp_path / "tied")[0], state)


# Damage


@pytest.mark.parametrize("part", ["length", "header", "payload"])
def test_a_flipped_bit_is_refused_or_harmless(path, part):
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    low, high = {"length": (0, 8), "header": (8, header), "payload": (header, len(whole))}[part]
    rng = np.random.default_rng(0)
    positions = range(low, high) if high - low < 100 else rng.choice(np.arange(low, high), 200, replace=False)
    refused = 0
    for position in positions:
        altered = bytearray(whole)
        altered[position] ^= 1 << rng.integers(8)
        path.write_bytes(altered)
        try:
            tensors, facts = load_checkpoint(path)
        except DataError as error:
            assert str(path) in str(error)
            refused += 1
        else:
            assert same(tensors, TENSORS) and {**facts, "sha256": ""} == FACTS | {"sha256": ""}
    assert refused >= 0.99 * len(positions)


def test_a_flipped_bit_in_the_weights_is_named_as_such(path):
    altered = bytearray(path.read_bytes())
    altered[-20] ^= 4
    path.write_bytes(altered)
    with pytest.raises(DataError) as caught:
        load_checkpoint(path)
    for part in (str(path), "checksum differs", "the bytes that were written", "restore the file"):
        assert part in str(caught.value)


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused_by_name(path, share):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DataError) as caught:
        load_checkpoint(path)
    for part in (str(path), "unreadable", "a whole safetensors file", "restore the file"):
        assert part in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError) as caught:
        load_checkpoint(tmp_path / "run" / "state.safetensors")
    for part in ("run/state.safetensors", "no such file", "a checkpoint", "train first"):
        assert part in str(caught.value)


def test_a_folder_in_its_place_is_refused(tmp_path):
    with pytest.raises(DataError, match="unreadable"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("metadata", [None, {"nissl": "{}"}, {"format": "pt"}])
def test_weights_of_other_tools_are_no_checkpoint(tmp_path, metadata):
    safetensors.torch.save_file({"weight": torch.ones(2)}, tmp_path / "other.safetensors", metadata)
    with pytest.raises(DataError, match=r"other\.safetensors\n.*no checksum in it"):
        load_checkpoint(tmp_path / "other.safetensors")


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("writer", ["pickle", "torch.save", "torch.save, old format"])
def test_pickles_are_refused_and_never_executed(tmp_path, writer):
    path, mark = tmp_path / "state.safetensors", tmp_path / "executed"
    if writer == "pickle":
        path.write_bytes(pickle.dumps(Payload(mark)))
    else:
        torch.save(Payload(mark), path, _use_new_zipfile_serialization=writer == "torch.save")
    with pytest.raises(DataError, match=r"state\.safetensors\n.*unreadable"):
        load_newest(path)
    assert not mark.exists()
    if writer == "pickle":  # the payload does what it should, where it is let
        pickle.loads(path.read_bytes())
        assert mark.exists()


# The one before


@pytest.fixture
def two(tmp_path):
    """Two checkpoints, one after the other; the file of the newest."""
    path = tmp_path / "state.safetensors"
    for step in (1, 2):
        save_checkpoint(path, {"weight": torch.full((3,), float(step))}, {"step": step}, keep=True)
    return path


def test_the_newest_is_read_where_it_is_whole(two):
    tensors, facts, fault = load_newest(two)
    assert facts["step"] == 2 and tensors["weight"].tolist() == [2, 2, 2] and fault is None
    assert sorted(path.name for path in two.parent.iterdir()) == ["previous.state.safetensors", "state.safetensors"]


@pytest.mark.parametrize("damage", ["missing", "empty", "altered"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before_and_says_so(two, damage):
    whole = bytearray(two.read_bytes())
    whole[-1] ^= 1
    if damage == "missing":
        two.unlink()
    else:
        two.write_bytes(whole if damage == "altered" else b"")
    tensors, facts, fault = load_newest(two)
    assert facts["step"] == 1 and tensors["weight"].tolist() == [1, 1, 1]
    assert isinstance(fault, DataError) and fault.where == str(two)


def test_two_damaged_checkpoints_are_refused(two):
    for path in two.parent.iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError):
        load_newest(two)


def test_without_one_before_the_fault_is_raised(path):
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"state\.safetensors"):
        load_newest(path)


@pytest.mark.parametrize("calls", [0, 1])
def test_a_kill_before_either_rename_leaves_a_whole_checkpoint(two, monkeypatch, calls):
    before, done, replace = two.read_bytes(), [], Path.replace

    def killed(self, target):
        if len(done) == calls:
            raise KeyboardInterrupt
        done.append(target)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(two, {"weight": torch.zeros(3)}, {"step": 3}, keep=True)
    monkeypatch.undo()
    assert two.read_bytes() == before
    assert load_newest(two)[1]["step"] == 2
    save_checkpoint(two, {"weight": torch.zeros(3)}, {"step": 3}, keep=True)
    assert load_newest(two)[1]["step"] == 3
    assert two.with_name("previous.state.safetensors").read_bytes() == before
    assert sorted(path.name for path in two.parent.iterdir()) == ["previous.state.safetensors", "state.safetensors"]


def test_a_full_disk_leaves_the_old_checkpoint_and_says_what_it_needs(two, monkeypatch):
    before = two.read_bytes()

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match=r"state\.safetensors\n  found: disk full\n  expected: .* MB"):
        save_checkpoint(two, {"weight": torch.zeros(3)}, {"step": 3}, keep=True)
    assert two.read_bytes() == before and load_newest(two)[1]["step"] == 2


def test_the_one_before_is_kept_where_there_are_no_hard_links(two, monkeypatch):
    def refused(self, target):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refused)
    save_checkpoint(two, {"weight": torch.zeros(3)}, {"step": 3}, keep=True)
    assert load_checkpoint(two)[1]["step"] == 3
    assert load_checkpoint(two.with_name("previous.state.safetensors"))[1]["step"] == 2


def test_a_copy_of_the_folder_is_a_checkpoint_too(two, tmp_path):
    shutil.copytree(two.parent, tmp_path / "elsewhere" / "checkpoints")
    assert load_newest(tmp_path / "elsewhere" / "checkpoints" / two.name)[1]["step"] == 2


# Optimisers


OPTIMISERS = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.05),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
}


def make_net(layout=torch.channels_last):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3))
    return net.to(memory_format=layout)


def make_steps(net, optimiser, count):
    generator = torch.Generator().manual_seed(count)
    for _ in range(count):
        optimiser.zero_grad()
        net(torch.randn(2, 2, 9, 9, generator=generator)).square().sum().backward()
        optimiser.step()


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("steps_before", [0, 3])
def test_an_optimiser_goes_on_bit_for_bit(tmp_path, name, steps_before):
    net = make_net()
    optimiser = OPTIMISERS[name](net.parameters())
    make_steps(net, optimiser, steps_before)
    tensors, groups = pack_optimiser(optimiser)
    save_checkpoint(tmp_path / "state", net.state_dict() | tensors, {"groups": groups})

    stored, facts = load_checkpoint(tmp_path / "state")
    twin = make_net()
    twin.load_state_dict({key: stored[key] for key in twin.state_dict()})
    again = OPTIMISERS[name](twin.parameters())
    unpack_optimiser(again, stored, facts["groups"])

    for pair in ((net, optimiser), (twin, again)):
        make_steps(*pair, 4)
    assert same(twin.state_dict(), net.state_dict())
    assert same(pack_optimiser(again)[0], pack_optimiser(optimiser)[0])
    for one, other in zip(again.state.values(), optimiser.state.values(), strict=True):
        assert {key: value.stride() for key, value in one.items()} == {k: v.stride() for k, v in other.items()}
    assert len(optimiser.state) == 4


def test_what_an_optimiser_was_made_with_stays_as_it_is_now():
    """Who goes on with another decay on purpose must get it."""
    optimiser, again = (
        torch.optim.AdamW(make_net().parameters(), lr=lr, weight_decay=decay)
        for lr, decay in [(0.05, 0.01), (0.2, 0.9)]
    )
    tensors, groups = pack_optimiser(optimiser)
    unpack_optimiser(again, tensors, groups)
    assert [(group["lr"], group["weight_decay"]) for group in again.param_groups] == [(0.2, 0.9)]


@pytest.mark.parametrize(("one", "other"), [("adamw", "sgd"), ("sgd", "adamw")])
@pytest.mark.parametrize("steps", [0, 2])
def test_the_state_of_another_kind_of_optimiser_is_refused(one, other, steps):
    net = make_net()
    optimiser = OPTIMISERS[one](net.parameters())
    make_steps(net, optimiser, steps)
    with pytest.raises(ValueError, match="another kind of optimiser"):
        unpack_optimiser(OPTIMISERS[other](make_net().parameters()), *pack_optimiser(optimiser))


def test_the_same_contents_are_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        save_checkpoint(tmp_path / name, TENSORS, FACTS)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_the_checkpoint_before_is_enough_to_go_on(tmp_path):
    path = tmp_path / "state.safetensors"
    assert not has_checkpoint(path)
    for _ in range(2):
        save_checkpoint(path, TENSORS, FACTS, keep=True)
    path.unlink()
    assert has_checkpoint(path)
    load_newest(path)
