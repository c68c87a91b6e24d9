"""The only training loop: steps, not epochs; every method gives its losses to it."""

import errno
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from nissl.config import TrainConfig
from nissl.data.batches import Batch, Stream, loader, more_parts
from nissl.errors import InputError, ResourceError, out_of_memory
from nissl.files import write_whole
from nissl.methods import Method
from nissl.methods.shared import moving_average
from nissl.progress import track, warn
from nissl.runs.checkpoint import load_newest, pack_optimiser, save_checkpoint, under, unpack_optimiser
from nissl.runs.folder import STATE, WEIGHTS
from nissl.training.distributed import World, synchronise
from nissl.training.schedule import learning_rate, make_optimiser
from nissl.training.signals import Interrupted, stop_signals

BAD_STEPS = 3
"""Steps in a row without a finite gradient after which the run stops."""
EMPTY_LOOKS = 3
"""Checkpoints in a row at which the network finds no foreground, after which that is said."""
LOG = Path("log.jsonl")
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


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
        apart: parameters that learn at a share of the learning rate.
        share: that share.
        after: called after each step with the number of steps made; what it returns is added to the step's line of the
            log, which a resumed run takes up again.

    """

    method: Method
    stream: Stream
    config: TrainConfig
    folder: Path
    seed: int
    device: torch.device
    world: World = field(default_factory=World)
    workers: int = 0
    apart: Sequence[nn.Parameter] = ()
    share: float = 1.0
    after: Callable[[int], dict[str, Any]] | None = None
    step: int = field(default=0, init=False)
    """Steps that were made."""

    def __post_init__(self) -> None:
        if self.world.size > 1:
            synchronise(self.method)
        self.method.to(self.device)
        lay_out(self.method)
        self.optimiser = make_optimiser(self.method, self.config, self.apart, self.share)
        # The decay grows with the number of averaged steps, so that the average starts unbiased.
        rule = moving_average(lambda steps: min(self.config.average, steps / (steps + 9)))
        self.average = AveragedModel(self.method.predictor(), multi_avg_fn=rule, use_buffers=True)
        self._bad = 0
        self._empty = 0
        self._parts = 1
        self._keep = True

    def resume(self) -> str | None:
        """Go on from the newest whole checkpoint; return a warning where it is not quite the run that it was.

        Raises:
            DataError: there is none.
            InputError: it is of another network, method or optimiser.

        """
        tensors, facts, fault = load_newest(self.folder / STATE)
        try:
            self.method.load_state_dict(under("method.", tensors))
            self.average.load_state_dict(under("average.", tensors))
            unpack_optimiser(self.optimiser, tensors, facts["groups"])
        except (RuntimeError, ValueError, KeyError, IndexError) as error:
            found = f"the state of another network, method or optimiser ({str(error).splitlines()[-1].strip()})"
            fix = "take the settings that the run began with, or start a new run"
            raise InputError(self.folder / STATE, found, "the state of this one", fix) from error
        self.step, self._empty, self._parts = facts["step"], facts["empty"], facts["parts"]
        self._bad = facts.get("bad", 0)  # a state that an earlier version wrote has none
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
            stop_signals() as caught,
            torch.random.fork_rng([self.device] if self.device.type == "cuda" else []),
            (self.folder / LOG if self.world.first else Path(os.devnull)).open("ab", buffering=0) as log,
            track(self.config.steps, "training", self.step) as advance,
        ):
            for batch in batches:
                line = self._step(model, batch)
                line |= self.after(self.step) if self.after else {}
                done = self.step == self.config.steps
                due = done or self.step % self.config.save_every == 0
                if due and self.world.first:
                    line |= self._look(batch)
                _append(log, line)
                advance("skipped: no finite loss" if line["loss"] is None else f"loss {line['loss']:.3f}")
                # A signal may reach one process earlier than another: all must stop after the same step.
                stop = self.world.largest(max(caught, default=0), self.device)
                if due or stop:
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
        counts = {"step": self.step, "empty": self._empty, "parts": self._parts, "bad": self._bad}
        facts = counts | {"groups": groups, "torch": torch.__version__}
        # The state last: a run that is killed between the two makes these steps again, and then these weights.
        save_checkpoint(self.folder / WEIGHTS, plain_state(self.average.module), {"step": self.step})
        save_checkpoint(self.folder / STATE, method | average | packed, facts, keep=self._keep)
        self._keep = True

    def _step(self, model: Callable[..., dict[str, Tensor]], batch: Batch) -> dict[str, Any]:
        """Make one optimiser step and return its line of the log."""
        start = perf_counter()
        rate = learning_rate(self.step, self.config)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["share"]
        buffers = [buffer.clone() for buffer in self.method.buffers()]
        terms = self._gradient(model, _on(batch, self.device), buffers)
        norm = torch.nn.utils.clip_grad_norm_(self.method.parameters(), self.config.clip or float("inf"))
        values = self.world.mean(torch.stack(list(terms.values()))).tolist()
        finite = math.isfinite(sum(values)) and bool(torch.isfinite(norm))
        if finite:
            self.optimiser.step()
            self.method.after_step()
            self.average.update_parameters(self.method.predictor())
        else:  # running statistics took in the batch on the way
            _put_back(self.method, buffers)
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
            **({} if self._parts == 1 else {"parts": self._parts}),
            **({} if finite else {"skipped": list(batch.ids)}),
        }

    def _gradient(
        self, model: Callable[..., dict[str, Tensor]], batch: Batch, buffers: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Leave the gradient of a batch in the parameters and return the terms of its loss.

        Where the batch does not fit into memory it goes through the network in parts: the mean of their gradients is
        that of the batch, but normalisation by batch statistics then sees the images of one part, what a method draws
        is drawn for each part, one that mixes images mixes those of a part, and UAMT's mean over certain pixels is
        that of a part. The last is so for each of several processes as well.

        Raises:
            RuntimeError, MemoryError: not even one image fits, or there are several processes, which cannot agree.

        """
        key = int(np.random.SeedSequence([self.seed, self.step, self.world.rank]).generate_state(1, np.uint64)[0] >> 1)
        while True:
            torch.manual_seed(key)
            self.optimiser.zero_grad(set_to_none=True)
            total: dict[str, Tensor] = {}
            try:
                for part in batch.parts(self._parts):
                    with autocast(self.device, self.config.precision):
                        terms = model(part, self.step / self.config.steps)
                    loss = torch.stack(list(terms.values())).sum() / self._parts
                    loss.backward()  # type: ignore[no-untyped-call]
                    shares = {name: term.detach() / self._parts for name, term in terms.items()}
                    total = {name: total[name] + share for name, share in shares.items()} if total else shares
                return total
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error) or self.world.size > 1 or self._parts >= len(batch.images):
                    raise
            # Here, and not in the handler, which keeps the tensors of the failed pass alive.
            _put_back(self.method, buffers)
            self._parts = more_parts(self._parts, len(batch.images))
            images = len(batch.images) // self._parts
            warn(f"out of memory: from step {self.step + 1} on, batches pass in {self._parts} parts of {images}")

    def _look(self, batch: Batch) -> dict[str, str]:
        """Say when the averaged network has found no foreground for some checkpoints, though the masks show it."""
        network = self.average.module.eval()
        with torch.inference_mode(), autocast(self.device, self.config.precision):
            found = any(
                bool((network(part.images).argmax(1) > 0).any()) for part in _on(batch, self.device).parts(self._parts)
            )
        shares = torch.bincount(batch.masks.flatten()).double() / batch.masks.numel()
        self._empty = 0 if found or float(shares[0]) == 1 else self._empty + 1
        if self._empty != EMPTY_LOOKS:
            return {}
        listed = ", ".join(f"class {label}: {share:.2%}" for label, share in enumerate(shares.tolist()) if label)
        text = (
            f"at {EMPTY_LOOKS} checkpoints in a row the network calls every pixel background, while in the last masks "
            f"{listed}; if it stays so, try more --steps, another --train.learning-rate, or --data.sampling patches "
            "with a larger --data.foreground"
        )
        warn(text)
        return {"warning": text}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context of mixed precision: bfloat16 where asked for, or on a GPU by default."""
    half = precision == "bfloat16" or (precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, torch.bfloat16, enabled=half)


def lay_out(module: nn.Module) -> None:
    """Keep the convolutions' weights channels-last, in which they run fastest."""
    for parameter in module.parameters():
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


def _put_back(module: nn.Module, buffers: Sequence[Tensor]) -> None:
    for buffer, before in zip(module.buffers(), buffers, strict=True):
        buffer.copy_(before)


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
