"""What a pre-training is: it sees images, never masks, and leaves a network that learns from masks as any other."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from jaxtyping import Float
from torch import Tensor, nn

from nissl.config import PretrainConfig
from nissl.errors import InputError
from nissl.plasticity import plastic_layers


class Images(Protocol):
    """Batches of images by step; there is no way from here to a mask."""

    def __getitem__(self, step: int) -> Float[Tensor, "batch channels *space"]: ...


@dataclass(frozen=True)
class Report:
    """What a pre-training did, for `pretrain.json` and the page."""

    name: str
    steps: int = 0
    images: int = 0
    """Images seen, counted each time."""
    rule: str | None = None
    layers: Sequence[dict[str, Any]] = ()
    """Per layer: name, relative_change, sparsity, dead_units, units, variance_explained."""
    curves: Sequence[dict[str, Any]] = ()
    """Now and then: step, and the relative change of each layer."""


@dataclass
class Pretraining:
    """Base of all: does nothing, which is the control `none`.

    Args:
        config: settings of stage 1.
        seed: of whatever is drawn.

    """

    config: PretrainConfig
    seed: int = 0
    advance: Callable[[str], None] = field(default=lambda message: None)
    """Called after each step with a short message, to show progress."""

    @property
    def steps(self) -> int:
        """Steps that it will make."""
        return 0

    def restructure(self, net: nn.Module) -> None:
        """Give the network the form that it has after the pre-training, without training; nothing by default."""

    def run(self, net: nn.Module, images: Images) -> Report:
        """Pre-train the network in place."""
        return Report(self.config.name)


def head(net: nn.Module) -> str:
    """Name the layer that gives the logits: it is learnt from masks only."""
    names = [name for name, _ in plastic_layers(net)]
    return "head" if "head" in names else names[-1]


def excluded(net: nn.Module, layers: str) -> tuple[str, ...]:
    """Name the modules that do not learn in stage 1.

    Raises:
        InputError: the network has no part of the name asked for.

    """
    parts = [name for name, _ in net.named_children()]
    if layers == "all":
        return (head(net),)
    if layers not in parts:
        raise InputError(
            "pretrain.layers", layers, f"`all`, or a part of this network: {', '.join(parts)}", "use `--layers all`"
        )
    return tuple(name for name in parts if name != layers)
