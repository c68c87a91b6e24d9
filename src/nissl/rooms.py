"""Rooms whose name is also a verb: `nissl.train(...)` trains, and `nissl.train.loop` is a module inside the room.

Importing a room makes Python put the package where the verb was; so the package can be called as well.
"""

import importlib
import sys
from types import ModuleType
from typing import Any


class Room(ModuleType):
    """A package that can be called: it runs the verb of its name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the verb (see `nissl.jobs`)."""
        return getattr(importlib.import_module("nissl.jobs"), self.__name__.rpartition(".")[2])(*args, **kwargs)


def open_room(name: str) -> None:
    """Make the package of this name callable."""
    sys.modules[name].__class__ = Room
