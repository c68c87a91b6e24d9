"""The structure of the package, read from its sources: what may import what, and how large a file may grow.

Style, docstrings, types and the number of parameters are ruff's and mypy's business (`make lint`).
"""

import ast
from pathlib import Path

import pytest

import nissl

ROOT = Path(nissl.__file__).parent
LAYERS = (
    *("errors", "files", "progress", "members", "settings", "config"),
    *("imageio", "datasets", "data", "metrics", "losses", "tasks", "schedule", "optimisers"),
    *("nets", "plasticity", "learner", "pretrain", "methods"),
    *("runs", "model", "training", "inference", "evaluation", "reporting", "api", "several_seeds", "bench", "demo"),
    *("cli", "__main__"),
)
"""Packages and modules from the foundation up: each imports only from itself and from those before it.

`settings` are those of the networks, pre-trainings, methods and tasks, which `config` needs, and not the packages
around them.
"""
SETTINGS = [[package, "settings"] for package in ("nets", "pretrain", "methods", "tasks")]
BENCH = ("protocols", "grid", "run", "analysis", "page", "runner")
"""The same for the packages of `nissl.bench`."""

MOST_LINES, MOST_LINES_OF_A_FUNCTION = 500, 60
SOURCES = sorted(ROOT.rglob("*.py"))
REGISTRIES = {"NETWORKS", "METHODS", "PRETRAININGS", "TASKS", "PROTOCOLS", "RULES", "OPTIMISERS", "PUBLIC", "OPENERS"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def name_of(path):
    return str(path.relative_to(ROOT))


sources = pytest.mark.parametrize("path", SOURCES, ids=name_of)


def package_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def layer_of(names):
    """Layer of a module by the parts of its name."""
    return "settings" if names[:2] in SETTINGS else names[0]


def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(tree):
    """Dotted names of our modules that a file imports anywhere in it, each without the leading `nissl`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (module.split(".")[1:] for module in modules if module.startswith("nissl."))


def test_every_package_has_its_place():
    assert {package_of(path) for path in SOURCES} - {"__init__"} == set(LAYERS) - {"settings"}


@sources
def test_imports_point_down_the_list(path):
    if path == ROOT / "__init__.py":  # it names what `api` does, and imports it when it is asked for
        return
    package = package_of(path)
    allowed = LAYERS[: LAYERS.index(layer_of(list(path.relative_to(ROOT).with_suffix("").parts))) + 1]
    wrong = {layer_of(names) for names in imported(parsed(path))} - set(allowed)
    assert not wrong, f"{name_of(path)} imports {', '.join(sorted(wrong))}"
    if package == "bench" and path.parent.name in BENCH:
        allowed = BENCH[: BENCH.index(path.parent.name) + 1]
        within = {names[1] for names in imported(parsed(path)) if names[0] == "bench"}
        assert within <= set(allowed), f"{name_of(path)} imports {', '.join(sorted(within - set(allowed)))}"


def test_no_two_modules_import_each_other():
    """No cycle of imports between files, whatever the packages are."""
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in SOURCES
    }
    edges = {
        name: {
            found
            for names in imported(parsed(path))
            for found in (".".join(names), ".".join(names[:-1]))
            if found in modules and found != name
        }
        for name, path in modules.items()
        if name != "__init__"
    }
    done, path_to = set(), []

    def visit(name):
        assert name not in path_to, " -> ".join([*path_to[path_to.index(name) :], name])
        if name in done:
            return
        path_to.append(name)
        for other in sorted(edges.get(name, ())):
            visit(other)
        path_to.pop()
        done.add(name)

    for name in edges:
        visit(name)


def test_nothing_but_the_entry_imports_the_command_line():
    users = [name_of(path) for path in SOURCES if any(names[0] == "cli" for names in imported(parsed(path)))]
    assert users == ["__main__.py"]


@sources
def test_files_and_functions_stay_small(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < MOST_LINES
    for node in ast.walk(parsed(path)):
        if isinstance(node, Function):
            lines = node.end_lineno - node.lineno + 1
            assert lines <= MOST_LINES_OF_A_FUNCTION, f"{node.name} has {lines} lines"


def test_registries_are_literal_and_there_is_one_of_each():
    found = {}
    for path in SOURCES:
        for node in parsed(path).body:
            target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
            if isinstance(target, ast.Name) and target.id in REGISTRIES:
                found.setdefault(target.id, []).append((path, node.value))
    assert set(found) == REGISTRIES and all(len(places) == 1 for places in found.values())
    values = {name: value for name, [(_, value)] in found.items()}
    for name in ("NETWORKS", "METHODS", "PRETRAININGS", "TASKS"):
        assert isinstance(values[name], ast.Call) and ast.unparse(values[name].func) == "Members"
        values[name] = next(value for value in values[name].args if isinstance(value, ast.Dict))
        assert all(isinstance(place, ast.Constant) for place in values[name].values)
    literal = {name for name, value in values.items() if isinstance(value, ast.Dict)}
    assert literal >= {"NETWORKS", "METHODS", "PRETRAININGS", "TASKS", "PROTOCOLS", "RULES", "OPTIMISERS"}


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
