"""What is refused before a bench runs: arms that cannot work, and data that cannot be tested on or have changed."""

from collections.abc import Sequence
from pathlib import Path

from nissl.bench.grid.grid import Cell
from nissl.bench.run.results import folder_of
from nissl.data.discovery import inspect_header, list_cases
from nissl.data.duplicates import file_hash, name_copies
from nissl.data.split import make_split
from nissl.errors import DataError, InputError
from nissl.nets import factory
from nissl.runs.folder import choose_device
from nissl.runs.provenance import changed_data
from nissl.tasks.task import task_of
from nissl.training import network
from nissl.training.protocol import published


def require_workable(todo: Sequence[Cell], here: bool) -> None:
    """Refuse arms whose network, pre-training or method cannot work with the images of a data set, as one header shows.

    Where the cells run here, this machine must have the device that is asked for.

    Raises:
        InputError: one cannot work; it names arm and data set.

    """
    for cell in {(cell.data, cell.arm): cell for cell in todo}.values():
        scanned = list_cases(cell.path, cell.config.data)
        split = make_split(scanned.cases, cell.config.split, cell.seed)
        try:
            dataset = inspect_header(cell.path, scanned, cell.config.data, split.labelled + split.unlabelled)
        except DataError:  # of the files: the cells that read them fail, and say which it is
            continue
        try:
            device = choose_device(cell.config.device if here else "cpu")
            config = network.resolve_settings(cell.config, dataset, split, device)
            if protocol := published(config.protocol):
                protocol.require(dataset, config, processes=1)
            net = factory.build(
                config.net, dataset.dims, dataset.channels, len(task_of(config.task).outputs(dataset)), seed=0
            )
            network.require_fit(net, config, dataset)
        except InputError as error:
            where = f"arm {cell.arm} on data set {cell.data}: {error.where}"
            raise InputError(where, error.found, error.expected, error.fix) from error


def require_separate(todo: Sequence[Cell]) -> None:
    """Refuse data in which a test image is a training image under another name: no cell could be measured.

    Raises:
        InputError: there is one.

    """
    for cell in {cell.data: cell for cell in todo}.values():
        files = {file.id: file for file in list_cases(cell.path, cell.config.data).cases}
        split = make_split(list(files.values()), cell.config.split, cell.seed)
        trained = [{"id": id_, "image_sha256": file_hash(files[id_].image)} for id_ in files if id_ not in split.test]
        if copies := name_copies([files[id_] for id_ in split.test], trained):
            expected = "test images that no training sees"
            raise InputError(f"data set {cell.data}", copies, expected, "remove the copies; `nissl check` lists them")


def require_unchanged(out: Path, all_cells: Sequence[Cell], todo: Sequence[Cell]) -> None:
    """Refuse to resume where files that other cells have learnt from are others now: a table compares them all.

    Raises:
        InputError: a case came or went, or an image or a mask of one has changed.
        DataError: the data.json of a cell is damaged.

    """
    for cell in {cell.data: cell for cell in todo}.values():
        runs = {other.id: folder_of(out, other) for other in all_cells if other.data == cell.data}
        if found := changed_data(runs, cell.path, cell.config.data):
            fix = "put it back, or start a new bench in another --out"
            raise InputError(f"data set {cell.data}", found, "the data that the bench began with", fix)
