"""Who trains and who tests: by group, with a label budget that is nested and follows from the seed alone."""

import dataclasses
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nissl.config import SplitConfig
from nissl.data.cases import CaseFile, Dataset
from nissl.data.naming import counted, suggest
from nissl.errors import Caveat, DataError, InputError

TEST_DRAW, BUDGET_DRAW = 1, 2
"""Names of the two draws, so that each has a stream of its own for one seed."""
LISTED = 30
"""Shared groups that a message names."""


@dataclass(frozen=True)
class Split:
    """The ids of each side, sorted.

    `labelled` are the training cases whose masks the training sees; `unlabelled` are the training cases whose masks
    do not exist or are not looked at. An image without mask on the test side is in neither: it cannot be measured, and
    training on it would be training on a test patient. Only with `transductive` the images of the test side are among
    the unlabelled, without their masks.
    """

    labelled: tuple[str, ...]
    unlabelled: tuple[str, ...]
    test: tuple[str, ...]
    labels: str
    """The budget as it was asked for."""
    seed: int
    """Of the draw of the masks that the training sees."""
    origin: Literal["cases.csv", "random"]
    groups_checked: int
    """Number of groups (patients) that were looked for on both sides."""
    shared_groups: tuple[str, ...] = ()
    """Groups that are on both sides, which only `--allow-shared-groups` accepts."""
    test_seed: int | None = None
    """Of the draw of the test cases; None where cases.csv gives them."""
    transductive: tuple[str, ...] = ()
    """Cases of the test side whose images are among the unlabelled, which only `--split.transductive` allows."""

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any], where: Path | str = "split.json") -> "Split":
        """Make a split of what split.json holds; raises DataError where it is something else."""
        values: Any = {key: tuple(value) if isinstance(value, list) else value for key, value in tree.items()}
        try:
            return cls(**values)
        except TypeError as error:
            fix = "restore the file from the run, or train again"
            raise DataError(where, f"unreadable: {error}", "a split written by nissl", fix) from error


def make_split(cases: Sequence[CaseFile], config: SplitConfig, seed: int) -> Split:
    """Split cases into training and test, and choose the masks that the training sees.

    A split in cases.csv is used as it is, a case without a value is for training. Else the masked cases are
    split at random: whole groups where groups are known, single cases otherwise. Images without mask are unlabelled
    training images; in a random split those of test groups are left out. The result does not depend on the order of
    the cases.

    Raises:
        InputError: too few masked cases, one group on both sides, or a label budget that cannot be met.

    """
    ordered = sorted(cases, key=lambda case: case.id)
    masked = [case for case in ordered if case.target]
    if len(masked) < 2:
        raise InputError("masks", f"{len(masked)} masked cases", "two or more: one to train, one to test", "draw more")
    given = any(case.split for case in ordered)
    if given:
        test_side = {case.id for case in ordered if case.split == "test"}
    else:
        test_seed = seed if config.seed is None else config.seed
        units = _draw_test_units(masked, config.test_fraction, test_seed)
        test_side = {case.id for case in ordered if unit_of(case) in units}
    test = [case for case in masked if case.id in test_side]
    train = [case for case in ordered if case.id not in test_side]
    if not test:
        raise InputError("cases.csv", "no masked test case", "a mask on the test side", "mark some cases as test")
    groups, shared = groups_on_sides(train, test)
    if shared and not config.allow_shared_groups:
        raise shared_fault(shared, groups)
    labelled = _budget(config.labels, [case.id for case in train if case.target], {case.id for case in test}, seed)
    transductive = tuple(case.id for case in ordered if config.transductive and case.id in test_side)
    return Split(
        labelled=labelled,
        unlabelled=tuple(sorted({case.id for case in train} - set(labelled) | set(transductive))),
        test=tuple(case.id for case in test),
        labels=config.labels,
        seed=seed,
        origin="cases.csv" if given else "random",
        groups_checked=groups,
        shared_groups=shared,
        test_seed=None if given else test_seed,
        transductive=transductive,
    )


def caveats(shared_groups: Sequence[str], transductive: Sequence[str]) -> list[Caveat]:
    """Say what was accepted knowingly about a split and makes its numbers less than they seem."""
    found = []
    if shared_groups:
        groups = ", ".join(map(str, shared_groups))
        text = (
            f"{counted(len(shared_groups), 'group')} (patients) are in training and in test: {groups}. "
            "The score is better than it would be on new patients."
        )
        found.append(Caveat("shared-groups", text))
    if transductive:
        text = (
            f"{counted(len(transductive), 'image')} of the test side were among the unlabelled ones, without masks "
            "(transductive): where the training looks at unlabelled images, the score does not hold for new ones."
        )
        found.append(Caveat("transductive", text))
    return found


def lock_test_cases(dataset: Dataset, split: Split) -> Dataset:
    """Return the cases as the training may have them: masks of the budget alone, and nothing of a test case.

    A case that is neither labelled nor unlabelled is locked: whatever opens it raises `TestSplitLocked`. The others
    lose the mask that is not in the budget, so that there is no way to it.
    """
    labelled, seen = set(split.labelled), {*split.labelled, *split.unlabelled}

    def locked(case: CaseFile) -> CaseFile:
        if case.id in labelled:
            return case
        return dataclasses.replace(case, target=None) if case.id in seen else dataclasses.replace(case, locked=True)

    return dataclasses.replace(dataset, cases=tuple(map(locked, dataset.cases)))


def sides(cases: Sequence[CaseFile]) -> tuple[list[tuple[str, str]], list[bool]]:
    """What stays together in the split of these cases, and whether each can be a test case.

    Two cases are, or in a random split may be, one in training and one in test where the first differs and one of the
    second is true. With a split in cases.csv that is certain; without, it depends on the seed.
    """
    if any(case.split for case in cases):
        places = [("side", "test" if case.split == "test" else "train") for case in cases]
        return places, [case.split == "test" and case.target is not None for case in cases]
    return [unit_of(case) for case in cases], [case.target is not None for case in cases]


def unit_of(case: CaseFile) -> tuple[str, str]:
    """What a random split keeps together: the group, or the case where no group is known."""
    return ("group", case.group) if case.group else ("case", case.id)


def _draw_test_units(masked: Sequence[CaseFile], fraction: float, seed: int) -> set[tuple[str, str]]:
    units = sorted({unit_of(case) for case in masked})
    if len(units) < 2:
        expected = "masks of two groups or more, so that one can be kept for testing"
        raise InputError("cases.csv", f"all masks belong to group `{units[0][1]}`", expected, "mask another group")
    count = min(max(1, round(fraction * len(units))), len(units) - 1)
    order = np.random.default_rng([seed, TEST_DRAW]).permutation(len(units))
    return {units[index] for index in order[:count]}


def groups_on_sides(train: Sequence[CaseFile], test: Sequence[CaseFile]) -> tuple[int, tuple[str, ...]]:
    """Return the number of groups, and those on both sides."""
    sides = [{case.group for case in side if case.group} for side in (train, test)]
    return len(sides[0] | sides[1]), tuple(sorted(sides[0] & sides[1]))


def shared_fault(shared: Sequence[str], groups: int) -> InputError:
    """State the fault of a split that has groups on both sides."""
    listed = ", ".join(shared[:LISTED]) + (f" and {len(shared) - LISTED} more" if len(shared) > LISTED else "")
    return InputError(
        "cases.csv",
        f"{len(shared)} of {groups} groups both in training and in test: {listed}",
        "each group (patient) on one side, since a test on known patients promises too much",
        "correct the column split, or accept it with --allow-shared-groups (the report will say so)",
    )


def _budget(labels: str, train: Sequence[str], test: Collection[str], seed: int) -> tuple[str, ...]:
    """Ids of the masks that the training sees; `10%` and `8` are prefixes of one permutation, hence nested."""
    text = "100%" if labels.strip() == "all" else labels.strip(" ")  # a file of ids ends with a new line
    percentage, number = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text), re.fullmatch(r"\d+", text)
    if not percentage and not number:
        return _listed(text, train, test)
    # Exact arithmetic: 7 % of 100 in floating point is a little above 7, and would be rounded up to 8.
    count = math.ceil(Fraction(percentage[1]) / 100 * len(train)) if percentage else int(text)
    if not 1 <= count <= len(train):
        fix = "choose a smaller budget or draw more masks" if count else "give the training one mask or more"
        raise _refused(f"`{text}` of {len(train)} masked training cases", f"1 to {len(train)} masks", fix)
    order = np.random.default_rng([seed, BUDGET_DRAW]).permutation(len(train))
    return tuple(sorted(train[index] for index in order[:count]))


def _listed(text: str, train: Sequence[str], test: Collection[str]) -> tuple[str, ...]:
    """The ids of a list; a single id that is a number is written with a comma behind it."""
    ids = tuple(sorted(set(named_ids(text, {*train, *test}))))
    expected = f"all, a percentage (10%), a number from 1 to {len(train)}, or ids of masked training cases with commas"
    if not ids:
        raise _refused(f"`{text}`", expected, "state the budget, for instance --labels 10%")
    for id_ in ids:
        if id_ in test:
            raise _refused(f"`{id_}`, a test case", expected, "remove it: the training must not see its mask")
        if id_ not in train:
            fix = suggest(id_, train) or "choose from the ids, which are file names without suffix"
            raise _refused(f"`{id_}`, which is no masked training case", expected, fix)
    return ids


def named_ids(text: str, known: Collection[str]) -> list[str]:
    """Cut a list of ids at its line ends, or else at those of its commas that are not in a known id."""
    for id_ in sorted((id_ for id_ in known if "," in id_), key=len, reverse=True):
        text = text.replace(id_, id_.replace(",", "\0"))
    parts = text.splitlines() if "\n" in text else text.split(",")
    return [part.replace("\0", ",").strip() for part in parts if part.strip()]


def _refused(found: str, expected: str, fix: str) -> InputError:
    return InputError("--labels", found, expected, fix, "label-budget")
