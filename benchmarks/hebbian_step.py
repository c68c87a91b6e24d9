"""Cost of one Hebbian step against the forward pass of the same network without gradients, in time and memory.

The default 2-D U-Net at 128x128, batch 8, channels-last as in training, in training mode (both update the
statistics of the normalisation). The step is that of the default pre-training with SWTA, and, for comparison, one that
learns from all positions. Prints one JSON line.
"""

import json
import statistics
from pathlib import Path

import torch
from torch import nn

from measure import Work, machine, peak_bytes, ratio, times
from nissl.nets import factory
from nissl.nets.settings import UNet
from nissl.plasticity import Plasticity, RelativeStep, plastic_layers
from nissl.pretrain.hebbian import make_rule
from nissl.pretrain.pretraining import excluded
from nissl.pretrain.settings import Hebbian
from nissl.pretrain.unit_norm import normalise
from nissl.training.session import Session

TIME_BOUND, MEMORY_BOUND = 1.7, 1.4


def hebbian_step(net: nn.Module, images: torch.Tensor, samples: int | None) -> Work:
    """One step as the pre-training makes it: forward, updates, optimiser, filters back to unit norm."""
    layers = dict(plastic_layers(net, excluded(net, "all")))
    optimiser = RelativeStep([layer.weight for layer in layers.values()], lr=1e-3)
    rule = make_rule(Hebbian(rule="swta"))

    plasticity = Plasticity(net, rule, ("head",), unit_norm=False, samples=samples)

    def step() -> None:
        with plasticity:
            net(images)
            plasticity.step(optimiser)
            normalise(layers.values())

    return step


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = factory.build(UNet(), 2, 3, 2, seed=0)
    Session(Path(), device).place(net)
    for module in net.train().modules():
        if isinstance(module, nn.Dropout):  # as in a pre-training
            module.eval()
    normalise(layer for _, layer in plastic_layers(net, ("head",)))
    images = torch.randn(8, 3, 128, 128, device=device).contiguous(memory_format=torch.channels_last)

    def forward() -> None:
        with torch.no_grad():
            net(images)

    default = Hebbian().samples
    works = {"forward": forward, "step": hebbian_step(net, images, default), "all": hebbian_step(net, images, None)}
    taken = times(works)
    peaks = {name: peak_bytes(work) for name, work in works.items()}
    result = {
        "benchmark": "hebbian_step",
        "forward_ms": round(1e3 * statistics.median(taken["forward"]), 1),
        "samples": default,
        "time_ratio": round(ratio(taken["step"], taken["forward"]), 2),
        "time_bound": TIME_BOUND,
        "memory_ratio": round(peaks["step"] / peaks["forward"], 2),
        "memory_bound": MEMORY_BOUND,
        "forward_peak_mb": round(peaks["forward"] / 1e6, 1),
        "all_positions_time_ratio": round(ratio(taken["all"], taken["forward"]), 2),
        "all_positions_memory_ratio": round(peaks["all"] / peaks["forward"], 2),
        **machine(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
