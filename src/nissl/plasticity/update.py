"""The Hebbian update of one layer, as a pure function of the layer and what it saw.

The growth term of every rule, sum_n r_n x_n^T over the patches of an image, *is* the weight gradient of the
convolution with r as gradient of its output. That kernel is called, so patches are never unfolded: stride, padding,
dilation, groups and 1 to 3 dimensions come for free, and no memory is needed beyond r.

A convolution with weights `(out, in / groups, *kernel)` has one neuron per output channel. Groups are independent
layers side by side: neurons compete within their group. A transposed convolution with weights
`(in, out / groups, *kernel)` has two readings (Ciampi et al. 2024):

- `T`: a neuron is an output channel at one kernel offset; it reads the input vector of one position. Its unit-norm
  filter is taken over input channels and offsets together.
- `T-summed`: as `T`, with the decay summed over all offsets and subtracted from each, as the reference implementation
  does. Differences between offsets are then never forgotten.
- `S`: input and output exchanged: a neuron is an input channel, and its input is the patch of the layer's own output
  that it feeds, taken with filters of unit norm per input channel.

A sample is an output position of a convolution, an input position of a transposed one, a row of a linear layer.
Neighbouring patches share most of their pixels, so a convolution over large maps may learn from every third (fifth, …)
position along each axis: that is the update of the same layer with a larger stride, at a fraction of the cost. So may a
transposed convolution whose patches of output do not overlap.
"""

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nissl.plasticity.rules import Responses, Rule

Transposed = Literal["T", "T-summed", "S"]
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
PLASTIC = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)
Plastic = nn.Linear | nn.modules.conv._ConvNd
"""A layer of one of these kinds."""


@dataclass(frozen=True)
class Learning:
    """How layers learn: the rule, and how it reads a layer."""

    rule: Rule
    unit_norm: bool = True
    """Take the response with filters of unit norm; the decay uses the raw weight. A bias is never part of it."""
    transposed: Transposed = "T"
    """Reading of transposed convolutions."""
    samples: int | None = None
    """Thin the positions, evenly along all axes, to about this many (see `thinning`); None takes all. Rows of a linear
    layer and transposed convolutions with overlapping patches are not thinned."""
    processes: int = 1
    """Processes that bring as many samples each."""
    all_reduce: Callable[[Tensor], None] | None = None
    """Sums a tensor over all processes in place, where there are several."""


def update(
    module: nn.Module,
    x: Tensor,
    rule: Rule,
    reduction: Literal["mean", "sum"] = "mean",
    unit_norm: bool = True,
    transposed: Transposed = "T",
) -> Tensor:
    """Compute the Hebbian update of a layer's weight from one batch of its inputs.

    Args:
        module: Linear, Conv1d-3d or ConvTranspose1d-3d, with any stride, padding, dilation and groups.
        x: the layer's input, `(batch, in, *space)`; for Linear `(..., in)`.
        rule, unit_norm, transposed: how the layer learns (see `Learning`).
        reduction: `sum` over samples (batch and positions) or their `mean`.

    Returns:
        The change of `module.weight`, of its shape and in float32 or float64, to be *added* to it. No graph is built.

    Raises:
        TypeError: the layer is of another kind.
        ValueError: the reduction or the reading is unknown.

    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction is 'mean' or 'sum', not {reduction!r}")
    if transposed not in ("T", "T-summed", "S"):
        raise ValueError(f"transposed is 'T', 'T-summed' or 'S', not {transposed!r}")
    total, samples = accumulate(module, x, None, Learning(rule, unit_norm, transposed))
    return total / samples if reduction == "mean" else total


@torch.no_grad()
def accumulate(module: nn.Module, x: Tensor, output: Tensor | None, learning: Learning) -> tuple[Tensor, int]:
    """Return the update summed over samples, and their number.

    The layer's `output`, when given, spares the forward pass. Under several processes the standard deviation of the
    responses is that of all processes' samples; the sums returned here are for the caller to reduce.
    """
    if not isinstance(module, PLASTIC):
        raise TypeError(f"Linear, Conv1d-3d or ConvTranspose1d-3d is needed, not {type(module).__name__}")
    with torch.autocast(x.device.type, enabled=False):
        weight, x = _full(module.weight), _full(x)
        if isinstance(module, nn.Linear):
            # A linear layer is a convolution of kernel 1 over one position.
            weight, x = weight[..., None], x.reshape(-1, module.in_features, 1)
            output = None if output is None else output.reshape(-1, module.out_features, 1)
        x, geometry = _geometry(module, x)
        y = None if output is None else _without_bias(_full(output), module.bias)
        if geometry.apart:
            # Each input position has a patch of the output to itself: fewer positions are simply a smaller input.
            stride = thinning(_samples(x) * learning.processes, x.ndim - 2, learning.samples)
            x, y = _every(x, stride), (y if stride == 1 else None)
        if not geometry.transposed:
            total, samples = _convolution(weight, x, y, geometry, learning)
        elif learning.transposed == "S":
            total, samples = _exchanged(weight, x, geometry, learning)
        else:
            total, samples = _per_offset(weight, x, y, geometry, learning)
    return total.view_as(module.weight), samples


@dataclass(frozen=True)
class Geometry:
    """Where a layer's kernel lies on its input."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    kernel: tuple[int, ...]
    groups: int = 1
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    @property
    def apart(self) -> bool:
        """Whether it is a transposed layer in which no two input positions reach the same output."""
        reach = zip(self.stride, self.padding, self.dilation, self.kernel, strict=True)
        return self.transposed and all(s > d * (k - 1) and p == 0 for s, p, d, k in reach)

    def response(self, x: Tensor, weight: Tensor) -> Tensor:
        """Run the layer without its bias."""
        return torch.convolution(x, weight, None, *self._options())

    def growth(self, r: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Return sum_n r_n x_n^T over patches: the weight gradient of the layer with r as gradient of its output."""
        wanted = (False, True, False)
        grown: Tensor = torch.ops.aten.convolution_backward(r, x, weight, None, *self._options(), wanted)[1]
        return grown

    def _options(self) -> tuple[Any, ...]:
        return self.stride, self.padding, self.dilation, self.transposed, self.output_padding or (0,), self.groups


def _geometry(module: Plastic, x: Tensor) -> tuple[Tensor, Geometry]:
    """Return the kernel's geometry and the input, padded beforehand where the kernel cannot say how."""
    if isinstance(module, nn.Linear):
        return x, Geometry((1,), (0,), (1,), (1,))
    padding: tuple[int, ...] | str = module.padding
    if isinstance(padding, str) or module.padding_mode != "zeros":
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x = F.pad(x, module._reversed_padding_repeated_twice, mode=mode)
        padding = (0,) * len(module.stride)
    transposed = isinstance(module, TRANSPOSED)
    output_padding = tuple(int(p) for p in module.output_padding) if transposed else ()
    return x, Geometry(
        module.stride, padding, module.dilation, module.kernel_size, module.groups, transposed, output_padding
    )


def _convolution(
    weight: Tensor, x: Tensor, y: Tensor | None, geometry: Geometry, learning: Learning
) -> tuple[Tensor, int]:
    """A neuron is an output channel; D = diag(forget) W or forget W, per group."""
    norms = filter_norms(weight, range(1, weight.ndim)) if learning.unit_norm else None
    y = geometry.response(x, weight) if y is None else y
    stride = thinning(_samples(y) * learning.processes, y.ndim - 2, learning.samples)
    if stride > 1:
        y = _every(y, stride).clone()  # gathered once, as it is read several times
        geometry = replace(geometry, stride=tuple(step * stride for step in geometry.stride))
    y = _about(_unit(y, norms), learning)
    r = _respond(y, geometry.groups, learning)
    grown = geometry.growth(r, x, weight)
    return _forgotten(grown, weight, (r, y), geometry.groups, learning.rule), _samples(y)


def thinning(available: int, dims: int, wanted: int | None) -> int:
    """Return the step between positions, along each axis, that leaves about `wanted` samples: the nearest odd one.

    Behind layers that double the resolution, features differ with the place in blocks of 2, 4, ... pixels. An even step
    would always come to the same place of them, an odd one comes to all alike.
    """
    if wanted is None or available <= wanted:
        return 1
    ideal = (available / wanted) ** (1 / dims)
    below = max(1, 2 * int((ideal - 1) // 2) + 1)
    return below if ideal / below < (below + 2) / ideal else below + 2


def _every(tensor: Tensor, stride: int) -> Tensor:
    """Take positions that many apart along each axis of space."""
    picked = slice(None), slice(None), *[slice(None, None, stride)] * (tensor.ndim - 2)
    return tensor[picked]


def _exchanged(weight: Tensor, x: Tensor, geometry: Geometry, learning: Learning) -> tuple[Tensor, int]:
    """-S: a neuron is an input channel, its response is x, its input the patch of the output that it feeds."""
    filters = weight / filter_norms(weight, range(1, weight.ndim)) if learning.unit_norm else weight
    patches = geometry.response(x, filters)
    y = _about(x, learning)
    r = _respond(y, geometry.groups, learning)
    reverse = replace(geometry, transposed=False, output_padding=())
    grown = reverse.growth(r, patches, weight)
    return _forgotten(grown, weight, (r, y), geometry.groups, learning.rule), _samples(x)


def _per_offset(
    weight: Tensor, x: Tensor, y: Tensor | None, geometry: Geometry, learning: Learning
) -> tuple[Tensor, int]:
    """-T: a neuron is an output channel at one kernel offset; growth comes for all offsets in one kernel."""
    groups = geometry.groups
    grouped = weight.view(groups, -1, *weight.shape[1:])
    norms = filter_norms(grouped, (1, *range(3, grouped.ndim))) if learning.unit_norm else None
    y = _about(_unit(geometry.response(x, weight) if y is None else y, norms), learning)
    r = _respond(y, groups, learning)
    loss = torch.zeros_like(weight)
    for offset in itertools.product(*map(range, weight.shape[2:])):
        at: tuple[slice | int, ...] = (slice(None), slice(None), *offset)
        seen = (slice(None), slice(None), *_positions(offset, x.shape[2:], y.shape[2:], geometry))
        matrix = _swapped(weight[at], groups)
        lost = _forgotten(torch.zeros_like(matrix), matrix, (r[seen], y[seen]), groups, learning.rule)
        loss[at] = _swapped(lost, groups)
    if learning.transposed == "T-summed":
        loss = loss.flatten(2).sum(2).view(*loss.shape[:2], *[1] * (loss.ndim - 2))
    return geometry.growth(r, x, weight) + loss, _samples(x)


def _swapped(weight: Tensor, groups: int) -> Tensor:
    """Exchange inputs and outputs of a matrix within each group: `(in, out / groups)` to `(out, in / groups)`."""
    return torch.cat([part.T for part in weight.chunk(groups)])


def _positions(
    offset: tuple[int, ...], inputs: torch.Size, outputs: torch.Size, geometry: Geometry
) -> tuple[slice, ...]:
    """Return the output positions that input positions reach through one kernel offset, along each axis."""
    slices = []
    for q, size, length, stride, padding, dilation in zip(
        offset, inputs, outputs, geometry.stride, geometry.padding, geometry.dilation, strict=True
    ):
        shift = q * dilation - padding
        first = max(0, -(shift // stride))
        last = min(size - 1, (length - 1 - shift) // stride)
        start = first * stride + shift
        slices.append(slice(start, start + max(0, last - first + 1) * stride, stride))
    return tuple(slices)


def _about(y: Responses, learning: Learning) -> Responses:
    """Take the responses about each channel's mean over all processes, where the rule wants them centred."""
    if not learning.rule.centred:
        return y
    sums = torch.cat([y.sum([axis for axis in range(y.ndim) if axis != 1]), y.new_tensor([float(_samples(y))])])
    if learning.all_reduce is not None:
        learning.all_reduce(sums)
    return y - (sums[:-1] / sums[-1]).view(-1, *[1] * (y.ndim - 2))


def _respond(y: Tensor, groups: int, learning: Learning) -> Tensor:
    deviation = _deviation(y, learning) if learning.rule.standardise else None
    if groups == 1:
        return learning.rule.respond(y, deviation)
    return torch.cat([learning.rule.respond(part, deviation) for part in y.chunk(groups, 1)], 1)


def _deviation(y: Responses, learning: Learning) -> Float[Tensor, ""]:
    """Standard deviation of all responses of the layer, over all processes; 1 where they do not vary."""
    sums = torch.stack([y.sum(), torch.linalg.vector_norm(y) ** 2, y.new_tensor(float(y.numel()))])
    if learning.all_reduce is not None:
        learning.all_reduce(sums)
    total, squares, count = sums
    variance = squares / count - (total / count) ** 2
    return torch.where(variance > 0, variance, 1.0).sqrt()


def _forgotten(grown: Tensor, weight: Tensor, seen: tuple[Responses, Responses], groups: int, rule: Rule) -> Tensor:
    """Subtract D W in place, group by group, from the growth of weights of `(neurons, ...)`."""
    responses = zip(*(part.chunk(groups, 1) for part in seen), strict=True)
    for total, w, (r, y) in zip(grown.chunk(groups), weight.chunk(groups), responses, strict=True):
        forgotten = rule.forget(r, y)
        if forgotten.ndim == 1:
            total.addcmul_(forgotten.view(-1, *[1] * (w.ndim - 1)), w, value=-1)
        else:
            total.sub_((forgotten @ w.flatten(1)).view_as(w))
    return grown


def filter_norms(weight: Tensor, axes: Iterable[int]) -> Tensor:
    """L2 norms, 1 where they are 0."""
    norms = torch.linalg.vector_norm(weight, dim=tuple(axes), keepdim=True)
    return torch.where(norms > 0, norms, 1.0)


def _unit(y: Responses, norms: Tensor | None) -> Responses:
    """Bring the response of raw filters to that of unit-norm filters."""
    return y if norms is None else y / norms.flatten().view(-1, *[1] * (y.ndim - 2))


def _without_bias(y: Responses, bias: Tensor | None) -> Responses:
    return y if bias is None else y - _full(bias).view(-1, *[1] * (y.ndim - 2))


def _samples(y: Responses) -> int:
    return y.shape[0] * math.prod(y.shape[2:])


def _full(tensor: Tensor) -> Tensor:
    """Half precision is raised to float32: updates are sums over many samples."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
