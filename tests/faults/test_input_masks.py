"""Images and masks that do not fit, and pixels that teach nothing: findings, and a training that says so."""

import json

import nibabel
import numpy as np
import pytest
from PIL import Image
from tests.three_cases import noise, square, write_three
from tests.tiny_data import FLAGS, pretrained, write_tiny

from nissl import cli
from nissl.config import DataConfig
from nissl.data.check import check
from nissl.errors import InputError
from nissl.imageio.formats import read_raster, write_image, write_mask


@pytest.fixture
def root(tmp_path):
    return write_three(tmp_path)


def only(root, level, name, **settings):
    """Text of the only finding, which must be of that level and file."""
    findings = check(root, DataConfig(**settings)).findings
    assert len(findings) == 1, findings
    finding = findings[0]
    assert finding.level == level and name in finding.where and finding.expected and finding.fix
    return finding


def test_f18_missing_masks_missing_images_and_twins_are_findings_of_their_own(root):
    write_mask(root / "masks" / "z.png", square(), None)
    write_image(root / "images" / "b.tif", noise(7))
    (root / "masks" / "a.png").unlink()  # an image without mask is an unlabelled one, and no fault
    found = [(finding.level, finding.where, finding.found) for finding in check(root, DataConfig()).findings]
    assert [(level, where.rpartition("/")[2]) for level, where, _ in found] == [("error", "b.tif"), ("error", "z.png")]
    assert "the same id in b.png, b.tif" in found[0][2] and "without image" in found[1][2]
    assert check(root, DataConfig()).facts["masks"] == 1


def test_f18_a_folder_of_images_alone_needs_no_masks(root):
    for path in (root / "masks").iterdir():
        path.unlink()
    (root / "masks").rmdir()
    report = check(root, DataConfig())
    assert report.findings == () and report.facts["images"] == 3 and report.facts["masks"] == 0


def test_f18_f19_dims_must_agree_in_a_set_and_in_a_pair(root):
    write_image(root / "images" / "c.tif", noise(9, (1, 20, 32, 40)))
    (root / "images" / "c.png").unlink()
    assert "3 axes of space" in only(root, "error", "c.tif").found
    write_image(root / "images" / "c.png", noise(2))
    (root / "images" / "c.tif").unlink()
    write_mask(root / "masks" / "c.tif", square(shape=(20, 32, 40)), None)
    assert only(root, "error", "c.tif").found == "image 32 x 40, mask 20 x 32 x 40"


def test_f20_f21_geometry_is_compared(tmp_path):
    for place in ("images", "masks"):
        (tmp_path / place).mkdir()
    shifted = np.eye(4)
    shifted[0, 3] = 2
    for n, affine in enumerate([np.eye(4), np.diag([1 + 1e-7, 1, 1, 1]), np.diag([1.01, 1, 1, 1]), shifted]):
        pixels = noise(n, (20, 20, 20))
        nibabel.save(nibabel.Nifti1Image(pixels, np.eye(4)), tmp_path / "images" / f"{n}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(pixels % 2, affine), tmp_path / "masks" / f"{n}.nii.gz")
    findings = check(tmp_path, DataConfig()).findings
    assert ["2.nii.gz" in findings[0].where, "3.nii.gz" in findings[1].where, len(findings)] == [True, True, 2]
    assert "1.01" in findings[0].found and "shifted" in findings[1].found


def test_f23_all_masks_empty_is_an_error_one_empty_mask_a_warning(root):
    write_mask(root / "masks" / "a.png", square(0), None)
    assert "empty mask" in only(root, "warning", "a.png").found
    write_mask(root / "masks" / "b.png", square(0), None)
    assert "all 2 masks" in only(root, "error", root.name).found


def test_f23_a_class_that_no_mask_shows_is_a_warning(root):
    finding = only(root, "warning", root.name, label_map="0=background,1=cell,2=nerve")
    assert "`nerve`" in finding.found


def train(root, out, *flags, code=0):
    arguments = ["train", str(root), "--out", str(out), *FLAGS, *map(str, flags)]
    assert cli.run(arguments) == code


def test_f24_an_image_of_one_pixel_is_two_warnings(root):
    write_image(root / "images" / "c.png", np.zeros((1, 1, 1), np.uint8))
    assert [finding.level for finding in check(root, DataConfig()).findings] == ["warning", "warning"]


@pytest.mark.parametrize("sampling", ["resize", "patches"])
@pytest.mark.parametrize("pretrain", ["none", "hebbian"])
def test_f24_constant_images_and_images_of_one_pixel_train_without_a_crash(tmp_path, sampling, pretrain):
    root = write_tiny(tmp_path / "data")
    write_image(root / "images" / "field001.png", np.full((1, 32, 32), 7, np.uint8))
    write_image(root / "images" / "field003.png", np.full((1, 1, 1), 9, np.uint8))
    write_mask(root / "masks" / "field003.png", np.ones((1, 1), np.uint8))
    flags = ["--labels", "field001,field003,field004", "--data.sampling", sampling, *pretrained(pretrain)]
    train(root, tmp_path / "run", *flags)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert len(losses) == 3 and np.isfinite(losses).all()
    for name in ("field002", "field005"):  # the test cases
        write_image(root / "images" / f"{name}.png", np.full((1, 1, 1), 3, np.uint8))
        write_mask(root / "masks" / f"{name}.png", np.ones((1, 1), np.uint8))
    assert cli.run(["evaluate", str(tmp_path / "run")]) == 0
    assert cli.run(["predict", str(tmp_path / "run"), str(root / "images"), "--out", str(tmp_path / "masks")]) == 0


def test_f24_gray_beside_colour_is_a_finding_that_one_flag_mends(root, tmp_path):
    write_image(root / "images" / "c.png", noise(3, (3, 32, 40)))
    finding = only(root, "error", "c.png")
    assert finding.found == "3 channels" and "--colour rgb" in finding.fix
    assert check(root, DataConfig(colour="gray")).findings == ()


@pytest.mark.parametrize("kind", [".png", ".tif"])
def test_f25_twelve_bit_values_in_16_bit_files_are_not_clipped(tmp_path, kind):
    pixels = np.arange(4096, dtype=np.uint16).reshape(1, 64, 64)
    path = tmp_path / f"deep{kind}"
    Image.fromarray(pixels[0]).save(path)
    np.testing.assert_array_equal(read_raster(path).pixels, pixels)


def test_f25_the_run_folder_states_how_values_are_normalised(tmp_path):
    root = write_tiny(tmp_path / "data")
    train(root, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "model.json").read_text())["preprocessing"]["normalisation"] == "image"


@pytest.mark.parametrize(("top", "dtype"), [(1, "uint8"), (255, "uint8"), (256, "uint16"), (70_000, "uint32")])
@pytest.mark.parametrize("kind", [".png", ".tif", ".nii.gz"])
def test_f26_labels_never_wrap(tmp_path, kind, top, dtype):
    labels = np.linspace(0, top, 300 * 300).astype(np.int64).reshape(300, 300)
    path = tmp_path / f"mask{kind}"
    if kind == ".png" and top > 65535:
        with pytest.raises(InputError) as caught:
            write_mask(path, labels, None)
        assert ".tif" in caught.value.fix and not path.exists()
        return
    write_mask(path, labels, None)
    read = read_raster(path).pixels
    assert read.dtype == dtype
    np.testing.assert_array_equal(read[0], labels)


CODINGS = {
    "0 and 255": (lambda mask: write(mask * 255), "255", "binary"),
    "palette": (lambda mask: Image.fromarray(mask).convert("P"), "", "0,1"),
    "colours": (lambda mask: write(np.stack([mask * 255, mask * 0, mask * 0])), "#ff0000", "#000000=a,#ff0000=b"),
    "0, 1 and 3": (lambda mask: write(mask + 2 * (np.cumsum(mask, axis=0) > 4) * mask), "3", "0=a,1=b,3=c"),
}


def write(pixels):
    return Image.fromarray(pixels.astype(np.uint8) if pixels.ndim == 2 else np.moveaxis(pixels, 0, -1).astype(np.uint8))


@pytest.mark.parametrize("coding", CODINGS)
def test_f22_check_reads_every_coding_by_its_map_and_lists_what_it_meets_without(root, coding, capsys):
    make, listed, label_map = CODINGS[coding]
    for path in sorted((root / "masks").iterdir()):
        make(read_raster(path).pixels[0]).save(path)
    capsys.readouterr()
    assert cli.run(["check", str(root)]) == (3 if listed else 0)
    told = capsys.readouterr().out
    assert listed in told and ("--label-map" in told) == bool(listed)
    assert cli.run(["check", str(root), "--data.label-map", label_map]) == 0
