"""One training with several seeds: which runs it has, and what each draws anew."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from nissl.config import Config, load_config
from nissl.errors import DataError, InputError
from nissl.runs.checkpoint import load_checkpoint
from nissl.runs.folder import FILTERS, SERIES, WEIGHTS, read_json


def is_series(folder: Path) -> bool:
    """Say whether a folder holds the runs of several seeds."""
    return (folder / SERIES).is_file()


def runs_of(folder: Path) -> dict[int, Path]:
    """Run folder of each seed of a series.

    Raises:
        InputError: the folder is no series.
        DataError: its list of seeds is damaged.

    """
    tree = read_json(folder / SERIES)
    seeds = tree.get("seeds") if isinstance(tree, dict) else None
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
        raise DataError(folder / SERIES, "no list of seeds", "the list that the series wrote", "train again")
    return {seed: folder / f"seed-{seed}" for seed in seeds}


def settings_of(config: Config, seeds: Iterable[int]) -> dict[int, Config]:
    """Settings of each run: initialisation, order, augmentation and the masks of the budget follow its seed.

    The draw of the test cases is that of the first seed for all, so that all runs are measured on the same cases.
    """
    test_seed = config.seed if config.split.seed is None else config.split.seed
    split = dataclasses.replace(config.split, seed=test_seed)
    return {seed: dataclasses.replace(config, split=split, seed=seed) for seed in seeds}


def is_finished(run: Path) -> bool:
    """Say whether a run has made the last step that its own settings state, and written what comes after it."""
    if not (run / FILTERS).is_file():
        return False
    try:
        return int(load_checkpoint(run / WEIGHTS)[1]["step"]) >= load_config(run / "config.toml").train.steps
    except (DataError, InputError, KeyError):
        return False
