"""A folder of images becomes a folder of masks; one bad image costs its own mask only, and nothing is overwritten."""

import hashlib
import json
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.inference.tiny import tiny_model, write_run

from nissl.errors import InputError
from nissl.imageio.formats import Raster, read_raster, write_image, write_mask
from nissl.inference.folder import mask_names, predict_folder
from nissl.inference.tiles import predict_mask
from nissl.model import Model


@contextmanager
def quiet(total, what):
    yield lambda message: None


@pytest.fixture
def run(tmp_path):
    """Run of a 2-D model for RGB images."""
    write_run(tmp_path / "run-7", tiny_model(channels=3))
    return tmp_path / "run-7"


def picture(channels, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (channels, *shape), np.uint8)


def make_images(folder, *names, shape=(24, 31)):
    folder.mkdir(exist_ok=True)
    for seed, name in enumerate(names):
        write_image(folder / name, picture(3, *shape, seed=seed))
    return folder


def record(out):
    return json.loads((out / "predictions.json").read_text())


def test_masks_have_the_format_and_size_of_their_images(run, tmp_path):
    images = make_images(tmp_path / "images", "a.png", "b.jpg", "c.BMP", "d.tif", "e f ü.tiff")
    result = predict_folder(run, images, tmp_path / "out", tracker=quiet)
    assert [path.name for path in result.written] == ["a.png", "b.png", "c.png", "d.tif", "e f ü.tiff"]
    assert result.failed == ()
    for path in result.written:
        assert read_raster(path).pixels.shape == (1, 24, 31)


def test_a_mask_is_that_of_the_single_image_and_can_be_read_as_classes(run, tmp_path):
    images = make_images(tmp_path / "images", "a.png", "b.tif")
    result = predict_folder(run, images, tmp_path / "out", tracker=quiet)
    for path in result.written:
        mask = read_raster(path).pixels[0]
        expected = predict_mask(tiny_model(channels=3), read_raster(images / path.name).pixels)
        np.testing.assert_array_equal(mask, expected)
        assert set(np.unique(mask)) <= {0, 1, 2}


@pytest.mark.parametrize("name", ["scan.nii", "a.b.nii.gz"])
def test_nifti_keeps_its_place_in_space(name, tmp_path):
    write_run(tmp_path / "run", tiny_model(3))
    affine = np.array([[0, 0.9, 0, 10], [-0.8, 0, 0, 20], [0, 0, 2.5, -30], [0, 0, 0, 1]])
    images = tmp_path / "images"
    images.mkdir()
    raster = Raster(picture(1, 18, 20, 9), (0.8, 0.9, 2.5), affine)
    write_mask(images / name, raster.pixels[0], raster)
    (path,) = predict_folder(tmp_path / "run", images, tmp_path / "out", tracker=quiet).written
    mask = read_raster(path)
    assert path.name == name
    assert mask.pixels.shape == (1, 18, 20, 9)
    np.testing.assert_allclose(mask.affine, affine, atol=1e-6)
    np.testing.assert_allclose(mask.spacing, (0.8, 0.9, 2.5), atol=1e-6)


def test_the_record_tells_where_each_mask_comes_from(run, tmp_path):
    images = make_images(tmp_path / "images", "a.png", "b.jpg")
    (images / "notes.txt").write_text("ours")
    out = tmp_path / "out"
    predict_folder(run, images, out, tracker=quiet)
    content = record(out)
    assert content["run"] == "run-7"
    assert content["weights"] == Model.load(run).weights
    assert content["classes"] == {"0": "background", "1": "head", "2": "body"}
    assert content["sampling"] == "patches"
    assert (content["tile"], content["halo"]) == (512, 96)
    assert content["skipped"] == ["notes.txt"]
    assert content["images"]["b.jpg"]["mask"] == "b.png"
    for entry in content["images"].values():
        assert entry["sha256"] == hashlib.sha256((out / entry["mask"]).read_bytes()).hexdigest()
    assert str(tmp_path) not in (out / "predictions.json").read_text()


def test_images_that_the_network_cannot_use_are_named(run, tmp_path):
    images = make_images(tmp_path / "images", "good.png")
    write_image(images / "gray.png", picture(1, 20, 20))
    write_image(images / "volume.tif", picture(3, 8, 20, 20))
    write_image(images / "nan.tif", np.full((3, 20, 20), np.nan, np.float32))
    result = predict_folder(run, images, tmp_path / "out", tracker=quiet)
    assert [path.name for path in result.written] == ["good.png"]
    found = {error.where: error.found for error in result.failed}
    assert found[str(images / "gray.png")] == "1 channel"
    assert found[str(images / "volume.tif")] == "a 3-D image"
    assert "NaN" in found[str(images / "nan.tif")]


def test_a_mask_whose_name_is_too_long_is_named(run, tmp_path):
    long = "n" * 250
    images = make_images(tmp_path / "images", f"{long}.png", f"{long}.tif", "short.png")
    result = predict_folder(run, images, tmp_path / "out", tracker=quiet)
    assert [path.name for path in result.written] == ["short.png"]
    assert {error.where for error in result.failed} == {str(images / f"{long}.png"), str(images / f"{long}.tif")}
    assert all("File name too long" in error.found for error in result.failed)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["predictions.json", "short.png"]


@pytest.mark.parametrize("content", ["{", "[]", '{"run": 3}'])
def test_a_damaged_record_is_refused_as_well(content, run, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "predictions.json").write_text(content)
    with pytest.raises(InputError, match="older run"):
        predict_folder(run, make_images(tmp_path / "images", "a.png"), out, tracker=quiet)
    assert (out / "predictions.json").read_text() == content


def test_a_used_folder_and_a_file_are_refused_as_output(run, tmp_path):
    images = make_images(tmp_path / "images", "a.png")
    with pytest.raises(InputError, match=r"a\.png"):
        predict_folder(run, images, images, tracker=quiet)
    with pytest.raises(InputError, match="a file"):
        predict_folder(run, images, images / "a.png", tracker=quiet)
    with pytest.raises(InputError, match="can be written"):
        predict_folder(run, images, images / "a.png" / "out", tracker=quiet)


def test_a_single_file_and_an_empty_output_folder_serve(run, tmp_path):
    images = make_images(tmp_path / "images", "a.png", "b.png")
    (tmp_path / "out").mkdir()
    result = predict_folder(run, images / "b.png", tmp_path / "out", tracker=quiet)
    assert [path.name for path in result.written] == ["b.png"]


def test_subfolders_and_hidden_files_are_left_alone(run, tmp_path):
    images = make_images(tmp_path / "images", "a.png", ".hidden.png")
    make_images(images / "sub.png", "b.png")
    result = predict_folder(run, images, tmp_path / "out", tracker=quiet)
    assert [path.name for path in result.written] == ["a.png"]


def test_no_images_and_no_run_are_named_before_anything_is_made(run, tmp_path):
    (tmp_path / "empty").mkdir()
    for images, found in ((tmp_path / "empty", "no image"), (tmp_path / "none", "no such")):
        with pytest.raises(InputError) as error:
            predict_folder(run, images, tmp_path / "out", tracker=quiet)
        assert error.value.where == str(images)
        assert found in error.value.found
        assert ".png" in error.value.expected
    with pytest.raises(InputError, match="nissl train"):
        predict_folder(tmp_path / "empty", make_images(tmp_path / "images", "a.png"), tmp_path / "out", tracker=quiet)
    assert not (tmp_path / "out").exists()


def test_equal_stems_keep_their_suffix(run, tmp_path):
    images = make_images(tmp_path / "images", "a.png", "A.tif", "b.png", "b.jpg")
    result = predict_folder(run, images, tmp_path / "out", tracker=quiet)
    assert sorted(path.name for path in result.written) == ["A.tif.tif", "a.png.png", "b.jpg.png", "b.png.png"]
    assert len(record(tmp_path / "out")["images"]) == 4


def test_names_equal_but_for_case_are_numbered():
    assert mask_names(["a.png", "A.png", "A.PNG"]) == {
        "A.PNG": "A.PNG.png",
        "A.png": "A.png-2.png",
        "a.png": "a.png-3.png",
    }


BASES = st.sampled_from(["a", "A", "a.png", "a.png-2", "é", "e\u0301"])
KINDS = st.sampled_from([".png", ".PNG", ".jpg", ".bmp", ".tif", ".tiff", ".nii", ".nii.gz"])


@settings(max_examples=200, deadline=None)
@given(st.sets(st.builds("".join, st.tuples(BASES, KINDS))))
def test_no_two_masks_have_one_name(names):
    masks = mask_names(names)
    assert masks.keys() == names
    assert len({mask.casefold() for mask in masks.values()}) == len(names)


def test_progress_counts_images_and_states_the_memory_first(run, tmp_path):
    seen = []

    @contextmanager
    def spy(total, what):
        seen.append((total, what))
        yield seen.append

    images = make_images(tmp_path / "images", "a.png", "b.png")
    (images / "c.png").write_bytes(b"")
    predict_folder(run, images, tmp_path / "out", tracker=spy)
    assert seen[0][0] == 3
    assert "GiB at most" in seen[0][1]
    assert seen[1:] == ["a.png", "b.png", "c.png"]
