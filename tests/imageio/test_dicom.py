"""DICOM: values and places are those of files built element by element, whatever the order of the names."""

import sys

import nibabel
import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels.encoders.base import get_encoder
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGLosslessSV1, RLELossless
from tests.dicom_files import NAME, OBLIQUE, SECRETS, SERIES, header, place, write_file, write_series

from nissl.data.cases import CaseFile, load_case
from nissl.errors import DataError
from nissl.imageio.formats import mask_suffix, read_header, read_raster, write_mask
from nissl.imageio.label_map import LabelMap

BINARY = LabelMap.parse("binary")


def noise(*shape, dtype=np.uint16, low=0, high=4096, seed=0):
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)


def refused(path):
    """The fault of a file or series, which must quote nothing of it."""
    with pytest.raises(DataError) as caught:
        read_raster(path)
    message = str(caught.value)
    assert str(path) not in message and NAME not in message and SERIES not in message
    assert not any(secret in message for secret in SECRETS.values())
    assert caught.value.expected and caught.value.fix
    return message


@pytest.mark.parametrize("kind", [".dcm", ".DICOM"])
def test_a_single_frame_is_a_picture_with_spacing_and_without_affine(tmp_path, kind):
    pixels = noise(20, 30)
    path = write_file(tmp_path / f"a{kind}", pixels, **place(0))
    raster, head = read_raster(path), read_header(path)
    np.testing.assert_array_equal(raster.pixels, pixels[None])
    assert raster.spacing == (0.7, 0.5) == head.spacing and raster.affine is None and not head.placed
    assert (head.shape, head.channels, head.dtype, head.decoded_bytes) == ((20, 30), 1, "uint16", pixels.nbytes)
    assert mask_suffix(path) == ".png"


def test_colour_and_frames_without_place_keep_the_order_of_pictures(tmp_path):
    colour, stack, film = noise(9, 8, 3, dtype=np.uint8, high=256), noise(5, 9, 8), noise(4, 9, 8, 3, dtype=np.uint8)
    assert (read_raster(write_file(tmp_path / "a.dcm", colour)).pixels == np.moveaxis(colour, -1, 0)).all()
    raster = read_raster(write_file(tmp_path / "b.dcm", stack, PixelSpacing=[1, 1]))
    assert (raster.pixels[0] == stack).all() and raster.affine is None and raster.spacing is None
    assert (read_raster(write_file(tmp_path / "c.dcm", film)).pixels == np.moveaxis(film, -1, 0)).all()
    assert mask_suffix(tmp_path / "b.dcm") == ".tif"


@pytest.mark.parametrize(
    ("slope", "intercept", "dtype"),
    [(1, -1024, "int16"), (2, 10, "int16"), (0.5, 3, "float32"), (1, 0, "uint16"), (20, 0, "int32")],
)
def test_slope_and_intercept_are_applied_without_clipping(tmp_path, slope, intercept, dtype):
    stored = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    path = write_file(tmp_path / "a.dcm", stored, BitsStored=12, RescaleSlope=slope, RescaleIntercept=intercept)
    pixels = read_raster(path).pixels
    assert pixels.dtype == dtype == read_header(path).dtype
    np.testing.assert_array_equal(pixels[0], stored.astype(float) * slope + intercept)


def test_signed_values_and_unused_bits_are_read_right(tmp_path):
    values = noise(8, 9, dtype=np.int16, low=-2048, high=2048)
    np.testing.assert_array_equal(read_raster(write_file(tmp_path / "a.dcm", values, BitsStored=12)).pixels[0], values)
    overlaid = noise(8, 9) | np.uint16(0x8000)  # a drawing in a bit above those of the values
    path = write_file(tmp_path / "b.dcm", overlaid, BitsStored=12)
    np.testing.assert_array_equal(read_raster(path).pixels[0], overlaid & 0xFFF)


def test_where_zero_is_white_larger_becomes_brighter_and_masks_are_refused(tmp_path):
    values = noise(8, 9)
    inverted = {"BitsStored": 12, "PhotometricInterpretation": "MONOCHROME1"}
    raster = read_raster(write_file(tmp_path / "a.dcm", values, **inverted))
    np.testing.assert_array_equal(raster.pixels[0], 4095 - values)
    signed = write_file(tmp_path / "b.dcm", values.astype(np.int16) - 2048, **inverted)
    np.testing.assert_array_equal(read_raster(signed).pixels[0], 2047 - values.astype(int))
    mask = write_file(tmp_path / "m.dcm", noise(8, 9, dtype=np.uint8, high=2), PhotometricInterpretation="MONOCHROME1")
    with pytest.raises(DataError, match="MONOCHROME1"):
        load_case(CaseFile("x", tmp_path / "a.dcm", mask), BINARY)


def ras_of(column, row, number):
    """Where a voxel lies, by the equation of the DICOM standard (PS3.3 C.7.6.2.1.1), turned to NIfTI's directions."""
    stated = place(number)
    rows, columns = stated["PixelSpacing"]
    direction = np.array(OBLIQUE)
    lps = np.array(stated["ImagePositionPatient"]) + column * columns * direction[:3] + row * rows * direction[3:]
    return lps * (-1, -1, 1)


@pytest.mark.parametrize("names", ["ascending", "descending", "shuffled"])
def test_a_series_is_put_in_order_by_position_and_has_the_affine_of_its_slices(tmp_path, names):
    volume = noise(6, 20, 30)
    order = {"ascending": range(6), "descending": range(5, -1, -1), "shuffled": (3, 0, 5, 1, 4, 2)}[names]
    folder = write_series(tmp_path / NAME, volume, names=[f"{n:02d}" for n in order])
    raster, head = read_raster(folder), read_header(folder)
    assert raster.pixels.shape == (1, 30, 20, 6) and head.shape == (30, 20, 6) and head.placed
    np.testing.assert_array_equal(raster.pixels[0], volume.transpose(2, 1, 0))
    for voxel in ((0, 0, 0), (29, 0, 0), (0, 19, 0), (0, 0, 5), (7, 11, 3)):
        np.testing.assert_allclose(raster.affine @ (*voxel, 1), (*ras_of(*voxel), 1), atol=1e-5)
    assert raster.spacing == pytest.approx((0.5, 0.7, 2.5)) and mask_suffix(folder) == ".nii.gz"


def test_a_series_counted_against_its_normal_keeps_its_geometry(tmp_path):
    """Positions fall as file and instance numbers grow, as a scanner from feet to head writes them."""
    volume = noise(6, 20, 30)
    folder = write_series(tmp_path / "s", volume, places=[place(-n) for n in range(6)])
    raster = read_raster(folder)
    np.testing.assert_array_equal(raster.pixels[0], volume[::-1].transpose(2, 1, 0))
    np.testing.assert_allclose(raster.affine @ (4, 5, 0, 1), (*ras_of(4, 5, -5), 1), atol=1e-5)


def test_a_nifti_of_the_same_volume_has_the_same_pixels_and_place(tmp_path):
    volume = noise(6, 20, 30, dtype=np.int16, low=-500, high=500)
    folder = write_series(tmp_path / "series", volume)
    affine = np.stack([ras_of(*v) - ras_of(0, 0, 0) for v in ((1, 0, 0), (0, 1, 0), (0, 0, 1))] + [ras_of(0, 0, 0)], 1)
    nifti = nibabel.Nifti1Image(volume.transpose(2, 1, 0), np.vstack([affine, (0, 0, 0, 1)]))
    nibabel.save(nifti, tmp_path / "a.nii.gz")
    ours, theirs = read_raster(folder), read_raster(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(ours.pixels, theirs.pixels)
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-5)
    assert ours.spacing == pytest.approx(theirs.spacing)


def test_each_slice_is_scaled_by_its_own_slope(tmp_path):
    volume = noise(3, 8, 9)
    for number in range(3):
        elements = {**place(number), "RescaleSlope": number + 0.5, "RescaleIntercept": 7}
        write_file(tmp_path / "s" / f"{number}.dcm", volume[number], **elements)
    expected = volume * np.array([0.5, 1.5, 2.5])[:, None, None] + 7
    np.testing.assert_array_equal(read_raster(tmp_path / "s").pixels[0], expected.transpose(2, 1, 0))


def enhanced(path, volume, order):
    """A file of several frames with the place of each in its functional groups."""

    def item(**elements):
        part = Dataset()
        for keyword, value in elements.items():
            setattr(part, keyword, value)
        return part

    shared = item(
        PlaneOrientationSequence=[item(ImageOrientationPatient=list(OBLIQUE))],
        PixelMeasuresSequence=[item(PixelSpacing=[0.7, 0.5])],
        PixelValueTransformationSequence=[item(RescaleSlope=2, RescaleIntercept=-5)],
    )
    own = [item(PlanePositionSequence=[item(ImagePositionPatient=place(n)["ImagePositionPatient"])]) for n in order]
    groups = {"SharedFunctionalGroupsSequence": [shared], "PerFrameFunctionalGroupsSequence": own}
    return write_file(path, volume[list(order)], **groups)


def test_frames_with_a_place_of_their_own_are_a_volume(tmp_path):
    volume = noise(4, 8, 9)
    path = enhanced(tmp_path / "a.dcm", volume, (2, 0, 3, 1))
    raster = read_raster(path)
    np.testing.assert_array_equal(raster.pixels[0], volume.transpose(2, 1, 0) * 2 - 5)
    np.testing.assert_allclose(raster.affine @ (3, 4, 2, 1), (*ras_of(3, 4, 2), 1), atol=1e-5)
    (tmp_path / "s").mkdir()
    path.rename(tmp_path / "s" / "a.dcm")
    np.testing.assert_array_equal(read_raster(tmp_path / "s").pixels, raster.pixels)


def series(tmp_path, count=6):
    return write_series(tmp_path / NAME, noise(count, 8, 9))


def rewrite(folder, number, **elements):
    """Replace one slice of a series."""
    pixels = elements.pop("pixels", noise(8, 9))
    write_file(sorted(folder.iterdir())[number], pixels, **{**place(number), **elements})


def test_missing_double_and_foreign_slices_are_refused_with_their_number(tmp_path):
    folder = series(tmp_path)
    sorted(folder.iterdir())[3].unlink()
    assert "slices 5 mm apart (file 3 of 5 by name and file 4 of 5 by name)" in refused(folder)
    rewrite(folder, 3, **place(2))
    assert "two slices at one position: file 3 of 5 by name and file 4 of 5 by name" in refused(folder)


@pytest.mark.parametrize(
    ("elements", "found"),
    [
        ({"SeriesInstanceUID": "1.2.3"}, "differs from file 1 of 6 by name in its series"),
        ({"pixels": noise(8, 10)}, "differs from file 1 of 6 by name in its size or kind of pixels"),
        ({"pixels": noise(8, 9).astype(np.int16)}, "differs from file 1 of 6 by name in its size or kind"),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}, "differs from file 1 of 6 by name in its direction"),
        ({"PixelSpacing": [0.7, 0.51]}, "differs from file 1 of 6 by name in its pixel spacing"),
        ({"ImagePositionPatient": None}, "states no position"),
        ({"ImagePositionPatient": [1, 2]}, "ImagePositionPatient is not 3 finite numbers"),
        ({"PixelSpacing": [0, 0]}, "PixelSpacing is not above 0"),
    ],
)
def test_slices_that_do_not_belong_together_are_refused(tmp_path, elements, found):
    folder = series(tmp_path)
    rewrite(folder, 4, **elements)
    message = refused(folder)
    assert found in message and "file 5 of 6 by name" in message


def test_tilted_single_and_placeless_series_are_refused(tmp_path):
    tilted = [place(n, direction=(1, 0, 0, 0, 1, 0), corner=(0, 0.4 * n, 0)) for n in range(6)]
    assert "2 mm beside its first" in refused(write_series(tmp_path / "tilted", noise(6, 8, 9), places=tilted))
    assert "dcm2niix" in refused(tmp_path / "tilted")
    assert "one slice" in refused(write_series(tmp_path / "one", noise(1, 8, 9)))
    assert "no position" in refused(write_series(tmp_path / "none", noise(3, 8, 9), places=[{}] * 3))


def test_a_damaged_slice_is_named_by_its_number(tmp_path):
    folder = series(tmp_path)
    path = sorted(folder.iterdir())[2]
    content = path.read_bytes()
    for cut in (0, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:cut])
        message = refused(folder)
        assert "file 3 of 6 by name: " in message and "cut short" in message


@pytest.mark.parametrize(
    ("elements", "found"),
    [
        ({"PixelData": None, "Rows": None}, "no pixels"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "a palette"),
        ({"BitsStored": 12, "HighBit": 15}, "lowest bit"),
        ({"ModalityLUTSequence": [Dataset()]}, "Modality LUT"),
        ({"Rows": 60000, "Columns": 60000}, "6.71 GiB when decoded"),
        ({"NumberOfFrames": 100}, "damaged"),
    ],
)
def test_what_could_only_be_read_wrongly_is_refused(tmp_path, elements, found):
    data = header(noise(8, 9), **{**elements, "PixelData": noise(8, 9).tobytes()})
    if elements.get("Rows", 0) is None:
        del data.PixelData
    data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    assert found in refused(tmp_path / "a.dcm")


def test_compressed_files_are_decoded_or_their_syntax_is_named(tmp_path):
    pixels = noise(8, 9)
    data = header(pixels)
    data.compress(RLELossless)
    data.save_as(tmp_path / "rle.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(read_raster(tmp_path / "rle.dcm").pixels[0], pixels)
    assert get_encoder(RLELossless).is_available
    for syntax, name in ((JPEGLosslessSV1, "JPEG Lossless"), (DeflatedExplicitVRLittleEndian, "Deflated")):
        data.file_meta.TransferSyntaxUID = syntax
        data.save_as(tmp_path / "other.dcm", enforce_file_format=True)
        message = refused(tmp_path / "other.dcm")
        assert name in message and "gdcmconv --raw" in message


def test_without_pydicom_the_package_to_install_is_named(tmp_path, monkeypatch):
    path = write_file(tmp_path / "a.dcm", noise(8, 9))
    monkeypatch.setitem(sys.modules, "pydicom", None)
    assert "pip install 'nissl[dicom]'" in refused(path)


def test_masks_of_a_series_must_state_their_place(tmp_path):
    folder, labels = write_series(tmp_path / "series", noise(6, 20, 30)), noise(6, 20, 30, dtype=np.uint8, high=2)
    image = read_raster(folder)
    write_mask(tmp_path / "m.nii.gz", labels.transpose(2, 1, 0), image)
    write_mask(tmp_path / "m.tif", labels.transpose(2, 1, 0))
    drawn = write_series(tmp_path / "drawn", labels)
    for mask in (tmp_path / "m.nii.gz", drawn):
        case = load_case(CaseFile("x", folder, mask), BINARY)
        np.testing.assert_array_equal(case.target, labels.transpose(2, 1, 0))
    with pytest.raises(DataError, match="the mask does not"):
        load_case(CaseFile("x", folder, tmp_path / "m.tif"), BINARY)
    flipped = nibabel.Nifti1Image(labels.transpose(2, 1, 0)[:, ::-1], image.affine @ np.diag([1, -1, 1, 1]))
    nibabel.save(flipped, tmp_path / "f.nii.gz")
    with pytest.raises(DataError, match="flipped, turned or shifted"):
        load_case(CaseFile("x", folder, tmp_path / "f.nii.gz"), BINARY)


def test_a_nifti_mask_of_a_picture_is_refused_because_its_axes_are_others(tmp_path):
    image, labels = write_file(tmp_path / "a.dcm", noise(20, 20), **place(0)), noise(20, 20, dtype=np.uint8, high=2)
    write_mask(tmp_path / "m.nii.gz", labels.T)
    with pytest.raises(DataError, match="PNG, TIFF or DICOM, rows first"):
        load_case(CaseFile("x", image, tmp_path / "m.nii.gz"), BINARY)
    write_mask(tmp_path / "m.png", labels)
    for mask in (tmp_path / "m.png", write_file(tmp_path / "m.dcm", labels, **place(0))):
        np.testing.assert_array_equal(load_case(CaseFile("x", image, mask), BINARY).target, labels)
