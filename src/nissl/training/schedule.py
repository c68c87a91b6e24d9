"""How the learning rate moves: warm-up, then cosine or steps."""

import itertools
import math
from collections.abc import Sequence

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


def make_optimiser(
    module: nn.Module, config: TrainConfig, apart: Sequence[nn.Parameter] = (), share: float = 1.0
) -> torch.optim.Optimizer:
    """Make the optimiser; weights of one dimension (normalisation, biases) do not decay.

    Each of its groups has a `share` of the learning rate: that given for the parameters `apart`, 1 for the others.
    """
    others = {id(parameter) for parameter in apart} if share != 1 else set()
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {
            "params": [p for p in trained if (id(p) in others) == other and (p.ndim > 1) == decays],
            "weight_decay": config.weight_decay if decays else 0.0,
            "share": share if other else 1.0,
        }
        for other, decays in itertools.product([False, True], [True, False])
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=0.9, fused=True)
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
