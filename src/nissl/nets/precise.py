"""3-D convolutions that stay exact on a CPU in mixed precision."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

SMALL = 4
"""Maps of at most so many voxels along an axis are computed in float32."""


class PreciseConvolution(nn.Conv3d):
    """A 3-D convolution that leaves bfloat16 on a CPU where its input is small.

    There torch 2.13's backward pass of a 3x3x3 kernel is, on some processors, neither reproducible nor always finite:
    with maps of 2x2x2, gradients of norm 8e12 were seen. Small maps cost next to nothing in float32.
    """

    def forward(self, input: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch channels *space"]:
        """Convolve."""
        half = input.device.type == "cpu" and torch.is_autocast_enabled("cpu")
        if not half or min(input.shape[2:]) > SMALL:
            return super().forward(input)
        with torch.autocast("cpu", enabled=False):
            return super().forward(input.float())


def make_precise(net: nn.Module) -> nn.Module:
    """Turn the 3-D convolutions of a network, in place, into those of this module; its state dict stays."""
    for module in net.modules():
        if type(module) is nn.Conv3d:
            module.__class__ = PreciseConvolution
    return net
