import dataclasses
import itertools

import numpy as np
import pytest
import torch
from scipy import ndimage

from nissl.config import AugmentConfig
from nissl.data.augmentation import Draw, apply, draw, rotation

SPACES = [(12, 12), (10, 16), (9, 12, 15)]


def noise(space, channels=2, batch=3):
    return torch.randn((batch, channels, *space), generator=torch.Generator().manual_seed(1))


def blobs(space, batch=2):
    """Smooth random images, whose thresholds are smooth shapes."""
    rough = np.random.default_rng(0).standard_normal((batch, 1, *space))
    smooth = ndimage.gaussian_filter(rough, (0, 0, *[3] * len(space)))
    return torch.from_numpy((smooth / smooth.std()).astype(np.float32))


@pytest.mark.parametrize("space", SPACES)
def test_identity_draw_returns_the_input_exactly(space):
    images, masks = noise(space), noise(space)[:, 0].gt(0).long()
    moved, classes = apply(images, masks, [Draw(np.eye(len(space)))] * 3)
    assert torch.equal(moved, images)
    assert torch.equal(classes, masks)


def test_a_still_image_is_exact_beside_moved_ones():
    images = noise((10, 16))
    moved, _ = apply(images, None, [Draw(np.eye(2)), Draw(rotation([0.4], 2)), Draw(np.eye(2))])
    assert torch.equal(moved[[0, 2]], images[[0, 2]])
    assert not torch.allclose(moved[1], images[1])


@pytest.mark.parametrize("space", SPACES)
def test_input_is_left_unchanged(space):
    images = noise(space)
    before = images.clone()
    apply(images, None, [Draw(np.eye(len(space)), 1.5, 0.5, 0.1, 3)] * 3)
    assert torch.equal(images, before)


@pytest.mark.parametrize("space", SPACES)
def test_mirrors_equal_numpy_flips(space):
    images = noise(space)
    for axis in range(len(space)):
        matrix = np.eye(len(space))
        matrix[axis, axis] = -1
        moved, _ = apply(images, None, [Draw(matrix)] * 3)
        torch.testing.assert_close(moved, images.flip(axis + 2), atol=1e-5, rtol=0)


def test_a_flip_commutes_with_a_rotation_the_other_way():
    images, mirror = blobs((32, 32)), np.diag([1.0, -1.0])
    one, _ = apply(apply(images, None, [Draw(mirror)] * 2)[0], None, [Draw(rotation([0.5], 2))] * 2)
    other, _ = apply(apply(images, None, [Draw(rotation([-0.5], 2))] * 2)[0], None, [Draw(mirror)] * 2)
    torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


@pytest.mark.parametrize("quarter", [1, 2, 3])
def test_quarter_turns_equal_rot90(quarter):
    images = noise((12, 12))
    moved, _ = apply(images, None, [Draw(rotation([quarter * np.pi / 2], 2))] * 3)
    np.testing.assert_allclose(moved.numpy(), np.rot90(images.numpy(), -quarter, axes=(2, 3)), atol=1e-5)


STILL = {"rotate": 0.0, "scale": 0.0, "contrast": 0.0, "brightness": 0.0, "noise": 0.0}


@pytest.mark.parametrize(("space", "ways"), [((7, 7), 8), ((5, 5, 5), 48)])
def test_mirrored_and_exchanged_axes_are_all_symmetries_of_the_pixels_equally_often(space, ways):
    dims, images = len(space), noise(space, batch=1)
    settings = AugmentConfig(flip=True, transpose=True, **STILL)
    counts, rng = {}, np.random.default_rng(0)
    for _ in range(60 * ways):
        one = draw(settings, dims, rng)
        counts.setdefault(one.matrix.astype(int).tobytes(), [one, 0])[1] += 1
    assert len(counts) == ways and min(count for _, count in counts.values()) > 30
    expected = [
        np.flip(images[0].numpy().transpose(0, *(axis + 1 for axis in axes)), [axis + 1 for axis in mirrored])
        for axes in itertools.permutations(range(dims))
        for mirrored in itertools.chain.from_iterable(itertools.combinations(range(dims), n) for n in range(dims + 1))
    ]
    for one, _ in counts.values():
        moved = apply(images, None, [one])[0][0].numpy()
        assert sum(np.allclose(moved, way, atol=1e-5) for way in expected) == 1


def test_exchanging_axes_leaves_all_other_draws_as_they_are():
    plain, exchanged = (draw(AugmentConfig(transpose=yes), 2, np.random.default_rng(3)) for yes in (False, True))
    swapped = dataclasses.replace(plain, matrix=plain.matrix[:, ::-1])
    assert any(
        np.array_equal(exchanged.matrix, like.matrix) and like.noise_seed == exchanged.noise_seed
        for like in (plain, swapped)
    )
    assert (plain.contrast, plain.brightness, plain.noise) == (
        exchanged.contrast,
        exchanged.brightness,
        exchanged.noise,
    )


@pytest.mark.parametrize("transpose", [False, True])
def test_the_share_that_is_rotated_and_scaled_leaves_the_others_their_pixels(transpose):
    """The others are mirrors and exchanges: a matrix with one 1 or -1 in each row; nothing else of a draw changes."""
    affine, some = (AugmentConfig(affine=share, transpose=transpose) for share in (1.0, 0.3))
    whole, part = ([draw(one, 2, np.random.default_rng(seed)) for seed in range(400)] for one in (affine, some))
    moved = [np.array_equal(one.matrix, other.matrix) for one, other in zip(whole, part, strict=True)]
    assert 0.23 < np.mean(moved) < 0.37
    for same, one, other in zip(moved, whole, part, strict=True):
        assert dataclasses.replace(one, matrix=other.matrix) == other
        if not same:
            assert np.array_equal(np.sort(np.abs(other.matrix)), [[0, 1], [0, 1]])
            assert np.linalg.det(other.matrix) * np.linalg.det(one.matrix) > 0


@pytest.mark.parametrize(("plane", "axes"), [(0, (2, 3)), (1, (2, 4)), (2, (3, 4))])
def test_quarter_turns_in_3d_equal_rot90_in_their_plane(plane, axes):
    images, angles = noise((10, 10, 10)), [0.0, 0.0, 0.0]
    angles[plane] = np.pi / 2
    moved, _ = apply(images, None, [Draw(rotation(angles, 3))] * 3)
    np.testing.assert_allclose(moved.numpy(), np.rot90(images.numpy(), -1, axes=axes), atol=1e-5)


@pytest.mark.parametrize("space", [(24, 40), (40, 24), (16, 20, 28)])
def test_motion_is_in_pixels_on_images_that_are_not_square(space):
    """Compare with scipy, which works in pixels, away from the border."""
    dims, images = len(space), blobs(space)
    matrix = rotation([0.3] * (dims * (dims - 1) // 2), dims) / 1.1
    moved, _ = apply(images, None, [Draw(matrix)] * 2)
    centre = (np.array(space) - 1) / 2
    offset = centre - matrix @ centre
    expected = ndimage.affine_transform(images[0, 0].double().numpy(), matrix, offset, order=1, mode="nearest")
    inside = tuple(slice(n // 4, -(n // 4)) for n in space)
    np.testing.assert_allclose(moved[0, 0].numpy()[inside], expected[inside], atol=1e-4)


@pytest.mark.parametrize("space", [(48, 64), (24, 28, 32)])
def test_image_and_mask_move_together(space):
    images = blobs(space)
    masks = images[:, 0].gt(0).long()
    for seed in range(4):
        rng = np.random.default_rng(seed)
        draws = [Draw(draw(AugmentConfig(flip=True, rotate=180, affine=1), len(space), rng).matrix) for _ in range(2)]
        moved, classes = apply(images, masks, draws)
        clear = moved[:, 0].abs() > 0.6  # nearer to the threshold, interpolation and nearest pixel may differ
        assert clear.float().mean() > 0.4
        assert torch.equal(classes[clear], moved[:, 0].gt(0).long()[clear])


def test_masks_keep_their_classes_and_dtype():
    masks = torch.randint(0, 5, (2, 20, 30), generator=torch.Generator().manual_seed(0))
    draws = [draw(AugmentConfig(), 2, np.random.default_rng(seed)) for seed in range(2)]
    _, classes = apply(noise((20, 30), batch=2), masks, draws)
    assert classes.dtype == masks.dtype
    assert set(classes.unique().tolist()) <= set(range(5))


def test_intensities_follow_their_definition():
    images = noise((40, 50), batch=1)
    moved, _ = apply(images, None, [Draw(np.eye(2), contrast=1.5, brightness=-0.25)])
    torch.testing.assert_close(moved, images * 1.5 - 0.25)
    noisy, _ = apply(images, None, [Draw(np.eye(2), noise=0.3, noise_seed=5)])
    assert (noisy - images).std().item() == pytest.approx(0.3, rel=0.05)
    assert torch.equal(noisy, apply(images, None, [Draw(np.eye(2), noise=0.3, noise_seed=5)])[0])


def test_global_random_state_is_neither_read_nor_changed():
    images, change = noise((12, 12)), [draw(AugmentConfig(), 2, np.random.default_rng(0))] * 3
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one, _ = apply(images, None, change)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(one, apply(images, None, change)[0])


@pytest.mark.parametrize("dims", [2, 3])
def test_draws_stay_within_their_bounds(dims):
    config = AugmentConfig(
        flip=False, rotate=20, transpose=False, scale=0.1, affine=1, contrast=0.2, brightness=0.3, noise=0.05
    )
    draws = [draw(config, dims, np.random.default_rng(seed)) for seed in range(200)]
    zooms = np.array([np.linalg.det(one.matrix) ** (-1 / dims) for one in draws])
    assert 0.9 <= zooms.min() < 0.93 and 1.07 < zooms.max() <= 1.1
    assert all(0.8 <= one.contrast <= 1.2 and abs(one.brightness) <= 0.3 and 0 <= one.noise <= 0.05 for one in draws)
    if dims == 2:
        angles = [np.rad2deg(np.arctan2(one.matrix[1, 0], one.matrix[0, 0])) for one in draws]
        assert 18 < max(np.abs(angles)) <= 20.001


@pytest.mark.parametrize("dims", [2, 3])
def test_settings_of_zero_draw_the_identity(dims):
    config = AugmentConfig(flip=False, rotate=0, transpose=False, scale=0, contrast=0, brightness=0, noise=0)
    one = draw(config, dims, np.random.default_rng(0))
    assert np.array_equal(one.matrix, np.eye(dims))
    assert (one.contrast, one.brightness, one.noise) == (1.0, 0.0, 0.0)


def test_flips_are_drawn_half_of_the_time():
    config = AugmentConfig(flip=True, rotate=0, scale=0)
    signs = np.array([np.diag(draw(config, 3, np.random.default_rng(seed)).matrix) for seed in range(400)])
    assert np.all(np.abs((signs < 0).mean(axis=0) - 0.5) < 0.1)


def test_a_scan_keeps_its_direction_unless_asked_otherwise():
    rngs = [np.random.default_rng(seed) for seed in range(40)]
    upright = [draw(AugmentConfig(), 3, rng).matrix for rng in rngs]
    assert all((np.diag(matrix) > 0.5).all() for matrix in upright)
    turned = [draw(AugmentConfig(flip=True, rotate=180, affine=1), 3, rng).matrix for rng in rngs]
    assert any(np.linalg.det(matrix) < 0 for matrix in turned)
    assert any(np.linalg.det(draw(AugmentConfig(), 2, rng).matrix) < 0 for rng in rngs)
