"""Hebbian pre-training: every layer learns from what passes through it, without labels and without back-propagation.

All layers learn at once, or one after the other, from the responses before normalisation (Ciampi et al. 2024).
Filters are brought back to unit norm after each step, so that a response is a projection and the step size means the
same in every layer. Dropout is off; running statistics of the normalisation layers are updated on the way.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nissl import optimisers
from nissl.config import TrainConfig
from nissl.data.batches import Batch
from nissl.learner import put_back
from nissl.plasticity import HPCA, RULES, Plasticity, RelativeStep, Rule, plastic_layers
from nissl.plasticity.rules import Competitive
from nissl.plasticity.update import TRANSPOSED
from nissl.pretrain import settings
from nissl.pretrain.measure import measure
from nissl.pretrain.pretraining import Partial, at_point, follow_statistics
from nissl.pretrain.unit_norm import keep_unit_norm, normalise
from nissl.pretrain.whitening import whitened

SETTLING = 20
"""Forward passes after folding, in which the normalisation statistics follow the new scale of the weights."""
Optimiser = Callable[..., torch.optim.Optimizer]
OPTIMISERS: dict[str, Optimiser] = {"relative": RelativeStep, "sgd": optimisers.SGD, "adam": optimisers.Adam}


class Hebbian(Partial):
    """Learn by a Hebbian rule; hand over plain weights, or filters that stay of unit norm."""

    local = True
    PREFERRED = "decoder"

    def __init__(self, net: nn.Module, settings: settings.Hebbian, seed: int = 0) -> None:
        super().__init__(net, settings, seed)
        # Filters of unit norm, and what they were before and at the start.
        self._layers = dict(plastic_layers(net, self.excluded()))
        self._scales = [torch.linalg.vector_norm(layer.weight) for layer in self._layers.values()]
        if self.steps:
            normalise(self._layers.values(), settings.transposed)
        self._start = [layer.weight.clone() for layer in self._layers.values()]

    @classmethod
    def resolved(cls, settings: Any, net: nn.Module) -> Any:
        """Fill in layers and response."""
        response = settings.response
        if response == "auto":
            response = "centred" if settings.rule == "hpca" else "linear"
        return dataclasses.replace(super().resolved(settings, net), response=response)

    def restructure(self) -> None:
        """Parametrise the network where the filters are to stay of unit norm."""
        if self.settings.handover == "unit-norm":
            keep_unit_norm(self.net, self.excluded())

    def trained_of_the_network(self) -> list[nn.Parameter]:
        """Return the filters in their final form."""
        return [parameter for layer in self._layers.values() for parameter in layer.parameters()]

    def optimiser(self, train: TrainConfig) -> torch.optim.Optimizer:
        """Make the optimiser that the settings name, over the filters alone."""
        weights = [layer.weight for layer in self._layers.values()]
        return OPTIMISERS[self.settings.optimiser](weights, self.settings.rate)

    def learning_rate(self, step: int, train: TrainConfig) -> float:
        """Fall linearly to zero: over all steps, or over those of the layer whose turn it is."""
        steps = self.settings.steps
        left = 1 - step / steps if self.settings.order == "together" else 1 - step * len(self._layers) / steps % 1
        return float(self.settings.rate * left)

    def learn(self, parts: Sequence[Batch], progress: float) -> dict[str, Any]:
        """Pass a batch forward and leave the negative update in the gradient of each filter.

        Mean and standard deviation of the responses, where a rule takes them, are those of each part.
        """
        options, step = self.settings, parts[0].step
        # The filters have unit norm already, so that the response need not be rescaled.
        rule, samples = make_rule(options), options.samples or None
        with Plasticity(self.net, rule, self._still(step), False, options.transposed, samples) as plasticity:
            for part in parts:
                self.net(self._seen(part))
            if plasticity.saw:  # a network may have a layer that it does not use, whose turn it is
                plasticity.gradient()
        return {}

    def after_step(self) -> None:
        """Bring the filters back to unit norm."""
        normalise(self._layers.values(), self.settings.transposed)

    def progress_facts(self, step: int) -> dict[str, Any]:
        """Return how far each layer has moved, in units of its norm, at the points of the curves."""
        return {"change": self._changes()} if at_point(step, self.steps) else {}

    @torch.no_grad()
    def _changes(self) -> list[float]:
        """How far each layer has moved, in units of its norm."""
        norm = torch.linalg.vector_norm
        pairs = zip(self._layers.values(), self._start, strict=True)
        return [float(norm(layer.weight - before) / norm(before)) for layer, before in pairs]

    def _seen(self, part: Batch) -> Tensor:
        return whitened(part.images) if self.settings.whiten else part.images

    def _still(self, step: int) -> tuple[str, ...]:
        """Name the modules that do not learn in a step."""
        if self.settings.order == "together":
            return self.excluded()
        turn = int(step * len(self._layers) / self.settings.steps)
        return (*self.excluded(), *(name for index, name in enumerate(self._layers) if index != turn))

    @torch.no_grad()
    def finish(self, serve: Callable[[int], Sequence[Batch]]) -> dict[str, Any]:
        """Measure what was learnt, then hand over."""
        options, layers = self.settings, self._layers
        self._alter()
        batch = serve(options.steps)[0].images.nan_to_num(0.0, 0.0, 0.0)  # images have mean 0
        batch = whitened(batch) if options.whiten else batch
        measures = measure(self.net, layers, batch, make_rule(options))
        changes = self._changes()
        if options.handover == "fold":
            for layer, scale in zip(layers.values(), self._scales, strict=True):
                layer.weight.mul_(scale / torch.linalg.vector_norm(layer.weight))
        self.restructure()
        self.train()
        for step in range(SETTLING):
            before = [buffer.clone() for buffer in self.net.buffers()]
            try:
                follow_statistics(self.net, (part.images for part in serve(step)))
            except FloatingPointError:  # a batch that is of no use
                put_back(self.net, before)
        rows = [row | {"relative_change": change} for row, change in zip(measures, changes, strict=True)]
        return self.facts(rule=options.rule, layers=rows)

    def _alter(self) -> None:
        """Change the trained filters; nothing here, the control does."""


class Shuffled(Hebbian):
    """The control: trained filters with the entries of each filter shuffled, so that only their values are left."""

    @torch.no_grad()
    def _alter(self) -> None:
        """Shuffle the entries of each filter."""
        generator = torch.Generator().manual_seed(self.seed)
        for layer in self._layers.values():
            weight = layer.weight
            for row in weight.movedim(1, 0) if isinstance(layer, TRANSPOSED) else weight:
                order = torch.randperm(row.numel(), generator=generator).to(row.device)
                row.copy_(row.flatten()[order].view_as(row))


class Untrained(Hebbian):
    """The control: the same hand-over of the same filters, which have learnt nothing."""

    def learn(self, parts: Sequence[Batch], progress: float) -> dict[str, Any]:
        """Pass a batch forward, as `warm` does."""
        follow_statistics(self.net, map(self._seen, parts))
        return {}

    def after_step(self) -> None:
        """Leave the filters as they are."""

    def progress_facts(self, step: int) -> dict[str, Any]:
        """Nothing has moved."""
        return {}


def make_rule(options: settings.Hebbian) -> Rule:
    """Make the rule of the settings; competition is between responses divided by their standard deviation."""
    kind = RULES[options.rule]
    centred = options.response == "centred" or (options.response == "auto" and kind is HPCA)
    if issubclass(kind, Competitive):
        return kind(inverse_temperature=options.inverse_temperature, standardise=True, centred=centred)
    if options.response == "rectified":
        return HPCA(rectified=True)
    return kind(centred=centred)
