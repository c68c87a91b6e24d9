"""Stage 2: ways to learn from few masks, by the name that the command line uses."""

from nissl.methods.method import Method
from nissl.methods.supervised import Supervised

METHODS: dict[str, type[Method]] = {"supervised": Supervised}

__all__ = ["METHODS", "Method"]
