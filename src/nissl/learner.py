"""What learns: every method and every pre-training is a learner, and one loop (`nissl.training.loop`) runs them all."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import Self

from nissl import optimisers
from nissl.config import TrainConfig
from nissl.data.batches import Batch
from nissl.nets.factory import build
from nissl.nets.settings import NetSettings
from nissl.schedule import learning_rate
from nissl.tasks.task import Task

NETWORK, PRETRAIN, TRAIN, BOOTSTRAP = 1, 2, 3, 4
"""Names of the draws that follow from one seed."""


def derived_seed(*names: int) -> int:
    """Derive a seed of its own for each draw."""
    return int(np.random.SeedSequence(names).generate_state(1, np.uint64)[0] >> 1)


@torch.no_grad()
def put_back(module: nn.Module, buffers: Sequence[Tensor]) -> None:
    """Give a module back the running statistics that it had before a batch which turned out to be of no use."""
    for buffer, before in zip(module.buffers(), buffers, strict=True):
        buffer.copy_(before)


@dataclass(frozen=True)
class Problem:
    """What is to be learnt: the task, the kind of images, and the network that maps them to the outputs."""

    task: Task
    dims: int
    channels: int
    outputs: int
    size: tuple[int, ...]
    """Network input along each axis, in pixels."""
    net: NetSettings

    def network(self, seed: int) -> nn.Module:
        """Make the network, images to logits, with weights that follow from the seed; errors as of `build`."""
        return build(self.net, self.dims, self.channels, self.outputs, seed)


class Learner(nn.Module):
    """Base of all learners. Its `state_dict`, and what `build` makes from the same arguments, are its whole state.

    A learner either states `losses`, whose gradient the loop makes, or sets `local` and makes the gradient itself in
    `learn`. Either way the loop's optimiser then moves the weights, and `after_step` follows.
    Whatever it draws comes from torch's global generator, which the loop seeds at each step.
    """

    sees: ClassVar[Literal["images", "labelled", "labelled+unlabelled"]] = "labelled"
    """What its batches hold. Those of `images` come from a store without targets."""
    count: ClassVar[int] = 1
    """Networks that it trains."""
    local: ClassVar[bool] = False
    """Whether it makes its gradient itself, without back-propagation of losses."""
    settings: Any
    """Of its own settings class."""
    fine_tuning: tuple[Sequence[nn.Parameter], float] = ((), 1.0)
    """Parameters that learn at a fraction of the learning rate, and that fraction."""
    task: Task | None = None
    """Of a learner that learns from targets."""

    @classmethod
    def initial(cls, settings: Any, problem: Problem, seed: int) -> dict[str, nn.Module]:
        """Make the networks as they are before any training, by name, of whatever shape; by default `count` alike.

        They differ by their seeds. A pre-training may train each of them before `build` takes them.
        """
        return {str(index): problem.network(derived_seed(seed, NETWORK, index)) for index in range(cls.count)}

    @classmethod
    def build(cls, settings: Any, problem: Problem, start: Mapping[str, nn.Module], seed: int) -> Self:
        """Make the learner.

        Args:
            settings: its own, an instance of its settings class.
            problem: what is to be learnt.
            start: the networks of `initial`, as they are or as the stage before hands them over.
            seed: of whatever is drawn to make it.

        Raises:
            InputError: the networks lack a part that it needs.

        """
        raise NotImplementedError(f"{cls.__name__} states not how it is built")

    def losses(self, batch: Batch, progress: float) -> dict[str, Float[Tensor, ""]]:
        """Return the named terms of the loss, means over images; the loop sums and logs them.

        Args:
            batch: what `sees` says.
            progress: fraction of the steps that were made, from 0 to 1, for terms that ramp up.

        """
        raise NotImplementedError(f"{type(self).__name__} states no losses")

    def forward(self, batch: Batch, progress: float) -> dict[str, Float[Tensor, ""]]:
        """Return the losses: DistributedDataParallel needs them to come from a forward call."""
        return self.losses(batch, progress)

    def learn(self, parts: Sequence[Batch], progress: float) -> dict[str, Any]:
        """Leave in `grad` of each parameter the direction to move against; return facts for the log.

        Args:
            parts: the batch of a step, in one part or in as many as memory asks for.
            progress: as of `losses`.

        Raises:
            FloatingPointError: the step is not finite; no weight was changed.

        """
        raise NotImplementedError(f"{type(self).__name__} does not learn locally")

    def trained(self) -> list[nn.Parameter]:
        """Return what the optimiser moves; by default all parameters that take a gradient."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def optimiser(self, train: TrainConfig) -> torch.optim.Optimizer:
        """Make the optimiser over `parameter_groups`."""
        groups = self.parameter_groups(train.weight_decay)
        if not groups:  # nothing moves: torch refuses an optimiser of nothing
            return optimisers.SGD([torch.zeros(1)], lr=train.learning_rate)
        if train.optimiser == "sgd":
            return optimisers.SGD(groups, lr=train.learning_rate, momentum=0.9, fused=True)
        if train.optimiser == "adam":
            return optimisers.Adam(groups, lr=train.learning_rate)
        return optimisers.AdamW(groups, lr=train.learning_rate, fused=True)

    def learning_rate(self, step: int, train: TrainConfig) -> float:
        """Return the learning rate of a step, counted from 0."""
        return learning_rate(step, train)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Return the groups of the optimiser; weights of one dimension (normalisation, biases) do not decay.

        Each group has the fraction of the learning rate at which it learns, as `share`.
        """
        slow, fraction = self.fine_tuning
        others = {id(parameter) for parameter in slow} if fraction != 1 else set()
        groups = [
            {
                "params": [p for p in self.trained() if (id(p) in others) == other and (p.ndim > 1) == decays],
                "weight_decay": weight_decay if decays else 0.0,
                "share": fraction if other else 1.0,
            }
            for other in (False, True)
            for decays in (True, False)
        ]
        return [group for group in groups if group["params"]]

    def after_step(self) -> None:
        """Do what follows an optimiser step, such as moving an averaged teacher; nothing by default."""

    def progress_facts(self, step: int) -> dict[str, Any]:
        """Return what the log should hold of a step, counted from 0, once it was made; nothing by default."""
        return {}

    def finish(self, serve: Callable[[int], Sequence[Batch]]) -> dict[str, Any] | None:
        """Give the networks their final form after the last step; return facts of a stage that leaves any.

        `serve` gives the batch of a step, on the device and in parts.
        """
        return None

    def restructure(self) -> None:
        """Give the networks the form that they have after the stage, without training; nothing by default."""

    def predictor(self) -> nn.Module:
        """Return what is averaged, saved and used: images to logits."""
        raise NotImplementedError(f"{type(self).__name__} predicts nothing")

    def hands_over(self) -> Mapping[str, nn.Module]:
        """Return the networks for the next stage, by the names of `initial`."""
        raise NotImplementedError(f"{type(self).__name__} hands nothing over")
