"""What methods need that add parts of their own to a network: the sizes of its features, and draws that are fixed."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from nissl.nets.factory import multiple, parts

SEED = 0
"""Of the parts that a method adds: they start alike in every run, and what differs between seeds is the network."""


@dataclass(frozen=True)
class Sizes:
    """What a decoder gives: its spatial dimensions, the channels of each level (the finest last), and the classes."""

    dims: int
    widths: tuple[int, ...]
    classes: int


@torch.no_grad()
def sizes(net: nn.Module, method: str) -> Sizes:
    """Find out by passing one small image through a copy of the network; errors as of `nissl.nets.factory.parts`."""
    encoder, decoder, head = parts(copy.deepcopy(net).eval(), f"--method {method}")
    kernel = next(parameter for parameter in encoder.parameters() if parameter.ndim > 3)
    dims = kernel.ndim - 2
    features = decoder(encoder(kernel.new_zeros(1, kernel.shape[1], *[multiple(net)] * dims)))
    return Sizes(dims, tuple(level.shape[1] for level in features), head(features[-1]).shape[1])


@contextmanager
def fixed_draws() -> Iterator[None]:
    """Draw on the CPU from a fixed seed inside the block; the global random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(SEED)  # not torch.manual_seed, which also seeds the GPUs
        yield
