"""What several methods share: the loss by masks, an averaged teacher and noise."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.optim.swa_utils import AveragedModel

from nissl.data.batches import Batch
from nissl.losses import one_hot, soft_dice
from nissl.methods.method import Method
from nissl.methods.settings import MethodSettings


class Teacher(nn.Module):
    """A network whose weights are the running average of a student's; it has no gradient (Tarvainen and Valpola 2017).

    The average is teacher <- d teacher + (1 - d) student with d = min(decay, 1 - 1 / (step + 1)), so that it starts as
    the student's mean. Running statistics are averaged as well; counters are copied.

    In training, its dropout is on and all else is as in evaluation: it normalises by its running statistics, which
    are the student's average and which its own passes must not move.
    """

    def __init__(self, student: nn.Module, decay: float) -> None:
        super().__init__()
        rule = moving_average(lambda steps: min(decay, 1 - 1 / (steps + 1)))
        self.average = AveragedModel(student, multi_avg_fn=rule, use_buffers=True)
        self.average.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> "Teacher":
        """Turn dropout on or off, and nothing else."""
        super().train(mode)
        for module in self.average.modules():
            module.training = mode and isinstance(module, _DropoutNd)
        return self

    def update(self, student: nn.Module) -> None:
        """Move towards the student, after its step."""
        self.average.update_parameters(student)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch classes *space"]:
        """Return logits without a graph, with dropout in training and without in evaluation."""
        logits: Tensor = self.average(images)
        return logits


class Taught(Method):
    """A method with an averaged teacher of its first network, whose decay is in the settings."""

    def __init__(self, networks: Sequence[nn.Module], options: MethodSettings) -> None:
        super().__init__(networks, options)
        self.teacher = Teacher(self.networks[0], self.settings.decay)

    def after_step(self) -> None:
        """Move the teacher towards the network."""
        self.teacher.update(self.networks[0])


Tensors = tuple[Tensor, ...] | list[Tensor]


def moving_average(decay: Callable[[int], float]) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """Make the rule of an `AveragedModel`: average <- d average + (1 - d) current; counters are copied.

    `decay` gives d, from the number of networks that are in the average.
    """

    def average(averages: Tensors, currents: Tensors, count: Tensor | int) -> None:
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, currents, 1 - decay(int(count)))
        else:
            torch._foreach_copy_(averages, currents)

    return average


def noisy(images: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch channels *space"]:
    """Add clipped Gaussian noise, clamp(0.1 N(0, 1), -0.2, 0.2), to normalised images (Yu et al. 2019, UA-MT)."""
    return images + torch.clamp(0.1 * torch.randn_like(images), -0.2, 0.2)


def unlabelled(batch: Batch) -> Float[Tensor, "batch channels *space"]:
    """Images without masks of a batch; a ValueError where there are none, as in a stream made without them."""
    if batch.unlabelled is None:
        raise ValueError("this method needs images without masks in the batch")
    return batch.unlabelled


def box(size: Sequence[int], sides: Sequence[float], places: Sequence[float]) -> Bool[Tensor, "*space"]:
    """Mark a box in an image of a size: its sides as fractions of the image's, its places from 0 to 1 (1 excluded)."""
    inside = torch.zeros(*size, dtype=torch.bool)
    cut = []
    for whole, side, place in zip(size, sides, places, strict=True):
        length = int(whole * side)
        start = int(place * (whole - length + 1))
        cut.append(slice(start, start + length))
    inside[tuple(cut)] = True
    return inside


def masked_dice(
    logits: Float[Tensor, "batch classes *space"],
    labels: Integer[Tensor, "batch *space"],
    where: Bool[Tensor, "batch *space"],
) -> Float[Tensor, ""]:
    """Soft Dice as in `segmentation_losses`, by the marked pixels alone; an image without any of them costs nothing."""
    marked = where[:, None].float()
    return soft_dice(logits.float().softmax(1) * marked, one_hot(labels, logits.shape[1]) * marked)
