"""Settings of the methods, which learn from few masks, and their registry."""

from dataclasses import dataclass
from typing import Annotated, Literal

from nissl.members import Members, Settings, require, short

Loss = Literal["dice+cross-entropy", "dice"]


@dataclass(frozen=True)
class MethodSettings(Settings):
    """How the few masks, and the unlabelled images, are learnt from."""

    name: Annotated[str, short("method")]
    """`supervised` learns from labelled images only; `entropy`, `mean-teacher`, `uamt`, `cps`, `urpc`, `cct`, `dtc`,
    `unimatch` and `bcp` also from unlabelled images."""
    loss: Loss = "dice+cross-entropy"
    """How a prediction is compared with a mask, and with a pseudo-label where the method takes it for a mask."""


@dataclass(frozen=True)
class Supervised(MethodSettings):
    """Learn from the labelled images only: the baseline."""

    name: Annotated[str, short("method")] = "supervised"


@dataclass(frozen=True)
class Weighted(MethodSettings):
    """A method with terms that need no masks."""

    weight: float = 1.0
    """Weight of the terms that need no masks, once it has risen."""

    def __post_init__(self) -> None:
        require(self.weight >= 0, "method.weight", self.weight, "0 or more")
        if isinstance(self, Ramped):
            require(0 <= self.ramp <= 1, "method.ramp", self.ramp, "a fraction from 0 to 1")
        decay = getattr(self, "decay", 0.0)
        require(0 <= decay < 1, "method.decay", decay, "0 or more and below 1")


@dataclass(frozen=True)
class Ramped(Weighted):
    """A method whose weight of the terms without masks rises during the training."""

    ramp: float = 0.4
    """Fraction of the steps over which the weight rises."""
    ramp_shape: Literal["gaussian", "linear"] = "gaussian"
    """How it rises: `gaussian` from a hundredth of it, slowly at first, or `linear` from nothing."""


@dataclass(frozen=True)
class Entropy(Ramped):
    """Low entropy of the predictions on unlabelled images (Grandvalet and Bengio 2004)."""

    name: Annotated[str, short("method")] = "entropy"
    weight: float = 0.2
    """Weight of the entropy. Luo (2020, SSL4MIS): 0.1 beside (Dice + cross-entropy) / 2, hence 0.2 beside their sum."""


@dataclass(frozen=True)
class MeanTeacher(Ramped):
    """Agreement with an averaged teacher (Tarvainen and Valpola 2017)."""

    name: Annotated[str, short("method")] = "mean-teacher"
    weight: float = 0.2
    """Weight of the agreement. Yu et al. (2019): 0.1 beside (Dice + cross-entropy) / 2, hence 0.2 beside their sum."""
    decay: float = 0.99
    """Decay of the averaged teacher."""


@dataclass(frozen=True)
class UAMT(MeanTeacher):
    """Agreement with an averaged teacher where it is certain (Yu et al. 2019)."""

    name: Annotated[str, short("method")] = "uamt"
    passes: int = 8
    """Passes of the teacher by which its uncertainty is measured."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.passes >= 1, "method.passes", self.passes, "1 or more")


@dataclass(frozen=True)
class CPS(Ramped):
    """Cross pseudo supervision of two networks (Chen et al. 2021)."""

    name: Annotated[str, short("method")] = "cps"
    weight: float = 1.5
    """Weight of the other network's labels: the smaller of the paper's two (1.5 for PASCAL VOC, 6 for Cityscapes)."""


@dataclass(frozen=True)
class URPC(Ramped):
    """Uncertainty-rectified pyramid consistency (Luo et al. 2021)."""

    name: Annotated[str, short("method")] = "urpc"
    weight: float = 0.2
    """Weight of the consistency: 0.1 in the paper, beside half the sum of Dice and cross-entropy; ours is the sum."""
    scales: int = 4
    """The finest levels of the decoder that predict; a shallow network has fewer, its bottleneck included."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.scales >= 2, "method.scales", self.scales, "2 or more")


@dataclass(frozen=True)
class CCT(Ramped):
    """Cross-consistency training with auxiliary decoders (Ouali et al. 2020)."""

    name: Annotated[str, short("method")] = "cct"
    weight: float = 5.0
    """Weight of the consistency: 30 in the paper, for a mean over 21 classes beside cross-entropy only; that is 5.7
    for 2 classes beside Dice as well."""


@dataclass(frozen=True)
class DTC(Ramped):
    """Dual-task consistency of masks and signed distances (Luo et al. 2021)."""

    name: Annotated[str, short("method")] = "dtc"
    steepness: float = 1500.0
    """Slope of the sigmoid by which a signed distance becomes a mask."""
    regression: float = 0.3
    """Weight of the regression of signed distances."""


@dataclass(frozen=True)
class UniMatch(Weighted):
    """Weak-to-strong consistency of images and features (Yang et al. 2023); the weight is there from the start."""

    name: Annotated[str, short("method")] = "unimatch"
    weight: float = 2.0
    """Weight of the terms without masks. The authors' code adds them to the mean of Dice and cross-entropy; here it is
    their sum."""
    confidence: float = 0.95
    """Probability of the most likely class from which on a pixel teaches (the authors' setting for ACDC)."""
    dropped: float = 0.5
    """Fraction of the encoder's channels that the changed features lack."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.confidence <= 1, "method.confidence", self.confidence, "a probability from 0 to 1")
        require(0 <= self.dropped < 1, "method.dropped", self.dropped, "0 or more and below 1")


@dataclass(frozen=True)
class BCP(Weighted):
    """Bidirectional copy-paste (Bai et al. 2023); the weight is there from the start."""

    name: Annotated[str, short("method")] = "bcp"
    weight: float = 0.5
    """Weight of the pseudo-labels: the paper's alpha."""
    decay: float = 0.99
    """Decay of the averaged teacher."""
    box: float = 2 / 3
    """Side of the pasted box, as a fraction of the image's (the paper's beta)."""
    first: float = 0.25
    """Fraction of the steps, at the start, in which only labelled images are mixed: 10,000 of 40,000 by the authors."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.box < 1, "method.box", self.box, "a fraction between 0 and 1")
        require(0 <= self.first <= 1, "method.first", self.first, "a fraction from 0 to 1")


METHODS = Members(
    "method",
    MethodSettings,
    {
        Supervised: "nissl.methods.supervised:Supervised",
        Entropy: "nissl.methods.entropy:Entropy",
        MeanTeacher: "nissl.methods.mean_teacher:MeanTeacher",
        UAMT: "nissl.methods.uamt:UncertaintyAwareMeanTeacher",
        CPS: "nissl.methods.cps:CrossPseudoSupervision",
        URPC: "nissl.methods.urpc:URPC",
        CCT: "nissl.methods.cct:CCT",
        DTC: "nissl.methods.dtc:DTC",
        UniMatch: "nissl.methods.unimatch:UniMatch",
        BCP: "nissl.methods.bcp:BidirectionalCopyPaste",
    },
)
