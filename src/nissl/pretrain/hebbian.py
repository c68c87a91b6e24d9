"""Hebbian pre-training: every layer learns from what passes through it, without labels and without back-propagation.

All layers learn at once, from the responses before normalisation (Ciampi et al. 2024). Filters are brought back to
unit norm after each step, so that a response is a projection and the step size means the same in every layer. Dropout
is off; running statistics of the normalisation layers are updated on the way.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nissl.config import PretrainConfig
from nissl.plasticity import RULES, SWTA, Plasticity, RelativeStep, Rule, SoftHebb, plastic_layers
from nissl.pretrain.measure import measure
from nissl.pretrain.pretraining import Images, Pretraining, Report, excluded
from nissl.pretrain.unit_norm import keep_unit_norm, normalise
from nissl.pretrain.warm import listening

POINTS = 50
"""Points of the curves."""
SETTLING = 20
"""Forward passes after folding, in which the normalisation statistics follow the new scale of the weights."""
OPTIMISERS = {"relative": RelativeStep, "sgd": torch.optim.SGD, "adam": torch.optim.Adam}


class Hebbian(Pretraining):
    """Stage 1 by a Hebbian rule; hands over plain weights, or filters that stay of unit norm."""

    @property
    def steps(self) -> int:
        """Hebbian steps."""
        return self.config.steps

    def restructure(self, net: nn.Module) -> None:
        """Parametrise the network where the filters are to stay of unit norm."""
        if self.config.handover == "unit-norm":
            keep_unit_norm(net, self.config.layers)

    def run(self, net: nn.Module, images: Images) -> Report:
        """Train the chosen layers, then hand over."""
        layers = dict(plastic_layers(net, excluded(net, self.config.layers)))
        scales = [torch.linalg.vector_norm(_weight(layer)) for layer in layers.values()]
        normalise(layers.values())
        with listening(net):
            curves, seen = self._learn(net, layers, images)
            measures = measure(net, layers, images[self.config.steps], make_rule(self.config))
        self._alter(layers.values())
        if self.config.handover == "fold":
            for layer, scale in zip(layers.values(), scales, strict=True):
                with torch.no_grad():
                    _weight(layer).mul_(scale / torch.linalg.vector_norm(_weight(layer)))
        self.restructure(net)
        with listening(net):
            for step in range(SETTLING):
                net(images[step])
        changes = curves[-1]["change"]
        rows = [row | {"relative_change": change} for row, change in zip(measures, changes, strict=True)]
        return Report(self.config.name, self.config.steps, seen, self.config.rule, rows, curves)

    def _learn(self, net: nn.Module, layers: dict[str, nn.Module], images: Images) -> tuple[list[dict[str, Any]], int]:
        """Make the steps; return the curves and the number of images seen."""
        config = self.config
        start = [_weight(layer).clone() for layer in layers.values()]
        optimiser = OPTIMISERS[config.optimiser]([_weight(layer) for layer in layers.values()], lr=config.rate)
        curves: list[dict[str, Any]] = []
        seen = 0
        names = excluded(net, config.layers)
        # The filters have unit norm already, so that the response need not be rescaled.
        options: Any = {"unit_norm": False, "transposed": config.transposed, "samples": config.samples or None}
        with Plasticity(net, make_rule(config), names, **options) as plasticity:
            for step in range(config.steps):
                for group in optimiser.param_groups:
                    group["lr"] = config.rate * (1 - step / config.steps)
                batch = images[step]
                net(batch)
                plasticity.step(optimiser)
                normalise(layers.values())
                seen += len(batch)
                if (step + 1) % max(1, config.steps // POINTS) == 0 or step + 1 == config.steps:
                    change = _changes(layers.values(), start)
                    curves.append({"step": step + 1, "change": change})
                    self.advance(f"filters moved by {sum(change) / len(change):.2f} of their norm")
                else:
                    self.advance("")
        return curves, seen

    def _alter(self, layers: Any) -> None:
        """Change the trained filters; nothing here, the control does."""


class Shuffled(Hebbian):
    """The control: trained filters with the entries of each filter shuffled, so that only their values are left."""

    def _alter(self, layers: Any) -> None:
        """Shuffle the entries of each filter."""
        generator = torch.Generator().manual_seed(self.seed)
        for layer in layers:
            weight = _weight(layer)
            with torch.no_grad():
                by_filter = weight.movedim(1, 0) if getattr(layer, "transposed", False) else weight
                for row in by_filter:
                    order = torch.randperm(row.numel(), generator=generator).to(row.device)
                    row.copy_(row.flatten()[order].view_as(row))


def make_rule(config: PretrainConfig) -> Rule:
    """Make the rule of the settings; competition is between responses divided by their standard deviation."""
    kind = RULES[config.rule]
    if kind in (SWTA, SoftHebb):
        return kind(inverse_temperature=config.inverse_temperature, standardise=True)
    return kind()


def _changes(layers: Any, start: Sequence[Tensor]) -> list[float]:
    return [
        float(torch.linalg.vector_norm(_weight(layer) - before) / torch.linalg.vector_norm(before))
        for layer, before in zip(layers, start, strict=True)
    ]


def _weight(layer: nn.Module) -> Tensor:
    assert isinstance(layer.weight, Tensor)
    return layer.weight
