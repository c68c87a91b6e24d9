"""The page and the tables of a bench: DIR/report.html and DIR/tables.md, from what its folder holds."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nissl.bench.analysis.overview import gains_of
from nissl.bench.analysis.tables import Table, tables_of
from nissl.bench.grid.grid import Cell
from nissl.bench.page import text as words
from nissl.bench.page.legend import reading
from nissl.bench.page.pictures import glance, pictures
from nissl.bench.run.cost import read_costs
from nissl.bench.run.results import Result, read_results, scores_of, stored_cells, warnings_of
from nissl.errors import NisslError
from nissl.files import write_whole
from nissl.reporting.run_page import environment
from nissl.training import parity

PAGE, MARKDOWN = "report.html", "tables.md"
TOGETHER = "All tables together"


@dataclass(frozen=True)
class Part:
    """A data set with a budget, as it is printed."""

    table: Table
    title: str
    facts: str
    unequal: tuple[str, ...]
    """Warnings that stand on top of the page as well."""
    warnings: tuple[str, ...]
    sentence: str
    sheet: words.Sheet


@dataclass(frozen=True)
class Overview:
    """All tables together, as they are printed."""

    warnings: tuple[str, ...]
    sentence: str
    sheet: words.Sheet
    picture: str
    """SVG data URI."""


@dataclass(frozen=True)
class Chapter:
    """A data set, as it is printed."""

    data: str
    parts: tuple[Part, ...]
    caveats: tuple[str, ...]
    """What the runs say of their data, such as patients in training and in test."""
    cost_facts: str
    cost: words.Sheet
    failed_probes: tuple[tuple[str, str], ...]
    pictures: tuple[str, ...]
    """SVG data URIs: all arms, and each beside the baseline; fewer where there is nothing to show."""


@dataclass(frozen=True)
class Contents:
    """What page and tables say."""

    title: str
    headline: str
    overview: Overview | None
    chapters: tuple[Chapter, ...]
    failed: tuple[Result, ...]
    reading: tuple[str, ...]
    """How to read it."""


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
    scores = {}
    for result in results:
        with suppress(NisslError):  # a run without its scores counts as failed
            if result.status == "done":
                scores[result.run] = scores_of(out, result)
    tables = tables_of(cells, results, scores, read_costs(out))
    contents = Contents(
        out.resolve().name,
        words.headline(tables),
        _overview(tables),
        tuple(_chapter(out, [table for table in tables if table.data == data]) for data in _names(tables)),
        tuple(run for table in tables for row in table.rows for run in row.runs if run.status == "failed"),
        reading(tables),
    )
    write_whole(out / MARKDOWN, markdown(contents))
    page = environment().get_template("bench.html.j2")
    write_whole(out / PAGE, page.render(contents=contents, together=TOGETHER))
    return out / PAGE


def _names(tables: Sequence[Table]) -> list[str]:
    return list(dict.fromkeys(table.data for table in tables))


def _overview(tables: Sequence[Table]) -> Overview | None:
    """Put the tables together, where there are several and other arms than the baseline."""
    gains = gains_of(tables)
    if len(tables) < 2 or not gains:
        return None
    return Overview(
        tuple(words.protocol(tables)),
        words.overview_sentence(gains, tables),
        words.overview_sheet(gains, tables),
        glance(gains, tables),
    )


def _chapter(out: Path, tables: Sequence[Table]) -> Chapter:
    done = [run for table in tables for run in table.done]
    rows = {row.arm: row for row in tables[0].rows}
    return Chapter(
        data=tables[0].data,
        parts=tuple(_part(table) for table in tables),
        caveats=tuple(dict.fromkeys(text for run in done for text in _shared(warnings_of(out, run)))),
        cost_facts=words.cost_facts(tables),
        cost=words.cost_sheet(tables),
        failed_probes=tuple((arm, row.cost.message) for arm, row in rows.items() if row.cost and row.cost.message),
        pictures=pictures(tables),
    )


def _shared(caveats: Iterable[str]) -> list[str]:
    """What runs may have in common; the number that the published protocol gives a run stands in its table."""
    return [text for text in caveats if not text.startswith(parity.CHOSEN) and text != parity.WARNING]


def _part(table: Table) -> Part:
    return Part(
        table,
        words.title(table),
        words.facts(table),
        tuple(words.unequal(table)),
        tuple(words.warnings(table)),
        words.sentence(table),
        words.results_sheet(table),
    )


def markdown(contents: Contents) -> str:
    """The same tables and sentences as on the page, to be pasted into a page of results."""
    blocks = [f"# {_escaped(contents.title)}", contents.headline]
    if overview := contents.overview:
        blocks += [f"## {TOGETHER}", *_listed(overview.warnings), _escaped(overview.sentence), _table(overview.sheet)]
    for chapter in contents.chapters:
        blocks += [f"## {_escaped(chapter.data)}", *_listed(chapter.caveats)]
        for part in chapter.parts:
            blocks += [f"### {_escaped(part.title)}", _escaped(part.facts), *_listed(part.warnings)]
            blocks += [_escaped(part.sentence), _table(part.sheet)]
        blocks += ["### Cost", _escaped(chapter.cost_facts), _table(chapter.cost)]
        blocks += _listed(f"not measured: {arm}: {why}" for arm, why in chapter.failed_probes)
    if contents.failed:
        blocks += ["## Failed runs", *_listed(f"{run.run}: {run.message}" for run in contents.failed)]
    blocks += ["## How to read this", *contents.reading]
    return "\n\n".join(blocks) + "\n"


def _table(sheet: words.Sheet) -> str:
    ruler = ["---", *["--:"] * (len(sheet.head) - 1)]
    rows = [sheet.head, ruler, *(line.texts for line in sheet.lines)]
    return "\n".join(f"| {' | '.join(map(_escaped, row))} |" for row in rows)


def _listed(texts: Iterable[str]) -> list[str]:
    listed = "\n".join(f"- {_escaped(text)}" for text in texts)
    return [listed] if listed else []


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
