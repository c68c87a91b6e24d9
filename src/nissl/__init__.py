"""Nissl: segment biomedical images when there are many images and few masks.

    import nissl
    run = nissl.train("my-images", "runs/first", nissl.Config())
    print(nissl.evaluate(run).overall.dice)

Names are imported when they are first used, so that `import nissl` is quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nissl.api import check, compare, evaluate, predict, report, train
    from nissl.config import Config
    from nissl.data.discovery import find_cases
    from nissl.runs.format import load_config

    __version__: str

_PLACES = {
    "Config": "nissl.config",
    "load_config": "nissl.runs.format",
    "find_cases": "nissl.data.discovery",
    "check": "nissl.api",
    "compare": "nissl.api",
    "train": "nissl.api",
    "evaluate": "nissl.api",
    "predict": "nissl.api",
    "report": "nissl.api",
}
__all__ = ["Config", "check", "compare", "evaluate", "find_cases", "load_config", "predict", "report", "train"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("nissl")
    if name not in _PLACES:
        raise AttributeError(f"module 'nissl' has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)
