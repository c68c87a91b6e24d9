"""Grid files on a small data set."""

SETTINGS = """\
[settings]
data = { size = [32] }
net = { widths = [4, 8], dropout = [0.0, 0.1] }
pretrain = { steps = 2, batch = 2 }
train = { steps = 3, batch = 2 }
"""
TINY = f"""\
budgets = ["1", "50%"]
seeds = 2
[data.tiny]
path = "tiny"
{SETTINGS}
[[arms]]
pretrain = "none"
method = "supervised"
[[arms]]
name = "HPCA, folded"
pretrain = {{ name = "hebbian", rule = "hpca" }}
"""


def write_grid(folder, text=TINY):
    path = folder / "grid.toml"
    path.write_text(text)
    return path
