"""Cases: one image each, with or without a mask, found in a folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Num, UInt8


@dataclass(frozen=True)
class CaseFile:
    """A case on disk, not yet read."""

    id: str
    image: Path
    mask: Path | None = None
    group: str | None = None
    """Patient, animal or slide: cases of one group must stay on one side of a split."""
    split: Literal["train", "test"] | None = None
    """The side that cases.csv gives, if it does."""


@dataclass(frozen=True)
class Case:
    """A case in memory; spacing in mm along each spatial axis, None where the file states none."""

    id: str
    image: Num[np.ndarray, "channels *space"]
    mask: UInt8[np.ndarray, "*space"] | None = None
    group: str | None = None
    spacing: tuple[float, ...] | None = None
