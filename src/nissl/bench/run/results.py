"""What came of each cell, read from the run folders every time: an older table is never trusted."""

import csv
import io
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from nissl.bench.grid.grid import Cell
from nissl.config import Config, from_tree
from nissl.errors import DataError, InputError, NisslError
from nissl.evaluation.table import CaseScore, scores_from_csv
from nissl.files import write_whole
from nissl.runs.folder import LOG, read_json
from nissl.runs.format import load_config

CELLS, RUNS, RESULTS, FAILED, PARITY = "cells.json", "runs", "results.csv", "failed.json", "parity.json"
Status = Literal["done", "failed", "missing"]


@dataclass(frozen=True)
class Result:
    """A row of results.csv; what a cell has not reached is None, an empty field."""

    data: str
    budget: str
    arm: str
    seed: int
    status: Status
    dice: float | None = None
    """Mean over classes of the mean over test cases."""
    pooled_dice: float | None = None
    hd95: float | None = None
    unit: str | None = None
    """Of hd95: mm or px."""
    n_missed: int | None = None
    """Cases (with several classes: cases and classes) that the reference shows and the prediction does not."""
    n_false_alarm: int | None = None
    """The other way round."""
    n_cases: int | None = None
    """Test cases."""
    n_groups: int | None = None
    """Groups (patients) of the test cases, where known."""
    trivial_dice: float | None = None
    """Mean Dice of calling every pixel foreground."""
    trivial_pooled_dice: float | None = None
    masks_seen: int | None = None
    input: str | None = None
    """Channels and size of what the network takes, such as `3x128x128`."""
    parameters: int | None = None
    """Of the network that is saved."""
    steps_stage_1: int | None = None
    steps: int | None = None
    """Of stage 2."""
    images_stage_1: int | None = None
    """Images seen, each counted as often as it was seen."""
    images_stage_2: int | None = None
    """The same; labelled and unlabelled ones together."""
    seconds_stage_1: float | None = None
    seconds_stage_2: float | None = None
    device: str | None = None
    date: str | None = None
    """When the run began."""
    protocol: str | None = None
    """`nissl`, or `parity`: measured by the published protocol as well, which chooses on the test images."""
    parity_pooled_dice: float | None = None
    """By the published protocol; for comparison only."""
    parity_threshold: float | None = None
    run: str = ""
    """Folder of the run, in that of the bench."""
    message: str = ""
    """Why it failed."""


def folder_of(out: Path, cell: Cell) -> Path:
    """The run folder of a cell."""
    return out / RUNS / cell.id


def is_done(out: Path, cell: Cell) -> bool:
    """Say whether a cell is trained to its last step and measured; its weights need not be there any more."""
    run = folder_of(out, cell)
    if not (run / "metrics.json").is_file() or not (run / LOG).is_file():
        return False
    lines, planned = _log(run), load_config(run / "config.toml").train.steps
    measured = read_json(run / "metrics.json").get("steps")  # format 1 does not say
    return bool(lines) and planned <= min(int(lines[-1]["step"]), planned if measured is None else measured)


def result_of(out: Path, cell: Cell) -> Result:
    """Read what came of a cell.

    Raises:
        InputError: a file of a finished run is gone.
        DataError: a file of a finished run is damaged.

    """
    run = folder_of(out, cell)
    known: dict[str, Any] = {"data": cell.data, "budget": cell.budget, "arm": cell.arm, "seed": cell.seed}
    known["run"] = f"{RUNS}/{cell.id}"
    if not is_done(out, cell):
        failed = run / FAILED
        message = read_json(failed)["message"] if failed.is_file() else ""
        return Result(**known, status="failed" if message else "missing", message=message)
    try:
        return Result(**known, status="done", **_measured(run))
    except KeyError as error:
        raise DataError(run, f"no {error} in its files", "the files that a run writes", "remove the run") from error


MEASURES = (
    "dice",
    "pooled_dice",
    "hd95",
    "unit",
    "n_missed",
    "n_false_alarm",
    "n_cases",
    "n_groups",
    "trivial_dice",
    "trivial_pooled_dice",
)


def _measured(run: Path) -> dict[str, Any]:
    """The fields of a finished run."""
    scores, pretraining = read_json(run / "metrics.json")["overall"], read_json(run / "pretrain.json")
    network, surroundings = read_json(run / "network.json"), read_json(run / "env.json")
    parity = read_json(run / PARITY) if (run / PARITY).is_file() else {}
    train = load_config(run / "config.toml").train
    return {
        **{name: scores[name] for name in MEASURES},
        "masks_seen": len(read_json(run / "budget.json")["masks_seen"]),
        "input": "x".join(map(str, network["input"])),
        "parameters": network["parameters"],
        "steps_stage_1": pretraining["steps"],
        "steps": train.steps,
        "images_stage_1": pretraining["images"],
        "images_stage_2": train.batch * train.steps,
        "seconds_stage_1": round(pretraining["seconds"], 2),
        "seconds_stage_2": round(sum(step_seconds(run)), 2),
        "device": surroundings["device"],
        "date": surroundings["date"],
        "protocol": "parity" if parity else "nissl",
        "parity_pooled_dice": parity.get("pooled_dice"),
        "parity_threshold": parity.get("threshold"),
    }


def step_seconds(run: Path) -> list[float]:
    """Seconds of each step of stage 2."""
    return [float(line["seconds"]) for line in _log(run)]


def _log(run: Path) -> list[dict[str, Any]]:
    """Lines of the log; one that a kill cut short is none."""
    lines = []
    for line in (run / LOG).read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError):
            lines.append(json.loads(line))
    return lines


def scores_of(out: Path, result: Result) -> list[CaseScore]:
    """Rows of metrics.csv of a run that is done.

    Raises:
        DataError: the file is gone or damaged.

    """
    path = out / result.run / "metrics.csv"
    try:
        return scores_from_csv(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        fix = f"run `nissl evaluate {path.parent}`"
        raise DataError(path, f"cannot be read ({error})", "the scores of each case", fix) from error


def warnings_of(out: Path, result: Result) -> list[str]:
    """What the measurement of a run says against its numbers; nothing where it cannot be read."""
    with suppress(NisslError):
        return [str(text) for text in read_json(out / result.run / "metrics.json").get("warnings", [])]
    return []


def is_bench(folder: Path) -> bool:
    """Say whether a folder is that of a bench."""
    return (folder / CELLS).is_file()


def stored_cells(out: Path) -> tuple[Cell, ...]:
    """The cells of a bench as it was started, from its own folder; the data need not be there.

    Raises:
        InputError: a file of the bench is gone.
        DataError: it is damaged.

    """
    described = read_json(out / CELLS)
    fix = "run `nissl bench` with its grid once more"
    try:
        with (out / RESULTS).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        found = []
        for row in rows:
            tree = dict(described[row["run"].removeprefix(f"{RUNS}/")])
            path = Path(tree.pop("path"))
            config = from_tree(Config, tree, str(out / CELLS))
            found.append(Cell(row["data"], row["budget"], row["arm"], int(row["seed"]), path, config))
    except OSError as error:
        raise InputError(out / RESULTS, "no such file", "the table of a bench", fix) from error
    except (ValueError, KeyError, csv.Error) as error:
        raise DataError(out / RESULTS, f"damaged ({error!r})", f"a row for each cell of {CELLS}", fix) from error
    return tuple(found)


def read_results(out: Path, cells: Sequence[Cell]) -> tuple[Result, ...]:
    """Read all cells, in the order of the grid; one whose files are damaged counts as failed, with the reason."""
    return tuple(_read(out, cell) for cell in cells)


def _read(out: Path, cell: Cell) -> Result:
    try:
        return result_of(out, cell)
    except NisslError as error:
        known = (cell.data, cell.budget, cell.arm, cell.seed)
        return Result(*known, status="failed", run=f"{RUNS}/{cell.id}", message=one_line(error))


def write_results(out: Path, results: Sequence[Result]) -> Path:
    """Write results.csv whole: a row for each cell, whatever came of it."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [field.name for field in fields(Result)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(result) for result in results)
    write_whole(out / RESULTS, buffer.getvalue())
    return out / RESULTS


def one_line(error: BaseException) -> str:
    """The message of an error in one line."""
    text = str(error) if isinstance(error, NisslError) else f"{type(error).__name__}: {error}"
    return "; ".join(line.strip() for line in text.splitlines())
