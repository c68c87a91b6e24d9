"""The label map: what is stated is applied, what is not stated is refused with values, counts and the mend."""

import io
import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from nissl.errors import DataError, InputError
from nissl.imageio.formats import Raster, read_raster
from nissl.imageio.label_map import LabelMap, default_map, has_gray_edges

MASK = Path("masks/a.png")
COLOURS = "#000000=background,#ff0000=gland,#0000ff=nerve"


def raster(values, dtype=np.uint8, palette=None):
    return Raster(np.array(values, dtype)[None], palette=palette)


def rgb(*colours):
    return Raster(np.array([colours], np.uint8).transpose(2, 0, 1))


def refusal(text, mask, path=MASK):
    with pytest.raises(DataError) as caught:
        LabelMap.parse(text).apply(mask, path)
    assert caught.value.where == str(path) and caught.value.expected
    return caught.value


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("binary", ("background", "foreground")),
        ("0,1,2", ("background", "1", "2")),
        ("0=background,255=gland", ("background", "gland")),
        (" 0 = background , 1 = outer rim ", ("background", "outer rim")),
        ("7=background,0=cell,1=cell,2=debris", ("background", "cell", "debris")),
        ("0=membrane,255=background", ("background", "membrane")),
        ("0=membrane,1=cell", ("membrane", "cell")),
        ("2,1,0", ("background", "2", "1")),
        ("threshold=127", ("background", "foreground")),
        ("threshold=0.5", ("background", "foreground")),
        (COLOURS, ("background", "gland", "nerve")),
        ("#000000,#FF0000", ("background", "#FF0000")),
        ("-1=background,1=cell", ("background", "cell")),
    ],
)
def test_names_are_in_the_order_of_the_text(text, names):
    label_map = LabelMap.parse(text)
    assert label_map.names == names
    assert LabelMap.parse(str(label_map)) == label_map


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "``"),
        ("0", "1 classes"),
        ("0=a,1=a", "1 classes"),
        ("0,1,1", "`1` twice"),
        ("0,1,x=2", "`x=2`"),
        ("0,0.5", "`0.5`"),
        ("0=,1=b", "`0=`"),
        ("0,1,", "``"),
        ("#00000=a,#ff0000=b", "`#00000=a`"),
        ("0=a,#ff0000=b", "values and colours"),
        ("Binary", "`Binary`"),
        (",".join(map(str, range(257))), "257 classes"),
        ("255=cell,0=outside", "no background"),
        ("1=cell,2=nucleus", "no background"),
        ("#ffffff=paper,#ff0000=gland", "no background"),
        ("0=background,1=cell,255=ignore", "`ignore`"),
        ("0,1,255=Ignored", "`Ignored`"),
        ("threshold=", "`threshold=`"),
        ("threshold=-1", "`threshold=-1`"),
    ],
)
def test_nonsense_names_the_part(text, part):
    with pytest.raises(InputError) as caught:
        LabelMap.parse(text)
    assert part in caught.value.found and caught.value.where == "--label-map" and caught.value.fix


@given(st.lists(st.integers(-5, 300), min_size=2, max_size=12, unique=True), st.integers(0, 2**32 - 1))
def test_apply_equals_a_dictionary(codes, seed):
    draws = np.random.default_rng(seed)
    pairs = [(code, f"class {draws.integers(4)}" if n else "background") for n, code in enumerate(codes)]
    draws.shuffle(pairs[1:])
    label_map = LabelMap.of(pairs)
    values = draws.choice(codes, (6, 7))
    assert label_map.names[0] == "background"
    expected = [[label_map.names.index(dict(pairs)[value]) for value in row] for row in values.tolist()]
    for dtype in (np.int16, np.int64, np.float32):
        np.testing.assert_array_equal(label_map.apply(raster(values, dtype), MASK), expected)
    assert LabelMap.parse(str(label_map)) == label_map


def test_f22_zero_and_255_need_the_map_and_the_message_gives_it():
    mask = raster([[0, 255, 255], [0, 0, 0]])
    error = refusal("0=background,1=cell", mask)
    assert "255 (2 pixels)" in error.found and "0=background,1=cell" in error.expected
    assert "--label-map binary" in error.fix
    assert LabelMap.parse("binary").apply(mask, MASK).tolist() == [[0, 1, 1], [0, 0, 0]]
    assert LabelMap.parse("0=background,255=cell").apply(mask, MASK).dtype == np.uint8


def test_f22_instance_ids_become_foreground_by_binary_only():
    ids = np.kron(np.arange(40).reshape(5, 8) * 7, np.ones((4, 5), int))
    error = refusal("0,1", raster(ids, np.uint16))
    assert "7 (20 pixels), 14 (20 pixels)" in error.found and "and 29 more" in error.found
    assert "instance ids" in error.fix and "--label-map binary" in error.fix
    for dtype in (np.uint16, np.int32, np.float32):
        np.testing.assert_array_equal(LabelMap.parse("binary").apply(raster(ids, dtype), MASK), ids > 0)


def test_f22_a_stray_value_is_listed_with_its_count():
    error = refusal("0,1", raster([[0, 1, 7, 7]]))
    assert error.found == "unexpected values 7 (2 pixels)"
    assert "--label-map 0,1,7" in error.fix and "correct the mask" in error.fix


def test_f22_floats_are_labels_only_where_they_are_whole():
    assert LabelMap.parse("0,1,2").apply(raster([[0, 1, 2]], np.float32), MASK).tolist() == [[0, 1, 2]]
    for text in ("binary", "0,1"):
        fractions = refusal(text, raster([[0, 0.5, 1, 0.25]], np.float32))
        assert "0.5 (2 pixels)" in fractions.found and "threshold=0.5" in fractions.fix
        broken = refusal(text, raster([[0, np.nan, np.inf, 1]], np.float32))
        assert "NaN" in broken.found and "2 pixels" in broken.found


def test_f22_colours_are_read_by_a_colour_map_only():
    mask = rgb((0, 0, 0), (255, 0, 0), (0, 0, 255), (0, 0, 0))
    error = refusal("0,1,2", mask)
    assert "#ff0000 (1 pixels)" in error.found and "one channel" in error.expected
    suggested = error.fix.split("'")[1]
    assert LabelMap.parse(suggested).names[0] == "background"
    np.testing.assert_array_equal(LabelMap.parse(suggested).apply(mask, MASK), [[0, 2, 1, 0]])
    np.testing.assert_array_equal(LabelMap.parse(COLOURS).apply(mask, MASK), [[0, 1, 2, 0]])


def test_an_unnamed_colour_is_refused_with_a_map_that_holds_it():
    error = refusal(COLOURS, rgb((0, 0, 0), (255, 0, 0), (9, 9, 9)))
    assert "#090909 (1 pixels)" in error.found and "#090909=" in error.fix


def test_f22_a_palette_serves_by_index_and_by_colour():
    palette = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255]], np.uint8)
    mask = raster([[0, 1, 2, 1]], palette=palette)
    for text in ("0,1,2", COLOURS):
        np.testing.assert_array_equal(LabelMap.parse(text).apply(mask, MASK), [[0, 1, 2, 1]])
    assert "#0000ff=" in refusal("0,1", mask).fix


def test_gray_serves_as_colour_and_gray_saved_as_rgb_as_values():
    np.testing.assert_array_equal(LabelMap.parse("#000000=a,#ffffff=b").apply(raster([[0, 255]]), MASK), [[0, 1]])
    np.testing.assert_array_equal(LabelMap.parse("0,255").apply(rgb((0, 0, 0), (255, 255, 255)), MASK), [[0, 1]])


def test_colours_of_other_types_are_refused():
    deep = Raster(np.zeros((3, 2, 2), np.uint16))
    assert "uint16" in refusal(COLOURS, deep).found
    many = Raster(np.arange(20, dtype=np.float32).reshape(5, 2, 2))
    assert "5 channels" in refusal("0,1", many).found


def test_f22_jpeg_masks_are_refused_where_the_compression_changed_them():
    path = Path("masks/a.jpg")
    for text in ("binary", "0=background,255=cell"):
        error = refusal(text, raster([[0, 1, 254, 255]]), path)
        assert "lossy" in error.fix and "PNG" in error.fix
    assert "PNG" in refusal("0,1", rgb((0, 0, 0), (254, 3, 1)), path).fix
    assert LabelMap.parse("binary").apply(raster([[0, 255]]), path).tolist() == [[0, 1]]


def discs(count, side=96, seed=0):
    """Binary mask of 0 and 1 with some discs in it."""
    rng, (rows, columns) = np.random.default_rng(seed), np.mgrid[:side, :side]
    centres = rng.integers(10, side - 10, (count, 2))
    return sum((rows - r) ** 2 + (columns - c) ** 2 < 50 for r, c in centres).clip(0, 1).astype(np.uint8)


def through_jpeg(pixels, quality):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def smoothed(pixels, radius):
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))


def packed_ids(cells, side=96, seed=0):
    """Every pixel has the number of the nearest of some points, so that all cells touch."""
    rng = np.random.default_rng(seed)
    points = rng.integers(0, side, (cells, 2))
    grid = np.stack(np.mgrid[:side, :side], -1)[:, :, None]
    return rng.permutation(cells)[((grid - points) ** 2).sum(-1).argmin(-1)] * 3


@pytest.mark.parametrize("count", [1, 3, 30])
@pytest.mark.parametrize(
    "damage",
    [*(partial(through_jpeg, quality=q) for q in (30, 75, 95, 100)), *(partial(smoothed, radius=r) for r in (0.5, 2))],
)
def test_f71_grays_at_edges_are_refused_as_binary_and_read_by_the_threshold_that_is_named(count, damage):
    truth = discs(count)
    damaged = damage(truth * 255)
    for text in ("binary", "0=background,255=cell"):
        error = refusal(text, raster(damaged))
        assert "threshold=127" in error.fix
    labels = LabelMap.parse("threshold=127").apply(raster(damaged), MASK)
    assert 2 * (labels & truth).sum() / (labels.sum() + truth.sum()) > 0.95
    np.testing.assert_array_equal(LabelMap.parse("threshold=0").apply(raster(damaged), MASK), damaged > 0)


def test_f71_edges_of_a_rectangle_that_was_scaled_with_smoothing_are_grays_too():
    mask = np.zeros((64, 64), np.uint8)
    mask[20:40, 10:50] = 255
    for size in (96, 256):
        assert has_gray_edges(np.asarray(Image.fromarray(mask).resize((size, size), Image.Resampling.BILINEAR)))


@pytest.mark.parametrize("cells", [10, 100, 500])
def test_f71_numbers_of_structures_are_no_grays_even_where_they_touch(cells):
    ids = packed_ids(cells)
    for mask in (ids, ids * discs(30), np.stack([ids] * 3)):
        assert not has_gray_edges(mask)
        np.testing.assert_array_equal(LabelMap.parse("binary").apply(raster(mask, np.uint16), MASK), mask > 0)


def test_f71_values_that_binary_cannot_mean_are_refused():
    for values in ([[1, 2, 2, 1]], [[-1, 0, 1, 1]]):
        error = refusal("binary", raster(values, np.int16))
        assert "background" in error.fix
        suggested = re.search(r"--label-map (\S+=\w+)", error.fix)[1]
        assert LabelMap.parse(suggested.rstrip(";")).apply(raster(values, np.int16), MASK).shape == (1, 4)


def test_f71_jpeg_under_another_name_is_refused_unless_it_changed_nothing(tmp_path):
    truth = discs(3) * 255
    Image.fromarray(truth).save(tmp_path / "a.png", format="JPEG", quality=75)
    tifffile.imwrite(tmp_path / "a.tif", truth, compression="jpeg", compressionargs={"level": 75}, rowsperstrip=96)
    for path in (tmp_path / "a.png", tmp_path / "a.tif"):
        for text in ("binary", "0=background,255=cell", ",".join(map(str, range(256)))):
            error = refusal(text, read_raster(path), path)
            assert "JPEG" in error.found and "threshold=127" in error.fix
        np.testing.assert_array_equal(LabelMap.parse("threshold=127").apply(read_raster(path), path), truth > 127)
    Image.fromarray(truth // 255).save(tmp_path / "b.png", format="JPEG", quality=100)  # 0 and 1: nobody knows
    assert "JPEG" in refusal("0,1", read_raster(tmp_path / "b.png")).found
    Image.fromarray(np.kron(np.eye(2, dtype=np.uint8) * 255, np.ones((8, 8), np.uint8))).save(tmp_path / "c.jpg")
    assert LabelMap.parse("0,255").apply(read_raster(tmp_path / "c.jpg"), tmp_path / "c.jpg").sum() == 128


def test_f71_colours_that_jpeg_has_changed_are_refused(tmp_path):
    colours = np.stack([discs(4) * 255, discs(4, seed=1) * 255, discs(4) * 0], -1)
    Image.fromarray(colours).save(tmp_path / "a.png", format="JPEG", quality=90)
    error = refusal("#000000=background,#ff0000=a,#00ff00=b,#ffff00=c", read_raster(tmp_path / "a.png"))
    assert "JPEG" in error.found and "PNG" in error.fix


def test_f71_floats_and_truth_values_are_read_as_they_are(tmp_path):
    truth = discs(3)
    tifffile.imwrite(tmp_path / "float.tif", truth.astype(np.float32))
    tifffile.imwrite(tmp_path / "soft.tif", smoothed(truth * 255, 2).astype(np.float32) / 255)
    Image.fromarray(truth.astype(bool)).save(tmp_path / "bool.png")
    for name in ("float.tif", "bool.png"):
        for text in ("0,1", "binary", "threshold=0.5"):
            np.testing.assert_array_equal(LabelMap.parse(text).apply(read_raster(tmp_path / name), MASK), truth)
    soft = read_raster(tmp_path / "soft.tif")
    np.testing.assert_array_equal(LabelMap.parse("threshold=0.5").apply(soft, MASK), soft.pixels[0] > 0.5)
    assert "NaN" in refusal("threshold=0.5", raster([[0, np.nan]], np.float32)).found


def test_f71_palettes_whose_positions_mislead_are_refused_with_their_colours():
    for colours in ([[255, 255, 255], [0, 0, 0]], [[255, 0, 0], [0, 0, 0]]):  # black is position 1
        mask = raster([[1, 1, 0, 1]], palette=np.array(colours, np.uint8))
        for text in ("binary", "0,1"):
            error = refusal(text, mask)
            suggested = re.search(r"--label-map '(.+)'", error.fix)[1]
            np.testing.assert_array_equal(LabelMap.parse(suggested).apply(mask, MASK), [[0, 0, 1, 0]])
    unordered = raster([[0, 1, 2, 1]], palette=np.array([[0, 0, 0], [255, 255, 255], [100, 100, 100]], np.uint8))
    assert "palette" in refusal("threshold=1", unordered).found
    gray = raster([[0, 255, 9, 200]], palette=np.arange(256, dtype=np.uint8)[:, None].repeat(3, 1))
    assert LabelMap.parse("threshold=127").apply(gray, MASK).tolist() == [[0, 1, 0, 1]]


def test_f71_transparency_that_says_something_else_than_the_values_is_refused(tmp_path):
    truth = discs(3)
    for name, values in (("white", truth * 0 + 255), ("black", truth * 0), ("both", truth * 255)):
        Image.fromarray(np.stack([values, truth * 255], -1), "LA").save(tmp_path / f"{name}.png")
    for name in ("white", "black"):
        for text in ("binary", "threshold=127", "#000000=background,#ffffff=cell"):
            assert "transparent" in refusal(text, read_raster(tmp_path / f"{name}.png")).found
    np.testing.assert_array_equal(LabelMap.parse("binary").apply(read_raster(tmp_path / "both.png"), MASK), truth)


def test_masks_of_every_number_of_axes_keep_their_shape():
    for shape in ((4, 5), (3, 4, 5)):
        assert LabelMap.parse("binary").apply(Raster(np.ones((1, *shape), np.uint8)), MASK).shape == shape


def test_the_default_is_zero_and_one_or_what_the_decathlon_says(tmp_path):
    assert default_map(None) == LabelMap.parse("0=background,1=foreground")
    path = tmp_path / "dataset.json"
    for labels in ({"0": "background", "2": "tail", "1": "head"}, {"background": 0, "head": 1, "tail": 2}):
        path.write_text(json.dumps({"labels": labels}))
        assert default_map(path) == LabelMap.parse("0=background,1=head,2=tail")
    path.write_text(json.dumps({"labels": {"background": 0, "head": 1, "ignore": 2}}))
    with pytest.raises(DataError, match="ignore"):
        default_map(path)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"labels": 3}', '{"labels": {"0": "a"}}', '{"labels": {"a": []}}'])
def test_a_broken_description_is_named(tmp_path, text):
    path = tmp_path / "dataset.json"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        default_map(path)
    assert caught.value.where == str(path) and "--label-map" in caught.value.fix
