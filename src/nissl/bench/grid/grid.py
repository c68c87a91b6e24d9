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
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from nissl.bench.grid.lines import Keys, line_of
from nissl.config import Config, DataConfig, from_tree
from nissl.data.cases import CaseFile
from nissl.data.discovery import list_cases
from nissl.data.split import make_split
from nissl.errors import InputError
from nissl.members import Members
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
OF_THE_GRID = {
    ("seed",): "seeds",
    ("split", "labels"): "budgets",
    ("data", "images"): "path",
    ("data", "masks"): "path",
}
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
        return f"{plain(self.data)}/{plain(self.budget)}/{plain(self.arm)}/seed-{self.seed}"


@dataclasses.dataclass(frozen=True)
class Grid:
    """What `load_grid` reads."""

    path: Path
    text: str
    """The file as it is."""
    data: tuple[Source, ...]
    budgets: tuple[str, ...]
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    settings: Tree


def load_grid(path: Path | str) -> Grid:
    """Read a grid and look at the names of its data; nothing runs and no image is opened.

    Raises:
        InputError: an unknown key, method, pre-training or folder, a budget above the masks there are, or a name twice;
            it says in which line, and the nearest name that there is.
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
    reader = _Reader(path, text)
    reader.require_keys((), tree, TOP)
    grid = Grid(
        path,
        text,
        reader.sources(tree.get("data")),
        reader.budgets(tree.get("budgets")),
        reader.arms(tree.get("arms")),
        reader.seeds(tree.get("seeds")),
        reader.settings(tree.get("settings", {})),
    )
    reader.require_settings(grid)
    for source in grid.data:
        reader.require_masks(grid, source)
    return grid


def cells(grid: Grid) -> tuple[Cell, ...]:
    """Every run: by data set, in it by budget, then by seed, then by arm.

    The arms of one seed follow each other, so that a grid that is stopped early has whole comparisons. The test cases
    are the same for all runs on one data set: `split.seed` is 0 where the grid does not give it.
    """
    made = []
    for source in grid.data:
        configs = [from_tree(Config, _merged(grid, source, arm), str(grid.path)) for arm in grid.arms]
        for budget in source.budgets or grid.budgets:
            for seed in grid.seeds:
                for arm, config in zip(grid.arms, configs, strict=True):
                    test_seed = 0 if config.split.seed is None else config.split.seed
                    split = dataclasses.replace(config.split, labels=budget, seed=test_seed)
                    own = dataclasses.replace(config, split=split, seed=seed)
                    made.append(Cell(source.name, budget, arm.name, seed, source.path, own))
    return tuple(made)


def plain(name: str) -> str:
    """Bring a name to characters that every file system takes: letters, digits, `_`, `-`; `%` becomes `pct`."""
    text = re.sub(r"[^a-z0-9_]+", "-", name.lower().replace("%", "pct").replace(".", "p")).strip("-")
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return f"{text}_" if re.fullmatch(r"con|prn|aux|nul|(com|lpt)\d", text) else text


def _merged(grid: Grid, source: Source, arm: Arm) -> Tree:
    """Settings of the arm over those of the data set over those of all.

    What is set for all arms counts in those whose pre-training or method has such an option.
    """
    tree = _over(_over(grid.settings, source.settings), arm.settings)
    for stage, members in STAGES.items():
        table, own = tree.get(stage, {}), arm.settings.get(stage, {})
        if isinstance(table, dict) and (name := table.get("name", next(iter(members)))) in members:
            foreign = {key for key in table if (owners := members.owners(key)) and name not in owners} - own.keys()
            tree[stage] = {key: value for key, value in table.items() if key not in foreign}
    return tree


def _over(below: Tree, above: Tree) -> Tree:
    tree = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(tree.get(key), dict)
        tree[key] = _over(tree[key], value) if both else value
    return tree


def _has(tree: Any, keys: Sequence[str]) -> bool:
    for key in keys:
        if not isinstance(tree, dict) or key not in tree:
            return False
        tree = tree[key]
    return True


def _near(name: str, known: Iterable[str], otherwise: str) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"did you mean `{near[0]}`?" if near else otherwise


@dataclasses.dataclass(frozen=True)
class _Reader:
    """The parts of a grid, each refused with the line where it stands."""

    path: Path
    text: str

    def fault(self, place: tuple[Keys, str], found: str, expected: str, fix: str) -> InputError:
        """State a fault of the line where a key, and under it a value, stands."""
        return InputError(f"{self.path}, line {line_of(self.text, *place)}", found, expected, fix)

    def require_keys(self, keys: Keys, tree: Tree, known: Sequence[str]) -> None:
        """Refuse a key that is none of those known."""
        for key in tree:
            if key not in known:
                choices = ", ".join(known)
                fix = _near(key, known, "leave it out")
                raise self.fault(((*keys, key), ""), f"unknown key `{key}`", f"one of {choices}", fix)

    def sources(self, tables: Any) -> tuple[Source, ...]:
        """Read `[data.NAME]`."""
        if not isinstance(tables, dict) or not tables:
            raise self.fault((("data",), ""), "no data set", "a table [data.NAME] with its path", "name the data")
        found = []
        known = ("path", "budgets", *SHORT, *(field.name for field in dataclasses.fields(Config)))
        for name, table in tables.items():
            place: Keys = ("data", name)
            if not isinstance(table, dict) or not isinstance(table.get("path"), str):
                raise self.fault((place, ""), "no path", f"[data.{name}] with path = '...'", "say where the data are")
            self.require_keys(place, table, known)
            settings: Tree = {key: value for key, value in table.items() if key not in ("path", "budgets", *SHORT)}
            for key, (part, field) in SHORT.items():
                if key in table:
                    settings = _over(settings, {part: {field: table[key]}})
            self._require_free(place, settings)
            settings = self._named(place, settings)
            own = self.budgets(table["budgets"], (*place, "budgets")) if "budgets" in table else ()
            found.append(Source(name, self._folder((*place, "path"), table["path"]), settings, own))
        self._require_distinct([((("data", one.name), ""), one.name) for one in found])
        return tuple(found)

    def _folder(self, keys: Keys, text: str) -> Path:
        folder = self.path.parent / text
        if folder.is_dir():
            return folder
        above = next((one for one in folder.parents if one.is_dir()), Path())
        present = sorted(one.name for one in above.iterdir() if one.is_dir() and not one.name.startswith("."))
        missing = folder.relative_to(above).parts[0]
        fix = _near(missing, present, f"in {above} there are: {', '.join(present[:8]) or 'no folders'}")
        found = f"no such folder: {text} (looked for {folder})"
        raise self.fault((keys, ""), found, "the folder of a data set, as seen from the grid file", fix)

    def budgets(self, values: Any, place: Keys = ("budgets",)) -> tuple[str, ...]:
        """Read `budgets`: shares, numbers or lists of ids."""
        self._require_list(place, values, (str, int), 'label budgets, such as ["5%", "10%"]')
        found = tuple(str(value).strip() for value in values)
        self._require_distinct([((place, value), value) for value in found])
        return found

    def seeds(self, values: Any) -> tuple[int, ...]:
        """Read `seeds`: how many, or which."""
        if type(values) is int and values > 0:
            return tuple(range(values))
        self._require_list(("seeds",), values, (int,), "a number of seeds, 1 or more, or a list of them")
        for value in values:
            if value < 0:
                raise self.fault((("seeds",), str(value)), f"the seed {value}", "0 or more", "choose another")
        self._require_distinct([((("seeds",), str(value)), str(value)) for value in values])
        return tuple(values)

    def settings(self, tree: Any) -> Tree:
        """Read `[settings]`."""
        if not isinstance(tree, dict):
            raise self.fault((("settings",), ""), repr(tree), "a table [settings]", "make it one")
        self._require_free(("settings",), tree)
        return self._named(("settings",), tree)

    def arms(self, tables: Any) -> tuple[Arm, ...]:
        """Read `[[arms]]`."""
        self._require_list(("arms",), tables, (dict,), "a table [[arms]] for each way to learn")
        found = []
        for index, table in enumerate(tables):
            place: Keys = ("arms", index)
            self.require_keys(place, table, ("name", *STAGES))
            settings = {stage: self._stage((*place, stage), table[stage]) for stage in STAGES if stage in table}
            parts = [settings.get(stage, {}).get("name", "") for stage in STAGES]
            name = table.get("name", " + ".join(part for part in parts if part))
            if not isinstance(name, str) or not name:
                fix = 'give it a pretrain, a method or a name = "..."'
                raise self.fault((place, ""), "an arm without a name", "what is compared", fix)
            found.append(Arm(name, settings))
        self._require_distinct([((("arms", index), arm.name), arm.name) for index, arm in enumerate(found)])
        return tuple(found)

    def _stage(self, keys: Keys, value: Any) -> Tree:
        stage = str(keys[-1])
        tree = {"name": value} if isinstance(value, str) else value
        if not isinstance(tree, dict) or not isinstance(tree.get("name", ""), str):
            raise self.fault(
                (keys, ""), repr(value), f"the name of a {stage}, or a table of its settings", "correct it"
            )
        return tree

    def _named(self, keys: Keys, tree: Tree) -> Tree:
        """Settings in which a method or pre-training may be a name alone, as in an arm."""
        return {key: self._stage((*keys, key), value) if key in STAGES else value for key, value in tree.items()}

    def require_settings(self, grid: Grid) -> None:
        """Refuse what is no setting, a value out of its range, and a name that is no method or pre-training."""
        for source in grid.data:
            for index, arm in enumerate(grid.arms):
                tree = _merged(grid, source, arm)
                try:
                    config = from_tree(Config, tree, "grid")
                except InputError as error:
                    keys = _keys_of(error)
                    place = (self._origin(grid, source, index, keys), "")
                    raise self.fault(place, f"{'.'.join(keys)}: {error.found}", error.expected, error.fix) from error
                for stage, registry in STAGES.items():
                    name = getattr(config, stage).name
                    if name not in registry:
                        place = (self._origin(grid, source, index, [stage, "name"]), name)
                        fix, what = _near(name, registry, "choose one of them"), f"one of {', '.join(registry)}"
                        raise self.fault(place, f"unknown {stage} `{name}`", what, fix)
                try:
                    per_stream(config)
                except InputError as error:
                    place = (self._origin(grid, source, index, error.where.split(".")), "")
                    raise self.fault(place, f"{error.where}: {error.found}", error.expected, error.fix) from error

    def _origin(self, grid: Grid, source: Source, arm: int, keys: list[str]) -> Keys:
        """Where a setting of a cell comes from: its arm, its data set, or what all cells share."""
        if _has(grid.arms[arm].settings, keys):
            return ("arms", arm, *keys)
        short = next((name for name, place in SHORT.items() if list(place) == keys), None)
        if _has(source.settings, keys):
            return ("data", source.name, *([short] if short else keys))
        return ("settings", *keys)

    def require_masks(self, grid: Grid, source: Source) -> None:
        """Refuse a budget that the data set cannot meet, or that leaves a method no image without a mask."""
        own: Keys = ("data", source.name)
        scanned: dict[DataConfig, Sequence[CaseFile]] = {}
        for index, arm in enumerate(grid.arms):
            config = from_tree(Config, _merged(grid, source, arm), str(self.path))
            try:
                listed = scanned.get(config.data) or list_cases(source.path, config.data).cases
            except InputError as error:
                labels = self._origin(grid, source, index, ["data", "label_map"])
                key = labels if error.where == "--label-map" else (*own, "path")
                fix = "correct it" if "--data." in error.fix else error.fix  # flags that a grid has no place for
                raise self.fault((key, ""), f"{error.where}: {error.found}", error.expected, fix) from error
            scanned[config.data] = listed
            drawn: dict[tuple[str, ...], str] = {}
            for budget in source.budgets or grid.budgets:
                settings = dataclasses.replace(config.split, labels=budget, seed=config.split.seed or 0)
                try:
                    split = make_split(listed, settings, grid.seeds[0])
                except InputError as error:
                    written: Keys = (*own, "budgets") if source.budgets else ("budgets",)
                    place = (written, budget) if error.where == "--labels" else (own, "")
                    found = f"data set {source.name}: {error.found}"
                    raise self.fault(place, found, error.expected, error.fix) from error
                before = drawn.setdefault(split.labelled, budget)
                if before != budget:
                    written = (*own, "budgets") if source.budgets else ("budgets",)
                    found = f"data set {source.name}: {budget} and {before} are the same {len(split.labelled)} masks"
                    raise self.fault((written, budget), found, "budgets of different masks", "remove one of them")
                if METHODS[config.method.name].sees == "labelled+unlabelled" and not split.unlabelled:
                    found = f"data set {source.name}, budget {budget}: no training image without a mask"
                    expected = f"images without masks, which {config.method.name} learns from"
                    fix = "lower the budget, or leave out the arm"
                    raise self.fault((("arms", index, "method"), ""), found, expected, fix)

    def _require_list(self, keys: Keys, values: Any, kinds: tuple[type, ...], expected: str) -> None:
        if not isinstance(values, list) or not values or not all(type(value) in kinds for value in values):
            found = "missing" if values is None else "an empty list" if values == [] else repr(values)
            raise self.fault((keys, ""), f"`{keys[-1]}`: {found}", expected, f"correct `{keys[-1]}`")

    def _require_free(self, keys: Keys, tree: Tree) -> None:
        """Refuse settings that a grid gives in another place."""
        for place, instead in OF_THE_GRID.items():
            if _has(tree, place):
                found = f"`{'.'.join(place)}` among the settings"
                raise self.fault(((*keys, *place), ""), found, f"it as `{instead}` of the grid", "move it there")

    def _require_distinct(self, named: Sequence[tuple[tuple[Keys, str], str]]) -> None:
        """Refuse two names that are one, or would be one as a folder."""
        before: dict[str, str] = {}
        for place, name in named:
            if plain(name) in before or not plain(name):
                found = f"`{name}`" + (f" after `{before[plain(name)]}`" if plain(name) else "")
                raise self.fault(place, found, "names that differ in letters or digits", "rename or remove one")
            before[plain(name)] = name


def _keys_of(error: InputError) -> list[str]:
    """The setting that `from_tree` refuses: `grid: train: steps`, `train.steps`, or in words where it is unknown."""
    keys = [part for part in re.split(r": |\.", error.where) if part != "grid"]
    unknown = re.fullmatch(r"unknown key `(.*)`", error.found)
    return [*keys, unknown[1]] if unknown else keys
