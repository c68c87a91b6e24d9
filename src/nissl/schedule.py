"""How the learning rate moves: warm-up, then a cosine, a line or steps."""

import math

from nissl.config import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """Return the learning rate of a step, counted from 0, as `warmup` and `schedule` of the settings say."""
    warmup = math.ceil(config.warmup * config.steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if config.schedule == "step":
        return config.learning_rate * 0.5 ** (4 * (step - warmup) // config.steps)
    done = (step - warmup) / max(1, config.steps - warmup)
    if config.schedule == "linear":
        return config.learning_rate * (1 - done)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
