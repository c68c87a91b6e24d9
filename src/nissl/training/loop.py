"""The only training loop: steps, not epochs. Every learner runs on it, pre-trainings and methods alike."""

import errno
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from nissl.data.batches import Batch, Steps, loader, more_parts
from nissl.errors import InputError, ResourceError, out_of_memory
from nissl.files import write_whole
from nissl.learner import Learner, derived_seed, put_back
from nissl.methods.shared import moving_average
from nissl.progress import warn
from nissl.runs.checkpoint import (
    load_newest,
    pack_optimiser,
    plain_state,
    save_checkpoint,
    strip_prefix,
    unpack_optimiser,
    upgraded_state,
)
from nissl.training.precision import autocast, resolved_precision
from nissl.training.session import Session, Stage
from nissl.training.signals import Interrupted, stop_signals

BAD_STEPS = 3
"""Steps in a row without a finite gradient after which the run stops."""
EMPTY_CHECKPOINTS = 3
"""Checkpoints in a row with trivial outputs, after which the user is warned."""


class Trainer:
    """One stage of one run: a learner, its batches by step, how and how long it learns, and where."""

    def __init__(self, learner: Learner, stream: Steps[Batch], stage: Stage, session: Session) -> None:
        self.learner, self.stream, self.stage, self.session = learner, stream, stage, session
        session.place(learner)
        self.optimiser = learner.optimiser(stage.train)
        self.average: AveragedModel | None = None
        if stage.weights:
            # The decay grows with the number of averaged steps, so that the average starts unbiased.
            rule = moving_average(lambda steps: min(stage.train.average, steps / (steps + 9)))
            self.average = AveragedModel(learner.predictor(), multi_avg_fn=rule, use_buffers=True)
        moved = {id(parameter) for group in self.optimiser.param_groups for parameter in group["params"]}
        self._moved = [parameter for parameter in learner.parameters() if id(parameter) in moved]
        self.step = 0
        """Steps that were made."""
        self.seconds = 0.0
        """Time that they took, over all sessions."""
        self.finished: dict[str, Any] | None = None
        """The learner's facts about a stage that has ended, if it has any."""
        self._bad = self._empty = 0
        self._parts = 1
        self._keep = True

    def resume(self) -> str | None:
        """Continue from the newest whole checkpoint; return a warning where it is not quite the run that it was.

        Raises:
            DataError: there is none.
            InputError: it is of another network, learner or optimiser.

        """
        path = self.session.folder / self.stage.state
        tensors, facts, fault = load_newest(path)
        tensors, facts = upgraded_state(tensors, facts)
        try:
            if facts.get("finished") is not None:
                self.learner.restructure()
            self.learner.load_state_dict(strip_prefix("learner.", tensors))
            if self.average:
                self.average.load_state_dict(strip_prefix("average.", tensors))
            if facts.get("finished") is None:
                unpack_optimiser(self.optimiser, tensors, facts["groups"])
        except (RuntimeError, ValueError, KeyError, IndexError) as error:
            found = f"the state of another network, method or optimiser ({str(error).splitlines()[-1].strip()})"
            fix = "take the settings that the run began with, or start a new run"
            raise InputError(path, found, "the state of this one", fix) from error
        self.step, self._parts = facts["step"], facts["parts"]
        # A state that an earlier version wrote may lack one of these.
        self._bad, self._empty = facts.get("bad", 0), facts.get("empty", 0)
        self.seconds, self.finished = facts.get("seconds", 0.0), facts.get("finished")
        self._keep = fault is None  # a damaged checkpoint must not replace the good one that was used for it
        warnings = [] if fault is None else [f"{fault}\n  the checkpoint before it, of step {self.step}, is used"]
        if facts.get("torch", torch.__version__) != torch.__version__:
            versions = f"the run began with torch {facts['torch']}, this is {torch.__version__}"
            warnings.append(f"{versions}: it continues, but not bit for bit")
        return "\n".join(warnings) or None

    def run(self) -> dict[str, Any] | None:
        """Train to the last step, saving now and then; return what the learner says of the finished stage.

        Raises:
            ResourceError: the loss stayed without a finite gradient, or the disk is full.
            Interrupted: SIGINT or SIGTERM came, or the session was asked to stop; the state is saved.

        """
        if self.finished is not None:
            return self.finished
        session, stage, steps = self.session, self.stage, self.stage.train.steps
        if session.world.first:
            (session.folder / stage.state).parent.mkdir(exist_ok=True)
            _trim(session.folder / stage.log, self.step)
        began, before = perf_counter(), self.seconds
        with (
            stop_signals() as caught,
            torch.random.fork_rng([session.device] if session.device.type == "cuda" else []),
            (session.folder / stage.log if session.world.first else Path(os.devnull)).open("ab", buffering=0) as log,
            session.control.track(steps, stage.title, self.step) as advance,
            self.learning() as model,
            closing(loader(self.stream, self.step, steps, session.workers)) as batches,  # ends its processes on errors
        ):
            for batch in batches:
                line = self.make_step(model, batch)
                done = self.step == steps
                due = done or self.step % stage.train.save_every == 0
                if due and session.world.first:
                    line |= self._warn_if_empty(batch)
                _append(log, line)
                advance(_message(line))
                self.seconds = before + perf_counter() - began
                stop = self._asked_to_stop(caught)
                if (due and (self.average or not done)) or stop:
                    self.save()
                if stop and not (done and self.average):
                    raise Interrupted(128 + stop)
            self.finished = self.learner.finish(self.serve)
            if self.finished is not None:
                self.seconds = before + perf_counter() - began
                self.save()
                if stop := self._asked_to_stop(caught):  # a signal that came while it finished
                    raise Interrupted(128 + stop)
        return self.finished

    def save(self) -> None:
        """Write the state and the averaged weights."""
        if not self.session.world.first:
            return
        folder, stage = self.session.folder, self.stage
        packed, groups = pack_optimiser(self.optimiser) if self.finished is None else ({}, [])
        tensors = {f"learner.{name}": tensor for name, tensor in self.learner.state_dict().items()} | packed
        facts = {"step": self.step, "empty": self._empty, "parts": self._parts, "bad": self._bad, "groups": groups}
        facts |= {"torch": torch.__version__, "finished": self.finished}
        if stage.weights is None:  # the cost of a pre-training; else equal runs end with equal files
            facts["seconds"] = self.seconds
        if self.average and stage.weights:
            # The state last: a run that is killed between the two makes these steps again, and then these weights.
            weights = {"step": self.step, "planned_steps": stage.train.steps}
            save_checkpoint(folder / stage.weights, plain_state(self.average.module), weights)
            tensors |= {f"average.{name}": tensor for name, tensor in self.average.state_dict().items()}
        save_checkpoint(folder / stage.state, tensors, facts, keep=self._keep)
        self._keep = True

    @contextmanager
    def learning(self) -> Iterator[Callable[..., dict[str, Tensor]]]:
        """Hold the learner in training mode, with gradients for what the optimiser moves; yield what makes losses."""
        moved = set(map(id, self._moved))
        still = [p for p in self.learner.parameters() if p.requires_grad and id(p) not in moved]
        self.learner.train()
        for parameter in still:
            parameter.requires_grad_(False)
        try:
            several = self.session.world.size > 1 and not self.learner.local
            yield DistributedDataParallel(self.learner) if several else self.learner
        finally:
            for parameter in still:
                parameter.requires_grad_(True)
            self.learner.zero_grad()

    def _asked_to_stop(self, caught: Sequence[int]) -> int:
        """Number of the signal that asks to stop, 0 for none; the same in all processes, which stop after one step."""
        asked = max(caught, default=0) or (15 if self.session.control.should_stop() else 0)
        return self.session.world.largest(asked, self.session.device)

    def _precision(self) -> torch.autocast:
        return autocast(self.session.device, self.stage.train.precision)

    def serve(self, step: int) -> list[Batch]:
        """Return the batch of a step, on the device and in parts."""
        return self.stream[step].to(self.session.device).parts(self._parts)

    def make_step(self, model: Callable[..., dict[str, Tensor]], batch: Batch) -> dict[str, Any]:
        """Make one optimiser step and return its line of the log."""
        start, train, learner = perf_counter(), self.stage.train, self.learner
        rate = learner.learning_rate(self.step, train)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group.get("share", 1.0)
        buffers = [buffer.clone() for buffer in learner.buffers()]
        line: dict[str, Any] = {"step": self.step + 1}
        try:
            if learner.local:
                with self._precision():
                    line |= self._gradient(lambda parts: learner.learn(parts, self.step / train.steps), batch, buffers)
                finite = True
            else:
                terms = self._gradient(lambda parts: self._back_propagate(model, parts), batch, buffers)
                norm = torch.nn.utils.clip_grad_norm_(self._moved, train.clip or float("inf"))
                values = self.session.world.mean(torch.stack(list(terms.values()))).tolist()
                finite = math.isfinite(sum(values)) and bool(torch.isfinite(norm))
                line |= {
                    "loss": _finite(sum(values)),
                    "terms": {name: _finite(value) for name, value in zip(terms, values, strict=True)},
                    "learning_rate": rate,
                    "gradient": _finite(float(norm)),
                }
        except FloatingPointError:
            finite = False
        if finite:
            self.optimiser.step()
            learner.after_step()
            if self.average:
                self.average.update_parameters(learner.predictor())
            line |= learner.progress_facts(self.step)
        else:  # running statistics took in the batch on the way
            put_back(learner, buffers)
        self._bad = 0 if finite else self._bad + 1
        self.step += 1
        if not finite:
            self._complain(batch)
        line["seconds"] = round(perf_counter() - start, 4)
        line |= {} if self._parts == 1 else {"parts": self._parts}
        line |= {} if finite else {"skipped": list(batch.ids)}
        if self.average and self.session.control.after_step:
            line |= self.session.control.after_step(learner, self.step)
        return line

    def _complain(self, batch: Batch) -> None:
        """Warn at the first step in a row that is not finite, and stop at the last one that is tolerated."""
        lower = "--train.learning-rate" if self.average else "--pretrain.rate where the pre-training takes it"
        half = resolved_precision(self.session.device, self.stage.train.precision) == "bfloat16"
        suspects = f"the data (`nissl check`), {lower}{', or the precision (--train.precision float32)' * half}"
        if self._bad == 1:
            warn(f"{self.stage.title}: step {self.step} was skipped, not finite in loss or gradient. See {suspects}")
        if self._bad == BAD_STEPS:
            where = f"{self.stage.title}, step {self.step}, cases {', '.join(batch.ids)}"
            found = f"no finite loss or gradient in {BAD_STEPS} steps in a row"
            fix = f"check or change {suspects}, and resume from the last checkpoint"
            raise ResourceError(where, found, "a loss that can be followed downhill", fix)

    def _gradient(
        self, make: Callable[[Sequence[Batch]], dict[str, Any]], batch: Batch, buffers: Sequence[Tensor]
    ) -> dict[str, Any]:
        """Leave the gradient of a batch in the parameters and return what `make` returns.

        Where the batch does not fit into memory it goes through the network in parts: the mean of their gradients is
        that of the batch, but normalisation by batch statistics then sees the images of one part, what a method draws
        is drawn for each part, one that mixes images mixes those of a part, and UAMT's mean over certain pixels is
        that of a part. The last is so for each of several processes as well.

        Raises:
            RuntimeError, MemoryError: not even one image fits, or there are several processes, which cannot agree.

        """
        world, placed = self.session.world, batch.to(self.session.device)
        key = derived_seed(self.stage.seed, self.step, world.rank)
        while True:
            torch.manual_seed(key)
            self.optimiser.zero_grad(set_to_none=True)
            try:
                return make(placed.parts(self._parts))
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error) or world.size > 1 or self._parts >= len(batch.images):
                    raise
            # Here, and not in the handler, which keeps the tensors of the failed pass alive.
            put_back(self.learner, buffers)
            self._parts = more_parts(self._parts, len(batch.images))
            images = len(batch.images) // self._parts
            warn(f"out of memory: from step {self.step + 1} on, batches pass in {self._parts} parts of {images}")

    def _back_propagate(self, model: Callable[..., dict[str, Tensor]], parts: Sequence[Batch]) -> dict[str, Tensor]:
        total: dict[str, Tensor] = {}
        for part in parts:
            with self._precision():
                terms = model(part, self.step / self.stage.train.steps)
            loss = torch.stack(list(terms.values())).sum() / len(parts)
            loss.backward()  # type: ignore[no-untyped-call]
            for name, term in terms.items():
                fraction = term.detach() / len(parts)
                total[name] = total[name] + fraction if name in total else fraction
        return total

    def _warn_if_empty(self, batch: Batch) -> dict[str, str]:
        """Warn when the averaged network has given trivial outputs at some checkpoints, though the targets are not."""
        if self.average is None or self.learner.task is None:
            return {}
        network = self.average.module.eval()
        parts = batch.to(self.session.device).parts(self._parts)
        with torch.inference_mode(), self._precision():
            found = self.learner.task.degenerate((network(part.images) for part in parts), batch.targets)
        self._empty = self._empty + 1 if found else 0
        if self._empty != EMPTY_CHECKPOINTS:
            return {}
        text = f"at {EMPTY_CHECKPOINTS} checkpoints in a row {found}"
        warn(text)
        return {"warning": text}


def run_stage(learner: Learner, stream: Steps[Batch], stage: Stage, session: Session, resume: bool) -> Trainer:
    """Run a stage to its end, from its newest checkpoint with `resume`; arguments and errors as of `Trainer`."""
    trainer = Trainer(learner, stream, stage, session)
    if resume and (warning := trainer.resume()):
        warn(warning)
    trainer.run()
    return trainer


def _message(line: dict[str, Any]) -> str:
    if "skipped" in line:
        return "skipped: not finite"
    if "change" in line:
        return f"filters moved by {sum(line['change']) / len(line['change']):.2f} of their norm"
    return f"loss {line['loss']:.3f}" if "loss" in line else ""


def _finite(value: float) -> float | None:
    """JSON has no word for infinity."""
    return value if math.isfinite(value) else None


def _append(log: BinaryIO, line: dict[str, Any]) -> None:
    """Write one line at once; a ResourceError where the disk is full."""
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
