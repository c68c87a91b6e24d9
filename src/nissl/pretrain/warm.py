"""The control `warm`: the normalisation statistics see the images, the weights stay as they were initialised."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from nissl.pretrain.pretraining import Images, Pretraining, Report


class Warm(Pretraining):
    """As many forward passes in training mode as the Hebbian stage makes, without a change of weight."""

    @property
    def steps(self) -> int:
        """Forward passes."""
        return self.config.steps

    def run(self, net: nn.Module, images: Images) -> Report:
        """Update the running statistics of the normalisation layers."""
        seen = 0
        with listening(net):
            for step in range(self.config.steps):
                batch = images[step]
                net(batch)
                seen += len(batch)
                self.advance("")
        return Report(self.config.name, self.config.steps, seen)


@contextmanager
def listening(net: nn.Module) -> Iterator[None]:
    """Training mode without dropout and without a graph: normalisation layers take in what passes."""
    before = {module: module.training for module in net.modules()}
    net.train()
    for module in net.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in before.items():
            module.training = training
