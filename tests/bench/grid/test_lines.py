"""Where something stands in a TOML file."""

import pytest

from nissl.bench.grid.lines import line_of

TEXT = """\
# a grid
budgets = [
    "5%",   # few
    "15%",
]
[settings]
train.steps = 3
net = { name = "unet", widths = [4, 8] }
[settings.data]
size = [32]
[data."my cells"]
path = "cells"
[[arms]]
method = "supervised"
[[arms]]
name = "second"
[arms.pretrain]
name = "hebbian"
"""


@pytest.mark.parametrize(
    ("line", "keys", "value"),
    [
        (2, ("budgets",), ""),
        (3, ("budgets",), "5%"),
        (4, ("budgets",), "15%"),
        (2, ("budgets",), "25%"),
        (7, ("settings", "train", "steps"), ""),
        (8, ("settings", "net", "widths"), ""),
        (10, ("settings", "data", "size"), ""),
        (6, ("settings", "augment", "noise"), ""),
        (11, ("data", "my cells"), ""),
        (12, ("data", "my cells", "path"), ""),
        (14, ("arms", 0, "method"), "supervised"),
        (15, ("arms", 1), ""),
        (18, ("arms", 1, "pretrain", "name"), "hebbian"),
        (1, ("seeds",), ""),
    ],
)
def test_the_line_of_a_key_or_value_is_found(line, keys, value):
    assert line_of(TEXT, keys, value) == line
