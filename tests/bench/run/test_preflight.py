"""Data that a bench refuses before anything runs."""

import json

import pytest
from tests.bench.grids import TINY, command, hashes, rows, write_grid
from tests.bench.here import here
from tests.tiny_data import write_tiny

ONE = TINY[: TINY.rindex("[[arms]]")].replace('["1", "50%"]', '["1"]')
"""Two cells of one arm."""
GROWN = ONE.replace("seeds = 2", "seeds = 3")


def test_test_images_that_are_training_images_are_refused_before_anything_runs(tmp_path, capsys):
    first, *others = sorted((write_tiny(tmp_path / "tiny") / "images").iterdir())
    for copy in others:
        copy.write_bytes(first.read_bytes())
    assert command("bench", write_grid(tmp_path), "--out", tmp_path / "out") == 2
    shown = capsys.readouterr().err
    assert "data set tiny" in shown and "training images under another name" in shown
    assert not (tmp_path / "out" / "runs").exists() and not (tmp_path / "out" / "cost.json").exists()


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("data = { size = [32] }", "data = { size = [31] }", ("size (31, 31)", "--size 32")),
        ('method = "supervised"', 'method = "dtc"', ("VNet", "encoder, decoder and head")),
        ('pretrain = "none"', 'pretrain = "vae"', ("VNet", "encoder, decoder and head")),
        ("[settings]", '[settings]\ndevice = "cuda:77"', ("device", "cuda:77")),
    ],
)
def test_an_arm_that_cannot_work_is_refused_before_anything_runs(tmp_path, capsys, before, after, told):
    write_tiny(tmp_path / "tiny")
    foreign = ONE.replace("[4, 8]", "[16, 32]").replace("net = { ", 'net = { name = "vnet", ')
    text = (foreign if "VNet" in told else ONE).replace(before, after)
    assert text != ONE and command("bench", write_grid(tmp_path, text), "--out", tmp_path / "out") == 2
    shown = capsys.readouterr().err
    assert "arm " in shown and "on data set tiny" in shown and all(part in shown for part in told), shown
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".nissl.lock"]  # another grid may take its place
    with here():
        assert command("bench", write_grid(tmp_path, ONE), "--out", tmp_path / "out") == 0


def test_the_published_protocol_is_refused_where_it_does_not_apply(tmp_path, capsys):
    write_tiny(tmp_path / "tiny", dims=3)
    text = ONE.replace("[settings]", '[settings]\nprotocol = "parity"').replace("data = { size = [32] }\n", "")
    assert command("bench", write_grid(tmp_path, text), "--out", tmp_path / "out") == 2
    assert "3-D images" in capsys.readouterr().err


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    folder = tmp_path_factory.mktemp("begun")
    write_tiny(folder / "tiny")
    with here():
        assert command("bench", write_grid(folder, ONE), "--out", folder / "out") == 0
    return folder


def seen(folder):
    """A case whose mask the first cell has learnt from."""
    return json.loads((folder / "out/runs/tiny/1/none-supervised/seed-0/split.json").read_text())["labelled"][0]


@pytest.mark.parametrize("what", ["mask", "image", "mask gone", "new image"])
def test_a_bench_does_not_go_on_with_other_data(begun, capsys, what):
    data, case = begun / "tiny", seen(begun)
    folder = "masks" if "mask" in what else "images"
    path = next((data / folder).glob(f"{case}.*"))
    whole, other = path.read_bytes(), next((data / folder).glob("field004.*"))
    table, before = (data / "cases.csv").read_text(), hashes(begun / "out")
    added = path.with_name(f"new{path.suffix}")
    try:
        if what == "mask gone":
            path.unlink()
        elif what == "new image":
            added.write_bytes(whole[:-1] + b"\0")
            (data / "cases.csv").write_text(f"{table}new,slide9,train\n")
        else:
            path.write_bytes(other.read_bytes())
        assert command("bench", write_grid(begun, GROWN), "--out", begun / "out") == 2
        shown = capsys.readouterr().err
        assert "data set tiny" in shown and ("new" if what == "new image" else case) in shown
        assert "seed-0 began" in shown and "another --out" in shown and "--allow-changed" not in shown
        assert hashes(begun / "out") == before
    finally:
        path.write_bytes(whole)
        added.unlink(missing_ok=True)
        (data / "cases.csv").write_text(table)


def test_it_goes_on_with_the_same_data_and_where_it_has_nothing_to_do(begun):
    (begun / "tiny" / "images" / "notes.txt").write_text("not an image")
    with here():
        assert command("bench", write_grid(begun, GROWN), "--out", begun / "out") == 0
    assert [row["status"] for row in rows(begun / "out")] == ["done"] * 3
