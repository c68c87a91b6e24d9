"""What a pre-training is: it sees images, never masks, and leaves a network that learns from masks as any other."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nissl.config import PretrainConfig
from nissl.data.batches import more_parts
from nissl.errors import InputError, ResourceError, out_of_memory
from nissl.plasticity import plastic_layers

BAD_STEPS = 3
"""Steps in a row without a finite update after which a stage stops."""
POINTS = 50
"""Points of the curves."""


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
    """Now and then: step, and either the relative change of each layer, or the loss and its terms."""


@dataclass
class Pretraining:
    """Base of all: does nothing, which is the control `none`.

    A pre-training overrides `steps`, `begin`, `learn`, `finish` and `restructure`; `run` is the same for all. Between
    two steps its whole state is the network, `extra`, `optimiser` and the counts, so that who saves these can go on
    later.

    Args:
        config: settings of stage 1.
        seed: of whatever is drawn.

    """

    PREFERRED: ClassVar[str] = "all"
    """The part that `pretrain.layers = "auto"` means, where a network has it."""
    config: PretrainConfig
    seed: int = 0
    advance: Callable[[str], None] = field(default=lambda message: None)
    """Called after each step with a short message: to show progress, to save, or to stop by an exception."""
    done: int = field(default=0, init=False)
    """Steps that were made."""
    parts: int = field(default=1, init=False)
    """Pieces in which a batch goes through the network, where the whole does not fit into memory."""
    bad: int = field(default=0, init=False)
    """Steps in a row, up to now, that were not finite."""
    seen: int = field(default=0, init=False)
    """Images that this process showed to the network, counted each time."""
    curves: list[dict[str, Any]] = field(default_factory=list, init=False)
    optimiser: torch.optim.Optimizer | None = field(default=None, init=False)
    extra: nn.Module = field(default_factory=nn.Module, init=False)
    """Layers that learn in stage 1 only and are dropped at its end; made by `begin`."""

    @property
    def steps(self) -> int:
        """Steps that it will make."""
        return 0

    @property
    def at_point(self) -> bool:
        """Whether the step in progress is one that the curves show."""
        return (self.done + 1) % max(1, self.steps // POINTS) == 0 or self.done + 1 == self.steps

    def check(self, net: nn.Module) -> None:
        """Refuse a network that it cannot train.

        Raises:
            InputError: the network lacks a part.

        """
        self.still(net)

    def still(self, net: nn.Module) -> tuple[str, ...]:
        """Name the modules that do not learn.

        Raises:
            InputError: the network has no part of the name asked for.

        """
        if self.config.layers != "auto":
            return excluded(net, self.config.layers)
        return excluded(net, self.PREFERRED if self.PREFERRED in learning_parts(net) else "all")

    def trained(self, net: nn.Module) -> list[nn.Parameter]:
        """Return what it has trained of a network in its final form; nothing by default."""
        return []

    def restructure(self, net: nn.Module) -> None:
        """Give the network the form that it has after the pre-training, without training; nothing by default."""

    def begin(self, net: nn.Module) -> None:
        """Prepare a network as it was initialised; the same for the same network. Nothing by default."""

    def learning(self, net: nn.Module) -> AbstractContextManager[object]:
        """Hold the network in the state in which it learns, for the time of the steps."""
        return nullcontext()

    def learn(self, net: nn.Module, pieces: Sequence[Float[Tensor, "part channels *space"]]) -> str:
        """Make one step from a batch in one or several pieces; return a short message.

        Raises:
            FloatingPointError: the step is not finite; no weight was changed.

        """
        raise NotImplementedError(f"{type(self).__name__} states no step")

    def finish(self, net: nn.Module, images: Images) -> Report:
        """Give the network its final form, after the last step."""
        self.restructure(net)
        return Report(self.config.name)

    def run(self, net: nn.Module, images: Images) -> Report:
        """Pre-train the network in place.

        Raises:
            ResourceError: no finite step could be made for `BAD_STEPS` steps in a row.

        """
        self.begin(net)
        self.go_on(net, images)
        return self.finish(net, images)

    def go_on(self, net: nn.Module, images: Images) -> None:
        """Make the steps that are left, from `done`; a step that is not finite is skipped.

        Raises:
            ResourceError: no finite step could be made for `BAD_STEPS` steps in a row.

        """
        with self.learning(net):
            while self.done < self.steps:
                batch = images[self.done]
                try:
                    message, self.bad = self._step(net, batch), 0
                except FloatingPointError as fault:
                    message, self.bad = f"skipped: {fault}", self.bad + 1
                if self.bad == BAD_STEPS:
                    raise _not_finite(self.done, images)
                self.done += 1
                self.seen += len(batch)
                self.advance(message)

    def _step(self, net: nn.Module, batch: Float[Tensor, "batch channels *space"]) -> str:
        """Learn from a batch, in as many pieces as memory asks for; the buffers are put back if it fails."""
        while True:
            try:
                with buffers_kept(net):
                    return self.learn(net, batch.chunk(self.parts))
            except (MemoryError, RuntimeError) as error:
                several = torch.distributed.is_available() and torch.distributed.is_initialized()  # they cannot agree
                if not out_of_memory(error) or several or self.parts >= len(batch):
                    raise
            # Here, and not in the handler, which keeps the tensors of the failed pass alive.
            self.parts = more_parts(self.parts, len(batch))


@contextmanager
def buffers_kept(net: nn.Module) -> Iterator[None]:
    """Put the buffers of a network back where the block fails.

    Running statistics take in a batch on the way, before it shows that it is of no use.
    """
    before = [buffer.clone() for buffer in net.buffers()]
    try:
        yield
    except Exception:
        for buffer, kept in zip(net.buffers(), before, strict=True):
            buffer.copy_(kept)
        raise


def require_finite(what: str, tensors: Sequence[Tensor]) -> None:
    """Refuse tensors of which one holds NaN or infinity.

    Raises:
        FloatingPointError: one does.

    """
    largest = [tensor.abs().amax() for tensor in tensors if tensor.is_floating_point() and tensor.numel()]
    if largest and not bool(torch.isfinite(torch.stack([value.float() for value in largest])).all()):
        raise FloatingPointError(f"{what} not finite")


def _not_finite(step: int, images: Images) -> ResourceError:
    ids = getattr(images, "ids", None)
    cases = f", cases {', '.join(ids(step))}" if ids else ""
    return ResourceError(
        f"step {step + 1} of the pre-training{cases}",
        f"no finite step in {BAD_STEPS} steps in a row",
        "finite images and responses",
        "run `nissl check` on the data, or lower --pretrain.rate where the pre-training takes it, and resume",
    )


def head(net: nn.Module) -> str:
    """Name the layer that gives the logits: it is learnt from masks only."""
    names = [name for name, _ in plastic_layers(net)]
    return "head" if "head" in names else names[-1]


def excluded(net: nn.Module, layers: str) -> tuple[str, ...]:
    """Name the modules that do not learn in stage 1.

    Raises:
        InputError: the network has no part of the name asked for, or no layer in it besides the head.

    """
    parts, last = [name for name, _ in net.named_children()], head(net)
    if layers == "all":
        return (last,)
    if layers not in learning_parts(net):
        raise InputError(
            "pretrain.layers", layers, f"`all`, or a part of this network: {', '.join(parts)}", "use `--layers all`"
        )
    others = tuple(name for name in parts if name != layers)
    return (*others, last) if last.startswith(f"{layers}.") else others


def learning_parts(net: nn.Module) -> set[str]:
    """Name the parts of a network that have a layer which can learn in stage 1."""
    last = head(net)
    return {name.partition(".")[0] for name, _ in plastic_layers(net) if name != last}
