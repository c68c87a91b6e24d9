"""V-Net (Milletari et al. 2016), through MONAI."""

from jaxtyping import Float
from torch import Tensor, nn

from nissl.nets import settings


class VNet(nn.Module):
    """MONAI's V-Net, 2-D or 3-D; its sizes are fixed by the paper, so the settings of the U-Net do not apply."""

    multiple = 16

    def __init__(self, dims: int, in_channels: int, classes: int, config: settings.VNet) -> None:
        super().__init__()
        from monai.networks.nets import VNet as MonaiVNet

        self.net = MonaiVNet(spatial_dims=dims, in_channels=in_channels, out_channels=classes)

    def forward(self, images: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch classes *space"]:
        """Return logits of the images' spatial size."""
        logits: Tensor = self.net(images)
        return logits
