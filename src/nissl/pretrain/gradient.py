"""What the pre-trainings by back-propagation share: a loss that needs no mask, its gradient, and Adam.

They are the comparators of the Hebbian one, and as there dropout is off: what is drawn depends on the seed, the step
and the image alone, so that a batch in pieces or over several processes learns what it does as a whole.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from nissl.nets import parts
from nissl.pretrain.pretraining import Images, Pretraining, Report, require_finite
from nissl.pretrain.warm import without_dropout


class BackPropagation(Pretraining):
    """Stage 1 by the gradient of `terms`; a subclass states these, and the extra layers that they need.

    Adam with a learning rate of its own, since `pretrain.rate` is a Hebbian step: from `RATE` linearly to zero. The
    network needs an encoder, a decoder and a head; the head takes no part. `pretrain.layers` says which parts learn.
    """

    RATE = 1e-3
    """Learning rate of Adam at the first step, as in the published comparators (Ciampi et al. 2024)."""
    CLIP = 1.0
    """Largest norm of the gradient, as in stage 2."""

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return self.config.steps

    def trained(self, net: nn.Module) -> list[nn.Parameter]:
        """All of the parts that learn."""
        still = tuple(f"{name}." for name in self.still(net))
        return [parameter for name, parameter in net.named_parameters() if not name.startswith(still)]

    def layers(self, net: nn.Module) -> nn.Module:
        """Make the layers that stage 1 needs beside the network."""
        raise NotImplementedError(f"{type(self).__name__} states no layers")

    def terms(
        self, net: nn.Module, images: Float[Tensor, "part channels *space"], first: int
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the terms of the loss, means over images; `first` is the place in the whole batch of the first one."""
        raise NotImplementedError(f"{type(self).__name__} states no loss")

    def check(self, net: nn.Module) -> None:
        """Refuse a network without encoder, decoder and head, or without the layers that are to learn."""
        parts(net, f"--pretrain {self.config.name}")
        super().check(net)

    def begin(self, net: nn.Module) -> None:
        """Make the extra layers, from the seed, and the optimiser."""
        self.check(net)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            made = self.layers(net)
        self._learning = self.trained(net)
        self.extra = made.to(self._learning[0])  # its device and its precision
        self._learning += self.extra.parameters()
        self.optimiser = torch.optim.Adam(self._learning, self.RATE)

    @contextmanager
    def learning(self, net: nn.Module) -> Iterator[None]:
        """Training mode without dropout, with a graph; no gradient is left behind."""
        with without_dropout(net), torch.enable_grad():
            try:
                yield
            finally:
                net.zero_grad()

    def learn(self, net: nn.Module, pieces: Sequence[Float[Tensor, "part channels *space"]]) -> str:
        """Make one step down the gradient of the whole batch, over all processes.

        Raises:
            FloatingPointError: the step is not finite; no weight was changed.

        """
        assert self.optimiser is not None
        for group in self.optimiser.param_groups:
            group["lr"] = self.RATE * (1 - self.done / self.steps)
        terms = _averaged(self._gradient(net, pieces))
        gradients = [parameter.grad for parameter in self._learning if parameter.grad is not None]
        require_finite("loss, gradient or running statistics", [*terms.values(), *gradients, *net.buffers()])
        nn.utils.clip_grad_norm_(self._learning, self.CLIP)
        self.optimiser.step()
        values = {name: float(term) for name, term in terms.items()}
        loss = sum(values.values())
        if self.at_point:
            self.curves.append({"step": self.done + 1, "loss": loss, "terms": values})
        return f"loss {loss:.3f}"

    def finish(self, net: nn.Module, images: Images) -> Report:
        """Drop the extra layers."""
        self.extra = nn.Module()
        return Report(self.config.name, self.steps, self.seen, curves=self.curves)

    def _gradient(self, net: nn.Module, pieces: Sequence[Tensor]) -> dict[str, Tensor]:
        """Leave the gradient of the mean over all pieces and processes in the parameters; return the terms."""
        net.zero_grad()
        self.extra.zero_grad()
        count, sums = sum(map(len, pieces)), dict[str, Tensor]()
        first = count * _rank()
        for piece in pieces:
            share = len(piece) / count
            terms = {name: share * term for name, term in self.terms(net, piece, first).items()}
            torch.stack([*terms.values()]).sum().backward()  # type: ignore[no-untyped-call]
            for name, term in terms.items():
                sums[name] = sums.get(name, torch.zeros_like(term)) + term.detach()
            first += len(piece)
        _averaged({str(index): p.grad for index, p in enumerate(self._learning) if p.grad is not None})
        return sums


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def _averaged(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Replace tensors, in place, by their mean over the processes."""
    if dist.is_available() and dist.is_initialized():
        for tensor in tensors.values():
            whole = tensor.contiguous()  # a gradient lies as its weight does, such as channels-last
            dist.all_reduce(whole)
            tensor.copy_(whole / dist.get_world_size())
    return tensors
