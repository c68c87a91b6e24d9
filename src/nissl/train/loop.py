"""The only training loop: steps, not epochs; every method gives its losses to it."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from nissl.config import TrainConfig
from nissl.data.dataset import Batch, Stream, loader
from nissl.errors import ResourceError
from nissl.methods import Method
from nissl.progress import track
from nissl.train.checkpoint import load_newest, pack_optimiser, save_checkpoint, unpack_optimiser
from nissl.train.distributed import World, synchronise
from nissl.train.run import STATE, WEIGHTS
from nissl.train.schedule import learning_rate, make_optimiser

BAD_STEPS = 3
"""Steps in a row without a finite gradient after which the run stops."""
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

    def resume(self) -> str | None:
        """Go on from the newest whole checkpoint; return a warning where the last one was damaged.

        Raises:
            DataError: there is none.

        """
        tensors, facts, fault = load_newest(self.folder / STATE)
        self.method.load_state_dict(_under("method.", tensors))
        self.average.load_state_dict(_under("average.", tensors))
        unpack_optimiser(self.optimiser, tensors, facts["groups"])
        self.step = facts["step"]
        if self.world.first:
            _trim(self.folder / "log.jsonl", self.step)
        return None if fault is None else f"{fault}\n  the checkpoint before it, of step {self.step}, is used"

    def run(self) -> None:
        """Train to the last step, saving now and then.

        Raises:
            ResourceError: the loss stayed without a finite gradient, or the disk is full.
            Interrupted: SIGINT or SIGTERM came; the state is saved.

        """
        model: Callable[..., dict[str, Tensor]] = self.method
        if self.world.size > 1:
            model = DistributedDataParallel(self.method, broadcast_buffers=False)
        self.method.train()
        batches = loader(self.stream, self.step, self.config.steps, self.workers)
        with (
            _stop_signals() as stop,
            (self.folder / "log.jsonl").open("a", encoding="utf-8") as log,
            track(self.config.steps, "training", self.step) as advance,
        ):
            for batch in batches:
                line = self._step(model, batch)
                if self.world.first:
                    log.write(json.dumps(line) + "\n")
                    log.flush()
                advance(f"loss {line['loss']:.3f}")
                done = self.step == self.config.steps
                if done or stop or self.step % self.config.save_every == 0:
                    self.save()
                if stop and not done:
                    raise Interrupted(128 + stop[0])

    def save(self) -> None:
        """Write the state and the averaged weights."""
        if not self.world.first:
            return
        packed, groups = pack_optimiser(self.optimiser)
        method = {f"method.{name}": tensor for name, tensor in self.method.state_dict().items()}
        average = {f"average.{name}": tensor for name, tensor in self.average.state_dict().items()}
        facts = {"step": self.step, "groups": groups, "torch": torch.__version__}
        save_checkpoint(self.folder / STATE, method | average | packed, facts, keep=True)
        save_checkpoint(self.folder / WEIGHTS, plain_state(self.average.module), {"step": self.step})

    def _step(self, model: Callable[..., dict[str, Tensor]], batch: Batch) -> dict[str, Any]:
        """Make one optimiser step and return its line of the log."""
        start = perf_counter()
        key = np.random.SeedSequence([self.seed, self.step, self.world.rank])
        torch.manual_seed(int(key.generate_state(1, np.uint64)[0] >> 1))
        rate = learning_rate(self.step, self.config)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        with autocast(self.device, self.config.precision):
            terms = model(_on(batch, self.device), self.step / self.config.steps)
        loss = torch.stack(list(terms.values())).sum()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.method.parameters(), self.config.clip or float("inf"))
        finite = bool(torch.isfinite(norm)) and bool(torch.isfinite(loss))
        if finite:
            self.optimiser.step()
            self.method.after_step()
            self.average.update_parameters(self.method.predictor())
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
            "loss": float(loss.detach()),
            "terms": {name: float(term.detach()) for name, term in terms.items()},
            "learning_rate": rate,
            "gradient": float(norm),
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


def _trim(log: Path, step: int) -> None:
    """Drop the log's lines after a step, and a last line that was cut short."""
    if not log.exists():
        return
    lines = [line for line in log.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    with log.open("r+", encoding="utf-8") as file:
        file.truncate(sum(len(line.encode()) for line in lines if json.loads(line)["step"] <= step))


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM, to be answered after the step; a second one stops at once."""
    caught: list[int] = []

    def catch(number: int, frame: FrameType | None) -> None:
        if caught:
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
