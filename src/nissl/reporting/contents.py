"""What a run folder holds, read file by file; a part that is missing or damaged becomes a note on the page."""

import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float

from nissl.config import Config, from_tree
from nissl.errors import DataError, InputError, NisslError
from nissl.runs.format import content_of, current_settings
from nissl.tasks.rows import Row
from nissl.tasks.segmentation import Segmentation
from nissl.tasks.task import Task, task_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Tree = dict[str, Any]
Filters = Float[np.ndarray, "out in *kernel"]
T = TypeVar("T")

# File -> what the page lacks without it.
PARTS = {
    "config.toml": "the settings are not shown",
    "split.json": "what was trained on what is not known",
    "data.json": "the data set is not described",
    "env.json": "the command and the environment are not known",
    "log.jsonl": "there are no learning curves",
    "metrics.json": "nothing was measured yet (`nissl evaluate` does it)",
    "metrics.csv": "the cases cannot be ranked",
    "network.json": "the size of the network is not known",
    "budget.json": "the masks that were looked at are not listed",
    "pretrain.json": "what the pre-training learned is not known",
    "filters.npy": "the first-layer filters are not shown",
    "filters_start.npy": "the first-layer filters before the training with masks are not shown",
}


@dataclass(frozen=True)
class Contents:
    """Everything in a run folder that the page shows; a missing part is empty. `contents["split"]` is split.json."""

    run: Path
    settings: str
    config: Tree
    trees: Mapping[str, Tree]
    """What the JSON files hold, by their names without suffix."""
    log: list[Tree]
    task: Task
    """By the settings; segmentation, where they cannot be read."""
    rows: Sequence[Row]
    """Of metrics.csv."""
    filters: Mapping[str, Filters]
    """By the names of their files without suffix."""
    notes: tuple[str, ...]
    """What is missing or cannot be read, in words."""

    def __getitem__(self, name: str) -> Tree:
        return self.trees[name]


def read_run(run: Path) -> Contents:
    """Read a run folder.

    Raises:
        InputError: there is no such folder, it holds nothing of a run, or a newer Nissl wrote it.

    """
    if not any((run / name).is_file() for name in PARTS):
        found = "a folder without any file of a run" if run.is_dir() else "no such folder"
        raise InputError(run, found, "a folder made by `nissl train`", "give the folder that followed --out")
    notes: list[str] = []

    def part(name: str, parse: Callable[[bytes], T], empty: T) -> T:
        try:
            return parse((run / name).read_bytes())
        except FileNotFoundError:
            notes.append(f"{name} is missing: {PARTS[name]}.")
        except (OSError, ValueError, DataError) as error:
            reason = error.found if isinstance(error, DataError) else str(error)
            notes.append(f"{name} cannot be read ({reason}): {PARTS[name]}.")
        return empty

    def tree(name: str) -> Tree:
        return part(name, lambda content: content_of(json.loads(content), run / name), {})

    def settings_in(content: bytes) -> Tree:
        return current_settings(tomllib.loads(content.decode()), run / "config.toml")

    settings = part("config.toml", bytes.decode, "")
    config: Tree = part("config.toml", settings_in, {}) if settings else {}
    # Only a run with a pre-training says anything of it.
    absent = "pretrain.json" if config.get("pretrain", {}).get("name", "none") == "none" else ""
    nothing: tuple[list[Tree], int] = [], 0
    log, damaged = part("log.jsonl", json_lines, nothing)
    if damaged:
        notes.append(f"log.jsonl has {damaged} line(s) that cannot be read; they are left out.")
    trees = {Path(name).stem: {} if name == absent else tree(name) for name in PARTS if name.endswith(".json")}
    try:
        task = task_of(from_tree(Config, config, "config.toml").task)
    except NisslError:  # of a package that is not installed here, or damaged
        task = Segmentation()
    rows: list[Row] = part("metrics.csv", lambda content: task.columns.from_csv(content.decode()), [])
    read = {name: part(f"{name}.npy", _filters, None) for name in ("filters", "filters_start")}
    filters = {name: array for name, array in read.items() if array is not None}
    return Contents(run, settings, config, trees, log, task, rows, filters, tuple(notes))


def _json(content: bytes) -> Tree:
    tree = json.loads(content)
    if not isinstance(tree, dict):
        raise ValueError(f"it holds a {type(tree).__name__}, not an object")
    return tree


def json_lines(content: bytes) -> tuple[list[Tree], int]:
    """Objects of the lines, and the number of lines that hold none: a killed run may leave half a line."""
    rows, damaged = [], 0
    for line in content.splitlines():
        try:
            rows.append(_json(line))
        except ValueError:
            damaged += 1
    return rows, damaged


def _filters(content: bytes) -> Filters | None:
    array: Filters = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    if array.ndim not in (4, 5) or not np.issubdtype(array.dtype, np.floating) or 0 in array.shape:
        raise ValueError(f"it holds {array.dtype} of shape {array.shape}, not filters (out, in, *kernel)")
    return array
