"""Filters of unit norm, as a parametrisation that training keeps: also the control without any learning."""

from collections.abc import Collection, Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from nissl.plasticity import plastic_layers
from nissl.plasticity.update import TRANSPOSED
from nissl.pretrain.pretraining import Pretraining


class UnitNorm(nn.Module):
    """Divide each filter by its norm.

    A filter is what one output channel reads: over inputs and kernel, also in transposed layers, whose weights are
    `(in, out / groups, *kernel)`.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.groups = int(layer.groups) if isinstance(layer, TRANSPOSED) else 0

    def norms(self, weight: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return each filter's norm, in a shape that divides the weight; 1 for a filter of zeros."""
        if not self.groups:
            norms = torch.linalg.vector_norm(weight, dim=tuple(range(1, weight.ndim)), keepdim=True)
        else:
            grouped = weight.view(self.groups, -1, *weight.shape[1:])
            norms = torch.linalg.vector_norm(grouped, dim=(1, *range(3, grouped.ndim)), keepdim=True)
            norms = norms.expand(-1, grouped.shape[1], *norms.shape[2:]).flatten(0, 1)
        return torch.where(norms > 0, norms, 1.0)

    def forward(self, weight: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return filters of norm 1; a filter of zeros stays."""
        return weight / self.norms(weight)

    def right_inverse(self, weight: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return the raw weight for an assigned one."""
        return weight


@torch.no_grad()
def normalise(layers: Iterable[nn.Module]) -> None:
    """Bring the filters of layers to unit norm, in place."""
    for layer in layers:
        assert isinstance(layer.weight, Tensor)
        layer.weight.div_(UnitNorm(layer).norms(layer.weight))


def keep_unit_norm(net: nn.Module, still: Collection[str]) -> None:
    """Parametrise the layers by filters of unit norm, but for those in modules that hold `still`."""
    for _, layer in plastic_layers(net, still):
        parametrize.register_parametrization(layer, "weight", UnitNorm(layer))


class UnitNormControl(Pretraining):
    """The parametrisation alone, untrained: what of a gain is due to it and not to what was learnt."""

    PREFERRED = "decoder"

    def restructure(self, net: nn.Module) -> None:
        """Parametrise the network."""
        keep_unit_norm(net, self.still(net))
