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
    "Config": ("nissl.config", "Config"),
    "load_config": ("nissl.runs.format", "load_config"),
    "find_cases": ("nissl.data.discovery", "find_cases"),
    "check": ("nissl.api", "check"),
    "compare": ("nissl.api", "compare"),
    "train": ("nissl.api", "train"),
    "evaluate": ("nissl.api", "evaluate"),
    "predict": ("nissl.api", "predict"),
    "report": ("nissl.api", "report"),
}
__all__ = ["Config", "check", "compare", "evaluate", "find_cases", "load_config", "predict", "report", "train"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("nissl")
    if name not in _PLACES:
        raise AttributeError(f"module 'nissl' has no attribute {name!r}")
    module, attribute = _PLACES[name]
    return getattr(importlib.import_module(module), attribute)
