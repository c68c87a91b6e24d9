"""Batches: cases kept in memory, and streams in which a step number gives a batch.

A batch is a pure function of (seed, step): the order comes from seeded permutations and each sample has a generator
of its own, so that resuming, worker processes and several machines change nothing.
"""

import dataclasses
import functools
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Integer, Num, UInt8
from torch import Tensor
from torch.nn import functional
from torch.utils import data as torch_data

from nissl.config import AugmentConfig, DataConfig
from nissl.data import augmentation
from nissl.data.cases import Case, CaseFile, load_case
from nissl.errors import DataError, InputError, NisslError, ResourceError
from nissl.imageio.label_map import LabelMap

# Parts of the seed: two streams, and in each an order of cases and the draws of a sample.
LABELLED, UNLABELLED = 1, 2
ORDER, SAMPLE = 1, 2
NORMALISATION = "each channel of each image to mean 0 and standard deviation 1, by its own pixels"
KEPT = (np.uint8, np.uint16, np.int16)

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class Batch:
    """What a training step sees: normalised images, their classes, and as many images without masks."""

    images: Float[Tensor, "batch channels *space"]
    masks: Integer[Tensor, "batch *space"]
    unlabelled: Float[Tensor, "batch channels *space"] | None
    ids: tuple[str, ...]
    """Of the cases with masks, then of those without; a part of a batch has those of the whole."""

    def to(self, device: torch.device | str) -> "Batch":
        """Copy the tensors to a device."""
        moved = None if self.unlabelled is None else self.unlabelled.to(device, non_blocking=True)
        images, masks = self.images.to(device, non_blocking=True), self.masks.to(device, non_blocking=True)
        return Batch(images, masks, moved, self.ids)

    def parts(self, count: int) -> "list[Batch]":
        """Cut it into equal parts; `count` divides the number of images, and that of images without masks."""
        if count == 1:
            return [self]
        size = len(self.images) // count
        unlabelled = [None] * count if self.unlabelled is None else self.unlabelled.chunk(count)
        cuts = [slice(start, start + size) for start in range(0, len(self.images), size)]
        return [
            Batch(self.images[cut], self.masks[cut], images, self.ids)
            for cut, images in zip(cuts, unlabelled, strict=True)
        ]


def more_parts(parts: int, batch: int) -> int:
    """Return the next larger number of equal parts of a batch, where memory asks for smaller ones."""
    return next(count for count in range(parts + 1, batch + 1) if batch % count == 0)


@dataclass(frozen=True)
class Schedule:
    """Who draws what: `batch` counts the images of a step over all processes, `rank` of `world` takes its slice."""

    seed: int
    batch: int
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if self.batch % self.world:
            raise InputError(
                "batch", str(self.batch), f"a multiple of the {self.world} processes", "change it, or the processes"
            )


def resolve(config: DataConfig, dims: int) -> DataConfig:
    """Settle `sampling` and `size` for 2-D or 3-D data: resize to 128 in 2-D, patches of 32 in 3-D by default.

    Raises:
        InputError: `size` has neither one number nor one for each axis.

    """
    sampling = config.sampling if config.sampling != "auto" else ("resize" if dims == 2 else "patches")
    size = config.size or ((128,) if dims == 2 else (32,))
    if len(size) not in (1, dims):
        found, expected = f"{len(size)} numbers for {dims}-D images", f"one number, or {dims}"
        raise InputError("data.size", found, expected, "give the size again")
    return dataclasses.replace(config, sampling=sampling, size=size if len(size) == dims else size * dims)


def resize_image(image: Num[np.ndarray, "channels *space"], size: Sequence[int]) -> Float32[np.ndarray, "_ *size"]:
    """Resize by linear interpolation, with antialiasing where it shrinks; whole numbers become means that are not.

    Nothing is rounded: of photon counts of 0 and 1 little would be left. The last axis comes first and the first axis
    last, so that strips of lines can be made narrower one by one (`nissl.inference.tiles` does so) and give the same
    bits.
    """
    pixels = torch.from_numpy(image.astype(np.float32))
    options: dict[str, Any] = {"mode": "bilinear", "antialias": True, "align_corners": False}
    for axis, length in reversed([*enumerate(size, start=1)]):  # linear interpolation is separable, in any dimension
        if pixels.shape[axis] != length:
            lines = pixels.movedim(axis, -1)
            # The axis goes last: torch 2.13 gives wrong values, and no error, where the last axis has length 1.
            flat = lines.reshape(1, 1, -1, lines.shape[-1])
            flat = functional.interpolate(flat, size=(flat.shape[2], length), **options)
            pixels = flat.reshape(*lines.shape[:-1], length).movedim(-1, axis)
    return np.ascontiguousarray(pixels.numpy())


def resize_mask(mask: UInt8[np.ndarray, "*space"], size: Sequence[int]) -> UInt8[np.ndarray, "*size"]:
    """Resize by taking the nearest pixel."""
    picks = [((np.arange(new) + 0.5) * old / new).astype(np.intp) for old, new in zip(mask.shape, size, strict=True)]
    resized: UInt8[np.ndarray, "*size"] = mask[np.ix_(*picks)]
    return resized


def moments(image: Num[np.ndarray, "channels *space"]) -> Float32[np.ndarray, "two channels *ones"]:
    """Mean and standard deviation of each channel of one case; a constant channel counts as deviation 1."""
    axes = tuple(range(1, image.ndim))
    mean = image.mean(axis=axes, dtype=np.float64, keepdims=True)
    deviation = image.std(axis=axes, dtype=np.float64, keepdims=True)
    varies = image.max(axis=axes, keepdims=True) > image.min(axis=axes, keepdims=True)
    return np.stack([mean, np.where(varies, deviation, 1)]).astype(np.float32)


def normalised(case: Case) -> Float32[np.ndarray, "channels *space"]:
    """Bring each channel to mean 0 and standard deviation 1 by the statistics of this case alone."""
    mean, deviation = moments(case.image)
    pixels: Float32[np.ndarray, "channels *space"] = (case.image - mean) / deviation
    return pixels


class Store:
    """Cases in memory, ready to be cut: resized in `resize` sampling, padded to a patch at least in `patches`.

    Pixels are kept in the integer type of their file (others, and resized ones, as float32) until `config.cache_gib`
    is full, which the worker processes share; a case that does not fit is read from disk again at each access.

    Args:
        files: the cases.
        label_map: mask values to classes.
        config: as `resolve` gives it.
        with_masks: whether masks are read; without, no mask file is ever opened.

    """

    def __init__(
        self, files: Sequence[CaseFile], label_map: LabelMap, config: DataConfig, *, with_masks: bool = True
    ) -> None:
        if with_masks and any(file.mask is None for file in files):
            raise ValueError("a store with masks was given a case without one")
        self.files = list(files) if with_masks else [dataclasses.replace(file, mask=None) for file in files]
        self.config = config
        self._label_map = label_map
        self._free = config.cache_gib * 2**30 / max(1, config.workers)
        self._cases: dict[int, Case] = {}
        self._kind: tuple[int, int] | None = None
        self._moments: dict[int, Float32[np.ndarray, "two channels *ones"]] = {}
        self._counts: dict[int, Int[np.ndarray, "classes"]] = {}

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Case:
        if index in self._cases:
            return self._cases[index]
        case = self._fit(index, self._fitting(load_case(self.files[index], self._label_map, self.config), index))
        needed = case.image.nbytes + (0 if case.mask is None else case.mask.nbytes)
        if needed <= self._free:
            self._free -= needed
            self._cases[index] = case
        return case

    def _fitting(self, case: Case, index: int) -> Case:
        """Refuse a case whose kind differs from that of the cases before it: they cannot be in one batch."""
        kind = (case.image.ndim - 1, len(case.image))
        self._kind = self._kind or (len(self.config.size), kind[1])
        if kind != self._kind:
            raise DataError(
                self.files[index].image_name,
                f"{kind[0]}-D with {kind[1]} channels",
                f"{self._kind[0]}-D with {self._kind[1]} channels, as the other images",
                "run `nissl check` to list all such images, and add --colour rgb or --colour gray if that is all",
            )
        return case

    def moments(self, index: int) -> Float32[np.ndarray, "two channels *ones"]:
        """Mean and standard deviation of each channel of a case, before padding."""
        if index not in self._moments:
            self[index]
        return self._moments[index]

    def counts(self, index: int) -> Int[np.ndarray, "classes"]:
        """How many pixels of each class a case with a mask has."""
        if index not in self._counts and self[index].mask is None:
            raise ValueError(f"{self.files[index].id} was read without its mask")
        return self._counts[index]

    def _fit(self, index: int, case: Case) -> Case:
        image, mask = case.image, case.mask
        image = image if image.dtype in KEPT else image.astype(np.float32)
        if self.config.sampling == "resize":
            image = resize_image(image, self.config.size)
            mask = None if mask is None else resize_mask(mask, self.config.size)
        self._moments[index] = moments(image)
        short = [max(0, want - have) for want, have in zip(self.config.size, image.shape[1:], strict=True)]
        if any(short):
            around = [(lack // 2, lack - lack // 2) for lack in short]
            image = np.pad(image, [(0, 0), *around], mode="symmetric")
            mask = None if mask is None else np.pad(mask, around, mode="symmetric")
        if mask is not None and index not in self._counts:
            self._counts[index] = np.bincount(mask.ravel(), minlength=len(self._label_map.names))
        return dataclasses.replace(case, image=image, mask=mask)


@functools.lru_cache(maxsize=16)
def _permutation(count: int, epoch: int, seed: int, stream: int) -> Int[np.ndarray, "count"]:
    return np.random.default_rng([seed, ORDER, stream, epoch]).permutation(count)


def indices(count: int, batch: int, step: int, seed: int, stream: int = LABELLED) -> Int[np.ndarray, "batch"]:
    """Cases of one step, from an endless row of seeded permutations of `count` cases."""
    positions = range(step * batch, (step + 1) * batch)
    return np.array([_permutation(count, at // count, seed, stream)[at % count] for at in positions])


def _corner(store: Store, index: int, rng: np.random.Generator) -> list[int]:
    """Where a patch starts: around a pixel of a class drawn among those present, or anywhere."""
    case, size = store[index], store.config.size
    room = [have - want for have, want in zip(case.image.shape[1:], size, strict=True)]
    anywhere = [int(rng.integers(free + 1)) for free in room]
    if case.mask is None or rng.random() >= store.config.foreground:
        return anywhere
    counts = store.counts(index)
    present = np.flatnonzero(counts[1:]) + 1
    if not present.size:
        return anywhere
    wanted = rng.choice(present)
    place = np.flatnonzero(case.mask.ravel() == wanted)[rng.integers(counts[wanted])]
    centre = np.unravel_index(place, case.mask.shape)
    return [min(max(0, int(at) - want // 2), free) for at, want, free in zip(centre, size, room, strict=True)]


@dataclass(frozen=True)
class _Samples:
    """One store, drawn from and augmented by step."""

    store: Store
    augment: AugmentConfig | None
    schedule: Schedule
    stream: int

    def mine(self, step: int) -> list[tuple[int, int]]:
        """Global position and case of each sample that this process draws in a step."""
        schedule = self.schedule
        cases = indices(len(self.store), schedule.batch, step, schedule.seed, self.stream)
        share = schedule.batch // schedule.world
        rows = range(schedule.rank * share, (schedule.rank + 1) * share)
        return [(step * schedule.batch + row, int(cases[row])) for row in rows]

    def ids(self, step: int) -> tuple[str, ...]:
        """Ids of the cases that this process draws in a step."""
        return tuple(self.store.files[index].id for _, index in self.mine(step))

    def batch(self, step: int) -> tuple[Float[Tensor, "batch channels *space"], Integer[Tensor, "batch *space"] | None]:
        """Cut, normalise and augment the samples of this process in a step; masks come where there are any."""
        images, masks, draws = [], [], []
        for position, index in self.mine(step):
            rng = np.random.default_rng([self.schedule.seed, SAMPLE, self.stream, position])
            case, (mean, deviation) = self.store[index], self.store.moments(index)
            corner = _corner(self.store, index, rng)
            cut = tuple(slice(at, at + want) for at, want in zip(corner, self.store.config.size, strict=True))
            images.append((case.image[(slice(None), *cut)] - mean) / deviation)
            if case.mask is not None:
                masks.append(case.mask[cut])
            if self.augment is not None:
                draws.append(augmentation.draw(self.augment, len(cut), rng))
        pixels = torch.from_numpy(np.stack(images))
        classes = torch.from_numpy(np.stack(masks)).long() if masks else None
        return augmentation.apply(pixels, classes, draws) if draws else (pixels, classes)


class Stream(torch_data.Dataset[Batch]):
    """Batches of labelled images, with as many unlabelled ones where there are any: `stream[step]`.

    Args:
        labelled: cases with masks.
        unlabelled: cases without; their own order and draws.
        augment: how much an image may change, or None for not at all.
        schedule: seed, batch and processes.

    """

    def __init__(
        self, labelled: Store, unlabelled: Store | None, augment: AugmentConfig | None, schedule: Schedule
    ) -> None:
        self._labelled = _Samples(labelled, augment, schedule, LABELLED)
        self._unlabelled = _Samples(unlabelled, augment, schedule, UNLABELLED) if unlabelled else None

    def __getitem__(self, step: int) -> Batch:
        images, masks = self._labelled.batch(step)
        if masks is None:
            raise ValueError("the labelled store was made without masks")
        return Batch(images, masks, self._unlabelled.batch(step)[0] if self._unlabelled else None, self.ids(step))

    def ids(self, step: int) -> tuple[str, ...]:
        """Ids of the cases of a step: of those with masks, then of those without."""
        return self._labelled.ids(step) + (self._unlabelled.ids(step) if self._unlabelled else ())


class ImageStream(torch_data.Dataset[Tensor]):
    """Batches of images alone, for pre-training: `stream[step]`; arguments as of `Stream`."""

    def __init__(self, store: Store, augment: AugmentConfig | None, schedule: Schedule) -> None:
        self._samples = _Samples(store, augment, schedule, UNLABELLED)

    def __getitem__(self, step: int) -> Float[Tensor, "batch channels *space"]:
        return self._samples.batch(step)[0]

    def ids(self, step: int) -> tuple[str, ...]:
        """Ids of the cases of a step."""
        return self._samples.ids(step)


class Steps(Protocol[T_co]):
    """What `loader` serves: a batch and its case ids for each step."""

    def __getitem__(self, step: int) -> T_co: ...

    def ids(self, step: int) -> tuple[str, ...]:
        """Ids of the cases of a step."""
        ...


class _Guarded(torch_data.Dataset[T | NisslError]):
    """Hand our errors over as values: torch can raise in the main process only errors that take one argument."""

    def __init__(self, stream: Steps[T]) -> None:
        self._stream = stream

    def __getitem__(self, step: int) -> T | NisslError:
        try:
            return self._stream[step]
        except NisslError as error:
            return error


AHEAD = 2
"""Batches that each worker process prepares in advance."""


def _start_worker(_: int) -> None:
    """Leave interruption to the main process; torch gives each worker one thread by itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def loader(stream: Steps[T], start: int, stop: int, workers: int) -> Iterator[T]:
    """Serve the batches of steps `start` to `stop - 1`, in order; the same for any number of workers.

    Raises:
        NisslError: what reading a case raised.
        ResourceError: a worker process was killed; the cases at hand are named.

    """
    batches = torch_data.DataLoader(
        _Guarded(stream),
        batch_size=None,
        sampler=range(start, stop),
        num_workers=workers,
        prefetch_factor=AHEAD if workers else None,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # else torch draws from its global state, and a resumed run differs
    )
    handler = signal.getsignal(signal.SIGCHLD)
    iterator = iter(batches)
    if workers and signal.getsignal(signal.SIGCHLD) is not handler:
        # Torch has set one that raises wherever the main process is when a worker dies; `next` finds out as well.
        signal.signal(signal.SIGCHLD, handler)
    try:
        for step in range(start, stop):
            try:
                batch = next(iterator)
            except (RuntimeError, OSError, EOFError) as error:
                # A batch that a dead worker had ready cannot be fetched: then a connection fails.
                gone = "DataLoader worker" in str(error) or not isinstance(error, RuntimeError)
                if not workers or not gone or "in DataLoader worker process" in str(error):  # raised by what it ran
                    raise
                at_hand = range(step, min(stop, step + AHEAD * workers + 1))
                raise ResourceError(
                    f"cases {', '.join(sorted({name for each in at_hand for name in stream.ids(each)}))}",
                    "a process that prepares batches was killed, most often for lack of memory",
                    "it lives as long as the training",
                    "set data.workers to 0, or data.cache_gib lower, and resume",
                ) from error
            if isinstance(batch, NisslError):
                raise batch
            yield batch
    finally:
        del iterator  # its processes end now: those that end with the interpreter print an error of torch over ours
