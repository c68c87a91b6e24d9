"""Real data sets that live beside the project, where they are at hand."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "shared" / "data"


def shared(name: str) -> Path:
    """Folder of a real data set; the test is skipped where it is absent."""
    folder = ROOT / name
    if not folder.is_dir():
        pytest.skip(f"the real data set {name} is not beside this checkout (shared/data/{name})")
    return folder
