"""Stage 1: ways to learn from images without masks, by the name that the command line uses."""

from torch import nn

from nissl.config import PretrainConfig
from nissl.pretrain.hebbian import Hebbian, Shuffled, Untrained
from nissl.pretrain.pretraining import Images, Pretraining, Report
from nissl.pretrain.superpixel import Superpixel
from nissl.pretrain.unit_norm import UnitNormControl
from nissl.pretrain.vae import VariationalAutoEncoder
from nissl.pretrain.warm import Warm

PRETRAININGS: dict[str, type[Pretraining]] = {
    "none": Pretraining,
    "unit-norm": UnitNormControl,
    "warm": Warm,
    "untrained": Untrained,
    "shuffled": Shuffled,
    "hebbian": Hebbian,
    "vae": VariationalAutoEncoder,
    "superpixel": Superpixel,
}


def pretrain(net: nn.Module, images: Images, config: PretrainConfig, seed: int = 0) -> Report:
    """Pre-train a network in place, from images only; it stays a plain module with a plain state dict.

    With `handover="unit-norm"` its layers are parametrised (torch.nn.utils.parametrize);
    `nissl.training.loop.plain_state` works that into plain weights.
    """
    return PRETRAININGS[config.name](config, seed).run(net, images)


__all__ = ["PRETRAININGS", "Images", "Pretraining", "Report", "pretrain"]
