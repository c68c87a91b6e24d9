"""Learning from the masks alone."""

from jaxtyping import Float
from torch import Tensor

from nissl.data.batches import Batch
from nissl.methods.method import Method


class Supervised(Method):
    """The baseline: soft Dice plus cross-entropy on the labelled images; the others are not looked at."""

    def losses(self, batch: Batch, progress: float) -> dict[str, Float[Tensor, ""]]:
        """Return the terms `dice` and `cross_entropy`."""
        return self.segmentation(self.networks[0](batch.images), batch.targets)
