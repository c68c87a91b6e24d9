"""Cross pseudo supervision: two networks, each taught by the other's labels."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nissl.data.batches import Batch
from nissl.losses import segmentation_losses
from nissl.methods.method import Method
from nissl.methods.settings import Loss
from nissl.methods.shared import unlabelled


class CrossPseudoSupervision(Method):
    """Two networks that differ by their initialisation; each learns from the other's hard labels (Chen et al. 2021).

    As in the paper, on the images with masks as well as on those without, all counting the same; the losses of both
    networks are summed, and the first network is the predictor. The loss against the other network's labels is the
    one against a mask: cross-entropy in the paper, Dice plus cross-entropy here.
    """

    count = 2
    sees = "labelled+unlabelled"

    def losses(self, batch: Batch, progress: float) -> dict[str, Float[Tensor, ""]]:
        """Return the terms `dice`, `cross_entropy` and `cross_pseudo`."""
        others = unlabelled(batch)
        labelled = [network(batch.images) for network in self.networks]
        one, other = (
            torch.cat([logits, network(others)]) for logits, network in zip(labelled, self.networks, strict=True)
        )
        both = [self.supervised_losses(logits, batch.targets) for logits in labelled]
        terms = {name: both[0][name] + both[1][name] for name in both[0]}
        pseudo = pseudo_loss(one, other, self.settings.loss) + pseudo_loss(other, one, self.settings.loss)
        return terms | {"cross_pseudo": self.weight(progress) * pseudo}

    def candidates(self) -> dict[str, nn.Module]:
        """Return both."""
        return dict(zip(("first", "second"), self.networks, strict=True))


def pseudo_loss(
    logits: Float[Tensor, "batch classes *space"],
    teaching: Float[Tensor, "batch classes *space"],
    loss: Loss = "dice+cross-entropy",
) -> Float[Tensor, ""]:
    """Loss against the hard labels of the network that teaches, which have no gradient, as if they were a mask."""
    return torch.stack(list(segmentation_losses(logits, teaching.argmax(1), loss).values())).sum()
