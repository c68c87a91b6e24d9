"""Members: the ways to do one thing, chosen by name, each with settings of its own.

A registry is light. It knows the settings class of each name and where the implementation is; it imports that, and
torch with it, only when somebody asks for it.
"""

import dataclasses
import difflib
import importlib
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, Generic, TypeVar, cast

import tyro

from nissl.errors import InputError


def short(name: str) -> Any:
    """Give a setting a short flag beside its long one: `--steps` beside `--train.steps`."""
    return tyro.conf.arg(aliases=(f"--{name}",))


def require(holds: bool, key: str, value: object, expected: str) -> None:
    """Refuse, by an InputError, the value of a setting that is not as expected."""
    if not holds:
        raise InputError(key, repr(value), expected, f"change {key} on the command line or in the settings file")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Base of the settings of all members; `name` says which member they are of."""

    name: str


def changed_options(settings: Settings) -> dict[str, Any]:
    """Return the options that are not at their default."""
    options = {field.name: field.default for field in dataclasses.fields(settings) if field.name != "name"}
    return {name: getattr(settings, name) for name, usual in options.items() if getattr(settings, name) != usual}


S = TypeVar("S", bound=Settings)


class Members(MutableMapping[str, Any], Generic[S]):
    """A registry: name -> settings class -> implementation. `members[name]` imports and returns the implementation.

    Args:
        kind: what the members are, which is also their table in a settings file: `method`.
        base: base class of their settings, by which a tree of settings finds this registry.
        places: settings class -> `package.module:Class`.
        foreign: settings of a name with a colon in it, which is itself the place of an implementation.

    """

    def __init__(self, kind: str, base: type[S], places: Mapping[type[S], str], foreign: type[S] | None = None) -> None:
        self.kind = kind
        self._foreign = foreign
        self._settings: dict[str, type[S]] = {}
        self._places: dict[str, Any] = {}
        for settings, place in places.items():
            self.add(settings, place)
        REGISTRIES[base] = self

    def add(self, settings: type[S], implementation: Any) -> None:
        """Enter a member by its settings, whose `name` has its name as default; the implementation or its place."""
        name = str(next(field.default for field in dataclasses.fields(settings) if field.name == "name"))
        self._settings[name], self._places[name] = settings, implementation

    def settings(self, name: str) -> type[S]:
        """Return the settings class of a member; an InputError where there is none of that name."""
        if name in self._settings:
            return self._settings[name]
        if self._foreign and ":" in name:
            return self._foreign
        near = difflib.get_close_matches(name, self._settings, n=1)
        fix = f"did you mean `{near[0]}`?" if near else "choose one of them"
        expected = f"one of {', '.join(self._settings)}"
        expected += ", or a class as package.module:Class" if self._foreign else ""
        raise InputError(f"{self.kind}.name", repr(name), expected, fix)

    def make(self, name: str, **options: Any) -> S:
        """Make the settings of a member; an InputError where there is none of that name, or it has no such option."""
        for option in options:
            self.require_option(name, option, f"{self.kind}.{option}")
        return self.settings(name)(name=name, **options)

    def owners(self, option: str) -> list[str]:
        """Return the members that have an option of that name."""
        named = {name: {field.name for field in dataclasses.fields(kind)} for name, kind in self._settings.items()}
        return [name for name, options in named.items() if option in options]

    def require_option(self, name: str, option: str, where: str) -> None:
        """Refuse, by an InputError, an option that a member does not have: one of other members, or of none."""
        options = [field.name for field in dataclasses.fields(self.settings(name))]
        if option in options:
            return
        others = self.owners(option)
        near = difflib.get_close_matches(option, options, n=1)
        fix = f"did you mean `{near[0]}`?" if near else "leave it out"
        if others:
            fix = f"`{option}` belongs to {', '.join(others)}: leave it out, or choose one of these"
        found, own = f"`{option}`, no option of {self.kind} `{name}`", ", ".join(options[1:]) or "none"
        raise InputError(where, found, f"an option of `{name}`: {own}", fix)

    def __contains__(self, name: object) -> bool:
        return name in self._settings

    def __getitem__(self, name: str) -> Any:
        self.settings(name)
        place = self._places.get(name, name)
        if not isinstance(place, str):
            return place
        module, _, attribute = place.partition(":")
        return getattr(importlib.import_module(module), attribute)

    def __setitem__(self, name: str, implementation: Any) -> None:
        self.settings(name)
        self._places[name] = implementation

    def __delitem__(self, name: str) -> None:
        del self._places[name], self._settings[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._settings)

    def __len__(self) -> int:
        return len(self._settings)


REGISTRIES: dict[type[Settings], Members[Any]] = {}
"""Each registry by the base class of its settings."""


def registry_of(base: type[Settings]) -> Members[Any]:
    """Return the registry whose members have settings of a base class, or of a class derived from it."""
    return next(members for known, members in REGISTRIES.items() if issubclass(base, cast(type, known)))
