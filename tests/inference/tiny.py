"""Small untrained models, and run folders that hold them."""

import dataclasses

import numpy as np
import torch
from torch import nn

from nissl.config import PredictConfig
from nissl.data.preprocessing import Preprocessing, moments, resize_image
from nissl.inference.memory import MemoryFallback
from nissl.inference.tiles import pieces
from nissl.model import Description, Model
from nissl.nets import factory
from nissl.nets.settings import UNet
from nissl.runs.checkpoint import save_checkpoint
from nissl.runs.folder import WEIGHTS

NET = UNet(widths=(4, 8), dropout=(0.0, 0.0))


def tiny_model(dims=2, sampling="patches", channels=1, size=16, tile=512, halo=96, settings=NET):
    """A U-Net of two levels with three classes; its receptive field reaches 10 pixels at most to each side."""
    torch.set_num_threads(1)
    description = Description(
        Preprocessing(sampling, (size,) * dims),
        channels,
        ("background", "head", "body"),
        settings,
        predict=PredictConfig(tile=tile, halo=halo),
        planned_steps=4,
    )
    net = factory.build(settings, dims, channels, 3, seed=0).eval()
    return Model(net, description, torch.device("cpu"), steps=4)


def with_net(model, net: nn.Module):
    """The same model with another network."""
    return dataclasses.replace(model, predictor=net)


def write_run(folder, model):
    """Write a model as the folder of a run."""
    (folder / WEIGHTS).parent.mkdir(parents=True)
    model.description.save(folder)
    save_checkpoint(folder / WEIGHTS, model.predictor.state_dict(), {"step": model.steps})


def picture(*shape, dtype=np.uint8, seed=0):
    """Smooth blobs with noise, whose statistics differ from place to place."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(0, 1, (shape[0], *(-(-s // 8) for s in shape[1:])))
    image = resize_image(coarse.astype(np.float32), shape[1:]) + rng.normal(0, 0.3, shape)
    return ((image - image.min()) / np.ptp(image) * 250).astype(dtype)


def served(model, image, fallback=None):
    """Logits of all pieces of an image, each with its place."""
    return (piece for _, row in pieces(model, image, fallback or MemoryFallback(model)) for piece in row)


def assembled(model, image, fallback=None):
    """Logits of the whole image, after checking that each pixel comes exactly once."""
    logits = np.full((len(model.classes), *image.shape[1:]), np.nan, np.float32)
    for place, piece in served(model, image, fallback):
        part = logits[(slice(None), *place)]
        assert part.shape == piece.shape
        assert np.isnan(part).all()
        part[:] = piece
    assert not np.isnan(logits).any()
    return logits


def whole_at_once(model, image):
    """Independent reference for `patches`: pad with NumPy, run the network once, crop."""
    step = model.predictor.multiple
    want = [-(-max(s, t) // step) * step for s, t in zip(image.shape[1:], model.preprocessing.size, strict=True)]
    around = [((w - s) // 2, w - s - (w - s) // 2) for w, s in zip(want, image.shape[1:], strict=True)]
    mean, deviation = moments(image)
    padded = (np.pad(image, [(0, 0), *around], mode="symmetric") - mean) / deviation
    with torch.inference_mode():
        logits = model.predictor(torch.from_numpy(padded.astype(np.float32))[None])[0].numpy()
    cut = tuple(slice(a, a + s) for (a, _), s in zip(around, image.shape[1:], strict=True))
    return logits[(slice(None), *cut)]
