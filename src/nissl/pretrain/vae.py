"""A variational auto-encoder made of the network: learning by reconstruction, a comparator of the Hebbian stage."""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nissl.data.batches import Batch
from nissl.nets.unet import CONVOLUTION
from nissl.plasticity import plastic_layers
from nissl.pretrain.gradient import BackPropagation

NOISE = 4
"""Sets the noise apart from what else is drawn from the seed."""


class VariationalAutoEncoder(BackPropagation):
    """Encode, sample a latent at each place of the coarsest level, decode (Kingma and Welling 2014).

    1x1 convolutions make mean and log-variance of the latent from the coarsest features, and the image from the finest
    ones of the decoder. The next stage gets encoder and decoder without them, and nothing is sampled there.

    The decoder sees zeros in place of the encoder's finer features, the skip connections of a U-Net. The published
    comparator (Ciampi et al. 2024) keeps them, so that the finest one hands the image to the decoder past the latent,
    and the coarse levels have little to learn: measured on GlaS, the latent then carries a tenth of the nats. The price
    is that filters that read a skip connection stay as initialised.
    It also keeps sampling while the masks are learnt, which we do not. It adds the mean square error per pixel and the
    divergence per latent vector, one of which stands for many pixels; here both are per pixel (see `pretrain.beta`).
    """

    def layers(self) -> nn.Module:
        """Make the 1x1 convolutions `mean`, `log_variance` and `reconstruction`."""
        encoder, _, head = self.encoder_decoder_head()
        inside = [layer for _, layer in plastic_layers(encoder)]
        channels, width, finest = inside[0].in_channels, inside[-1].out_channels, head.in_channels
        assert isinstance(channels, int) and isinstance(width, int) and isinstance(finest, int)
        assert isinstance(head.weight, Tensor)
        convolution = CONVOLUTION[head.weight.ndim - 2]
        made = {"mean": convolution(width, width, 1), "log_variance": convolution(width, width, 1)}
        return nn.ModuleDict(made | {"reconstruction": convolution(finest, channels, 1)})

    def losses(self, batch: Batch, progress: float) -> dict[str, Float[Tensor, ""]]:
        """Return `reconstruction`, the mean square error, and the weighted `divergence`."""
        (encoder, decoder, _), images = self.encoder_decoder_head(), batch.images
        assert isinstance(self.extra, nn.ModuleDict)
        *finer, coarsest = encoder(images)
        mean, log_variance = self.extra["mean"](coarsest), self.extra["log_variance"](coarsest)
        latent = mean + (log_variance / 2).exp() * self._noise(mean, batch)
        features = decoder([*map(torch.zeros_like, finer), latent])
        error = F.mse_loss(self.extra["reconstruction"](features[-1]), images)
        nats = divergence(mean, log_variance).sum()
        return {"reconstruction": error, "divergence": self.settings.beta * nats / images.numel()}

    def _noise(self, like: Float[Tensor, "part width *space"], batch: Batch) -> Float[Tensor, "part width *space"]:
        """Standard normal values of each image, by seed, step and the image's place in the batch."""
        drawn = [
            np.random.default_rng([self.seed, NOISE, batch.step, batch.first + index]).standard_normal(like.shape[1:])
            for index in range(len(like))
        ]
        return torch.from_numpy(np.stack(drawn)).to(like)


def divergence(mean: Float[Tensor, "*any"], log_variance: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Kullback-Leibler divergence of each N(mean, variance) from N(0, 1), in nats."""
    return (mean.square() + log_variance.exp() - 1 - log_variance) / 2
