"""A bench in memory: cells, results and scores of cases, made up."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from tests.made_up_scores import case_score

from nissl.bench.grid.grid import Cell
from nissl.bench.run.results import Result, Tested, Training
from nissl.config import Config
from nissl.methods import METHODS
from nissl.metrics.metric import SEGMENTATION
from nissl.pretrain import PRETRAININGS

METRICS = tuple(metric for metric in SEGMENTATION if not metric.detail)
BASELINE = "none + supervised"


def cell(arm=BASELINE, budget="5%", seed=0, data="glas"):
    pretrain, method = arm.split(" + ")
    pretrain = pretrain if pretrain in PRETRAININGS else "hebbian"  # of arms that only differ in their names
    config = Config(pretrain=PRETRAININGS.make(pretrain), method=METHODS.make(method), seed=seed)
    return Cell(data, budget, arm, seed, Path("data"), config)


def scores(dice, groups=None):
    """Rows of metrics.csv of one class, from the Dice of each case."""
    return [case_score(f"case {i}", value, (groups or {}).get(i, "")) for i, value in enumerate(dice)]


def result(of, dice=None, masks=5, **changes):
    """A finished run with the Dice of each case, or one of another status; a change is a field of it or of a part."""
    known = Result(of.data, of.budget, of.arm, of.seed, "missing", f"runs/{of.id}", dict.fromkeys(METRICS))
    if dice is not None:
        mean = float(np.mean(dice))
        known = replace(
            known,
            status="done",
            scores=dict(zip(METRICS, (mean, mean + 0.01, 10.0), strict=True)),
            trivial={METRICS[0]: 0.4, METRICS[1]: 0.5},
            tested=Tested(unit="px", n_missed=0, n_false_positive=0, n_cases=len(dice)),
            training=TRAINED,
        )
        changes = {"masks_seen": masks} | changes
    return changed(known, **changes)


TRAINED = Training(
    input="3x64x64",
    parameters=1000,
    steps_stage_1=0,
    steps=300,
    images_stage_1=0,
    images_stage_2=2400,
    device="cpu",
    date="2026-11-21T10:00:00+00:00",
)


def changed(one, **changes):
    """A result with other values of its fields, or of those of its parts."""
    for name, value in changes.items():
        part = next((part for part in ("tested", "training") if hasattr(getattr(one, part), name)), None)
        one = replace(one, **({part: replace(getattr(one, part), **{name: value})} if part else {name: value}))
    return one


def made_up(dice, budget="5%", masks=5, groups=None, **changes):
    """Cells, results and scores by run; `dice` is `{arm: (seeds, cases)}`."""
    made, results, by_run = [], [], {}
    for arm, table in dice.items():
        for seed, values in enumerate(table):
            made.append(cell(arm, budget, seed))
            results.append(result(made[-1], values, masks, **changes))
            by_run[results[-1].run] = scores(values, groups)
    return made, results, by_run
