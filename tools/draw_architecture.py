"""Draw the packages of Nissl and what they import, as they are in the sources: docs/images/architecture.svg.

An arrow that follows from two others is left out, and so are those to the foundation, which all packages may import.
"""

import ast
import itertools
import re
import sys
import textwrap
from html import escape
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HERE))
from tests.test_structure import ROOT, SOURCES, imported, package_of, parsed  # noqa: E402

FOUNDATION = ("errors", "files", "progress", "members", "config")
HIDDEN = ("__init__", "__main__")
SETTINGS = "settings"
"""Modules of this name hold settings alone: the tree of settings imports them, and they import no implementation."""
BOX, GAP, ROW = (200, 58), 20, 104
Edges = dict[str, set[str]]
Rows = list[list[str]]


def imports() -> Edges:
    """Which packages each package imports; left out are itself and the foundation, to which all settings belong."""
    edges: Edges = {name: set() for name in map(package_of, SOURCES) if name not in (*FOUNDATION, *HIDDEN)}
    for path in SOURCES:
        if (name := package_of(path)) in edges and path.stem != SETTINGS:
            found = {names[0] for names in imported(parsed(path)) if SETTINGS not in names[1:2]}
            edges[name] |= found & edges.keys() - {name}
    return edges


def reached(name: str, edges: Edges) -> set[str]:
    """All that a package imports, by itself or by another."""
    return set().union(*({other} | reached(other, edges) for other in edges[name]))


def reduced(edges: Edges) -> Edges:
    """The imports that do not follow from others."""
    return {
        name: {other for other in found if not any(other in reached(via, edges) for via in found)}
        for name, found in edges.items()
    }


def height(name: str, edges: Edges) -> int:
    """Length of the longest way down."""
    return 1 + max((height(other, edges) for other in edges[name]), default=-1)


def layered(edges: Edges) -> tuple[Rows, Edges]:
    """Rows from the bottom up, with a node `name>other@row` in each row that an arrow passes, and their arrows."""
    heights = {name: height(name, edges) for name in edges}
    rows: Rows = [[name for name in edges if heights[name] == row] for row in range(max(heights.values()) + 1)]
    arrows: Edges = {}
    for name, other in [(start, end) for start, ends in edges.items() for end in sorted(ends)]:
        way = [name]
        for row in range(heights[name] - 1, heights[other], -1):
            way.append(f"{name}>{other}@{row}")
            rows[row].append(way[-1])
        for start, end in itertools.pairwise([*way, other]):
            arrows.setdefault(start, set()).add(end)
    return rows, arrows


def crossings(rows: Rows, arrows: Edges) -> int:
    """How often arrows between neighbouring rows cross."""
    total = 0
    for below, above in itertools.pairwise(rows):
        ends = [(above.index(start), below.index(end)) for start in above for end in sorted(arrows.get(start, ()))]
        total += sum((a - c) * (b - d) < 0 for (a, b), (c, d) in itertools.combinations(ends, 2))
    return total


def untangled(rows: Rows, arrows: Edges) -> Rows:
    """Order each row by the mean place of its neighbours, up and down by turns, and keep the best order met."""
    back: Edges = {}
    for start, ends in arrows.items():
        for end in ends:
            back.setdefault(end, set()).add(start)
    best = rows = [list(row) for row in rows]
    for turn in range(12):
        order = range(1, len(rows)) if turn % 2 == 0 else range(len(rows) - 2, -1, -1)
        for at in order:
            near, links = (rows[at - 1], arrows) if turn % 2 == 0 else (rows[at + 1], back)
            means = {name: mean([near.index(other) for other in links.get(name, ())], 1e9) for name in rows[at]}
            rows[at] = sorted(rows[at], key=means.__getitem__)
        if crossings(rows, arrows) < crossings(best, arrows):
            best = [list(row) for row in rows]
    return best


def mean(values: list[int], otherwise: float) -> float:
    """Mean of the values, or what to take where there are none."""
    return sum(values) / len(values) if values else otherwise


def summary(name: str) -> list[str]:
    """First words of a docstring, as many clauses as two lines hold."""
    path = ROOT / name / "__init__.py"
    text = ast.get_docstring(parsed(path if path.exists() else ROOT / f"{name}.py")) or ""
    first = text.partition("\n")[0].split(". ")[0].rstrip(".")
    while len(lines := textwrap.wrap(first, 32)) > 2 and (clauses := re.split(r"(?=[,:] )", first))[1:]:
        first = "".join(clauses[:-1])
    return lines[:2]


def box(name: str, left: float, top: float, kind: str) -> str:
    """A box with a name and what it holds."""
    middle = left + BOX[0] / 2
    lines = "".join(
        f'<text class="what" x="{middle:.0f}" y="{top + 36 + 13 * row}">{escape(line)}</text>'
        for row, line in enumerate(summary(name))
    )
    return (
        f'<rect class="{kind}" x="{left:.0f}" y="{top:.0f}" width="{BOX[0]}" height="{BOX[1]}" rx="6"/>'
        f'<text class="name" x="{middle:.0f}" y="{top + 20:.0f}">{name}</text>{lines}'
    )


def arrow(start: tuple[float, float], end: tuple[float, float], head: bool) -> str:
    """A curve downwards."""
    bend = (end[1] - start[1]) / 2
    curve = f"M{start[0]:.0f},{start[1]:.0f} C{start[0]:.0f},{start[1] + bend:.0f} {end[0]:.0f},{end[1] - bend:.0f}"
    marker = ' marker-end="url(#head)"' if head else ""
    return f'<path d="{curve} {end[0]:.0f},{end[1]:.0f}"{marker}/>'


STYLE = """text{font-family:sans-serif;text-anchor:middle;fill:#1f2328}.name{font-size:15px;font-weight:600}
.what{font-size:10.5px;fill:#57606a}.package{fill:#e8f1fb;stroke:#3573b1}.module{fill:#fff;stroke:#3573b1}
.base{fill:#f3f4f6;stroke:#8c959f}.band{fill:none;stroke:#8c959f;stroke-dasharray:5 4}
path{fill:none;stroke:#57606a;stroke-width:1.4}.note{font-size:12px;fill:#57606a}"""


def widths(row: list[str]) -> list[float]:
    """Width of each node: a box, or the place where an arrow passes."""
    return [36.0 if ">" in name else float(BOX[0]) for name in row]


def draw() -> str:
    """Write the picture."""
    rows, arrows = layered(reduced(imports()))
    rows = untangled(rows, arrows)
    spans = [sum(widths(row)) + GAP * (len(row) - 1) for row in rows]
    wide = max(*spans, (BOX[0] + GAP) * len(FOUNDATION)) + 60
    tall = 50 + ROW * len(rows) + BOX[1] + 60
    centre: dict[str, tuple[float, float]] = {}
    for number, (row, span) in enumerate(zip(rows, spans, strict=True)):
        left, top = (wide - span) / 2, 30 + ROW * (len(rows) - 1 - number)
        for name, width in zip(row, widths(row), strict=True):
            centre[name] = (left + width / 2, top)
            left += width + GAP
    shapes = []
    for start, ends in arrows.items():
        for end in sorted(ends):
            (x, y), (to, top) = centre[start], centre[end]
            if ">" in start:  # straight through the row that the arrow passes
                shapes.append(f'<path d="M{x:.0f},{y} V{y + BOX[1]}"/>')
            shapes.append(arrow((x, y + BOX[1]), (to, top - (0 if ">" in end else 3)), ">" not in end))
    for name, (x, y) in centre.items():
        if ">" not in name:
            kind = "package" if (ROOT / name).is_dir() else "module"
            shapes.append(box(name, x - BOX[0] / 2, y, kind))
    left, top = (wide - (BOX[0] + GAP) * len(FOUNDATION) + GAP) / 2, 30 + ROW * len(rows) + 14
    note = "the foundation: every package may import it, and the modules of settings"
    shapes.append(
        f'<rect class="band" x="{left - 14:.0f}" y="{top - 26}" width="{wide - 2 * left + 28:.0f}" '
        f'height="{BOX[1] + 40}" rx="8"/><text class="note" x="{wide / 2:.0f}" y="{top - 9}">{note}</text>'
    )
    shapes += [box(name, left + (BOX[0] + GAP) * number, top, "base") for number, name in enumerate(FOUNDATION)]
    head = '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide:.0f} {tall}" width="{wide:.0f}" height="{tall}">\n'
        f'<style>{STYLE}</style><defs>{head}<path d="M0,0 L8,4 L0,8 z" style="fill:#57606a;stroke:none"/></marker>'
        f'</defs>\n<rect width="100%" height="100%" fill="#fff"/>\n' + "\n".join(shapes) + "\n</svg>\n"
    )


if __name__ == "__main__":
    target = HERE / "docs" / "images" / "architecture.svg"
    target.write_text(draw(), encoding="utf-8")
    print(target.relative_to(HERE))
