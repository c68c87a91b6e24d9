"""Hebbian rules, each a small frozen dataclass with two pure functions.

A rule sees the responses y of a layer's neurons, `(batch, neurons, *positions)`, and states

- `respond`: r, how strongly each neuron learns from what it saw (the competition between neurons is here), and
- `forget`: the decay that keeps weights bounded, summed over batch and positions, one number per neuron or a matrix
  between neurons.

The update of the weights W, `(neurons, inputs)`, from inputs X, `(samples, inputs)`, is then always

    dW = r^T X - D W        with D = diag(forget) or forget

which the layer computes without ever building X (see `nissl.plasticity.update`).
Equations: Lagani et al. 2024 (FastHebb), Ciampi et al. 2024, Sanger 1989, Oja 1982, Moraitis et al. 2022.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

Responses = Float[Tensor, "batch neurons *positions"]


class Rule(Protocol):
    """What the update of a layer needs to know of a rule."""

    @property
    def standardise(self) -> bool:
        """Whether `respond` wants the standard deviation of the layer's responses."""

    @property
    def centred(self) -> bool:
        """Whether the responses are taken about each neuron's mean over batch and positions.

        Growth by centred responses follows the covariance of the inputs and not their mean (Sejnowski 1977); a
        competition between them is not won everywhere by the filters nearest to the mean input.
        """

    def respond(self, y: Responses, deviation: Float[Tensor, ""] | None) -> Responses:
        """Return how strongly each neuron learns at each position."""

    def forget(self, r: Responses, y: Responses) -> Float[Tensor, "neurons"] | Float[Tensor, "neurons neurons"]:
        """Return the decay, summed over batch and positions."""


@dataclass(frozen=True)
class Competitive:
    """Neurons compete at each position: r = softmax over neurons of inverse_temperature * y."""

    inverse_temperature: float = 1.0
    standardise: bool = False
    """Divide the responses by the standard deviation of the layer's responses, so that one temperature suits all."""
    centred: bool = False

    def respond(self, y: Responses, deviation: Float[Tensor, ""] | None) -> Responses:
        """Return the softmax over the neurons."""
        y = y * (self.inverse_temperature if deviation is None else self.inverse_temperature / deviation)
        last = y.movedim(1, -1)
        # Softmax along the channels of a channels-last tensor first copies it, at 2 to 10 times the cost; along the
        # last dimension of its permuted view it does not.
        return last.softmax(-1).movedim(-1, 1) if last.is_contiguous() else y.softmax(1)


@dataclass(frozen=True)
class SWTA(Competitive):
    """Soft winner-takes-all: dw_i = sum_n r_ni (x_n - w_i), r as of `Competitive`.

    The minimum is a soft k-means of the inputs. FastHebb, Lagani et al. 2024; Ciampi et al. 2024.
    """

    def forget(self, r: Responses, y: Responses) -> Float[Tensor, "neurons"]:
        """Return the summed responses: each neuron forgets as much as it learns."""
        return _total(r)


@dataclass(frozen=True)
class SoftHebb(Competitive):
    """SoftHebb: dw_i = sum_n r_ni (x_n - y_ni w_i), r as of `Competitive`.

    With `anti_hebbian`, all but the winner of each position learn with the opposite sign (Journé et al. 2023, who
    found it better in deep networks). Moraitis et al. 2022, eq. 12.
    """

    anti_hebbian: bool = False

    def respond(self, y: Responses, deviation: Float[Tensor, ""] | None) -> Responses:
        """Return the softmax over the neurons, negative for the losers under `anti_hebbian`."""
        r = super().respond(y, deviation)
        return torch.where(r == r.amax(1, keepdim=True), r, -r) if self.anti_hebbian else r

    def forget(self, r: Responses, y: Responses) -> Float[Tensor, "neurons"]:
        """Return sum_n r_ni y_ni, which pulls each filter to unit length."""
        return _total(r * y)


@dataclass(frozen=True)
class Linear:
    """Each neuron learns by its own response."""

    centred: bool = False
    standardise: ClassVar[bool] = False

    def respond(self, y: Responses, deviation: Float[Tensor, ""] | None) -> Responses:
        """Return the responses themselves."""
        return y


@dataclass(frozen=True)
class HPCA(Linear):
    """Hebbian principal components: dw_i = sum_n y_ni (x_n - sum_{j<=i} y_nj w_j).

    The minimum is the ordered principal components (Sanger 1989, the generalised Hebbian algorithm). `rectified` takes
    max(y, 0) for y in both places, as the nonlinear form of Lagani et al. 2020.
    """

    rectified: bool = False

    def respond(self, y: Responses, deviation: Float[Tensor, ""] | None) -> Responses:
        """Return the responses themselves, or what is positive in them."""
        return y.clamp(min=0) if self.rectified else y

    def forget(self, r: Responses, y: Responses) -> Float[Tensor, "neurons neurons"]:
        """Return the lower triangle, with the diagonal, of the Gram matrix of the responses."""
        flat = r.movedim(1, 0).flatten(1)
        return torch.tril(flat @ flat.T)


@dataclass(frozen=True)
class Oja(Linear):
    """Oja's rule: dw_i = sum_n y_ni (x_n - y_ni w_i); every neuron goes to the first principal component. Oja 1982."""

    def forget(self, r: Responses, y: Responses) -> Float[Tensor, "neurons"]:
        """Return the summed squared responses."""
        return _total(y * y)


@dataclass(frozen=True)
class Hebb(Linear):
    """Plain Hebb with decay: dw_i = sum_n (y_ni x_n - decay w_i)."""

    decay: float = 1.0

    def forget(self, r: Responses, y: Responses) -> Float[Tensor, "neurons"]:
        """Return the decay times the number of samples, the same for every neuron."""
        return y.new_full((y.shape[1],), self.decay * y.shape[0] * math.prod(y.shape[2:]))


RULES: dict[str, type[SWTA] | type[SoftHebb] | type[HPCA] | type[Oja] | type[Hebb]] = {
    "swta": SWTA,
    "softhebb": SoftHebb,
    "hpca": HPCA,
    "oja": Oja,
    "hebb": Hebb,
}


def _total(values: Responses) -> Float[Tensor, "neurons"]:
    return values.sum(dim=[axis for axis in range(values.ndim) if axis != 1])
