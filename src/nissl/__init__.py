"""Nissl: segment biomedical images when there are many images and few masks.

    import nissl
    run = nissl.train("my-images", "runs/first", nissl.Config())
    print(nissl.evaluate(run).overall.dice)

Names are imported when they are first used, so that `import nissl` is quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nissl.config import Config, load_config
    from nissl.data.cases import find_cases as open
    from nissl.jobs import check, compare, evaluate, predict, report, train

_PLACES = {
    "Config": ("nissl.config", "Config"),
    "load_config": ("nissl.config", "load_config"),
    "open": ("nissl.data.cases", "find_cases"),
    "check": ("nissl.jobs", "check"),
    "compare": ("nissl.jobs", "compare"),
    "train": ("nissl.jobs", "train"),
    "evaluate": ("nissl.jobs", "evaluate"),
    "predict": ("nissl.jobs", "predict"),
    "report": ("nissl.jobs", "report"),
}
__all__ = ["Config", "check", "compare", "evaluate", "load_config", "open", "predict", "report", "train"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'nissl' has no attribute {name!r}")
    module, attribute = _PLACES[name]
    return getattr(importlib.import_module(module), attribute)
