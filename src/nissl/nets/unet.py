"""The U-Net, in 2-D and 3-D by the same code: encoder, decoder and head, whose features other modules can tap."""

from collections.abc import Callable
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nissl.nets import settings

Features = list[Float[Tensor, "batch channels *space"]]

CONVOLUTION: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, type[nn.ConvTranspose2d] | type[nn.ConvTranspose3d]] = {
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}
NORMALISATION: dict[int, type[nn.BatchNorm2d] | type[nn.BatchNorm3d]] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
POOLING: dict[int, type[nn.MaxPool2d] | type[nn.MaxPool3d]] = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
LINEAR_MODE = {2: "bilinear", 3: "trilinear"}
ACTIVATION: dict[str, Callable[[], nn.Module]] = {
    "leaky-relu": lambda: nn.LeakyReLU(0.01, inplace=True),
    "relu": lambda: nn.ReLU(inplace=True),
    "silu": lambda: nn.SiLU(inplace=True),
}


class Block(nn.Sequential):
    """Two times convolution, normalisation and activation, with dropout between; the spatial size stays."""

    def __init__(self, dims: int, in_channels: int, out_channels: int, activation: str, dropout: float = 0.0) -> None:
        super().__init__(
            CONVOLUTION[dims](in_channels, out_channels, 3, padding=1, bias=False),
            NORMALISATION[dims](out_channels),
            ACTIVATION[activation](),
            nn.Dropout(dropout),
            CONVOLUTION[dims](out_channels, out_channels, 3, padding=1, bias=False),
            NORMALISATION[dims](out_channels),
            ACTIVATION[activation](),
        )


class Encoder(nn.Module):
    """Blocks with max-pooling between them."""

    def __init__(self, dims: int, in_channels: int, config: settings.UNet) -> None:
        super().__init__()
        levels = zip(pairwise((in_channels, *config.widths)), config.dropout, strict=True)
        self.blocks = nn.ModuleList(Block(dims, a, b, config.activation, p) for (a, b), p in levels)
        self.pool = POOLING[dims](2)

    def forward(self, images: Float[Tensor, "batch channels *space"]) -> Features:
        """Return the features of each level, the finest first."""
        features: Features = []
        for level, block in enumerate(self.blocks):
            features.append(block(self.pool(features[-1]) if level else images))
        return features


class Decoder(nn.Module):
    """Doubles the resolution level by level; each level also sees the encoder's features of its size."""

    def __init__(self, dims: int, config: settings.UNet) -> None:
        super().__init__()
        steps = list(pairwise(reversed(config.widths)))
        self.ups = nn.ModuleList(_up(dims, coarse, fine, config.upsampling) for coarse, fine in steps)
        self.blocks = nn.ModuleList(Block(dims, 2 * fine, fine, config.activation) for _, fine in steps)

    def forward(self, features: Features) -> Features:
        """Return the features of each level, the finest last."""
        outputs = [features[-1]]
        for up, block, skip in zip(self.ups, self.blocks, reversed(features[:-1]), strict=True):
            outputs.append(block(torch.cat([skip, up(outputs[-1])], dim=1)))
        return outputs


def _up(dims: int, in_channels: int, out_channels: int, upsampling: str) -> nn.Module:
    if upsampling == "transposed":
        return TRANSPOSED[dims](in_channels, out_channels, 2, stride=2, bias=False)
    return nn.Sequential(
        CONVOLUTION[dims](in_channels, out_channels, 1, bias=False),
        nn.Upsample(scale_factor=2, mode=LINEAR_MODE[dims], align_corners=False),
    )


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015) with the block of Ciampi et al. 2024 and real transposed convolutions.

    No layer but the head has a bias: each convolution is followed by BatchNorm, and a filter without bias is what
    a Hebbian rule learns.

    Raises:
        ValueError: (forward) the spatial size is not a multiple of `multiple`.

    """

    def __init__(self, dims: int, in_channels: int, classes: int, config: settings.UNet) -> None:
        super().__init__()
        self.encoder = Encoder(dims, in_channels, config)
        self.decoder = Decoder(dims, config)
        self.head = CONVOLUTION[dims](config.widths[0], classes, 1)
        self.multiple = 2 ** (len(config.widths) - 1)
        self.apply(_initialise)

    def forward(self, images: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch classes *space"]:
        """Return logits of the images' spatial size."""
        if any(size % self.multiple for size in images.shape[2:]):
            padded = tuple(-(-size // self.multiple) * self.multiple for size in images.shape[2:])
            raise ValueError(f"input of size {tuple(images.shape[2:])}: pad it to {padded}")
        logits: Tensor = self.head(self.decoder(self.encoder(images))[-1])
        return logits


def _initialise(module: nn.Module) -> None:
    """Kaiming normal by the true fan-in; a transposed 2x2 stride-2 layer has fan-in `in_channels` and is linear."""
    if isinstance(module, nn.Conv2d | nn.Conv3d):
        nn.init.kaiming_normal_(module.weight, a=0.01)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.ConvTranspose2d | nn.ConvTranspose3d):
        nn.init.normal_(module.weight, std=module.in_channels**-0.5)
