"""Settings of the networks, and their registry."""

from dataclasses import dataclass
from typing import Annotated, Literal

from nissl.members import Members, Settings, require, short


@dataclass(frozen=True)
class NetSettings(Settings):
    """What learns."""

    name: Annotated[str, short("net")]
    """`unet`, `vnet`, or any network by dotted path, such as `monai.networks.nets:BasicUNet`."""


@dataclass(frozen=True)
class UNet(NetSettings):
    """The U-Net (Ronneberger et al. 2015)."""

    name: Annotated[str, short("net")] = "unet"
    widths: Annotated[tuple[int, ...], short("widths")] = (16, 32, 64, 128, 256)
    """Channels of each level, from the full resolution down."""
    dropout: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3, 0.5)
    """Dropout in each level of the encoder; as many numbers as widths."""
    upsampling: Literal["transposed", "linear"] = "transposed"
    """How the decoder doubles the resolution: 2x2(x2) transposed convolution, or linear interpolation."""
    activation: Literal["leaky-relu", "relu", "silu"] = "leaky-relu"
    """Between the layers; the leaky one has slope 0.01 below zero."""

    def __post_init__(self) -> None:
        widths, dropout = self.widths, self.dropout
        require(len(widths) >= 2, "net.widths", widths, "two levels or more")
        require(all(w > 0 for w in widths), "net.widths", widths, "positive numbers of channels")
        require(len(dropout) == len(widths), "net.dropout", dropout, f"{len(widths)} numbers, as widths")
        require(all(0 <= p < 1 for p in dropout), "net.dropout", dropout, "0 or more and below 1")


@dataclass(frozen=True)
class VNet(NetSettings):
    """The V-Net of MONAI (Milletari et al. 2016); the paper fixes its sizes."""

    name: Annotated[str, short("net")] = "vnet"


@dataclass(frozen=True)
class ForeignNet(NetSettings):
    """A network of another package, made by `(spatial_dims, in_channels, out_channels)`."""


NETWORKS = Members(
    "net",
    NetSettings,
    {UNet: "nissl.nets.unet:UNet", VNet: "nissl.nets.vnet:VNet"},
    foreign=ForeignNet,
)
