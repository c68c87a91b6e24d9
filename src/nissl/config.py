"""Every setting: one tree of frozen dataclasses, read from TOML, each field a flag with a docstring.

The flag of `Config.train.steps` is `--train.steps`; the settings that most runs touch have a short name as well
(`--steps`). Ranges are checked when an object is made, so a wrong value never reaches the work.
"""

import dataclasses
import difflib
import sys
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from nissl.errors import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")
Loss = Literal["dice+cross-entropy", "dice"]


def _short(name: str) -> Any:
    return tyro.conf.arg(aliases=(f"--{name}",))


def _require(holds: bool, key: str, value: object, expected: str) -> None:
    if not holds:
        raise InputError(key, repr(value), expected, f"change {key} on the command line or in the settings file")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the images are and how they become arrays."""

    images: Path | None = None
    """Folder of images, when it is not DATA/images."""
    masks: Path | None = None
    """Folder of masks, when it is not DATA/masks."""
    label_map: Annotated[str, _short("label-map")] = ""
    """How mask values become classes: `binary` (0 is background, all else foreground: 0/255 and instance ids),
    `0,1,2` or `0=background,1=head,2=body`, or colours `#000000=background,#ff0000=gland`. Empty: the map in
    dataset.json if there is one, else the values 0 and 1."""
    size: Annotated[tuple[int, ...], _short("size")] = ()
    """Network input along each axis, in pixels; one number stands for all axes. Empty: 128 in 2-D, 32 in 3-D."""
    sampling: Literal["auto", "resize", "patches"] = "auto"
    """`resize`: every image is resized to `size`; `patches`: pieces of that size are cut at full resolution.
    `auto`: resize in 2-D, patches in 3-D."""
    foreground: float = 0.5
    """Share of the labelled patches that are centred on a foreground pixel, so that rare structures are seen."""
    cache_gib: float = 2.0
    """Bound on the decoded images kept in memory, in GiB; what does not fit is read again when needed."""
    colour: Annotated[Literal["as-found", "gray", "rgb"], _short("colour")] = "as-found"
    """Bring all images to one or to three channels, where a folder holds both gray and RGB ones."""
    limit_gib: float = 1.0
    """Largest decoded file accepted, in GiB, checked from the header before decoding. In prediction, where TIFFs are
    read in parts, it is for one strip or tile."""
    axes: str = ""
    """Axes of TIFF images that do not name them, or name them wrongly, from slowest to fastest: `CYX` where channels
    come first, `ZYX` where a stack is labelled a time series. It holds for files of so many axes."""
    workers: int = 0
    """Worker processes that prepare batches; the batches are the same for any number."""

    def __post_init__(self) -> None:
        _require(all(s >= 16 for s in self.size), "data.size", self.size, "16 or more along each axis")
        _require(0 <= self.foreground <= 1, "data.foreground", self.foreground, "a share from 0 to 1")
        _require(self.cache_gib >= 0, "data.cache_gib", self.cache_gib, "0 or more")
        _require(self.limit_gib > 0, "data.limit_gib", self.limit_gib, "more than 0")
        known = {"Y", "X"} <= set(self.axes) <= set("CZYX") and len(set(self.axes)) == len(self.axes)
        _require(known or not self.axes, "data.axes", self.axes, "Y, X and perhaps C and Z, each once")
        _require(self.workers >= 0, "data.workers", self.workers, "0 or more")


@dataclasses.dataclass(frozen=True)
class SplitConfig:
    """Which cases are for testing and which masks the training may see."""

    labels: Annotated[str, _short("labels")] = "10%"
    """The label budget: a share of the training masks (`10%`), a number (`8`), or case ids separated by commas.
    It counts every mask that the training sees."""
    test_fraction: float = 0.2
    """Share of the masked cases (or of the groups) kept for testing, where cases.csv gives no split."""
    allow_shared_groups: Annotated[bool, _short("allow-shared-groups")] = False
    """Accept a given split that has the same patient in training and test; the report then carries a warning."""
    seed: int | None = None
    """Seed of the draw of the test cases, where cases.csv gives no split. Left open, it is `seed`; `--seeds` keeps it,
    so that all runs are measured on the same cases."""
    transductive: bool = False
    """Let training look at the test images, never at their masks; the report then carries a warning."""

    def __post_init__(self) -> None:
        _require(0 < self.test_fraction < 1, "split.test_fraction", self.test_fraction, "a share between 0 and 1")
        _require(self.seed is None or self.seed >= 0, "split.seed", self.seed, "0 or more")


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """How much a training image may change; every draw depends on (seed, step, index) only."""

    flip: bool | None = None
    """Mirror along each axis with probability one half. Left open, it is done in 2-D, where a field of view has no up
    or down, and not in 3-D, where the axes of a scan tell classes apart, such as front and back of an organ."""
    rotate: float | None = None
    """Largest rotation, in degrees, about every axis. Left open, 180 in 2-D and 15 in 3-D."""
    transpose: bool | None = None
    """Exchange the axes at random: with `flip`, all turns by 90 degrees, without interpolation between them. Left open,
    it is done in 2-D and not in 3-D."""
    scale: float = 0.2
    """Largest relative change of size."""
    affine: float = 0.2
    """Share of the training images that are rotated and scaled. The pixels of the others are not interpolated, so that
    they stay as sharp as those of the images that are predicted."""
    contrast: float = 0.25
    """Largest relative change of contrast."""
    brightness: float = 0.25
    """Largest shift of brightness, in standard deviations of the image."""
    noise: float = 0.1
    """Largest standard deviation of added noise, in standard deviations of the image."""

    def __post_init__(self) -> None:
        _require(self.rotate is None or 0 <= self.rotate <= 180, "augment.rotate", self.rotate, "0 to 180 degrees")
        _require(0 <= self.scale < 1, "augment.scale", self.scale, "0 or more and below 1")
        _require(0 <= self.affine <= 1, "augment.affine", self.affine, "0 to 1")
        for key in ("contrast", "brightness", "noise"):
            _require(getattr(self, key) >= 0, f"augment.{key}", getattr(self, key), "0 or more")


@dataclasses.dataclass(frozen=True)
class NetConfig:
    """What learns."""

    name: Annotated[str, _short("net")] = "unet"
    """`unet`, `vnet`, or any network by dotted path, such as `monai.networks.nets:BasicUNet`."""
    widths: Annotated[tuple[int, ...], _short("widths")] = (16, 32, 64, 128, 256)
    """Channels of each level of the U-Net, from the full resolution down."""
    dropout: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3, 0.5)
    """Dropout in each level of the encoder; as many numbers as widths."""
    upsampling: Literal["transposed", "linear"] = "transposed"
    """How the decoder doubles the resolution: 2x2(x2) transposed convolution, or linear interpolation."""
    activation: Literal["leaky-relu", "relu", "silu"] = "leaky-relu"
    """Between the layers of the U-Net; the leaky one has slope 0.01 below zero."""

    def __post_init__(self) -> None:
        _require(len(self.widths) >= 2, "net.widths", self.widths, "two levels or more")
        _require(all(w > 0 for w in self.widths), "net.widths", self.widths, "positive numbers of channels")
        _require(
            len(self.dropout) == len(self.widths), "net.dropout", self.dropout, f"{len(self.widths)} numbers, as widths"
        )
        _require(all(0 <= p < 1 for p in self.dropout), "net.dropout", self.dropout, "0 or more and below 1")


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """Stage 1: learning from the images alone, without labels."""

    name: Annotated[str, _short("pretrain")] = "none"
    """`none`, `hebbian`, or one of its controls: `untrained` (the same hand-over of filters that have learnt nothing),
    `shuffled` (trained filters with their entries shuffled), `unit-norm` (filters kept at unit norm, nothing else),
    `warm` (normalisation statistics only). `vae` (reconstruction) and `superpixel` (pseudo-masks) back-propagate
    instead: of the settings here they take layers, steps and batch."""
    rule: Annotated[Literal["swta", "hpca", "softhebb", "oja", "hebb"], _short("rule")] = "hpca"
    """Which Hebbian rule."""
    layers: Annotated[Literal["auto", "all", "encoder", "decoder"], _short("layers")] = "auto"
    """Which layers learn in stage 1. `auto`: with a Hebbian rule and its controls those of the decoder, where the
    network has one (docs/results/few-labels.md says why); otherwise all."""
    response: Literal["auto", "linear", "centred", "rectified"] = "auto"
    """What a rule takes as the response of a filter: the `linear` one, that about its mean over the images (`centred`),
    or, for HPCA, its positive part (`rectified`). `auto`: centred with HPCA, linear with the others."""
    order: Literal["together", "layer-wise"] = "together"
    """All layers learn `together`, or one after the other from the input on, each in its share of the steps."""
    whiten: bool = False
    """Show stage 1 images in which neighbouring pixels and channels are uncorrelated."""
    handover: Annotated[Literal["fold", "unit-norm"], _short("handover")] = "fold"
    """`fold`: plain weights, rescaled to the norm of the initialisation; `unit-norm`: filters stay normalised
    while the masks are learnt."""
    transposed: Literal["T", "S", "T-summed"] = "T"
    """Form of the rule in transposed convolutions: one rule per kernel offset (`T`), its decay summed over the
    offsets (`T-summed`, the reference implementation), or input and output exchanged (`S`)."""
    optimiser: Literal["relative", "sgd", "adam"] = "relative"
    """`relative`: each layer moves by a fraction of its own norm."""
    rate: float = 0.02
    """Step size at the first step; falls linearly to zero. For `relative`, the fraction of the norm."""
    steps: int = 300
    """Number of steps."""
    batch: int = 8
    """Images in a step."""
    samples: int = 2048
    """Convolutions over large maps learn from evenly spaced positions, about this many in a step: patches side by side
    share most of their pixels. 0 learns from all positions."""
    fine_tuning_rate: float = 1.0
    """Learning rate in stage 2 of what stage 1 trained, as a share of that of the rest. Copies of it that a method
    adds, such as the auxiliary decoders of `cct`, learn as the rest does."""
    inverse_temperature: float = 5.0
    """Sharpness of the competition in SWTA and SoftHebb, on responses divided by their standard deviation."""

    def __post_init__(self) -> None:
        rectifies = self.response != "rectified" or self.rule == "hpca"
        _require(rectifies, "pretrain.response", self.response, f"`auto`, `linear` or `centred` with {self.rule}")
        _require(self.rate > 0, "pretrain.rate", self.rate, "more than 0")
        _require(self.fine_tuning_rate >= 0, "pretrain.fine_tuning_rate", self.fine_tuning_rate, "0 or more")
        _require(self.steps >= 1, "pretrain.steps", self.steps, "1 or more")
        _require(self.batch >= 1, "pretrain.batch", self.batch, "1 or more")
        _require(self.samples >= 0, "pretrain.samples", self.samples, "0 or more")
        _require(self.inverse_temperature > 0, "pretrain.inverse_temperature", self.inverse_temperature, "more than 0")


@dataclasses.dataclass(frozen=True)
class MethodConfig:
    """Stage 2: how the few masks, and the images without, are learnt from."""

    name: Annotated[str, _short("method")] = "supervised"
    """`supervised` learns from masks alone; `entropy`, `mean-teacher`, `uamt`, `cps`, `urpc`, `cct`, `dtc`, `unimatch`
    and `bcp` also from the images without masks."""
    weight: float | None = None
    """Weight of the terms that need no masks, once it has risen. Left open, the method's own."""
    ramp: float = 0.4
    """Share of the steps over which that weight rises; with `unimatch` and `bcp` it is there in full from the start, as
    published."""
    ramp_shape: Literal["gaussian", "linear"] = "gaussian"
    """How it rises: `gaussian` from a hundredth of it, slowly at first, or `linear` from nothing."""
    loss: Loss = "dice+cross-entropy"
    """How a prediction is compared with a mask, and with a pseudo-label where the method takes it for a mask."""
    decay: float = 0.99
    """Decay of the averaged teacher, in methods that have one."""

    def __post_init__(self) -> None:
        _require(self.weight is None or self.weight >= 0, "method.weight", self.weight, "0 or more")
        _require(0 <= self.ramp <= 1, "method.ramp", self.ramp, "a share from 0 to 1")
        _require(0 <= self.decay < 1, "method.decay", self.decay, "0 or more and below 1")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The loop of stage 2."""

    steps: Annotated[int, _short("steps")] = 1000
    """Optimiser steps; there are no epochs, both streams of images cycle on their own."""
    batch: Annotated[int, _short("batch")] = 8
    """Images in a step, over all processes: all with masks, or one half of them without where the method uses such."""
    optimiser: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with momentum 0.9."""
    learning_rate: float = 1e-2
    """Largest learning rate; docs/results/few-labels/settings.md says what it was chosen on, with our networks."""
    weight_decay: float = 1e-2
    """Weight decay."""
    schedule: Literal["cosine", "step"] = "cosine"
    """`cosine`: falls to zero along a half cosine; `step`: halves whenever, since the warm-up, another quarter of the
    steps has passed."""
    warmup: float = 0.1
    """Share of the steps over which the learning rate rises linearly from zero."""
    clip: float = 1.0
    """Largest norm of the gradient; 0 turns clipping off."""
    average: float = 0.99
    """Decay of the averaged weights, which are what is saved, measured and used; 0 takes the last weights."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto`: bfloat16 on a GPU, float32 on a CPU."""
    save_every: int = 100
    """Steps between two checkpoints."""

    def __post_init__(self) -> None:
        _require(self.steps >= 1, "train.steps", self.steps, "1 or more")
        _require(self.batch >= 1, "train.batch", self.batch, "1 or more")
        _require(self.learning_rate > 0, "train.learning_rate", self.learning_rate, "more than 0")
        _require(self.weight_decay >= 0, "train.weight_decay", self.weight_decay, "0 or more")
        _require(0 <= self.warmup <= 1, "train.warmup", self.warmup, "a share from 0 to 1")
        _require(self.clip >= 0, "train.clip", self.clip, "0 or more")
        _require(0 <= self.average < 1, "train.average", self.average, "0 or more and below 1")
        _require(self.save_every >= 1, "train.save_every", self.save_every, "1 or more")


@dataclasses.dataclass(frozen=True)
class PredictConfig:
    """How masks of whole images are made."""

    tile: int = 512
    """Largest piece of an image that goes through the network at once, in pixels along each axis, in `patches`
    sampling; its halo comes on top."""
    halo: int = 96
    """Pixels around a tile that are seen but not kept, so that no seam shows. In 3-D, tile and halo are taken to the
    power 2/3, which keeps the memory: 64 and 32 voxels by default; 96 or more would be exact for five levels."""

    def __post_init__(self) -> None:
        _require(self.tile >= 16, "predict.tile", self.tile, "16 or more")
        _require(self.halo >= 0, "predict.halo", self.halo, "0 or more")


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run."""

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    split: SplitConfig = dataclasses.field(default_factory=SplitConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    net: NetConfig = dataclasses.field(default_factory=NetConfig)
    pretrain: PretrainConfig = dataclasses.field(default_factory=PretrainConfig)
    method: MethodConfig = dataclasses.field(default_factory=MethodConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    predict: PredictConfig = dataclasses.field(default_factory=PredictConfig)
    seed: int = 0
    """Everything that is drawn (split, budget, initialisation, order, augmentation) follows from it."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:1`."""
    protocol: Literal["nissl", "parity"] = "nissl"
    """`parity`: the published protocol of Ciampi et al. (arXiv 2412.03192), for comparison only: it **looks at the test
    images** to choose checkpoint and threshold. It fills in all settings that it fixes; one that is set to something
    else than its default stays, and the results name it. 2-D with one foreground class."""
    deterministic: bool = True
    """Use operations that give the same bits every time; a GPU lacks some, which are then named in a warning."""

    def __post_init__(self) -> None:
        _require(self.seed >= 0, "seed", self.seed, "0 or more")


def load_config(path: Path) -> Config:
    """Read settings from a TOML file.

    Raises:
        InputError: the file is missing, is not TOML, or has an unknown key or a value of the wrong kind.

    """
    return from_tree(Config, read_toml(path), str(path))


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file of settings as it is, without the defaults of what it leaves open.

    Raises:
        InputError: the file is missing or is not TOML.

    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}", "a settings file", "check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(path, str(error), "a TOML file", "correct the line that is named") from error


def from_tree(kind: type[T], tree: dict[str, Any], where: str) -> T:
    """Make a dataclass from nested dictionaries; an unknown key is refused with a suggestion."""
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, value in tree.items():
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            fix = f"did you mean `{near[0]}`?" if near else f"choose from {', '.join(sorted(hints))}"
            raise InputError(where, f"unknown key `{key}`", f"a setting of {kind.__name__}", fix)
        values[key] = _convert(hints[key], value, f"{where}: {key}")
    return kind(**values)


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Bring a TOML value to the type of its field."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kind = options[0]
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return from_tree(typing.cast(type[Any], kind), value, where)
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal and value in inner:
        return value
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_convert(inner[0], item, where) for item in value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(kind, type) and origin is None and type(value) is kind:
        return value
    expected = (
        f"one of {', '.join(map(repr, inner))}"
        if origin is Literal
        else kind.__name__
        if isinstance(kind, type) and origin is None
        else str(kind)
    )
    near = difflib.get_close_matches(str(value), map(str, inner), n=1) if origin is Literal else []
    raise InputError(where, repr(value), expected, f"did you mean {near[0]!r}?" if near else "correct the value")


def to_tree(config: Any) -> dict[str, Any]:
    """Nested dictionaries of plain values, for TOML and JSON; settings that are None are left out."""
    tree: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            tree[field.name] = to_tree(value)
        elif value is not None:
            tree[field.name] = str(value) if isinstance(value, Path) else value
    return tree
