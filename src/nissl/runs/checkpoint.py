"""Checkpoints: tensors and JSON in one safetensors file, written whole or not at all, with a checksum.

No pickle is ever read. A flipped bit goes unnoticed by safetensors itself, so the file carries the SHA-256 of its
tensors and metadata; a file that does not match is refused, and the one before it is used.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from nissl.errors import RESTORE, DataError
from nissl.files import write_whole

PREVIOUS = "previous."
KEY = "nissl"


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], keep: bool = False) -> str:
    """Write tensors and JSON facts; return the SHA-256 of both, which is in the file as well.

    With `keep`, the file that was there stays beside it as `previous.NAME`. Errors as of `whole_file`, after which the
    old checkpoint is untouched.
    """
    # Copies: safetensors refuses tensors that share memory, as those of tied layers do.
    layout = torch.contiguous_format
    plain = {name: tensor.detach().cpu().clone(memory_format=layout) for name, tensor in tensors.items()}
    text = json.dumps(facts, sort_keys=True)
    checksum = _checksum(plain, text)
    # The checksum in front of the facts, under one key: safetensors writes several in no fixed order.
    content = safetensors.torch.save(plain, {KEY: checksum + text})
    if keep and path.exists():
        # The old file gets its second name before the new one takes the first: at every moment there is one.
        link = path.with_name(f"{PREVIOUS}{path.name}.tmp")
        link.unlink(missing_ok=True)
        try:
            link.hardlink_to(path)
        except OSError:  # some file systems have no hard links
            write_whole(link, path.read_bytes())
        link.replace(path.with_name(PREVIOUS + path.name))
        link.unlink(missing_ok=True)  # a rename does nothing where both are names of one file already
    write_whole(path, content)
    return checksum


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and facts, with the checksum under `sha256`, after comparing it.

    Raises:
        DataError: the file is missing, cut short, altered, or not a checkpoint of Nissl.

    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            stored = (file.metadata() or {}).get(KEY, "")
            # Copies: safetensors maps the file into memory, where it could still change after the checksum was taken.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a dictionary
    except FileNotFoundError as error:
        raise DataError(path, "no such file", "a checkpoint", "train first, or check the run's folder") from error
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise DataError(path, f"unreadable ({error})", "a whole safetensors file", RESTORE) from error
    checksum, text = stored[:64], stored[64:]
    if not text:
        raise DataError(path, "no checksum in it", "a checkpoint written by Nissl", RESTORE)
    if _checksum(tensors, text) != checksum:
        raise DataError(path, "checksum differs: the file was altered", "the bytes that were written", RESTORE)
    facts: dict[str, Any] = json.loads(text)
    return tensors, facts | {"sha256": checksum}


def load_newest(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], DataError | None]:
    """Read a checkpoint or, where it is damaged, the one before; the fault is returned, or raised where both are."""
    try:
        return *load_checkpoint(path), None
    except DataError as fault:
        previous = path.with_name(PREVIOUS + path.name)
        if not previous.exists():
            raise
        return *load_checkpoint(previous), fault


def has_checkpoint(path: Path) -> bool:
    """Say whether there is a checkpoint, or the one before it, to go on from."""
    return path.exists() or path.with_name(PREVIOUS + path.name).exists()


def pack_optimiser(optimiser: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Split an optimiser's state into named tensors and JSON."""
    state = optimiser.state_dict()
    tensors = {
        f"optimiser.{index}.{key}": torch.as_tensor(value)
        for index, values in state["state"].items()
        for key, value in values.items()
        if value is not None
    }
    return tensors, state["param_groups"]


def strip_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def upgraded_state(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Bring a state that an earlier version wrote to today's names: one kind for every stage."""
    names = {"method": "learner", "net": "learner.net", "extra": "learner.extra"}
    renamed = {name: name.partition(".") for name in tensors}
    new = {f"{names.get(first, first)}.{rest}": tensors[name] for name, (first, _, rest) in renamed.items()}
    keys = {"done": "step", "report": "finished"}
    return new, {keys.get(key, key): value for key, value in facts.items()}


def plain_state(network: nn.Module) -> dict[str, Tensor]:
    """Return a network's state dict with parametrisations worked into plain weights, for any PyTorch code.

    Not by a copy whose parametrisations are removed: torch would take the weight from the original as well.
    """
    state: dict[str, Tensor] = {}
    for name, tensor in network.state_dict().items():
        module, marked, rest = name.partition(".parametrizations.")
        if marked:
            attribute = rest.split(".")[0]
            state[f"{module}.{attribute}"] = getattr(network.get_submodule(module), attribute).detach()
        else:
            state[name] = tensor
    return state


def unpack_optimiser(
    optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor], groups: list[dict[str, Any]]
) -> None:
    """Put the state that `pack_optimiser` took back into an optimiser over the same parameters.

    What was set when the optimiser was made stays as it is now: decay and fractions may have been changed knowingly. A
    ValueError where the state is of another kind of optimiser, or of other parameters.
    """
    own = optimiser.state_dict()["param_groups"]
    for then, now in zip(groups, own, strict=True):
        if not (then.keys() <= now.keys() or now.keys() <= then.keys()):  # another torch may have more settings
            raise ValueError("of another kind of optimiser")
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimiser."):
            _, index, key = name.split(".", 2)
            like = parameters[int(index)]
            if tensor.shape == like.shape:  # in the layout of the parameter, such as channels-last, as it was
                tensor = torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)
            state.setdefault(int(index), {})[key] = tensor
    kept = [now | {"params": then["params"]} for then, now in zip(groups, own, strict=True)]
    optimiser.load_state_dict({"state": state, "param_groups": kept})


def _checksum(tensors: Mapping[str, Tensor], facts: str) -> str:
    digest = hashlib.sha256(facts.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
