"""The format version of what Nissl writes and reads back, and a reader for every older one.

Format 1 had no version in its files. Whatever a later format changes is brought up to date here, so that all other code
knows the newest format only.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nissl.config import Config, from_tree, read_toml, without_foreign_options
from nissl.errors import RESTORE, DataError, InputError

Tree = dict[str, Any]
FORMAT = 3
NEW_IN_2 = {"axes": "", "image_pattern": "*", "mask_pattern": "*"}
"""Of the table `data`, settings that format 1 did not have, at what it did."""
SEEDS, SEEDS_1 = "seeds.json", "series.json"
"""In a folder that holds the runs of several seeds: their list. The second name is that of format 1."""

CONTENT: Mapping[str, Mapping[str, type]] = {
    "data.json": {"dims": int, "channels": int, "classes": list, "cases": list},
    "split.json": {"labelled": list, "unlabelled": list, "test": list},
    "env.json": {"nissl": str, "torch": str},
    "budget.json": {"masks_seen": list},
    "cost.json": {"costs": list},
    "metrics.json": {"overall": dict, "classes": dict},
    "pretrain.json": {"name": str, "steps": int},
    SEEDS: {"seeds": list},
    SEEDS_1: {"seeds": list},
}
"""What a file must hold to be used, by its name."""


def _environment_1(tree: Tree) -> Tree:
    """Sessions that continued a run did not name their version of Nissl."""
    sessions = [{"nissl": tree["nissl"]} | session for session in tree.get("continued", [])]
    return tree | ({"continued": sessions} if sessions else {})


def _measurement_2(tree: Tree) -> Tree:
    """What is called a false positive now was a false alarm."""

    def renamed(scores: Tree) -> Tree:
        return {key.replace("false_alarm", "false_positive"): value for key, value in scores.items()}

    classes = {name: renamed(scores) for name, scores in tree["classes"].items()}
    policy = {"policy": tree["policy"].replace("false alarm", "false positive")} if "policy" in tree else {}
    return tree | {"classes": classes, "overall": renamed(tree["overall"])} | policy


def upgraded(tree: Tree, found_format: int) -> Tree:
    """Bring settings of an older format to the newest one.

    Format 1 stored the options of all members in one, and lacked those of `NEW_IN_2`.
    """
    if found_format != 1:
        return tree
    kept = without_foreign_options(tree)
    return kept | ({"data": NEW_IN_2 | kept["data"]} if "data" in kept else {})


UPGRADES: Mapping[str, tuple[int, Callable[[Tree], Tree]]] = {
    "env.json": (1, _environment_1),
    "cells.json": (1, lambda tree: {name: upgraded(settings, 1) for name, settings in tree.items()}),
    "metrics.json": (2, _measurement_2),
}
"""JSON files that have changed: the last format before it, and what brings them up to date."""


def stamped(tree: Mapping[str, Any]) -> Tree:
    """Put the format in front of what a file is to hold."""
    return {"format": FORMAT, **tree}


def content_of(tree: Any, path: Path) -> Tree:
    """What a JSON file holds, in the newest format and without its version.

    An InputError where a newer Nissl wrote the file, a DataError where it does not hold what one of its name must.
    """
    content, found = _split(tree, path)
    for key, kind in CONTENT.get(path.name, {}).items():
        if not isinstance(content.get(key), kind):
            held = f"`{key}` is {content[key]!r:.40}" if key in content else f"no `{key}`"
            raise DataError(path, held, f"`{key}` as a {kind.__name__}", RESTORE)
    last, upgrade = UPGRADES.get(path.name, (0, dict))
    return upgrade(content) if found <= last else content


def current_settings(tree: Tree, path: Path) -> Tree:
    """The settings in the content of a TOML file, as `content_of` gives those of JSON; what is left open stays so."""
    content, found = _split(tree, path)
    by_hand = "format" not in tree and not any((path.parent / name).exists() for name in CONTENT)
    return upgraded(content, FORMAT if by_hand else found)


def load_config(path: Path) -> Config:
    """Read settings from a TOML file: one that was written by hand, or the config.toml of a run.

    Raises:
        InputError: the file is missing, is not TOML, has an unknown key or a value of the wrong kind, or is too new.

    """
    return from_tree(Config, current_settings(read_toml(path), path), str(path))


def _split(tree: Any, path: Path) -> tuple[Tree, int]:
    """Content and format of a file."""
    tree = {"costs": tree} if path.name == "cost.json" and isinstance(tree, list) else tree  # format 1
    if not isinstance(tree, dict):
        found = f"it holds a {type(tree).__name__}, not an object"
        raise DataError(path, found, "an object", RESTORE)
    found_format = tree.get("format", 1)
    if type(found_format) is not int or found_format < 1:
        raise InputError(path, f"format {found_format!r}", f"a number from 1 to {FORMAT}", "restore the file")
    if found_format > FORMAT:
        found = f"written by a newer Nissl (format {found_format})"
        raise InputError(path, found, f"format {FORMAT} or older", "update: pip install --upgrade nissl")
    return {key: value for key, value in tree.items() if key != "format"}, found_format
