"""Hebbian pre-training: every layer learns from what passes through it, without labels and without back-propagation.

All layers learn at once, or one after the other, from the responses before normalisation (Ciampi et al. 2024).
Filters are brought back to unit norm after each step, so that a response is a projection and the step size means the
same in every layer. Dropout is off; running statistics of the normalisation layers are updated on the way.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from nissl.config import PretrainConfig
from nissl.plasticity import HPCA, RULES, SWTA, Plasticity, RelativeStep, Rule, SoftHebb, plastic_layers
from nissl.pretrain.measure import measure
from nissl.pretrain.pretraining import Images, Pretraining, Report, buffers_kept, require_finite
from nissl.pretrain.unit_norm import keep_unit_norm, normalise
from nissl.pretrain.warm import listening
from nissl.pretrain.whitening import whitened

SETTLING = 20
"""Forward passes after folding, in which the normalisation statistics follow the new scale of the weights."""
OPTIMISERS = {"relative": RelativeStep, "sgd": torch.optim.SGD, "adam": torch.optim.Adam}


class Hebbian(Pretraining):
    """Stage 1 by a Hebbian rule; hands over plain weights, or filters that stay of unit norm."""

    PREFERRED = "decoder"

    @property
    def steps(self) -> int:
        """Hebbian steps."""
        return self.config.steps

    def restructure(self, net: nn.Module) -> None:
        """Parametrise the network where the filters are to stay of unit norm."""
        if self.config.handover == "unit-norm":
            keep_unit_norm(net, self.still(net))

    def begin(self, net: nn.Module) -> None:
        """Bring the filters to unit norm and remember what they were."""
        config = self.config
        self._layers = dict(plastic_layers(net, self.still(net)))
        self._scales = [torch.linalg.vector_norm(_weight(layer)) for layer in self._layers.values()]
        normalise(self._layers.values(), config.transposed)
        self._start = [_weight(layer).clone() for layer in self._layers.values()]
        self.optimiser = OPTIMISERS[config.optimiser]([_weight(layer) for layer in self._layers.values()], config.rate)

    def learning(self, net: nn.Module) -> AbstractContextManager[object]:
        """Let the normalisation layers listen to what passes."""
        return listening(net)

    def trained(self, net: nn.Module) -> list[nn.Parameter]:
        """The filters."""
        layers = dict(plastic_layers(net, self.still(net)))
        return [parameter for layer in layers.values() for parameter in layer.parameters()]

    def learn(self, net: nn.Module, pieces: Sequence[Tensor]) -> str:
        """Pass a batch forward, move the filters and bring them back to unit norm.

        Mean and standard deviation of the responses, where a rule takes them, are those of each piece.
        """
        config = self.config
        assert self.optimiser is not None
        still, left = self._turn(net)
        for group in self.optimiser.param_groups:
            group["lr"] = config.rate * left
        # The filters have unit norm already, so that the response need not be rescaled.
        samples = config.samples or None
        with Plasticity(net, make_rule(config), still, False, config.transposed, samples) as plasticity:
            for piece in pieces:
                net(whitened(piece) if config.whiten else piece)
            if plasticity.saw:  # a network may have a layer that it does not use, whose turn it is
                plasticity.step(self.optimiser)
        normalise(self._layers.values(), config.transposed)
        if not self.at_point:
            return ""
        change = _changes(self._layers.values(), self._start)
        self.curves.append({"step": self.done + 1, "change": change})
        return f"filters moved by {sum(change) / len(change):.2f} of their norm"

    def _turn(self, net: nn.Module) -> tuple[tuple[str, ...], float]:
        """Name the modules that do not learn in this step, and the share of the step size that is left."""
        still = self.still(net)
        if self.config.order == "together":
            return still, 1 - self.done / self.config.steps
        at = self.done * len(self._layers) / self.config.steps
        others = [name for index, name in enumerate(self._layers) if index != int(at)]
        return (*still, *others), 1 - at % 1

    def finish(self, net: nn.Module, images: Images) -> Report:
        """Measure what was learnt, then hand over."""
        config, layers = self.config, self._layers
        self._alter(layers.values())
        with listening(net):
            batch = images[config.steps].chunk(self.parts)[0].nan_to_num(0.0, 0.0, 0.0)  # images have mean 0
            batch = whitened(batch) if config.whiten else batch
            measures = measure(net, layers, batch, make_rule(config))
        changes = _changes(layers.values(), self._start)
        if config.handover == "fold":
            for layer, scale in zip(layers.values(), self._scales, strict=True):
                with torch.no_grad():
                    _weight(layer).mul_(scale / torch.linalg.vector_norm(_weight(layer)))
        self.restructure(net)
        with listening(net):
            for step in range(SETTLING):
                with suppress(FloatingPointError), buffers_kept(net):
                    for piece in images[step].chunk(self.parts):
                        net(piece)
                    require_finite("running statistics", list(net.buffers()))
        rows = [row | {"relative_change": change} for row, change in zip(measures, changes, strict=True)]
        return Report(config.name, config.steps, self.seen, config.rule, rows, self.curves)

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


class Untrained(Hebbian):
    """The control: the same hand-over of the same filters, which have learnt nothing."""

    def learn(self, net: nn.Module, pieces: Sequence[Tensor]) -> str:
        """Pass a batch forward, as `warm` does."""
        for piece in pieces:
            net(whitened(piece) if self.config.whiten else piece)
        require_finite("running statistics", list(net.buffers()))
        return ""


def make_rule(config: PretrainConfig) -> Rule:
    """Make the rule of the settings; competition is between responses divided by their standard deviation."""
    kind = RULES[config.rule]
    centred = config.response == "centred" or (config.response == "auto" and kind is HPCA)
    if kind in (SWTA, SoftHebb):
        return kind(inverse_temperature=config.inverse_temperature, standardise=True, centred=centred)
    if config.response == "rectified":
        return HPCA(rectified=True)
    return kind(centred=centred)


@torch.no_grad()
def _changes(layers: Any, start: Sequence[Tensor]) -> list[float]:
    return [
        float(torch.linalg.vector_norm(_weight(layer) - before) / torch.linalg.vector_norm(before))
        for layer, before in zip(layers, start, strict=True)
    ]


def _weight(layer: nn.Module) -> Tensor:
    assert isinstance(layer.weight, Tensor)
    return layer.weight
