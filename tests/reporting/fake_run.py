"""A run folder as `nissl train` and `nissl evaluate` leave it, made up from masks: predictions are shifted masks."""

import json

import numpy as np
import tomli_w
from PIL import Image
from scipy import ndimage

from nissl.config import Config, DataConfig, to_tree
from nissl.imageio.formats import read_raster, write_image, write_mask
from nissl.pretrain.settings import Hebbian
from nissl.tasks.scores import COLUMNS, score_case, summarise

LAYERS = [f"encoder.blocks.{block}.conv{conv}" for block in range(5) for conv in (1, 2)]
WIDTHS = (16, 32, 64, 128, 256)


def write_images(root, names, shape=(48, 64)):
    """Write RGB images of two bright discs with their masks (0 and 1)."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    rows, columns = np.indices(shape)
    for name in names:
        mask = np.zeros(shape, np.uint8)
        for _ in range(2):
            centre, radius = rng.uniform(0.25, 0.75, 2) * shape, rng.uniform(6, 12)
            mask[(rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2] = 1
        pixels = 90 + 90 * mask[None] + rng.normal(0, 12, (3, *shape))
        Image.fromarray(np.moveaxis(pixels.clip(0, 255).astype(np.uint8), 0, -1)).save(root / "images" / f"{name}.png")
        Image.fromarray(mask).save(root / "masks" / f"{name}.png")


def write_volumes(root, names, spacing=(1.0, 1.0, 2.5), shape=(24, 30, 12)):
    """Write NIfTI volumes of a bright ellipsoid with classes 1 and 2 on its two sides."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name in names:
        x, y, z = (np.indices(shape) - np.array(shape).reshape(3, 1, 1, 1) / 2) * rng.uniform(0.8, 1.2)
        mask = ((x / 8) ** 2 + (y / 10) ** 2 + (z / 4) ** 2 < 1) * np.where(y > 0, 2, 1)
        image = 40.0 * mask[None] + rng.normal(0, 8, (1, *shape))
        write_image(root / "images" / f"{name}.nii.gz", image.astype(np.float32), spacing)
        write_image(root / "masks" / f"{name}.nii.gz", mask[None].astype(np.uint8), spacing)


def blurred_guess(mask, rng):
    """A prediction that misses more in some cases than in others."""
    shift = rng.normal(0, 0.03, mask.ndim) * mask.shape
    moved = ndimage.shift(mask, shift, order=0)
    field = ndimage.gaussian_filter(rng.standard_normal(mask.shape), max(mask.shape) / 25)
    return np.where(field < np.quantile(field, rng.uniform(0.7, 1.0)), moved, 0).astype(np.uint8)


def build_run(run, root, test, classes=("background", "gland"), groups=None):
    """Write a whole run folder for the data set in `root`, of which the cases `test` were measured."""
    rng = np.random.default_rng(0)
    (run / "predictions").mkdir(parents=True)
    images = {path.name.split(".")[0]: path for path in sorted((root / "images").iterdir())}
    binary = len(classes) == 2
    rows = []
    for name in test:
        raster = read_raster(root / "masks" / images[name].name)
        mask = (raster.pixels[0] > 0).astype(np.uint8) if binary else raster.pixels[0].astype(np.uint8)
        prediction = blurred_guess(mask, rng)
        write_mask(run / "predictions" / images[name].name, prediction, like=raster)
        rows += score_case(name, (groups or {}).get(name), prediction, mask, classes, raster.spacing)
    others = [name for name in images if name not in test]
    pixels = read_raster(images[test[0]]).pixels
    data = {
        "name": root.name,
        "root": str(root),
        "layout": "images+masks",
        "dims": pixels.ndim - 1,
        "channels": len(pixels),
        "classes": list(classes),
        "cases": [{"id": name, "group": (groups or {}).get(name)} for name in images],
    }
    files = described(data, others[: max(1, len(others) // 10)], others[max(1, len(others) // 10) :], test) | {
        "data.json": data,
        "metrics.json": summarise(rows, rng).to_tree() | {"split": "test", "cases": len(test)},
        "pretrain.json": pretraining(len(others), rng),
    }
    for name, tree in files.items():
        (run / name).write_text(json.dumps(tree))
    label_map = "binary" if binary else ",".join(f"{i}={name}" for i, name in enumerate(classes))
    resolved = DataConfig(label_map=label_map, sampling="resize", size=(128,) * (pixels.ndim - 1))
    config = Config(data=resolved, pretrain=Hebbian())
    (run / "config.toml").write_text(tomli_w.dumps(to_tree(config)))
    (run / "metrics.csv").write_text(COLUMNS.to_csv(rows))
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in logged(1000, rng)))
    kernel = (16, len(pixels), *(3,) * (pixels.ndim - 1))
    start = ndimage.gaussian_filter(rng.standard_normal(kernel), (0, 0, *(0.7,) * (len(kernel) - 2)))
    np.save(run / "filters_start.npy", start.astype(np.float32))
    np.save(run / "filters.npy", (start + rng.normal(0, 0.1, kernel)).astype(np.float32))
    return run


def described(data, labelled, unlabelled, test):
    """What a run says about its split, budget, network and surroundings."""
    groups = {case["group"] for case in data["cases"]} - {None}
    return {
        "split.json": {
            "labelled": labelled,
            "unlabelled": unlabelled,
            "test": list(test),
            "labels": "10%",
            "seed": 0,
            "origin": "cases.csv",
            "groups_checked": len(groups),
            "shared_groups": [],
        },
        "budget.json": {
            "masks_seen": labelled,
            "validation": [],
            "choices": [{"choice": "threshold", "made": "the most probable class", "split": None, "cases": 0}],
            "test_masks_opened": 0,
        },
        "network.json": {
            "name": "unet",
            "parameters": 1944322,
            "multiply_adds": 812345678,
            "input": [data["channels"], *(128,) * data["dims"]],
        },
        "env.json": {
            "nissl": "0.1.0",
            "torch": "2.13.0+cpu",
            "python": "3.11.7",
            "platform": "Linux x86_64",
            "device": "cpu",
            "threads": 2,
            "date": "2026-11-21T09:30:00+00:00",
            "command": "nissl train data --out run --labels 10% --pretrain hebbian --steps 1000",
        },
    }


def logged(steps, rng):
    """Lines of a training log: a loss that falls, with noise."""
    for step in range(1, steps + 1, 5):
        dice, entropy = (scale * np.exp(-step / 300) + 0.15 + rng.normal(0, 0.04) for scale in (0.5, 0.4))
        rate = 2e-3 * min(step / 100, 0.5 + 0.5 * np.cos(np.pi * max(step - 100, 0) / (steps - 100)))
        yield {
            "step": step,
            "loss": dice + entropy,
            "terms": {"dice": dice, "cross_entropy": entropy},
            "learning_rate": rate,
            "seconds": 0.06 * step,
        }


def pretraining(images, rng):
    """What the Hebbian stage reports."""
    final = rng.uniform(0.15, 0.9, len(LAYERS))
    layers = [
        {
            "name": name,
            "relative_change": float(change),
            "sparsity": float(rng.uniform(0.3, 0.7)),
            "dead_units": int(index == 8) * 3,
            "units": WIDTHS[index // 2],
            "variance_explained": float(rng.uniform(0.4, 0.9)),
        }
        for index, (name, change) in enumerate(zip(LAYERS, final, strict=True))
    ]
    curves = [{"step": s, "change": (final * (1 - np.exp(-s / 80))).tolist()} for s in range(10, 301, 10)]
    return {
        "name": "hebbian",
        "rule": "hpca",
        "steps": 300,
        "seconds": 21.4,
        "images": images,
        "layers": layers,
        "curves": curves,
    }
