"""Benches that are kept in docs/results as archives, made by older versions: they are read as they were measured."""

import csv
import tarfile
from pathlib import Path

import pytest

from nissl.bench.page.page import report_bench
from nissl.bench.run.results import read_results, stored_cells
from nissl.metrics.metric import SEGMENTATION

RESULTS = Path(__file__).parents[3] / "docs" / "results" / "few-labels"


@pytest.mark.parametrize(("archive", "table"), [("full", "full-10"), ("full-20", "full-20"), ("parity", "parity")])
def test_an_archive_has_the_numbers_of_the_table_beside_it(tmp_path, archive, table):
    with tarfile.open(RESULTS / f"{archive}.tar.xz") as packed:
        packed.extractall(tmp_path, filter="data")
    (out,) = (path.parent for path in tmp_path.rglob("cells.json"))
    with (RESULTS / f"{table}.csv").open(newline="") as file:
        rows = {(row["arm"], int(row["seed"])): row for row in csv.DictReader(file)}
    found = {(one.arm, one.seed): one for one in read_results(out, stored_cells(out))}
    assert rows.keys() <= found.keys()
    for key, row in rows.items():
        assert (found[key].status, row["status"]) == ("done", "done"), found[key].message
        for metric in (metric for metric in SEGMENTATION if not metric.detail):
            assert found[key].scores[metric] == float(row[metric.name])
        assert found[key].tested.n_false_positive == int(row["n_false_alarm"])
    page = report_bench(out).read_text()
    assert "Failed runs" not in page
