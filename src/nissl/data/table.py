"""The table cases.csv: which group and which side of the split a case has."""

import csv
import difflib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nissl.data.cases import CaseFile, Finding
from nissl.data.naming import counted, list_files, pseudonym, spelling, suggest
from nissl.imageio.formats import stem

NAME = "cases.csv"
SYNONYMS = {
    "group": ("patient", "patient_id", "subject", "subject_id", "animal", "mouse", "donor", "person", "slide"),
    "split": ("set", "fold", "subset", "partition", "dataset", "phase", "usage"),
}
"""What others call the columns that are read beside `id`."""
TABLES = re.compile(r"(?i).*(case|patient|subject|group|split|meta|clinic|label|slide).*\.(csv|tsv|xlsx?)")
"""Names of tables that may tell of groups."""
Fault = Callable[[int, str, str, str], None]


def read_table(
    root: Path, folders: Sequence[Path], cases: Mapping[str, CaseFile], findings: list[Finding], private: bool
) -> dict[str, CaseFile]:
    """Cases with the group and split that cases.csv gives; faults are added to the findings, with their line.

    Among private files, an id may be the name of a file or its pseudonym, and groups get pseudonyms as well: they are
    most often the numbers of patients. Tables that lie in `folders`, or have another name, are findings.
    """
    table = _find(root, folders, findings, private)
    if not table:
        return {}
    where = table.name if private else str(table)

    def fault(line: int, found: str, expected: str, fix: str) -> None:
        findings.append(Finding("error", f"{where}, line {line}" if line else where, found, expected, fix))

    try:
        content = table.read_bytes()
        text = content.decode("utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")
        lines = text.splitlines() or [""]
        delimiter = max(",;\t", key=lines[0].count)
        reader = csv.DictReader(lines, skipinitialspace=True, delimiter=delimiter)
        reader.fieldnames = columns = [name.strip().lower() for name in reader.fieldnames or ()]
        rows = [(reader.line_num, row) for row in reader if any(row.values())]
    except (OSError, ValueError, csv.Error) as error:
        reason = "" if private else f": {error}"
        fault(0, f"unreadable{reason}", "CSV in UTF-8", "save it as UTF-8")
        return {}
    if "id" not in columns or len(set(columns)) < len(columns):
        shown = "with other names, or one twice" if private else lines[0].strip() or "none"
        fault(1, f"columns {shown}", "id, group, split with commas between, each once", "name the columns")
        return {}
    findings += _unread_columns(columns, where, private)
    named = _read_rows(rows, cases, fault, private)
    bare = sum(not named.get(id_, case).group for id_, case in cases.items())
    if 0 < bare < len(cases):
        found, fix = f"no group for {bare} of {len(cases)} images", "name theirs, or leave each a group of its own"
        findings.append(Finding("warning", where, found, "the group of each image", fix))
    return named


def _find(root: Path, folders: Sequence[Path], findings: list[Finding], private: bool) -> Path | None:
    """The table of a folder, whether its name is written large or small; others that are not read are findings."""
    places = dict.fromkeys(folder.resolve() for folder in (root, *folders) if folder.is_dir())
    tables = [path for place in places for path in sorted(place.iterdir()) if path.name.lower() == NAME]
    beside = [path for path in tables if path.parent == root.resolve() and path.is_file()]
    table = max(beside, default=None)  # of two, cases.csv rather than Cases.csv
    for path in tables:
        if path != table:
            where, fix = NAME if private else str(path), f"move it to {'DATA' if private else root}, or remove it"
            findings.append(Finding("error", where, "a table that is not read", f"one {NAME}, beside images/", fix))
    others = [path.name for path in list_files(root).others if TABLES.fullmatch(path.name)]
    if others and not tables:
        found = f"{counted(len(others), 'table')} not read{'' if private else f', such as {others[0]}'}"
        fix = f"write groups and split to {NAME}, if they are there"
        findings.append(Finding("warning", NAME, found, f"{NAME} with the columns id, group, split", fix))
    return table and root / table.name


def _unread_columns(columns: Sequence[str], where: str, private: bool) -> Iterator[Finding]:
    """Columns of other names: an error where one seems to be a column that is missing."""
    expected = "the columns id, group, split"
    for column in sorted({*columns} - {"", "id", *SYNONYMS}):
        missing = [name for name in SYNONYMS if name not in columns]
        near = difflib.get_close_matches(column, missing, n=1, cutoff=0.7)
        meant = next((name for name in missing if column in SYNONYMS[name]), near[0] if near else None)
        shown = "a column" if private else f"column `{column}`"
        fix = f"call it `{meant}`, or remove it" if meant else "none, if it is a note"
        yield Finding("error" if meant else "warning", where, f"{shown}, which is not read", expected, fix)


def _read_rows(
    rows: Sequence[tuple[int, dict[str, Any]]], cases: Mapping[str, CaseFile], fault: Fault, private: bool
) -> dict[str, CaseFile]:
    known = {_plain(id_): id_ for id_ in cases}
    named: dict[str, CaseFile] = {}
    spelt: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for line, row in rows:
        if None in row:
            fault(line, "more fields than columns", "a field for each column", 'put names with commas in quotes: "a,b"')
            continue
        written, group, split = ((row.get(key) or "").strip() for key in ("id", "group", "split"))
        spelt[spelling(group)].add(group)
        names = [pseudonym(written), pseudonym(stem(Path(written)))] if private else [stem(Path(written))]
        id_ = next((known[_plain(name)] for name in (written, *names) if _plain(name) in known), names[0])
        side: Any = next((side for side in ("test", "train") if split.lower().startswith(side)), split.lower() or None)
        if id_ not in cases:
            near, shown = "" if private else suggest(written, cases), id_ if private else written
            fix = f"correct the id, or remove the line{f' ({near})' if near else ''}"
            fault(line, f"id `{shown}`, which no image has", "file names without suffix", fix)
        elif id_ in named:
            fault(line, f"id `{id_}` a second time", "each id once", "remove one of the lines")
        elif side not in ("train", "test", None):
            fix = "correct it; masks for choosing settings are training masks (train)"
            shown = "another word as split" if private else f"split `{split}`"
            fault(line, shown, "train, or test (testA, testB count as test), or empty", fix)
        else:
            group = pseudonym(group, "group") if private and group else group
            named[id_] = replace(cases[id_], group=group or None, split=side)
    if several := [sorted(ways) for words, ways in spelt.items() if words and len(ways) > 1]:
        example = "" if private else f", such as {' and '.join(f'`{way}`' for way in several[0][:2])}"
        fix = "write each in one way; groups that are not the same must differ in a letter or a number"
        fault(0, f"{counted(len(several), 'group')} written in several ways{example}", "one name for each group", fix)
    return named


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold().strip()
