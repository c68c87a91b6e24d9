"""Small untrained models, and run folders that hold them."""

import dataclasses

import torch
from torch import nn

from nissl import nets
from nissl.config import Config, DataConfig, NetConfig, PredictConfig, to_tree
from nissl.train.checkpoint import save_checkpoint
from nissl.train.run import WEIGHTS, Model, write_json

NET = NetConfig(widths=(4, 8), dropout=(0.0, 0.0))


def tiny_model(dims=2, sampling="patches", channels=1, size=16, tile=512, halo=96):
    """A U-Net of two levels with three classes; its receptive field reaches 10 pixels at most to each side."""
    torch.set_num_threads(1)
    config = Config(
        data=DataConfig(sampling=sampling, size=(size,) * dims), net=NET, predict=PredictConfig(tile=tile, halo=halo)
    )
    net = nets.build(NET, dims, channels, 3, seed=0).eval()
    return Model(net, config, dims, channels, ("background", "head", "body"), "0" * 64, torch.device("cpu"))


def with_net(model, net: nn.Module):
    """The same model with another network."""
    return dataclasses.replace(model, net=net)


def write_run(folder, model):
    """Write a model as the folder of a run."""
    import tomli_w

    (folder / WEIGHTS).parent.mkdir(parents=True)
    (folder / "config.toml").write_text(tomli_w.dumps(to_tree(model.config)))
    write_json(folder / "data.json", {"dims": model.dims, "channels": model.channels, "classes": model.classes})
    save_checkpoint(folder / WEIGHTS, model.net.state_dict(), {})
