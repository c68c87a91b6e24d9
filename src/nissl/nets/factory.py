"""Make a network from its settings, and reach its parts."""

import importlib
from typing import Any

import torch
from torch import nn

from nissl.errors import InputError
from nissl.nets.precise import make_precise
from nissl.nets.settings import NETWORKS, NetSettings

FOREIGN_MULTIPLE = 32
"""Sizes that a network of unknown inside is assumed to need: five halvings, as most have at most."""


def build(settings: NetSettings, dims: int, in_channels: int, classes: int, seed: int) -> nn.Module:
    """Make the network; its initial weights depend on the seed only, and the global random state is left alone.

    Raises:
        InputError: unknown name, or a class that does not take `spatial_dims, in_channels, out_channels`.

    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which also seeds the GPUs
        if settings.name in NETWORKS:
            try:
                network: nn.Module = NETWORKS[settings.name](dims, in_channels, classes, settings)
                return make_precise(network)
            except ValueError as error:  # MONAI's V-Net takes 1, 2, 4, 8 or 16 channels
                found = f"{settings.name} for images of {in_channels} channels: {error}"
                fix = "use --net unet, or bring the images to one channel with --colour gray"
                raise InputError("net.name", found, "a network that takes these images", fix) from error
        kind = _imported(settings.name)
        try:
            net = kind(spatial_dims=dims, in_channels=in_channels, out_channels=classes)
        except Exception as error:  # another's class may raise anything
            found = f"{settings.name} cannot be made: {error}"
            wanted = "a network made by (spatial_dims, in_channels, out_channels), as those of MONAI"
            fix = "wrap it in a class with these three arguments and name that class"
            raise InputError("net.name", found, wanted, fix) from error
    if not isinstance(net, nn.Module):
        found = f"{settings.name} makes a {type(net).__name__}"
        raise InputError("net.name", found, "a torch module", "name a network")
    return make_precise(net)


def multiple(net: nn.Module) -> int:
    """Return the number that each spatial size of the network's input must be a multiple of."""
    return int(getattr(net, "multiple", FOREIGN_MULTIPLE))


def parts(net: nn.Module, who: str) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Encoder, decoder and head of a network that has them, as the U-Net does; `who` asks, such as `--method urpc`.

    The encoder gives the features of each level, the finest first; the decoder makes of them its own, the finest last,
    from which the head makes logits. An InputError where the network has no such parts.
    """
    encoder, decoder, head = (getattr(net, name, None) for name in ("encoder", "decoder", "head"))
    if isinstance(encoder, nn.Module) and isinstance(decoder, nn.Module) and isinstance(head, nn.Module):
        return encoder, decoder, head
    wanted = "parts named encoder, decoder and head, as those of `unet`"
    raise InputError("net.name", f"{type(net).__name__}, with {who}", wanted, "use --net unet")


def _imported(path: str) -> Any:
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # another's module may raise anything while it is imported
        wanted = f"one of {', '.join(NETWORKS)}, or a class by dotted path"
        fix = "write it as package.module:Class, such as monai.networks.nets:BasicUNet"
        raise InputError("net.name", f"{path!r}: {error}", wanted, fix) from error
