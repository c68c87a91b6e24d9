"""The control `warm`: the normalisation statistics see the images, the weights stay as they were initialised."""

from collections.abc import Sequence
from typing import Any

from nissl.data.batches import Batch
from nissl.pretrain.pretraining import Pretraining, follow_statistics


class Warm(Pretraining):
    """As many forward passes in training mode as the Hebbian stage has steps, without a change of weight."""

    local = True

    def learn(self, parts: Sequence[Batch], progress: float) -> dict[str, Any]:
        """Pass a batch forward."""
        follow_statistics(self.net, (part.images for part in parts))
        return {}
