"""Settings of the pre-trainings, which learn from images only, and their registry."""

from dataclasses import dataclass
from typing import Annotated, Literal

from nissl.members import Members, Settings, require, short

Layers = Annotated[Literal["auto", "all", "encoder", "decoder"], short("layers")]


@dataclass(frozen=True)
class PretrainSettings(Settings):
    """Learning from the images only, before the masks are learnt from."""

    name: Annotated[str, short("pretrain")]
    """`none`, `hebbian`, or one of its controls: `untrained` (the same hand-over of filters that have learnt nothing),
    `shuffled` (trained filters with their entries shuffled), `unit-norm` (filters kept at unit norm, nothing else),
    `warm` (normalisation statistics only). `vae` (reconstruction) and `superpixel` (pseudo-masks) back-propagate."""


@dataclass(frozen=True)
class NoPretraining(PretrainSettings):
    """Start from the initialised network."""

    name: Annotated[str, short("pretrain")] = "none"


@dataclass(frozen=True)
class UnitNorm(PretrainSettings):
    """Control: filters kept at unit norm, without any learning."""

    name: Annotated[str, short("pretrain")] = "unit-norm"
    layers: Layers = "auto"
    """Whose filters: `auto` takes the decoder where the network has one, otherwise all."""


@dataclass(frozen=True)
class Stepped(PretrainSettings):
    """A pre-training that makes steps."""

    steps: int = 300
    """Number of steps."""
    batch: int = 8
    """Images in a step."""

    def __post_init__(self) -> None:
        require(self.steps >= 1, "pretrain.steps", self.steps, "1 or more")
        require(self.batch >= 1, "pretrain.batch", self.batch, "1 or more")


@dataclass(frozen=True)
class Warm(Stepped):
    """Control: the normalisation statistics see the images, the weights stay as initialised."""

    name: Annotated[str, short("pretrain")] = "warm"


@dataclass(frozen=True)
class Learning(Stepped):
    """A pre-training that changes weights."""

    layers: Layers = "auto"
    """Which layers learn. `auto`: with a Hebbian rule and its controls those of the decoder, where the network has one
    (docs/results/few-labels.md says why); otherwise all."""
    fine_tuning_rate: float = 1.0
    """Learning rate afterwards of what was pre-trained, as a fraction of that of the rest. Copies of it that a method
    adds, such as the auxiliary decoders of `cct`, learn as the rest does."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.fine_tuning_rate >= 0, "pretrain.fine_tuning_rate", self.fine_tuning_rate, "0 or more")


@dataclass(frozen=True)
class Hebbian(Learning):
    """Every layer learns by a Hebbian rule from what passes through it."""

    name: Annotated[str, short("pretrain")] = "hebbian"
    rule: Annotated[Literal["swta", "hpca", "softhebb", "oja", "hebb"], short("rule")] = "hpca"
    """Which Hebbian rule."""
    response: Literal["auto", "linear", "centred", "rectified"] = "auto"
    """What a rule takes as the response of a filter: the `linear` one, that about its mean over the images (`centred`),
    or, for HPCA, its positive part (`rectified`). `auto`: centred with HPCA, linear with the others."""
    order: Literal["together", "layer-wise"] = "together"
    """All layers learn `together`, or one after the other from the input on, each in its fraction of the steps."""
    whiten: bool = False
    """Show the pre-training images in which neighbouring pixels and channels are uncorrelated."""
    handover: Annotated[Literal["fold", "unit-norm"], short("handover")] = "fold"
    """`fold`: plain weights, rescaled to the norm of the initialisation; `unit-norm`: filters stay normalised
    while the masks are learnt."""
    transposed: Literal["T", "S", "T-summed"] = "T"
    """Form of the rule in transposed convolutions: one rule per kernel offset (`T`), its decay summed over the
    offsets (`T-summed`, the reference implementation), or input and output exchanged (`S`)."""
    optimiser: Literal["relative", "sgd", "adam"] = "relative"
    """`relative`: each layer moves by a fraction of its own norm."""
    rate: float = 0.02
    """Step size at the first step; falls linearly to zero. For `relative`, the fraction of the norm."""
    samples: int = 2048
    """Convolutions over large maps learn from evenly spaced positions, about this many in a step: patches side by side
    have most of their pixels in common. 0 learns from all positions."""
    inverse_temperature: float = 5.0
    """Sharpness of the competition in SWTA and SoftHebb, on responses divided by their standard deviation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        rectifies = self.response != "rectified" or self.rule == "hpca"
        require(rectifies, "pretrain.response", self.response, f"`auto`, `linear` or `centred` with {self.rule}")
        require(self.rate > 0, "pretrain.rate", self.rate, "more than 0")
        require(self.samples >= 0, "pretrain.samples", self.samples, "0 or more")
        require(self.inverse_temperature > 0, "pretrain.inverse_temperature", self.inverse_temperature, "more than 0")


@dataclass(frozen=True)
class Untrained(Hebbian):
    """Control: the same hand-over of the same filters, which have learnt nothing."""

    name: Annotated[str, short("pretrain")] = "untrained"


@dataclass(frozen=True)
class Shuffled(Hebbian):
    """Control: trained filters with the entries of each filter shuffled."""

    name: Annotated[str, short("pretrain")] = "shuffled"


@dataclass(frozen=True)
class Gradient(Learning):
    """A pre-training by back-propagation of a loss that needs no mask."""

    rate: float = 1e-3
    """Learning rate of Adam at the first step; falls linearly to zero."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.rate > 0, "pretrain.rate", self.rate, "more than 0")


@dataclass(frozen=True)
class VAE(Gradient):
    """Reconstruct the image: a variational auto-encoder (Kingma and Welling 2014)."""

    name: Annotated[str, short("pretrain")] = "vae"
    beta: float = 2.0
    """Weight of the divergence per value of the image, beside the mean square error. 2 makes of their sum, up to a
    constant, twice the negative evidence lower bound for a Gaussian decoder of variance 1: nothing is tuned."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.beta >= 0, "pretrain.beta", self.beta, "0 or more")


@dataclass(frozen=True)
class Superpixel(Gradient):
    """Predict how bright the superpixel of each pixel is."""

    name: Annotated[str, short("pretrain")] = "superpixel"
    groups: int = 4
    """Groups of brightness, which are the classes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.groups >= 2, "pretrain.groups", self.groups, "2 or more")


PRETRAININGS = Members(
    "pretrain",
    PretrainSettings,
    {
        NoPretraining: "nissl.pretrain.pretraining:Pretraining",
        UnitNorm: "nissl.pretrain.unit_norm:UnitNormControl",
        Warm: "nissl.pretrain.warm:Warm",
        Untrained: "nissl.pretrain.hebbian:Untrained",
        Shuffled: "nissl.pretrain.hebbian:Shuffled",
        Hebbian: "nissl.pretrain.hebbian:Hebbian",
        VAE: "nissl.pretrain.vae:VariationalAutoEncoder",
        Superpixel: "nissl.pretrain.superpixel:Superpixel",
    },
)
