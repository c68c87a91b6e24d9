"""Reading and writing of image files: nothing is clipped, guessed or decoded past the limit."""

import importlib.util
import logging
import os
import struct
import subprocess
import sys
import warnings
import zlib

import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image
from tests.shared import shared
from tests.tiny_data import write_tiny

from nissl.errors import DataError, InputError
from nissl.imageio.formats import Raster, read_header, read_raster, stem, suffix, write_image, write_mask


def noise(*shape, dtype=np.uint8, seed=0):
    draws = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return draws.normal(size=shape).astype(dtype)
    return draws.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


HELD = [
    *[(kind, channels, 2, "uint8") for kind in (".png", ".bmp") for channels in (1, 3)],
    (".png", 1, 2, "uint16"),
    *[
        (kind, channels, dims, dtype)
        for kind in (".tif", ".tiff", ".nii", ".nii.gz")
        for channels in (1, 3, 5)
        for dims in (2, 3)
        for dtype in ("uint8", "uint16", "int16", "uint32", "float32")
    ],
]


@pytest.mark.parametrize(("kind", "channels", "dims", "dtype"), HELD)
def test_what_is_written_is_read_bit_for_bit(tmp_path, kind, channels, dims, dtype):
    pixels = noise(channels, *(5, 18, 23)[-dims:], dtype=dtype)
    path = tmp_path / f"image{kind}"
    write_image(path, pixels)
    raster, header = read_raster(path), read_header(path)
    assert raster.pixels.dtype == pixels.dtype
    np.testing.assert_array_equal(raster.pixels, pixels)
    assert (header.shape, header.channels, header.dtype) == (pixels.shape[1:], channels, dtype)
    assert header.decoded_bytes == pixels.nbytes
    assert raster.pixels.flags.c_contiguous and raster.pixels.flags.writeable


def test_jpeg_is_read_close_to_what_was_written(tmp_path):
    pixels = np.broadcast_to(np.arange(0, 240, 5, dtype=np.uint8), (3, 32, 48))
    write_image(tmp_path / "image.jpg", pixels)
    assert np.abs(read_raster(tmp_path / "image.jpg").pixels.astype(int) - pixels).max() < 12


def test_alpha_is_dropped_and_bits_become_zero_and_one(tmp_path):
    rgba, gray_alpha, bits = noise(12, 14, 4), noise(12, 14, 2, seed=1), noise(12, 14) > 99
    Image.fromarray(rgba, "RGBA").save(tmp_path / "rgba.png")
    Image.fromarray(gray_alpha, "LA").save(tmp_path / "la.png")
    Image.fromarray(bits).save(tmp_path / "bits.png")
    tifffile.imwrite(tmp_path / "rgba.tif", rgba, photometric="rgb", extrasamples=["unassalpha"])
    tifffile.imwrite(tmp_path / "bits.tif", bits)
    for name in ("rgba.png", "rgba.tif"):
        np.testing.assert_array_equal(read_raster(tmp_path / name).pixels, np.moveaxis(rgba[..., :3], -1, 0))
        assert read_header(tmp_path / name).channels == 3
    np.testing.assert_array_equal(read_raster(tmp_path / "la.png").pixels[0], gray_alpha[..., 0])
    for name in ("bits.png", "bits.tif"):
        raster = read_raster(tmp_path / name)
        np.testing.assert_array_equal(raster.pixels[0], bits)
        assert raster.pixels.dtype == np.uint8 and read_header(tmp_path / name).dtype == "uint8"


def test_palette_files_keep_indices_and_colours(tmp_path):
    indices = noise(10, 11) % 3
    image = Image.fromarray(indices)
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 128, 255])
    image.save(tmp_path / "palette.png")
    table = np.zeros((3, 256), np.uint16)
    table[:, 1], table[:, 2] = (65535, 0, 0), (0, 128 * 257, 65535)
    tifffile.imwrite(tmp_path / "palette.tif", indices, photometric="palette", colormap=table)
    for name in ("palette.png", "palette.tif"):
        raster = read_raster(tmp_path / name)
        np.testing.assert_array_equal(raster.pixels[0], indices)
        assert raster.palette[:3].tolist() == [[0, 0, 0], [255, 0, 0], [0, 128, 255]]


@pytest.mark.parametrize(
    ("axes", "shape", "expected"),
    [
        ("YXS", (20, 30, 4), (4, 20, 30)),
        ("CYX", (3, 20, 30), (3, 20, 30)),
        ("ZYX", (3, 20, 30), (1, 3, 20, 30)),
        ("QYX", (6, 20, 30), (1, 6, 20, 30)),
        ("ZCYX", (5, 2, 20, 30), (2, 5, 20, 30)),
        ("CZYX", (2, 5, 20, 30), (2, 5, 20, 30)),
        ("TZCYX", (1, 5, 2, 20, 30), (2, 5, 20, 30)),
    ],
)
def test_tiff_channels_follow_the_named_axes(tmp_path, axes, shape, expected):
    stored = noise(*shape, dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="minisblack", metadata={"axes": axes})
    pixels = read_raster(tmp_path / "a.tif").pixels
    assert (
        pixels.shape == expected == (read_header(tmp_path / "a.tif").channels, *read_header(tmp_path / "a.tif").shape)
    )
    letters = [axis for axis, size in zip(axes, shape, strict=True) if axis in "YXSC" or size > 1]
    order = [i for i, a in enumerate(letters) if a in "SC"] + [i for i, a in enumerate(letters) if a not in "SC"]
    np.testing.assert_array_equal(pixels.reshape(-1), stored.squeeze().transpose(order).reshape(-1))


def test_sound_tiffs_that_are_no_images_are_refused_by_their_content(tmp_path):
    tifffile.imwrite(tmp_path / "t.tif", noise(3, 4, 20, 30), photometric="minisblack", metadata={"axes": "TZYX"})
    tifffile.imwrite(tmp_path / "waves.tif", np.ones((20, 30), np.complex64))
    tifffile.imwrite(tmp_path / "time.tif", noise(3, 20, 30), photometric="minisblack", metadata={"axes": "TYX"})
    for name, found in (("t.tif", "TZYX"), ("time.tif", "TYX"), ("waves.tif", "complex64")):
        with pytest.raises(DataError) as caught:
            read_raster(tmp_path / name)
        assert found in caught.value.found and "damaged" not in caught.value.found


def test_tiff_spacing_is_taken_only_where_the_unit_is_stated(tmp_path):
    stack = noise(3, 20, 30)
    named = {"photometric": "minisblack", "resolution": (4, 5)}
    tifffile.imwrite(
        tmp_path / "ij.tif", stack, imagej=True, metadata={"axes": "ZYX", "spacing": 2.0, "unit": "um"}, **named
    )
    tifffile.imwrite(tmp_path / "ij2.tif", stack[0], imagej=True, metadata={"axes": "YX", "unit": "micron"}, **named)
    tifffile.imwrite(tmp_path / "none.tif", stack[0], resolutionunit="CENTIMETER", **named)
    tifffile.imwrite(tmp_path / "pixel.tif", stack[0], imagej=True, metadata={"axes": "YX", "unit": "pixel"}, **named)
    ome = {
        "axes": "YX",
        "PhysicalSizeX": 0.5,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": 700,
        "PhysicalSizeYUnit": "nm",
    }
    tifffile.imwrite(tmp_path / "a.ome.tif", stack[0], ome=True, photometric="minisblack", metadata=ome)
    assert read_header(tmp_path / "ij.tif").spacing == pytest.approx((2e-3, 0.2e-3, 0.25e-3))
    assert read_raster(tmp_path / "ij2.tif").spacing == pytest.approx((0.2e-3, 0.25e-3))
    assert read_raster(tmp_path / "a.ome.tif").spacing == pytest.approx((0.7e-3, 0.5e-3))
    assert read_raster(tmp_path / "none.tif").spacing is None
    assert read_raster(tmp_path / "pixel.tif").spacing is None


@pytest.mark.parametrize("kind", [".tif", ".nii.gz"])
@pytest.mark.parametrize("spacing", [(0.5, 0.25), (2.0, 0.5, 0.25)])
def test_spacing_survives_writing(tmp_path, kind, spacing):
    path = tmp_path / f"a{kind}"
    write_image(path, noise(1, *(6, 20, 30)[-len(spacing) :]), spacing)
    assert read_header(path).spacing == pytest.approx(spacing)


def save_nifti(path, data, affine=None, slope=None, unit="mm"):
    image = nibabel.Nifti1Image(data, np.eye(4) if affine is None else affine)
    image.header.set_xyzt_units(unit)
    if slope:
        image.header.set_slope_inter(*slope)
    nibabel.save(image, path)


def test_nifti_shapes_become_space_and_channels(tmp_path):
    for shape, expected in [
        ((8, 9, 10), (1, 8, 9, 10)),
        ((8, 9, 1), (1, 8, 9)),
        ((8, 9), (1, 8, 9)),
        ((8, 9, 10, 3), (3, 8, 9, 10)),
        ((8, 9, 1, 3), (3, 8, 9)),
        ((8, 9, 10, 1, 3), (3, 8, 9, 10)),
    ]:
        data = noise(*shape, dtype=np.float32)
        save_nifti(tmp_path / "a.nii.gz", data)
        pixels = read_raster(tmp_path / "a.nii.gz").pixels
        assert pixels.shape == expected
        np.testing.assert_array_equal(pixels[-1].ravel(), data.reshape(*expected[1:], -1)[..., -1].ravel())


def test_nifti_colour_records_become_channels_and_time_beside_channels_is_refused(tmp_path):
    pixels = noise(3, 8, 9, 10)
    record = np.zeros((8, 9, 10), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    for name, channel in zip("RGB", pixels, strict=True):
        record[name] = channel
    save_nifti(tmp_path / "rgb.nii", record)
    np.testing.assert_array_equal(read_raster(tmp_path / "rgb.nii").pixels, pixels)
    header = read_header(tmp_path / "rgb.nii")
    assert (header.channels, header.dtype, header.decoded_bytes) == (3, "uint8", pixels.nbytes)
    save_nifti(tmp_path / "five.nii", noise(4, 5, 6, 2, 3))
    with pytest.raises(DataError, match=r"\(4, 5, 6, 2, 3\)"):
        read_raster(tmp_path / "five.nii")


def test_nifti_scale_is_applied_only_where_it_is_not_trivial(tmp_path):
    data = noise(8, 9, 10, dtype=np.int16)
    save_nifti(tmp_path / "plain.nii", data)
    save_nifti(tmp_path / "scaled.nii", data, slope=(0.5, 3))
    assert read_raster(tmp_path / "plain.nii").pixels.dtype == np.int16
    scaled = read_raster(tmp_path / "scaled.nii").pixels
    assert scaled.dtype.name == read_header(tmp_path / "scaled.nii").dtype == "float64"
    np.testing.assert_allclose(scaled[0], data * 0.5 + 3)


def test_nifti_units_become_millimetres_and_byte_order_native(tmp_path):
    data = noise(8, 9, 10, dtype=np.int16)
    big = nibabel.Nifti1Image(data, np.diag([500, 250, 250, 1]), nibabel.Nifti1Header(endianness=">"))
    big.set_data_dtype(">i2")
    big.header.set_xyzt_units("micron")
    nibabel.save(big, tmp_path / "big.nii")
    raster = read_raster(tmp_path / "big.nii")
    assert raster.spacing == pytest.approx((0.5, 0.25, 0.25)) and raster.pixels.dtype.isnative
    np.testing.assert_array_equal(raster.pixels[0], data)


AFFINE = np.array([[0.0, -0.9, 0, 12], [1.1, 0, 0, -5], [0, 0, 2.0, 3.5], [0, 0, 0, 1]])


def test_a_mask_keeps_the_geometry_of_its_image(tmp_path):
    save_nifti(tmp_path / "image.nii.gz", noise(8, 9, 10, dtype=np.float32), AFFINE)
    image, labels = read_raster(tmp_path / "image.nii.gz"), noise(8, 9, 10) % 3
    write_mask(tmp_path / "mask.nii.gz", labels, like=image)
    mask = read_raster(tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(mask.pixels[0], labels)
    np.testing.assert_allclose(mask.affine, AFFINE, rtol=1e-6)
    assert mask.spacing == pytest.approx((1.1, 0.9, 2.0)) and image.spacing == mask.spacing


def test_lossy_and_unknown_mask_formats_are_refused(tmp_path):
    for name in ("mask.jpg", "mask.JPEG", "mask.xyz"):
        with pytest.raises(InputError) as caught:
            write_mask(tmp_path / name, np.zeros((4, 4), int), None)
        assert name in str(caught.value) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", [".png", ".tif", ".nii.gz"])
def test_the_same_mask_is_the_same_file(tmp_path, kind):
    like = Raster(np.zeros((1, 9, 9), np.uint8), spacing=(0.5, 0.5))
    for name in "ab":
        write_mask(tmp_path / f"{name}{kind}", np.eye(9, dtype=int), like)
    assert (tmp_path / f"a{kind}").read_bytes() == (tmp_path / f"b{kind}").read_bytes()


def test_compressions_that_need_another_package_say_so(tmp_path):
    path = tmp_path / "lzw.tif"
    Image.fromarray(noise(20, 30)).save(path, compression="tiff_lzw")
    if importlib.util.find_spec("imagecodecs"):
        np.testing.assert_array_equal(read_raster(path).pixels[0], noise(20, 30))
    else:
        with pytest.raises(DataError) as caught:
            read_raster(path)
        assert "pip install imagecodecs" in caught.value.fix


def png_header_only(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    start = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + start + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def test_our_limit_rules_not_that_of_pillow(tmp_path, monkeypatch):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header_only(40_000, 40_000))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_header(path).shape == (40_000, 40_000)
        with pytest.raises(DataError, match=r"1\.49 GiB"):
            read_raster(path)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        write_image(tmp_path / "fine.png", noise(1, 30, 30))
        np.testing.assert_array_equal(read_raster(tmp_path / "fine.png").pixels, noise(1, 30, 30))
        assert Image.MAX_IMAGE_PIXELS == 100


def test_reading_leaves_no_handler_on_the_logger_of_tifffile(tmp_path):
    write_image(tmp_path / "a.tif", noise(1, 20, 30))
    before = list(logging.getLogger("tifffile").handlers)
    read_raster(tmp_path / "a.tif")
    assert logging.getLogger("tifffile").handlers == before


def test_a_png_cannot_hold_everything(tmp_path):
    for pixels in (
        noise(2, 9, 9),
        noise(1, 4, 9, 9),
        noise(1, 9, 9, dtype=np.float32),
        noise(3, 9, 9, dtype=np.uint16),
    ):
        with pytest.raises(InputError) as caught:
            write_image(tmp_path / "a.png", pixels)
        assert "a.png" in caught.value.where and ".tif" in caught.value.fix


def test_stem_strips_only_the_last_known_suffix(tmp_path):
    names = {"a.b.c.nii.gz": "a.b.c", "A.PNG": "A", "x.ome.tif": "x.ome", "no.czi": "no.czi", "two.tif.png": "two.tif"}
    assert {name: stem(tmp_path / name) for name in names} == names
    assert suffix(tmp_path / "A.NII.GZ") == ".nii.gz" and suffix(tmp_path / "archive.gz") == ""
    assert stem(tmp_path / "ze\u0301bre.png") == stem(tmp_path / "z\u00e9bre.png")


def test_real_volumes_are_read_as_nibabel_reads_them():
    path = sorted((shared("hippocampus") / "imagesTr").iterdir())[0]
    raster = read_raster(path)
    np.testing.assert_array_equal(raster.pixels[0], np.asarray(nibabel.load(path).dataobj))
    assert raster.spacing == (1.0, 1.0, 1.0)


def test_pictures_load_no_reader_of_another_format(tmp_path):
    code = (
        "import sys; from pathlib import Path; from nissl import api; from tests.tiny_data import tiny_config;"
        "config = tiny_config(steps=2); data, run = Path('data'), Path('run');"
        "api.check(data, config.data); api.train(data, run, config); api.evaluate(run);"
        "api.predict(run, data / 'images', Path('out'));"
        "assert not {'nibabel', 'pydicom', 'tifffile', 'imagecodecs'} & sys.modules.keys()"
    )
    write_tiny(tmp_path / "data")
    places = os.pathsep.join(sys.path)
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": places})
