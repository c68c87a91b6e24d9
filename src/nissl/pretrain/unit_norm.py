"""Filters of unit norm, as a parametrisation that training keeps: also the control without any learning."""

from collections.abc import Collection, Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from nissl.plasticity import plastic_layers
from nissl.plasticity.update import TRANSPOSED, Plastic, Transposed, filter_norms
from nissl.pretrain.pretraining import Partial


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
            return filter_norms(weight, range(1, weight.ndim))
        grouped = weight.view(self.groups, -1, *weight.shape[1:])
        norms = filter_norms(grouped, (1, *range(3, grouped.ndim)))
        return norms.expand(-1, grouped.shape[1], *norms.shape[2:]).flatten(0, 1)

    def forward(self, weight: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return filters of norm 1; a filter of zeros stays."""
        return weight / self.norms(weight)

    def right_inverse(self, weight: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return the raw weight for an assigned one."""
        return weight


@torch.no_grad()
def normalise(layers: Iterable[Plastic], transposed: Transposed = "T") -> None:
    """Bring the filters that a rule reads to unit norm, in place.

    In transposed layers the reading says what a filter is: an output channel at one kernel offset (`T`), an output
    channel with all its offsets, whose decay is shared (`T-summed`), or an input channel (`S`). What Sanger's rule
    takes away for the units before, w w^T x, is the projection on them for filters of norm 1 alone: with shorter ones
    all units go to the first component.
    """
    for layer in layers:
        weight = layer.weight
        if not isinstance(layer, TRANSPOSED) or transposed == "T-summed":
            norms = UnitNorm(layer).norms(weight)
        elif transposed == "S":
            norms = filter_norms(weight, range(1, weight.ndim))
        else:
            by_group = weight.view(layer.groups, -1, *weight.shape[1:])
            norms = filter_norms(by_group, (1,)).expand_as(by_group).flatten(0, 1)
        weight.div_(norms)


def keep_unit_norm(net: nn.Module, still: Collection[str]) -> None:
    """Parametrise the layers by filters of unit norm, but for those in modules that hold `still`."""
    for _, layer in plastic_layers(net, still):
        parametrize.register_parametrization(layer, "weight", UnitNorm(layer))


class UnitNormControl(Partial):
    """The parametrisation alone, untrained: what of a gain is due to it and not to what was learnt."""

    PREFERRED = "decoder"

    def restructure(self) -> None:
        """Parametrise the network."""
        keep_unit_norm(self.net, self.excluded())
