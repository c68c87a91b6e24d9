"""What a pre-training is: it sees images, never masks, and leaves a network that learns from masks as any other."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from nissl.data.batches import Batch
from nissl.errors import InputError
from nissl.learner import Learner, Problem
from nissl.plasticity import plastic_layers
from nissl.pretrain.settings import PretrainSettings, Stepped

POINTS = 50
"""Points of the curves."""


class Pretraining(Learner):
    """Base of all: does nothing, which is the control `none`. Dropout is off in training mode.

    The network comes as it was initialised and is trained in place; whatever is drawn follows from the seed.
    """

    sees = "images"
    PREFERRED: ClassVar[str] = "all"
    """The part that `pretrain.layers = "auto"` means, where a network has it."""

    def __init__(self, net: nn.Module, settings: PretrainSettings, seed: int = 0) -> None:
        super().__init__()
        self.net, self.settings, self.seed = net, settings, seed

    @classmethod
    def build(cls, settings: Any, problem: Problem, start: Mapping[str, nn.Module], seed: int) -> Self:
        """Make the pre-training of one network."""
        (net,) = start.values()
        return cls(net, settings, seed)

    @classmethod
    def resolved(cls, settings: Any, net: nn.Module) -> Any:
        """Fill in what the settings leave open for a network; an InputError where it lacks a part."""
        return settings

    @property
    def steps(self) -> int:
        """Steps that it makes."""
        return self.settings.steps if isinstance(self.settings, Stepped) else 0

    def train(self, mode: bool = True) -> Self:
        """Turn training mode on, but for dropout, or off."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.eval()
        return self

    def finish(self, serve: Callable[[int], Sequence[Batch]]) -> dict[str, Any]:
        """Return the facts for `pretrain.json`."""
        self.restructure()
        return self.facts()

    def facts(self, **others: Any) -> dict[str, Any]:
        """Say what was done: name, steps, images (filled in by the loop), rule, a row for each layer, curves."""
        empty: dict[str, Any] = {"images": 0, "rule": None, "layers": [], "curves": []}
        return {"name": self.settings.name, "steps": self.steps} | empty | others

    def trained_of_the_network(self) -> list[nn.Parameter]:
        """Return what it trains of the network; nothing by default."""
        return []

    def trained(self) -> list[nn.Parameter]:
        """Return what the optimiser moves; of the network alone by default."""
        return self.trained_of_the_network()

    def hands_over(self) -> Mapping[str, nn.Module]:
        """Return the network."""
        return {"0": self.net}


class Partial(Pretraining):
    """A pre-training of the layers that `pretrain.layers` names."""

    @classmethod
    def resolved(cls, settings: Any, net: nn.Module) -> Any:
        """Name the part that `auto` means, and refuse a network that lacks the part."""
        layers = settings.layers
        if layers == "auto":
            layers = cls.PREFERRED if cls.PREFERRED in learning_parts(net) else "all"
        excluded(net, layers)
        return dataclasses.replace(settings, layers=layers)

    def excluded(self) -> tuple[str, ...]:
        """Name the modules of the network that do not learn; errors as of the function `excluded`."""
        return excluded(self.net, self.resolved(self.settings, self.net).layers)


def at_point(step: int, steps: int) -> bool:
    """Say whether a step, counted from 0, is one that the curves show."""
    return (step + 1) % max(1, steps // POINTS) == 0 or step + 1 == steps


@torch.no_grad()
def follow_statistics(net: nn.Module, images: Iterable[Tensor]) -> None:
    """Pass batches forward, for the running statistics of a network in training mode; nothing else changes.

    A FloatingPointError says that the statistics came to hold NaN or infinity.
    """
    for batch in images:
        net(batch)
    finite = [buffer.isfinite().all() for buffer in net.buffers()]
    if finite and not bool(torch.stack(finite).all()):
        raise FloatingPointError("running statistics not finite")


def head(net: nn.Module) -> str:
    """Name the layer that gives the logits: it is learnt from masks only."""
    names = [name for name, _ in plastic_layers(net)]
    return "head" if "head" in names else names[-1]


def excluded(net: nn.Module, layers: str) -> tuple[str, ...]:
    """Name the modules that do not learn; an InputError where the part asked for has no layer besides the head."""
    parts, last = [name for name, _ in net.named_children()], head(net)
    if layers == "all":
        return (last,)
    if layers not in learning_parts(net):
        expected = f"`all`, or a part of this network: {', '.join(parts)}"
        raise InputError("pretrain.layers", layers, expected, "use `--layers all`")
    others = tuple(name for name in parts if name != layers)
    return (*others, last) if last.startswith(f"{layers}.") else others


def learning_parts(net: nn.Module) -> set[str]:
    """Name the parts of a network that have a layer which can learn in a pre-training."""
    last = head(net)
    return {name.partition(".")[0] for name, _ in plastic_layers(net) if name != last}
