import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.training.tiny import NET, TRAIN, write_files

from nissl.config import Config, DataConfig, SplitConfig
from nissl.data.discovery import find_cases
from nissl.data.split import Split, make_split
from nissl.errors import InputError
from nissl.runs.folder import read_json
from nissl.runs.format import load_config
from nissl.runs.provenance import changes, lock_run_folder, note_session, require_same, write_provenance

ROOT = Path(__file__).resolve().parents[2]
CONFIG = Config(
    data=DataConfig(label_map="0,1", sampling="resize", size=(16, 16)),
    split=SplitConfig(labels="2"),
    net=NET,
    train=TRAIN,
)


def contents(folder):
    """Every path below a folder, with the bytes of files."""
    return {path.relative_to(folder): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def refused(out, resume=False):
    with pytest.raises(InputError) as caught, lock_run_folder(out, resume):
        pytest.fail("the folder was given away")
    assert caught.value.where == str(out)
    return str(caught.value)


# Who may write where


@pytest.mark.parametrize("there", ["absent", "nested", "empty"])
def test_a_new_or_empty_folder_is_held_and_given_back(tmp_path, there):
    out = tmp_path / "a" / "b" if there == "nested" else tmp_path / "run"
    if there == "empty":
        out.mkdir()
    with lock_run_folder(out, resume=False):
        (out / "result").write_text("done")
    assert contents(out) == {Path("result"): b"done"}


def test_a_run_that_wrote_nothing_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), lock_run_folder(tmp_path / "a" / "b", resume=False):
        raise ZeroDivisionError
    assert contents(tmp_path) == {}
    (tmp_path / "mine").mkdir()
    with lock_run_folder(tmp_path / "mine", resume=False):
        pass
    assert contents(tmp_path) == {Path("mine"): None}


@pytest.mark.parametrize(
    "theirs",
    [{"notes.txt": b"mine"}, {".lock": b"mine", ".owner": b"mine"}, {"checkpoints/": b""}, {".a.tmp": b"mine"}],
)
def test_f11_a_folder_that_holds_something_is_refused_and_nothing_in_it_changes(tmp_path, theirs):
    for name, content in theirs.items():
        (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).write_bytes(content)
    before = contents(tmp_path)
    message = refused(tmp_path)
    for part in (
        "not empty",
        next(iter(theirs)).rstrip("/"),
        "a new or empty folder",
        "choose another --out",
        "--resume",
    ):
        assert part in message
    assert contents(tmp_path) == before


def test_many_files_are_not_all_listed(tmp_path):
    for name in "abcdef":
        (tmp_path / name).touch()
    assert "not empty: a, b, c, d …" in refused(tmp_path)


def test_a_file_in_place_of_the_folder_is_refused_and_kept(tmp_path):
    out = tmp_path / "run"
    out.write_bytes(b"mine")
    for resume in (False, True):
        message = refused(out, resume)
        for part in ("a file", "a folder for the run", "choose another --out"):
            assert part in message
    assert out.read_bytes() == b"mine"


def test_a_file_above_the_folder_is_refused_and_kept(tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    message = refused(tmp_path / "file" / "run")
    assert "cannot be written" in message and "a folder that can be written" in message
    assert contents(tmp_path) == {Path("file"): b"mine"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_f11_a_folder_that_cannot_be_written_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    try:
        assert "cannot be written" in refused(tmp_path / "run")
    finally:
        tmp_path.chmod(0o700)


HOLDER = """
import sys
from pathlib import Path
from nissl.runs.provenance import lock_run_folder

with lock_run_folder(Path(sys.argv[1]), resume=False):
    (Path(sys.argv[1]) / "config.toml").write_text("")
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds `tmp_path / "run"`."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_f11_a_folder_in_use_is_refused_with_the_process_that_uses_it(tmp_path, holder):
    out = tmp_path / "run"
    before = contents(out)
    for resume in (False, True):
        message = refused(out, resume)
        for part in (f"in use by another run (process {holder.pid} on ", "a folder of its own", "wait"):
            assert part in message
    assert contents(out) == before
    holder.communicate()  # ends it
    assert contents(out) == {Path("config.toml"): b""}
    with lock_run_folder(out, resume=True):
        pass


def test_a_killed_run_does_not_keep_its_folder(tmp_path, holder):
    holder.kill()
    holder.wait()
    with lock_run_folder(tmp_path / "run", resume=True):
        pass
    assert contents(tmp_path / "run") == {Path("config.toml"): b""}


def test_one_process_cannot_hold_a_folder_twice(tmp_path):
    with lock_run_folder(tmp_path / "run", resume=False):
        assert "in use" in refused(tmp_path / "run")
    with lock_run_folder(tmp_path / "run", resume=False):
        pass


def test_resume_without_a_run_is_refused(tmp_path):
    for out in (tmp_path / "absent", tmp_path):
        message = refused(out, resume=True)
        for part in ("no run to resume", "the folder of an interrupted run", "leave out --resume"):
            assert part in message
    assert contents(tmp_path) == {}


def test_f01_what_a_killed_run_was_writing_is_removed_when_it_goes_on(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    kept = ["config.toml", "checkpoints/state.safetensors", "checkpoints/previous.state.safetensors", "log.jsonl"]
    parts = [
        ".report.html.x1.tmp",
        "checkpoints/.state.safetensors.x2.tmp",
        "checkpoints/previous.state.safetensors.tmp",
    ]
    for name in kept + parts:
        (tmp_path / name).write_bytes(name.encode())
    with lock_run_folder(tmp_path, resume=True):
        assert {path.name for path in tmp_path.iterdir()} == {
            "checkpoints",
            "config.toml",
            "log.jsonl",
            ".nissl.lock",
            ".nissl.owner",
        }
    assert {name: content for name, content in contents(tmp_path).items() if content} == {
        Path(name): name.encode() for name in kept
    }


# What a run says of itself


PIXELS = {"background": 900, "foreground": 124}


@pytest.fixture
def data(tmp_path):
    """Five cases in images/ and masks/."""
    for file in write_files(tmp_path / "written"):
        for part, path in (("images", file.image), ("masks", file.target)):
            (tmp_path / "data" / part).mkdir(parents=True, exist_ok=True)
            path.rename(tmp_path / "data" / part / f"{file.id}.png")
    return tmp_path / "data"


def load(data, config=CONFIG):
    dataset = find_cases(data, config.data)
    return dataset, make_split(dataset.cases, config.split, config.seed)


@pytest.fixture
def run(tmp_path, data):
    (tmp_path / "run").mkdir()
    write_provenance(tmp_path / "run", CONFIG, *load(data), PIXELS)
    return tmp_path / "run"


def test_the_description_comes_back(run, data):
    dataset, split = load(data)
    assert load_config(run / "config.toml") == CONFIG
    assert Split.from_tree(read_json(run / "split.json")) == split
    budget = read_json(run / "budget.json")
    assert budget["masks_seen"] == list(split.labelled) and budget["class_pixels"] == PIXELS
    facts = read_json(run / "data.json")
    assert (facts["dims"], facts["channels"], len(facts["classes"])) == (2, 1, 2)
    assert [case["id"] for case in facts["cases"]] == [case.id for case in dataset.cases]
    assert read_json(run / "env.json")["exact"] is True


def test_only_files_that_the_training_opens_are_opened(run, data):
    _, split = load(data)
    for case in read_json(run / "data.json")["cases"]:
        for part, seen in (("image", case["id"] not in split.test), ("mask", case["id"] in split.labelled)):
            path = data / f"{part}s" / f"{case['id']}.png"
            assert case[f"{part}_sha256"] == (hashlib.sha256(path.read_bytes()).hexdigest() if seen else None)


def test_a_run_that_is_stopped_while_it_is_described_cannot_be_resumed(tmp_path, data, monkeypatch):
    monkeypatch.setattr("nissl.runs.provenance.file_hash", lambda *_: 1 / 0)
    (tmp_path / "run").mkdir()
    with pytest.raises(ZeroDivisionError):
        write_provenance(tmp_path / "run", CONFIG, *load(data), PIXELS)
    assert contents(tmp_path / "run") == {}


@pytest.mark.parametrize("written", [["network.json"], ["network.json", "split.json", "data.json", "env.json"]])
def test_a_run_that_is_stopped_while_it_describes_itself_can_be_started_again(tmp_path, written):
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), lock_run_folder(tmp_path / "run", resume=False):
            for name in written:
                (tmp_path / "run" / name).write_text("{}")
            raise KeyboardInterrupt
        assert not (tmp_path / "run").exists()


def test_f11_files_of_those_names_that_are_somebody_elses_are_kept(tmp_path):
    (tmp_path / "network.json").write_text("mine")
    assert "not empty: network.json" in refused(tmp_path)
    assert contents(tmp_path) == {Path("network.json"): b"mine"}


# Going on with other settings or data


def require_unchanged(out, config, dataset, split):
    require_same(out, changes(out, config, dataset, split, lambda config: config))


def test_the_same_settings_and_data_are_accepted_from_another_place_too(run, data, tmp_path):
    require_unchanged(run, CONFIG, *load(data))
    require_unchanged(run, load_config(run / "config.toml"), *load(data))
    shutil.copytree(data, tmp_path / "moved")
    require_unchanged(run, CONFIG, *load(tmp_path / "moved"))


def test_f08_changed_settings_are_listed_with_both_values(run, data):
    before = contents(run)
    train = dataclasses.replace(CONFIG.train, steps=30, learning_rate=0.5)
    with pytest.raises(InputError) as caught:
        require_unchanged(run, dataclasses.replace(CONFIG, seed=7, train=train), *load(data))
    for part in (
        str(run),
        "seed was 0, is 7",
        "train.steps was 20, is 30",
        "train.learning_rate was 0.01, is 0.5",
        "the settings and data that the run began with",
        "--allow-changed",
    ):
        assert part in str(caught.value)
    assert "train.batch" not in str(caught.value)
    assert contents(run) == before


def test_a_continued_run_is_exact_on_the_same_machine_and_with_the_same_settings_only(run, monkeypatch):
    note_session(run, CONFIG, ())
    assert read_json(run / "env.json")["exact"] is True
    note_session(run, CONFIG, ("seed was 0, is 7",))
    environment = read_json(run / "env.json")
    assert environment["exact"] is False
    assert [session["changed"] for session in environment["continued"]] == [[], ["seed was 0, is 7"]]
    note_session(run, CONFIG, ())
    assert read_json(run / "env.json")["exact"] is False  # what was lost does not come back


def test_f09_a_run_continued_under_another_torch_is_not_called_exact(run, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    note_session(run, CONFIG, ())
    monkeypatch.undo()
    environment = read_json(run / "env.json")
    assert environment["exact"] is False and environment["torch"] == torch.__version__
    assert environment["continued"][0]["torch"] == "9.9.9"


def test_c37_a_run_continued_under_another_nissl_is_not_called_exact(run, monkeypatch, capsys):
    began = read_json(run / "env.json")["nissl"]
    monkeypatch.setattr("nissl.runs.provenance.version", lambda name: "9.9.9")
    note_session(run, CONFIG, ())
    environment = read_json(run / "env.json")
    assert environment["exact"] is False and environment["nissl"] == began
    assert environment["continued"][0]["nissl"] == "9.9.9"
    assert began in (shown := capsys.readouterr().err) and "9.9.9" in shown and "warning" in shown


def test_a_run_continued_under_the_same_nissl_is_no_matter(run, capsys):
    note_session(run, CONFIG, ())
    assert read_json(run / "env.json")["exact"] is True and not capsys.readouterr().err


@pytest.mark.parametrize("program", ["/usr/bin/nissl", "C:/Scripts/nissl.exe", "/site-packages/nissl/__main__.py"])
def test_the_command_of_a_run_is_the_one_that_was_typed(tmp_path, data, monkeypatch, program):
    monkeypatch.setattr(sys, "argv", [program, "train", "my data", "--out", "run"])
    write_provenance(tmp_path, CONFIG, *load(data), PIXELS)
    assert read_json(tmp_path / "env.json")["command"] == "nissl train 'my data' --out run"


@pytest.mark.parametrize("program", ["/lib/ipykernel_launcher.py", "train_all.py", "-c", "", "/elsewhere/__main__.py"])
def test_the_command_of_a_run_from_python_is_one_that_works(tmp_path, data, monkeypatch, program):
    monkeypatch.setattr(sys, "argv", [program, "-f", "kernel.json"])
    write_provenance(tmp_path, CONFIG, *load(data), PIXELS)
    assert read_json(tmp_path / "env.json")["command"] == "nissl train DATA --out RUN --config config.toml"


def test_folders_are_stored_as_they_lie_from_the_data(tmp_path, data, monkeypatch):
    (data / "images").rename(data / "scans")
    (data / "masks").rename(tmp_path / "drawn")
    monkeypatch.chdir(tmp_path)
    for images, masks in ((data / "scans", tmp_path / "drawn"), ("scans", "drawn"), ("data/scans", "data/../drawn")):
        typed = dataclasses.replace(CONFIG.data, images=Path(images), masks=Path(masks))
        config = dataclasses.replace(CONFIG, data=typed)
        write_provenance(tmp_path, config, *load(data, config), PIXELS)
        stored = load_config(tmp_path / "config.toml").data
        assert (stored.images, stored.masks) == (Path("scans"), Path("../drawn"))
        assert not changes(tmp_path, config, *load(data, config), lambda config: config)


def labelled_and_test(data):
    _, split = load(data)
    return split.labelled[0], split.test[0]


@pytest.mark.parametrize("part", ["images", "masks"])
def test_f08_a_changed_file_is_found_by_its_content(run, data, part):
    name, _ = labelled_and_test(data)
    path = data / part / f"{name}.png"
    path.write_bytes(path.read_bytes() + b"\x00")
    with pytest.raises(InputError) as caught:
        require_unchanged(run, CONFIG, *load(data))
    for words in (str(run), f"1 cases of the data differ, such as {name}", "put it back"):
        assert words in str(caught.value)


def test_f08_an_added_case_is_found(run, data):
    name, _ = labelled_and_test(data)
    shutil.copy(data / "images" / f"{name}.png", data / "images" / "another.png")
    with pytest.raises(InputError, match="such as another"):
        require_unchanged(run, CONFIG, *load(data))


def test_f08_a_removed_case_is_found(run, data):
    _, name = labelled_and_test(data)
    dataset, split = load(data)
    fewer = dataclasses.replace(dataset, cases=tuple(case for case in dataset.cases if case.id != name))
    with pytest.raises(InputError, match=f"1 cases of the data differ, such as {name}"):
        require_unchanged(run, CONFIG, fewer, split)


def test_f08_another_split_of_the_same_files_is_found(run, data):
    dataset, split = load(data)
    moved = dataclasses.replace(split, test=split.unlabelled, unlabelled=split.test)
    with pytest.raises(InputError, match="cases of the data differ"):
        require_unchanged(run, CONFIG, dataset, moved)


def test_f08_other_names_of_the_classes_are_found(run, data):
    tree = read_json(run / "data.json") | {"classes": ["background", "gland"]}
    (run / "data.json").write_text(json.dumps(tree))
    with pytest.raises(InputError, match=r"classes were \['background', 'gland'\], are \['background'"):
        require_unchanged(run, CONFIG, *load(data))
