"""Hebbian rules by loops over patches and samples, in float64: slow, and independent of the library's kernels."""

import itertools

import numpy as np
from torch import nn


def softmax(values):
    raised = np.exp(values - values.max(1, keepdims=True))
    return raised / raised.sum(1, keepdims=True)


def one_layer(name, X, W, Y, R):
    """Sum over samples of the rule's formula, written as in the papers: X (n, p), W (c, p), Y and R (n, c)."""
    change = np.zeros_like(W)
    for x, y, r in zip(X, Y, R, strict=True):
        for i in range(len(W)):
            if name == "swta":
                change[i] += r[i] * (x - W[i])
            elif name == "softhebb":
                change[i] += r[i] * (x - y[i] * W[i])
            elif name == "hpca":
                change[i] += r[i] * (x - sum(r[j] * W[j] for j in range(i + 1)))
            elif name == "oja":
                change[i] += y[i] * (x - y[i] * W[i])
            elif name == "hebb":
                change[i] += y[i] * x - 0.3 * W[i]
    return change


def respond(name, Y, temperature, deviation, option):
    """Responses R that the neurons learn with, from (n, c) responses Y."""
    if name in ("swta", "softhebb"):
        R = softmax(temperature * Y / deviation)
        if option:
            R = np.where(R.max(1, keepdims=True) == R, R, -R)
        return R
    return np.maximum(Y, 0) if option else Y


def unit(W, axes):
    norm = np.sqrt((W**2).sum(axes, keepdims=True))
    return W / np.where(norm > 0, norm, 1)


def places(shape):
    return itertools.product(*map(range, shape))


def padded(module, x):
    """The input with its border, and the number of pixels added before each axis, so that patches are plain slices."""
    if isinstance(module.padding, str):
        total = [d * (k - 1) if module.padding == "same" else 0 for d, k in zip(module.dilation, module.kernel_size)]
        around = [(t // 2, t - t // 2) for t in total]
    else:
        around = [(p, p) for p in module.padding]
    mode = {"zeros": "constant", "replicate": "edge", "circular": "wrap"}.get(module.padding_mode, "reflect")
    return np.pad(x, [(0, 0), (0, 0), *around], mode=mode)


def convolution_samples(module, x, W):
    """All patches (groups, n, p) and responses (groups, n, c) of a convolution with weights W."""
    x = padded(module, x)
    out = module.out_channels // module.groups
    size = [
        (have - d * (k - 1) - 1) // s + 1
        for have, s, d, k in zip(x.shape[2:], module.stride, module.dilation, module.kernel_size)
    ]
    patches = [[] for _ in range(module.groups)]
    inputs = module.in_channels // module.groups
    for image in x:
        for place in places(size):
            cut = tuple(
                slice(p * s, p * s + d * (k - 1) + 1, d)
                for p, s, d, k in zip(place, module.stride, module.dilation, module.kernel_size)
            )
            for g in range(module.groups):
                patches[g].append(image[(slice(g * inputs, (g + 1) * inputs), *cut)].ravel())
    X = np.array(patches)
    Y = np.stack([X[g] @ W[g * out : (g + 1) * out].reshape(out, -1).T for g in range(module.groups)])
    return X, Y


def scatter(module, x, W):
    """Output (batch, out, *space) of a transposed convolution with weights W (in, out / groups, *kernel), and `reach`:
    where each input position and offset lands."""
    size = [
        (have - 1) * s - 2 * p + d * (k - 1) + o + 1
        for have, s, p, d, k, o in zip(
            x.shape[2:], module.stride, module.padding, module.dilation, module.kernel_size, module.output_padding
        )
    ]
    ins, outs = module.in_channels // module.groups, module.out_channels // module.groups
    y = np.zeros((len(x), module.out_channels, *size))
    reach = {}
    for place in places(x.shape[2:]):
        for offset in places(module.kernel_size):
            at = tuple(
                n * s - p + q * d
                for n, s, p, q, d in zip(place, module.stride, module.padding, offset, module.dilation)
            )
            if all(0 <= a < length for a, length in zip(at, size)):
                reach[place, offset] = at
                for b in range(len(x)):
                    for g in range(module.groups):
                        w = W[(slice(g * ins, (g + 1) * ins), slice(None), *offset)]
                        vector = x[(b, slice(g * ins, (g + 1) * ins), *place)]
                        y[(b, slice(g * outs, (g + 1) * outs), *at)] += w.T @ vector
    return y, reach


def rows(module, Y, name, temperature, standardise, option):
    """Responses by group from (groups, n, c), with one standard deviation for the layer."""
    deviation = Y.std() if standardise else 1.0
    return np.stack([respond(name, y, temperature, deviation, option) for y in Y])


def about_mean(Y, centred):
    """Responses (groups, n, c), if wanted about their means over samples."""
    return Y - Y.mean(1, keepdims=True) if centred else Y


def naive_update(
    module, x, name, *, temperature=1.0, standardise=False, option=False, unit_norm=True, form="T", centred=False
):
    """Sum over samples of a rule's update of a layer, and the number of samples."""
    W = module.weight.detach().numpy()
    x = x.numpy()
    if isinstance(module, nn.Linear):
        X = x.reshape(-1, W.shape[1])
        Y = about_mean((X @ (unit(W, 1) if unit_norm else W).T)[None], centred)[0]
        R = rows(module, Y[None], name, temperature, standardise, option)[0]
        return one_layer(name, X, W, Y, R), len(X)
    axes = tuple(range(1, W.ndim))
    if not module.transposed:
        X, Y = convolution_samples(module, x, unit(W, axes) if unit_norm else W)
        Y = about_mean(Y, centred)
        R = rows(module, Y, name, temperature, standardise, option)
        parts = np.split(W, module.groups)
        change = [one_layer(name, X[g], w.reshape(len(w), -1), Y[g], R[g]) for g, w in enumerate(parts)]
        return np.concatenate(change).reshape(W.shape), X.shape[1]
    arguments = (name, temperature, standardise, option)
    return (_exchanged if form == "S" else _per_offset)(module, x, W, arguments, unit_norm, form, centred)


def _exchanged(module, x, W, arguments, unit_norm, form, centred):
    y, reach = scatter(module, x, unit(W, tuple(range(1, W.ndim))) if unit_norm else W)
    ins, outs = module.in_channels // module.groups, module.out_channels // module.groups
    kernel = module.kernel_size
    X, S = [[] for _ in range(module.groups)], [[] for _ in range(module.groups)]
    for b in range(len(x)):
        for place in places(x.shape[2:]):
            for g in range(module.groups):
                patch = np.zeros((outs, *kernel))
                for offset in places(kernel):
                    if (place, offset) in reach:
                        at = reach[place, offset]
                        patch[(slice(None), *offset)] = y[(b, slice(g * outs, (g + 1) * outs), *at)]
                X[g].append(patch.ravel())
                S[g].append(x[(b, slice(g * ins, (g + 1) * ins), *place)])
    X, S = np.array(X), about_mean(np.array(S), centred)
    R = rows(module, S, *arguments)
    parts = np.split(W, module.groups)
    change = [one_layer(arguments[0], X[g], w.reshape(ins, -1), S[g], R[g]) for g, w in enumerate(parts)]
    return np.concatenate(change).reshape(W.shape), X.shape[1]


def _per_offset(module, x, W, arguments, unit_norm, form, centred):
    ins, outs = module.in_channels // module.groups, module.out_channels // module.groups
    groups = np.stack(np.split(W, module.groups))
    filters = unit(groups, (1, *range(3, groups.ndim))) if unit_norm else groups
    y, reach = scatter(module, x, filters.reshape(W.shape))
    channels = y.reshape(len(y), module.groups, outs, -1).transpose(1, 0, 3, 2).reshape(module.groups, -1, outs)
    channels = about_mean(channels, centred)
    responses = rows(module, channels, *arguments)
    R_map, y = (
        part.reshape(module.groups, len(y), -1, outs).transpose(1, 0, 3, 2).reshape(y.shape)
        for part in (responses, channels)
    )
    growth, decay = np.zeros_like(W), np.zeros_like(W)
    for offset in places(module.kernel_size):
        for g in range(module.groups):
            inner, outer = slice(g * ins, (g + 1) * ins), slice(g * outs, (g + 1) * outs)
            X, Y, R = [], [], []
            for b in range(len(x)):
                for place in places(x.shape[2:]):
                    if (place, offset) in reach:
                        at = reach[place, offset]
                        X.append(x[(b, inner, *place)])
                        Y.append(y[(b, outer, *at)])
                        R.append(R_map[(b, outer, *at)])
            if not X:
                continue
            X, Y, R = np.array(X), np.array(Y), np.array(R)
            where = (inner, slice(None), *offset)
            whole = one_layer(arguments[0], X, W[where].T, Y, R)
            grown = one_layer(arguments[0], X, np.zeros_like(W[where].T), Y, R)
            growth[where], decay[where] = grown.T, (grown - whole).T
    if form == "T-summed":
        decay = np.broadcast_to(decay.sum(tuple(range(2, W.ndim)), keepdims=True), W.shape)
    return growth - decay, len(x) * int(np.prod(x.shape[2:]))
