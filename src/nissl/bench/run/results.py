"""What came of each cell, read from the run folders every time: an older table is never trusted."""

import csv
import io
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from nissl.bench.grid.grid import Cell
from nissl.bench.protocols import ciampi2024
from nissl.config import Config, from_tree
from nissl.errors import Caveat, DataError, InputError, NisslError
from nissl.files import write_whole
from nissl.metrics.metric import Metric
from nissl.reporting.contents import json_lines
from nissl.runs.folder import LOG, read_json
from nissl.runs.format import load_config
from nissl.tasks.rows import Row
from nissl.tasks.task import task_of

CELLS, RUNS, RESULTS, FAILED, PARITY = "cells.json", "runs", "results.csv", "failed.json", "parity.json"
Status = Literal["done", "failed", "missing"]


@dataclass(frozen=True)
class Tested:
    """On what a run was measured, and how often a class was in one of the two masks alone."""

    unit: str | None = None
    """Of lengths: mm or px."""
    n_missed: int | None = None
    """Cases (with several classes: cases and classes) that the reference shows and the prediction does not."""
    n_false_positive: int | None = None
    """False-positive cases: the other way round."""
    n_cases: int | None = None
    n_groups: int | None = None
    """Groups (patients) of the test cases, where known."""


@dataclass(frozen=True)
class Training:
    """What was trained, on what, and what it took."""

    masks_seen: int | None = None
    input: str | None = None
    """Channels and size of what the network takes, such as `3x128x128`."""
    parameters: int | None = None
    """Of the network that is saved."""
    steps_stage_1: int | None = None
    steps: int | None = None
    """Of the training with masks."""
    images_stage_1: int | None = None
    """Images seen, each counted as often as it was seen."""
    images_stage_2: int | None = None
    """The same; labelled and unlabelled ones together."""
    seconds_stage_1: float | None = None
    seconds_stage_2: float | None = None
    device: str | None = None
    date: str | None = None
    """When the run began."""


@dataclass(frozen=True)
class Published:
    """What the published protocol measured, which chooses on the test images; for comparison only."""

    pooled_dice: float | None
    threshold: float | None


@dataclass(frozen=True)
class Result:
    """What came of a cell: a row of results.csv; what it has not reached is None or missing, an empty field."""

    data: str
    budget: str
    arm: str
    seed: int
    status: Status
    run: str = ""
    """Folder of the run, in that of the bench."""
    scores: Mapping[Metric, float | None] = field(default_factory=dict)
    """Means over test cases, then over classes, of the metrics that tables show, the primary one first."""
    trivial: Mapping[Metric, float] = field(default_factory=dict)
    """The same of the trivial prediction, of the metrics that it has."""
    tested: Tested = Tested()
    training: Training = Training()
    published: Published | None = None
    """None: by our own protocol alone."""
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
    """Read what came of a cell; one whose files are damaged counts as failed, with the reason."""
    run = folder_of(out, cell)
    nothing = {metric: None for metric in task_of(cell.config.task).metrics if not metric.detail}
    known = Result(cell.data, cell.budget, cell.arm, cell.seed, "missing", f"{RUNS}/{cell.id}", nothing)
    try:
        if is_done(out, cell):
            return _measured(run, known)
        message = read_json(run / FAILED)["message"] if (run / FAILED).is_file() else ""
    except NisslError as error:
        message = one_line(error)
    except KeyError as error:
        message = f"{run}: no {error} in its files: remove the run"
    return replace(known, status="failed", message=message) if message else known


def _measured(run: Path, known: Result) -> Result:
    """Read a finished run."""
    scores, pretraining = read_json(run / "metrics.json")["overall"], read_json(run / "pretrain.json")
    network, environment = read_json(run / "network.json"), read_json(run / "env.json")
    published = read_json(run / PARITY) if (run / PARITY).is_file() else None
    train = load_config(run / "config.toml").train
    return replace(
        known,
        status="done",
        scores={metric: scores[metric.name] for metric in known.scores},
        trivial={metric: scores[key] for metric in known.scores if (key := f"trivial_{metric.name}") in scores},
        tested=Tested(**{one.name: scores.get(one.name) for one in fields(Tested)}),
        training=Training(
            masks_seen=len(read_json(run / "budget.json")["masks_seen"]),
            input="x".join(map(str, network["input"])),
            parameters=network["parameters"],
            steps_stage_1=pretraining["steps"],
            steps=train.steps,
            images_stage_1=pretraining["images"],
            images_stage_2=train.batch * train.steps,
            seconds_stage_1=round(pretraining["seconds"], 2),
            seconds_stage_2=round(sum(float(line["seconds"]) for line in _log(run)), 2),
            device=environment["device"],
            date=environment["date"],
        ),
        published=Published(published.get("pooled_dice"), published.get("threshold")) if published else None,
    )


def _log(run: Path) -> list[dict[str, Any]]:
    """Lines of the log; one that a kill cut short is none."""
    return json_lines((run / LOG).read_bytes())[0]


def rows_of(out: Path, result: Result) -> list[Row]:
    """Rows of metrics.csv of a run that is done.

    Raises:
        DataError: the file is gone or damaged.

    """
    path = out / result.run / "metrics.csv"
    task = task_of(load_config(path.with_name("config.toml")).task)
    try:
        return task.columns.from_csv(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        fix = f"run `nissl evaluate {path.parent}`"
        raise DataError(path, f"cannot be read ({error})", "the scores of each case", fix) from error


def caveats_of(out: Path, result: Result) -> list[Caveat]:
    """What the measurement of a run says against its numbers; nothing where it cannot be read."""
    with suppress(NisslError):
        tree = read_json(out / result.run / "metrics.json")
        texts = [str(text) for text in tree.get("warnings", [])]
        return list(map(Caveat, tree.get("warning_codes", map(_code_of_old, texts)), texts))
    return []


def _code_of_old(text: str) -> str:
    """The code of a warning from before warnings had codes; empty where nobody asks for it."""
    if text == ciampi2024.WARNING:
        return "published-protocol"
    return "published-number" if text.startswith(ciampi2024.CHOSEN) else ""


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
    """Read all cells, in the order of the grid."""
    return tuple(result_of(out, cell) for cell in cells)


def write_results(out: Path, results: Sequence[Result]) -> Path:
    """Write results.csv whole: a row for each cell, whatever came of it."""
    rows = [_columns(result) for result in results]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(out / RESULTS, buffer.getvalue())
    return out / RESULTS


def _columns(result: Result) -> dict[str, object]:
    """The columns of results.csv, in their order."""
    protocol = "" if result.status != "done" else "parity" if result.published else "nissl"
    return {
        **{name: getattr(result, name) for name in ("data", "budget", "arm", "seed", "status")},
        **{metric.name: value for metric, value in result.scores.items()},
        **asdict(result.tested),
        **{f"trivial_{metric.name}": result.trivial.get(metric) for metric in result.scores if not metric.unit},
        **asdict(result.training),
        "protocol": protocol,
        "parity_pooled_dice": result.published and result.published.pooled_dice,
        "parity_threshold": result.published and result.published.threshold,
        "run": result.run,
        "message": result.message,
    }


def one_line(error: BaseException) -> str:
    """The message of an error in one line."""
    text = str(error) if isinstance(error, NisslError) else f"{type(error).__name__}: {error}"
    return "; ".join(line.strip() for line in text.splitlines())
