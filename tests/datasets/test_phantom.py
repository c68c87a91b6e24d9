import csv
import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from nissl.config import DataConfig
from nissl.data.cases import load_case
from nissl.data.check import check
from nissl.data.discovery import find_cases
from nissl.datasets.phantom import PhantomConfig, phantom, write_phantoms
from nissl.errors import InputError
from nissl.imageio.formats import read_raster

SMALL = PhantomConfig(size=(64, 64))
SOLID = PhantomConfig(dims=3, size=(16, 32, 32), nuclei=(2, 4))


def simulate(config, seed=0):
    return phantom(config, np.random.default_rng(seed))


@pytest.mark.parametrize(("config", "space"), [(PhantomConfig(), (128, 128)), (SOLID, (16, 32, 32))])
def test_image_and_mask_have_the_stated_shape_and_values(config, space):
    image, mask = simulate(config)
    assert image.shape == (1, *space) and mask.shape == space
    assert image.dtype == mask.dtype == np.uint8
    assert set(np.unique(mask)) == {0, 1}


@pytest.mark.parametrize("config", [SMALL, SOLID])
def test_an_image_follows_from_its_generator(config):
    one, again, other = simulate(config), simulate(config), simulate(config, 1)
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    assert not np.array_equal(one[0], other[0])


def test_a_mask_is_exact_for_a_single_clean_nucleus():
    """Without debris, noise and background the light of a nucleus ends where its mask ends."""
    clean = PhantomConfig(nuclei=(1, 1), debris=0, background=0, shade=0, blur=0.05, photons=1e6)
    for seed in range(5):
        image, mask = simulate(clean, seed)
        bright = image[0] > 20  # 10 gray values of darkness, 2 of camera noise
        assert ((bright != mask) & (ndimage.distance_transform_edt(mask) != 1)).mean() < 2e-3


def test_brightness_alone_does_not_solve_it():
    """The best threshold of each image, chosen with the mask at hand, stays far below a usable Dice."""
    best = []
    for seed in range(12):
        image, mask = simulate(PhantomConfig(), seed)
        smooth = ndimage.gaussian_filter(image[0].astype(float), 1)
        cuts = [smooth > level for level in np.percentile(smooth, range(50, 100, 2))]
        best.append(max(2 * (cut & (mask > 0)).sum() / (cut.sum() + mask.sum()) for cut in cuts))
    assert 0.5 < np.mean(best) < 0.88


def test_some_light_is_not_a_nucleus_and_some_nuclei_are_dim():
    images, masks = zip(*(simulate(PhantomConfig(), seed) for seed in range(10)), strict=True)
    light, inside = np.stack(images)[:, 0].astype(float), np.stack(masks).astype(bool)
    assert np.percentile(light[~inside], 99.5) > np.median(light[inside])
    assert np.percentile(light[inside], 5) < np.percentile(light[~inside], 90)


def test_an_image_holds_no_more_nuclei_than_asked():
    for seed in range(5):
        _, mask = simulate(dataclasses.replace(SMALL, nuclei=(1, 3)), seed)
        assert 1 <= ndimage.label(mask)[1] <= 3 + 2  # an irregular outline may leave an islet


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="dims 3"):
        PhantomConfig(dims=3, size=(64, 64))


# The folder


@pytest.mark.parametrize(("config", "suffix"), [(SMALL, "png"), (SOLID, "nii.gz")])
def test_a_written_set_passes_the_check(tmp_path, config, suffix):
    write_phantoms(tmp_path / "data", 6, config, seed=0)
    dataset = find_cases(tmp_path / "data", DataConfig())
    assert (dataset.dims, dataset.channels, len(dataset.cases)) == (config.dims, 1, 6)
    assert all(case.target and case.image.name.endswith(suffix) for case in dataset.cases)
    assert not [one for one in check(tmp_path / "data", DataConfig()).findings if one.level == "error"]
    for file in dataset.cases:
        case = load_case(file, dataset.label_map)
        assert set(np.unique(case.target)) == {0, 1}
        assert case.image[0][case.target == 1].mean() > case.image[0][case.target == 0].mean() + 15


def test_no_slide_is_on_both_sides(tmp_path):
    write_phantoms(tmp_path, 30, dataclasses.replace(SMALL, size=(32, 32)), seed=0)
    rows = list(csv.DictReader((tmp_path / "cases.csv").read_text().splitlines()))
    sides = {row["group"]: {other["split"] for other in rows if other["group"] == row["group"]} for row in rows}
    assert all(len(split) == 1 for split in sides.values())
    assert {row["split"] for row in rows} == {"train", "test"}


def test_only_training_masks_are_left_out(tmp_path):
    write_phantoms(tmp_path, 25, dataclasses.replace(SMALL, size=(32, 32)), seed=0, masks=4)
    cases = find_cases(tmp_path, DataConfig()).cases
    assert sum(case.target is not None for case in cases if case.split == "train") == 4
    assert all(case.target is not None for case in cases if case.split == "test")


def test_the_same_seed_writes_the_same_bytes_and_masks_change_no_image(tmp_path):
    write_phantoms(tmp_path / "a", 3, SMALL, seed=4)
    write_phantoms(tmp_path / "b", 3, SMALL, seed=4, masks=1)
    for file in (tmp_path / "a" / "images").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / "images" / file.name).read_bytes()


def test_slides_differ_in_light(tmp_path):
    write_phantoms(tmp_path, 20, dataclasses.replace(SMALL, nuclei=(1, 2), debris=0, shade=0), seed=0)
    dark = [np.percentile(read_raster(file).pixels, 10) for file in sorted((tmp_path / "images").iterdir())]
    slides = np.reshape(dark, (4, 5))
    assert slides.mean(axis=1).std() > slides.std(axis=1).mean()


def test_a_folder_in_use_is_refused_and_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        write_phantoms(tmp_path, 2, SMALL, seed=0)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]
