"""The page and the tables of a bench folder: all cells, nothing but the folder needed, and no text becomes markup."""

import json
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from tests.bench.grids import TINY, write_grid
from tests.bench.here import here, probed_here
from tests.tiny_data import write_tiny

from nissl import cli
from nissl.bench.page.page import report_bench
from nissl.bench.page.printed import PUBLISHED
from nissl.bench.page.text import PUBLISHED as WARNING_OF_TABLES
from nissl.bench.protocols.ciampi2024 import CHOSEN, WARNING
from nissl.bench.runner import bench
from nissl.errors import DataError, InputError

ROOT = Path(__file__).parents[3]
ARM = "HPCA | <b>folded</b>"
GRID = TINY.replace("HPCA, folded", ARM).replace('["1", "50%"]', '["1", "3"]')


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A bench whose data, grid file and weights are gone: what somebody sends to a colleague."""
    root = tmp_path_factory.mktemp("page")
    write_tiny(root / "tiny")
    path = write_grid(root, GRID)
    with here(probed_here(root)):
        made = bench(path, root / "out")
    assert made.page == root / "out" / "report.html" and not made.failed
    shutil.copytree(root / "out", root / "whole")
    shutil.rmtree(root / "tiny")
    path.unlink()
    for made in (root / "out" / "runs").rglob("checkpoints"):
        shutil.rmtree(made)
    return root


@pytest.fixture
def out(folder, tmp_path):
    return shutil.copytree(folder / "out", tmp_path / "out")


def tables(out):
    """Rows of every table of tables.md, by its heading, the head of the table first."""
    found, heading = {}, ""
    for line in (out / "tables.md").read_text().splitlines():
        heading = line.lstrip("# ") if line.startswith("#") else heading
        if line.startswith("| ") and not line.startswith("| ---"):
            texts = [text.strip().replace("\\|", "|") for text in re.split(r"(?<!\\)\|", line)[1:-1]]
            found.setdefault(heading, []).append(texts)
    return found


def page_rows(out):
    """The same of the page."""
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", (out / "report.html").read_text(), re.S)
    return [re.findall(r"<t[hd]>(.*?)</t[hd]>", row) for row in rows]


def test_the_page_is_the_same_without_data_grid_and_weights(folder, out, capsys):
    names = ("report.html", "tables.md")
    before = [(folder / "whole" / name).read_bytes() for name in names]
    for name in names:
        (out / name).unlink()
    assert cli.run(["report", str(out)]) == 0
    assert f"report: {out / 'report.html'}" in capsys.readouterr().out
    assert [(out / name).read_bytes() for name in names] == before


def test_a_packed_bench_gives_the_same_page_and_tables(out, tmp_path):
    """Also with a run that failed and one whose log a kill cut short; no folder of the machine is in the file."""
    (out / "runs/tiny/1/none-supervised/seed-0/log.jsonl").write_text('{"step"')
    shutil.rmtree(out / "runs/tiny/1/none-supervised/seed-1")
    report_bench(out)
    command = [sys.executable, ROOT / "benchmarks" / "pack.py", out, tmp_path / "packed.tar.xz"]
    subprocess.run(command, check=True, capture_output=True)
    with tarfile.open(tmp_path / "packed.tar.xz") as archive:
        archive.extractall(tmp_path / "there", filter="data")
    unpacked = tmp_path / "there" / "out"
    report_bench(unpacked)
    assert tables(unpacked) == tables(out) and page_rows(unpacked) == page_rows(out)
    assert not any(str(out.parent) in path.read_text() for path in unpacked.rglob("*") if path.is_file())
    assert subprocess.run(command, capture_output=True).returncode == 1


def test_a_bench_in_the_words_of_format_2_has_the_same_page(out):
    before = [(out / name).read_bytes() for name in ("report.html", "tables.md")]
    for path in (out / "results.csv", *out.rglob("metrics.*")):
        text = path.read_text().replace('"format": 3', '"format": 2')
        path.write_text(text.replace("false_positive", "false_alarm").replace("false positive", "false alarm"))
    assert "n_false_alarm" in (out / "results.csv").read_text()
    report_bench(out)
    assert [(out / name).read_bytes() for name in ("report.html", "tables.md")] == before


def test_page_and_markdown_have_the_same_tables_with_a_row_for_each_arm(out):
    found = tables(out)
    assert (
        list(found)
        == ["All tables together", "tiny, 1 (1 mask)", "tiny, 3 (3 masks)", "Cost of each arm", "How to read this"][:4]
    )
    together = found.pop("All tables together")
    assert [row[0] for row in together] == ["arm", "HPCA | &lt;b>folded&lt;/b>"]
    for name, rows in found.items():
        assert len({len(row) for row in rows}) == 1, name
        arms = [row[0] for row in rows[1:]]
        assert arms[:2] == ["none + supervised (baseline)", "HPCA | &lt;b>folded&lt;/b>"]
        assert (arms[2:] == ["foreground everywhere"]) == (name != "Cost of each arm")
    shown = [[text.replace("&gt;", ">") for text in row] for row in page_rows(out)]
    assert all(row in shown for rows in (together, *found.values()) for row in rows)


def test_the_numbers_are_those_of_the_runs(out):
    head, baseline, arm, trivial = tables(out)["tiny, 3 (3 masks)"]
    overall = [
        [json.loads(path.read_text())["overall"] for path in sorted((out / "runs/tiny/3" / name).rglob("metrics.json"))]
        for name in ("none-supervised", "hpca-b-folded-b")
    ]
    for row, runs in zip((baseline, arm), overall, strict=True):
        assert len(runs) == 2
        assert float(row[head.index("Dice, %")]) == pytest.approx(50 * sum(r["dice"] for r in runs), abs=0.051)
        assert float(row[head.index("HD95, px")]) == pytest.approx(sum(r["hd95"] for r in runs) / 2, abs=0.051)
        assert float(trivial[3]) == pytest.approx(100 * runs[0]["trivial_dice"], abs=0.051)
    gain = sum(a["dice"] - b["dice"] for a, b in zip(*reversed(overall), strict=True)) / 2
    shown = arm[head.index("difference, percentage points")]
    assert float(shown.replace("−", "-")) == pytest.approx(100 * gain, abs=0.051)
    other = tables(out)["tiny, 1 (1 mask)"][2][head.index("difference, percentage points")]
    assert tables(out)["All tables together"][1][1:3] == [other, shown]
    costs = tables(out)["Cost of each arm"]
    assert [row[1:5] for row in costs[1:]] == [["0", "0", "3", "6"], ["2", "4", "3", "6"]]
    assert costs[1][6] == "1.00×" and float(costs[2][6].rstrip("×")) > 1


def test_the_page_loads_nothing_and_no_name_becomes_markup(out):
    page = (out / "report.html").read_text()
    assert "<b>folded" not in page and "&lt;b&gt;folded" in page
    assert not re.search(r"(src|href)=\"(?!data:)", page) and "<script" not in page
    assert "default-src 'none'" in page
    assert "<b>" not in (out / "tables.md").read_text()


def test_failed_missing_and_damaged_cells_are_shown_with_their_reason(out):
    one, two, three = (
        out / "runs/tiny/1" / place
        for place in ("none-supervised/seed-0", "none-supervised/seed-1", "hpca-b-folded-b/seed-0")
    )
    shutil.rmtree(one)
    (two / "metrics.json").unlink()
    (two / "failed.json").write_text(json.dumps({"message": "found: <i>no memory</i>", "date": ""}))
    (three / "metrics.csv").unlink()
    report_bench(out)
    rows = tables(out)["tiny, 1 (1 mask)"]
    assert [row[1] for row in rows[1:3]] == ["0 of 2; 1 failed, 1 missing", "1 of 2; 1 failed"]
    text, page = (out / "tables.md").read_text(), (out / "report.html").read_text()
    assert "5 of 8 runs done, 2 failed, 1 missing" in text
    assert "3 of 4 runs have no result (2 failed, 1 missing)" in text
    assert "&lt;i&gt;no memory" in page
    assert ["runs/tiny/1/none-supervised/seed-1", "found: &lt;i>no memory&lt;/i>"] in tables(out)["Failed runs"]
    assert re.search(r"Not compared, [^:]*: HPCA", text)


def test_a_log_that_ends_too_early_or_in_half_a_line_is_no_finished_run(out):
    runs = sorted((out / "runs/tiny/1/none-supervised").iterdir())
    lines = (runs[0] / "log.jsonl").read_text().splitlines(keepends=True)
    (runs[0] / "log.jsonl").write_text("".join(lines[:-1]) + lines[-1][:20])
    (runs[1] / "log.jsonl").write_text("")
    report_bench(out)
    assert tables(out)["tiny, 1 (1 mask)"][1][1] == "0 of 2; 2 missing"


def test_a_run_by_the_published_protocol_is_marked(out):
    parity = {"pooled_dice": 0.98765, "jaccard": 0.9, "threshold": 0.35, "step": 2}
    (out / "runs/tiny/3/none-supervised/seed-0/parity.json").write_text(json.dumps(parity))
    report_bench(out)
    head, baseline, arm, _ = tables(out)["tiny, 3 (3 masks)"]
    column = head.index(PUBLISHED)
    assert (baseline[column], arm[column]) == ("98.8", "–")
    for name in ("tables.md", "report.html"):  # at all tables together, at that table and at the costs
        assert (out / name).read_text().count(WARNING_OF_TABLES.text) == 3, name
    assert "published" not in " ".join(tables(out)["tiny, 1 (1 mask)"][0])


@pytest.mark.parametrize("with_codes", [True, False], ids=["codes", "written before there were codes"])
def test_what_the_published_protocol_gives_a_run_is_not_told_of_all(out, with_codes):
    for seed in (0, 1):
        metrics = out / f"runs/tiny/3/none-supervised/seed-{seed}/metrics.json"
        own = f"{CHOSEN}, at the network's resolution: 0.8{seed}"
        told = {"warnings": [WARNING, own, "the settings differ in net.widths"]}
        if with_codes:
            told["warning_codes"] = ["published-protocol", "published-number", "published-settings"]
        known = {key: value for key, value in json.loads(metrics.read_text()).items() if key != "warning_codes"}
        metrics.write_text(json.dumps(known | told))
    report_bench(out)
    text = (out / "tables.md").read_text()
    assert text.count("the settings differ in net.widths") == 1 and CHOSEN not in text


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("results.csv", None, InputError),
        ("results.csv", "data,budget\na,b\n", DataError),
        ("cells.json", "{}", DataError),
        ("cells.json", "{", DataError),
    ],
)
def test_a_bench_without_its_list_of_cells_is_refused(out, name, text, kind):
    before = (out / "report.html").read_bytes()
    (out / name).unlink() if text is None else (out / name).write_text(text)
    with pytest.raises(kind, match=name.replace(".", r"\.")):
        report_bench(out)
    assert (out / "report.html").read_bytes() == before


def test_results_csv_keeps_its_columns(out):
    """Other programs read them, and tables of results hold them: see any CSV file of docs/results/few-labels."""
    old = (ROOT / "docs/results/few-labels/augment-others.csv").read_text().splitlines()[0]
    now = old.replace("n_false_alarm", "n_false_positive")
    assert (out / "results.csv").read_text().splitlines()[0] == now
