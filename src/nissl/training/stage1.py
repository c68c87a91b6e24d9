"""Stage 1 with what stage 2 has: checkpoints, an end at a signal, and a resumed run that is the uninterrupted one."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import nn

from nissl.pretrain import Images, Pretraining
from nissl.pretrain.pretraining import Report
from nissl.progress import track, warn
from nissl.runs.checkpoint import has_checkpoint, load_newest, pack_optimiser, save_checkpoint, under, unpack_optimiser
from nissl.training.distributed import World
from nissl.training.signals import Interrupted, stop_signals


@dataclass
class Stage1:
    """The pre-training of one network of a run.

    Args:
        pretraining: how it learns.
        net: the network as it was initialised.
        path: its checkpoint, which afterwards holds the pre-trained network.
        save_every: steps between two checkpoints.
        device: where the network is.
        world: this process among all.

    """

    pretraining: Pretraining
    net: nn.Module
    path: Path
    save_every: int
    device: torch.device
    world: World
    seconds: float = field(default=0.0, init=False)
    """Time that the stage took, over all sessions."""
    _keep: bool = field(default=True, init=False)

    def run(self, images: Images) -> Report:
        """Pre-train the network in place, from its newest whole checkpoint where there is one.

        Raises:
            ResourceError: no finite step could be made for three steps in a row, or the disk is full.
            Interrupted: SIGINT or SIGTERM came; the state is saved.

        """
        if not self.pretraining.steps:
            return self.pretraining.run(self.net, images)
        if not has_checkpoint(self.path):
            self.pretraining.begin(self.net)
        elif finished := self._resume():
            return finished
        pretraining, what = self.pretraining, f"pre-training ({self.pretraining.config.name})"
        with stop_signals() as caught, track(pretraining.steps, what, pretraining.done) as advance:
            began, before, parts = perf_counter(), self.seconds, pretraining.parts

            def after_step(message: str) -> None:
                nonlocal parts
                advance(message)
                self.seconds = before + perf_counter() - began
                if pretraining.parts != parts:
                    parts = pretraining.parts
                    warn(f"out of memory: batches of the pre-training now pass in {parts} parts")
                # A signal may reach one process earlier than another: all must stop after the same step.
                stop = self.world.largest(max(caught, default=0), self.device)
                if stop or pretraining.done % self.save_every == 0:
                    self._save()
                if stop:
                    raise Interrupted(128 + stop)

            pretraining.advance = after_step
            pretraining.go_on(self.net, images)
            report = pretraining.finish(self.net, images)
            self.seconds = before + perf_counter() - began
            self._save(report)
            if stop := self.world.largest(max(caught, default=0), self.device):  # one that came while it finished
                raise Interrupted(128 + stop)
        return report

    def _resume(self) -> Report | None:
        """Take up the newest checkpoint; return the report where the stage was finished."""
        tensors, facts, fault = load_newest(self.path)
        self._keep = fault is None  # a damaged checkpoint must not replace the good one that was used for it
        if fault:
            warn(f"{fault}\n  the checkpoint before it, of step {facts['done']}, is used")
        self.seconds = facts["seconds"]
        state = under("net.", tensors)
        if facts["report"]:
            self.pretraining.restructure(self.net)
            self.net.load_state_dict(state)
            return Report(**facts["report"])
        self.pretraining.begin(self.net)
        self.net.load_state_dict(state)
        self.pretraining.extra.load_state_dict(under("extra.", tensors))
        if self.pretraining.optimiser:
            unpack_optimiser(self.pretraining.optimiser, tensors, facts["groups"])
        for name in COUNTS:
            if name in facts:  # a state that an earlier version wrote may lack one
                setattr(self.pretraining, name, facts[name])
        return None

    def _save(self, report: Report | None = None) -> None:
        if not self.world.first:
            return
        optimiser = self.pretraining.optimiser
        packed, groups = pack_optimiser(optimiser) if optimiser and not report else ({}, [])
        counts: dict[str, Any] = {name: getattr(self.pretraining, name) for name in COUNTS}
        facts = counts | {"groups": groups, "seconds": self.seconds, "report": asdict(report) if report else None}
        self.path.parent.mkdir(exist_ok=True)
        state = {f"net.{name}": tensor for name, tensor in self.net.state_dict().items()}
        state |= {f"extra.{name}": tensor for name, tensor in self.pretraining.extra.state_dict().items()}
        save_checkpoint(self.path, state | packed, facts, keep=self._keep)
        self._keep = True


COUNTS = ("done", "bad", "seen", "parts", "curves")
"""What a pre-training counts on its way, beside the network, its extra layers and its optimiser."""
