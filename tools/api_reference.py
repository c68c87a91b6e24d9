"""A hook of mkdocs: a page of the API reference for each package and module of Nissl, written from its docstrings."""

import ast
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1] / "src" / "nissl"
HIDDEN = {"__init__", "__main__", "__pycache__"}


def members() -> list[str]:
    """Names of the packages and modules right below `nissl`."""
    return sorted({path.stem for path in ROOT.iterdir() if path.is_dir() or path.suffix == ".py"} - HIDDEN)


def summary(name: str) -> str:
    """First line of the docstring of a package or module."""
    path = ROOT / name / "__init__.py"
    tree = ast.parse((path if path.exists() else ROOT / f"{name}.py").read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").partition("\n")[0]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the pages to the table of contents of the site."""
    pages: list[Any] = [{"Overview": "api/index.md"}, *({f"nissl.{name}": f"api/{name}.md"} for name in members())]
    config.nav = [*(config.nav or []), {"API reference": pages}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Make the pages: an overview, and one for each package or module with all that is below it."""
    rows = "\n".join(f"| [`nissl.{name}`]({name}.md) | {summary(name)} |" for name in members())
    overview = f"# API reference\n\n| package or module | what it holds |\n|---|---|\n{rows}\n"
    files.append(File.generated(config, "api/index.md", content=overview))
    for name in members():
        page = f"# nissl.{name}\n\n::: nissl.{name}\n"
        files.append(File.generated(config, f"api/{name}.md", content=page))
    return files
