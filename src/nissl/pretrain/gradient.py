"""What the pre-trainings by back-propagation have in common: a loss that needs no mask, and layers beside the network.

They are the comparators of the Hebbian one, and as there dropout is off: what is drawn depends on the seed, the step
and the image only, so that a batch in parts or over several processes learns what it does as a whole.
"""

from typing import Any

import torch
from torch import nn

from nissl.nets.factory import parts
from nissl.pretrain.pretraining import Partial
from nissl.pretrain.settings import Gradient


class BackPropagation(Partial):
    """Pre-training by the gradient of `losses`; a subclass states these, and the layers that they need.

    The loop follows it by Adam, with a learning rate that falls linearly to zero, as in the published comparators
    (Ciampi et al. 2024). The network needs an encoder, a decoder and a head; the head takes no part.
    """

    def __init__(self, net: nn.Module, settings: Gradient, seed: int = 0) -> None:
        super().__init__(net, settings, seed)
        self.encoder_decoder_head()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            made = self.layers()
        # Layers that learn in this stage only; on the device and in the precision of the network.
        self.extra = made.to(self.trained_of_the_network()[0])

    @classmethod
    def resolved(cls, settings: Any, net: nn.Module) -> Any:
        """Fill in the layers, and refuse a network without encoder, decoder and head."""
        parts(net, f"--pretrain {settings.name}")
        return super().resolved(settings, net)

    def encoder_decoder_head(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        """Return the parts of the network."""
        return parts(self.net, f"--pretrain {self.settings.name}")

    def layers(self) -> nn.Module:
        """Make the layers that the stage needs beside the network."""
        raise NotImplementedError(f"{type(self).__name__} states no layers")

    def trained_of_the_network(self) -> list[nn.Parameter]:
        """Return what is trained of the network: all of the parts that learn."""
        excluded = tuple(f"{name}." for name in self.excluded())
        return [parameter for name, parameter in self.net.named_parameters() if not name.startswith(excluded)]

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Return one group, without decay."""
        return [{"params": self.trained(), "weight_decay": 0.0, "share": 1.0}]

    def trained(self) -> list[nn.Parameter]:
        """Return what learns of the network, and the layers beside it."""
        return [*self.trained_of_the_network(), *self.extra.parameters()]
