"""Images that a small network learns to make again within a minute: smooth, of variance 1."""

import torch
from torch.nn import functional

from nissl.nets.settings import UNet

WIDE = UNet(widths=(16, 32), dropout=(0.0, 0.0))


class Smooth:
    """Four images of two channels by step, 4 x 4 (x 4) random values interpolated to 16 x 16 (x 16)."""

    def __init__(self, dims):
        self.dims = dims

    def __getitem__(self, step):
        coarse = torch.randn(4, 2, *[4] * self.dims, generator=torch.Generator().manual_seed(step))
        mode = {2: "bilinear", 3: "trilinear"}[self.dims]
        smooth = functional.interpolate(coarse, size=(16,) * self.dims, mode=mode, align_corners=False)
        return smooth / smooth.std()
