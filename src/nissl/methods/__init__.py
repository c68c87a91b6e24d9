"""Stage 2: ways to learn from few masks, by the name that the command line uses."""

from nissl.methods.bcp import BidirectionalCopyPaste
from nissl.methods.method import Method
from nissl.methods.supervised import Supervised
from nissl.methods.unimatch import UniMatch

METHODS: dict[str, type[Method]] = {
    "supervised": Supervised,
    "unimatch": UniMatch,
    "bcp": BidirectionalCopyPaste,
}

__all__ = ["METHODS", "Method"]
