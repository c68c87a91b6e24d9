"""The only training loop: steps, not epochs; every method gives its losses to it."""

import errno
import json
import math
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from types import FrameType
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from nissl.config import TrainConfig
from nissl.data.dataset import Batch, Stream, loader
from nissl.errors import ResourceError
from nissl.files import write_whole
from nissl.methods import Method
from nissl.progress import track
from nissl.train.checkpoint import load_newest, pack_optimiser, save_checkpoint, unpack_optimiser
from nissl.train.distributed import World, synchronise
from nissl.train.run import STATE, WEIGHTS
from nissl.train.schedule import learning_rate, make_optimiser

BAD_STEPS = 3
"""Steps in a row without a finite gradient after which the run stops."""
LOG = Path("log.jsonl")
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


class Interrupted(SystemExit):
    """The run was asked to stop, saved its state and can be resumed; exit code 130 or 143."""


@dataclass
class Trainer:
    """One run of the loop.

    Args:
        method: what learns, with its networks.
        stream: batches by step.
        config: settings of the loop.
        folder: the run folder.
        seed: of dropout and of whatever else a method draws; a function of (seed, step, rank) at each step, so that
            a resumed run draws what the uninterrupted one would have.
        device: where the networks are.
        world: this process among all.
        workers: processes that prepare batches.

    """

    method: Method
    stream: Stream
    config: TrainConfig
    folder: Path
    seed: int
    device: torch.device
    world: World = field(default_factory=World)
    workers: int = 0
    step: int = field(default=0, init=False)
    """Steps that were made."""

    def __post_init__(self) -> None:
        if self.world.size > 1:
            synchronise(self.method)
        self.method.to(self.device)
        for network in self.method.networks:
            lay_out(network)
        self.optimiser = make_optimiser(self.method, self.config)
        self.average = AveragedModel(self.method.predictor(), avg_fn=self._averaged, use_buffers=True)
        self._bad = 0
        self._keep = True

    def resume(self) -> str | None:
        """Go on from the newest whole checkpoint; return a warning where it is not quite the run that it was.

        Raises:
            DataError: there is none.

        """
        tensors, facts, fault = load_newest(self.folder / STATE)
        self.method.load_state_dict(_under("method.", tensors))
        self.average.load_state_dict(_under("average.", tensors))
        unpack_optimiser(self.optimiser, tensors, facts["groups"])
        self.step = facts["step"]
        self._keep = fault is None  # a damaged checkpoint must not replace the good one that was used for it
        warnings = [] if fault is None else [f"{fault}\n  the checkpoint before it, of step {self.step}, is used"]
        if facts["torch"] != torch.__version__:
            versions = f"the run began with torch {facts['torch']}, this is {torch.__version__}"
            warnings.append(f"{versions}: it goes on, but not bit for bit")
        return "\n".join(warnings) or None

    def run(self) -> None:
        """Train to the last step, saving now and then.

        Raises:
            ResourceError: the loss stayed without a finite gradient, or the disk is full.
            Interrupted: SIGINT or SIGTERM came; the state is saved.

        """
        model: Callable[..., dict[str, Tensor]] = self.method
        if self.world.size > 1:
            model = DistributedDataParallel(self.method)
        self.method.train()
        batches = loader(self.stream, self.step, self.config.steps, self.workers)
        if self.world.first:
            (self.folder / STATE).parent.mkdir(exist_ok=True)
            _trim(self.folder / LOG, self.step)
        with (
            _stop_signals() as caught,
            torch.random.fork_rng([self.device] if self.device.type == "cuda" else []),
            (self.folder / LOG if self.world.first else Path(os.devnull)).open("ab", buffering=0) as log,
            track(self.config.steps, "training", self.step) as advance,
        ):
            for batch in batches:
                line = self._step(model, batch)
                _append(log, line)
                advance("skipped: no finite loss" if line["loss"] is None else f"loss {line['loss']:.3f}")
                # A signal may reach one process earlier than another: all must stop after the same step.
                stop = self.world.largest(max(caught, default=0), self.device)
                done = self.step == self.config.steps
                if done or stop or self.step % self.config.save_every == 0:
                    self.save()
                if stop and not done:
                    raise Interrupted(128 + stop)

    def save(self) -> None:
        """Write the state and the averaged weights."""
        if not self.world.first:
            return
        packed, groups = pack_optimiser(self.optimiser)
        method = {f"method.{name}": tensor for name, tensor in self.method.state_dict().items()}
        average = {f"average.{name}": tensor for name, tensor in self.average.state_dict().items()}
        facts = {"step": self.step, "groups": groups, "torch": torch.__version__}
        # The state last: a run that is killed between the two makes these steps again, and then these weights.
        save_checkpoint(self.folder / WEIGHTS, plain_state(self.average.module), {"step": self.step})
        save_checkpoint(self.folder / STATE, method | average | packed, facts, keep=self._keep)
        self._keep = True

    def _step(self, model: Callable[..., dict[str, Tensor]], batch: Batch) -> dict[str, Any]:
        """Make one optimiser step and return its line of the log."""
        start = perf_counter()
        key = np.random.SeedSequence([self.seed, self.step, self.world.rank])
        torch.manual_seed(int(key.generate_state(1, np.uint64)[0] >> 1))
        rate = learning_rate(self.step, self.config)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        buffers = [buffer.clone() for buffer in self.method.buffers()]
        with autocast(self.device, self.config.precision):
            terms = model(_on(batch, self.device), self.step / self.config.steps)
        loss = torch.stack(list(terms.values())).sum()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.method.parameters(), self.config.clip or float("inf"))
        values = self.world.mean(torch.stack([term.detach() for term in terms.values()])).tolist()
        finite = math.isfinite(sum(values)) and bool(torch.isfinite(norm))
        if finite:
            self.optimiser.step()
            self.method.after_step()
            self.average.update_parameters(self.method.predictor())
        else:  # running statistics took in the batch on the way
            for buffer, before in zip(self.method.buffers(), buffers, strict=True):
                buffer.copy_(before)
        self._bad = 0 if finite else self._bad + 1
        self.step += 1
        if self._bad == BAD_STEPS:
            raise ResourceError(
                f"step {self.step}, cases {', '.join(batch.ids)}",
                f"no finite loss or gradient in {BAD_STEPS} steps in a row",
                "a loss that can be followed downhill",
                "run `nissl check` on the data, or lower --train.learning-rate, and resume from the last checkpoint",
            )
        return {
            "step": self.step,
            "loss": _finite(sum(values)),
            "terms": {name: _finite(value) for name, value in zip(terms, values, strict=True)},
            "learning_rate": rate,
            "gradient": _finite(float(norm)),
            "seconds": round(perf_counter() - start, 4),
            **({} if finite else {"skipped": list(batch.ids)}),
        }

    def _averaged(self, average: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
        """Exponential average with a decay that grows with the number of averaged steps, so that it starts unbiased."""
        if not average.is_floating_point():
            return current
        steps = int(count)
        return torch.lerp(average, current, 1 - min(self.config.average, steps / (steps + 9)))


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context of mixed precision: bfloat16 where asked for, or on a GPU by default."""
    half = precision == "bfloat16" or (precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, torch.bfloat16, enabled=half)


def lay_out(network: nn.Module) -> None:
    """Keep the convolutions' weights channels-last, in which they run fastest."""
    for parameter in network.parameters():
        if parameter.ndim in CHANNELS_LAST:
            parameter.data = parameter.data.contiguous(memory_format=CHANNELS_LAST[parameter.ndim])


def plain_state(network: nn.Module) -> dict[str, Tensor]:
    """Return a network's state dict with parametrisations worked into plain weights, for any PyTorch code.

    Not by a copy whose parametrisations are removed: torch would take the weight from the original as well.
    """
    state: dict[str, Tensor] = {}
    for name, tensor in network.state_dict().items():
        module, marked, rest = name.partition(".parametrizations.")
        if marked:
            attribute = rest.split(".")[0]
            state[f"{module}.{attribute}"] = getattr(network.get_submodule(module), attribute).detach()
        else:
            state[name] = tensor
    return state


def _on(batch: Batch, device: torch.device) -> Batch:
    moved = batch.to(device)
    layout = CHANNELS_LAST[moved.images.ndim]
    unlabelled = None if moved.unlabelled is None else moved.unlabelled.contiguous(memory_format=layout)
    return Batch(moved.images.contiguous(memory_format=layout), moved.masks, unlabelled, moved.ids)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _finite(value: float) -> float | None:
    """JSON has no word for infinity."""
    return value if math.isfinite(value) else None


def _append(log: BinaryIO, line: dict[str, Any]) -> None:
    """Write one line at once.

    Raises:
        ResourceError: the disk is full.

    """
    try:
        log.write(json.dumps(line).encode() + b"\n")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        fix = "free some space and resume from the last checkpoint"
        raise ResourceError(log.name, "disk full", "space for the log and the checkpoints", fix) from error


def _trim(log: Path, step: int) -> None:
    """Drop the log's lines after a step, and what a crash left that is no whole line."""
    if not log.is_file():
        return
    lines = log.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if 1 <= _step_of(line) <= step]
    if kept != lines:
        write_whole(log, b"".join(kept))


def _step_of(line: bytes) -> int:
    """Return the step of a line of the log, 0 where it is none."""
    try:
        return int(json.loads(line)["step"]) if line.endswith(b"\n") else 0
    except (ValueError, TypeError, KeyError):
        return 0


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM, to be answered after the step; a second Ctrl-C stops at once.

    A second SIGTERM does not: a scheduler and torchrun may each send one, and the state would not be saved.
    """
    caught: list[int] = []

    def catch(number: int, frame: FrameType | None) -> None:
        if caught and number == signal.SIGINT:
            os._exit(128 + number)
        caught.append(number)

    try:
        before = {number: signal.signal(number, catch) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals are the caller's
        yield caught
        return
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
