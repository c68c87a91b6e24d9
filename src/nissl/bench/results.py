"""What came of each cell, read from the run folders every time: an older table is never trusted."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from nissl.bench.grid import Cell
from nissl.config import load_config
from nissl.errors import NisslError
from nissl.files import write_whole
from nissl.train.loop import LOG
from nissl.train.run import read_json
from nissl.train.series import is_finished

RUNS, RESULTS, FAILED = "runs", "results.csv", "failed.json"
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
    n_cases: int | None = None
    """Test cases."""
    masks_seen: int | None = None
    steps: int | None = None
    """Of stage 2."""
    images_stage_1: int | None = None
    """Images seen, each counted as often as it was seen."""
    images_stage_2: int | None = None
    """The same; labelled and unlabelled ones together."""
    seconds_stage_1: float | None = None
    seconds_stage_2: float | None = None
    run: str = ""
    """Folder of the run, in that of the bench."""
    message: str = ""
    """Why it failed."""


def folder_of(out: Path, cell: Cell) -> Path:
    """The run folder of a cell."""
    return out / RUNS / cell.id


def is_done(out: Path, cell: Cell) -> bool:
    """Say whether a cell is trained to its last step and measured."""
    run = folder_of(out, cell)
    return (run / "metrics.json").is_file() and is_finished(run)


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
    metrics, pretraining = read_json(run / "metrics.json"), read_json(run / "pretrain.json")
    scores, config = metrics["overall"], load_config(run / "config.toml")
    return Result(
        **known,
        status="done",
        **{name: scores[name] for name in ("dice", "pooled_dice", "hd95", "unit", "n_cases")},
        masks_seen=len(read_json(run / "budget.json")["masks_seen"]),
        steps=config.train.steps,
        images_stage_1=pretraining["images"],
        images_stage_2=config.train.batch * config.train.steps,
        seconds_stage_1=round(pretraining["seconds"], 2),
        seconds_stage_2=round(sum(step_seconds(run)), 2),
    )


def step_seconds(run: Path) -> list[float]:
    """Seconds of each step of stage 2."""
    lines = (run / LOG).read_text(encoding="utf-8").splitlines()
    return [float(json.loads(line)["seconds"]) for line in lines]


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
