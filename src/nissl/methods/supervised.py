"""Learning from the labelled images only."""

from jaxtyping import Float
from torch import Tensor

from nissl.data.batches import Batch
from nissl.methods.method import Method


class Supervised(Method):
    """The baseline: the losses of the task on the labelled images; the others are not used."""

    tasks = None

    def losses(self, batch: Batch, progress: float) -> dict[str, Float[Tensor, ""]]:
        """Return the terms of the task: `dice` and `cross_entropy` for masks."""
        return self.supervised_losses(self.networks[0](batch.images), batch.targets)
