"""Data sets of a few small images, and settings that train on them in a second."""

import sys
from contextlib import contextmanager
from pathlib import Path

from tests.members import made

from nissl.config import Config, DataConfig, SplitConfig, TrainConfig
from nissl.datasets.phantom import PhantomConfig, write_phantoms
from nissl.nets.settings import UNet
from nissl.pretrain import PRETRAININGS

NET = UNet(widths=(4, 8), dropout=(0.0, 0.1))
ANY_NET = ["--labels", "2", "--size", "32", "--steps", "3", "--batch", "2"]
FLAGS = [*ANY_NET, "--widths", "4", "8", "--net.dropout", "0", "0.1"]


def pretrained(name="hebbian"):
    """Flags of a pre-training, a short one where it makes steps."""
    steps = ["--pretrain.steps", "2", "--pretrain.batch", "2"]
    return ["--pretrain", name, *(steps if name in PRETRAININGS.owners("steps") else [])]


def tiny_config(dims=2, pretrain="hebbian", steps=5, labels="2", seed=0):
    return Config(
        data=DataConfig(size=(32,) if dims == 2 else (16,)),
        split=SplitConfig(labels=labels),
        net=NET,
        pretrain=made(PRETRAININGS, pretrain, steps=2, batch=2),
        train=TrainConfig(steps=steps, batch=2, save_every=2),
        seed=seed,
    )


def write_tiny(folder: Path, dims=2, count=8, test=(2, 5), unmasked=(7,)):
    """Write images of 32 x 32 (or 16 x 32 x 32) with masks, a split in cases.csv and an image without mask."""
    size = (32, 32) if dims == 2 else (16, 32, 32)
    write_phantoms(folder, count, PhantomConfig(dims=dims, size=size, nuclei=(4, 6), radius=(3.0, 5.0)), seed=0)
    rows = [f"field{n:03d},slide{n},{'test' if n in test else 'train'}" for n in range(count)]
    (folder / "cases.csv").write_text("\n".join(["id,group,split", *rows]) + "\n")
    for n in unmasked:
        next((folder / "masks").glob(f"field{n:03d}.*")).unlink()
    return folder


_watched: list[set[Path]] = []


def _note(event, arguments):
    if event == "open" and _watched and isinstance(arguments[0], str | bytes | Path):
        name = arguments[0].decode() if isinstance(arguments[0], bytes) else arguments[0]
        _watched[-1].add(Path(name).absolute())


sys.addaudithook(_note)


@contextmanager
def opened_files():
    """Collect every file that this process opens, by whatever function."""
    _watched.append(set())
    try:
        yield _watched[-1]
    finally:
        _watched.pop()
