"""Put what a bench measured into one small file: what `nissl report` needs, without weights and data.

`python benchmarks/pack.py DIR FILE.tar.xz`. Unpacked, the folder gives the same page and the same tables as DIR, and
every case of every run can be counted again. Where the data lie and by which command a run was started is left out;
settings, and the messages of failed runs, stay as they are.
"""

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import tyro

from nissl.files import write_whole
from nissl.runs.folder import read_json
from nissl.runs.format import stamped

OF_THE_BENCH = ("grid.toml", "cost.json", "results.csv")
OF_A_RUN = ("config.toml", "metrics.csv", "metrics.json", "network.json", "budget.json", "parity.json", "failed.json")
LAST = 20
"""Steps whose mean is the loss that is kept."""


@dataclass(frozen=True)
class Pack:
    """Pack a bench."""

    out: Annotated[Path, tyro.conf.Positional]
    """Folder of the bench."""
    file: Annotated[Path, tyro.conf.Positional]
    """The file to write, which is not there yet."""


def main(asked: Pack) -> None:
    """Write the file and say how large it is."""
    if asked.file.exists():
        raise SystemExit(f"{asked.file} exists already: choose another name")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz") as archive:
        for name, content in contents(asked.out):
            entry = tarfile.TarInfo(f"{asked.out.resolve().name}/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    write_whole(asked.file, packed.getvalue())
    print(f"{asked.file}: {asked.file.stat().st_size / 1e6:.2f} MB")


def contents(out: Path) -> Iterator[tuple[str, bytes]]:
    """Each file by its place in the bench, those of one kind beside each other so that they pack well."""
    cells = read_json(out / "cells.json")
    yield "cells.json", _json({cell: tree | {"path": Path(tree["path"]).name} for cell, tree in cells.items()})
    changed: dict[str, Callable[[Path], bytes]] = {
        "env.json": _environment,
        "log.jsonl": _end,
        "pretrain.json": _stage_1,
    }
    runs = [out / "runs" / cell for cell in cells]
    names = (*OF_A_RUN, *changed)
    for path in (*(out / name for name in OF_THE_BENCH), *(run / name for name in names for run in runs)):
        if path.is_file():
            yield str(path.relative_to(out)), changed.get(path.name, Path.read_bytes)(path)


def _environment(path: Path) -> bytes:
    """Without the command, which names folders of the machine."""
    known = read_json(path)
    return _json({name: known[name] for name in ("nissl", "torch", "python", "device", "threads", "date")})


def _end(path: Path) -> bytes:
    """The last step, with the seconds of all steps and the mean loss of the last ones."""
    lines = []
    for line in path.read_text().splitlines():
        with suppress(ValueError):  # one that a kill cut short
            lines.append(json.loads(line))
    if not lines:
        return b""
    losses = [line["loss"] for line in lines[-LAST:] if line["loss"] is not None]
    seconds = round(sum(line["seconds"] for line in lines), 2)
    return _line({"step": lines[-1]["step"], "loss": round(mean(losses), 4) if losses else None, "seconds": seconds})


def _stage_1(path: Path) -> bytes:
    """Without its curves, which are most of it."""
    return _json(read_json(path) | {"curves": []})


def _line(tree: Any) -> bytes:
    return json.dumps(tree).encode() + b"\n"


def _json(tree: Any) -> bytes:
    return _line(stamped(tree))


if __name__ == "__main__":
    main(tyro.cli(Pack))
