"""Five seeds on a small data set, trained, measured and reported."""

import json

from tests.tiny_data import FLAGS, write_tiny

from nissl import cli


def command(*arguments):
    return cli.run([str(argument) for argument in arguments])


def read(path):
    return json.loads(path.read_text())


def without_split(folder):
    """Cases without a given split: the test cases are drawn."""
    root = write_tiny(folder, count=12)
    (root / "cases.csv").unlink()
    return root


def five_seeds(data, out):
    assert command("train", data, "--out", out, *FLAGS, "--seeds", "5") == 0
    assert command("evaluate", out) == 0 and command("report", out) == 0
    return out
