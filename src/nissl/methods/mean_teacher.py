"""Mean teacher: agree with the average of your own past."""

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nissl.data.batches import Batch
from nissl.methods import settings
from nissl.methods.method import Method
from nissl.methods.shared import Teacher, noisy, unlabelled


class MeanTeacher(Method):
    """The supervised loss, plus the distance to an averaged teacher on images without masks.

    Tarvainen and Valpola (2017): student and teacher each see the images with noise and dropout of their own. The
    predictor is the student, which the loop averages anyway; the teacher would be averaged twice.

    The weight is that of Yu et al. (2019) for segmentation: 0.1 beside (Dice + cross-entropy) / 2, hence 0.2 beside
    their sum.
    """

    sees = "labelled+unlabelled"

    def __init__(self, networks: Sequence[nn.Module], options: settings.MeanTeacher) -> None:
        super().__init__(networks, options)
        self.teacher = Teacher(self.networks[0], options.decay)

    def losses(self, batch: Batch, progress: float) -> dict[str, Float[Tensor, ""]]:
        """Return the terms `dice`, `cross_entropy` and `consistency`."""
        student, images = self.networks[0], unlabelled(batch)
        terms = self.supervised_losses(student(batch.images), batch.targets)
        probabilities = F.softmax(student(noisy(images)).float(), dim=1)
        return terms | {"consistency": self.weight(progress) * self.distance(probabilities, images, progress)}

    def distance(
        self,
        probabilities: Float[Tensor, "batch classes *space"],
        images: Float[Tensor, "batch channels *space"],
        progress: float,
    ) -> Float[Tensor, ""]:
        """Mean squared difference between the student's softmax and the teacher's, over pixels and classes."""
        return F.mse_loss(probabilities, self.target(images))

    def target(self, images: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch classes *space"]:
        """Softmax of the teacher on images with fresh noise; it has no gradient."""
        return F.softmax(self.teacher(noisy(images)).float(), dim=1)

    def candidates(self) -> dict[str, nn.Module]:
        """Return both."""
        return {"student": self.networks[0], "teacher": self.teacher}

    def after_step(self) -> None:
        """Move the teacher towards the student."""
        self.teacher.update(self.networks[0])
