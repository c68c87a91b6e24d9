"""Make data folders to choose settings on: the masks of a label budget, cut into folds by patient, and no other mask.

In fold k the masks of that fold are the test cases (with `--few`, those of the other folds), the other masks of the
budget are all masks there are, and the training images without a mask stay without. The test images of the data set are
left out. Images and masks are links.

    python benchmarks/folds.py data/glas OUT --labels 20% --folds 3 --allow-shared-groups
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import tyro

from nissl.config import DataConfig, SplitConfig
from nissl.data.cases import CaseFile
from nissl.data.discovery import list_cases
from nissl.data.split import make_split


@dataclass(frozen=True)
class Folds:
    """Cut the masks of a budget into folds."""

    data: tyro.conf.Positional[Path]
    """Folder of the data set, with images/ and masks/."""
    out: tyro.conf.Positional[Path]
    """Folder for the folds: new."""
    labels: str = "20%"
    """The budget."""
    folds: int = 3
    few: bool = False
    """Train on one fold and measure on the others, not the other way round."""
    allow_shared_groups: bool = False
    seed: int = 0


def main(wanted: Folds) -> None:
    files = {file.id: file for file in list_cases(wanted.data, DataConfig()).cases}
    settings = SplitConfig(wanted.labels, allow_shared_groups=wanted.allow_shared_groups)
    split = make_split(list(files.values()), settings, wanted.seed)
    # Groups in the order of their first mask, each to the fold that has the fewest masks so far; a case that names no
    # group is one by itself.
    groups: dict[str, list[str]] = {}
    for one in split.labelled:
        groups.setdefault(files[one].group or one, []).append(one)
    folds: list[list[str]] = [[] for _ in range(wanted.folds)]
    for cases in groups.values():
        min(folds, key=len).extend(cases)
    for number, fold in enumerate(folds):
        tested = [one for one in split.labelled if (one in fold) != wanted.few]
        write(wanted.out / f"fold-{number}", files, (split.labelled, split.unlabelled, tested))


def write(folder: Path, files: dict[str, CaseFile], parts: tuple[tuple[str, ...], tuple[str, ...], list[str]]) -> None:
    """Link one fold's images and masks and write its cases.csv."""
    labelled, unlabelled, tested = parts
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    rows = [("id", "group", "split")]
    for one in (*labelled, *unlabelled):
        file = files[one]
        link(folder / "images", file.image)
        if one in labelled:
            link(folder / "masks", file.target)
        rows.append((one, file.group or "", "test" if one in tested else "train"))
    with (folder / "cases.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)


def link(folder: Path, file: Path | None) -> None:
    """Link a file under its own name."""
    assert file is not None
    (folder / file.name).symlink_to(file.resolve())


if __name__ == "__main__":
    main(tyro.cli(Folds))
