"""The table of faults in the docs: every row is there, and every test that it names exists under its number."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
ROWS = {*range(1, 49), *range(53, 58), 60, *range(71, 78), *range(80, 88), *range(90, 99)}


def known_tests():
    """Every test function, and the file that it is in."""
    return {
        node.name: path
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def lines():
    """Number of each row, and the tests that its line names."""
    found = {}
    for line in PAGE.splitlines():
        if number := re.match(r"\| (\d+) \|", line):
            assert int(number[1]) not in found
            found[int(number[1])] = re.findall(r"`(test_f\w+)`", line)
    return found


def test_the_table_has_every_row():
    assert set(lines()) == ROWS


def test_every_test_of_the_table_exists_under_its_number():
    known = known_tests()
    for row, names in lines().items():
        assert names, f"row {row} names no test"
        for name in names:
            assert name in known, f"row {row}: {name}"
            assert f"_f{row:02d}_" in name, f"row {row}: {name}"


def test_every_row_has_a_test_beside_this_one():
    known = known_tests()
    for row in lines():
        assert [name for name, path in known.items() if f"_f{row:02d}_" in name and path.parent.name == "faults"], row
