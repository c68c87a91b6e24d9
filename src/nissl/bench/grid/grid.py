"""A grid of experiments: data sets x label budgets x arms x seeds, read from one TOML file and checked before any runs.

budgets = ["5%", "10%"]
seeds = 6

[data.glas]
path = "data/glas"                  # as seen from this file
label_map = "binary"
allow_shared_groups = true
budgets = ["20%"]                   # of this data set alone, in place of those above
train = { batch = 4 }               # any setting, for this data set alone

[settings]                          # any setting, for all cells
train = { steps = 400 }

[[arms]]
pretrain = "none"
method = "supervised"

[[arms]]
name = "hpca, folded"
pretrain = { name = "hebbian", rule = "hpca" }
"""

import dataclasses
import difflib
import hashlib
import itertools
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nissl.config import Config, DataConfig, from_tree, to_tree
from nissl.data.cases import CaseFile
from nissl.data.discovery import list_cases
from nissl.data.split import make_split
from nissl.errors import InputError
from nissl.members import REGISTRIES, Members
from nissl.methods import METHODS
from nissl.pretrain import PRETRAININGS
from nissl.training.network import per_stream

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TOP = ("data", "budgets", "seeds", "settings", "arms")
SHORT = {"label_map": ("data", "label_map"), "allow_shared_groups": ("split", "allow_shared_groups")}
"""Settings that a data set may give at once, and where they belong."""
OF_THE_GRID = {"seed": "seeds", "split.labels": "budgets", "data.images": "path", "data.masks": "path"}
"""Settings that a grid says in another place."""
STAGES: dict[str, Members[Any]] = {"pretrain": PRETRAININGS, "method": METHODS}
Tree = dict[str, Any]
LONGEST = 60
"""Characters of a name that its folder keeps."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set of the grid."""

    name: str
    path: Path
    settings: Tree
    """What holds for this data set alone, as nested tables of `Config`."""
    budgets: tuple[str, ...] = ()
    """Its own label budgets; none takes those of the grid."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """A way to learn that is compared: a pre-training and a method."""

    name: str
    settings: Tree
    """Tables `pretrain` and `method`; what they leave open is that of the grid's settings."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of the grid."""

    data: str
    budget: str
    arm: str
    seed: int
    path: Path
    """Folder of the data."""
    config: Config

    @property
    def id(self) -> str:
        """`data/budget/arm/seed-N`, of characters that every file system takes; the name of its folder."""
        return f"{folder_name(self.data)}/{folder_name(self.budget)}/{folder_name(self.arm)}/seed-{self.seed}"

    def to_json(self) -> str:
        """A line of JSON for another process; the data by their absolute path."""
        tree = {"data": self.data, "budget": self.budget, "arm": self.arm, "seed": self.seed}
        return json.dumps(tree | {"path": str(self.path.absolute()), "config": to_tree(self.config)})

    @classmethod
    def from_json(cls, text: str) -> "Cell":
        """Read what `to_json` wrote."""
        tree = json.loads(text)
        config = from_tree(Config, tree.pop("config"), "cell")
        return cls(path=Path(tree.pop("path")), config=config, **tree)


@dataclasses.dataclass(frozen=True)
class BenchGrid:
    """What `load_grid` reads."""

    text: str
    """The file as it is."""
    data: tuple[Source, ...]
    budgets: tuple[str, ...]
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    settings: Tree


def load_grid(path: Path | str) -> BenchGrid:
    """Read a grid and validate it against the file names of its data; nothing runs and no image is opened.

    Raises:
        InputError: an unknown key, method, pre-training or folder, a budget above the masks there are, or a name twice;
            it names the key, such as `arms[1].method.name` (counted from 0), and the nearest name that there is.
        DataError: the names in a data folder show a fault.

    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        tree = tomllib.loads(text)
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}", "a grid file", "check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(path, str(error), "a TOML file", "correct the line that is named") from error
    reader = _Reader(path)
    reader.require_keys("", tree, TOP)
    grid = BenchGrid(
        text,
        reader.sources(tree.get("data")),
        reader.budgets(tree.get("budgets")),
        reader.arms(tree.get("arms")),
        reader.seeds(tree.get("seeds")),
        reader.settings("settings", tree.get("settings", {})),
    )
    reader.require_settings(grid)
    for source in grid.data:
        reader.require_masks(grid, source)
    return grid


def cells(grid: BenchGrid) -> tuple[Cell, ...]:
    """Every run: by data set, in it by budget, then by seed, then by arm.

    The arms of one seed follow each other, so that a grid that is stopped early has whole comparisons. The test cases
    are the same for all runs on one data set: `split.seed` is 0 where the grid does not give it.
    """
    made = []
    for source in grid.data:
        configs = [_config(_merged(_layers(grid, source, index).values())) for index in range(len(grid.arms))]
        for budget, seed in itertools.product(source.budgets or grid.budgets, grid.seeds):
            for arm, config in zip(grid.arms, configs, strict=True):
                split = dataclasses.replace(config.split, labels=budget, seed=config.split.seed or 0)
                own = dataclasses.replace(config, split=split, seed=seed)
                made.append(Cell(source.name, budget, arm.name, seed, source.path, own))
    return tuple(made)


def folder_name(name: str) -> str:
    """Bring a name to characters that every file system takes: letters, digits, `_`, `-`; `%` becomes `pct`."""
    text = re.sub(r"[^a-z0-9_]+", "-", name.lower().replace("%", "pct").replace(".", "p")).strip("-")
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return f"{text}_" if re.fullmatch(r"con|prn|aux|nul|(com|lpt)\d", text) else text


def _layers(grid: BenchGrid, source: Source, index: int) -> dict[str, Tree]:
    """Settings of a cell by where they stand, each over those before: of all cells, of its data set, of its arm.

    What is set for all arms counts in those whose network, pre-training or method has such an option.
    """
    arm = grid.arms[index].settings
    merged = _merged((grid.settings, source.settings, arm))
    common = [_applicable(layer, merged) for layer in (grid.settings, source.settings)]
    return {"settings": common[0], _key("data", source.name): common[1], f"arms[{index}]": arm}


def _applicable(layer: Tree, merged: Tree) -> Tree:
    """Leave out the options of members that a cell does not use."""
    kept = dict(layer)
    for members in REGISTRIES.values():
        table, chosen = layer.get(members.kind), merged.get(members.kind)
        if isinstance(table, dict) and isinstance(chosen, dict):
            name = chosen.get("name", next(iter(members)))
            owners = {key: members.owners(key) for key in table if name in members}
            foreign = {key for key, others in owners.items() if others and name not in others}
            kept[members.kind] = {key: value for key, value in table.items() if key not in foreign}
    return kept


def _merged(layers: Iterable[Tree]) -> Tree:
    tree: Tree = {}
    for layer in layers:
        for key, value in layer.items():
            both = isinstance(value, dict) and isinstance(tree.get(key), dict)
            tree[key] = _merged((tree[key], value)) if both else value
    return tree


def _config(tree: Tree) -> Config:
    """Settings of a cell.

    Raises:
        InputError: a setting is unknown or out of its range, or no method or pre-training has the name; its `where` is
            the key at fault as seen from the settings, such as `train.steps`.

    """
    try:
        config = from_tree(Config, tree, "")
    except InputError as error:
        where = error.where.replace(": ", ".").strip(".")
        raise InputError(where, error.found, error.expected, error.fix) from error
    for stage, registry in STAGES.items():
        name = getattr(config, stage).name
        if name not in registry:
            fix, expected = _nearest(name, registry, "choose one of them"), f"one of {', '.join(registry)}"
            raise InputError(f"{stage}.name", f"unknown {stage} `{name}`", expected, fix)
    per_stream(config)
    return config


def _refusal(layers: Iterable[Tree]) -> InputError | None:
    """The error that these settings give."""
    try:
        _config(_merged(layers))
    except InputError as error:
        return error
    return None


def _key(*parts: str) -> str:
    """A key path as in TOML."""
    return ".".join(part if re.fullmatch(r"[\w-]+", part) else json.dumps(part, ensure_ascii=False) for part in parts)


def _has(tree: Any, keys: Sequence[str]) -> bool:
    return not keys or (isinstance(tree, dict) and keys[0] in tree and _has(tree[keys[0]], keys[1:]))


def _nearest(name: str, known: Iterable[str], otherwise: str) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"did you mean `{near[0]}`?" if near else otherwise


@dataclasses.dataclass(frozen=True)
class _Reader:
    """The parts of a grid, each refused with the key at fault."""

    path: Path

    def fault(self, key: str, found: str, expected: str, fix: str) -> InputError:
        """State a fault of a key, such as `arms[1].method.name`."""
        return InputError(f"{self.path}: {key}", found, expected, fix)

    def require_keys(self, place: str, tree: Tree, known: Sequence[str]) -> None:
        """Refuse a key that is none of those known."""
        for key in tree:
            if key not in known:
                fix = _nearest(key, known, "leave it out")
                raise self.fault(f"{place}.{_key(key)}".strip("."), "unknown key", f"one of {', '.join(known)}", fix)

    def sources(self, tables: Any) -> tuple[Source, ...]:
        """Read `[data.NAME]`."""
        if not isinstance(tables, dict) or not tables:
            raise self.fault("data", "no data set", "a table [data.NAME] with its path", "name the data")
        found = []
        known = ("path", "budgets", *SHORT, *(field.name for field in dataclasses.fields(Config)))
        for name, table in tables.items():
            place = _key("data", name)
            if not isinstance(table, dict) or not isinstance(table.get("path"), str):
                raise self.fault(f"{place}.path", "missing", "the folder of the data: path = '...'", "state it")
            self.require_keys(place, table, known)
            long: Tree = {key: value for key, value in table.items() if key not in ("path", "budgets", *SHORT)}
            short = ({part: {field: table[key]}} for key, (part, field) in SHORT.items() if key in table)
            settings = self.settings(place, _merged((long, *short)))
            own = self.budgets(table["budgets"], f"{place}.budgets") if "budgets" in table else ()
            found.append(Source(name, self._folder(f"{place}.path", table["path"]), settings, own))
        self._require_distinct({_key("data", one.name): one.name for one in found})
        return tuple(found)

    def _folder(self, key: str, text: str) -> Path:
        folder = self.path.parent / text
        if folder.is_dir():
            return folder
        above = next((one for one in folder.parents if one.is_dir()), Path())
        present = sorted(one.name for one in above.iterdir() if one.is_dir() and not one.name.startswith("."))
        missing = folder.relative_to(above).parts[0]
        fix = _nearest(missing, present, f"in {above} there are: {', '.join(present[:8]) or 'no folders'}")
        found = f"no such folder: {text} (expected at {folder})"
        raise self.fault(key, found, "the folder of a data set, as seen from the grid file", fix)

    def budgets(self, values: Any, place: str = "budgets") -> tuple[str, ...]:
        """Read `budgets`: fractions, numbers or lists of ids."""
        self._require_list(place, values, (str, int), 'label budgets, such as ["5%", "10%"]')
        found = tuple(str(value).strip() for value in values)
        self._require_distinct({f"{place}[{index}]": value for index, value in enumerate(found)})
        return found

    def seeds(self, values: Any) -> tuple[int, ...]:
        """Read `seeds`: how many, or which."""
        if type(values) is int and values > 0:
            return tuple(range(values))
        self._require_list("seeds", values, (int,), "a number of seeds, 1 or more, or a list of them")
        for index, value in enumerate(values):
            if value < 0:
                raise self.fault(f"seeds[{index}]", f"the seed {value}", "0 or more", "choose another")
        self._require_distinct({f"seeds[{index}]": str(value) for index, value in enumerate(values)})
        return tuple(values)

    def settings(self, place: str, tree: Any) -> Tree:
        """Read a table of settings, in which a method or pre-training may be a name alone, as in an arm."""
        if not isinstance(tree, dict):
            raise self.fault(place, repr(tree), f"a table [{place}]", "make it one")
        for key, instead in OF_THE_GRID.items():
            if _has(tree, key.split(".")):
                fix = f"give it as `{instead}` of the grid"
                raise self.fault(f"{place}.{key}", "a setting that a grid has elsewhere", "no such key", fix)
        return {key: self._stage(f"{place}.{key}", key, tree[key]) if key in STAGES else tree[key] for key in tree}

    def arms(self, tables: Any) -> tuple[Arm, ...]:
        """Read `[[arms]]`."""
        self._require_list("arms", tables, (dict,), "a table [[arms]] for each way to learn")
        found = []
        for index, table in enumerate(tables):
            place = f"arms[{index}]"
            self.require_keys(place, table, ("name", *STAGES))
            settings = {key: self._stage(f"{place}.{key}", key, table[key]) for key in STAGES if key in table}
            name = table.get("name", " + ".join(tree["name"] for tree in settings.values() if tree.get("name")))
            if not isinstance(name, str) or not name:
                fix = 'give it a pretrain, a method or a name = "..."'
                raise self.fault(place, "an arm without a name", "what is compared", fix)
            found.append(Arm(name, settings))
        self._require_distinct({f"arms[{index}]": arm.name for index, arm in enumerate(found)})
        return tuple(found)

    def _stage(self, key: str, stage: str, value: Any) -> Tree:
        tree = {"name": value} if isinstance(value, str) else value
        if not isinstance(tree, dict) or not isinstance(tree.get("name", ""), str):
            raise self.fault(key, repr(value), f"the name of a {stage}, or a table of its settings", "correct it")
        return tree

    def require_settings(self, grid: BenchGrid) -> None:
        """Refuse what is no setting, a value out of its range, and a name that is no method or pre-training."""
        for source, index in itertools.product(grid.data, range(len(grid.arms))):
            layers = _layers(grid, source, index)
            trees = list(layers.values())
            if error := _refusal(trees):
                failing = (place for n, place in enumerate(layers, 1) if str(_refusal(trees[:n])) == str(error))
                raise self._at(layers, next(failing), error.where, error) from error

    def _at(self, layers: Mapping[str, Tree], place: str, key: str, error: InputError) -> InputError:
        """State a fault of a setting of a cell where it is written: in this layer, or the last one that has it."""
        keys = key.split(".") if key else []
        owners = [name for name, layer in layers.items() if _has(layer, keys)]
        if not owners:
            return self.fault(place, f"{key}: {error.found}", error.expected, error.fix)
        owner = place if place in owners else owners[-1]
        short = [name for name, full in SHORT.items() if list(full) == keys and owner.startswith("data.")]
        return self.fault(".".join([owner, *(short or keys)]), error.found, error.expected, error.fix)

    def require_masks(self, grid: BenchGrid, source: Source) -> None:
        """Refuse a budget that the data set cannot meet, or that leaves a method no unlabelled image."""
        own = _key("data", source.name)
        budgets = f"{own}.budgets" if source.budgets else "budgets"
        scanned: dict[DataConfig, Sequence[CaseFile]] = {}
        for index in range(len(grid.arms)):
            layers = _layers(grid, source, index)
            config = _config(_merged(layers.values()))
            try:
                listed = scanned.get(config.data) or list_cases(source.path, config.data).cases
            except InputError as error:
                if error.code == "label-map":
                    raise self._at(layers, own, "data.label_map", error) from error
                fix = "arrange the files so" if error.code == "layout" else error.fix  # flags that a grid has not
                raise self.fault(f"{own}.path", f"{error.where}: {error.found}", error.expected, fix) from error
            scanned[config.data] = listed
            drawn: dict[tuple[str, ...], str] = {}
            for budget in source.budgets or grid.budgets:
                settings = dataclasses.replace(config.split, labels=budget, seed=config.split.seed or 0)
                try:
                    split = make_split(listed, settings, grid.seeds[0])
                except InputError as error:
                    place = budgets if error.code == "label-budget" else own
                    found = f"data set {source.name}: {error.found}"
                    raise self.fault(place, found, error.expected, error.fix) from error
                before = drawn.setdefault(split.labelled, budget)
                if before != budget:
                    found = f"data set {source.name}: {budget} and {before} are the same {len(split.labelled)} masks"
                    raise self.fault(budgets, found, "budgets of different masks", "remove one of them")
                if METHODS[config.method.name].sees == "labelled+unlabelled" and not split.unlabelled:
                    found = f"data set {source.name}, budget {budget}: no unlabelled training image"
                    expected = f"unlabelled images, which {config.method.name} learns from"
                    raise self.fault(f"arms[{index}].method", found, expected, "lower the budget, or leave out the arm")

    def _require_list(self, key: str, values: Any, kinds: tuple[type, ...], expected: str) -> None:
        if not isinstance(values, list) or not values or not all(type(value) in kinds for value in values):
            found = "missing" if values is None else "an empty list" if values == [] else repr(values)
            raise self.fault(key, found, expected, f"correct `{key}`")

    def _require_distinct(self, named: Mapping[str, str]) -> None:
        """Refuse two names, each by its key, that are one or would be one as a folder."""
        before: dict[str, str] = {}
        for key, name in named.items():
            folder = folder_name(name)
            if folder in before or not folder:
                found = f"`{name}`" + (f" after `{before[folder]}`" if folder else "")
                raise self.fault(key, found, "names that differ in letters or digits", "rename or remove one")
            before[folder] = name
