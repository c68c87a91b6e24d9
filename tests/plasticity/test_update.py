"""Every rule on every kind of layer equals a loop over patches in float64."""

import copy
import math

import numpy as np
import pytest
import torch
from tests.references.hebbian import naive_update
from torch import nn

from nissl.plasticity import HPCA, SWTA, Hebb, Oja, SoftHebb, update
from nissl.plasticity.update import Learning, accumulate, thinning

RULES = {
    "swta": (SWTA(3.0), "swta", {"temperature": 3.0}),
    "swta-standardised": (SWTA(3.0, standardise=True), "swta", {"temperature": 3.0, "standardise": True}),
    "softhebb": (SoftHebb(2.0), "softhebb", {"temperature": 2.0}),
    "softhebb-anti": (SoftHebb(2.0, anti_hebbian=True), "softhebb", {"temperature": 2.0, "option": True}),
    "softhebb-standardised": (SoftHebb(standardise=True), "softhebb", {"standardise": True}),
    "hpca": (HPCA(), "hpca", {}),
    "hpca-rectified": (HPCA(rectified=True), "hpca", {"option": True}),
    "hpca-centred": (HPCA(centred=True), "hpca", {"centred": True}),
    "swta-centred": (
        SWTA(3.0, standardise=True, centred=True),
        "swta",
        {"temperature": 3.0, "standardise": True, "centred": True},
    ),
    "softhebb-centred": (SoftHebb(2.0, centred=True), "softhebb", {"temperature": 2.0, "centred": True}),
    "oja": (Oja(), "oja", {}),
    "hebb": (Hebb(decay=0.3), "hebb", {}),
}
LAYERS = {
    "linear": (lambda: nn.Linear(5, 4), (3, 2, 5)),
    "conv1d": (lambda: nn.Conv1d(2, 4, 3, stride=2, padding=1), (2, 2, 9)),
    "conv2d": (lambda: nn.Conv2d(3, 4, 3, padding=1), (2, 3, 5, 4)),
    "conv2d-strided": (lambda: nn.Conv2d(2, 3, (3, 2), stride=(2, 3), padding=(0, 1)), (2, 2, 7, 6)),
    "conv2d-dilated": (lambda: nn.Conv2d(2, 3, 3, dilation=2, padding=2), (1, 2, 6, 5)),
    "conv2d-groups": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1, stride=2), (2, 4, 5, 5)),
    "conv2d-depthwise": (lambda: nn.Conv2d(3, 3, 3, groups=3), (2, 3, 5, 4)),
    "conv2d-same": (lambda: nn.Conv2d(2, 3, (2, 4), padding="same"), (1, 2, 5, 6)),
    "conv2d-valid": (lambda: nn.Conv2d(2, 3, 2, padding="valid"), (1, 2, 4, 4)),
    "conv2d-reflect": (lambda: nn.Conv2d(2, 3, 3, padding=2, padding_mode="reflect"), (1, 2, 5, 5)),
    "conv2d-circular": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (1, 2, 4, 5)),
    "conv3d": (lambda: nn.Conv3d(2, 3, (2, 3, 1), stride=(1, 2, 1), padding=(1, 1, 0)), (1, 2, 3, 5, 2)),
    "conv3d-groups": (lambda: nn.Conv3d(4, 4, 2, groups=2, dilation=(1, 2, 1)), (1, 4, 3, 4, 3)),
}
TRANSPOSED = {
    "transposed1d": (lambda: nn.ConvTranspose1d(3, 2, 4, stride=2, padding=1), (2, 3, 5)),
    "transposed2d": (lambda: nn.ConvTranspose2d(4, 3, 2, stride=2), (2, 4, 3, 4)),
    "transposed2d-overlapping": (lambda: nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1), (2, 3, 3, 4)),
    "transposed2d-output-padding": (
        lambda: nn.ConvTranspose2d(2, 3, 3, stride=(2, 3), padding=(1, 0), output_padding=(1, 2)),
        (2, 2, 3, 2),
    ),
    "transposed2d-dilated": (lambda: nn.ConvTranspose2d(2, 3, 2, stride=1, dilation=2, padding=1), (1, 2, 3, 4)),
    "transposed2d-groups": (lambda: nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), (1, 4, 3, 3)),
    "transposed2d-gaps": (lambda: nn.ConvTranspose2d(3, 2, 2, stride=3), (1, 3, 3, 2)),
    "transposed3d": (lambda: nn.ConvTranspose3d(2, 3, 2, stride=2), (1, 2, 2, 3, 2)),
    "transposed3d-groups": (lambda: nn.ConvTranspose3d(4, 2, (3, 2, 1), stride=(2, 1, 1), groups=2), (1, 4, 2, 2, 2)),
}
CASES = [(name, form) for name in TRANSPOSED for form in ("T", "T-summed", "S")] + [(name, "T") for name in LAYERS]


def layer_and_input(name, bias=True):
    torch.manual_seed(sum(map(ord, name)))
    make, shape = (LAYERS | TRANSPOSED)[name]
    module = make().double()
    if not bias:
        module.bias = None
    return module, torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("layer", "form"), CASES)
def test_update_equals_a_loop_over_patches(layer, form, rule):
    module, x = layer_and_input(layer)
    ours, name, options = RULES[rule]
    for unit_norm in (True, False):
        total, samples = naive_update(module, x, name, unit_norm=unit_norm, form=form, **options)
        summed = update(module, x, ours, "sum", unit_norm=unit_norm, transposed=form)
        np.testing.assert_allclose(summed.numpy(), total, rtol=1e-10, atol=1e-10)
        mean = update(module, x, ours, unit_norm=unit_norm, transposed=form)
        np.testing.assert_allclose(mean.numpy(), total / samples, rtol=1e-10, atol=1e-10)


def test_a_filter_of_zeros_responds_with_zero():
    module, x = layer_and_input("conv2d")
    with torch.no_grad():
        module.weight[1] = 0
    assert torch.isfinite(update(module, x, SWTA(5.0, standardise=True))).all()
    assert (update(module, x, HPCA())[1] == 0).all()


def test_constant_input_is_no_division_by_zero():
    module, x = layer_and_input("conv2d")
    assert torch.isfinite(update(module, torch.zeros_like(x), SWTA(5.0, standardise=True))).all()


@pytest.mark.parametrize("rule", ["swta-standardised", "hpca"])
def test_memory_format_changes_nothing(rule):
    module, x = layer_and_input("conv2d")
    plain = update(module, x, RULES[rule][0])
    module = module.to(memory_format=torch.channels_last)
    laid = update(module, x.contiguous(memory_format=torch.channels_last), RULES[rule][0])
    torch.testing.assert_close(laid, plain, rtol=1e-12, atol=1e-12)


def test_half_precision_is_accumulated_in_float32():
    module, x = layer_and_input("conv2d")
    exact = update(module.bfloat16().float(), x.bfloat16().float(), HPCA())
    with torch.autocast("cpu", torch.bfloat16):
        half = update(module.bfloat16(), x.bfloat16(), HPCA())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, exact, rtol=1e-5, atol=1e-6)


def test_no_graph_is_built():
    module, x = layer_and_input("conv2d")
    assert not update(module, x.requires_grad_(), SWTA()).requires_grad


def test_other_layers_and_words_are_refused():
    module, x = layer_and_input("conv2d")
    with pytest.raises(TypeError, match="BatchNorm2d"):
        update(nn.BatchNorm2d(3), x, SWTA())
    with pytest.raises(ValueError, match="'median'"):
        update(module, x, SWTA(), "median")
    with pytest.raises(ValueError, match="'U'"):
        update(module, x, SWTA(), transposed="U")


@pytest.mark.parametrize("layer", ["conv1d", "conv2d", "conv2d-groups", "conv2d-same", "conv3d"])
def test_thinned_positions_are_those_of_a_larger_stride(layer):
    module, x = layer_and_input(layer)
    x = x.repeat(1, 1, *[3] * (x.ndim - 2))
    _, samples = accumulate(module, x, None, Learning(HPCA()))
    stride = 3
    wanted = samples // stride ** (x.ndim - 2)
    thinned = accumulate(module, x, None, Learning(HPCA(), samples=wanted))
    sparse = copy.deepcopy(module)
    if isinstance(sparse.padding, str):
        around = sparse._reversed_padding_repeated_twice
        x, sparse.padding = nn.functional.pad(x, around), (0,) * len(sparse.stride)
    sparse.stride = tuple(step * stride for step in sparse.stride)
    expected = naive_update(sparse, x, "hpca")
    assert thinned[1] == expected[1]
    np.testing.assert_allclose(thinned[0].numpy(), expected[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("available", [100, 2048, 2049, 8192, 32768, 131072, 262144, 10**7])
def test_thinning_takes_the_odd_step_that_leaves_nearest_to_the_samples_asked_for(available, dims):
    def miss(stride):
        return abs(math.log(available / stride**dims / 2048))

    stride = thinning(available, dims, 2048)
    assert stride % 2 == 1 and thinning(available, dims, None) == 1
    assert all(miss(stride) <= miss(other) + 1e-9 for other in range(1, 99999 if dims == 1 else 999, 2))


def test_thinned_positions_behind_a_transposed_layer_stand_for_all():
    """Its outputs differ with the place in blocks of 2 x 2, so that an even step would see a quarter of them only."""
    torch.manual_seed(0)
    up, conv = nn.ConvTranspose2d(16, 8, 2, stride=2), nn.Conv2d(8, 8, 3, padding=1, bias=False)
    x = up(nn.functional.leaky_relu(torch.randn(8, 16, 32, 32))).detach()
    everything, thinned, elsewhere = (
        torch.nn.functional.normalize((total / samples).flatten(), dim=0)
        for total, samples in (
            accumulate(conv, x, None, Learning(HPCA())),
            accumulate(conv, x, None, Learning(HPCA(), samples=2048)),
            accumulate(conv, x.roll((-1, -1), (2, 3)), None, Learning(HPCA(), samples=2048)),
        )
    )
    assert everything @ thinned > 0.95 and thinned @ elsewhere > 0.9


def test_processes_count_their_samples_together():
    module, x = layer_and_input("conv2d")
    _, alone = accumulate(module, x, None, Learning(HPCA(), samples=20))
    _, shared = accumulate(module, x[:1], None, Learning(HPCA(), samples=20, processes=2))
    assert alone == 2 * shared


@pytest.mark.parametrize("form", ["T", "T-summed", "S"])
@pytest.mark.parametrize("layer", ["transposed2d", "transposed2d-groups", "transposed2d-gaps", "transposed3d"])
def test_thinned_inputs_of_a_transposed_layer_are_a_smaller_input(layer, form):
    module, x = layer_and_input(layer)
    x = x.repeat(1, 1, *[2] * (x.ndim - 2))
    wanted = x[0, 0].numel() * len(x) // 3 ** (x.ndim - 2)
    total, samples = accumulate(module, x, module(x), Learning(HPCA(), transposed=form, samples=wanted))
    picked = x[(slice(None), slice(None), *[slice(None, None, 3)] * (x.ndim - 2))]
    expected = naive_update(module, picked, "hpca", form=form)
    assert samples == expected[1] < x[0, 0].numel() * len(x)
    np.testing.assert_allclose(total.numpy(), expected[0], rtol=1e-10, atol=1e-10)


def test_overlapping_transposed_layers_learn_from_all_positions():
    module, x = layer_and_input("transposed2d-overlapping")
    everything = accumulate(module, x, None, Learning(HPCA()))
    thinned = accumulate(module, x, None, Learning(HPCA(), samples=1))
    assert thinned[1] == everything[1] and torch.equal(thinned[0], everything[0])
