"""What a file says beside its numbers: each is read as viewers show it, or refused by name, whoever reads it."""

import json
import struct
import zlib

import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image

from nissl import cli
from nissl.config import DataConfig
from nissl.data.batches import Store
from nissl.data.cases import CaseFile, load_case, open_image, read_image
from nissl.data.preprocessing import Preprocessing
from nissl.errors import DataError, InputError
from nissl.imageio.formats import read_header, read_raster, write_mask
from nissl.imageio.label_map import LabelMap, default_map

CONFIG = DataConfig()


def noise(*shape, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def assert_read(path, expected, config=CONFIG):
    """Training, prediction (as a whole and by regions) and the header agree on the array."""
    image, header = read_image(path, config), read_header(path, axes=config.axes)
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
        return opened.pixels[np.s_[:, :, :]]


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
def test_f90_the_orientation_of_a_picture_is_applied(tmp_path, orientation):
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


def test_f90_image_and_mask_are_turned_each_by_its_own_tag(tmp_path):
    upright = noise(20, 30)
    mask = (upright > 99).astype(np.uint8)
    Image.fromarray(np.rot90(upright, 1)).save(tmp_path / "a.png", exif=with_exif(6))
    Image.fromarray(np.rot90(mask, 2)).save(tmp_path / "turned.png", exif=with_exif(3))
    Image.fromarray(mask).save(tmp_path / "plain.png")
    for name in ("turned.png", "plain.png"):
        case = load_case(CaseFile("a", tmp_path / "a.png", tmp_path / name), default_map(None))
        np.testing.assert_array_equal(case.image[0] > 99, case.target)


@pytest.mark.parametrize("orientation", VIEWED)
@pytest.mark.parametrize("options", [{}, {"compression": "zlib", "tile": (16, 16)}])
def test_f90_the_orientation_of_a_tiff_is_applied_to_every_plane(tmp_path, orientation, options):
    tags = {"extratags": [(274, "H", 1, orientation, True)], "photometric": "minisblack", **options}
    stored = noise(12, 17)
    tifffile.imwrite(tmp_path / "flat.tif", stored, **tags)
    assert_read(tmp_path / "flat.tif", VIEWED[orientation](stored)[None])
    stack = noise(3, 12, 17, dtype=np.uint16)
    tifffile.imwrite(tmp_path / "stack.tif", stack, metadata={"axes": "ZYX"}, **tags)
    assert_read(tmp_path / "stack.tif", np.stack([VIEWED[orientation](plane) for plane in stack])[None])


def test_f90_spacing_is_turned_with_the_axes(tmp_path):
    sizes = {"axes": "YX", "PhysicalSizeX": 2, "PhysicalSizeXUnit": "mm", "PhysicalSizeY": 5, "PhysicalSizeYUnit": "mm"}
    for orientation, spacing in ((1, (5, 2)), (3, (5, 2)), (6, (2, 5)), (8, (2, 5))):
        tags = [(274, "H", 1, orientation, True)]
        tifffile.imwrite(tmp_path / "a.ome.tif", noise(12, 17), ome=True, metadata=sizes, extratags=tags)
        assert read_image(tmp_path / "a.ome.tif", CONFIG).spacing == spacing


def test_f90_exif_that_cannot_be_read_turns_nothing(tmp_path):
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
def test_f91_all_16_bits_of_a_png_are_read(tmp_path, samples, kept):
    pixels = noise(12, 17, samples, dtype=np.uint16)
    write_deep_png(tmp_path / "a.png", pixels)
    assert_read(tmp_path / "a.png", np.moveaxis(pixels[..., :kept], -1, 0))


def test_f91_a_transparent_colour_adds_no_channel(tmp_path):
    pixels = noise(12, 17, 3, dtype=np.uint16)
    write_deep_png(tmp_path / "deep.png", pixels)
    content = (tmp_path / "deep.png").read_bytes()
    transparent = png_chunk(b"tRNS", pixels[0, 0].astype(">u2").tobytes())
    (tmp_path / "deep.png").write_bytes(content[:33] + transparent + content[33:])
    assert_read(tmp_path / "deep.png", np.moveaxis(pixels, -1, 0))
    small = (pixels >> 8).astype(np.uint8)
    Image.fromarray(small).save(tmp_path / "rgb.png", transparency=tuple(map(int, small[0, 0])))
    assert_read(tmp_path / "rgb.png", np.moveaxis(small, -1, 0))
    Image.fromarray(small[..., 0]).save(tmp_path / "gray.png", transparency=int(small[0, 0, 0]))
    assert_read(tmp_path / "gray.png", small[None, ..., 0])


def test_f91_an_animation_is_refused(tmp_path):
    frames = [Image.fromarray(noise(12, 17, seed=seed)) for seed in range(3)]
    frames[0].save(tmp_path / "moving.png", save_all=True, append_images=frames[1:])
    assert_refused(tmp_path / "moving.png", "3 frames", "TIFF stack")


def indexed(tmp_path, name, indices, table, **options):
    picture = Image.fromarray(indices)
    picture.putpalette(np.asarray(table, np.uint8).ravel().tolist())
    picture.save(tmp_path / name, **options)
    return tmp_path / name


@pytest.mark.parametrize("kind", ["png", "bmp"])
def test_f92_an_image_has_the_colours_of_its_palette_and_a_mask_its_indices(tmp_path, kind):
    indices, table = noise(12, 17) % 5, noise(5, 3, seed=1)
    path = indexed(tmp_path, f"a.{kind}", indices, table)
    assert_read(path, np.moveaxis(table[indices], -1, 0))
    raster = read_raster(path)
    np.testing.assert_array_equal(raster.pixels[0], indices)
    case = load_case(CaseFile("a", path, path), LabelMap.parse("0,1,2,3,4"))
    np.testing.assert_array_equal(case.target, indices)


def test_f92_two_pictures_that_look_the_same_are_the_same_array_whatever_the_order_of_their_palette(tmp_path):
    indices, table, order = noise(12, 17) % 5, noise(5, 3, seed=1), np.array([3, 1, 4, 0, 2])
    one = indexed(tmp_path, "one.png", indices, table)
    other = indexed(tmp_path, "other.png", np.argsort(order).astype(np.uint8)[indices], table[order])
    np.testing.assert_array_equal(read_image(one, CONFIG).pixels, read_image(other, CONFIG).pixels)


def test_f92_a_palette_of_grays_is_gray(tmp_path):
    indices, grays = noise(12, 17) % 4, np.array([200, 3, 90, 255], np.uint8)
    path = indexed(tmp_path, "a.png", indices, np.repeat(grays[:, None], 3, axis=1))
    assert_read(path, grays[indices][None])
    colours = read_image(path, DataConfig(colour="rgb")).pixels
    np.testing.assert_array_equal(colours, np.repeat(grays[indices][None], 3, axis=0))


def test_f92_a_tiff_has_the_colours_of_its_palette_by_regions_too(tmp_path):
    indices, table = noise(40, 30), noise(3, 256, dtype=np.uint16, seed=1)
    options = {"photometric": "palette", "compression": "zlib", "tile": (16, 16)}
    tifffile.imwrite(tmp_path / "a.tif", indices, colormap=table, **options)
    assert_read(tmp_path / "a.tif", (table >> 8).astype(np.uint8)[:, indices])
    tifffile.imwrite(tmp_path / "short.tif", indices, colormap=table >> 8, **options)  # 8 of 16 bits are filled
    assert_read(tmp_path / "short.tif", (table >> 8).astype(np.uint8)[:, indices])
    np.testing.assert_array_equal(read_raster(tmp_path / "a.tif").pixels[0], indices)


def test_f92_a_look_up_table_of_imagej_is_no_colour_of_the_image(tmp_path):
    values, green = noise(40, 30), np.zeros((3, 256), np.uint16)
    green[1] = np.arange(256) * 257
    tifffile.imwrite(tmp_path / "green.tif", values, imagej=True, colormap=green)
    assert_read(tmp_path / "green.tif", values[None])
    table = noise(3, 256, dtype=np.uint16)  # a picture of 256 colours, as "8-bit Color" makes
    tifffile.imwrite(tmp_path / "colour.tif", values, imagej=True, colormap=table)
    assert_read(tmp_path / "colour.tif", (table >> 8).astype(np.uint8)[:, values])


@pytest.mark.parametrize("options", [{}, {"compression": "zlib", "tile": (16, 16)}])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
def test_f93_where_0_is_white_larger_becomes_brighter_and_a_mask_is_refused(tmp_path, dtype, options):
    stored = noise(40, 30, dtype=dtype)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="miniswhite", **options)
    assert_read(tmp_path / "a.tif", np.asarray(np.iinfo(dtype).max - stored, dtype)[None])
    tifffile.imwrite(tmp_path / "m.tif", stored % 2, photometric="miniswhite", **options)
    with pytest.raises(DataError, match="WhiteIsZero"):
        load_case(CaseFile("a", tmp_path / "a.tif", tmp_path / "m.tif"), default_map(None))


@pytest.mark.parametrize("compression", ["group4", "packbits", "raw"])
def test_f93_masks_of_one_bit_are_what_viewers_show(tmp_path, compression):
    mask = noise(40, 30) > 99
    for name, photometric in (("white.tif", 0), ("black.tif", 1)):
        Image.fromarray(mask).save(tmp_path / name, compression=compression, tiffinfo={262: photometric})
        with tifffile.TiffFile(tmp_path / name) as file:
            assert file.pages[0].photometric == photometric
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / name)), mask)
        assert_read(tmp_path / name, mask.astype(np.uint8)[None])
        case = load_case(CaseFile("a", tmp_path / name, tmp_path / name), default_map(None))
        np.testing.assert_array_equal(case.target, mask)


def test_f93_true_stays_true_in_what_python_wrote_though_it_says_that_0_is_white(tmp_path):
    mask = noise(40, 30) > 99
    for name, options in (("a.tif", {}), ("b.tif", {"metadata": None}), ("c.tif", {"compression": "zlib"})):
        tifffile.imwrite(tmp_path / name, mask, **options)
        with tifffile.TiffFile(tmp_path / name) as file:
            assert file.pages[0].photometric == 0
        assert_read(tmp_path / name, mask.astype(np.uint8)[None])


@pytest.mark.parametrize("kind", ["separated", "cielab", "icclab", "cfa", "logluv", "linear_raw", "ycbcr"])
def test_f93_colours_that_are_no_rgb_are_refused(tmp_path, kind):
    samples = {"separated": 4, "cfa": 1}.get(kind, 3)
    pixels = noise(40, 30, samples) if samples > 1 else noise(40, 30)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric=1 if samples == 1 else "rgb")
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as file:
        file.pages[0].tags[262].overwrite(tifffile.PHOTOMETRIC[kind.upper()].value)
    assert_refused(tmp_path / "a.tif", kind.upper(), "convert it to RGB")


@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_f93_numbers_that_cannot_be_turned_over_are_refused(tmp_path, dtype):
    tifffile.imwrite(tmp_path / "a.tif", noise(40, 30).astype(dtype), photometric="miniswhite")
    assert_refused(tmp_path / "a.tif", "0 stands for white", "minisblack")


def test_f93_jpeg_brings_its_colours_to_rgb_and_complex_numbers_are_refused(tmp_path):
    smooth = np.stack([np.add.outer(np.arange(48), np.arange(64)) + 40 * n for n in range(3)], axis=-1)
    smooth = smooth.astype(np.uint8)
    for photometric, pixels in (("ycbcr", Image.fromarray(smooth).convert("YCbCr")), ("rgb", smooth)):
        tifffile.imwrite(tmp_path / "a.tif", np.asarray(pixels), photometric=photometric, compression="jpeg")
        image = read_image(tmp_path / "a.tif", CONFIG).pixels
        assert np.abs(image.astype(int) - np.moveaxis(smooth, -1, 0)).max() < 12
        np.testing.assert_array_equal(open_whole(tmp_path / "a.tif"), image)
    tifffile.imwrite(tmp_path / "waves.tif", noise(40, 30).astype(np.complex64))
    assert_refused(tmp_path / "waves.tif", "complex64")


def test_f93_cmyk_of_a_jpeg_becomes_the_rgb_that_viewers_show(tmp_path):
    colours = np.full((16, 24, 3), (200, 30, 90), np.uint8)
    Image.fromarray(colours).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    image = read_image(tmp_path / "a.jpg", CONFIG).pixels
    assert image.shape == (3, 16, 24) and np.abs(np.moveaxis(image, 0, -1).astype(int) - colours).max() < 8


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.float16, np.float32, np.uint32])
def test_f93_signed_values_and_short_floats_are_read_as_they_are(tmp_path, dtype):
    stored = (noise(40, 30).astype(np.float64) - 99).clip(0 if dtype == np.uint32 else -128, 127).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", stored)
    assert_read(tmp_path / "a.tif", stored[None])


def ome(files, own, depth, channels=1, name="Image:0"):
    """OME-XML of one image whose planes are in so many files, an equal number in each."""
    ids = [f"urn:uuid:00000000-0000-4000-8000-{number:012d}" for number in range(len(files))]
    planes = depth * channels
    data = "".join(
        f'<TiffData FirstZ="{at % depth}" FirstC="{at // depth}" FirstT="0" IFD="{at % (planes // len(files))}" '
        f'PlaneCount="1"><UUID FileName="{files[at * len(files) // planes]}">{ids[at * len(files) // planes]}'
        "</UUID></TiffData>"
        for at in range(planes)
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
        f'UUID="{ids[own]}"><Image ID="{name}"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="30" '
        f'SizeY="40" SizeZ="{depth}" SizeC="{channels}" SizeT="1">{data}</Pixels></Image></OME>'
    )


def write_planes(path, planes, description):
    with tifffile.TiffWriter(path) as file:
        for number, plane in enumerate(planes):
            file.write(plane, photometric="minisblack", metadata=None, description=None if number else description)


def test_f94_a_part_of_an_ome_set_is_refused_whether_the_rest_is_there_or_not(tmp_path, capsys):
    names = [f"field_Z{z}.ome.tif" for z in range(3)]
    planes = noise(3, 40, 30, dtype=np.uint16)
    images = tmp_path / "images"
    images.mkdir()
    for number, name in enumerate(names):
        write_planes(images / name, planes[number : number + 1], ome(names, number, 3))
    write_planes(tmp_path / "alone.ome.tif", planes[:1], ome(names, 0, 3))
    for path in (tmp_path / "alone.ome.tif", *images.iterdir()):
        assert_refused(path, "3 files", "bfconvert")
    shown = findings(capsys, tmp_path)
    assert sorted(where[-16:] for where, *_ in shown) == sorted(names)


def test_f94_the_first_half_of_a_stack_is_refused_as_a_whole_one_is_read(tmp_path):
    planes = noise(8, 40, 30, dtype=np.uint16)
    write_planes(tmp_path / "half.ome.tif", planes[:4], ome(["half.ome.tif", "half_1.ome.tif"], 0, 8))
    assert_refused(tmp_path / "half.ome.tif", "2 files")
    write_planes(tmp_path / "whole.ome.tif", planes, ome(["another name.ome.tif"], 0, 8))
    assert_read(tmp_path / "whole.ome.tif", planes[None])


def test_f94_planes_that_the_metadata_promise_but_the_file_lacks_are_no_zeros(tmp_path):
    planes = noise(3, 40, 30, dtype=np.uint16)
    write_planes(tmp_path / "a.ome.tif", planes, ome(["a.ome.tif"], 0, 8))
    assert_refused(tmp_path / "a.ome.tif", "tifffile warns")
    for options in ({}, {"compression": "zlib"}):
        tifffile.imwrite(tmp_path / "b.tif", planes, photometric="minisblack", metadata={"axes": "ZYX"}, **options)
        content = (tmp_path / "b.tif").read_bytes()
        (tmp_path / "b.tif").write_bytes(content.replace(b'"shape": [3,', b'"shape": [9,'))
        assert_refused(tmp_path / "b.tif", "damaged")


def write_pages(path, *pages):
    """Pages of any size, each with its subfile type."""
    with tifffile.TiffWriter(path) as file:
        for pixels, kind in pages:
            colours = "mask" if kind == 4 else "minisblack"
            file.write(pixels, subfiletype=kind, photometric=colours, metadata=None)


def test_f95_the_picture_is_read_and_not_its_thumbnail_or_transparency(tmp_path):
    picture = noise(64, 48, dtype=np.uint16)
    small, other = picture[::4, ::4].copy(), noise(64, 48, dtype=np.uint16, seed=1)
    write_pages(tmp_path / "first.tif", (small, 1), (picture, 0))
    write_pages(tmp_path / "last.tif", (picture, 0), (picture[::2, ::2].copy(), 1), (small, 1))
    write_pages(tmp_path / "mask.tif", (picture, 0), (picture > 99, 4))
    write_pages(tmp_path / "stack.tif", (small, 1), (picture, 2), (other, 2))
    for name in ("first.tif", "last.tif", "mask.tif"):
        assert_read(tmp_path / name, picture[None])
    assert_read(tmp_path / "stack.tif", np.stack([picture, other])[None])


def test_f95_several_images_in_one_file_are_refused_with_their_number(tmp_path):
    one, other = noise(40, 30, dtype=np.uint16), noise(20, 30, dtype=np.uint16)
    write_pages(tmp_path / "sizes.tif", (one, 0), (other, 0))
    assert_refused(tmp_path / "sizes.tif", "2 images in one file, of 40 x 30, 20 x 30", "export each")
    write_pages(tmp_path / "types.tif", (one, 0), (one.astype(np.uint8), 0))
    assert_refused(tmp_path / "types.tif", "2 images in one file")
    with tifffile.TiffWriter(tmp_path / "scenes.ome.tif", ome=True) as file:
        for seed in range(3):
            file.write(noise(5, 40, 30, dtype=np.uint16, seed=seed), photometric="minisblack", metadata={"axes": "ZYX"})
    assert_refused(tmp_path / "scenes.ome.tif", "3 images in one file", "-series")
    with tifffile.TiffWriter(tmp_path / "slide.ome.tif", ome=True) as file:
        file.write(one, metadata={"axes": "YX", "Name": "Scan"})
        file.write(other, metadata={"axes": "YX", "Name": "label image"})
    assert_read(tmp_path / "slide.ome.tif", one[None])


@pytest.mark.parametrize(
    ("axes", "shape", "order"),
    [("CYX", (5, 40, 30), (0, 1, 2)), ("YXC", (40, 30, 5), (2, 0, 1)), ("YXZ", (40, 30, 5), (2, 0, 1))],
)
@pytest.mark.parametrize("options", [{}, {"compression": "zlib", "tile": (16, 16)}])
def test_f96_axes_that_a_file_does_not_name_can_be_given(tmp_path, axes, shape, order, options):
    stored = noise(*shape, dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="minisblack", **options)
    assert_read(tmp_path / "a.tif", stored[None])
    expected = stored.transpose(order)
    assert_read(tmp_path / "a.tif", expected if "C" in axes else expected[None], DataConfig(axes=axes))


def test_f96_a_flat_mask_of_an_image_with_unnamed_channels_leads_to_the_setting(tmp_path, capsys):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for axes, shape in (("CYX", (5, 40, 30)), ("YXC", (40, 30, 5))):
        tifffile.imwrite(tmp_path / "images/a.tif", noise(*shape, dtype=np.uint16), photometric="minisblack")
        tifffile.imwrite(tmp_path / "masks/a.tif", noise(40, 30) % 2)
        assert any(f"--data.axes {axes}" in fix for _, _, fix in findings(capsys, tmp_path))
        assert not findings(capsys, tmp_path, "--data.axes", axes)


@pytest.mark.parametrize("imagej", [True, False])
def test_f96_time_is_depth_by_the_setting_only(tmp_path, imagej):
    stored = noise(5, 40, 30, dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", stored, imagej=imagej, photometric="minisblack", metadata={"axes": "TYX"})
    assert_refused(tmp_path / "a.tif", "TYX", "--data.axes ZYX if T is depth")
    assert_read(tmp_path / "a.tif", stored[None], DataConfig(axes="ZYX"))
    assert_read(tmp_path / "a.tif", stored, DataConfig(axes="CYX"))
    mask = tmp_path / "m.tif"
    tifffile.imwrite(mask, (stored > 99).astype(np.uint8), photometric="minisblack", metadata={"axes": "TYX"})
    case = load_case(CaseFile("a", tmp_path / "a.tif", mask), default_map(None), DataConfig(axes="ZYX"))
    np.testing.assert_array_equal(case.image[0] > 99, case.target)


def test_f96_files_that_name_other_axes_keep_them(tmp_path):
    config, planes = DataConfig(axes="CZYX"), noise(4, 40, 30)
    for name, axes in (("z.tif", "ZYX"), ("c.tif", "CYX")):
        tifffile.imwrite(tmp_path / name, planes, photometric="minisblack", metadata={"axes": axes})
        assert_read(tmp_path / name, planes[None] if axes == "ZYX" else planes, config)
    colours = noise(40, 30, 3)
    tifffile.imwrite(tmp_path / "rgb.tif", colours, photometric="rgb")
    assert_read(tmp_path / "rgb.tif", np.moveaxis(colours, -1, 0), DataConfig(axes="CYX"))


@pytest.mark.parametrize("axes", ["TYX", "YXX", "CZ", "cyx", "C,Y,X"])
def test_f96_axes_that_mean_nothing_are_refused(axes):
    with pytest.raises(InputError, match=r"data\.axes"):
        DataConfig(axes=axes)


def save_nifti(path, data, affine, unit="mm", scale=(1, 0)):
    image = nibabel.Nifti1Image(data, affine)
    image.header.set_xyzt_units(unit)
    image.header.set_slope_inter(*scale)
    nibabel.save(image, path)


MICROMETRES = np.array([[5.0, 0, 0, 100], [0, 0, 5, -40], [0, -8, 0, 20], [0, 0, 0, 1]])


@pytest.mark.parametrize(("unit", "factor"), [("micron", 1e-3), ("mm", 1), ("meter", 1e3), ("unknown", 1)])
def test_f97_unit_pixdim_and_affine_of_a_mask_are_those_of_its_image(tmp_path, unit, factor):
    save_nifti(tmp_path / "image.nii.gz", noise(9, 8, 7), MICROMETRES, unit)
    like = read_raster(tmp_path / "image.nii.gz")
    assert like.spacing == pytest.approx((5 * factor, 8 * factor, 5 * factor))
    np.testing.assert_allclose(like.affine[:3], MICROMETRES[:3] * factor)
    write_mask(tmp_path / "mask.nii.gz", noise(9, 8, 7) % 2, like)
    image, mask = (nibabel.load(tmp_path / f"{name}.nii.gz") for name in ("image", "mask"))
    np.testing.assert_allclose(mask.affine, image.affine, rtol=1e-6)
    np.testing.assert_allclose(mask.header.get_zooms(), image.header.get_zooms(), rtol=1e-6)
    assert mask.header.get_xyzt_units()[0] == (unit if unit != "unknown" else "mm")


def test_f97_a_mask_in_mm_lies_on_an_image_in_micrometres_and_one_of_another_size_does_not(tmp_path):
    save_nifti(tmp_path / "image.nii", noise(9, 8, 7), MICROMETRES, "micron")
    scale = np.diag([1e-3, 1e-3, 1e-3, 1])
    save_nifti(tmp_path / "mm.nii", noise(9, 8, 7) % 2, scale @ MICROMETRES)
    load_case(CaseFile("a", tmp_path / "image.nii", tmp_path / "mm.nii"), default_map(None))
    save_nifti(tmp_path / "wrong.nii", noise(9, 8, 7) % 2, MICROMETRES)
    with pytest.raises(DataError, match="spacing"):
        load_case(CaseFile("a", tmp_path / "image.nii", tmp_path / "wrong.nii"), default_map(None))


@pytest.mark.parametrize(
    ("stored", "ends", "scale", "expected"),
    [
        (np.int16, (0, 4095), (1, -1024), np.int16),
        (np.int16, (-32768, 32767), (1, -1024), np.int32),
        (np.int16, (-31744, 32767), (1, -1024), np.int16),
        (np.uint16, (0, 33791), (1, -1024), np.int16),
        (np.uint16, (1024, 65535), (1, -1024), np.int32),
        (np.uint8, (0, 255), (-2, 7), np.int16),
        (np.int16, (0, 30000), (100000, 0), np.int64),
        (np.int16, (0, 30000), (2.0**99, 0), np.float64),
        (np.int16, (0, 4095), (0.5, -1024), np.float64),
        (np.int16, (0, 4095), (1, -0.5), np.float64),
        (np.float32, (0, 4095), (1, -1024), np.float64),
        (np.int16, (0, 4095), (np.nan, np.nan), np.int16),
    ],
)
def test_f97_whole_numbers_stay_whole_and_small_where_slope_and_intercept_are(tmp_path, stored, ends, scale, expected):
    values = np.linspace(*ends, 504).astype(stored).reshape(9, 8, 7)
    values.ravel()[[0, -1]] = ends
    save_nifti(tmp_path / "a.nii", values, np.eye(4), scale=scale)
    image = read_image(tmp_path / "a.nii", CONFIG).pixels
    assert image.dtype == expected
    slope, intercept = scale if scale[0] == scale[0] else (1, 0)
    np.testing.assert_array_equal(image[0], values.astype(np.float64) * slope + intercept)


def test_f97_a_body_ct_with_intercept_is_below_the_limit_that_its_float_form_is_above(tmp_path):
    limit = 512 * 512 * 8 * 2 / 2**30
    save_nifti(tmp_path / "ct.nii", np.zeros((512, 512, 8), np.int16), np.eye(4), scale=(1, -1024))
    header, image = read_header(tmp_path / "ct.nii"), read_image(tmp_path / "ct.nii", DataConfig(limit_gib=limit))
    assert (header.dtype, header.decoded_bytes) == (image.pixels.dtype.name, image.pixels.nbytes) == ("int16", 2**22)
    assert (image.pixels == -1024).all()


def test_f97_colours_lose_their_alpha_and_complex_numbers_are_refused_by_the_header(tmp_path):
    record = np.zeros((8, 9, 7), [(name, "u1") for name in "RGBA"])
    for number, name in enumerate("RGBA"):
        record[name] = noise(8, 9, 7, seed=number)
    save_nifti(tmp_path / "a.nii", record, np.eye(4))
    assert_read(tmp_path / "a.nii", np.stack([record[name] for name in "RGB"]))
    save_nifti(tmp_path / "waves.nii", noise(8, 9, 7).astype(np.complex64), np.eye(4))
    assert_refused(tmp_path / "waves.nii", "complex64")
    with pytest.raises(DataError, match="complex64"):
        read_header(tmp_path / "waves.nii")


@pytest.mark.parametrize("size", [(16, 16), (40, 30)])
def test_f98_whole_numbers_and_the_same_numbers_as_floats_are_the_same_to_training_and_prediction(tmp_path, size):
    counts = np.random.default_rng(0).poisson(0.2, (40, 30))
    seen = []
    for kind in (np.uint8, np.uint16, np.int32, np.float32):
        path = tmp_path / f"{np.dtype(kind)}.tif"
        tifffile.imwrite(path, counts.astype(kind))
        config = DataConfig(size=size, sampling="resize")
        seen.append(Store([CaseFile("a", path)], default_map(None), config, with_masks=False)[0].image)
        with open_image(path, config, lines=4) as opened:
            seen.append(Preprocessing("resize", size).resized(opened.pixels))
    assert all(np.array_equal(seen[0], other) and other.dtype == np.float32 for other in seen[1:])
    assert abs(seen[0].mean() - counts.mean()) < 0.05 and (size == (40, 30) or len(np.unique(seen[0])) > 99)
