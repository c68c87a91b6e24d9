"""Leaks between training and test: each is refused or said, and the training opens nothing of a test case."""

import io
import json
import shutil
from pathlib import Path
from time import process_time

import numpy as np
import pytest
from PIL import Image
from tests.shared import shared
from tests.tiny_data import FLAGS, opened_files, pretrained, tiny_config, write_tiny

from nissl import api, cli, errors
from nissl.config import DataConfig, SplitConfig
from nissl.data.batches import Store
from nissl.data.cases import CaseFile, load_case, read_image
from nissl.data.discovery import find_cases
from nissl.data.duplicates import NEAR, small_picture
from nissl.data.preprocessing import resize_image, resolve
from nissl.data.split import lock_test_cases, make_split
from nissl.errors import InputError
from nissl.imageio.formats import read_raster, write_image, write_mask
from nissl.methods import METHODS
from nissl.pretrain import PRETRAININGS
from nissl.runs.checkpoint import load_checkpoint
from nissl.runs.folder import WEIGHTS
from nissl.training.stages import chosen

TEST = ("field002", "field005")


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("sound") / "data")


@pytest.fixture
def data(sound, tmp_path):
    """A copy that a test may change; field002 and field005 are for testing, field007 has no mask."""
    return shutil.copytree(sound, tmp_path / "data")


def command(*arguments):
    return cli.run([str(argument) for argument in arguments])


def train(data, out, *flags):
    return command("train", data, "--out", out, *FLAGS, *flags)


def read(path):
    return json.loads(path.read_text())


def table(data, **columns):
    """Write cases.csv: group and split of each case by its number, or nothing."""
    names = sorted(path.stem for path in (data / "images").iterdir())
    rows = [",".join(["id", *columns])]
    rows += [",".join([name, *(str(column(n)) for column in columns.values())]) for n, name in enumerate(names)]
    (data / "cases.csv").write_text("\n".join(rows) + "\n")
    return data


# Patients on both sides


def test_f30_a_random_split_is_by_group_and_the_page_says_what_was_checked(data, tmp_path, capsys):
    table(data, group=lambda n: f"patient-{n // 2}")
    assert train(data, tmp_path / "run") == 0 and command("report", tmp_path / "run") == 0
    split = read(tmp_path / "run" / "split.json")
    groups = {case["id"]: case["group"] for case in read(tmp_path / "run" / "data.json")["cases"]}
    train_side = {groups[id_] for id_ in (*split["labelled"], *split["unlabelled"])}
    assert not train_side & {groups[id_] for id_ in split["test"]}
    assert "0 shared groups (checked 4)" in (tmp_path / "run" / "report.html").read_text()


def test_f30_shared_patients_are_an_error_of_check_and_of_train_that_names_them(data, tmp_path, capsys):
    table(data, group=lambda n: f"p{n % 5}", split=lambda n: "test" if n in (2, 5) else "train")
    assert command("check", data) == 3
    shown = capsys.readouterr().out
    assert "error: " in shown and "2 of 5 groups both in training and in test: p0, p2" in shown
    assert "--allow-shared-groups" in shown
    assert train(data, tmp_path / "run") == 2
    assert "2 of 5 groups both in training and in test: p0, p2" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_f30_accepted_shared_patients_stay_on_the_page(data, tmp_path, capsys):
    table(data, group=lambda n: f"p{n % 5}", split=lambda n: "test" if n in (2, 5) else "train")
    assert command("check", data, "--allow-shared-groups") == 0
    assert "warning: " in capsys.readouterr().out
    run, said = tmp_path / "run", "2 groups (patients) are in training and in test: p0, p2"
    assert train(data, run, "--allow-shared-groups") == 0 and command("report", run) == 0
    page = (run / "report.html").read_text()
    assert said in page and "2 shared groups (checked 5)" in page
    assert command("evaluate", run) == 0 and f"warning: {said}" in capsys.readouterr().out


def test_f30_the_page_of_several_seeds_says_it_too(data, tmp_path):
    table(data, group=lambda n: f"p{n % 5}", split=lambda n: "test" if n in (2, 5) else "train")
    out = tmp_path / "two"
    assert train(data, out, "--allow-shared-groups", "--seeds", "2") == 0
    assert command("evaluate", out) == 0 and command("report", out) == 0
    said = "2 groups (patients) are in training and in test: p0, p2"
    assert (out / "report.html").read_text().count(said) == 1


def case(id_, mask=True, group=None, split=None):
    return CaseFile(id_, Path(f"images/{id_}.png"), Path(f"masks/{id_}.png") if mask else None, group, split)


def test_f30_up_to_thirty_shared_patients_are_listed():
    cases = [case(f"{side}{n:02}", group=f"p{n:02}", split=side) for n in range(32) for side in ("train", "test")]
    with pytest.raises(InputError) as caught:
        make_split(cases, SplitConfig(), 0)
    assert "p00, p01" in caught.value.found and "p29 and 2 more" in caught.value.found


def test_f30_the_official_split_of_glas_shares_patients_and_needs_the_flag(tmp_path, capsys):
    root = shared("glas")
    assert command("check", root, "--data.label-map", "binary") == 3
    assert "11 of 16 groups" in capsys.readouterr().out
    assert command("check", root, "--data.label-map", "binary", "--allow-shared-groups") == 0
    assert train(root, tmp_path / "run", "--label-map", "binary") == 2
    said = capsys.readouterr().err
    assert "patient-1, " in said and "--allow-shared-groups" in said
    cases = find_cases(root, DataConfig(label_map="binary")).cases
    split = make_split(cases, SplitConfig(labels="10%", allow_shared_groups=True), 0)
    assert (len(split.labelled), len(split.unlabelled), len(split.test)) == (9, 76, 80)
    both = {c.group for c in cases if c.split == "train"} & {c.group for c in cases if c.split == "test"}
    assert set(split.shared_groups) == both and len(both) == 11


# The same image under two names


def copy_case(data, source, target, change=lambda pixels: pixels):
    """Put a case in the place of another, its image changed."""
    pixels = read_raster(data / "images" / f"{source}.png").pixels
    write_image(data / "images" / f"{target}.png", change(pixels))
    if (data / "masks" / f"{target}.png").exists():
        shutil.copy(data / "masks" / f"{source}.png", data / "masks" / f"{target}.png")


def test_f31_an_exact_copy_across_the_split_is_an_error_in_any_format(data, capsys):
    copy_case(data, "field000", "field002")
    with Image.open(data / "images" / "field002.png") as picture:
        picture.save(data / "images" / "field002.bmp")  # other bytes, the same pixels
    (data / "images" / "field002.png").unlink()
    assert command("check", data) == 3
    shown = capsys.readouterr().out
    assert "the same pixels in field000.png, field002.bmp" in shown and "error: " in shown
    assert command("check", data, "--allow-shared-images") == 0
    assert "no fault, 1 warnings" in capsys.readouterr().out


def test_f31_copies_on_one_side_are_a_warning(data, capsys):
    copy_case(data, "field000", "field001")
    assert command("check", data) == 0
    assert "warning: " in (shown := capsys.readouterr().out) and "the same pixels in field000.png" in shown


@pytest.mark.parametrize(("group", "code"), [(lambda n: f"p{n}", 3), (lambda n: f"p{n // 2}", 0)])
def test_f31_copies_that_a_random_split_may_part_are_an_error_and_one_group_keeps_them_together(data, group, code):
    copy_case(data, "field000", "field001")
    assert command("check", table(data, group=group)) == code


def test_f31_an_image_that_cannot_be_tested_is_no_leak(data):
    """field007 has no mask: on the test side it has no part in the run."""
    copy_case(data, "field006", "field007")
    assert command("check", table(data, split=lambda n: "test" if n in (2, 5, 7) else "train")) == 0


def jpeg(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels[0]).save(buffer, "JPEG", quality=85)
    return np.asarray(Image.open(buffer))[None]


CHANGES = {
    "jpeg": jpeg,
    "resized": lambda pixels: resize_image(pixels, [24, 24]).round().astype(np.uint8),
    "brighter": lambda pixels: (pixels * 0.9 + 20).astype(np.uint8),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("target", "warnings"), [("field002", 1), ("field001", 0)])
def test_f31_a_near_copy_across_the_split_is_a_warning_and_on_one_side_none(data, capsys, change, target, warnings):
    copy_case(data, "field000", target, CHANGES[change])
    if change == "resized":
        write_mask(data / "masks" / f"{target}.png", np.ones((24, 24), np.uint8))
    assert command("check", data) == 0
    shown = capsys.readouterr().out
    assert f"no fault, {warnings} warnings" in shown
    assert (f"{target}.png\n    found: it looks the same as field000.png (correlation" in shown) == bool(warnings)


def as_jpeg(pixels, quality):
    """Save and read again, a volume slice by slice."""
    slices = [pixels] if pixels.ndim == 3 else [pixels[..., n] for n in range(pixels.shape[-1])]
    read_back = []
    for part in slices:
        buffer = io.BytesIO()
        Image.fromarray(np.moveaxis(part.astype(np.uint8), 0, -1).squeeze()).save(buffer, "JPEG", quality=quality)
        read_back.append(np.moveaxis(np.atleast_3d(np.asarray(Image.open(buffer))), -1, 0))
    return read_back[0] if pixels.ndim == 3 else np.stack(read_back, axis=-1)


def copies_of(pixels, rng):
    """Changed copies of an image whose values are from 0 to 255, by name."""
    yield "JPEG 90", as_jpeg(pixels, 90)
    yield "JPEG 50", as_jpeg(pixels, 50)
    yield "half size", resize_image(pixels, [size // 2 for size in pixels.shape[1:]])
    yield "brighter, clipped", np.clip(pixels * 1.1 + 5, 0, 255)
    yield "other contrast", 255 * (pixels / 255) ** 1.2
    yield "noise", pixels + rng.normal(0, 8, pixels.shape)


@pytest.mark.parametrize("name", ["glas", "dsb2018", "hippocampus"])
def test_f31_no_two_images_of_real_sets_count_as_copies_and_every_changed_copy_does(name):
    rng = np.random.default_rng(0)
    cases = find_cases(shared(name), DataConfig(label_map="binary")).cases
    images = [read_image(file.image, DataConfig()).pixels.astype(float) for file in cases]
    pictures = np.stack([small_picture(pixels) for pixels in images])
    alike = (pictures @ pictures.T)[np.triu_indices(len(pictures), 1)]
    lowest = {}
    for pixels, picture in zip(images, pictures):
        for kind, changed in copies_of((pixels - pixels.min()) / np.ptp(pixels) * 255, rng):
            lowest[kind] = min(lowest.get(kind, 1.0), float(small_picture(changed) @ picture))
    print(name, len(alike), "pairs, highest", alike.max(), "copies, lowest", lowest)
    assert alike.max() < NEAR and min(lowest.values()) > NEAR


def test_f31_a_thousand_images_are_checked_in_seconds(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for n in range(1000):
        Image.fromarray(rng.integers(0, 255, (64, 64), dtype=np.uint8)).save(tmp_path / "images" / f"{n:04}.png")
    start = process_time()
    api.check(tmp_path)
    assert process_time() - start < 10


def test_f31_evaluate_refuses_test_images_that_are_training_images_and_the_flag_is_in_the_results(
    data, tmp_path, capsys
):
    shutil.copy(data / "images" / "field000.png", data / "images" / "field002.png")
    run = tmp_path / "run"
    assert train(data, run) == 0 and command("evaluate", run) == 2
    said = "1 of 2 test images are training images under another name: field002 = field000"
    shown = capsys.readouterr().err
    assert said in shown and "--allow-shared-images" in shown and not (run / "metrics.json").exists()
    assert command("evaluate", run, "--allow-shared-images") == 0 and command("report", run) == 0
    assert said in capsys.readouterr().out and said in "".join(read(run / "metrics.json")["warnings"])
    assert said in (run / "report.html").read_text()


# Nothing of a test case is opened before the measurement

ROUTES = [(method, "none") for method in METHODS] + [("supervised", pretrain) for pretrain in PRETRAININGS]


@pytest.mark.parametrize(("method", "pretrain"), ROUTES)
def test_f32_training_opens_no_test_file_and_no_mask_beyond_the_budget(data, tmp_path, method, pretrain):
    """Not even a header; `report` before the measurement, which asks no method, opens none either."""
    table(data, split=lambda n: "test" if n in (0, 5) else "train")
    with opened_files() as opened:
        assert train(data, tmp_path / "run", "--method", method, *pretrained(pretrain)) == 0
        assert method != "supervised" or command("report", tmp_path / "run") == 0
    split = read(tmp_path / "run" / "split.json")
    assert split["test"] == ["field000", "field005"]
    images = {path.stem for path in opened if path.parent == data / "images"}
    masks = {path.stem for path in opened if path.parent == data / "masks"}
    assert images == {*split["labelled"], *split["unlabelled"]}
    assert masks == set(split["labelled"])


def sealed(data, **settings):
    dataset = find_cases(data, DataConfig())
    split = make_split(dataset.cases, SplitConfig(labels="2", **settings), 0)
    return lock_test_cases(dataset, split), split


def test_f32_whatever_asks_for_a_test_case_gets_the_lock_and_no_file_is_opened(data):
    dataset, split = sealed(data)
    assert split.test == TEST
    config = resolve(DataConfig(size=(32,)), 2)
    with opened_files() as opened:
        for id_ in TEST:
            with pytest.raises(errors.TestSplitLocked) as caught:
                chosen(dataset, ["field000", id_])
            assert caught.value.where == id_ and "nissl evaluate" in caught.value.expected
            (file,) = (file for file in dataset.cases if file.id == id_)
            with pytest.raises(errors.TestSplitLocked):
                load_case(file, dataset.label_map)
            for with_masks in (False, True):
                with pytest.raises(errors.TestSplitLocked):
                    Store([file], dataset.label_map, config, with_masks=with_masks)[0]
    assert not [path for path in opened if path.is_relative_to(data)]


def test_f32_the_training_is_given_the_locked_cases(data, tmp_path, monkeypatch):
    """A pre-training that looks for test cases in the data it was given finds them locked."""
    met = []

    class Curious(PRETRAININGS["warm"]):
        def finish(self, serve):
            store = serve.__self__.stream._samples[0].store
            met.extend(file.id for file in store.files)
            assert not any(file.target or file.locked for file in store.files)
            return super().finish(serve)

    monkeypatch.setitem(PRETRAININGS, "warm", Curious)
    api.train(data, tmp_path / "run", tiny_config(pretrain="warm"))
    assert met and not set(met) & set(TEST)


def test_f32_masks_beyond_the_budget_have_no_path(data):
    dataset, split = sealed(data)
    assert {file.id for file in dataset.cases if file.target and not file.locked} == set(split.labelled)


# Nothing is chosen on the test split


@pytest.mark.parametrize("flags", [("--threshold", "0.4"), ("--temperature", "2"), ("--choose-on", "test")])
@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_f33_there_is_no_flag_to_choose_by(data, tmp_path, verb, flags, capsys):
    arguments = [data, "--out", tmp_path / "run"] if verb == "train" else [data]
    with pytest.raises(SystemExit) as leaving:
        command(verb, *arguments, *flags)
    assert leaving.value.code == 2 and flags[0] in "".join(capsys.readouterr())


def test_f33_a_test_mask_in_the_budget_is_refused(data, tmp_path, capsys):
    assert train(data, tmp_path / "run", "--labels", "field000,field002") == 2
    assert "`field002`, a test case" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_f33_the_page_states_split_and_number_of_cases_of_every_choice(data, tmp_path):
    run = tmp_path / "run"
    assert train(data, run) == 0 and command("evaluate", run) == 0 and command("report", run) == 0
    choices = read(run / "budget.json")["choices"]
    assert {choice["choice"] for choice in choices} == {"checkpoint", "length", "threshold", "settings"}
    assert all(choice["split"] is None and not choice["cases"] for choice in choices)
    page = (run / "report.html").read_text()
    assert "Choices made on cases: none." in page
    for choice in choices:
        cases = "not known" if choice["cases"] is None else "0"
        assert f"<td>{choice['choice']}</td><td>{choice['made']}</td><td>none</td><td>{cases}</td>" in page


# Test images among the unlabelled


def test_f34_unlabelled_images_of_a_test_group_count_as_shared():
    cases = [case("a", split="train"), case("b", group="p", split="test"), case("c", mask=False, group="p")]
    with pytest.raises(InputError) as caught:
        make_split(cases, SplitConfig(), 0)
    assert "p" in caught.value.found.split(": ")[1]


def test_f34_test_images_are_in_the_pool_by_the_flag_alone_and_their_masks_never(data, tmp_path):
    for flags, pool in (((), set()), (("--split.transductive",), set(TEST))):
        run = tmp_path / f"run{len(flags)}"
        with opened_files() as opened:
            assert train(data, run, *pretrained(), *flags) == 0
        split = read(run / "split.json")
        images = {path.stem for path in opened if path.parent == data / "images"}
        masks = {path.stem for path in opened if path.parent == data / "masks"}
        assert images & set(TEST) == pool and masks == set(split["labelled"])
        assert set(split["unlabelled"]) & set(TEST) == pool and split["test"] == list(TEST)
        assert read(run / "budget.json")["test_images_in_pool"] == len(pool)
        assert command("evaluate", run) == 0 and command("report", run) == 0
        page = (run / "report.html").read_text()
        said = "2 images of the test side were among the unlabelled ones, without masks (transductive)"
        assert (said in page) == (said in "".join(read(run / "metrics.json")["warnings"])) == bool(pool)
        assert page.count(said) <= 1


# Normalisation


def test_f35_changing_test_pixels_changes_nothing_in_training(sound, data, tmp_path):
    for name in TEST:
        write_image(data / "images" / f"{name}.png", np.full((1, 32, 32), 7, np.uint8))
    runs = [api.train(root, tmp_path / f"run{n}", tiny_config()) for n, root in enumerate((sound, data))]
    hashes = {load_checkpoint(run / WEIGHTS)[1]["sha256"] for run in runs}
    assert len(hashes) == 1


# A class that the budget does not show


def with_classes(data, in_training):
    """Give the upper half of each mask class 2: of all masks, or of test masks only."""
    for path in (data / "masks").iterdir():
        mask = read_raster(path).pixels[0]
        if in_training or path.stem in TEST:
            mask[:16] *= 2
        write_mask(path, mask)
    return data


CLASSES = ("--label-map", "0=background,1=low,2=high")


def test_f23_a_class_of_the_test_masks_alone_is_warned_of_and_called_not_trained(data, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(with_classes(data, in_training=False), run, *CLASSES) == 0
    assert "warning: class `high` is absent from all 2 masks of the budget: not trained" in capsys.readouterr().err
    pixels = read(run / "budget.json")["class_pixels"]
    assert pixels["high"] == 0 and pixels["low"] > 0 and sum(pixels.values()) == 2 * 32 * 32
    assert command("evaluate", run) == 0 and command("report", run) == 0
    metrics = read(run / "metrics.json")
    assert metrics["not_trained"] == ["high"] and metrics["classes"]["high"]["n_cases"] == 2
    shown = capsys.readouterr().out
    assert "`high` was not trained" in shown
    page = (run / "report.html").read_text()
    assert "<td>high (not trained)</td>" in page and "<td>low</td>" in page and "`high` was not trained" in page


def test_f23_classes_that_are_there_are_not_warned_of(data, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(with_classes(data, in_training=True), run, *CLASSES) == 0 and command("evaluate", run) == 0
    shown = capsys.readouterr()
    assert "not trained" not in shown.out + shown.err and read(run / "metrics.json")["not_trained"] == []


def test_f23_a_budget_of_empty_masks_is_refused_before_the_run_starts(data, tmp_path, capsys):
    for path in (data / "masks").iterdir():
        write_mask(path, np.zeros((32, 32), np.uint8))
    assert train(data, tmp_path / "run") == 3
    assert "no foreground in all 2 masks of the budget" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
