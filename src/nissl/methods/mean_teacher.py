"""Mean teacher: agree with the average of your own past."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nissl.data.batches import Batch
from nissl.methods.shared import Taught, noisy, unlabelled


class MeanTeacher(Taught):
    """The supervised loss, plus the distance to an averaged teacher on images without masks.

    Tarvainen and Valpola (2017): student and teacher each see the images with noise and dropout of their own. The
    predictor is the student, which the loop averages anyway; the teacher would be averaged twice.
    """

    sees = "labelled+unlabelled"

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
