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

from nissl.errors import InputError
from nissl.members import REGISTRIES, Members, Settings, registry_of, require, short
from nissl.methods.settings import MethodSettings, Supervised
from nissl.nets.settings import NetSettings, UNet
from nissl.pretrain.settings import NoPretraining, PretrainSettings
from nissl.tasks.settings import Segmentation, TaskSettings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")
Precision = Literal["auto", "float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the images are and how they become arrays."""

    images: Path | None = None
    """Folder of images, when it is not DATA/images: in DATA, or else from the working folder."""
    masks: Path | None = None
    """Folder of masks, when it is not DATA/masks; likewise."""
    image_pattern: str = "*"
    """What the names of images are made of, without their kind: `*` is the id, as in `*_0000`."""
    mask_pattern: str = "*"
    """The same for masks, such as `*_mask`. Where there is no folder of masks, these files lie among the images."""
    label_map: Annotated[str, short("label-map")] = ""
    """How mask values become classes: `binary` (0 is background, all else foreground: 0/255 and instance ids),
    `0,1,2` or `0=background,1=head,2=body`, or colours `#000000=background,#ff0000=gland`. Empty: the map in
    dataset.json if there is one, else the values 0 and 1."""
    size: Annotated[tuple[int, ...], short("size")] = ()
    """Network input along each axis, in pixels; one number stands for all axes. Empty: 128 in 2-D, 32 in 3-D."""
    sampling: Literal["auto", "resize", "patches"] = "auto"
    """`resize`: every image is resized to `size`; `patches`: pieces of that size are cut at full resolution.
    `auto`: resize in 2-D, patches in 3-D."""
    foreground: float = 0.5
    """Share of the labelled patches that are centred on a foreground pixel, so that rare structures are seen."""
    cache_gib: float = 2.0
    """Bound on the decoded images kept in memory, in GiB; what does not fit is read again when needed."""
    colour: Annotated[Literal["as-found", "gray", "rgb"], short("colour")] = "as-found"
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
        require(all(s >= 16 for s in self.size), "data.size", self.size, "16 or more along each axis")
        for key in ("images", "masks"):
            stored = str(getattr(self, key)).encode(errors="replace").decode()
            require(stored == str(getattr(self, key)), f"data.{key}", stored, "a folder whose name is UTF-8")
        for key in ("image_pattern", "mask_pattern"):
            require(getattr(self, key).count("*") == 1, f"data.{key}", getattr(self, key), "one `*`, as in '*_mask'")
        require(0 <= self.foreground <= 1, "data.foreground", self.foreground, "a share from 0 to 1")
        require(self.cache_gib >= 0, "data.cache_gib", self.cache_gib, "0 or more")
        require(self.limit_gib > 0, "data.limit_gib", self.limit_gib, "more than 0")
        known = {"Y", "X"} <= set(self.axes) <= set("CZYX") and len(set(self.axes)) == len(self.axes)
        require(known or not self.axes, "data.axes", self.axes, "Y, X and perhaps C and Z, each once")
        require(self.workers >= 0, "data.workers", self.workers, "0 or more")


@dataclasses.dataclass(frozen=True)
class SplitConfig:
    """Which cases are for testing and which masks the training may see."""

    labels: Annotated[str, short("labels")] = "all"
    """The label budget: `all` training masks, a fraction of them (`10%`), a number (`8`), case ids separated by
    commas, or `@FILE`, a text file with an id on each line. It counts every mask that the training sees."""
    test_fraction: float = 0.2
    """Share of the masked cases (or of the groups) kept for testing, where cases.csv gives no split."""
    allow_shared_groups: Annotated[bool, short("allow-shared-groups")] = False
    """Accept a given split that has the same patient in training and test; the report then carries a warning."""
    seed: int | None = None
    """Seed of the draw of the test cases, where cases.csv gives no split. Left open, it is `seed`; `--seeds` keeps it,
    so that all runs are measured on the same cases."""
    transductive: bool = False
    """Let training look at the test images, never at their masks; the report then carries a warning."""

    def __post_init__(self) -> None:
        if self.labels.startswith("@"):  # the ids stand in the settings of the run, which outlive the file
            try:
                text = Path(self.labels[1:]).read_text(encoding="utf-8-sig")
            except (OSError, ValueError) as error:
                expected = f"a text file that can be read ({error})"
                raise InputError("--labels", self.labels, expected, "check it") from None
            object.__setattr__(self, "labels", text.rstrip() + "\n")
        require(0 < self.test_fraction < 1, "split.test_fraction", self.test_fraction, "a share between 0 and 1")
        require(self.seed is None or self.seed >= 0, "split.seed", self.seed, "0 or more")


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
        require(self.rotate is None or 0 <= self.rotate <= 180, "augment.rotate", self.rotate, "0 to 180 degrees")
        require(0 <= self.scale < 1, "augment.scale", self.scale, "0 or more and below 1")
        require(0 <= self.affine <= 1, "augment.affine", self.affine, "0 to 1")
        for key in ("contrast", "brightness", "noise"):
            require(getattr(self, key) >= 0, f"augment.{key}", getattr(self, key), "0 or more")

    def resolved(self, dims: int) -> "AugmentConfig":
        """Fill in what is left open, for images of so many dimensions."""
        free = dims == 2
        return dataclasses.replace(
            self,
            flip=free if self.flip is None else self.flip,
            rotate=(180.0 if free else 15.0) if self.rotate is None else self.rotate,
            transpose=free if self.transpose is None else self.transpose,
        )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The training loop."""

    steps: Annotated[int, short("steps")] = 1000
    """Optimiser steps; there are no epochs, both streams of images cycle on their own."""
    batch: Annotated[int, short("batch")] = 8
    """Images in a step, over all processes: all with masks, or one half of them without where the method uses such."""
    optimiser: Literal["adamw", "adam", "sgd"] = "adamw"
    """AdamW, Adam, or SGD with momentum 0.9."""
    learning_rate: float = 1e-2
    """Largest learning rate; docs/results/few-labels/settings.md says what it was chosen on, with our networks."""
    weight_decay: float = 1e-2
    """Weight decay."""
    schedule: Literal["cosine", "linear", "step"] = "cosine"
    """`cosine`: falls to zero along a half cosine; `linear`: along a line; `step`: halves whenever, since the warm-up,
    another quarter of the steps has passed."""
    warmup: float = 0.1
    """Share of the steps over which the learning rate rises linearly from zero."""
    clip: float = 1.0
    """Largest norm of the gradient; 0 turns clipping off."""
    average: float = 0.99
    """Decay of the averaged weights, which are what is saved, measured and used; 0 takes the last weights."""
    precision: Precision = "auto"
    """`auto`: bfloat16 on a GPU, float32 on a CPU."""
    save_every: int = 100
    """Steps between two checkpoints."""

    def __post_init__(self) -> None:
        require(self.steps >= 1, "train.steps", self.steps, "1 or more")
        require(self.batch >= 1, "train.batch", self.batch, "1 or more")
        require(self.learning_rate > 0, "train.learning_rate", self.learning_rate, "more than 0")
        require(self.weight_decay >= 0, "train.weight_decay", self.weight_decay, "0 or more")
        require(0 <= self.warmup <= 1, "train.warmup", self.warmup, "a share from 0 to 1")
        require(self.clip >= 0, "train.clip", self.clip, "0 or more")
        require(0 <= self.average < 1, "train.average", self.average, "0 or more and below 1")
        require(self.save_every >= 1, "train.save_every", self.save_every, "1 or more")


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
        require(self.tile >= 16, "predict.tile", self.tile, "16 or more")
        require(self.halo >= 0, "predict.halo", self.halo, "0 or more")


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run."""

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    split: SplitConfig = dataclasses.field(default_factory=SplitConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    task: TaskSettings = dataclasses.field(default_factory=Segmentation)
    net: NetSettings = dataclasses.field(default_factory=UNet)
    pretrain: PretrainSettings = dataclasses.field(default_factory=NoPretraining)
    method: MethodSettings = dataclasses.field(default_factory=Supervised)
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
        require(self.seed >= 0, "seed", self.seed, "0 or more")


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file of settings, without defaults; an InputError where the file is missing or is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}", "a settings file", "check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(path, str(error), "a TOML file", "correct the line that is named") from error


def from_tree(kind: type[T], tree: dict[str, Any], where: str) -> T:
    """Make a dataclass from nested dictionaries; an unknown key, or an option of another member, is refused."""
    if issubclass(kind, Settings):
        kind = _member(kind, tree, where)
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, value in tree.items():
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            fix = f"did you mean `{near[0]}`?" if near else f"choose from {', '.join(sorted(hints))}"
            raise InputError(where, f"unknown key `{key}`", f"a setting of {kind.__name__}", fix)
        values[key] = _convert(hints[key], value, f"{where}: {key}")
    return kind(**values)


def _member(base: type[T], tree: dict[str, Any], where: str) -> type[T]:
    """Find the settings class of the member that a tree names, or else of the first, and refuse options of others."""
    members: Members[Any] = registry_of(typing.cast(type[Settings], base))
    name = tree.get("name", next(iter(members)))
    if not isinstance(name, str):
        raise InputError(f"{where}: name", repr(name), f"one of {', '.join(members)}", "write it in quotes")
    for key in tree:
        members.require_option(name, key, where)
    return members.settings(name)


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Bring a TOML value to the type of its field."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kind = next((option for option in options if type(value) is option), options[0])
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return from_tree(typing.cast(type[Any], kind), value, where)
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if value in inner:
            return value
        near = difflib.get_close_matches(str(value), map(str, inner), n=1)
        fix = f"did you mean {near[0]!r}?" if near else "correct the value"
        raise InputError(where, repr(value), f"one of {', '.join(map(repr, inner))}", fix)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_convert(inner[0], item, where) for item in value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if type(value) is kind:
        return value
    raise InputError(where, repr(value), str(kind) if origin else kind.__name__, "correct the value")


def without_foreign_options(tree: dict[str, Any]) -> dict[str, Any]:
    """Leave out of a tree of settings the options of other members: a run of format 1 stored those of all in one."""
    kept = dict(tree)
    for members in REGISTRIES.values():
        table, options = members.kind, tree.get(members.kind)
        if options is None:
            continue
        kind = members.settings(options.get("name", next(iter(members))))
        names = {field.name for field in dataclasses.fields(kind)}
        kept[table] = {key: value for key, value in options.items() if key in names}
        # Pre-trainings by back-propagation had a fixed rate; what was stored was that of the Hebbian ones.
        if table == "pretrain" and kept[table].get("name") in ("vae", "superpixel"):
            kept[table].pop("rate", None)
    return kept


def to_tree(config: Any) -> dict[str, Any]:
    """Nested dictionaries of plain values, for TOML and JSON; settings that are None are left out."""

    def plain(fields: list[tuple[str, Any]]) -> dict[str, Any]:
        return {key: str(value) if isinstance(value, Path) else value for key, value in fields if value is not None}

    return dataclasses.asdict(config, dict_factory=plain)
