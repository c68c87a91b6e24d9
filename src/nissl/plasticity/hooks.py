"""Plasticity of a whole network: every layer learns from what passes through it, forward only."""

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack

import torch
import torch.distributed
from torch import Tensor, nn

from nissl.plasticity.rules import Rule
from nissl.plasticity.update import PLASTIC, Learning, Plastic, Transposed, accumulate


class Plasticity:
    """Hooks on the Linear, Conv and ConvTranspose layers of a network.

    Inside the `with` block no graph is built. Each forward pass adds to the updates of all layers at once; `step` hands
    their mean to any torch optimiser, as the negative gradient. Under several processes the updates are those of all
    processes' samples together, so N processes with batch B give what one process gives with batch N·B.

        with Plasticity(net, rule=HPCA(), exclude=("head",)) as plasticity:
            net(x)
            plasticity.step(optimizer)

    Args:
        net: any network; a layer that is used more than once in a forward pass sums what it sees.
        rule, unit_norm, transposed, samples: how the layers learn (see `nissl.plasticity.update.Learning`); `samples`
            are those of a batch, over all processes.
        exclude: names of modules that do not learn, with all that is inside them.

    Raises:
        ValueError: an excluded name is not in the network, or no layer is left to learn.

    """

    def __init__(
        self,
        net: nn.Module,
        rule: Rule,
        exclude: Collection[str] = (),
        unit_norm: bool = True,
        transposed: Transposed = "T",
        samples: int | None = None,
    ) -> None:
        self.layers = dict(plastic_layers(net, exclude))
        several = torch.distributed.is_available() and torch.distributed.is_initialized()
        all_reduce = torch.distributed.all_reduce if several else None
        processes = torch.distributed.get_world_size() if several else 1
        self._learning = Learning(rule, unit_norm, transposed, samples, processes, all_reduce)
        self._sums: dict[str, tuple[Tensor, int]] = {}
        self._inside = ExitStack()

    def __enter__(self) -> "Plasticity":
        self._inside.enter_context(torch.no_grad())
        for name, layer in self.layers.items():
            self._inside.enter_context(layer.register_forward_hook(self._hook(name)))
        return self

    def __exit__(self, *error: object) -> None:
        self._inside.close()

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Move the weights: the optimiser gets the negative mean update as gradient; the sums start anew.

        Raises:
            RuntimeError: no forward pass was made since the last step.
            FloatingPointError: an update holds NaN or infinity; no weight was changed.

        """
        self.gradient()
        optimizer.step()
        for layer in self.layers.values():
            layer.weight.grad = None

    def gradient(self) -> None:
        """Leave the negative mean update in the gradient of each weight; the sums start anew. Errors as of `step`."""
        if not self._sums:
            raise RuntimeError("run the network forward inside the `with` block before each step")
        deltas = {}
        for name in [name for name in self.layers if name in self._sums]:  # in one order in all processes
            total, samples = self._sums[name]
            count = total.new_tensor(float(samples))
            if self._learning.all_reduce is not None:
                self._learning.all_reduce(total)
                self._learning.all_reduce(count)
            deltas[name] = total.div_(-count)
        self._sums.clear()
        # One NaN would stay in the weights, and in an optimiser's averages, for good.
        totals = torch.stack([delta.sum().double() for delta in deltas.values()])  # a NaN or infinity stays in a sum
        if not bool(torch.isfinite(totals).all()):
            raise FloatingPointError("an update is not finite")
        for name, delta in deltas.items():
            weight = self.layers[name].weight
            weight.grad = delta.to(weight.dtype)

    @property
    def saw(self) -> bool:
        """Whether anything passed through a layer since the last step."""
        return bool(self._sums)

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def learn(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            total, samples = accumulate(layer, inputs[0], output, self._learning)
            if name in self._sums:
                before, count = self._sums[name]
                total, samples = total + before, samples + count
            self._sums[name] = total, samples

        return learn


def plastic_layers(net: nn.Module, exclude: Collection[str] = ()) -> Iterator[tuple[str, Plastic]]:
    """Name the layers that a rule can train, in order; a ValueError where `exclude` names no module, or all layers."""
    names = {name for name, _ in net.named_modules()}
    if unknown := sorted(set(exclude) - names):
        raise ValueError(f"no module named {', '.join(unknown)}; there are {', '.join(sorted(names - {''}))}")
    layers = [
        (name, module)
        for name, module in net.named_modules()
        if isinstance(module, PLASTIC) and not any(name == out or name.startswith(f"{out}.") for out in exclude)
    ]
    if not layers:
        raise ValueError("the network has no Linear, Conv or ConvTranspose layer that may learn")
    return iter(layers)
