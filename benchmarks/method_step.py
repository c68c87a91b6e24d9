"""Cost of a step of every method against a step of `supervised`: forward, losses, backward, optimiser, what follows.

The default 2-D U-Net at 128x128, batch 8 (and 8 images without masks), one thread, in turn. `cost` is against
supervised steps on the 8 labelled images; `at_equal_images` against supervised steps on as many images as the method
sees, which are 16 where it uses those without masks. Prints one JSON line.
"""

import json

import torch
from nissl.training.schedule import make_optimiser

from measure import Work, machine, ratio, times
from nissl.config import NetConfig, TrainConfig
from nissl.data.batches import Batch
from nissl.methods import METHODS
from nissl.nets import factory
from nissl.training.loop import autocast, lay_out

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
    kind = METHODS[name]
    networks = [factory.build(NetConfig(), 2, 1, CLASSES, seed) for seed in range(kind.count)]
    method = kind(networks).to(DEVICE).train()
    for network in method.networks:
        lay_out(network)
    optimiser = make_optimiser(method, TrainConfig())

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
        as_many = taken["double" if METHODS[name].uses_unlabelled else "alone"]
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
