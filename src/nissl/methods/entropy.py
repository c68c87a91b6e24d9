"""Entropy minimisation: confident where there is no mask."""

import math

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from nissl.data.batches import Batch
from nissl.methods.method import Method
from nissl.methods.shared import unlabelled


class Entropy(Method):
    """The supervised loss, plus the entropy of the predictions on images without masks (Grandvalet and Bengio 2004).

    They choose its weight by validation; `settings.Entropy` says where ours comes from.
    """

    sees = "labelled+unlabelled"

    def losses(self, batch: Batch, progress: float) -> dict[str, Float[Tensor, ""]]:
        """Return the terms `dice`, `cross_entropy` and `entropy`."""
        network = self.networks[0]
        terms = self.supervised_losses(network(batch.images), batch.targets)
        return terms | {"entropy": self.weight(progress) * mean_entropy(network(unlabelled(batch)))}


def mean_entropy(logits: Float[Tensor, "batch classes *space"]) -> Float[Tensor, ""]:
    """Mean over pixels of the entropy of the softmax, as a fraction of the largest: from 0 (certain) to 1 (uniform).

    By the logarithm of the softmax itself: published code adds 1e-6 to the probabilities first, so that a certain
    network has an entropy below zero.
    """
    logs = F.log_softmax(logits.float(), dim=1)
    return -(logs.exp() * logs).sum(1).mean() / math.log(logits.shape[1])
