"""One training with several seeds: which runs it has, and what each draws anew."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

from nissl.config import Config
from nissl.errors import DataError, InputError
from nissl.runs.checkpoint import load_checkpoint
from nissl.runs.folder import FILTERS, WEIGHTS, read_json
from nissl.runs.format import SEEDS, SEEDS_1, load_config


def runs_of(folder: Path) -> dict[int, Path]:
    """Run folder of each seed; an InputError where the folder holds no list of seeds, a DataError where it is bad."""
    path = folder / (SEEDS_1 if (folder / SEEDS_1).is_file() and not (folder / SEEDS).is_file() else SEEDS)
    seeds = read_json(path)["seeds"]
    if not seeds or not all(type(seed) is int for seed in seeds):
        raise DataError(path, "no list of seeds", "the list that the training wrote", "train again")
    return {seed: folder / f"seed-{seed}" for seed in seeds}


def settings_of(config: Config, seeds: Iterable[int]) -> dict[int, Config]:
    """Settings of each run: whatever is drawn follows its seed, but the test cases are those of the first."""
    test_seed = config.seed if config.split.seed is None else config.split.seed
    split = dataclasses.replace(config.split, seed=test_seed)
    return {seed: dataclasses.replace(config, split=split, seed=seed) for seed in seeds}


def differing_data(runs: Mapping[int, Path]) -> tuple[int, ...]:
    """Seeds whose runs have learnt from other images or masks than the first, which only `--allow-changed` accepts."""
    stored = {seed: {case["id"]: case for case in read_json(run / "data.json")["cases"]} for seed, run in runs.items()}
    first = next(iter(stored.values()))

    def same(id_: str, case: Mapping[str, str | None]) -> bool:
        known = [(case[key], first[id_][key]) for key in ("image_sha256", "mask_sha256")] if id_ in first else []
        return bool(known) and all(None in pair or pair[0] == pair[1] for pair in known)

    return tuple(seed for seed, cases in stored.items() if not all(same(*item) for item in cases.items()))


def is_finished(run: Path) -> bool:
    """Say whether a run has made the last step that its own settings state, and written what comes after it."""
    if not (run / FILTERS).is_file():
        return False
    try:
        return int(load_checkpoint(run / WEIGHTS)[1]["step"]) >= load_config(run / "config.toml").train.steps
    except (DataError, InputError, KeyError):
        return False
