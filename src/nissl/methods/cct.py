"""Cross-consistency training: decoders that see disturbed features should say what the main one says."""

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nissl.data.batches import Batch
from nissl.methods import settings
from nissl.methods.auxiliary import fixed_draws
from nissl.methods.method import Method
from nissl.methods.shared import unlabelled
from nissl.nets.unet import Features

SPREAD = 0.1
"""How far an auxiliary decoder starts from the main one: noise of this fraction of each weight's root mean square."""
NOISE, DROPOUT, ATTENTION = 0.3, 0.3, (0.7, 0.9)

Level = Float[Tensor, "batch channels *space"]


def feature_noise(level: Level) -> Level:
    """Scale each feature by 1 + U(-0.3, 0.3)."""
    return level * (1 + NOISE * (2 * torch.rand_like(level) - 1))


def channel_dropout(level: Level) -> Level:
    """Drop whole channels, as in the paper; 0.3 of them and not 0.5, since here every level is disturbed."""
    return torch.feature_dropout(level, DROPOUT, train=True)


def feature_dropout(level: Level) -> Level:
    """Erase the places whose mean over channels is at least U(0.7, 0.9) of the largest one of the image."""
    attention = level.mean(1, keepdim=True)
    least, most = ATTENTION
    drawn = torch.empty(len(level), *[1] * (level.ndim - 1), device=level.device).uniform_(least, most)
    largest = attention.amax(tuple(range(1, level.ndim)), keepdim=True)
    return level * (attention < drawn * largest)


PERTURBATIONS = (feature_noise, channel_dropout, feature_dropout)


class AuxiliaryDecoder(nn.Module):
    """A copy of a decoder and its head, with noise on the weights so that it goes a way of its own.

    Not initialised anew: what a pre-training has learnt stays.
    """

    def __init__(self, decoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.decoder, self.head = copy.deepcopy(decoder), copy.deepcopy(head)
        with torch.no_grad():
            for weight in (parameter for parameter in self.parameters() if parameter.ndim > 1):
                noise = torch.randn(weight.shape).to(weight)  # drawn on the CPU: alike on every device
                weight.add_(SPREAD * weight.square().mean().sqrt() * noise)

    def forward(self, features: Features) -> Float[Tensor, "batch classes *space"]:
        """Return logits."""
        logits: Tensor = self.head(self.decoder(features)[-1])
        return logits


class CCT(Method):
    """Cross-consistency training (Ouali et al. 2020), with an auxiliary decoder for each of three kinds of disturbance.

    The paper has seven: here are those of features (noise, dropped channels, erased places), without the ones that
    mask objects or context, cut out boxes or search for the worst direction. All levels of the encoder are disturbed,
    since the decoder reads them all; the paper's reads one.

    The auxiliary decoders never see a mask, as in the paper: the main decoder alone learns from the masks, and they
    from it on the images without. The encoder learns from both.
    """

    sees = "labelled+unlabelled"
    needs_parts = True

    def __init__(self, networks: Sequence[nn.Module], options: settings.CCT) -> None:
        super().__init__(networks, options)
        _, decoder, head = self.parts()
        self.perturbations = PERTURBATIONS
        with fixed_draws():
            self.auxiliaries = nn.ModuleList(AuxiliaryDecoder(decoder, head) for _ in self.perturbations)

    def losses(self, batch: Batch, progress: float) -> dict[str, Float[Tensor, ""]]:
        """Return `dice` and `cross_entropy` of the main decoder, and `consistency`."""
        encoder, decoder, head = self.parts()
        terms = self.supervised_losses(self.networks[0](batch.images), batch.targets)
        features = encoder(unlabelled(batch))
        pairs = zip(self.perturbations, self.auxiliaries, strict=True)
        outputs = [auxiliary([perturb(level) for level in features]) for perturb, auxiliary in pairs]
        consistency = cross_consistency(outputs, head(decoder(features)[-1]))
        return terms | {"consistency": self.weight(progress) * consistency}


def cross_consistency(
    auxiliaries: Sequence[Float[Tensor, "batch classes *space"]], main: Float[Tensor, "batch classes *space"]
) -> Float[Tensor, ""]:
    """Return the mean squared difference of auxiliary predictions to the main one, which gets no gradient."""
    target = main.detach().float().softmax(1)
    return torch.stack([F.mse_loss(logits.float().softmax(1), target) for logits in auxiliaries]).mean()
