"""Hebbian learning rules for any torch network: pure functions, and hooks that apply them."""

from nissl.plasticity.hooks import Plasticity, plastic_layers
from nissl.plasticity.optimiser import RelativeStep
from nissl.plasticity.rules import HPCA, RULES, SWTA, Hebb, Oja, Rule, SoftHebb
from nissl.plasticity.update import update

__all__ = [
    "HPCA",
    "RULES",
    "SWTA",
    "Hebb",
    "Oja",
    "Plasticity",
    "RelativeStep",
    "Rule",
    "SoftHebb",
    "plastic_layers",
    "update",
]
