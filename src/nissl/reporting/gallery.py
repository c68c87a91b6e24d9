"""Which test cases the page shows, and their overlays: worst first."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nissl.config import Config, DataConfig, from_tree
from nissl.data.cases import CaseFile, load_case
from nissl.data.discovery import find_cases
from nissl.errors import DataError, NisslError
from nissl.imageio.formats import read_raster, stem
from nissl.imageio.label_map import LabelMap
from nissl.model import Description
from nissl.reporting.contents import Contents
from nissl.reporting.overlay import Masks, draw_overlay
from nissl.tasks.scores import CaseScore

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


def ranked(scores: Sequence[CaseScore]) -> dict[str, list[CaseScore]]:
    """Rows of each case, worst first: by mean Dice over its classes, then by the larger distance.

    Cases in which no class is present have nothing to rank by and are left out.
    """
    rows: dict[str, list[CaseScore]] = {}
    for row in scores:
        if not math.isnan(row.overlap.dice):
            rows.setdefault(row.case, []).append(row)
    return dict(sorted(rows.items(), key=lambda item: (case_dice(item[1]), -max(row.distance.hd95 for row in item[1]))))


def case_dice(rows: Sequence[CaseScore]) -> float:
    """Mean Dice of the applicable classes of one case."""
    return sum(row.overlap.dice for row in rows) / len(rows)


def draw_gallery(contents: Contents, data: Path | None = None) -> Gallery:
    """Draw the overlays of a run; where images or predictions are not at hand, say so.

    `data` is the folder of the data, where data.json does not name it.
    """
    rows = ranked(contents.scores)
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
                masks = _load(files.get(case), predictions.get(case), maps, config.data)
                yield Card(case, _caption(rows[case]), draw_overlay(masks))
            except DataError as error:
                without.setdefault(error.found, []).append(case)

    worst, others = tuple(cards(chosen)), tuple(cards(rest))
    return Gallery(worst, others, tuple(f"No overlay of {', '.join(ids)}: {why}." for why, ids in without.items()))


def _load(file: CaseFile | None, prediction: Path | None, maps: tuple[LabelMap, LabelMap], config: DataConfig) -> Masks:
    """Read one case and its prediction, each by its map; a DataError says what is not at hand or does not fit."""
    if file is None or file.target is None:
        raise _absent("the image or its mask is not in the data folder any more")
    if prediction is None:
        raise _absent("no prediction in the run folder")
    case, raster = load_case(file, maps[0], config), read_raster(prediction, config.limit_gib)
    predicted = maps[1].apply(raster, prediction)
    if case.target is None or predicted.shape != case.target.shape:
        raise _absent(f"the prediction is {predicted.shape}, but the image is now {case.image.shape[1:]}")
    return Masks(case.image, case.target, predicted, case.spacing, turned=raster.affine is not None)


def _absent(found: str) -> DataError:
    return DataError("overlay", found, "image, mask and prediction of the same shape", "evaluate the run again")


def _caption(rows: Sequence[CaseScore]) -> str:
    def line(row: CaseScore) -> str:
        name = f"{row.label}: " if len(rows) > 1 else ""
        overlap, distance = row.overlap, row.distance
        state = f" ({overlap.presence})" if overlap.presence != "both" else ""
        return f"{name}Dice {overlap.dice:.3f} · HD95 {distance.hd95:.1f} {distance.unit}{state}"

    return "\n".join(map(line, rows))
