"""The pages: every link leads somewhere, and every command, setting, path and name in them exists today."""

import ast
import contextlib
import dataclasses
import importlib
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
from tests.tiny_data import write_tiny

from nissl import cli, load_config
from nissl.bench.grid.grid import load_grid
from nissl.methods import METHODS
from nissl.pretrain import PRETRAININGS

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+(?:\([^()]*\))?)\)")
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9.-]*[a-z0-9]")
VERBS = [kind for kind in vars(cli).values() if isinstance(kind, type) and "__call__" in vars(kind)]

SCRIPTS = {flag for path in ROOT.glob("benchmarks/*.py") for flag in FLAG.findall(path.read_text(encoding="utf-8"))}
"""Flags of the scripts beside the package, which the results name."""


def prose(path):
    """The text of a page without its blocks of code."""
    return FENCE.sub("", path.read_text(encoding="utf-8"))


def blocks(path, *languages):
    return [code for language, code in FENCE.findall(path.read_text(encoding="utf-8")) if language in languages]


def inline(path):
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(path))]


def commands(path):
    """Each command of the shell blocks of a page, as a list of words."""
    lines = "".join(blocks(path, "sh", "bash")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def arguments(words):
    """What follows `nissl`, called by itself or as a module; None for another command."""
    for start in (["nissl"], ["-m", "nissl"]):
        for at in range(len(words)):
            if words[at : at + len(start)] == start and (at == 0 or start[0] == "-m"):
                return words[at + len(start) :]
    return None


def anchors(path):
    """Anchors of the headings of a page, by GitHub's rule."""
    found = []
    for heading in re.findall(r"^#+ +(.*?) *$", prose(path), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return found


def named(path):
    return str(path.relative_to(ROOT))


pages = pytest.mark.parametrize("page", PAGES, ids=named)


@pages
def test_every_link_leads_to_a_file_of_the_checkout_and_a_heading_of_it(page):
    for link in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = unquote(link).partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        if anchor:
            assert anchor in anchors(target), link


COMMANDS = [
    pytest.param(words, id=f"{named(page)}: {' '.join(words)}"[:120])
    for page in PAGES
    for line in commands(page)
    if (words := arguments(line)) is not None
]


def parse(words, monkeypatch, capsys):
    """Exit code of a command line whose verb does nothing; help and version leave with 0."""
    for verb in VERBS:
        monkeypatch.setattr(verb, "__call__", lambda self: 0)
    try:
        code = cli.run(words)
    except SystemExit as leaving:
        code = leaving.code or 0
    return code, capsys.readouterr()


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_of_the_pages_is_one_of_today(words, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    settings = [Path(words[words.index("--config") + 1])] if "--config" in words else []
    if "--resume" in words:
        settings.append(Path(words[words.index("--out") + 1]) / "config.toml")
    settings += [Path(word[1:]) for word in words if word.startswith("@")]
    for path in settings:  # a command may be parsed with what a file gives
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    code, said = parse(words, monkeypatch, capsys)
    assert code == 0, said.out + said.err


@pages
def test_every_target_of_make_exists(page):
    known = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    named = [words for words in commands(page) if words[0] == "make"]
    named += [code.split() for code in inline(page) if re.match(r"make \w", code)]
    for words in named:
        assert {word for word in words[1:] if "=" not in word} <= set(known), words


def test_the_pages_show_every_verb():
    shown = {words.values[0][0] for words in COMMANDS}
    assert shown >= {"check", "train", "evaluate", "report", "predict", "compare", "bench", "fetch"}


@pytest.fixture(scope="module")
def flags():
    """Flags of each verb, those included that a method or a pre-training alone has."""
    calls = [[name] for name in ("demo", "check", "evaluate", "compare", "bench", "predict", "report", "fetch")]
    calls += [["train", "--method", name] for name in METHODS]
    calls += [["train", "--pretrain", name] for name in PRETRAININGS]
    found: dict[str, set[str]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "400")  # so that no flag is broken over two lines
        for call in calls:
            found.setdefault(call[0], set()).update(FLAG.findall(help_of(call)))
    return found


def help_of(call):
    with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit):
        cli.run([*call, "--help"])
    return out.getvalue()


@pages
def test_every_flag_that_the_text_names_exists(page, flags):
    every = set().union(*flags.values(), SCRIPTS) | {"--help", "--version"}
    for code in inline(page):
        words = code.split()
        if words[0] == "nissl" and len(words) > 1 and words[1] in flags:
            assert set(FLAG.findall(code)) <= flags[words[1]] | {"--help"}, code
        elif words[0] == "nissl" and len(words) > 1:
            assert words[1] in ("--help", "--version"), code
        elif words[0].startswith("--"):
            assert set(FLAG.findall(code)) <= every, code


@pages
def test_every_settings_file_and_grid_of_the_pages_is_read(page, tmp_path):
    for number, text in enumerate(blocks(page, "toml")):
        path = tmp_path / f"{number}.toml"
        path.write_text(text)
        if "[[arms]]" not in text:
            load_config(path)
            continue
        for name in re.findall(r'^path = "(.+)"', text, re.MULTILINE):
            if not (tmp_path / name).exists():
                write_tiny(tmp_path / name, count=50, test=range(10), unmasked=())
        load_grid(path)


def resolve(name):
    """Import a dotted name of ours, as far as it is modules, and take the rest as attributes."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            found = getattr(found, part)
        return found
    raise AssertionError(name)


@pages
def test_every_name_of_ours_can_be_imported(page):
    names = {code for code in inline(page) if re.fullmatch(r"nissl(\.\w+)+", code)}
    for code in blocks(page, "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nissl"):
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Attribute) and re.fullmatch(r"nissl(\.\w+)+", ast.unparse(node)):
                names.add(ast.unparse(node))
    for name in names:
        assert resolve(name) is not None, name


@pages
def test_every_file_of_the_checkout_that_the_text_names_exists(page):
    for code in inline(page):
        if re.fullmatch(r"(src|tests|docs|benchmarks|tools|nissl)/[\w./-]+", code):
            assert (ROOT / code).exists() or (ROOT / "src" / code).exists(), code


def test_verbs_are_dataclasses():
    """What the tests above replace is what the command line calls."""
    assert len(VERBS) >= 9
    assert all(dataclasses.is_dataclass(verb) for verb in VERBS)


@pytest.mark.slow
def test_the_site_with_the_reference_of_the_interface_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "api" / "evaluation" / "index.html").read_text(encoding="utf-8")
    assert "nissl.evaluation.compare" in reference
