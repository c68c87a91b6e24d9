"""Copies of runs that Nissl wrote before its files had a format version."""

import shutil
from pathlib import Path

FORMAT_1 = Path(__file__).parent / "fixtures" / "format-1"
DATA = FORMAT_1 / "data"


def old_run(folder: Path, name: str = "run") -> Path:
    """Copy `run` (finished and measured) or `interrupted` (after 12 of 40 steps) into a folder."""
    return shutil.copytree(FORMAT_1 / name, folder / name)
