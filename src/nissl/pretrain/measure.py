"""Did a layer learn anything? Measured on one batch, after the Hebbian stage."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nissl.plasticity import HPCA, Rule
from nissl.plasticity.rules import Competitive
from nissl.plasticity.update import TRANSPOSED

DEAD = 1e-4
"""A unit whose response varies no more than this fraction of its layer's mean variance is dead."""


@torch.no_grad()
def measure(net: nn.Module, layers: Mapping[str, nn.Module], batch: Tensor, rule: Rule) -> list[dict[str, Any]]:
    """Return a row per layer: name, units, sparsity, dead_units, variance_explained.

    - sparsity: Treves and Rolls (1991), 1 - mean(|y|)^2 / mean(y^2) over units, averaged over positions: 0 where all
      respond alike, near 1 where one does.
    - dead_units: under competition, units that win no position; else, units whose response hardly varies. In a layer
      that the network does not use, all.
    - variance_explained, for HPCA: fraction of the summed squares of the input patches that lies in the span of the
      filters; None otherwise, and in transposed layers.
    """
    rows: dict[str, dict[str, Any]] = {}
    for name, layer in layers.items():
        units = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
        rows[name] = {"name": name, "units": units, "sparsity": 0.0, "dead_units": units, "variance_explained": None}

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def look(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            y = _responses(layer, output)
            rows[name] |= {
                "sparsity": _sparsity(y),
                "dead_units": _dead(y, rule),
                "variance_explained": _explained(layer, inputs[0], y) if isinstance(rule, HPCA) else None,
            }

        return look

    with ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.enter_context(layer.register_forward_hook(hook(name)))
        net(batch)
    return list(rows.values())


def _responses(layer: nn.Module, output: Tensor) -> Float[Tensor, "batch units *space"]:
    """Return what the rule sees: the units second, also in a linear layer, and without the bias."""
    y = output.reshape(-1, output.shape[-1]) if isinstance(layer, nn.Linear) else output
    bias = layer.bias
    return y - bias.view(-1, *[1] * (y.ndim - 2)) if isinstance(bias, Tensor) else y


def _sparsity(y: Float[Tensor, "batch units *space"]) -> float:
    squares = y.square().mean(1)
    lost = y.abs().mean(1).square() / torch.where(squares > 0, squares, 1.0)
    return float(1 - lost.mean())


def _dead(y: Float[Tensor, "batch units *space"], rule: Rule) -> int:
    if rule.centred:
        y = y - y.mean([axis for axis in range(y.ndim) if axis != 1], keepdim=True)
    if isinstance(rule, Competitive):
        return y.shape[1] - int(torch.unique(y.argmax(1)).numel())
    variance = y.movedim(1, 0).flatten(1).var(1)
    return int((variance <= DEAD * variance.mean()).sum())


def _explained(layer: nn.Module, x: Tensor, y: Float[Tensor, "batch units *space"]) -> float | None:
    """Sum of squares of the patches' projections on the span of the filters, over that of the patches."""
    if isinstance(layer, TRANSPOSED) or getattr(layer, "groups", 1) != 1:
        return None
    assert isinstance(layer.weight, Tensor)
    filters = layer.weight.flatten(1).double()
    responses = y.movedim(1, 0).flatten(1).double()
    gram = responses @ responses.T
    inside = torch.trace(torch.linalg.pinv(filters @ filters.T) @ gram)
    if isinstance(layer, nn.Linear):
        total = x.double().square().sum()
    else:
        assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        # Each patch's sum of squares is the response of a filter of ones to the squared input.
        ones = torch.ones_like(layer.weight[:1])
        total = layer._conv_forward(x.square(), ones, None).double().sum()
    return float(inside / total)
