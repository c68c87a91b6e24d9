"""A grid file becomes cells in one order, or is refused with the key at fault."""

import dataclasses

import pytest
from tests.bench.grids import TINY, write_grid
from tests.tiny_data import write_tiny

from nissl import cli
from nissl.bench.grid.grid import cells, folder_name, load_grid
from nissl.errors import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("grids")
    write_tiny(root / "tiny")
    return root


def test_cells_come_by_data_budget_seed_and_arm(folder):
    made = cells(load_grid(write_grid(folder)))
    assert [cell.id for cell in made] == [
        "tiny/1/none-supervised/seed-0",
        "tiny/1/hpca-folded/seed-0",
        "tiny/1/none-supervised/seed-1",
        "tiny/1/hpca-folded/seed-1",
        "tiny/50pct/none-supervised/seed-0",
        "tiny/50pct/hpca-folded/seed-0",
        "tiny/50pct/none-supervised/seed-1",
        "tiny/50pct/hpca-folded/seed-1",
    ]
    assert made == cells(load_grid(folder / "grid.toml"))


def test_a_cell_has_the_settings_of_grid_data_and_arm(folder):
    text = TINY.replace(
        "[settings]", 'allow_shared_groups = true\ntrain = { batch = 1 }\nlabel_map = "binary"\n[settings]'
    )
    cell = cells(load_grid(write_grid(folder, text)))[-1]
    config = cell.config
    assert (config.pretrain.name, config.pretrain.rule, config.pretrain.steps) == ("hebbian", "hpca", 2)
    assert (config.train.batch, config.train.steps) == (1, 3)
    assert (config.data.label_map, config.split.allow_shared_groups) == ("binary", True)
    assert (config.seed, config.split.labels, cell.path) == (1, "50%", folder / "tiny")


def test_cells_of_one_data_set_differ_in_what_is_compared_alone(folder):
    made = cells(load_grid(write_grid(folder)))
    assert {cell.config.split.seed for cell in made} == {0}
    alike = {
        dataclasses.replace(
            cell.config,
            seed=0,
            split=dataclasses.replace(cell.config.split, labels="1"),
            pretrain=made[0].config.pretrain,
        )
        for cell in made
    }
    assert len(alike) == 1


@pytest.mark.parametrize("name", ["a/b", "..", "con", "A b", "5%", "ж5", "x" * 300, "0.5%", ".hidden", "a:b"])
def test_names_become_folders_that_every_file_system_takes(name):
    made = folder_name(name)
    assert len(made) < 80 and all(c.isascii() and (c.isalnum() or c in "_-") for c in made)
    assert made not in ("con", "prn", "aux", "nul")


BAD = {
    "method": ('method = "supervised"', 'method = "supervized"', "arms[0].method.name", "supervised"),
    "method in a table": ('= "supervised"', '= { name = "supervized" }', "arms[0].method.name", "`supervised`"),
    "pre-training": ('pretrain = "none"', 'pretrain = "hebian"', "arms[0].pretrain.name", "`hebbian`"),
    "pre-training in a table": ('name = "hebbian"', 'name = "hebian"', "arms[1].pretrain.name", "`hebbian`"),
    "rule": ('rule = "hpca"', 'rule = "hcpa"', "arms[1].pretrain.rule", "'hpca'"),
    "data set": ('path = "tiny"', 'path = "tinny"', "data.tiny.path", "`tiny`"),
    "top key": ("seeds = 2", "seed = 2", "seed", "`seeds`"),
    "setting": ("train = { steps = 3,", "train = { stebs = 3,", "settings.train", "`steps`"),
    "range": ("train = { steps = 3,", "train = { steps = 0,", "settings.train.steps", "1 or more"),
    "kind of value": ("train = { steps = 3,", 'train = { steps = "3",', "settings.train.steps", "int"),
    "setting of a data set": (
        'path = "tiny"',
        'path = "tiny"\ntrain = { stebs = 3 }',
        "data.tiny.train",
        "`steps`",
    ),
    "key of an arm": ('method = "supervised"', 'methode = "supervised"', "arms[0].methode", "`method`"),
    "key of a data set": ('path = "tiny"', 'path = "tiny"\nlabelmap = "binary"', "data.tiny.labelmap", "`label_map`"),
    "data set without a path": ('path = "tiny"', "", "data.tiny.path", "missing"),
    "budget above the masks": ('"50%"', '"6"', "budgets", "1 to 5 masks"),
    "budget above all": ('"50%"', '"101%"', "budgets", "1 to 5 masks"),
    "budget that is no budget": ('"50%"', '"half"', "budgets", "`half`"),
    "budget twice": ('"50%"', '"1"', "budgets[1]", "`1`"),
    "no budgets": ('["1", "50%"]', "[]", "budgets", "an empty list"),
    "no seeds": ("seeds = 2", "seeds = []", "seeds", "an empty list"),
    "zero seeds": ("seeds = 2", "seeds = 0", "seeds", "1 or more"),
    "seed below zero": ("seeds = 2", "seeds = [0, -1]", "seeds[1]", "0 or more"),
    "seed twice": ("seeds = 2", "seeds = [3, 3]", "seeds[1]", "`3`"),
    "arm twice": ('name = "HPCA, folded"', 'name = "None Supervised"', "arms[1]", "`none + supervised`"),
    "arm without a letter": ('name = "HPCA, folded"', 'name = "?!"', "arms[1]", "`?!`"),
    "seed among the settings": ("train = { steps = 3,", "seed = 5\ntrain = { steps = 3,", "settings.seed", "`seeds`"),
    "labels among the settings": (
        "train = { steps = 3",
        'split.labels = "3"\ntrain = { steps = 3',
        "settings.split.labels",
        "`budgets`",
    ),
    "arm of no kind": ('pretrain = "none"', "pretrain = 3", "arms[0].pretrain", "3"),
    "name that is none": ('method = "supervised"', "method = { name = 3 }", "arms[0].method", "3"),
    "method among the settings": (
        "train = { steps = 3,",
        'method = "supervized"\ntrain = { steps = 3,',
        "settings.method.name",
        "`supervised`",
    ),
    "two budgets of the same masks": ('"50%"', '"20%"', "budgets", "20% and 1"),
    "label map": ('path = "tiny"', 'path = "tiny"\nlabel_map = "1"', "data.tiny.label_map", "`1=1`"),
    "folder without images": ('path = "tiny"', 'path = "."', "data.tiny.path", "images/ and masks/"),
}
"""Each fault by the text that it replaces in the grid, the key that the error names, and a fact of it."""


@pytest.mark.parametrize("fault", BAD)
def test_a_grid_that_cannot_run_is_refused_with_its_key_and_the_nearest_name(folder, fault, tmp_path, capsys):
    before, after, key, told = BAD[fault]
    assert TINY.count(before) == 1
    path = write_grid(folder, TINY.replace(before, after))
    assert cli.run(["bench", str(path), "--out", str(tmp_path / "out")]) == 2
    shown = capsys.readouterr().err
    assert f"{path}: {key}\n" in shown and told in shown, shown
    assert not (tmp_path / "out").exists()


def test_a_batch_that_a_method_cannot_halve_is_refused_where_it_is_written(folder):
    path = write_grid(folder, TINY.replace("steps = 3, batch = 2", "steps = 3, batch = 3").replace("supervised", "cps"))
    with pytest.raises(InputError) as caught:
        load_grid(path)
    assert (caught.value.where, caught.value.found) == (f"{path}: settings.train.batch", "3")
    assert "even" in caught.value.expected and "cps" in caught.value.expected


def test_a_method_without_unlabelled_images_is_refused(tmp_path):
    write_tiny(tmp_path / "tiny", unmasked=())
    text = TINY.replace('["1", "50%"]', '["6"]').replace("supervised", "cps")
    with pytest.raises(InputError, match=r"arms\[0\]\.method\n.*no unlabelled"):
        load_grid(write_grid(tmp_path, text))


@pytest.mark.parametrize(
    ("cut", "told"),
    [("[[arms]]", "arms\n.*missing"), ("budgets", "budgets\n.*missing"), ("[data", "data\n.*no data set")],
)
def test_a_part_that_is_missing_is_named(folder, cut, told):
    blocks = {"[[arms]]": TINY[: TINY.index("[[arms]]")], "budgets": TINY.replace('budgets = ["1", "50%"]\n', "")}
    text = blocks.get(cut, TINY.replace('[data.tiny]\npath = "tiny"\n', ""))
    with pytest.raises(InputError, match=told):
        load_grid(write_grid(folder, text))


def test_what_is_no_grid_file_is_refused(folder, tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        load_grid(tmp_path / "none.toml")
    with pytest.raises(InputError, match="line 2"):
        load_grid(write_grid(tmp_path, "seeds = 2\nbudgets = 5%\n"))


def test_a_number_of_seeds_and_their_list_are_one(folder):
    by_number = cells(load_grid(write_grid(folder)))
    assert cells(load_grid(write_grid(folder, TINY.replace("seeds = 2", "seeds = [0, 1]")))) == by_number


def test_a_data_set_may_have_budgets_of_its_own(folder):
    own = TINY.replace('path = "tiny"\n', 'path = "tiny"\nbudgets = ["2"]\n')
    assert {cell.budget for cell in cells(load_grid(write_grid(folder, own)))} == {"2"}
    with pytest.raises(InputError, match=r"data\.tiny\.budgets\n") as caught:
        load_grid(write_grid(folder, own.replace('["2"]', '["6"]')))
    assert caught.value.expected == "1 to 5 masks"
