"""How the learning rate moves: warm-up, then cosine or steps."""

import math

import torch
from torch import nn

from nissl.config import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """Return the learning rate of a step, counted from 0.

    It rises linearly over the warm-up and then falls to zero along a half cosine, or is halved whenever, since the
    warm-up, another quarter of all steps has passed.
    """
    warmup = math.ceil(config.warmup * config.steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if config.schedule == "step":
        return config.learning_rate * 0.5 ** (4 * (step - warmup) // config.steps)
    done = (step - warmup) / max(1, config.steps - warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def make_optimiser(module: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Make the optimiser; weights of one dimension (normalisation, biases) do not decay."""
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=0.9)
    return torch.optim.AdamW(groups, lr=config.learning_rate)
