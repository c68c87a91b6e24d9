"""Batches: cases kept in memory, and streams in which a step number gives a batch.

A batch is a pure function of (seed, step): the order comes from seeded permutations and each sample has a generator
of its own, so that resuming, worker processes and several machines change nothing.
"""

import dataclasses
import functools
import multiprocessing
import signal
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor
from torch.utils import data as torch_data

from nissl.config import AugmentConfig, DataConfig
from nissl.data import augmentation
from nissl.data.cases import Case, CaseFile
from nissl.data.orientation import Place
from nissl.data.preprocessing import Preprocessing, Statistics, moments
from nissl.data.resizing import Kept, kept
from nissl.data.targets import MASKS, Targets
from nissl.errors import DataError, InputError, NisslError, ResourceError
from nissl.imageio.label_map import LabelMap

# Parts of the seed: two streams, and in each an order of cases and the draws of a sample.
LABELLED, UNLABELLED = 1, 2
ORDER, SAMPLE = 1, 2
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class Batch:
    """What a training step sees: normalised images, with their classes where the stream has any, and unlabelled images.

    A stream for a learner that `sees` images only has neither masks nor unlabelled images beside its `images`.
    """

    images: Float[Tensor, "batch channels *space"]
    targets: Integer[Tensor, "batch *space"]
    """Such as the class of each pixel; empty where the stream has none."""
    unlabelled: Float[Tensor, "batch channels *space"] | None
    ids: tuple[str, ...]
    """Of the labelled cases, then of the unlabelled ones; a part of a batch has those of the whole."""
    step: int = 0
    first: int = 0
    """Place of the first image among those of the step over all processes."""

    def to(self, device: torch.device | str) -> "Batch":
        """Copy the tensors to a device, images with their channels last in memory, as convolutions run fastest."""

        def placed(images: Tensor) -> Tensor:
            moved = images.to(device, non_blocking=True)
            return moved.contiguous(memory_format=CHANNELS_LAST[images.ndim])

        unlabelled = None if self.unlabelled is None else placed(self.unlabelled)
        masks = self.targets.to(device, non_blocking=True)
        return dataclasses.replace(self, images=placed(self.images), targets=masks, unlabelled=unlabelled)

    def parts(self, count: int) -> "list[Batch]":
        """Cut it into equal parts; `count` divides the number of images, and that of unlabelled images."""
        unlabelled = [None] * count if self.unlabelled is None else self.unlabelled.chunk(count)
        tensors = zip(self.images.chunk(count), self.targets.chunk(count), unlabelled, strict=True)
        firsts = range(self.first, self.first + len(self.images), len(self.images) // count)
        return [Batch(*part, self.ids, self.step, first) for first, part in zip(firsts, tensors, strict=True)]


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
            expected = f"a multiple of the {self.world} processes"
            raise InputError("batch", str(self.batch), expected, "change it, or the processes")


class Cache:
    """Decoded cases in memory, for all stores of a run together, until `data.cache_gib` is full.

    Worker processes that are forked have it without a copy; others get a copy each, and so a fraction of it.
    """

    def __init__(self, config: DataConfig) -> None:
        copies = 1 if multiprocessing.get_start_method() == "fork" else max(1, config.workers)
        self._free = config.cache_gib * 2**30 / copies
        self._kept: dict[Path, Any] = {}

    def get(self, path: Path) -> Any:
        """Return what is kept of a file, or None."""
        return self._kept.get(path)

    def put(self, path: Path, content: Any, size: int) -> None:
        """Keep the content of a file of so many bytes, where there is room and this is not a worker process."""
        if path not in self._kept and size <= self._free and torch_data.get_worker_info() is None:
            self._free -= size
            self._kept[path] = content


class Store:
    """Cases in memory, ready to be cut: resized in `resize` sampling, padded to a patch at least in `patches`.

    Pixels are kept in the integer type of their file (others, and resized ones, as float32) until the cache is full; a
    case that does not fit is read from disk again at each access. Stores with one cache have the pixels of a case in
    common. The settings are as `resolve` gives them. Without masks, no mask file is ever opened.
    """

    def __init__(
        self,
        files: Sequence[CaseFile],
        label_map: LabelMap,
        config: DataConfig,
        *,
        with_masks: bool = True,
        cache: Cache | None = None,
        targets: Targets = MASKS,
    ) -> None:
        if with_masks and any(file.target is None for file in files):
            raise ValueError("a store with masks was given a case without one")
        self.files = list(files) if with_masks else [dataclasses.replace(file, target=None) for file in files]
        self.config = config
        self.preprocessing = Preprocessing.fitted(config)
        self._label_map = label_map
        self._cache, self._targets = cache or Cache(config), targets
        self._kind: tuple[int, int] | None = None
        self._moments: dict[int, Statistics] = {}
        self._counts: dict[int, Int[np.ndarray, "classes"]] = {}
        self.kept: dict[int, Kept | None] = {}
        """What the size keeps of each mask that was read, in `resize` sampling."""
        self.places: dict[str, Place] = {}
        """How each case that was read lies in space, in `patches` sampling."""

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Case:
        file = self.files[index]
        image, mask = self._cache.get(file.image), self._cache.get(file.target) if file.target else (None, None)
        if image is None or mask is None:
            case = self._fit(index, self._fitting(self._targets.read(file, self._label_map, self.config), index))
            alone = dataclasses.replace(case, target=None)
            self._cache.put(file.image, (alone, self._moments[index]), case.image.nbytes)
            if file.target and case.target is not None:
                self._cache.put(file.target, (case.target, self._counts[index]), case.target.nbytes)
            return case
        (case, self._moments[index]), (classes, counts) = image, mask
        if counts is not None:
            self._counts[index] = counts
        found: Case = dataclasses.replace(case, target=classes)
        return found

    def _fitting(self, case: Case, index: int) -> Case:
        """Refuse a case whose kind differs from that of the cases before it: they cannot be in one batch."""
        kind = (case.image.ndim - 1, len(case.image))
        self._kind = self._kind or (len(self.config.size), kind[1])
        if kind != self._kind:
            found, usual = (f"{dims}-D with {channels} channels" for dims, channels in (kind, self._kind))
            fix = "run `nissl check` to list all such images, and add --colour rgb or --colour gray if that is all"
            raise DataError(self.files[index].image_name, found, f"{usual}, as the other images", fix)
        return case

    def moments(self, index: int) -> Statistics:
        """Mean and standard deviation of each channel of a case, before padding."""
        if index not in self._moments:
            self[index]
        return self._moments[index]

    def counts(self, index: int) -> Int[np.ndarray, "classes"]:
        """How many pixels of each class a case with a mask has."""
        if index not in self._counts and self[index].target is None:
            raise ValueError(f"{self.files[index].id} was read without its mask")
        return self._counts[index]

    def _fit(self, index: int, case: Case) -> Case:
        image, mask = case.image, case.target
        if self.config.sampling == "resize":
            if mask is not None and mask.dtype == np.uint8 and index not in self.kept:
                self.kept[index] = kept(mask, self.config.size)
            mask = None if mask is None else self._targets.resized(mask, self.config.size)
        else:
            self.places[case.id] = case.spacing, case.direction
        image = self.preprocessing.resized(image)
        self._moments[index] = moments(image)
        short = [max(0, want - have) for want, have in zip(self.config.size, image.shape[1:], strict=True)]
        if any(short):
            around = [(lack // 2, lack - lack // 2) for lack in short]
            image = np.pad(image, [(0, 0), *around], mode="symmetric")
            mask = None if mask is None else np.pad(mask, around, mode="symmetric")
        if mask is not None and index not in self._counts:
            self._counts[index] = self._targets.counts(mask, len(self._label_map.names))
        return dataclasses.replace(case, image=image, target=mask)


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
    if case.target is None or rng.random() >= store.config.foreground:
        return anywhere
    counts = store.counts(index)
    present = np.flatnonzero(counts[1:]) + 1
    if not present.size:
        return anywhere
    wanted = rng.choice(present)
    place = np.flatnonzero(case.target.ravel() == wanted)[rng.integers(counts[wanted])]
    centre = np.unravel_index(place, case.target.shape)
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
        each = schedule.batch // schedule.world
        rows = range(schedule.rank * each, (schedule.rank + 1) * each)
        return [(step * schedule.batch + row, int(cases[row])) for row in rows]

    def ids(self, step: int) -> tuple[str, ...]:
        """Ids of the cases that this process draws in a step."""
        return tuple(self.store.files[index].id for _, index in self.mine(step))

    def batch(self, step: int) -> tuple[Float[Tensor, "batch channels *space"], Integer[Tensor, "batch *space"] | None]:
        """Cut, normalise and augment the samples of this process in a step; masks come where there are any."""
        images, masks, draws = [], [], []
        for position, index in self.mine(step):
            rng = np.random.default_rng([self.schedule.seed, SAMPLE, self.stream, position])
            case, statistics = self.store[index], self.store.moments(index)
            corner = _corner(self.store, index, rng)
            cut = tuple(slice(at, at + want) for at, want in zip(corner, self.store.config.size, strict=True))
            images.append(self.store.preprocessing.normalised(case.image[(slice(None), *cut)], statistics))
            if case.target is not None:
                masks.append(case.target[cut])
            if self.augment is not None:
                draws.append(augmentation.draw(self.augment, len(cut), rng))
        pixels = torch.from_numpy(np.stack(images))
        classes = torch.from_numpy(np.stack(masks)) if masks else None
        classes = classes if classes is None or classes.is_floating_point() else classes.long()
        return augmentation.apply(pixels, classes, draws) if draws else (pixels, classes)


class Stream(torch_data.Dataset[Batch]):
    """Batches of labelled images, with as many unlabelled ones where there are any: `stream[step]`.

    Unlabelled cases have their own order and draws. A learner that sees images only has these alone. Without `augment`
    no image is changed.
    """

    def __init__(
        self, labelled: Store | None, unlabelled: Store | None, augment: AugmentConfig | None, schedule: Schedule
    ) -> None:
        stores = [(labelled, LABELLED), (unlabelled, UNLABELLED)]
        self._samples = [_Samples(store, augment, schedule, name) for store, name in stores if store is not None]
        self._labelled = labelled is not None
        self._first = schedule.rank * (schedule.batch // schedule.world)

    def __getitem__(self, step: int) -> Batch:
        (images, masks), *others = [samples.batch(step) for samples in self._samples]
        if self._labelled is (masks is None):
            raise ValueError("masks belong to labelled images: a store was made with or without them by mistake")
        masks = torch.empty(len(images), 0, dtype=torch.long) if masks is None else masks
        return Batch(images, masks, others[0][0] if others else None, self.ids(step), step, self._first)

    def ids(self, step: int) -> tuple[str, ...]:
        """Ids of the cases of a step: of the labelled ones, then of the unlabelled ones."""
        return tuple(name for samples in self._samples for name in samples.ids(step))


class Steps(Protocol[T_co]):
    """What `loader` serves: a batch and its case ids for each step."""

    def __getitem__(self, step: int) -> T_co: ...

    def ids(self, step: int) -> tuple[str, ...]:
        """Ids of the cases of a step."""


class _Guarded(torch_data.Dataset[T | NisslError]):
    """Hand our errors over as values: torch can raise in the main process only errors that take one argument."""

    def __init__(self, stream: Steps[T]) -> None:
        self._stream = stream

    def __getitem__(self, step: int) -> T | NisslError:
        try:
            return self._stream[step]
        except NisslError as error:
            if torch_data.get_worker_info():
                # Where Dask is loaded (tblib), tracebacks travel too: read in the main process, theirs would hold the
                # frames that read them, and so the iterator, whose worker processes then never end.
                error.__cause__ = error.__context__ = None
                return error.with_traceback(None)
            return error


AHEAD = 2
"""Batches that each worker process prepares in advance."""


def _start_worker(_: int) -> None:
    """Leave interruption to the main process; torch gives each worker one thread by itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def loader(stream: Steps[T], start: int, stop: int, workers: int) -> Generator[T, None, None]:
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
                names = ", ".join(sorted({name for each in at_hand for name in stream.ids(each)}))
                found = "a process that prepares batches was killed, most often for lack of memory"
                expected, fix = "it lives as long as the training", "set data.workers to 0, or data.cache_gib lower"
                raise ResourceError(f"cases {names}", found, expected, f"{fix}, and resume") from error
            if isinstance(batch, NisslError):
                raise batch
            yield batch
    finally:
        del iterator  # its processes end now: those that end with the interpreter print an error of torch over ours
