import numpy as np
import pytest
import torch
from tests.shared import shared
from torch.nn import functional

from nissl.config import AugmentConfig, DataConfig
from nissl.data.batches import Batch, Schedule, Store, Stream, indices, loader
from nissl.data.cases import CaseFile
from nissl.data.discovery import find_cases
from nissl.data.preprocessing import Preprocessing, resize_image, resolve
from nissl.data.resizing import resize_mask
from nissl.errors import DataError, InputError
from nissl.imageio.formats import write_image, write_mask
from nissl.imageio.label_map import LabelMap

BINARY = LabelMap.parse("binary")


def write_cases(folder, count=5, space=(40, 48), dtype=np.uint8):
    """Images whose first channel is above 100 just where the mask is."""
    folder.mkdir(exist_ok=True)
    suffix = "png" if len(space) == 2 else "nii.gz"
    files = []
    for number in range(count):
        rng = np.random.default_rng(number)
        image = rng.integers(0, 90, (1, *space)).astype(dtype)
        mask = rng.random(space) < 0.1
        image[0, mask] += 110
        file = CaseFile(f"case{number}", folder / f"image{number}.{suffix}", folder / f"mask{number}.{suffix}")
        write_image(file.image, image)
        write_mask(file.target, mask.astype(np.uint8))
        files.append(file)
    return files


def make_store(files, *, with_masks=True, **settings):
    config = resolve(DataConfig(**settings), dims=2)
    return Store(files, BINARY, config, with_masks=with_masks)


def equal(one, other):
    return (
        torch.equal(one.images, other.images)
        and torch.equal(one.targets, other.targets)
        and (one.unlabelled is None or torch.equal(one.unlabelled, other.unlabelled))
        and one.ids == other.ids
    )


# Settings


@pytest.mark.parametrize(("dims", "sampling", "size"), [(2, "resize", (128, 128)), (3, "patches", (32, 32, 32))])
def test_auto_resizes_in_2d_and_cuts_patches_in_3d(dims, sampling, size):
    settled = resolve(DataConfig(), dims)
    assert (settled.sampling, settled.size) == (sampling, size)


def test_one_number_stands_for_all_axes_and_choices_are_kept():
    settled = resolve(DataConfig(size=(64,), sampling="resize"), 3)
    assert (settled.sampling, settled.size) == ("resize", (64, 64, 64))
    assert resolve(DataConfig(size=(64, 96)), 2).size == (64, 96)


def test_wrong_number_of_axes_is_refused_by_name():
    with pytest.raises(InputError, match=r"data\.size") as caught:
        resolve(DataConfig(size=(64, 64)), 3)
    assert "2 numbers for 3-D" in str(caught.value) and "one number, or 3" in str(caught.value)


def test_a_batch_that_processes_cannot_share_is_refused():
    with pytest.raises(InputError, match="multiple of the 2 processes"):
        Schedule(seed=0, batch=3, world=2)


# Resizing and normalisation


@pytest.mark.parametrize("size", [(24, 24), (50, 90), (20, 61)])
def test_resizing_2d_equals_torch_on_both_axes_at_once(size):
    image = np.random.default_rng(0).random((3, 37, 61), dtype=np.float32)
    expected = functional.interpolate(torch.from_numpy(image)[None], size, mode="bilinear", antialias=True)[0]
    np.testing.assert_allclose(resize_image(image, size), expected.numpy(), atol=1e-6)


def test_enlarging_3d_equals_trilinear_interpolation():
    image = np.random.default_rng(0).random((2, 7, 8, 9), dtype=np.float32)
    expected = functional.interpolate(torch.from_numpy(image)[None], (14, 20, 9), mode="trilinear")[0]
    np.testing.assert_allclose(resize_image(image, (14, 20, 9)), expected.numpy(), atol=1e-6)


@pytest.mark.parametrize("space", [(64, 64), (32, 32, 32)])
def test_shrinking_averages_a_fine_pattern_instead_of_aliasing(space):
    image = (np.indices(space).sum(axis=0) % 2).astype(np.float32)[None]
    small = resize_image(image, [n // 4 for n in space])
    middle = small[(0, *[slice(2, -2)] * len(space))]
    np.testing.assert_allclose(middle, 0.5, atol=0.02)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
def test_resizing_gives_float32_and_keeps_a_constant(dtype):
    image = np.full((1, 30, 40), 200, dtype)
    small = resize_image(image, (16, 64))
    assert small.dtype == np.float32
    np.testing.assert_allclose(small, 200, rtol=1e-6)


@pytest.mark.parametrize("size", [(16, 40), (33, 7), (20, 31)])
def test_masks_take_the_nearest_pixel(size):
    mask = np.random.default_rng(0).integers(0, 5, (20, 31), dtype=np.uint8)
    expected = functional.interpolate(torch.from_numpy(mask)[None, None], size, mode="nearest-exact")[0, 0]
    assert np.array_equal(resize_mask(mask, size), expected.numpy())


def test_normalised_channels_have_mean_zero_and_deviation_one():
    image = np.random.default_rng(0).integers(0, 60000, (3, 20, 30)).astype(np.uint16)
    image[2] = 7
    pixels = Preprocessing("patches", (16, 16))(image)
    assert pixels.dtype == np.float32
    np.testing.assert_allclose(pixels.mean(axis=(1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(pixels.std(axis=(1, 2)), [1, 1, 0], atol=1e-5)


# Order


def test_every_case_comes_once_in_each_epoch_whatever_the_batch():
    row = np.concatenate([indices(10, 4, step, seed=3) for step in range(15)])
    for epoch in row.reshape(6, 10):
        assert sorted(epoch) == list(range(10))
    assert not np.array_equal(row[:10], row[10:20])
    assert np.array_equal(row, np.concatenate([indices(10, 12, step, seed=3) for step in range(5)]))


def test_order_depends_on_the_seed():
    assert not np.array_equal(indices(100, 100, 0, seed=1), indices(100, 100, 0, seed=2))


# The store


def test_without_masks_no_mask_file_is_opened(tmp_path):
    files = write_cases(tmp_path)
    for file in files:
        file.target.unlink()
    store = make_store(files, with_masks=False, size=(32,))
    assert all(store[index].target is None for index in range(len(store)))
    batch = Stream(None, store, AugmentConfig(), Schedule(seed=0, batch=2))[0]
    assert batch.images.shape == (2, 1, 32, 32) and batch.targets.numel() == 0 and batch.unlabelled is None
    with pytest.raises(ValueError, match="with or without"):
        Stream(store, None, AugmentConfig(), Schedule(seed=0, batch=2))[0]


def test_a_store_with_masks_refuses_a_case_without():
    with pytest.raises(ValueError, match="without"):
        make_store([CaseFile("a", "a.png")])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_integer_images_stay_integers_in_memory_but_for_resized_ones(tmp_path, dtype):
    files = write_cases(tmp_path, dtype=dtype)
    for sampling, kept in (("patches", dtype), ("resize", np.float32)):
        case = make_store(files, size=(32,), sampling=sampling)[0]
        assert case.image.dtype == kept and case.target.dtype == np.uint8


def test_cached_cases_are_not_read_again(tmp_path):
    files = write_cases(tmp_path)
    store = make_store(files, size=(32,))
    before = [store[index] for index in range(5)]
    for file in files:
        file.image.unlink()
    for index, case in enumerate(before):
        assert store[index].image is case.image and store[index].target is case.target


def test_the_bound_in_bytes_holds_and_the_rest_is_read_again(tmp_path):
    files = write_cases(tmp_path)
    room = 2 * (4 + 1) * 32 * 32 + 100  # two cases of image and mask
    store = make_store(files, size=(32,), cache_gib=room / 2**30)
    again = [store[index].image is store[index].image for index in range(5)]
    assert again == [True, True, False, False, False]
    assert np.array_equal(store[4].image, store[4].image)


def test_statistics_of_a_case_depend_on_that_case_alone(tmp_path):
    files = write_cases(tmp_path)
    before = make_store(files, size=(32,)).moments(0)
    write_image(files[1].image, np.full((1, 40, 48), 255, np.uint8))
    store = make_store(files, size=(32,))
    store[1]
    assert np.array_equal(store.moments(0), before)


def test_images_smaller_than_a_patch_are_padded_with_their_mask(tmp_path):
    files = write_cases(tmp_path, space=(20, 90))
    case = make_store(files, size=(64,), sampling="patches")[0]
    assert case.image.shape == (1, 64, 90) and case.target.shape == (64, 90)
    assert np.array_equal(case.image[0] > 100, case.target == 1)


# Streams


@pytest.fixture
def files(tmp_path):
    return write_cases(tmp_path / "cases")


def make_stream(files, schedule, augment=None, **settings):
    settings = {"size": (32,)} | settings
    unlabelled = make_store(files[3:], with_masks=False, **settings)
    return Stream(make_store(files[:3], **settings), unlabelled, augment, schedule)


@pytest.mark.parametrize("sampling", ["resize", "patches"])
def test_a_batch_has_the_stated_shapes_and_types(files, sampling):
    batch = make_stream(files, Schedule(0, 4), AugmentConfig(), sampling=sampling)[7].to("cpu")
    assert isinstance(batch, Batch)
    assert batch.images.shape == batch.unlabelled.shape == (4, 1, 32, 32)
    assert batch.targets.shape == (4, 32, 32)
    assert (batch.images.dtype, batch.targets.dtype) == (torch.float32, torch.int64)
    assert len(batch.ids) == 8 and set(batch.ids[:4]) <= {"case0", "case1", "case2"}
    assert set(batch.ids[4:]) <= {"case3", "case4"}


def test_a_batch_is_a_function_of_seed_and_step(files):
    one = make_stream(files, Schedule(5, 2), AugmentConfig(), sampling="patches")
    late = make_stream(files, Schedule(5, 2), AugmentConfig(), sampling="patches")
    other = make_stream(files, Schedule(6, 2), AugmentConfig(), sampling="patches")
    first = [one[step] for step in range(6)]
    np.random.seed(3)  # noqa: NPY002 - a user's code may do this
    torch.manual_seed(3)
    assert equal(late[5], first[5])
    assert equal(one[2], first[2])
    assert not equal(other[5], first[5])
    assert not torch.equal(first[0].images, first[3].images)


def test_two_processes_draw_what_one_draws(files):
    whole = make_stream(files, Schedule(1, 4), AugmentConfig(), sampling="patches")
    parts = [make_stream(files, Schedule(1, 4, rank, 2), AugmentConfig(), sampling="patches") for rank in range(2)]
    for step in range(3):
        one, (left, right) = whole[step], [part[step] for part in parts]
        assert torch.equal(one.images, torch.cat([left.images, right.images]))
        assert torch.equal(one.targets, torch.cat([left.targets, right.targets]))
        assert torch.equal(one.unlabelled, torch.cat([left.unlabelled, right.unlabelled]))
        assert one.ids == left.ids[:2] + right.ids[:2] + left.ids[2:] + right.ids[2:]


def test_patches_of_image_and_mask_come_from_the_same_place(files):
    stream = make_stream(files, Schedule(1, 4), sampling="patches")
    for step in range(5):
        batch = stream[step]
        for image, mask in zip(batch.images, batch.targets, strict=True):
            assert image[0][mask == 1].min() > image[0][mask == 0].max()


def test_patches_3d_are_cut_alike(tmp_path):
    config = resolve(DataConfig(size=(16,)), 3)
    store = Store(write_cases(tmp_path, 2, (18, 24, 12)), BINARY, config)
    batch = Stream(store, None, None, Schedule(0, 2))[0]
    assert batch.images.shape == (2, 1, 16, 16, 16) and batch.unlabelled is None
    for image, mask in zip(batch.images, batch.targets, strict=True):
        assert image[0][mask == 1].min() > image[0][mask == 0].max()


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0.0, 0.15), (0.5, 0.4, 0.65), (1.0, 1.0, 1.0)])
def test_a_rare_structure_is_seen_as_often_as_asked(tmp_path, share, low, high):
    file = CaseFile("a", tmp_path / "a.png", tmp_path / "m.png")
    mask = np.zeros((200, 200), np.uint8)
    mask[150:153, 20:23] = 1
    write_image(file.image, np.random.default_rng(0).integers(0, 255, (1, 200, 200)).astype(np.uint8))
    write_mask(file.target, mask)
    stream = Stream(make_store([file], size=(16,), sampling="patches", foreground=share), None, None, Schedule(0, 8))
    seen = np.mean([bool(one.any()) for step in range(15) for one in stream[step].targets])
    assert low <= seen <= high


def test_rare_classes_are_drawn_as_often_as_common_ones(tmp_path):
    file = CaseFile("a", tmp_path / "a.png", tmp_path / "m.png")
    mask = np.zeros((160, 160), np.uint8)
    mask[:60], mask[140:142, 80:82] = 1, 2
    write_image(file.image, np.random.default_rng(0).integers(0, 255, (1, 160, 160)).astype(np.uint8))
    write_mask(file.target, mask)
    config = DataConfig(size=(16, 16), sampling="patches", foreground=1.0)
    stream = Stream(Store([file], LabelMap.parse("0,1,2"), config), None, None, Schedule(0, 8))
    seen = np.mean([bool((one == 2).any()) for step in range(15) for one in stream[step].targets])
    assert 0.35 < seen < 0.65


# The loader


def test_worker_processes_change_nothing(files):
    stream = make_stream(files, Schedule(2, 4), AugmentConfig(), sampling="patches")
    alone, shared = list(loader(stream, 0, 5, workers=0)), list(loader(stream, 0, 5, workers=2))
    assert len(alone) == len(shared) == 5
    assert all(equal(one, other) for one, other in zip(alone, shared, strict=True))
    assert all(equal(one, stream[step]) for step, one in enumerate(alone))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_late_start_continues_the_same_row_and_leaves_global_state_alone(files, workers):
    stream = make_stream(files, Schedule(2, 2), AugmentConfig())
    state = torch.get_rng_state()
    late = list(loader(stream, 3, 5, workers=workers))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(equal(one, stream[step]) for step, one in enumerate(late, start=3))


def test_image_streams_are_served_too(files):
    stream = Stream(None, make_store(files, with_masks=False, size=(32,)), AugmentConfig(), Schedule(0, 2))
    batches = list(loader(stream, 0, 3, workers=0))
    assert all(torch.equal(one.images, stream[step].images) for step, one in enumerate(batches))
    assert [one.step for one in batches] == [0, 1, 2] and batches[1].ids == stream.ids(1)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_vanishes_is_named(files, workers):
    stream = make_stream(files, Schedule(0, 3))
    files[1].image.unlink()
    with pytest.raises(DataError, match=r"image1\.png"):
        list(loader(stream, 0, 2, workers=workers))


# Real images


@pytest.mark.parametrize(("name", "label_map", "channels"), [("glas", "binary", 3), ("hippocampus", "", 1)])
def test_real_images_become_normalised_batches(name, label_map, channels):
    dataset = find_cases(shared(name), DataConfig(label_map=label_map))
    config = resolve(DataConfig(size=(32,)), dataset.dims)
    store = Store(dataset.cases[:6], dataset.label_map, config)
    batch = Stream(store, None, AugmentConfig(), Schedule(0, 6))[0]
    assert batch.images.shape == (6, channels, *config.size)
    assert torch.isfinite(batch.images).all() and batch.images.abs().mean() < 3
    assert batch.targets.max() == len(dataset.label_map.names) - 1
