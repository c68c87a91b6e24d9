"""What a run folder says of its run, written before the work starts and compared when it is resumed."""

import dataclasses
import functools
import json
import os
import platform
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import filelock
import tomli_w
import torch

from nissl.config import Config, DataConfig, to_tree
from nissl.data.cases import CaseFile, Dataset, Scan
from nissl.data.discovery import list_cases, located
from nissl.data.duplicates import file_hash
from nissl.data.split import Split, named_ids
from nissl.errors import InputError
from nissl.files import write_whole
from nissl.imageio.formats import stem
from nissl.progress import warn
from nissl.runs.folder import choose_device, read_json, write_json
from nissl.runs.format import load_config, stamped

LOCK, OWNER = ".nissl.lock", ".nissl.owner"
"""Held, and removed, while a run works in the folder."""

CHOICES = [
    {"choice": "checkpoint", "made": "the averaged weights of the last step", "split": None, "cases": 0},
    {"choice": "length", "made": "the number of steps that was given", "split": None, "cases": 0},
    {"choice": "threshold", "made": "the most probable class", "split": None, "cases": 0},
    {"choice": "settings", "made": "as given, chosen on what Nissl cannot know", "split": None, "cases": None},
]
"""What a run has to choose, how, and on how many cases of which split. Nothing is chosen on the test split, but for the
number that a published protocol asks for (`nissl.training.protocol`)."""

COMMAND = ("train", "DATA", "--out", "RUN", "--config", "config.toml")
"""What makes a run again where its own command is no one's to type: it was called from Python, or names patients."""
FACTS = ("dims", "channels", "classes")
"""Of the data, beside the cases: what fixes the network and the meaning of its output."""
PLACE = ("nissl", "torch", "device", "threads", "processes")
"""Of the environment: what bits depend on."""
DESCRIPTION = ("network.json", "model.json", "split.json", "data.json", "env.json", "budget.json", "config.toml")
"""What is written before the work starts, in this order."""


@contextmanager
def lock_run_folder(out: Path, resume: bool) -> Iterator[None]:
    """Hold the run folder against other runs; refuse one that holds something else.

    What was made here is removed again where nothing was written: then the run did not start.
    """
    if out.exists() and not out.is_dir():
        raise InputError(out, "a file", "a folder for the run", "choose another --out")
    if resume and not (out / "config.toml").exists():
        raise InputError(out, "no run to resume", "the folder of an interrupted run", "leave out --resume to start one")
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(out / LOCK, timeout=0)
        lock.acquire()
    except filelock.Timeout as error:
        found = f"in use by another run ({_owner(out)})"
        raise InputError(out, found, "a folder of its own for each run", "wait, or choose another --out") from error
    except OSError as error:
        found = f"cannot be written: {error.strerror}"
        raise InputError(out, found, "a folder that can be written", "choose another --out") from error
    try:
        present = sorted(path.name for path in out.iterdir() if path.name not in (LOCK, OWNER))
        if present and not resume and not _never_began(out, present):
            found = f"not empty: {', '.join(present[:4])}{' …' if len(present) > 4 else ''}"
            fix = "choose another --out, or add --resume to continue an interrupted run"
            raise InputError(out, found, "a new or empty folder", fix)
        for part in (*out.glob(".*.tmp"), *out.glob("checkpoints/*.tmp")):
            part.unlink()  # what a killed run was writing
        (out / OWNER).write_text(f"process {os.getpid()} on {platform.node()}")
        try:
            yield
        finally:
            if not resume and not (out / DESCRIPTION[-1]).exists():
                for name in DESCRIPTION:  # of a run that was stopped while it described itself
                    (out / name).unlink(missing_ok=True)
    finally:
        for name in (OWNER, LOCK):
            (out / name).unlink(missing_ok=True)
        lock.release()
        with suppress(OSError):  # as soon as one of them is not empty
            for folder in made:
                folder.rmdir()


def _never_began(out: Path, present: Sequence[str]) -> bool:
    """Say whether a folder holds only what a run wrote that was killed before it began."""
    written = all(name in DESCRIPTION[:-1] or name.endswith(".tmp") for name in present)
    return written and (out / OWNER).exists()  # which is removed by every other end


def _owner(out: Path) -> str:
    try:
        return (out / OWNER).read_text()
    except OSError:
        return "its owner is unknown"


def write_provenance(
    out: Path,
    config: Config,
    dataset: Dataset,
    split: Split,
    class_pixels: Mapping[str, int],
    chosen_on_test: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write what the run is made of, before it starts or continues with changes.

    `class_pixels` are those of the labelled cases; `chosen_on_test` is what a published protocol chooses.
    """
    data = data_of(dataset, split)  # takes long; a run that is stopped here has not begun
    opened = split.test if chosen_on_test else ()
    budget = {
        "masks_seen": split.labelled,
        "class_pixels": class_pixels,
        "choices": [*CHOICES, *chosen_on_test],
        "test_masks_opened": len(opened),
        **({"validation": opened} if opened else {}),
        "test_images_in_pool": len(split.transductive),
    }
    write_json(out / "split.json", dataclasses.asdict(split))
    write_json(out / "data.json", data)
    if not (out / "env.json").exists():  # of a run that is resumed, it tells how it began
        write_json(out / "env.json", _environment(config, dataset.private))
    write_json(out / "budget.json", budget)
    settings = tomli_w.dumps(stamped(stored_tree(config, dataset.root)))
    write_whole(out / "config.toml", settings)  # the last: with it, the run can be resumed


def stored_tree(config: Config, root: Path) -> dict[str, Any]:
    """Settings as config.toml has them: with the folders of images and masks as they lie from the data root."""
    tree = to_tree(config)
    for name in ("images", "masks"):
        if folder := getattr(config.data, name):
            tree["data"][name] = os.path.relpath(located(root, folder), root)
    return tree


def without_names(config: Config, scan: Scan) -> Config:
    """The settings of a run on DICOM: no folder of the data, and cases by their ids only."""
    labels = config.split.labels
    if not re.fullmatch(r" *(all|\d+(\.\d+)?\s*%?) *", labels):
        stems = {stem(case.image) for case in scan.cases} | {case.id for case in scan.cases}
        labels = ",".join(scan.id_of(name) for name in named_ids(labels, stems))
    data = dataclasses.replace(config.data, images=None, masks=None)
    return dataclasses.replace(config, data=data, split=dataclasses.replace(config.split, labels=labels))


def data_of(dataset: Dataset, split: Split) -> dict[str, Any]:
    """List the cases, as in data.json; only files that the training opens are hashed."""
    labelled, seen = set(split.labelled), set(split.labelled + split.unlabelled)
    return {
        "name": "DICOM data" if dataset.private else dataset.root.resolve().name,
        "root": None if dataset.private else str(dataset.root.resolve()),
        "layout": dataset.layout,
        "dims": dataset.dims,
        "channels": dataset.channels,
        "classes": list(dataset.label_map.names),
        "cases": [
            {
                "id": case.id,
                "group": case.group,
                "image_sha256": file_hash(case.image, case.image_name) if case.id in seen else None,
                "mask_sha256": file_hash(case.target, case.target_name)
                if case.id in labelled and case.target
                else None,
            }
            for case in dataset.cases
        ],
    }


def _environment(config: Config, private: bool = False) -> dict[str, Any]:
    given = sys.argv[1:] if _from_command_line() and not private else COMMAND
    device = choose_device(config.device)
    return {
        "nissl": version("nissl"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),  # as torchrun says
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["nissl", *given]),
        "exact": config.deterministic and device.type == "cpu",
    }


def _from_command_line() -> bool:
    """Say whether this process is `nissl ...` or `python -m nissl ...`, and not a script or notebook that calls us."""
    program = Path(sys.argv[0])
    return program.stem == "nissl" or (program.name == "__main__.py" and program.parent.name == "nissl")


def changes(
    out: Path, config: Config, dataset: Dataset, split: Split, resolve: Callable[[Config], Config]
) -> tuple[str, ...]:
    """List in words how settings and data differ from those that a run began with; `resolve` fills in open settings."""
    then = resolve(load_config(out / "config.toml"))
    before, now = (flat(stored_tree(one, dataset.root)) for one in (then, config))
    listed = [f"{key} was {before.get(key)}, is {now.get(key)}" for key in differing_keys(before, now)]
    data, data_now = read_json(out / "data.json"), data_of(dataset, split)
    listed += [f"{key} were {data[key]}, are {data_now[key]}" for key in FACTS if data[key] != data_now[key]]
    other = differing_keys(*({case["id"]: case for case in tree["cases"]} for tree in (data, data_now)))
    return (*listed, *([f"{len(other)} cases of the data differ, such as {other[0]}"] if other else []))


def differing_keys(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """List the keys that only one of two has, or whose values differ."""
    return [key for key in sorted(one.keys() | other.keys()) if one.get(key) != other.get(key)]


def changed_data(runs: Mapping[str, Path], data: Path, config: DataConfig) -> str:
    """Say since which of these runs cases of a data folder came, went or changed, and which; empty if since none.

    `runs` are folders by what the user calls them; one that has not begun says nothing.
    """
    begun = {name: run for name, run in runs.items() if (run / "data.json").is_file()}
    files = {file.id: file for file in list_cases(data, config).cases} if begun else {}
    hash_now = functools.cache(file_hash)
    for name, run in begun.items():
        if changed := changed_cases(run, files, hash_now):
            cases = "a case has" if len(changed) == 1 else f"{len(changed)} cases have"
            return f"{cases} changed since {name} began, such as {changed[0]}"
    return ""


def changed_cases(out: Path, files: Mapping[str, CaseFile], hash_now: Callable[[Path, str], str]) -> list[str]:
    """Ids of the cases that came or went since a run began, or of which a file that it opened has changed."""
    before = {str(case["id"]): case for case in read_json(out / "data.json")["cases"]}
    changed = [id_ for id_ in before.keys() & files.keys() if _differs(before[id_], files[id_], hash_now)]
    return sorted([*changed, *(before.keys() ^ files.keys())])


def _differs(before: Mapping[str, str | None], file: CaseFile, hash_now: Callable[[Path, str], str]) -> bool:
    """Say whether what a run has opened of a case has another checksum now, or is gone."""
    known = (("image_sha256", file.image, file.image_name), ("mask_sha256", file.target, file.target_name))
    stored = ((before[key], path, name) for key, path, name in known)
    return any(then is not None and (path is None or hash_now(path, name) != then) for then, path, name in stored)


def require_same(out: Path, changed: Sequence[str]) -> None:
    """Refuse, by an InputError, to resume a run with other settings or other data."""
    if changed:
        fix = "put it back, start a new run, or accept it with --allow-changed (the report will say so)"
        raise InputError(out, "; ".join(changed), "the settings and data that the run began with", fix)


def note_session(out: Path, config: Config, changed: Sequence[str]) -> None:
    """Enter in env.json that the run is resumed, and whether it can still be exact."""
    before, now = read_json(out / "env.json"), _environment(config)
    if before["nissl"] != now["nissl"]:
        warn(f"the run began with Nissl {before['nissl']}, this is {now['nissl']}: it continues, but not bit for bit")
    same = all(before.get(key) == now[key] for key in PLACE)
    session = {key: now[key] for key in (*PLACE, "date")} | {"changed": list(changed)}
    exact = bool(before.get("exact")) and same and not changed
    write_json(out / "env.json", before | {"exact": exact, "continued": [*before.get("continued", []), session]})


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Settings by their dotted names, each value in JSON."""
    found: dict[str, str] = {}
    for key, value in tree.items():
        text = "" if isinstance(value, dict) else json.dumps(value, ensure_ascii=False)
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": text}
    return found
