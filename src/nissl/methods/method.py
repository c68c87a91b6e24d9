"""What a method is: it names its losses, and the one loop does the rest."""

import math
from collections.abc import Sequence
from typing import ClassVar

from jaxtyping import Float, Integer
from torch import Tensor, nn

from nissl.config import MethodConfig
from nissl.data.batches import Batch
from nissl.methods.shared import segmentation_losses


class Method(nn.Module):
    """A way to learn from few masks.

    Whatever it draws comes from torch's global generator, which the loop seeds at each step.

    Args:
        networks: as many as `count` says, each initialised (and pre-trained) with a seed of its own.
        config: settings of stage 2.

    """

    count: ClassVar[int] = 1
    """Networks that the method trains."""
    uses_unlabelled: ClassVar[bool] = False
    """Whether a batch must bring images without masks."""
    needs_parts: ClassVar[bool] = False
    """Whether the network must have an encoder, a decoder and a head that the method can reach into."""
    weight: ClassVar[float] = 1.0
    """Weight of the terms that need no masks, where the settings leave it open."""

    def __init__(self, networks: Sequence[nn.Module], config: MethodConfig = MethodConfig()) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.config = config

    def losses(self, batch: Batch, progress: float) -> dict[str, Float[Tensor, ""]]:
        """Return the named terms of the loss; the loop sums and logs them.

        Args:
            batch: images, masks and images without masks.
            progress: share of the training that is done, from 0 to 1, for terms that ramp up.

        """
        raise NotImplementedError(f"{type(self).__name__} states no losses")

    def segmentation(
        self, logits: Float[Tensor, "batch classes *space"], masks: Integer[Tensor, "batch *space"]
    ) -> dict[str, Float[Tensor, ""]]:
        """Compare with masks as the settings say: the terms `dice` and `cross_entropy`, or `dice` alone."""
        return segmentation_losses(logits, masks, self.config.loss)

    def rising(self, progress: float) -> float:
        """Weight of the terms that need no masks, by default exp(-5 (1 - t)^2) of the whole (Laine and Aila 2017)."""
        full = self.weight if self.config.weight is None else self.config.weight
        done = min(1.0, progress / self.config.ramp) if self.config.ramp else 1.0
        return full * (done if self.config.ramp_shape == "linear" else math.exp(-5 * (1 - done) ** 2))

    def after_step(self) -> None:
        """Do what follows an optimiser step, such as moving an averaged teacher; nothing by default."""

    def predictor(self) -> nn.Module:
        """Return what is averaged, saved and used: images to logits."""
        return self.networks[0]

    def candidates(self) -> dict[str, nn.Module]:
        """Return, by name, the networks of which a protocol that looks at masks may take the better one."""
        return {"network": self.predictor()}

    def forward(self, batch: Batch, progress: float) -> dict[str, Float[Tensor, ""]]:
        """Return the losses: DistributedDataParallel needs them to come from a forward call."""
        return self.losses(batch, progress)
