"""The run folder: everything about a run, readable without our code.

config.toml split.json data.json env.json network.json pretrain.json budget.json log.jsonl pretrain.jsonl
checkpoints/last.safetensors       the averaged weights: a plain state dict, for any PyTorch code
checkpoints/state.safetensors      what a resumed run needs, and previous.state.safetensors before it
checkpoints/stage1-0.safetensors   each network after (or in the middle of) its pre-training
metrics.csv metrics.json predictions/ report.html      after `evaluate`
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from nissl.errors import RESTORE, Caveat, DataError, InputError, NisslError
from nissl.files import write_whole
from nissl.runs.format import SEEDS, SEEDS_1, Tree, content_of, load_config, stamped

WEIGHTS = Path("checkpoints") / "last.safetensors"
STATE = Path("checkpoints") / "state.safetensors"
PICKLED = (".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz")
CONVERT = (
    'tensors alone are converted without running anything by: python -c "import torch; from safetensors.torch import '
    "save_file; save_file(torch.load('OLD.pt', weights_only=True), 'NEW.safetensors')\""
)
LOG = Path("log.jsonl")
FILTERS = Path("filters.npy")
"""Of the first layer of the trained network: the last thing that a training writes."""


def checkpoint_of(run: Path, network: int) -> Path:
    """Where a run keeps the state of the pre-training of one of its networks, and afterwards the network."""
    return run / STATE.with_name(f"stage1-{network}.safetensors")


def pretraining_log(network: int) -> Path:
    """Name of the log of the pre-training of a network, in the run folder."""
    return Path(f"pretrain-{network}.jsonl" if network else "pretrain.jsonl")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file with the format version, whole or not at all."""
    write_whole(path, json.dumps(stamped(content), indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Tree:
    """Read a JSON file of a run, brought to the newest format and without its version.

    Raises:
        InputError: the file is not there: the folder is not a run, or the run did not get that far; or a newer Nissl
            wrote it.
        DataError: the file is damaged.

    """
    try:
        return content_of(json.loads(path.read_text(encoding="utf-8")), path)
    except OSError as error:
        found, fix = "no such file", "check the folder, or train first"
        if holds_seeds(path.parent):
            found, fix = "no such file: the folder holds the runs of several seeds", "name one of them, such as seed-0"
        raise InputError(path, found, "the folder of a run made by `nissl train`", fix) from error
    except ValueError as error:
        raise DataError(path, f"unreadable ({error})", "the JSON that the run wrote", RESTORE) from error


def holds_seeds(folder: Path) -> bool:
    """Say whether a folder holds the runs of several seeds."""
    return any((folder / name).is_file() for name in (SEEDS, SEEDS_1))


def measured_steps(run: Path) -> tuple[int | None, int | None]:
    """Steps made and planned of what a run was last measured on, or else of its log; None where neither tells."""
    with suppress(NisslError, ValueError, LookupError, OSError):
        metrics = read_json(run / "metrics.json") if (run / "metrics.json").is_file() else {}
        if "steps" in metrics:  # format 1 has none
            return metrics["steps"], metrics["planned_steps"]
        lines = (run / "log.jsonl").read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
        return int(json.loads(lines[-1])["step"]), load_config(run / "config.toml").train.steps
    return None, None


def unfinished(steps: int | None, planned_steps: int | None) -> list[Caveat]:
    """Say that a run has steps left; nothing where it has none, or where that is not known."""
    if steps is None or planned_steps is None or steps >= planned_steps:
        return []
    text = f"The run is unfinished: {steps:,} of {planned_steps:,} steps. Finish it with --resume."
    return [Caveat("unfinished", text)]


def find_root(run: Path, facts: Tree, given: Path | str | None) -> Path:
    """Where the data of a run are: the folder given, or else that of data.json (`facts`); an InputError if gone."""
    root = given or facts.get("root")
    if root and Path(root).is_dir():
        return Path(root)
    expected, fix = "the data that the run was trained on", "say where they are now: --data DIR"
    if given is not None:
        raise InputError("--data", "no such folder", expected, fix)
    found = f"no such folder: {root}" if root else "the folder of the data is not stored, since they are DICOM"
    raise InputError(run / "data.json", found, expected, fix)


def choose_device(name: str) -> torch.device:
    """Return the device by name, `auto` being a GPU where there is one; an InputError where this machine lacks it."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError("device", f"{name}: {reason}", "auto, cpu or cuda", "leave it to `auto`") from error
    return device


def refuse_pickle(path: Path) -> None:
    """Refuse, by an InputError, a pickle by its name or its first bytes: opening one runs whatever it holds."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        start = file.read(9)
    # A safetensors file begins with a length of eight bytes and a brace.
    pickled = start.startswith((b"\x80", b"PK\x03\x04", b"\x93NUMPY")) and start[8:] != b"{"
    if pickled or path.suffix.lower() in PICKLED:
        found, expected = "a file that may run code when it is opened (pickle): left closed", "weights as safetensors"
        raise InputError(path, found, f"the folder of a run made by `nissl train`, with {expected}", CONVERT)
