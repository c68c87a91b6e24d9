"""New masks hold the values and colours of the user's own, so that the same label map reads them again."""

import json

import numpy as np
import pytest
from PIL import Image
from tests.inference.tiny import picture, tiny_model, write_run
from tests.tiny_data import tiny_config, write_tiny

from nissl import api, cli
from nissl.config import Config, DataConfig
from nissl.data.cases import mask_values
from nissl.data.discovery import find_cases
from nissl.imageio.formats import Raster, read_raster, write_image, write_mask
from nissl.imageio.label_map import LabelMap
from nissl.imageio.mask_values import MaskValues
from nissl.runs.folder import read_json, write_json

MAPS = {
    "0=background,1=core,4=enhancing": (0, 1, 4),
    "0=background,1=core,2=core,300=edge": (0, 1, 300),
    "0=membrane,9=cell,255=background": (255, 0, 9),
    "#000000=background,#ff0000=gland,#00ff80=nerve": ("#000000", "#ff0000", "#00ff80"),
    "-1=background,0=cell,1=nucleus": (),
    "0=background,1=cell,70000=nucleus": (),
}


@pytest.mark.parametrize("text", MAPS)
@pytest.mark.parametrize("kind", [".png", ".tif", ".nii.gz"])
@pytest.mark.parametrize("spacing", [None, (0.5, 0.25)])
def test_f72_what_is_written_is_read_by_the_same_map(tmp_path, text, kind, spacing):
    label_map, labels = LabelMap.parse(text), np.random.default_rng(0).integers(0, 3, (300, 41), np.uint8)
    written = label_map.written()
    assert written == MAPS[text]
    path = tmp_path / f"mask{kind}"
    write_mask(path, labels, Raster(labels[None], spacing), "by a test", MaskValues.of(written))
    raster = read_raster(path)
    if written:
        np.testing.assert_array_equal(label_map.apply(raster, path), labels)
    np.testing.assert_array_equal(LabelMap.reading(label_map.names, written).apply(raster, path), labels)
    if written and not label_map.colours:
        np.testing.assert_array_equal(raster.pixels[0], np.array(written)[labels])
    if label_map.colours and kind == ".png":
        seen = np.asarray(Image.open(path).convert("RGB"))
        assert (seen[labels == 2] == (0, 255, 128)).all()


@pytest.mark.parametrize(("text", "drawn", "expected"), [
    ("binary", (0, 255), (0, 255)), ("binary", (0, 1), (0, 1)), ("binary", (0, 7, 9), (0, 255)),
    ("binary", (0,), (0, 255)), ("threshold=127", (0, 40, 200), (0, 255)), ("threshold=300", (0, 9, 900), (0, 65535)),
    ("threshold=0.5", (0, 1), (0, 255)), ("", (0, 1), (0, 1)),
])  # fmt: skip
def test_f72_a_binary_mask_is_written_as_it_was_drawn(tmp_path, text, drawn, expected):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    mask = np.kron(np.array([drawn, drawn[::-1]], np.uint16), np.ones((10, 10), np.uint16))
    write_image(tmp_path / "images" / "a.png", picture(1, *mask.shape))
    write_image(tmp_path / "masks" / "a.png", mask[None])
    config = DataConfig(label_map=text)
    dataset = find_cases(tmp_path, config)
    assert mask_values(dataset.cases, dataset.label_map, config) == expected
    if text:
        again = Raster(np.array([[expected]], np.uint16))
        assert dataset.label_map.apply(again, tmp_path).tolist() == [[0, 1]]


@pytest.fixture
def run(tmp_path):
    write_run(tmp_path / "run", tiny_model())
    for name in ("a.png", "b.tif"):
        (tmp_path / "images").mkdir(exist_ok=True)
        write_image(tmp_path / "images" / name, picture(1, 40, 50))
    return tmp_path / "run"


def predicted(run, out, *flags):
    assert cli.run(["predict", str(run), str(run.parent / "images"), "--out", str(out), *flags]) == 0
    return [read_raster(out / name).pixels[0] for name in ("a.png", "b.tif")]


def test_f72_predict_writes_the_values_of_the_run_and_says_which(run, tmp_path, capsys):
    numbers = predicted(run, tmp_path / "old")  # a run of an older version, which states none
    assert "0 is background, 1 is head, 2 is body" in capsys.readouterr().out
    write_json(run / "model.json", read_json(run / "model.json") | {"values": [0, 2, 400]})
    own = predicted(run, tmp_path / "own")
    assert "0 is background, 2 is head, 400 is body" in capsys.readouterr().out
    classes = predicted(run, tmp_path / "classes", "--values", "classes")
    for number, value, again in zip(numbers, own, classes, strict=True):
        assert len(np.unique(number)) > 1
        np.testing.assert_array_equal(value, np.array([0, 2, 400])[number])
        np.testing.assert_array_equal(again, number)
    record = json.loads((tmp_path / "own" / "predictions.json").read_text())
    assert record["values"] == {"background": 0, "head": 2, "body": 400}


def test_f72_a_run_trains_again_on_its_own_masks_and_its_page_reads_them(tmp_path):
    root = write_tiny(tmp_path / "data")
    for path in (root / "masks").iterdir():
        write_mask(path, read_raster(path).pixels[0] * 4)
    base = tiny_config(pretrain="none", steps=2)
    config = Config(**{**vars(base), "data": DataConfig(size=(32,), label_map="0=background,4=nucleus")})
    run = api.train(root, tmp_path / "run", config)
    assert read_json(run / "model.json")["values"] == [0, 4]
    api.evaluate(run)
    for path in (run / "predictions").iterdir():
        assert set(np.unique(read_raster(path).pixels)) <= {0, 4}
    assert "No overlay" not in api.report(run).read_text()
    result = api.predict(run, root / "images", tmp_path / "new")
    own = tmp_path / "again"
    own.mkdir()
    (own / "images").symlink_to(root / "images")
    (tmp_path / "new" / "predictions.json").unlink()
    (own / "masks").symlink_to(tmp_path / "new")
    assert len(result.written) == 8
    assert not [finding for finding in api.check(own, config.data).errors if "unexpected" in finding.found]


def test_f72_a_run_is_not_measured_with_other_classes(tmp_path, capsys):
    root = write_tiny(tmp_path / "data")
    run = api.train(root, tmp_path / "run", tiny_config(pretrain="none", steps=2))
    write_json(run / "model.json", read_json(run / "model.json") | {"classes": ["foreground", "background"]})
    assert cli.run(["evaluate", str(run)]) == 2
    assert "those of the run: foreground, background" in capsys.readouterr().err
