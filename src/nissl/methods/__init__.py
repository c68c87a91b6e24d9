"""Stage 2: ways to learn from few masks, by the name that the command line uses."""

from nissl.methods.cct import CCT
from nissl.methods.dtc import DTC
from nissl.methods.method import Method
from nissl.methods.supervised import Supervised
from nissl.methods.urpc import URPC

METHODS: dict[str, type[Method]] = {
    "supervised": Supervised,
    "urpc": URPC,
    "cct": CCT,
    "dtc": DTC,
}

__all__ = ["METHODS", "Method"]
