"""What a method is: it names its losses, and the one loop does the rest."""

from collections.abc import Sequence
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from nissl.data.dataset import Batch


class Method(nn.Module):
    """A way to learn from few masks.

    Args:
        networks: as many as `count` says, each initialised (and pre-trained) with a seed of its own.

    """

    count: ClassVar[int] = 1
    """Networks that the method trains."""
    uses_unlabelled: ClassVar[bool] = False
    """Whether a batch must bring images without masks."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def losses(self, batch: Batch, progress: float) -> dict[str, Float[Tensor, ""]]:
        """Return the named terms of the loss; the loop sums and logs them.

        Args:
            batch: images, masks and images without masks.
            progress: share of the training that is done, from 0 to 1, for terms that ramp up.

        """
        raise NotImplementedError(f"{type(self).__name__} states no losses")

    def after_step(self) -> None:
        """Do what follows an optimiser step, such as moving an averaged teacher; nothing by default."""

    def predictor(self) -> nn.Module:
        """Return what is averaged, saved and used: images to logits."""
        return self.networks[0]

    def forward(self, batch: Batch, progress: float) -> dict[str, Float[Tensor, ""]]:
        """Return the losses: DistributedDataParallel needs them to come from a forward call."""
        return self.losses(batch, progress)
