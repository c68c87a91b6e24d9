"""Ways to learn from images without masks, by the name that the command line uses."""

from nissl.pretrain.settings import PRETRAININGS

__all__ = ["PRETRAININGS"]
