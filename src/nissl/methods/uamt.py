"""Uncertainty-aware mean teacher: agree with the teacher where it is certain."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nissl.methods.mean_teacher import MeanTeacher


class UncertaintyAwareMeanTeacher(MeanTeacher):
    """The mean teacher, whose target counts only where the teacher is certain (Yu et al. 2019, UA-MT).

    Certain is where the entropy of the mean of 8 passes, each with noise and dropout of its own, is below a threshold
    that rises with the training. As in the mean teacher, and unlike their code, the student's image is noisy too.
    """

    def distance(
        self,
        probabilities: Float[Tensor, "batch classes *space"],
        images: Float[Tensor, "batch channels *space"],
        progress: float,
    ) -> Float[Tensor, ""]:
        """Mean squared difference between the softmaxes, over the certain pixels and the classes."""
        mean = torch.zeros_like(probabilities)
        passes = self.settings.passes
        for _ in range(passes):
            mean += self.target(images) / passes
        return masked_distance(probabilities, self.target(images), certain(mean, progress))


def certain(probabilities: Float[Tensor, "batch classes *space"], progress: float) -> Bool[Tensor, "batch *space"]:
    """Say which pixels have an entropy below (0.75 + 0.25 exp(-5 (1 - t)^2)) log(classes), with t the progress.

    Their code sets the logarithm of 2 for any number of classes.
    """
    threshold = 0.75 + 0.25 * math.exp(-5 * (1 - progress) ** 2)
    entropy: Tensor = torch.special.entr(probabilities).sum(1)
    return entropy < threshold * math.log(probabilities.shape[1])


def masked_distance(
    probabilities: Float[Tensor, "batch classes *space"],
    target: Float[Tensor, "batch classes *space"],
    mask: Bool[Tensor, "batch *space"],
) -> Float[Tensor, ""]:
    """Mean squared difference over the pixels of a mask and all classes; 0 where the mask is empty."""
    distances = (probabilities - target).square().mean(1)
    return (distances * mask).sum() / mask.sum().clamp(min=1)
