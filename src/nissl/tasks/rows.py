"""The lines of metrics.csv, of any task: one for each case and class."""

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from jaxtyping import Float

from nissl.errors import DataError

FEW = 10
"""Fewer cases or groups than this, and an interval over them is itself uncertain."""


class Row(Protocol):
    """One case and class, as a task measures it."""

    @property
    def case(self) -> str:
        """Name of the case."""

    @property
    def group(self) -> str:
        """Patient, animal or slide; empty where there is none."""

    @property
    def label(self) -> str:
        """Name of the class or, where a task has none, of the output."""


R = TypeVar("R", bound=Row)


@dataclass(frozen=True)
class Columns(Generic[R]):
    """The columns of metrics.csv, among them every metric that is measured by case."""

    values: Mapping[str, Callable[[R], Any]]
    """By name, how a row gives its value; nan is not applicable."""
    read: Callable[[Mapping[str, str]], R]
    """How the fields of a line make a row; a ValueError where they cannot."""

    def to_csv(self, rows: Sequence[R]) -> str:
        """The content of metrics.csv; nan becomes an empty field."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.values)
        writer.writerows(without_nan([value(row) for value in self.values.values()]) for row in rows)
        return text.getvalue()

    def from_csv(self, text: str, where: str = "metrics.csv") -> list[R]:
        """Read the rows of a metrics.csv.

        Raises:
            DataError: a column is missing or a value is of the wrong kind.

        """
        expected, fix = f"the columns {', '.join(self.values)}", "run `nissl evaluate` again"
        lines = csv.DictReader(io.StringIO(text))
        try:
            absent = [name for name in self.values if name not in (lines.fieldnames or ())]
            if absent:
                raise DataError(where, f"no column {', '.join(absent)}", expected, fix)
            return [self.read(line) for line in lines]
        except (ValueError, TypeError, csv.Error) as error:
            raise DataError(where, f"line {lines.line_num}: {error}", expected, fix) from error

    def matrix(
        self, rows: Sequence[R], column: str, labels: Sequence[str], cases: Sequence[str] | None = None
    ) -> Float[np.ndarray, "cases classes"]:
        """One column by case, in the order of `cases` or else of the rows, and class; nan where there is no row."""
        places = {case: index for index, case in enumerate(cases or dict.fromkeys(row.case for row in rows))}
        matrix = np.full((len(places), len(labels)), np.nan)
        for row in rows:
            if row.label in labels:
                matrix[places[row.case], labels.index(row.label)] = self.values[column](row)
        return matrix


def labels_of(rows: Sequence[Row]) -> list[str]:
    """The classes of rows, in their order."""
    return list(dict.fromkeys(row.label for row in rows))


def units_of(rows: Sequence[Row]) -> list[str] | None:
    """What is independent, for each case in order: its group or, where it has none, the case itself.

    None where no case has a group.
    """
    groups = {row.case: row.group for row in rows}
    if not any(groups.values()):
        return None
    return [f"group {group}" if group else f"case {case}" for case, group in groups.items()]


def without_nan(value: Any) -> Any:
    """Nested plain values with None in the place of nan, which JSON does not have."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
