"""How long the cells that are left will take, and where that is known from."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from statistics import mean

from nissl.bench.grid.grid import Cell
from nissl.bench.run.cost import STEPS, Cost, Key, seconds_of
from nissl.bench.run.results import Result


def estimate(todo: Sequence[Cell], results: Sequence[Result], costs: Mapping[Key, Cost], workers: int) -> str:
    """State in a line how long the cells that are left will take.

    Each arm on each data set is estimated from its finished cells, or else from the short run that measured its cost;
    measuring and reading come on top. A short run that failed is left out here: its cells will say why.
    """
    known: dict[tuple[str, str, str], float | None] = {}
    sources = {"finished cells": 0, f"{STEPS} steps of a cell": 0, "no timing": 0}
    total = 0.0
    for cell in todo:
        by_budget = cell.config.protocol == "parity"  # the length follows the number of masks
        key = (cell.data, cell.arm, cell.budget if by_budget else "")
        if key not in known:
            own = [one for one in results if (one.data, one.arm) == key[:2] and one.status == "done"]
            finished = [_seconds(one) for one in own if one.budget == cell.budget or not by_budget]
            known[key] = mean(finished) if finished else seconds_of(cell, costs)
            used = "finished cells" if finished else "no timing" if known[key] is None else f"{STEPS} steps of a cell"
            sources[used] += 1
        total += known[key] or 0.0
    told = ", ".join(f"{count} from {source}" for source, count in sources.items() if count)
    length = timedelta(seconds=round(total / min(workers, len(todo))))
    left_out = "measuring not counted, a shared stage 1 counted each time"
    return f"estimate: {length} of training, {left_out} (arms on data sets: {told})"


def _seconds(result: Result) -> float:
    return (result.training.seconds_stage_1 or 0.0) + (result.training.seconds_stage_2 or 0.0)
