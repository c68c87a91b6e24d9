"""The rules of the house, read from the sources: what may import what, and how large anything may be."""

import ast
from pathlib import Path

import pytest

import nissl

ROOT = Path(nissl.__file__).parent
FOUNDATIONS = ("errors", "files", "config", "progress", "rooms")
ROOMS = (
    "nets",
    "pretrain",
    "methods",
    "train",
    "evaluate",
    "predict",
    "report",
    "jobs",
    "series",
    "bench",
    "demo",
    "cli",
    "__main__",
)
BELOW = {room: FOUNDATIONS for room in (*FOUNDATIONS, "data", "plasticity")}
BELOW |= {room: (*FOUNDATIONS, "data", "plasticity", *ROOMS[:place]) for place, room in enumerate(ROOMS)}
"""What each room may import, beside itself."""

MOST_LINES, MOST_LINES_OF_A_FUNCTION, MOST_PARAMETERS = 500, 60, 6
SOURCES = sorted(ROOT.rglob("*.py"))
REGISTRIES = {"NETWORKS", "METHODS", "PRETRAININGS", "RULES", "OPTIMISERS", "PUBLIC", "OPENERS"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def name_of(path):
    return str(path.relative_to(ROOT))


sources = pytest.mark.parametrize("path", SOURCES, ids=name_of)


def room_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def rooms_imported(tree):
    """Rooms of ours that a module imports anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            modules = [f"nissl.{alias.name}" for alias in node.names] if node.module == "nissl" else [node.module]
        else:
            continue
        yield from (module.split(".")[1] for module in modules if module.startswith("nissl."))


def functions(tree):
    return [node for node in ast.walk(tree) if isinstance(node, Function)]


def test_every_room_has_its_place():
    rooms = {room_of(path) for path in SOURCES} - {"__init__"}
    assert rooms <= set(BELOW), f"give these a place in the list: {sorted(rooms - set(BELOW))}"


@sources
def test_imports_point_down_the_list_of_rooms(path):
    if path == ROOT / "__init__.py":  # the door: it names what jobs does, and imports it when it is asked for
        return
    room = room_of(path)
    wrong = set(rooms_imported(parsed(path))) - {room, *BELOW[room]}
    assert not wrong, f"{name_of(path)} imports {', '.join(sorted(wrong))}"


def test_nothing_but_the_entry_imports_the_command_line():
    assert [name_of(path) for path in SOURCES if "cli" in set(rooms_imported(parsed(path)))] == ["__main__.py"]


@sources
def test_files_and_functions_stay_small(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < MOST_LINES
    for node in functions(parsed(path)):
        lines = node.end_lineno - node.lineno + 1
        assert lines <= MOST_LINES_OF_A_FUNCTION, f"{node.name} has {lines} lines"
        parts = node.args
        names = [a.arg for a in (*parts.posonlyargs, *parts.args, *parts.kwonlyargs, parts.vararg, parts.kwarg) if a]
        count = len([name for name in names if name not in ("self", "cls")])
        assert count <= MOST_PARAMETERS, f"{node.name} has {count} parameters"


@sources
def test_what_is_public_has_a_docstring(path):
    tree = parsed(path)
    assert ast.get_docstring(tree), "the module has none"
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    shown = [*tree.body, *(node for kind in classes if kind.name[0] != "_" for node in kind.body)]
    for node in shown:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has none"


@sources
def test_types_are_everywhere(path):
    for node in functions(parsed(path)):
        assert node.returns is not None, f"{node.name} says not what it returns"


@sources
def test_no_dictionary_has_a_key_twice(path):
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Dict):
            keys = [ast.dump(key) for key in node.keys if key is not None]
            assert len(keys) == len(set(keys)), f"line {node.lineno}"


def test_registries_are_literal_dictionaries_and_there_is_one_of_each():
    found = {}
    for path in SOURCES:
        for node in parsed(path).body:
            target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
            if isinstance(target, ast.Name) and target.id in REGISTRIES:
                found.setdefault(target.id, []).append((path, node.value))
    assert set(found) == REGISTRIES and all(len(places) == 1 for places in found.values())
    literal = {name for name, [(_, value)] in found.items() if isinstance(value, ast.Dict)}
    assert literal >= {"NETWORKS", "METHODS", "PRETRAININGS", "RULES", "OPTIMISERS"}


@sources
def test_no_pickle_is_ever_loaded(path):
    tree = parsed(path)
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert not imported & {"pickle", "joblib", "dill", "shelve"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "torch.save"):
            raise AssertionError(f"line {node.lineno}: {ast.unparse(node.func)}")
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert ast.unparse(node.value) == "False"


def test_no_dimension_has_code_of_its_own():
    """`dims` is data: no function or class has a twin for 2-D and 3-D."""
    names = [
        node.name for path in SOURCES for node in ast.walk(parsed(path)) if isinstance(node, Function | ast.ClassDef)
    ]
    assert not [name for name in names if name.lower().endswith(("2d", "3d"))]
