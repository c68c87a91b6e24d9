"""The label map: what is stated is applied, what is not stated is refused with values, counts and the mend."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nissl.errors import DataError, InputError
from nissl.imageio.formats import Raster
from nissl.imageio.label_map import LabelMap, default_map

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
        ("7=void,0=cell,1=cell,2=debris", ("void", "cell", "debris")),
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
    ],
)
def test_nonsense_names_the_part(text, part):
    with pytest.raises(InputError) as caught:
        LabelMap.parse(text)
    assert part in caught.value.found and caught.value.where == "--label-map" and caught.value.fix


@given(st.lists(st.integers(-5, 300), min_size=2, max_size=12, unique=True), st.integers(0, 2**32 - 1))
def test_apply_equals_a_dictionary(codes, seed):
    draws = np.random.default_rng(seed)
    pairs = [(code, f"class {draws.integers(4) if n > 1 else n}") for n, code in enumerate(codes)]
    label_map = LabelMap.of(pairs)
    values = draws.choice(codes, (6, 7))
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
    mask = raster(np.arange(40).reshape(5, 8), np.uint16)
    error = refusal("0,1", mask)
    assert "2 (1 pixels), 3 (1 pixels)" in error.found and "and 28 more" in error.found
    assert "instance ids" in error.fix and "--label-map binary" in error.fix
    labels = LabelMap.parse("binary").apply(mask, MASK)
    np.testing.assert_array_equal(labels, np.arange(40).reshape(5, 8) > 0)


def test_f22_a_stray_value_is_listed_with_its_count():
    error = refusal("0,1", raster([[0, 1, 7, 7]]))
    assert error.found == "unexpected values 7 (2 pixels)"
    assert "--label-map 0,1,7" in error.fix and "correct the mask" in error.fix


def test_f22_floats_are_labels_only_where_they_are_whole():
    assert LabelMap.parse("0,1,2").apply(raster([[0, 1, 2]], np.float32), MASK).tolist() == [[0, 1, 2]]
    for text in ("binary", "0,1"):
        fractions = refusal(text, raster([[0, 0.5, 1, 0.25]], np.float32))
        assert "0.5 (2 pixels)" in fractions.found and "threshold" in fractions.fix
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


def test_masks_of_every_number_of_axes_keep_their_shape():
    for shape in ((4, 5), (3, 4, 5)):
        assert LabelMap.parse("binary").apply(Raster(np.ones((1, *shape), np.uint8)), MASK).shape == shape


def test_the_default_is_zero_and_one_or_what_the_decathlon_says(tmp_path):
    assert default_map(None) == LabelMap.parse("0=background,1=foreground")
    path = tmp_path / "dataset.json"
    for labels in ({"0": "background", "2": "tail", "1": "head"}, {"background": 0, "head": 1, "tail": 2}):
        path.write_text(json.dumps({"labels": labels}))
        assert default_map(path) == LabelMap.parse("0=background,1=head,2=tail")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"labels": 3}', '{"labels": {"0": "a"}}', '{"labels": {"a": []}}'])
def test_a_broken_description_is_named(tmp_path, text):
    path = tmp_path / "dataset.json"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        default_map(path)
    assert caught.value.where == str(path) and "--label-map" in caught.value.fix
