"""Three sound cases of 32 x 40 pixels, the third without mask, for tests to break."""

import numpy as np

from nissl.imageio.formats import write_image, write_mask


def noise(seed, shape=(1, 32, 40), dtype=np.uint8):
    return np.random.default_rng(seed).integers(0, 255, shape).astype(dtype)


def square(top=1, shape=(32, 40)):
    mask = np.zeros(shape, np.uint8)
    mask[..., 8:20, 8:20] = top
    return mask


def write_three(folder):
    (folder / "images").mkdir()
    (folder / "masks").mkdir()
    for n, name in enumerate("abc"):
        write_image(folder / "images" / f"{name}.png", noise(n))
    for name in "ab":
        write_mask(folder / "masks" / f"{name}.png", square(), None)
    return folder
