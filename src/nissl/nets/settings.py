"""Settings of the networks, and their registry."""

from dataclasses import dataclass
from typing import Annotated, Literal

from nissl.members import Members, Settings, require, short


class FromWidths(tuple[float, ...]):
    """Numbers that nobody has stated: they follow from how many widths there are."""


DROPOUT = FromWidths((0.05, 0.1, 0.2, 0.3, 0.5))


def dropout_of(levels: int) -> FromWidths:
    """Return the dropout of so many levels, two or more: that of five, read off at even distances between its ends.

    Between two of the five numbers it is interpolated linearly, and rounded to three decimals: two levels have 0.05 and
    0.5, three 0.05, 0.2 and 0.5, four 0.05, 0.133, 0.267 and 0.5.
    """
    found = []
    for level in range(levels):
        place = level * (len(DROPOUT) - 1) / (levels - 1)
        below = min(int(place), len(DROPOUT) - 2)
        found.append(round(DROPOUT[below] + (place - below) * (DROPOUT[below + 1] - DROPOUT[below]), 3))
    return FromWidths(found)


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
    dropout: tuple[float, ...] = DROPOUT
    """Dropout in each level of the encoder; as many numbers as widths. Where it is not stated it follows from how many
    widths there are."""
    upsampling: Literal["transposed", "linear"] = "transposed"
    """How the decoder doubles the resolution: 2x2(x2) transposed convolution, or linear interpolation."""
    activation: Literal["leaky-relu", "relu", "silu"] = "leaky-relu"
    """Between the layers; the leaky one has slope 0.01 below zero."""

    def __post_init__(self) -> None:
        widths = self.widths
        require(len(widths) >= 2, "net.widths", widths, "two levels or more")
        require(all(w > 0 for w in widths), "net.widths", widths, "positive numbers of channels")
        if isinstance(self.dropout, FromWidths):
            object.__setattr__(self, "dropout", dropout_of(len(widths)))
        dropout = self.dropout
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
