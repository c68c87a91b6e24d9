"""A step size that means the same in every layer and for every rule."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from nissl.optimisers import without_compiler


@without_compiler
class RelativeStep(torch.optim.Optimizer):
    """Move each parameter against its gradient by the fraction `lr` of its own norm.

    w <- w - lr ||w|| g / ||g||, so that neither the scale of the rule nor the size of the batch matters. A parameter
    with zero gradient stays.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Move all parameters that have a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                length = torch.linalg.vector_norm(parameter.grad)
                reach = group["lr"] * torch.linalg.vector_norm(parameter)
                parameter.addcmul_(parameter.grad, torch.where(length > 0, reach / length, 0.0), value=-1)
