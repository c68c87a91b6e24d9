"""Counting operations: the same as torch's own counter, forward and back."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nissl.nets.flops import Flops

NET = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 4, 2, 2), nn.Linear(28, 5))
ATTENTION = nn.MultiheadAttention(16, 2, batch_first=True)
IMAGES, WORDS = torch.rand(2, 3, 16, 16), torch.rand(2, 5, 16)


def forward_and_back():
    NET(IMAGES).sum().backward()
    ATTENTION(WORDS, WORDS, WORDS)[0].sum().backward()


@torch.no_grad()
def without_gradients():
    NET(IMAGES)
    ATTENTION.train()(WORDS, WORDS, WORDS)
    ATTENTION.eval()(WORDS, WORDS, WORDS)


@torch.inference_mode()
def inference():
    NET(IMAGES)
    ATTENTION.eval()(WORDS, WORDS, WORDS)


@pytest.mark.parametrize("compute", [forward_and_back, without_gradients, inference])
def test_the_count_is_that_of_torch(compute):
    with FlopCounterMode(display=False) as expected:
        compute()
    with Flops() as flops:
        compute()
    assert flops.count == expected.get_total_flops() > 0


def test_a_multiply_add_counts_as_two():
    with Flops() as flops:
        torch.rand(3, 4) @ torch.rand(4, 5)
    assert flops.count == 2 * 3 * 4 * 5
