"""The built package: what is inside, and that it works where nothing else of the project is."""

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


def ran(command, **options):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=600, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def alone():
    """The environment variables without those that lead Python to a checkout."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHONPATH", "COV_", "PYTEST"))}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Build the sdist, and the wheel from the sdist: what is missing in one is missing in both."""
    folder = tmp_path_factory.mktemp("dist")
    ran([sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT])
    return folder


@pytest.fixture(scope="module")
def wheel(built):
    return next(built.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Install the wheel alone into an environment that borrows the dependencies of this one; return its `bin`."""
    folder = tmp_path_factory.mktemp("environment")
    ran([sys.executable, "-m", "venv", "--without-pip", folder])
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python"]
    ran([*pip, "install", "--quiet", "--no-deps", "--no-index", wheel], env=alone())
    # A folder named in a .pth file has its packages on the path, but not its own .pth files: an editable install of
    # the project, which is one of those, cannot be imported by mistake.
    borrowed = [path for path in sys.path if Path(path).name == "site-packages"]
    next(folder.glob("lib/python*/site-packages")).joinpath("borrowed.pth").write_text("\n".join(borrowed) + "\n")
    return folder / "bin"


def test_the_wheel_has_every_file_of_the_package_and_its_licence(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    package = ROOT / "src" / "nissl"
    files = {path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    missing = {str(path.relative_to(package.parent)) for path in files} - names
    assert not missing
    assert "nissl/py.typed" in names and any(name.endswith(".html.j2") for name in names)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_wheel_has_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"nissl"}


def test_the_sdist_has_no_tests_and_what_it_is_built_from(built):
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "docs"))]
    assert {"LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "pyproject.toml", "src/nissl/py.typed"} <= names


def test_the_installed_command_answers_and_is_the_one_of_the_wheel(installed, tmp_path):
    where = ran([installed / "python", "-c", "import nissl; print(nissl.__file__)"], cwd=tmp_path, env=alone())
    assert Path(where.strip()).is_relative_to(installed.parent)
    assert "train" in ran([installed / "nissl", "--help"], cwd=tmp_path, env=alone())


def test_the_installed_package_runs_the_demo(installed, tmp_path):
    """On fewer images, with a smaller network and three steps; `make test-all` runs it as it is."""
    code = (
        "from dataclasses import replace; from pathlib import Path; from nissl import demo;"
        "net = replace(demo.SETTINGS.net, widths=(4, 8), dropout=(0.0, 0.0));"
        "train = replace(demo.SETTINGS.train, steps=3);"
        "demo.IMAGES, demo.SETTINGS = 20, replace(demo.SETTINGS, net=net, train=train);"
        "demo.demo(Path('demo'))"
    )
    ran([installed / "python", "-c", code], cwd=tmp_path, env=alone() | {"OMP_NUM_THREADS": "1"})
    assert (tmp_path / "demo" / "run" / "report.html").stat().st_size > 1000


@pytest.mark.full
def test_the_installed_command_runs_the_demo_as_it_is(installed, tmp_path):
    ran([installed / "nissl", "demo"], cwd=tmp_path, env=alone())
    measured = json.loads((tmp_path / "nissl-demo" / "run" / "metrics.json").read_text())
    assert measured["overall"]["dice"] > 0.85  # what the README promises is 0.9
