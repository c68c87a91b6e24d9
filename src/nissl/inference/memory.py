"""What a prediction takes of memory, stated before it starts, and what it gives up where memory runs out."""

import functools
import sys
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nissl.data.batches import CHANNELS_LAST
from nissl.errors import ResourceError
from nissl.imageio.formats import Header
from nissl.imageio.tiff_regions import STRIP, TILE
from nissl.model import Model
from nissl.nets import factory
from nissl.progress import warn
from nissl.training.precision import autocast

LIBRARIES = 128 * 2**20
"""Bytes that the libraries take for themselves at their first use; up to 110 MB were seen."""
KERNELS = 3
"""How many times its largest tensor a network takes beyond what is alive, for what kernels keep for themselves: 0.1 to
2.4 times in U-Nets and V-Nets of several widths, 2-D and 3-D, on a CPU with torch 2.13."""


def tile_size(model: Model) -> tuple[int, int]:
    """Core and halo of a tile along each axis, in pixels, both multiples of what the network needs.

    The settings are for 2-D. In 3-D they are taken to the power 2/3 (512 and 96 become 64 and 32), so that a core has
    as many voxels as it has pixels in 2-D: the same length would need hundreds of times the memory.
    """
    step = factory.multiple(model.predictor)
    setting = model.description.predict
    core, halo = (round(size ** (2 / model.dims), 3) for size in (setting.tile, setting.halo))
    return max(1, int(core // step)) * step, int(-(-halo // step)) * step


def padded_shape(model: Model, space: Sequence[int]) -> tuple[int, ...]:
    """Size of an image once it is padded: a training patch at least, and a multiple of what the network needs."""
    step = factory.multiple(model.predictor)
    return tuple(-(-max(pair) // step) * step for pair in zip(space, model.preprocessing.size, strict=True))


def lines_needed(model: Model) -> int:
    """Lines along the first axis of an image that are in use at one time, beyond those of a strip."""
    if model.preprocessing.sampling == "resize":
        return 1
    core, halo = tile_size(model)
    return core + 2 * halo


class _Live:
    """Follows the bytes of the tensors that are alive, of all that it sees."""

    def __init__(self) -> None:
        self.live = self.peak = self.largest = 0
        self._known: set[int] = set()

    def see(self, tensors: Any) -> None:
        """Note what passes the border of a module."""
        for tensor in tensors if isinstance(tensors, tuple | list) else (tensors,):
            if isinstance(tensor, Tensor) and tensor.data_ptr() not in self._known:
                key, size = tensor.data_ptr(), tensor.untyped_storage().nbytes()
                self._known.add(key)
                self.live += size
                self.largest = max(self.largest, size)
                weakref.finalize(tensor, self._free, key, size)
        self.peak = max(self.peak, self.live)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def network_bytes(model: Model) -> int:
    """Bytes that the network takes for each pixel of its input, measured on a small one.

    They are those of the tensors that are alive at one time, and `KERNELS` times the largest.
    """
    side = (4 * factory.multiple(model.predictor),) * model.dims
    image = torch.zeros(1, model.channels, *side, device=model.device)
    memory = _Live()
    with ExitStack() as hooks, torch.inference_mode(), autocast(model.device, model.description.precision):
        # A TorchDispatchMode, or the profiler, would import 800 modules at its first use, which takes two seconds.
        for module in model.predictor.modules():
            hooks.enter_context(module.register_forward_pre_hook(lambda _, inputs: memory.see(inputs)))
            hooks.enter_context(module.register_forward_hook(lambda _, inputs, outputs: memory.see(outputs)))
        model.predictor(image.contiguous(memory_format=CHANNELS_LAST[image.ndim]))
    return -(-(memory.peak + KERNELS * memory.largest) // prod(side))


def peak_bytes(model: Model, shape: Sequence[int], per_pixel: int | None = None) -> int:
    """Bound the bytes that predicting an image of spatial size `shape` by bands takes, beyond reading and writing it.

    It is the sum of: 32 bytes for each value of a strip (or of a line, where that is more); for each pixel that the
    network sees at once `network_bytes`, 24 bytes for each channel and 8 for each class; the classes of a band, and in
    `resize` sampling 16 bytes for each value of the half-resized image and logits; the libraries' own. On a GPU the
    part of the network is memory of the GPU. `per_pixel` is what `network_bytes` says, where it is known already.
    """
    size, channels, classes = model.preprocessing.size, model.channels, len(model.classes)
    if model.preprocessing.sampling == "resize":
        seen, widest = size, tuple(max(pair) for pair in zip(size, shape, strict=True))
        half = channels * shape[0] * prod(size[1:]) + classes * shape[0] * prod(size[1:])
        strip = max(STRIP, max(channels, classes) * max(prod(widest[1:]), size[0]))
        band = strip // max(channels, classes)
    else:
        core, halo = tile_size(model)
        widest, half = padded_shape(model, shape), 0
        seen = tuple(min(length, core + 2 * halo) for length in widest)
        strip = max(STRIP, channels * prod(widest[1:]))
        band = min(shape[0], seen[0]) * prod(shape[1:])
    network = prod(seen) * ((network_bytes(model) if per_pixel is None else per_pixel) + 24 * channels + 8 * classes)
    return 32 * strip + network + band + 16 * half + LIBRARIES


def total_bytes(model: Model, header: Header, by_bands: bool, per_pixel: int) -> int:
    """Bound the bytes that reading, predicting and writing one image takes; `per_pixel` as of `peak_bytes`.

    A mask that is not written by bands is held, and encoded as a whole.
    """
    reading = header.grid.needs(lines_needed(model)) if header.grid else 3 * header.decoded_bytes
    line = prod(header.shape[1:])
    # A band is joined to what is left of the one before, as whole rows of tiles, and hashed.
    writing = 3 * min(header.shape[0], lines_needed(model) + TILE) * line if by_bands else 4 * prod(header.shape)
    return reading + peak_bytes(model, header.shape, per_pixel) + writing


def resident_bytes() -> int:
    """Return the most memory that this process held at any time so far, in bytes; 0 where the system does not say."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the parent process held
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    if sys.platform != "darwin":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@dataclass(frozen=True)
class Attempt:
    """How an image is predicted: the core of a tile in pixels (None: there are no tiles), and where."""

    core: int | None
    device: torch.device

    def __str__(self) -> str:
        return " ".join([*([f"tile {self.core}"] if self.core else []), f"on {self.device.type}"])


def attempts(model: Model) -> list[Attempt]:
    """What is tried in turn: the settings' tile, halved down to the least that the network takes; then on the CPU."""
    step, cores = factory.multiple(model.predictor), list[int | None]([None])
    if model.preprocessing.sampling == "patches":
        cores = [core := tile_size(model)[0]]
        while core > step:
            cores.append(core := max(step, core // 2 // step * step))
    devices = [model.device] + ([torch.device("cpu")] if model.device.type != "cpu" else [])
    return [Attempt(core, device) for device in devices for core in cores]


@dataclass
class MemoryFallback:
    """What is tried next where memory runs out: smaller tiles, then the CPU; the halo stays, and so does the mask.

    Each image begins with the settings' own tile again. What is given up is said once, and listed in `taken` for the
    image at hand.
    """

    model: Model
    say: Callable[[str], None] = warn
    taken: list[str] = field(default_factory=list)
    _at: int = 0

    def __post_init__(self) -> None:
        self._attempts = attempts(self.model)
        self._say_once = functools.cache(self.say)

    @property
    def core(self) -> int | None:
        """Longest core of a tile; None for that of the settings."""
        return self._attempts[self._at].core

    @property
    def active_model(self) -> Model:
        """The model on the device that is used now."""
        return replace(self.model, device=self._attempts[self._at].device)

    def begin(self) -> None:
        """Start an image with the settings' own tile and device."""
        self._at, self.taken = 0, []
        self.model.predictor.to(self.model.device)

    def next_attempt(self) -> None:
        """Take the next attempt, which needs less; raises ResourceError where there is no less."""
        if self._at + 1 == len(self._attempts):
            less = "lower data.size and train again" if self.core is None else "train with a lower predict.halo"
            fix = f"close other programs, take a machine with more memory, or {less}"
            raise ResourceError("image", "out of memory", "memory for the smallest tile", fix)
        before, self._at = self._attempts[self._at], self._at + 1
        after = self._attempts[self._at]
        self.model.predictor.to(after.device)
        if before.device.type == "cuda":
            torch.cuda.empty_cache()
        self.taken.append(str(after))
        self._say_once(f"out of memory with {before}; continuing with {after}, which is slower")
