"""The control `warm`: the normalisation statistics see the images, the weights stay as they were initialised."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from nissl.data.batches import Batch
from nissl.pretrain.pretraining import Pretraining, require_finite


class Warm(Pretraining):
    """As many forward passes in training mode as the Hebbian stage has steps, without a change of weight."""

    local = True

    def trained(self) -> list[nn.Parameter]:
        """Nothing."""
        return []

    @torch.no_grad()
    def learn(self, parts: Sequence[Batch], progress: float) -> dict[str, Any]:
        """Pass a batch forward."""
        for part in parts:
            self.net(part.images)
        require_finite("running statistics", list(self.net.buffers()))
        return {}
