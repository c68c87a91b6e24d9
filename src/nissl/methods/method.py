"""What a method is: it names its losses, and the one loop does the rest."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import Self

from nissl.learner import Learner, Problem
from nissl.methods.settings import MethodSettings, Ramped, Weighted
from nissl.nets.factory import parts
from nissl.tasks.segmentation import Segmentation
from nissl.tasks.task import Task


class Method(Learner):
    """A way to learn from few masks, over as many networks as `count` says.

    Each network is initialised (and pre-trained) with a seed of its own. An InputError where the method needs encoder,
    decoder and head, and the network lacks one.
    """

    tasks: ClassVar[tuple[str, ...] | None] = ("segmentation",)
    """The tasks that it can learn; None for all."""
    needs_parts: ClassVar[bool] = False
    """Whether the network must have an encoder, a decoder and a head that the method can reach into."""

    def __init__(self, networks: Sequence[nn.Module], settings: MethodSettings) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.settings: Any = settings
        self.task: Task = Segmentation()
        if self.needs_parts:
            self.parts()  # here, before anything is made of them

    @classmethod
    def build(cls, settings: Any, problem: Problem, start: Mapping[str, nn.Module], seed: int) -> Self:
        """Make the method over the networks."""
        made = cls(list(start.values()), settings)
        made.task = problem.task
        return made

    def parts(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        """Return encoder, decoder and head of the first network, of a method that needs them."""
        return parts(self.networks[0], f"--method {self.settings.name}")

    def supervised_losses(
        self, outputs: Float[Tensor, "batch outputs *space"], targets: Tensor
    ) -> dict[str, Float[Tensor, ""]]:
        """Compare with targets as the task and the settings say: for masks the terms `dice` and `cross_entropy`."""
        return self.task.losses(outputs, targets, self.settings.loss)

    def weight(self, progress: float) -> float:
        """Weight of the terms that need no masks, by default exp(-5 (1 - t)^2) of the whole (Laine and Aila 2017)."""
        settings: Weighted = self.settings
        if not isinstance(settings, Ramped):
            return settings.weight
        done = min(1.0, progress / settings.ramp) if settings.ramp else 1.0
        return settings.weight * (done if settings.ramp_shape == "linear" else math.exp(-5 * (1 - done) ** 2))

    def predictor(self) -> nn.Module:
        """Return the first network."""
        return self.networks[0]

    def candidates(self) -> dict[str, nn.Module]:
        """Return, by name, the networks of which a protocol that validates on masks may take the better one."""
        return {"network": self.predictor()}
