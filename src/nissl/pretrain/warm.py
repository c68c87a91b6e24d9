"""The control `warm`: the normalisation statistics see the images, the weights stay as they were initialised."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from nissl.pretrain.pretraining import Images, Pretraining, Report, require_finite


class Warm(Pretraining):
    """As many forward passes in training mode as the Hebbian stage has steps, without a change of weight."""

    @property
    def steps(self) -> int:
        """Forward passes."""
        return self.config.steps

    def learning(self, net: nn.Module) -> AbstractContextManager[object]:
        """Let the normalisation layers listen to what passes."""
        return listening(net)

    def learn(self, net: nn.Module, pieces: Sequence[Tensor]) -> str:
        """Pass a batch forward."""
        for piece in pieces:
            net(piece)
        require_finite("running statistics", list(net.buffers()))
        return ""

    def finish(self, net: nn.Module, images: Images) -> Report:
        """Count what was seen."""
        return Report(self.config.name, self.steps, self.seen)


@contextmanager
def listening(net: nn.Module) -> Iterator[None]:
    """Training mode without dropout and without a graph: normalisation layers take in what passes."""
    with without_dropout(net), torch.no_grad():
        yield


@contextmanager
def without_dropout(net: nn.Module) -> Iterator[None]:
    """Training mode, but for dropout; the mode of each module is put back."""
    before = {module: module.training for module in net.modules()}
    net.train()
    for module in net.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training
