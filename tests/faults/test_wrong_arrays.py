"""What a file says beside its numbers: each is read as viewers show it, or refused by name, whoever reads it."""

import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from nissl import cli
from nissl.config import DataConfig
from nissl.data.cases import CaseFile, load_case, open_image, read_image
from nissl.errors import DataError
from nissl.imageio.formats import read_header, read_raster
from nissl.imageio.label_map import LabelMap, default_map

CONFIG = DataConfig()


def noise(*shape, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def assert_read(path, expected, config=CONFIG):
    """Training, prediction (as a whole and by regions) and the header agree on the array."""
    image, header = read_image(path, config), read_header(path)
    assert image.pixels.dtype == expected.dtype
    np.testing.assert_array_equal(image.pixels, expected)
    assert (header.shape, header.channels, header.dtype) == (expected.shape[1:], len(expected), expected.dtype.name)
    with open_image(path, config, lines=4) as opened:
        pixels = opened.pixels
        assert (pixels.shape, pixels.dtype) == (expected.shape, expected.dtype)
        for box in (np.s_[:, :, :], np.s_[:, 2:9, 3:7]):
            np.testing.assert_array_equal(pixels[box], expected[box])


def assert_refused(path, found, fix=""):
    """Training and prediction refuse the file by its name, before any array of it is used."""
    for read in (lambda: read_image(path, CONFIG), lambda: open_whole(path)):
        with pytest.raises(DataError) as caught:
            read()
        assert path.name in caught.value.where and found in caught.value.found and fix in caught.value.fix


def open_whole(path):
    with open_image(path, CONFIG, lines=4) as opened:
        return np.asarray(opened.pixels)


def findings(capsys, root, *flags):
    """Errors of `nissl check` as (file, found, fix)."""
    cli.run(["check", str(root), "--json", *flags])
    shown = json.loads(capsys.readouterr().out)["findings"]
    return [(each["where"], each["found"], each["fix"]) for each in shown if each["level"] == "error"]


# What viewers do for each orientation of EXIF, written down one by one
VIEWED = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(np.transpose(a), 2),
    8: lambda a: np.rot90(a, 1),
    9: lambda a: a,  # no such orientation
}


def with_exif(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def png_chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@pytest.mark.parametrize("orientation", VIEWED)
def test_f71_the_orientation_of_a_picture_is_applied(tmp_path, orientation):
    stored = noise(12, 17)
    expected = VIEWED[orientation](stored)[None]
    Image.fromarray(stored).save(tmp_path / "before.png", exif=with_exif(orientation))
    assert_read(tmp_path / "before.png", expected)
    Image.fromarray(stored).save(tmp_path / "plain.png")
    content = (tmp_path / "plain.png").read_bytes()
    end = png_chunk(b"IEND", b"")
    late = png_chunk(b"eXIf", with_exif(orientation).tobytes().removeprefix(b"Exif\0\0"))
    (tmp_path / "after.png").write_bytes(content.removesuffix(end) + late + end)
    assert_read(tmp_path / "after.png", expected)
    colours = np.stack([stored, 255 - stored, stored // 2], axis=-1)
    Image.fromarray(colours).save(tmp_path / "photo.jpg", exif=with_exif(orientation), quality=95)
    decoded = np.asarray(Image.open(tmp_path / "photo.jpg"))
    expected = np.stack([VIEWED[orientation](channel) for channel in np.moveaxis(decoded, -1, 0)])
    assert_read(tmp_path / "photo.jpg", expected)


def test_f71_image_and_mask_are_turned_each_by_its_own_tag(tmp_path):
    upright = noise(20, 30)
    mask = (upright > 99).astype(np.uint8)
    Image.fromarray(np.rot90(upright, 1)).save(tmp_path / "a.png", exif=with_exif(6))
    Image.fromarray(np.rot90(mask, 2)).save(tmp_path / "turned.png", exif=with_exif(3))
    Image.fromarray(mask).save(tmp_path / "plain.png")
    for name in ("turned.png", "plain.png"):
        case = load_case(CaseFile("a", tmp_path / "a.png", tmp_path / name), default_map(None))
        np.testing.assert_array_equal(case.image[0] > 99, case.mask)


def test_f71_exif_that_cannot_be_read_turns_nothing(tmp_path):
    stored = noise(12, 17)
    Image.fromarray(stored).save(tmp_path / "a.png", exif=b"Exif\0\0no tags at all")
    assert_read(tmp_path / "a.png", stored[None])


def write_deep_png(path, pixels):
    """PNG of 16 bits from (rows, columns, samples), by its specification."""
    rows, columns, samples = pixels.shape
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", columns, rows, 16, {1: 0, 2: 4, 3: 2, 4: 6}[samples], 0, 0, 0)
    chunks = (b"IHDR", head), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*each) for each in chunks))


@pytest.mark.parametrize(("samples", "kept"), [(1, 1), (2, 1), (3, 3), (4, 3)])
def test_f72_all_16_bits_of_a_png_are_read(tmp_path, samples, kept):
    pixels = noise(12, 17, samples, dtype=np.uint16)
    write_deep_png(tmp_path / "a.png", pixels)
    assert_read(tmp_path / "a.png", np.moveaxis(pixels[..., :kept], -1, 0))


def test_f72_an_animation_is_refused_and_a_picture_in_its_alpha_alone_too(tmp_path):
    frames = [Image.fromarray(noise(12, 17, seed=seed)) for seed in range(3)]
    frames[0].save(tmp_path / "moving.png", save_all=True, append_images=frames[1:])
    assert_refused(tmp_path / "moving.png", "3 frames", "TIFF stack")
    drawn = np.zeros((12, 17, 4), np.uint8)
    drawn[3:7, 4:9, 3] = 255
    Image.fromarray(drawn).save(tmp_path / "drawn.png")
    assert_refused(tmp_path / "drawn.png", "alpha", "without alpha")


def indexed(tmp_path, name, indices, table, **options):
    picture = Image.fromarray(indices)
    picture.putpalette(np.asarray(table, np.uint8).ravel().tolist())
    picture.save(tmp_path / name, **options)
    return tmp_path / name


@pytest.mark.parametrize("kind", ["png", "bmp"])
def test_f73_an_image_has_the_colours_of_its_palette_and_a_mask_its_indices(tmp_path, kind):
    indices, table = noise(12, 17) % 5, noise(5, 3, seed=1)
    path = indexed(tmp_path, f"a.{kind}", indices, table)
    assert_read(path, np.moveaxis(table[indices], -1, 0))
    raster = read_raster(path)
    np.testing.assert_array_equal(raster.pixels[0], indices)
    case = load_case(CaseFile("a", path, path), LabelMap.parse("0,1,2,3,4"))
    np.testing.assert_array_equal(case.mask, indices)


def test_f73_two_pictures_that_look_the_same_are_the_same_array_whatever_the_order_of_their_palette(tmp_path):
    indices, table, order = noise(12, 17) % 5, noise(5, 3, seed=1), np.array([3, 1, 4, 0, 2])
    one = indexed(tmp_path, "one.png", indices, table)
    other = indexed(tmp_path, "other.png", np.argsort(order).astype(np.uint8)[indices], table[order])
    np.testing.assert_array_equal(read_image(one, CONFIG).pixels, read_image(other, CONFIG).pixels)


def test_f73_a_palette_of_grays_is_gray(tmp_path):
    indices, grays = noise(12, 17) % 4, np.array([200, 3, 90, 255], np.uint8)
    path = indexed(tmp_path, "a.png", indices, np.repeat(grays[:, None], 3, axis=1))
    assert_read(path, grays[indices][None])
    colours = read_image(path, DataConfig(colour="rgb")).pixels
    np.testing.assert_array_equal(colours, np.repeat(grays[indices][None], 3, axis=0))
