"""What settings come to on a data set, and whether a network fits both: found out before the run starts."""

import copy
import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from nissl.config import Config
from nissl.data.cases import Dataset
from nissl.data.preprocessing import resolve
from nissl.data.split import Split
from nissl.errors import InputError
from nissl.methods import METHODS
from nissl.nets import factory
from nissl.nets.flops import Flops
from nissl.pretrain import PRETRAININGS
from nissl.pretrain.settings import Stepped
from nissl.tasks.task import task_of
from nissl.training.precision import resolved_precision
from nissl.training.protocol import published


def resolve_settings(config: Config, dataset: Dataset, split: Split, device: torch.device) -> Config:
    """Fill in every setting that follows from the data, the device, the network or the protocol.

    Resolving twice changes nothing. An InputError where the settings do not fit the data or each other.
    """
    if protocol := published(config.protocol):
        config = protocol.settled(config, len(split.labelled))
    _require_learns(config)
    per_stream(config)
    config = dataclasses.replace(
        config,
        data=resolve(config.data, dataset.dims),
        augment=config.augment.resolved(dataset.dims),
        train=dataclasses.replace(config.train, precision=resolved_precision(device, config.train.precision)),
    )
    if getattr(config.pretrain, "layers", "") == "auto" or getattr(config.pretrain, "response", "") == "auto":
        outputs = len(task_of(config.task).outputs(dataset))
        net = factory.build(config.net, dataset.dims, dataset.channels, outputs, config.seed)
        pretrain = PRETRAININGS[config.pretrain.name].resolved(config.pretrain, net)
        config = dataclasses.replace(config, pretrain=pretrain)
    return config


def _require_learns(config: Config) -> None:
    """Refuse a method that cannot learn the task."""
    task, learnt = config.task.name, METHODS[config.method.name].tasks
    if learnt is not None and task not in learnt:
        able = [name for name, kind in METHODS.items() if kind.tasks is None or task in kind.tasks]
        found, expected = f"learns {', '.join(learnt)}, not {task}", f"one of {', '.join(sorted(able))}"
        raise InputError(f"method.name {config.method.name}", found, expected, "choose another --method or --task")


def per_stream(config: Config) -> int:
    """Images that a step draws from those with masks and, where the method uses them, from those without.

    A step sees as many images with every method, so that comparing two methods compares nothing else. An InputError
    where an odd number would have to be halved.
    """
    batch, method = config.train.batch, config.method.name
    if METHODS[method].sees == "labelled":
        return batch
    if batch % 2:
        expected = f"an even number: with {method} one half of a step's images has masks"
        raise InputError("train.batch", str(batch), expected, f"use {batch + 1}")
    return batch // 2


def require_fit(net: nn.Module, config: Config, dataset: Dataset) -> dict[str, Any]:
    """Refuse a network that data, pre-training or method cannot work with; return its facts, as in network.json.

    `multiply_adds` are those of one image.

    Raises:
        InputError: the network does not make logits of the size of its input, cannot normalise what a step shows it, or
            lacks a part.

    """
    size, outputs = config.data.size, len(task_of(config.task).outputs(dataset))
    flops = Flops()
    training = net.training
    try:
        with flops, torch.no_grad():
            logits = net.eval()(torch.zeros(1, dataset.channels, *size))
        found = f"output of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
    except Exception as error:  # another's network may raise anything
        logits, found = None, str(error)
    if not isinstance(logits, Tensor) or logits.shape != (1, outputs, *size):
        fitting = -(-max(size) // factory.multiple(net)) * factory.multiple(net)
        wanted = f"logits of shape {(1, outputs, *size)} for an image of that size"
        raise InputError(f"net.name {config.net.name}", found, wanted, f"try --size {fitting}, or another network")
    net.train(training)
    _require_batch(net, config, dataset.channels)
    PRETRAININGS[config.pretrain.name].resolved(config.pretrain, net)
    if METHODS[config.method.name].needs_parts:
        factory.parts(net, f"--method {config.method.name}")
    return {
        "name": config.net.name,
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "multiply_adds": flops.count // 2,
        "input": [dataset.channels, *size],
    }


def _require_batch(net: nn.Module, config: Config, channels: int) -> None:
    """Refuse, by an InputError, steps of one image that is a single pixel where the network is coarsest.

    A normalisation layer cannot train on them: it has no variance.
    """
    steps = {"train.batch": per_stream(config)}
    if isinstance(config.pretrain, Stepped):
        steps["pretrain.batch"] = config.pretrain.batch
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
