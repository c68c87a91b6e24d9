"""Whether a network fits the data and the settings, and how large it is: found out before the run starts."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nissl import nets
from nissl.config import Config
from nissl.data.cases import Dataset
from nissl.errors import InputError


def measure_network(net: nn.Module, config: Config, dataset: Dataset, steps: Mapping[str, int]) -> dict[str, Any]:
    """Count parameters, and multiply-adds for one input.

    `steps` are the images of a step of each stage, by the setting that says how many.

    Raises:
        InputError: the network does not make logits of the size of its input, or cannot normalise what a step shows it.

    """
    size, classes = config.data.size, len(dataset.label_map.names)
    counter = FlopCounterMode(display=False)
    training = net.training
    try:
        with counter, torch.no_grad():
            logits = net.eval()(torch.zeros(1, dataset.channels, *size))
        found = f"output of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
    except Exception as error:  # another's network may raise anything
        logits, found = None, str(error)
    if not isinstance(logits, Tensor) or logits.shape != (1, classes, *size):
        fitting = -(-max(size) // nets.multiple(net)) * nets.multiple(net)
        wanted = f"logits of shape {(1, classes, *size)} for an image of that size"
        raise InputError(f"net.name {config.net.name}", found, wanted, f"try --size {fitting}, or another network")
    net.train(training)
    _require_batch(net, config, dataset.channels, steps)
    return {
        "name": config.net.name,
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "multiply_adds": counter.get_total_flops() // 2,
        "input": [dataset.channels, *size],
    }


def _require_batch(net: nn.Module, config: Config, channels: int, steps: Mapping[str, int]) -> None:
    """Refuse steps of one image that is a single pixel where the network is coarsest: it has no variance.

    Raises:
        InputError: a normalisation layer cannot train on them.

    """
    for key, images in steps.items():
        if images > 1:
            continue
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                copy.deepcopy(net).train()(torch.zeros(1, channels, *config.data.size))
        except ValueError as error:
            found = f"one image of {'x'.join(map(str, config.data.size))} pixels at a time: {error}"
            fix = f"raise --{key} (with images without masks, one half of it has masks) or --size"
            raise InputError(key, found, "two images in a step, or larger ones, to normalise by", fix) from error
