"""The only loop, its checkpoints, its schedule and its processes."""

from nissl.rooms import open_room

open_room(__name__)
