"""The demo: simulated microscopy, ten masks, the whole job, one page."""

import functools
import itertools
import sys
from pathlib import Path

from nissl import api
from nissl.config import Config, SplitConfig, TrainConfig
from nissl.datasets.phantom import PhantomConfig, write_phantoms
from nissl.nets.settings import UNet

IMAGES = 80
SETTINGS = Config(
    split=SplitConfig(labels="10"),
    net=UNet(widths=(8, 16, 32, 64, 128)),
    train=TrainConfig(steps=400),
)
"""Small enough for a laptop without a GPU."""


def demo(out: Path) -> Path:
    """Simulate images, train on ten masks, measure, predict, and write the page.

    Nothing is overwritten: where `out` exists, the first free one of `out-2`, `out-3` and so on is made instead.
    """
    names = (f"{out.name}-{number}" if number > 1 else out.name for number in itertools.count(1))
    out = next(folder for folder in map(out.with_name, names) if not folder.exists())
    say = functools.partial(print, file=sys.stderr, flush=True)
    say(f"simulating {IMAGES} images of fluorescent nuclei in {out / 'phantoms'}")
    write_phantoms(out / "phantoms", IMAGES, PhantomConfig(), seed=SETTINGS.seed)
    say("training on 10 masks; the other images have no part in it")
    run = api.train(out / "phantoms", out / "run", SETTINGS)
    summary = api.evaluate(run)
    low, high = summary.overall.dice_ci
    say(f"Dice {summary.overall.dice:.3f} ({low:.3f} to {high:.3f}) on {summary.overall.n_cases} test images")
    api.predict(run, out / "phantoms" / "images", out / "masks")
    return api.report(run)
