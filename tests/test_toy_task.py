"""A task of somebody else's is among TASKS (tests/conftest.py): what holds for all of them holds for it.

These are the facts of its own.
"""

from dataclasses import replace

import numpy as np
import pytest
from tests.tiny_data import FLAGS, tiny_config, write_tiny
from tests.toy_task import NAME, Restoration
from tests.training.tiny import log_of

from nissl import api, cli
from nissl.errors import InputError
from nissl.imageio.formats import read_raster, write_image
from nissl.methods import METHODS
from nissl.model import Model
from nissl.runs.format import load_config
from nissl.tasks.settings import TASKS


def test_it_runs_from_the_command_line_to_pictures(tmp_path, capsys):
    data, out = write_tiny(tmp_path / "data"), tmp_path / "run"
    for path in (data / "masks").iterdir():
        image = read_raster(data / "images" / path.name).pixels
        write_image(path, image // 2)
    flags = [*FLAGS, "--method", "supervised", "--task", NAME, "--task.white", "127", "--steps", "30"]
    assert cli.run(["train", str(data), "--out", str(out), *flags]) == 0
    assert load_config(out / "config.toml").task == Restoration(white=127.0) == Model.load(out, "cpu").task.settings
    lines = log_of(out)
    assert set(lines[0]["terms"]) == {"squared"} and lines[-1]["loss"] < lines[0]["loss"]
    assert cli.run(["evaluate", str(out)]) == 0
    assert cli.run(["predict", str(out), str(data / "images"), "--out", str(tmp_path / "new")]) == 0
    shown = capsys.readouterr().out
    assert "mean error" in shown and "in the masks" not in shown  # there are no classes
    found = read_raster(tmp_path / "new" / "field002.png").pixels
    assert found.shape[1:] == (32, 32) and len(np.unique(found)) > 8


@pytest.mark.parametrize("name", [name for name, kind in METHODS.items() if kind.tasks is not None])
def test_a_method_of_another_task_is_refused_by_name(tmp_path, name):
    data = write_tiny(tmp_path / "data")
    config = replace(tiny_config(pretrain="none"), method=METHODS.make(name), task=TASKS.make(NAME))
    with pytest.raises(InputError) as caught:
        api.train(data, tmp_path / "run", config)
    assert name in caught.value.where and NAME in caught.value.found and "supervised" in caught.value.expected
    assert not (tmp_path / "run").exists()
