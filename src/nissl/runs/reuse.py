"""The pre-training of another run: whether it is that of this one too, and its reuse."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nissl.config import Config, read_toml, to_tree
from nissl.data.cases import Dataset
from nissl.data.split import Split
from nissl.errors import InputError
from nissl.files import write_whole
from nissl.runs.checkpoint import has_checkpoint, load_checkpoint
from nissl.runs.folder import STATE, checkpoint_of, pretraining_log, read_json, write_json
from nissl.runs.format import current_settings, load_config
from nissl.runs.provenance import FACTS, PLACE, data_of, differing_keys, flat

STAGE_1 = ("seed", "deterministic", "protocol", "data", "augment", "net", "pretrain")
"""Settings that the pre-training follows from; of these, not the ones below."""
NOT_STAGE_1 = (
    *("data.workers", "data.cache_gib", "data.limit_gib"),  # how images are read, not what is in them
    *("data.masks", "data.foreground"),  # it sees no mask
    "data.images",  # their checksums are compared
    "pretrain.fine_tuning_rate",
)


def stage_1_settings(tree: Mapping[str, Any]) -> dict[str, str]:
    """Of the settings of a run, those that the pre-training follows from: where they agree, so do its networks.

    `tree` is what `nissl.config.to_tree` makes; the result has each value in JSON by its dotted name.
    """
    found = flat({key: tree[key] for key in STAGE_1 if key in tree})
    return {key: value for key, value in found.items() if key not in NOT_STAGE_1}


def has_begun(run: Path) -> bool:
    """Say whether a run has a pre-training of its own, or is beyond it."""
    return has_checkpoint(checkpoint_of(run, 0)) or has_checkpoint(run / STATE)


def require_alike(
    other: Path, config: Config, dataset: Dataset, split: Split, resolve: Callable[[Config], Config]
) -> None:
    """Refuse to reuse a pre-training that began with other settings or images, is damaged, or is not there.

    `resolve` fills in what the settings of the other run leave open.

    Raises:
        InputError: it is one of these, or the folder is no run.
        DataError: a file of it is damaged.

    """
    path = other / "config.toml"
    stored = load_config(path)
    # A setting that its file does not name came later: today's default says nothing of it.
    unnamed = stage_1_settings(to_tree(stored)).keys() - flat(current_settings(read_toml(path), path)).keys()
    theirs = {key: value for key, value in stage_1_settings(to_tree(resolve(stored))).items() if key not in unnamed}
    ours = stage_1_settings(to_tree(config))
    unlike = differing_keys(theirs, ours)
    listed = [f"{key} is {theirs.get(key)} there, {ours.get(key)} here" for key in unlike]
    data, here = read_json(other / "data.json"), data_of(dataset, split)
    listed += [f"{key} are {data[key]} there, {here[key]} here" for key in FACTS if data[key] != here[key]]
    images = ({case["id"]: case["image_sha256"] for case in tree["cases"]} for tree in (data, here))
    if different := differing_keys(*images):
        listed.append(f"training images differ: {len(different)}, such as {different[0]}")
    if any(session["changed"] for session in read_json(other / "env.json").get("continued", [])):
        listed.append("it was continued with other settings or data than it began with")
    if not checkpoint_of(other, 0).is_file():
        listed.append("there is no pre-trained network in it")
    if listed:
        fix = "leave out --pretrained, or begin this run with the same seed, images and settings of the pre-training"
        raise InputError(other, "; ".join(listed), "a run whose pre-training is that of this one", fix)
    for path in checkpoints_of(other):
        load_checkpoint(path)


def checkpoints_of(run: Path) -> list[Path]:
    """The files in which a run has its pre-trained networks."""
    found: list[Path] = []
    while (path := checkpoint_of(run, len(found))).is_file():
        found.append(path)
    return found


def note_origin(run: Path, other: Path, private: bool) -> None:
    """Enter in env.json where the pre-training comes from; the run is exact only if that was made in the same way."""
    here, there = read_json(run / "env.json"), read_json(other / "env.json")
    same = all(there.get(key) == here[key] for key in PLACE)
    origin = "another run" if private else os.path.relpath(other, run)
    exact = bool(here["exact"] and there.get("exact") and same)
    write_json(run / "env.json", here | {"stage_1_of": origin, "exact": exact})


def reuse(other: Path, run: Path, networks: int) -> None:
    """Begin the pre-training of a run where that of another one is, or has ended; what the run has itself stays."""
    for network, theirs in enumerate(checkpoints_of(other)[:networks]):
        ours = checkpoint_of(run, network)
        if not has_checkpoint(ours):
            ours.parent.mkdir(exist_ok=True)
            log = pretraining_log(network)
            if (other / log).is_file():  # its curves
                write_whole(run / log, (other / log).read_bytes())
            write_whole(ours, theirs.read_bytes())
