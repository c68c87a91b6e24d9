"""What several methods share: an averaged teacher and noise."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from nissl.data.dataset import Batch


class Teacher(nn.Module):
    """A network whose weights are the running average of a student's; it has no gradient (Tarvainen and Valpola 2017).

    The average is teacher <- d teacher + (1 - d) student with d = min(decay, 1 - 1 / (step + 1)), so that it starts as
    the student's mean. Running statistics are averaged as well; counters are copied.
    """

    def __init__(self, student: nn.Module, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.average = AveragedModel(student, avg_fn=self._averaged, use_buffers=True)
        self.average.requires_grad_(False)

    def update(self, student: nn.Module) -> None:
        """Move towards the student, after its step."""
        self.average.update_parameters(student)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch classes *space"]:
        """Return logits without a graph, in the mode (training or evaluation) that the teacher is in."""
        logits: Tensor = self.average(images)
        return logits

    def _averaged(self, average: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
        if not average.is_floating_point():
            return current
        return torch.lerp(average, current, 1 - min(self.decay, 1 - 1 / (int(count) + 1)))


def noisy(images: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch channels *space"]:
    """Add clipped Gaussian noise, clamp(0.1 N(0, 1), -0.2, 0.2), to normalised images (Yu et al. 2019, UA-MT)."""
    return images + torch.clamp(0.1 * torch.randn_like(images), -0.2, 0.2)


def unlabelled(batch: Batch) -> Float[Tensor, "batch channels *space"]:
    """Images without masks of a batch.

    Raises:
        ValueError: there are none, which only a stream made without them gives.

    """
    if batch.unlabelled is None:
        raise ValueError("this method needs images without masks in the batch")
    return batch.unlabelled
