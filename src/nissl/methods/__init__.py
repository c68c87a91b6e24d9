"""Ways to learn from few masks, by the name that the command line uses."""

from nissl.methods.settings import METHODS

__all__ = ["METHODS"]
