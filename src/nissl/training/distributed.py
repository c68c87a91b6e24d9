"""Several processes as one: N processes with batch B learn what one process learns with batch N·B.

Started by `torchrun`; with one process nothing here has an effect.
"""

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from nissl.errors import NisslError, ResourceError, out_of_memory

TIMEOUT = timedelta(minutes=10)
"""How long processes wait for one that hangs, or reads and writes for all; a killed one ends the run at once."""


@dataclass(frozen=True)
class World:
    """This process among all."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def mean(self, values: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        """Return the mean over processes: what all of them know, so that all decide alike."""
        return _reduced(values, dist.ReduceOp.SUM) / self.size if self.size > 1 else values

    def largest(self, value: int, device: torch.device) -> int:
        """Return the largest value of any process."""
        return int(_reduced(torch.tensor(value, device=device), dist.ReduceOp.MAX)) if self.size > 1 else value


LOST = ("Connection closed", "Connection reset", "Broken pipe", "Timed out waiting", "NCCL", "connectFullMesh")
"""Words in torch's errors that mean that another process does not answer."""


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """Join the processes that `torchrun` started, for the time of the block.

    Where the block ends well, or by SystemExit because all are to stop, each waits for the others: torchrun ends all as
    soon as one leaves with an error. An error of ours that several processes meet is reported by the first alone. A
    ResourceError says that another process was killed or cannot be reached.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # It keeps the process group that is there when it is first imported (by DistributedDataParallel, torch 2.13) in its
    # default arguments. Then gloo's threads outlive the group: 1 run in 8 aborted at its end.
    importlib.import_module("torch.distributed.nn")
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        try:
            yield World(dist.get_rank(), dist.get_world_size())
        except SystemExit:
            dist.barrier()
            raise
        dist.barrier()
    except NisslError as error:
        error.reported = _was_reported(str(error))
        raise
    except RuntimeError as error:
        if out_of_memory(error) or not any(words in str(error) for words in LOST):
            raise
        where = f"process {dist.get_rank()} of {dist.get_world_size()}"
        found = "another process of this run was killed or cannot be reached"
        fix = "look for its own message, most often a lack of memory; start again with --resume"
        lost = ResourceError(where, found, "all of them until the last step", fix)
        lost.reported = _was_reported(lost.found)
        raise lost from error
    finally:
        dist.destroy_process_group()


def _was_reported(text: str) -> bool:
    """Say whether another process has met the same error before."""
    try:
        store = dist.distributed_c10d._get_default_store()
        return int(store.add(text, 1)) > 1
    except RuntimeError:  # whoever kept the count is gone
        return False


class SynchronisedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm over the samples of all processes, on any device and in any dimension.

    torch.nn.SyncBatchNorm refuses CPU tensors. Every process must bring the same number of samples.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected (batch, channels, *space), got {input.ndim} dimensions")

    def forward(self, input: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch channels *space"]:
        """Normalise by the statistics of all processes' samples in training, by the running ones otherwise."""
        self._check_input_dim(input)
        if not self.training:  # one process may evaluate while the others do not: nothing is exchanged
            return super().forward(input)
        x = input if input.dtype == torch.float64 else input.float()  # sums in half precision lose too much
        axes = [axis for axis in range(x.ndim) if axis != 1]
        shape = (1, -1, *[1] * (x.ndim - 2))
        processes = dist.get_world_size()
        mean = _total(x.mean(axes)) / processes
        centred = x - mean.view(shape)
        variance = _total(centred.square().mean(axes)) / processes
        if self.running_mean is not None:
            self._track(mean.detach(), variance.detach(), processes * x.numel() // x.shape[1])
        normal = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            normal = normal * self.weight.view(shape) + self.bias.view(shape)
        return normal.to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, samples: int) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        # Without a momentum torch keeps the plain average of all batches.
        fraction = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), fraction)
        unbiased = variance * (samples / (samples - 1))
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), fraction)


def synchronise(net: nn.Module) -> None:
    """Turn each BatchNorm of a network, in place, into one over all processes; its state stays."""
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.__class__ = SynchronisedBatchNorm


class _Total(torch.autograd.Function):
    """Sum over processes; its gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        """Return the sum of every process's tensor, the same in all."""
        return _reduced(tensor, dist.ReduceOp.SUM)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Return the sum of every process's gradient: each of the sums depends on this process's tensor."""
        return _reduced(gradients[0], dist.ReduceOp.SUM)


def _reduced(tensor: Tensor, how: Any) -> Tensor:
    total = tensor.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, how)
    return total


def _total(tensor: Tensor) -> Tensor:
    total: Tensor = _Total.apply(tensor)  # type: ignore[no-untyped-call]
    return total
