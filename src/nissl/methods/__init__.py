"""Stage 2: ways to learn from few masks, by the name that the command line uses."""

from nissl.methods.cps import CrossPseudoSupervision
from nissl.methods.entropy import Entropy
from nissl.methods.mean_teacher import MeanTeacher
from nissl.methods.method import Method
from nissl.methods.supervised import Supervised
from nissl.methods.uamt import UncertaintyAwareMeanTeacher

METHODS: dict[str, type[Method]] = {
    "supervised": Supervised,
    "entropy": Entropy,
    "mean-teacher": MeanTeacher,
    "uamt": UncertaintyAwareMeanTeacher,
    "cps": CrossPseudoSupervision,
}

__all__ = ["METHODS", "Method"]
