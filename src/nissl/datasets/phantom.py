"""The data set of the demo: simulated fluorescence microscopy of nuclei, with exact masks, in 2-D and 3-D.

Light is built up as it is in a microscope: sources (nuclei, and debris that is none), uneven illumination, the blur of
the optics, the noise of photons and of the camera. The mask is the union of the true outlines, before any of it.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage

from nissl.errors import InputError
from nissl.files import write_whole
from nissl.imageio.formats import write_image, write_mask

SLIDE = 5  # images from one simulated slide
COUNTS = 95.0  # gray values for a light of 1, of the 255 that there are
CAMERA = 10.0  # gray value of darkness


@dataclass(frozen=True)
class PhantomConfig:
    """What is simulated; lengths in pixels, light relative to the mean light of a nucleus."""

    dims: int = 2
    size: tuple[int, ...] = ()
    """Pixels along each axis; empty: 128 x 128, or 32 x 64 x 64."""
    nuclei: tuple[int, int] = (8, 20)
    """Fewest and most nuclei in an image."""
    radius: tuple[float, float] = (5.0, 11.0)
    """Smallest and largest mean radius of a nucleus."""
    stain: float = 1.0
    """Light of the nuclei."""
    background: float = 0.12
    """Light where there is nothing."""
    shade: float = 0.35
    """Depth of the uneven illumination, as a fraction."""
    blur: float = 1.4
    """Standard deviation of the point-spread function; twice that along the optical axis (the first of three)."""
    photons: float = 40.0
    """Photons caught in a pixel for a light of 1."""
    debris: float = 3.0
    """Mean number of objects of each kind that are not nuclei: specks, fibres, haze out of focus."""

    def __post_init__(self) -> None:
        if self.dims not in (2, 3) or len(self.size) not in (0, self.dims):
            found = f"dims {self.dims}, size {self.size}"
            raise InputError("phantom", found, "dims 2 or 3, and a size along each axis", "correct dims or size")

    @property
    def space(self) -> tuple[int, ...]:
        """Pixels along each axis."""
        return self.size or ((128, 128) if self.dims == 2 else (32, 64, 64))


def phantom(
    config: PhantomConfig, rng: np.random.Generator
) -> tuple[UInt8[np.ndarray, "1 *space"], UInt8[np.ndarray, "*space"]]:
    """Simulate one image and its mask: 1 in a nucleus, 0 elsewhere."""
    light, mask = _nuclei(config, rng)
    light = config.stain * light + _debris(config, rng) + config.background * (1 + 0.3 * _field(rng, config.space, 9.0))
    light *= 1 + config.shade * _illumination(rng, config.space)
    optics = [config.blur] * config.dims if config.dims == 2 else [2 * config.blur, config.blur, config.blur]
    light = ndimage.gaussian_filter(np.maximum(light, 0), optics)
    caught = rng.poisson(light * config.photons) / config.photons
    read = CAMERA + COUNTS * caught + rng.normal(0, 2.0, config.space)
    return np.clip(np.rint(read), 0, 255).astype(np.uint8)[None], mask.astype(np.uint8)


def _field(rng: np.random.Generator, space: Sequence[int], scale: float) -> Float[np.ndarray, "*space"]:
    """Noise that is smooth over `scale` pixels, with mean 0 and standard deviation 1."""
    smooth = ndimage.gaussian_filter(rng.standard_normal(tuple(space)), scale)
    return np.asarray((smooth - smooth.mean()) / (smooth.std() + 1e-12))


def _illumination(rng: np.random.Generator, space: Sequence[int]) -> Float[np.ndarray, "*space"]:
    """A lamp out of centre: bright on one side, falling off as a square, between -1 and 1."""
    centre = rng.uniform(-0.8, 0.8, len(space))
    grid = np.meshgrid(*[np.linspace(-1, 1, n) for n in space], indexing="ij")
    distance = np.sum([(axis - at) ** 2 for axis, at in zip(grid, centre, strict=True)], axis=0)
    return np.asarray(1 - 2 * distance / distance.max())


def _turn(rng: np.random.Generator, dims: int) -> Float[np.ndarray, "dims dims"]:
    """Draw a rotation, uniform over all."""
    basis, upper = np.linalg.qr(rng.standard_normal((dims, dims)))
    return basis * np.sign(np.diag(upper))


def _nuclei(
    config: PhantomConfig, rng: np.random.Generator
) -> tuple[Float[np.ndarray, "*space"], Bool[np.ndarray, "*space"]]:
    """Light and outlines of all nuclei; half of them lie close to another one, and light adds where they overlap."""
    space = np.array(config.space)
    light, mask = np.zeros(config.space), np.zeros(config.space, dtype=bool)
    placed: list[tuple[np.ndarray, float]] = []
    for _ in range(int(rng.integers(config.nuclei[0], config.nuclei[1] + 1))):
        radius = float(np.exp(rng.uniform(*np.log(config.radius))))
        for _ in range(10):  # tries to find a place that is not taken already
            centre = rng.uniform(0, space - 1)
            if placed and rng.random() < 0.5:
                near, other = placed[rng.integers(len(placed))]
                way = rng.standard_normal(config.dims)
                centre = near + way / np.linalg.norm(way) * (radius + other) * rng.uniform(0.75, 1.1)
            apart = all(np.linalg.norm(centre - at) > 0.7 * (radius + other) for at, other in placed)
            if apart and np.all((centre >= 0) & (centre < space)):
                placed.append((centre, radius))
                _add_nucleus(light, mask, (centre, radius), rng)
                break
    return light, mask


def _add_nucleus(
    light: Float[np.ndarray, "*space"],
    mask: Bool[np.ndarray, "*space"],
    place: tuple[np.ndarray, float],
    rng: np.random.Generator,
) -> None:
    """Add one nucleus in place: an ellipse with a smooth irregular outline, filled with grains of chromatin."""
    centre, radius = place
    reach = int(2.2 * radius) + 2
    low = np.round(centre).astype(int) - reach
    box = (2 * reach + 1,) * mask.ndim
    semi = np.exp(rng.uniform(-0.32, 0.32, mask.ndim))
    semi *= radius / np.prod(semi) ** (1 / mask.ndim)
    offset = np.moveaxis(np.indices(box), 0, -1) + low - centre
    distance = np.linalg.norm(offset @ _turn(rng, mask.ndim) / semi, axis=-1)
    inside = distance + 0.1 * _field(rng, box, 0.5 * radius) < 1
    chromatin = np.exp(0.28 * _field(rng, box, 1.3) + 0.22 * _field(rng, box, 0.3 * radius))
    thickness = 0.55 + 0.45 * np.sqrt(np.clip(1 - distance**2, 0, 1))
    brightness = rng.lognormal(-0.05, 0.3) * (rng.uniform(0.25, 0.45) if rng.random() < 0.35 else 1.0)
    seen = tuple(slice(max(0, at), min(at + n, end)) for at, n, end in zip(low, box, mask.shape, strict=True))
    cut = tuple(slice(part.start - at, part.stop - at) for part, at in zip(seen, low, strict=True))
    light[seen] += (brightness * inside * chromatin * thickness)[cut]
    mask[seen] |= inside[cut]


def _debris(config: PhantomConfig, rng: np.random.Generator) -> Float[np.ndarray, "*space"]:
    """Light that is not a nucleus: small bright specks, thin fibres, and haze from other depths."""
    space = np.array(config.space)
    specks, fibres, haze = (np.zeros(config.space) for _ in range(3))
    for _ in range(rng.poisson(config.debris)):
        specks[tuple(rng.integers(space))] += rng.uniform(8, 30)
    for _ in range(rng.poisson(0.5 * config.debris)):
        steps = int(rng.uniform(20, 70))
        way = rng.standard_normal(config.dims)
        bends = ndimage.gaussian_filter1d(rng.standard_normal((steps, config.dims)), 8.0, axis=0) * 2.5
        walk = rng.uniform(0, space) + np.cumsum(way / np.linalg.norm(way) + bends, axis=0) * 0.8
        points = np.round(walk[np.all((walk >= 0) & (walk < space - 1), axis=1)]).astype(int)
        fibres[tuple(points.T)] = rng.uniform(0.8, 2.0)
    for _ in range(rng.poisson(config.debris)):
        spread = rng.uniform(0.45, 1.2) * config.radius[1]
        grid = np.meshgrid(*[np.arange(n) - rng.uniform(0, n) for n in config.space], indexing="ij")
        haze += rng.uniform(0.3, 1.0) * np.exp(-np.sum([axis**2 for axis in grid], axis=0) / (2 * spread**2))
    width = (2 * np.pi) ** ((config.dims - 2) / 2)  # so that a speck is as bright in 3-D as in 2-D
    haze += ndimage.gaussian_filter(specks, 0.6) * width + ndimage.gaussian_filter(fibres, 0.5)
    return haze


def write_phantoms(folder: Path, count: int, config: PhantomConfig, seed: int, masks: int | None = None) -> None:
    """Write a data set: images/, masks/ and cases.csv, with a test side of other slides.

    Every five images come from one slide, which has its own stain, background, lamp and exposure; each fourth slide
    is for testing. `masks` is how many training images have a mask, None for all; test images always have one.

    Raises:
        InputError: the folder holds something already.

    """
    if folder.exists() and any(folder.iterdir()):
        raise InputError(folder, "a folder that is not empty", "an empty or a new folder", "choose another folder")
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    suffix = "png" if config.dims == 2 else "nii.gz"
    training = [number for number in range(count) if number // SLIDE % 4 != 3]
    unmasked = set() if masks is None else set(np.random.default_rng([seed, 1]).permutation(training)[masks:].tolist())
    rows = ["id,group,split"]
    for number in range(count):
        slide, name = number // SLIDE, f"field{number:03d}"
        image, mask = phantom(_slide(config, seed, slide), np.random.default_rng([seed, 2, number]))
        write_image(folder / "images" / f"{name}.{suffix}", image)
        if number not in unmasked:
            write_mask(folder / "masks" / f"{name}.{suffix}", mask)
        rows.append(f"{name},slide{slide:02d},{'train' if slide % 4 != 3 else 'test'}")
    write_whole(folder / "cases.csv", "\n".join(rows) + "\n")


def _slide(config: PhantomConfig, seed: int, slide: int) -> PhantomConfig:
    """Change the settings as one slide differs from another."""
    stain, background, shade, photons = np.random.default_rng([seed, 3, slide]).uniform(-1, 1, 4)
    return dataclasses.replace(
        config,
        stain=config.stain * 1.35**stain,
        background=config.background * 1.6**background,
        shade=min(0.9, config.shade * 1.5**shade),
        photons=config.photons * 1.6**photons,
    )
