"""Rate of the whole training loop, data included, against the bare step of the same network on one batch in memory.

The default 2-D U-Net at 128x128, batch 8, on simulated images. The loop reads, augments, steps, averages the weights,
logs and saves; the bare step is forward, loss, backward and optimiser. Prints one JSON line.
"""

import contextlib
import copy
import dataclasses
import io
import json
import statistics
import tempfile
from pathlib import Path

import torch
from nissl.training.schedule import make_optimiser

from measure import Work, machine, ratio, times
from nissl.config import AugmentConfig, DataConfig, NetConfig, TrainConfig
from nissl.data.batches import Schedule, Store, Stream
from nissl.data.discovery import find_cases
from nissl.data.preprocessing import resolve
from nissl.datasets.phantom import PhantomConfig, write_phantoms
from nissl.methods import METHODS
from nissl.nets import factory
from nissl.training.loop import Trainer, autocast

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BOUND = 0.9
STEPS = 20
"""Steps in one round; the loop writes a checkpoint at the end of each, five times as often as by default."""


def trainer(folder: Path) -> Trainer:
    """Make a trainer on simulated images, as `nissl train` does."""
    write_phantoms(folder / "data", 24, PhantomConfig(), seed=0)
    dataset = find_cases(folder / "data", DataConfig())
    masked = [case for case in dataset.cases if case.mask]
    store = Store(masked, dataset.label_map, resolve(DataConfig(), dataset.dims))
    stream = Stream(store, None, AugmentConfig(), Schedule(seed=0, batch=8))
    method = METHODS["supervised"]([factory.build(NetConfig(), 2, 1, 2, seed=0)])
    (folder / "checkpoints").mkdir()
    return Trainer(method, stream, TrainConfig(steps=STEPS), folder, seed=0, device=DEVICE)


def bare(loop: Trainer) -> Work:
    """Steps of an equal network on one batch that is at hand."""
    method = copy.deepcopy(loop.method).train()
    optimiser = make_optimiser(method, loop.config)
    batch = loop.stream[0].to(DEVICE)
    batch = dataclasses.replace(batch, images=batch.images.contiguous(memory_format=torch.channels_last))

    def steps() -> None:
        for _ in range(STEPS):
            with autocast(DEVICE, loop.config.precision):
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
