"""Which test cases the page shows, and their overlays: worst first."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from nissl.config import Config, DataConfig, from_tree
from nissl.data.cases import CaseFile
from nissl.data.discovery import find_cases
from nissl.errors import DataError, NisslError
from nissl.imageio.formats import stem
from nissl.imageio.label_map import LabelMap
from nissl.model import Description
from nissl.reporting.contents import Contents
from nissl.tasks.rows import Row
from nissl.tasks.task import Task

WORST, MIDDLE, BEST = 12, 2, 2


@dataclass(frozen=True)
class Card:
    """One test case on the page."""

    case: str
    caption: str
    picture: str
    """Data URI."""


@dataclass(frozen=True)
class Gallery:
    """Overlays of the worst test cases, worst first, and of some in the middle and the best."""

    worst: tuple[Card, ...] = ()
    others: tuple[Card, ...] = ()
    notes: tuple[str, ...] = ()
    """Why overlays are missing, in words that hold no path of this machine."""


def ranked(task: Task, rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows of each case, worst first: by the mean of the primary metric over its classes, then by the worst others.

    Rows without the primary metric, such as a class that is in neither mask, are left out.
    """
    applicable = [row for row in rows if not math.isnan(task.columns.values[task.primary.name](row))]
    found: dict[str, list[Row]] = {}
    for row in applicable:
        found.setdefault(row.case, []).append(row)

    def rank(of_case: Sequence[Row]) -> tuple[float, ...]:
        worst = (min(metric.sign * task.columns.values[metric.name](row) for row in of_case) for metric in task.by_case)
        return task.primary.sign * case_mean(task, of_case), *worst

    return dict(sorted(found.items(), key=lambda item: rank(item[1])))


def case_mean(task: Task, rows: Sequence[Row]) -> float:
    """Mean of the primary metric over the applicable classes of one case."""
    return fmean(task.columns.values[task.primary.name](row) for row in rows)


def draw_gallery(contents: Contents, data: Path | None = None) -> Gallery:
    """Draw the overlays of a run; where images or predictions are not at hand, say so.

    `data` is the folder of the data, where data.json does not name it.
    """
    task = contents.task
    rows = ranked(task, contents.rows)
    cases = list(rows)
    middle = len(cases) // 2 - MIDDLE // 2
    chosen = cases if len(cases) <= WORST + MIDDLE + BEST else cases[:WORST]
    rest = [] if chosen is cases else [*cases[max(middle, WORST) :][:MIDDLE], *cases[-BEST:]]
    if not cases:
        return Gallery()
    known = data or contents["data"].get("root")
    if not known or not Path(known).is_dir():
        why = "The data folder is not where it was, or not stored: there are no overlays without --data DIR."
        return Gallery(notes=(why,))
    try:
        config = from_tree(Config, contents.config, "config.toml")
        dataset = find_cases(Path(known), config.data)
        maps = dataset.label_map, LabelMap.reading(dataset.label_map.names, Description.load(contents.run).values)
    except NisslError as error:
        return Gallery(notes=(f"{error.where} cannot be read ({error.found}): overlays are left out.",))
    files = {file.id: file for file in dataset.cases}
    predictions = {stem(path): path for path in (contents.run / "predictions").glob("*")}
    without: dict[str, list[str]] = {}

    def cards(ids: Sequence[str]) -> Iterator[Card]:
        for case in ids:
            try:
                drawn = _draw(task, files.get(case), predictions.get(case), maps, config.data)
                if drawn:
                    yield Card(case, _caption(task, rows[case]), drawn)
            except DataError as error:
                without.setdefault(error.found, []).append(case)

    worst, others = tuple(cards(chosen)), tuple(cards(rest))
    return Gallery(worst, others, tuple(f"No overlay of {', '.join(ids)}: {why}." for why, ids in without.items()))


def _draw(
    task: Task, file: CaseFile | None, prediction: Path | None, maps: tuple[LabelMap, LabelMap], config: DataConfig
) -> str:
    """Draw one case with its prediction, each read by its map; a DataError says what is not at hand or does not fit."""
    if file is None or file.target is None:
        raise _absent("the image or its mask is not in the data folder any more")
    if prediction is None:
        raise _absent("no prediction in the run folder")
    case = task.targets.read(file, maps[0], config)
    alone = CaseFile(file.id, prediction, prediction)  # it need not state its place as the image does
    predicted = task.targets.read(alone, maps[1], replace(config, axes=""))
    if case.target is None or predicted.target is None or predicted.target.shape != case.target.shape:
        raise _absent(f"the prediction is {predicted.image.shape[1:]}, but the image is now {case.image.shape[1:]}")
    return task.picture(case, predicted)


def _absent(found: str) -> DataError:
    return DataError("overlay", found, "image, mask and prediction of the same shape", "evaluate the run again")


def _caption(task: Task, rows: Sequence[Row]) -> str:
    shown = [metric for metric in task.by_case if not metric.detail]

    def line(row: Row) -> str:
        name = f"{row.label}: " if len(rows) > 1 else ""
        values = (f"{one.title} {one.text(task.columns.values[one.name](row), task.unit(row))}" for one in shown)
        remark = task.remark(row)
        return f"{name}{' · '.join(values)}{f' ({remark})' if remark else ''}"

    return "\n".join(map(line, rows))
