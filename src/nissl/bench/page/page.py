"""The page and the tables of a bench: DIR/report.html and DIR/tables.md, from what its folder holds.

Results become numbers (`nissl.bench.analysis`), these become text, tables and pictures, and these fill two templates.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nissl.bench.analysis.overview import Gain, gains_of
from nissl.bench.analysis.tables import Table, tables_of
from nissl.bench.grid.grid import Cell
from nissl.bench.page import text
from nissl.bench.page.pictures import Picture, dataset_pictures, overview_picture
from nissl.bench.page.printed import PrintedRow, PrintedTable, cost_table, overview_table, results_table
from nissl.bench.run.cost import read_costs
from nissl.bench.run.results import Result, caveats_of, read_results, rows_of, stored_cells
from nissl.errors import Caveat, NisslError
from nissl.files import write_whole
from nissl.reporting.run_page import environment

PAGE, MARKDOWN = "report.html", "tables.md"
OF_A_RUN = ("published-protocol", "published-number")
"""Caveats that are not told of a data set: the number of one run, and the protocol, which stands at its table."""


@dataclass(frozen=True)
class Section:
    """A part of the page, in this order."""

    level: int
    """Of its heading."""
    title: str
    sentence: str = ""
    warnings: tuple[Caveat, ...] = ()
    facts: str = ""
    pictures: tuple[Picture, ...] = ()
    table: PrintedTable | None = None
    paragraphs: tuple[str, ...] = ()


def report_bench(out: Path) -> Path:
    """Write page and tables of a bench again from its folder; returns the path of the page.

    Neither the data nor the weights of the runs are needed.

    Raises:
        InputError: a file of the bench is gone.
        DataError: it is damaged.

    """
    cells = stored_cells(out)
    return write_page(out, cells, read_results(out, cells))


def write_page(out: Path, cells: Sequence[Cell], results: Sequence[Result]) -> Path:
    """Write report.html and tables.md of a bench, every cell counted; returns the path of the page."""
    scores, caveats = {}, {}
    for result in results:
        with suppress(NisslError):  # a run without its scores counts as failed
            if result.status == "done":
                scores[result.run] = rows_of(out, result)
                caveats[result.run] = caveats_of(out, result)
    tables = tables_of(cells, results, scores, read_costs(out))
    sections = sections_of(tables, gains_of(tables), caveats)
    told = [f"{text.title(table)}: {one.text}" for table in tables for one in text.unequal(table)]
    known = {"title": out.resolve().name, "headline": text.headline(tables), "warnings": told, "sections": sections}
    templates = environment()
    templates.filters["cell"] = lambda words: words.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
    write_whole(out / MARKDOWN, templates.get_template("bench.md.j2").render(known))
    write_whole(out / PAGE, templates.get_template("bench.html.j2").render(known))
    return out / PAGE


def sections_of(
    tables: Sequence[Table], gains: Sequence[Gain], caveats: dict[str, list[Caveat]]
) -> tuple[Section, ...]:
    """All sections of the page: the tables together, each data set, the failed runs and the legend.

    The caveats are those of the runs that are done, by `Result.run`.
    """
    found = [_overview(tables, gains)] if len(tables) > 1 and gains else []
    for data in dict.fromkeys(table.data for table in tables):
        found += _dataset([table for table in tables if table.data == data], caveats)
    failed = [run for table in tables for row in table.rows for run in row.runs if run.status == "failed"]
    if failed:
        rows = tuple(PrintedRow((run.run, run.message)) for run in failed)
        found.append(Section(2, "Failed runs", table=PrintedTable(("run", "why"), rows)))
    return (*found, Section(2, "How to read this", paragraphs=legend(tables)))


def legend(tables: Sequence[Table]) -> tuple[str, ...]:
    """Explain what is on the page of these tables, and nothing else: a paragraph each."""
    equivalent = any(row.equivalent for table in tables for row in table.rows)
    template = environment().get_template("bench_legend.txt.j2")
    text = template.render(task=tables[0].task, several=len(tables) > 1, equivalent=equivalent)
    return tuple(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _overview(tables: Sequence[Table], gains: Sequence[Gain]) -> Section:
    average = text.verdicts({gain.arm: gain for gain in gains}, tables[0].baseline)
    return Section(
        2,
        "All tables together",
        sentence=f"On average over {len(tables)} tables. {average}",
        warnings=tuple(text.published(tables)),
        pictures=(overview_picture(gains, tables),),
        table=overview_table(gains, tables),
    )


def _dataset(tables: Sequence[Table], caveats: dict[str, list[Caveat]]) -> list[Section]:
    done = [run.run for table in tables for run in table.done]
    told = dict.fromkeys(one for run in done for one in caveats.get(run, []) if one.code not in OF_A_RUN)
    costs = {row.arm: row.cost for row in tables[0].rows if row.cost and row.cost.message}
    unknown = [Caveat("cost", f"The cost of {arm} could not be measured: {one.message}") for arm, one in costs.items()]
    return [
        Section(2, tables[0].data, warnings=tuple(told), pictures=dataset_pictures(tables)),
        *map(_table, tables),
        Section(
            3,
            "Cost of each arm",
            warnings=(*text.published(tables), *unknown),
            facts=text.cost_facts(tables),
            table=cost_table(tables),
        ),
    ]


def _table(table: Table) -> Section:
    compared = {row.arm: row.versus for row in table.rows if row.arm != table.baseline}
    return Section(
        3,
        text.title(table),
        sentence=text.verdicts(compared, table.baseline),
        warnings=tuple(text.warnings(table)),
        facts=text.facts(table),
        table=results_table(table),
    )
