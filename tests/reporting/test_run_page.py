import json
import math
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from tests.reporting.fake_run import build_run, write_images, write_volumes

from nissl.errors import InputError
from nissl.reporting.contents import PARTS, read_run
from nissl.reporting.gallery import Gallery
from nissl.reporting.run_page import headline, render, verdict, write_report
from nissl.tasks.scores import COLUMNS

NAMES = [f"slide {i}" for i in range(26)]
TEST = NAMES[:20]


class Page(HTMLParser):
    """Tags, their attributes and the visible text of a page."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.text, self.headings = [], "", []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] == "h2" and data.strip():
            self.headings.append(data.strip())
        self.text += data

    def pictures(self, start):
        return [attrs["alt"] for tag, attrs in self.tags if tag == "img" and attrs["alt"].startswith(start)]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fake")
    write_images(folder / "data", NAMES)
    return build_run(folder / "run", folder / "data", TEST)


@pytest.fixture
def run(original, tmp_path):
    return shutil.copytree(original, tmp_path / "run")


@pytest.fixture(scope="module")
def whole(original, tmp_path_factory):
    """The run with its page."""
    run = shutil.copytree(original, tmp_path_factory.mktemp("whole") / "run")
    write_report(run)
    return run


def page_without_overlays(run):
    """The page without its slowest part."""
    (run / "page.html").write_text(render(read_run(run), Gallery((), (), ())), encoding="utf-8")
    return Page(run / "page.html")


def change(run, file, **values):
    tree = json.loads((run / file).read_text())
    (run / file).write_text(json.dumps(tree | values))


def test_a_whole_run_gives_every_section_in_order_and_nothing_is_missing(whole):
    page = Page(whole / "report.html")
    assert page.headings == [
        "Test images, worst first",
        "Results",
        "Masks that were looked at",
        "Learning curves",
        "Pre-training: learning without masks",
        "First-layer filters",
        "How it was made",
    ]
    assert "Not on this page" not in page.text
    for part in (
        "1\u202f944\u202f322 parameters",
        "nissl train data --out run",
        "not applicable",
        "encoder.blocks.4.conv2",
    ):
        assert part in page.text


def test_the_page_needs_nothing_from_outside(whole):
    page = Page(whole / "report.html")
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object", "a"})
    sources = [attrs["src"] for _, attrs in page.tags if "src" in attrs]
    assert len(sources) > 16
    assert all(
        source.startswith(("data:image/jpeg;base64,", "data:image/svg+xml;base64,", "data:image/png;base64,"))
        for source in sources
    )
    assert "url(" not in (whole / "report.html").read_text()
    assert any("default-src 'none'" in str(attrs.get("content")) for tag, attrs in page.tags if tag == "meta")


def test_worst_cases_come_first(whole):
    page = Page(whole / "report.html")
    dice = {row.case: row.overlap.dice for row in COLUMNS.from_csv((whole / "metrics.csv").read_text())}
    order = sorted(dice, key=dice.__getitem__)
    start = "Reference and prediction of "
    shown = [text.removeprefix(start) for text in page.pictures(start)]
    assert shown == order[:12] + shown[12:14] + order[-2:]
    assert set(shown[12:14]) <= set(order[12:18])


def test_the_headline_says_what_was_trained_on_what(run):
    overall = json.loads((run / "metrics.json").read_text())["overall"]
    low, high = overall["dice_ci"]
    expected = (
        f"U-Net trained on 1 mask and 5 images without masks: Dice {overall['dice']:.2f} [{low:.2f}, {high:.2f}] "
        f"on 20 test images, trivial {overall['trivial_dice']:.2f}."
    )
    assert headline(read_run(run)) == expected
    assert expected in page_without_overlays(run).text


def test_images_that_had_no_part_are_not_claimed(run):
    settings = (run / "config.toml").read_text()
    (run / "config.toml").write_text(settings.replace('name = "hebbian"', 'name = "unit-norm"'))
    page = page_without_overlays(run)
    assert "and 5 images" not in page.text
    assert "5 images without masks had no part in this training" in page.text


@pytest.mark.parametrize("name", PARTS)
def test_without_a_part_the_page_names_it_and_shows_the_rest(run, name):
    (run / name).unlink()
    page = page_without_overlays(run)
    assert f"{name} is missing: {PARTS[name]}." in page.text
    assert len(page.headings) >= 5


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("content", [b"PK\x03\x04 {[\xff", b"{} ["])
def test_a_damaged_part_is_named(run, name, content):
    (run / name).write_bytes(content)
    (note,) = read_run(run).notes
    if name == "log.jsonl":
        assert note == "log.jsonl has 1 line(s) that cannot be read; they are left out."
    else:
        assert note.startswith(f"{name} cannot be read (")
        assert note.endswith(f"): {PARTS[name]}.")


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00v\x00{", b"PK\x03\x04"])
def test_cut_filters_are_named(run, content):
    (run / "filters.npy").write_bytes(content)
    assert "filters.npy cannot be read" in read_run(run).notes[0]


def test_json_of_another_kind_is_named(run):
    (run / "split.json").write_text("[1]")
    assert read_run(run).notes == (
        f"split.json cannot be read (it holds a list, not an object): {PARTS['split.json']}.",
    )


def test_half_a_line_in_the_log_of_a_killed_run_costs_only_that_line(run):
    before = len(read_run(run).log)
    with (run / "log.jsonl").open("a") as log:
        log.write('{"step": 1001, "lo')
    contents = read_run(run)
    assert len(contents.log) == before
    assert "1 line(s) that cannot be read" in contents.notes[0]


def test_without_the_data_folder_overlays_are_left_out_and_its_path_is_not_told(run):
    change(run, "data.json", root="/secret/patients")
    page = Page(write_report(run))
    assert page.pictures("Reference and") == []
    assert "The data folder is not where it was" in page.text
    assert "/secret" not in page.text


def test_an_image_that_changed_size_or_a_prediction_that_is_gone_is_named(run):
    scores = COLUMNS.from_csv((run / "metrics.csv").read_text())
    first, second = sorted(scores, key=lambda row: row.overlap.dice)[:2]
    write_images(run / "predictions", ["other"], (10, 12))
    (run / "predictions" / "masks" / "other.png").replace(run / "predictions" / f"{first.case}.png")
    (run / "predictions" / f"{second.case}.png").unlink()
    page = Page(write_report(run))
    assert f"No overlay of {first.case}: the prediction is (10, 12), but the image is now (48, 64)." in page.text
    assert f"No overlay of {second.case}: no prediction in the run folder." in page.text


def test_names_cannot_become_markup(run):
    evil = '<script>alert(1)</script>"><img src=x onerror=alert(1)>'
    (run / "metrics.csv").write_text((run / "metrics.csv").read_text().replace("slide 3", evil.replace('"', '""')))
    change(run, "data.json", name=evil, layout=evil, classes=["background", evil])
    change(run, "split.json", labelled=[evil], shared_groups=[evil], origin=evil)
    change(run, "budget.json", masks_seen=[evil], choices=[{"choice": evil, "made": evil, "split": evil, "cases": 1}])
    change(run, "env.json", command=evil, platform=evil)
    change(run, "network.json", name=evil)
    page = Page(write_report(run))
    assert "script" not in {tag for tag, _ in page.tags}
    assert all("onerror" not in attrs for _, attrs in page.tags)
    assert page.text.count("<script>alert(1)</script>") >= 8


def test_warnings_stand_above_the_pictures(run):
    change(run, "split.json", shared_groups=["patient-4"], groups_checked=16)
    change(run, "metrics.json", warnings=["Only 3 test cases."])
    page = Page(write_report(run))
    for warning in ("1 group (patients) are in training and in test: patient-4", "Only 3 test cases."):
        assert page.text.index(warning) < page.text.index("worst first")
    assert "1 shared group (checked 16)" in page.text


def test_a_network_no_better_than_trivial_is_called_so(run):
    overall = json.loads((run / "metrics.json").read_text())["overall"]
    change(run, "metrics.json", overall=overall | {"dice": overall["trivial_dice"]})
    assert "no better than the trivial prediction" in page_without_overlays(run).text


def test_volumes_with_several_classes_are_shown(tmp_path):
    write_volumes(tmp_path / "data", [f"scan {i}" for i in range(5)])
    run = build_run(tmp_path / "run", tmp_path / "data", ["scan 0", "scan 1"], ("background", "head", "body"))
    page = Page(write_report(run))
    assert "Not on this page" not in page.text
    assert len(page.pictures("Reference and")) == 2
    for part in ("mean over classes", "trivial", "Distances in mm", "the slice with the largest"):
        assert part in page.text


def test_empty_masks_are_counted_on_the_page(run):
    overall = json.loads((run / "metrics.json").read_text())["overall"]
    empty = overall | {"dice": None, "dice_ci": [None, None], "hd95": None, "n_both_empty": 37}
    change(run, "metrics.json", overall=empty, classes={"gland": empty})
    page = page_without_overlays(run)
    assert "37" in page.text
    assert "Dice – on 20 test images" in page.text
    assert not re.search(r"\bnan\b", page.text)


def test_the_same_run_gives_the_same_bytes(whole, run):
    assert write_report(run).read_bytes() == (whole / "report.html").read_bytes()


def test_a_pickle_among_the_arrays_is_never_run(run, tmp_path):
    class Payload:
        def __reduce__(self):
            return open, (str(tmp_path / "marker"), "w")

    np.save(run / "filters.npy", np.array([Payload()], dtype=object), allow_pickle=True)
    page = page_without_overlays(run)
    assert not (tmp_path / "marker").exists()
    assert "filters.npy cannot be read" in page.text


@pytest.mark.parametrize("make", [False, True])
def test_a_folder_that_is_no_run_is_refused(tmp_path, make):
    folder = tmp_path / "elsewhere"
    if make:
        folder.mkdir()
    with pytest.raises(InputError) as error:
        write_report(folder)
    for part in (str(folder), "without any file" if make else "no such folder", "nissl train", "--out"):
        assert part in str(error.value)
    assert not (folder / "report.html").exists()


def layer(change, dead=0):
    return {"name": "conv", "relative_change": change, "units": 10, "dead_units": dead}


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([layer(0.4), layer(0.2)], "has changed every layer. The 2 layers moved by 20 % to 40 % of their norm"),
        ([layer(0.001), layer(0.004)], "learned next to nothing"),
        ([layer(0.001), layer(0.4)], "learned in part"),
        ([layer(math.nan)], "failed"),
        ([layer(0.4, dead=7)], "7 of 10 units never respond. Most are missing in conv"),
        ([layer(0.4)], "All 10 units respond"),
        ([layer(0.4)], "only a comparison tells"),
    ],
)
def test_the_verdict_on_stage_1_is_plain(layers, words):
    assert words in verdict(layers)


def test_a_stage_1_that_has_a_loss_is_drawn_by_it_and_gets_no_verdict(run):
    stage = json.loads((run / "pretrain.json").read_text())
    points = [{"step": step, "loss": 1 / step, "terms": {"reconstruction": 1 / step}} for step in range(1, 31)]
    stage |= {"name": "vae", "rule": None, "layers": [], "curves": points}
    (run / "pretrain.json").write_text(json.dumps(stage))
    page = page_without_overlays(run)
    assert page.pictures("Loss of the pre-training") and not page.pictures("Relative change")
    assert "Did it learn anything?" not in page.text and "vae: 300 steps" in page.text
