"""Rate of the whole training loop, data included, against the bare step of the same network on one batch in memory.

The default 2-D U-Net at 128x128, batch 8, on simulated images. The loop reads, augments, steps, averages the weights,
logs and saves; the bare step is forward, loss, backward and optimiser. Prints one JSON line.
"""

import contextlib
import copy
import io
import json
import statistics
import tempfile
from pathlib import Path

import torch

from measure import Work, machine, ratio, times
from nissl.config import AugmentConfig, DataConfig, TrainConfig
from nissl.data.batches import Schedule, Store, Stream
from nissl.data.discovery import find_cases
from nissl.data.preprocessing import resolve
from nissl.datasets.phantom import PhantomConfig, write_phantoms
from nissl.methods import METHODS
from nissl.nets import factory
from nissl.nets.settings import UNet
from nissl.training.loop import Trainer
from nissl.training.precision import autocast
from nissl.training.session import Session, Stage

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BOUND = 0.9
STEPS = 20
"""Steps in one round; the loop writes a checkpoint at the end of each, five times as often as by default."""


def trainer(folder: Path) -> Trainer:
    """Make a trainer on simulated images, as `nissl train` does."""
    write_phantoms(folder / "data", 24, PhantomConfig(), seed=0)
    dataset = find_cases(folder / "data", DataConfig())
    masked = [case for case in dataset.cases if case.target]
    store = Store(masked, dataset.label_map, resolve(DataConfig(), dataset.dims))
    stream = Stream(store, None, AugmentConfig(), Schedule(seed=0, batch=8))
    method = METHODS["supervised"]([factory.build(UNet(), 2, 1, 2, seed=0)], METHODS.make("supervised"))
    return Trainer(method, stream, Stage("training", TrainConfig(steps=STEPS), 0), Session(folder, DEVICE))


def bare(loop: Trainer) -> Work:
    """Steps of an equal network on one batch that is at hand."""
    method = copy.deepcopy(loop.learner).train()
    optimiser = method.optimiser(loop.stage.train)
    batch = loop.stream[0].to(DEVICE)

    def steps() -> None:
        for _ in range(STEPS):
            with autocast(DEVICE, loop.stage.train.precision):
                loss = torch.stack(list(method(batch, 0.5).values())).sum()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()

    return steps


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        loop = trainer(Path(folder))

        def whole() -> None:
            loop.step = 0
            loop.run()

        taken = times({"bare": bare(loop), "loop": whole}, rounds=7, warmup=1)
    result = {
        "benchmark": "train_step",
        "bare_ms": round(1e3 * statistics.median(taken["bare"]) / STEPS, 1),
        "rate_ratio": round(ratio(taken["bare"], taken["loop"]), 3),
        "bound": BOUND,
        **machine(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
