"""The package from Python: quick to import, and one name for each verb whatever was imported before."""

import subprocess
import sys

import pytest

import nissl

HEAVY = ("torch", "numpy", "scipy", "monai", "matplotlib", "nibabel", "tifffile", "PIL")
VERBS = ("check", "train", "evaluate", "compare", "predict", "report")


def python(code):
    """Run code in a fresh process; its output."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_imports_nothing_heavy():
    code = f"import sys, nissl; print([name for name in {HEAVY} if name in sys.modules])"
    assert python(code) == "[]"


def test_settings_are_made_without_torch():
    code = f"import sys, nissl; nissl.Config(); print([name for name in {HEAVY} if name in sys.modules])"
    assert python(code) == "[]"


def test_all_names_are_there():
    for name in nissl.__all__:
        assert callable(getattr(nissl, name))
    assert set(VERBS) < set(nissl.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'nissl' has no attribute 'trian'"):
        nissl.trian  # noqa: B018


def test_a_verb_stays_a_function_whatever_was_imported_before():
    """Each in a process that has imported nothing of the package, but what takes long: a fork of one that has."""
    code = """
import importlib, os, pathlib, sys, tempfile
import torch
for first in ("nissl.api", "nissl.training.loop", "nissl.tasks.scores", "nissl.inference.tiles"):
    child = os.fork()
    if child == 0:
        break
    if os.waitpid(child, 0)[1]:
        sys.exit(f"{first} was imported before")
else:
    print("good")
    sys.exit()

import nissl
from nissl.errors import NisslError
importlib.import_module(first)
gone = pathlib.Path(tempfile.mkdtemp()) / "gone"
for verb, arguments in dict(train=(gone, gone), evaluate=(gone,), predict=(gone, gone, gone), report=(gone,)).items():
    for attempt in range(2):
        try:
            getattr(nissl, verb)(*arguments)
        except NisslError as error:
            assert "gone" in error.where, error
        else:
            raise AssertionError(verb)
from nissl.training.loop import Trainer
from nissl.tasks.scores import score_case
from nissl.inference.tiles import predict_mask
from nissl.reporting.run_page import write_report
"""
    assert python(code) == "good"


def test_importing_every_name_hides_no_builtin():
    import builtins

    assert not set(nissl.__all__) & set(dir(builtins))


@pytest.mark.parametrize("verb", VERBS)
def test_verbs_are_plain_functions_that_can_be_pickled(verb):
    import pickle

    function = getattr(nissl, verb)
    assert pickle.loads(pickle.dumps(function)) is function and function is getattr(nissl, verb)
    assert function.__doc__ and "args" not in function.__code__.co_varnames


def test_the_cases_of_a_folder_are_listed(tmp_path):
    from tests.tiny_data import write_tiny

    dataset = nissl.find_cases(write_tiny(tmp_path / "data"), nissl.Config().data)
    assert len(dataset.cases) == 8 and dataset.dims == 2


def test_plasticity_is_importable_as_documented():
    from nissl.plasticity import HPCA, SWTA, Plasticity, SoftHebb, update

    assert all(map(callable, (HPCA, SWTA, SoftHebb, Plasticity, update)))
