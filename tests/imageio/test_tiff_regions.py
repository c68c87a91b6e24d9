"""Regions of a TIFF are those of the whole image, and cost what their segments cost; masks by bands are the masks."""

from itertools import pairwise

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from nissl.config import DataConfig
from nissl.data.cases import open_image, read_image
from nissl.errors import DataError
from nissl.imageio import tiff_regions as regions
from nissl.imageio.formats import open_raster, read_header, read_raster, write_image, write_mask
from nissl.imageio.mask_values import MaskValues
from nissl.imageio.tiff_regions import TiffRegions, row_strips, write_mask_tiff


def noise(*shape, dtype=np.uint8):
    values = np.random.default_rng(0).integers(0, 250, shape)
    return values.astype(dtype) if np.dtype(dtype) != bool else values > 120


RGB = noise(150, 90, 3)
KINDS = {
    "stored": (RGB, {}),
    "stored in strips": (RGB, {"rowsperstrip": 7}),
    "stored in tiles": (RGB, {"tile": (32, 48)}),
    "stored big-endian": (noise(70, 50, dtype=np.uint16), {"byteorder": ">"}),
    "deflate strips": (RGB, {"compression": "zlib", "rowsperstrip": 16}),
    "one deflate strip": (RGB, {"compression": "zlib", "rowsperstrip": 150}),
    "deflate tiles": (RGB, {"compression": "zlib", "tile": (64, 32)}),
    "lzw and predictor": (noise(80, 61, dtype=np.uint16), {"compression": "lzw", "predictor": True, "tile": (32, 32)}),
    "big-endian deflate": (
        noise(80, 61, dtype=np.uint16),
        {"compression": "zlib", "predictor": True, "byteorder": ">", "rowsperstrip": 9},
    ),
    "float predictor": (noise(64, 40, dtype=np.float32), {"compression": "zlib", "predictor": 3, "tile": (16, 16)}),
    "zstd": (RGB, {"compression": "zstd", "tile": (64, 64)}),
    "packbits": (RGB, {"compression": "packbits", "rowsperstrip": 11}),
    "jpeg": (RGB, {"compression": "jpeg", "tile": (64, 64)}),
    "jpeg subsampled": (
        RGB,
        {"compression": "jpeg", "tile": (64, 64), "subsampling": (2, 2), "photometric": "rgb"},
    ),
    "big": (RGB, {"bigtiff": True, "compression": "zlib", "tile": (32, 32)}),
    "bits": (noise(90, 43, dtype=bool), {"rowsperstrip": 20}),
    "bits packed": (noise(90, 43, dtype=bool), {"compression": "packbits"}),
    "white is zero": (noise(90, 43), {"photometric": "miniswhite", "compression": "zlib", "tile": (32, 32)}),
    "planes": (noise(3, 70, 50), {"photometric": "rgb", "planarconfig": "separate", "compression": "zlib"}),
    "planes in tiles": (
        noise(3, 70, 50),
        {"photometric": "rgb", "planarconfig": "separate", "compression": "zlib", "tile": (32, 32)},
    ),
    "planes stored": (noise(3, 70, 50), {"photometric": "rgb", "planarconfig": "separate"}),
    "alpha": (noise(70, 50, 4), {"photometric": "rgb", "extrasamples": ["unassalpha"], "compression": "zlib"}),
    "five measurements": (
        noise(70, 50, 5, dtype=np.uint16),
        {"photometric": "minisblack", "planarconfig": "contig", "compression": "zlib", "tile": (32, 32)},
    ),
    "channels as pages": (
        noise(2, 70, 50),
        {"photometric": "minisblack", "metadata": {"axes": "CYX"}, "compression": "zlib", "tile": (32, 32)},
    ),
    "stack": (noise(9, 30, 20), {"photometric": "minisblack", "metadata": {"axes": "ZYX"}, "compression": "zlib"}),
    "stack stored": (noise(9, 30, 20), {"photometric": "minisblack", "metadata": {"axes": "ZYX"}}),
    "stack of channels": (
        noise(2, 9, 30, 20),
        {"photometric": "minisblack", "metadata": {"axes": "CZYX"}, "compression": "zlib", "rowsperstrip": 8},
    ),
    "channels in a stack": (
        noise(9, 2, 30, 20),
        {"photometric": "minisblack", "metadata": {"axes": "ZCYX"}, "compression": "zlib", "tile": (16, 16)},
    ),
    "stack of colours": (noise(5, 30, 20, 3), {"photometric": "rgb", "metadata": {"axes": "ZYXS"}, "tile": (16, 16)}),
    "volume tiles": (noise(20, 40, 50), {"photometric": "minisblack", "volumetric": True, "tile": (16, 16, 32)}),
    "imagej": (noise(7, 2, 30, 20), {"imagej": True, "metadata": {"axes": "ZCYX"}}),
    "ome": (noise(3, 4, 30, 20), {"ome": True, "metadata": {"axes": "CZYX"}, "compression": "zlib"}),
    "one pixel wide": (noise(40, 1), {"compression": "zlib", "rowsperstrip": 6}),
}


def cuts(shape, count=12):
    """Boxes of all sizes, the whole and an empty one among them."""
    rng = np.random.default_rng(1)
    yield (slice(None),) * len(shape)
    yield (slice(None), slice(3, 3), *(slice(None),) * (len(shape) - 2))
    for _ in range(count):
        ends = [sorted(rng.integers(0, size + 1, 2)) for size in shape[1:]]
        yield (slice(None), *(slice(int(start), int(stop)) for start, stop in ends))
    yield (slice(0, 1), *(slice(1, 5) for _ in shape[1:]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lines", [1, 1024])
def test_a_region_is_that_of_the_whole_image(kind, lines, tmp_path):
    path = tmp_path / "a.tif"
    data, options = KINDS[kind]
    tifffile.imwrite(path, data, **options)
    whole = read_raster(path)
    with open_raster(path, lines=lines) as raster:
        pixels = raster.pixels
        assert isinstance(pixels, TiffRegions)
        assert (pixels.shape, pixels.dtype) == (whole.pixels.shape, whole.pixels.dtype)
        assert raster.spacing == whole.spacing
        for box in cuts(pixels.shape):
            part = pixels[box]
            assert part.dtype == whole.pixels.dtype
            np.testing.assert_array_equal(part, whole.pixels[box])
        assert sum(part.nbytes for part in pixels._kept.values()) <= max(pixels.grid.held(lines), pixels.grid.segment)


def test_of_a_pyramid_the_first_level_is_read(tmp_path):
    path = tmp_path / "slide.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(RGB, tile=(32, 32), compression="jpeg", subifds=1)
        file.write(RGB[::2, ::2], tile=(32, 32), compression="jpeg", subfiletype=1)
    whole = read_raster(path).pixels
    with open_raster(path) as raster:
        assert isinstance(raster.pixels, TiffRegions)
        np.testing.assert_array_equal(raster.pixels[:, 20:90, 11:80], whole[:, 20:90, 11:80])


def test_a_stack_with_one_listed_page_is_read(tmp_path):
    """ImageJ lists only the first page where the others follow it."""
    path = tmp_path / "a.tif"
    data = noise(11, 30, 20, dtype=np.uint16)
    tifffile.imwrite(path, data, imagej=True, metadata={"axes": "ZYX"})
    with tifffile.TiffFile(path) as file:
        entry, order = file.pages[0].offset, "little" if file.byteorder == "<" else "big"
    content = bytearray(path.read_bytes())
    end = entry + 2 + 12 * int.from_bytes(content[entry : entry + 2], order)
    content[end : end + 4] = b"\0" * 4  # no next page
    path.write_bytes(content)
    with open_raster(path) as raster:
        assert isinstance(raster.pixels, TiffRegions)
        np.testing.assert_array_equal(raster.pixels[:, 4:9, 3:7], data[None, 4:9, 3:7])


def test_a_palette_comes_with_the_regions(tmp_path):
    colours = np.random.default_rng(0).integers(0, 65536, (3, 256), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", noise(40, 30), colormap=colours, photometric="palette", compression="zlib")
    whole = read_raster(tmp_path / "a.tif")
    with open_raster(tmp_path / "a.tif") as raster:
        np.testing.assert_array_equal(raster.palette, whole.palette)
        np.testing.assert_array_equal(raster.pixels[:, 3:20, 5:9], whole.pixels[:, 3:20, 5:9])


def test_what_has_no_segments_is_read_as_a_whole(tmp_path):
    write_image(tmp_path / "a.png", noise(3, 20, 30))
    write_image(tmp_path / "a.nii.gz", noise(1, 20, 30, 5))
    for path in tmp_path.iterdir():
        assert read_header(path).grid is None
        with open_raster(path) as raster:
            assert isinstance(raster.pixels, np.ndarray)
            np.testing.assert_array_equal(raster.pixels, read_raster(path).pixels)


@pytest.mark.parametrize(("colour", "shape"), [("gray", (3, 60, 50)), ("rgb", (1, 60, 50)), ("as-found", (3, 60, 50))])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_colours_are_brought_to_those_of_the_settings_region_by_region(colour, shape, dtype, tmp_path):
    config = DataConfig(colour=colour)
    write_image(tmp_path / "a.tif", noise(*shape, dtype=dtype))
    whole = read_image(tmp_path / "a.tif", config).pixels
    with open_image(tmp_path / "a.tif", config, 16) as raster:
        assert raster.pixels.shape == whole.shape and raster.pixels.dtype == whole.dtype
        for box in cuts(whole.shape):
            np.testing.assert_array_equal(raster.pixels[box], whole[box])


@pytest.mark.parametrize("kind", ["deflate strips", "jpeg", "stored in strips", "lzw and predictor"])
def test_a_file_cut_short_is_named_where_it_ends(kind, tmp_path):
    path = tmp_path / "a.tif"
    data, options = KINDS[kind]
    tifffile.imwrite(path, data, **options)
    path.write_bytes(path.read_bytes()[: -path.stat().st_size // 3])
    with pytest.raises(DataError) as caught, open_raster(path) as raster:
        raster.pixels[(slice(None),) * 3]
    assert caught.value.where == str(path)
    assert "readable TIF file" in caught.value.expected


def test_the_fault_of_whoever_uses_the_pixels_is_not_that_of_the_file(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", RGB)
    with pytest.raises(RuntimeError, match="mine"), open_raster(tmp_path / "a.tif"):
        raise RuntimeError("mine")


def test_the_limit_is_for_what_must_be_decoded_at_once(tmp_path):
    data = np.zeros((2000, 1000), np.uint8)
    limit = 1.5e6 / 2**30
    for name, options in {
        "tiles": {"compression": "zlib", "tile": (256, 256)},
        "strips": {"compression": "zlib", "rowsperstrip": 100},
        "stored": {},
    }.items():
        tifffile.imwrite(tmp_path / f"{name}.tif", data, **options)
        with open_raster(tmp_path / f"{name}.tif", limit) as raster:
            assert raster.pixels.shape == (1, 2000, 1000)
        with pytest.raises(DataError, match=r"--data\.limit-gib"):
            read_raster(tmp_path / f"{name}.tif", limit)
    tifffile.imwrite(tmp_path / "one.tif", data, compression="zlib", rowsperstrip=2000)
    with (
        pytest.raises(DataError, match="one piece that must be decoded at once") as caught,
        open_raster(tmp_path / "one.tif", limit),
    ):
        pass
    assert "in tiles" in caught.value.fix and "data.limit_gib" in caught.value.fix


def test_neighbouring_regions_decode_a_segment_once(tmp_path, monkeypatch):
    decoded = []
    original = TiffRegions._decoded
    monkeypatch.setattr(TiffRegions, "_decoded", lambda self, *key: (decoded.append(key), original(self, *key))[1])
    for options in ({"tile": (64, 64)}, {"rowsperstrip": 10}):
        decoded.clear()
        tifffile.imwrite(tmp_path / "a.tif", noise(600, 500), compression="zlib", **options)
        with open_raster(tmp_path / "a.tif", lines=140) as raster:
            for top in range(0, 600, 100):  # windows of 140 x 140 that overlap by 40
                for left in range(0, 500, 100):
                    raster.pixels[:, max(0, top - 20) : top + 120, max(0, left - 20) : left + 120]
        assert len(decoded) == len(set(decoded))


@settings(max_examples=30, deadline=None)
@given(st.tuples(st.integers(1, 4), st.integers(1, 50), st.integers(1, 9), st.integers(1, 5)), st.integers(1, 300))
def test_strips_cover_the_rows_and_hold_no_more_than_they_may(shape, most):
    strips = row_strips(shape, most)
    assert [row for strip in strips for row in range(strip.start, strip.stop)] == list(range(shape[1]))
    line = shape[0] * shape[2] * shape[3]
    assert all((strip.stop - strip.start) * line <= max(most, line) for strip in strips)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from([(70, 41), (32, 64), (5, 33, 70), (1, 1), (300, 20)]), st.sampled_from([None, 0.5]))
def test_a_mask_written_by_bands_is_the_mask_written_at_once(tmp_path_factory, data, shape, length):
    folder = tmp_path_factory.mktemp("bands")
    labels = np.random.default_rng(2).integers(0, 4, shape, np.uint8)
    ends = sorted({0, shape[0], *data.draw(st.lists(st.integers(1, shape[0]), max_size=4))})
    bands = (labels[start:stop] for start, stop in pairwise(ends))
    spacing = None if length is None else (length,) * len(shape)
    side, regions.TILE = regions.TILE, 32
    try:
        write_mask_tiff(folder / "bands.tif", shape, bands, MaskValues(labels.dtype), spacing, "made by a test")
        write_mask_tiff(folder / "whole.tif", shape, [labels], MaskValues(labels.dtype), spacing, "made by a test")
    finally:
        regions.TILE = side
    assert (folder / "bands.tif").read_bytes() == (folder / "whole.tif").read_bytes()
    read = read_raster(folder / "bands.tif")
    np.testing.assert_array_equal(read.pixels[0], labels)
    assert read.spacing == spacing
    with tifffile.TiffFile(folder / "bands.tif") as file:
        assert "made by a test" in file.pages[0].description
        assert file.pages[0].is_tiled


def test_masks_of_other_content_have_another_identifier(tmp_path):
    found = set()
    for value in (0, 1):
        write_mask_tiff(tmp_path / "a.tif", (20, 20), [np.full((20, 20), value)], MaskValues(), (1.0, 1.0))
        with tifffile.TiffFile(tmp_path / "a.tif") as file:
            found.add(file.ome_metadata.split("UUID=")[1][:50])
    assert len(found) == 2


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.nii.gz"])
def test_a_mask_carries_its_note(name, tmp_path):
    write_mask(tmp_path / name, noise(20, 30) % 2, note="nissl run first, weights 0123")
    content = (tmp_path / name).read_bytes()
    if name.endswith("gz"):
        import gzip

        content = gzip.decompress(content)
    assert b"nissl run first, weights 0123" in content
    assert read_raster(tmp_path / name).pixels.shape[1:] == (20, 30)
