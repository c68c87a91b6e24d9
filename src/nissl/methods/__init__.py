"""Stage 2: ways to learn from few masks, by the name that the command line uses."""

from nissl.methods.bcp import BidirectionalCopyPaste
from nissl.methods.cct import CCT
from nissl.methods.cps import CrossPseudoSupervision
from nissl.methods.dtc import DTC
from nissl.methods.entropy import Entropy
from nissl.methods.mean_teacher import MeanTeacher
from nissl.methods.method import Method
from nissl.methods.supervised import Supervised
from nissl.methods.uamt import UncertaintyAwareMeanTeacher
from nissl.methods.unimatch import UniMatch
from nissl.methods.urpc import URPC

METHODS: dict[str, type[Method]] = {
    "supervised": Supervised,
    "entropy": Entropy,
    "mean-teacher": MeanTeacher,
    "uamt": UncertaintyAwareMeanTeacher,
    "cps": CrossPseudoSupervision,
    "urpc": URPC,
    "cct": CCT,
    "dtc": DTC,
    "unimatch": UniMatch,
    "bcp": BidirectionalCopyPaste,
}

__all__ = ["METHODS", "Method"]
