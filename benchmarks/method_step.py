"""Cost of a step of every method against a step of `supervised`: forward, losses, backward, optimiser, what follows.

The default 2-D U-Net at 128x128, batch 8 (and 8 images without masks), one thread, in turn. `cost` is against
supervised steps on the 8 labelled images; `at_equal_images` against supervised steps on as many images as the method
sees, which are 16 where it uses those without masks. Prints one JSON line.
"""

import json
from pathlib import Path

import torch

from measure import Work, machine, ratio, times
from nissl.config import TrainConfig
from nissl.data.batches import Batch
from nissl.learner import Problem
from nissl.methods import METHODS
from nissl.nets.settings import UNet
from nissl.tasks.segmentation import Segmentation
from nissl.training.precision import autocast
from nissl.training.session import Session

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
IMAGES, SIDE, CLASSES = 8, 128, 2
LATE = 0.9
"""Progress at which every term counts."""


def batch(images: int) -> Batch:
    """Noise with masks, and as much without; the time does not depend on what is shown."""
    labelled, unlabelled = (
        torch.randn(images, 1, SIDE, SIDE, device=DEVICE).contiguous(memory_format=torch.channels_last)
        for _ in range(2)
    )
    masks = torch.randint(CLASSES, (images, SIDE, SIDE), device=DEVICE)
    return Batch(labelled, masks, unlabelled, tuple(map(str, range(images))))


def steps(name: str, seen: Batch) -> Work:
    """Make steps of a method on one batch."""
    kind, settings = METHODS[name], METHODS.make(name)
    problem = Problem(Segmentation(), 2, 1, CLASSES, (SIDE, SIDE), UNet())
    method = kind.build(settings, problem, kind.initial(settings, problem, 0), 0).train()
    Session(Path(), DEVICE).place(method)
    optimiser = method.optimiser(TrainConfig())

    def step() -> None:
        with autocast(DEVICE, "auto"):
            loss = torch.stack(list(method(seen, LATE).values())).sum()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        method.after_step()

    return step


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    seen = batch(IMAGES)
    alone, double = steps("supervised", seen), steps("supervised", batch(2 * IMAGES))
    cost, at_equal_images = {}, {}
    for name in METHODS:
        # Each method by turns with its references alone: a long round would let the machine's speed change within it.
        taken = times({"alone": alone, "method": steps(name, seen), "double": double}, rounds=9, warmup=1)
        cost[name] = round(ratio(taken["method"], taken["alone"]), 2)
        as_many = taken["double" if METHODS[name].sees == "labelled+unlabelled" else "alone"]
        at_equal_images[name] = round(ratio(taken["method"], as_many), 2)
    result = {
        "benchmark": "method_step",
        "cost": cost,
        "at_equal_images": at_equal_images,
        **machine(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
