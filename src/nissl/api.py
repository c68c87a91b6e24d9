"""The verbs, from Python as from the command line: check, train, evaluate, predict, report, demo."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from nissl.config import Config, DataConfig, from_tree, to_tree
from nissl.data.cases import CaseFile, Dataset
from nissl.data.check import Accepted, Report
from nissl.data.check import check as check_data
from nissl.data.discovery import find_cases, inspect_header, list_cases, scan
from nissl.data.duplicates import name_copies
from nissl.data.split import Split, caveats, lock_test_cases, make_split
from nissl.errors import Caveat, InputError
from nissl.evaluation.compare import Comparison
from nissl.evaluation.compare_runs import compare_runs
from nissl.files import write_whole
from nissl.imageio.formats import mask_suffix, read_raster
from nissl.inference.folder import FolderResult, predict_folder
from nissl.inference.memory import MemoryFallback
from nissl.inference.tiles import predict_mask
from nissl.learner import BOOTSTRAP
from nissl.model import Description, Model
from nissl.progress import Advance, track, warn
from nissl.reporting.run_page import write_report
from nissl.runs.folder import choose_device, find_root, read_json, unfinished, write_json
from nissl.runs.format import load_config
from nissl.runs.provenance import (
    changes,
    lock_run_folder,
    note_session,
    require_same,
    without_names,
    write_provenance,
)
from nissl.runs.reuse import has_begun, require_alike
from nissl.training.distributed import World, joined
from nissl.training.job import Job
from nissl.training.memory import keep_freed_memory
from nissl.training.network import require_fit, resolve_settings
from nissl.training.protocol import published
from nissl.training.session import Control, Session
from nissl.training.stages import chosen, open_stores, train_stages


def train(
    data: Path | str,
    out: Path | str,
    config: Config | None = None,
    resume: bool | Literal["changed"] = False,
    pretrained: Path | str | None = None,
    control: Control | None = None,
) -> Path:
    """Train a model on a folder of images with a few masks; returns the run folder.

    Args:
        data: the folder (see `nissl.data.discovery.find_cases` for its layouts).
        out: the run folder: new or empty, or an interrupted run with `resume`.
        config: the settings; None takes the defaults, or those of the run with `resume`.
        resume: resume an interrupted run of the same settings and data; `"changed"` accepts other settings or data
            where the state still fits, and the report says so.
        pretrained: another run with the same pre-training (images, settings and seed), whatever its budget and method:
            its pre-trained networks are reused, which saves the time and gives the same bits as making them here would
            on the same machine. A run that has begun a pre-training of its own continues with that.
        control: who watches the training and may stop it, from any thread.

    Raises:
        InputError: unusable folder, settings or label budget; the output folder is in use or holds something else; or
            the pre-training of `pretrained` is not that of this run.
        DataError: a fault in the data.
        ResourceError: out of disk, or a training that diverges.

    """
    data, out, control = Path(data), Path(out), control or Control()
    config = config or (load_config(out / "config.toml") if resume else Config())
    config = from_tree(Config, to_tree(config), "settings")  # as they read back: 0 of a rate is 0.0
    keep_freed_memory()
    config, whole, split = _find(data, config)
    dataset = lock_test_cases(whole, split)
    device = choose_device(config.device)
    config = resolve_settings(config, dataset, split, device)
    with joined(device) as world, lock_run_folder(out, bool(resume)) if world.first else nullcontext():
        session = Session(out, device, world, control, config.data.workers)
        job = Job(config, dataset, split, session, _to_reuse(pretrained, out, world, device))
        changed = _admit(job, resume)
        # What cannot work shows here, before the run starts.
        networks = job.method.initial(config.method, job.problem, config.seed)
        stores = open_stores(job)
        watcher = (protocol := published(config.protocol)) and protocol.watcher(job, whole, stores.cache)
        counts = job.task.require_learnable(stores.labelled, dataset)
        network = require_fit(next(iter(networks.values())), config, dataset)
        if world.first and resume:
            note_session(out, config, changed)
        if world.first and (changed or not resume):
            _describe(job, network, counts)
        watched = replace(session, control=control.and_after_step(watcher)) if watcher else session
        with _exactness(config.deterministic, device):
            train_stages(replace(job, session=watched), networks, stores)
        if watcher:
            watcher.write(out)
    return out


def _find(data: Path, config: Config) -> tuple[Config, Dataset, Split]:
    """Find the cases and split them; return the settings as well, without names where the data are private."""
    scanned = list_cases(data, config.data)
    if scanned.private:
        config = without_names(config, scanned)
    split = make_split(scanned.cases, config.split, config.seed)
    seen = split.labelled + split.unlabelled  # not even the header of a test image is read
    return config, inspect_header(data, scanned, config.data, seen), split


def _describe(job: Job, network: dict[str, Any], counts: dict[str, int]) -> None:
    """Write what the run is made of and what its model needs."""
    out, config, dataset = job.session.folder, job.config, job.dataset
    write_json(out / "network.json", network)
    masks = [file for file in dataset.cases if file.id in set(job.split.labelled)]
    values = job.task.values(masks, dataset.label_map, config.data)
    Description.of(config, dataset.channels, job.task.outputs(dataset), values).save(out)
    protocol = published(config.protocol)
    write_provenance(out, config, dataset, job.split, counts, protocol.choices(job.split.test) if protocol else ())


def _to_reuse(pretrained: Path | str | None, out: Path, world: World, device: torch.device) -> Path | None:
    """The run whose pre-training is reused, unless this one has begun its own."""
    if pretrained is None:
        return None
    # Asked of all processes, so that they agree: the first must not copy while another still looks.
    return None if world.largest(has_begun(out), device) else Path(pretrained)


def _admit(job: Job, resume: bool | Literal["changed"]) -> tuple[str, ...]:
    """Refuse what the protocol does not cover and runs that are not what they should be; return what has changed."""
    config, dataset, split, session = job.config, job.dataset, job.split, job.session
    if protocol := published(config.protocol):
        protocol.require(dataset, config, session.world.size)
        warn(protocol.caveats(session.folder)[0].text)
    resolve = partial(resolve_settings, dataset=dataset, split=split, device=session.device)
    changed = changes(session.folder, config, dataset, split, resolve) if resume else ()
    if resume != "changed":
        require_same(session.folder, changed)
    if job.pretrained:
        require_alike(job.pretrained, config, dataset, split, resolve)
    return changed


def check(data: Path | str, config: DataConfig | None = None, accepted: Accepted | None = None) -> Report:
    """List every fault of a data set, and its facts; nothing is written. `accepted` makes some faults warnings."""
    with ExitStack() as stack:
        bars: list[Advance] = []

        def shown(done: int, total: int) -> None:
            if not bars:
                bars.append(stack.enter_context(track(total, "checking")))
            bars[0]("")

        return check_data(Path(data), config or DataConfig(), shown, accepted or Accepted())


def place(data: Path, config: Config) -> str:
    """How a message calls the folder of the data: by its path, unless there is DICOM in it."""
    try:
        return "DATA" if scan(data, config.data).private else str(data)
    except InputError:  # it is gone
        return str(data)


def predict(
    run: Path | str,
    images: Path | str,
    out: Path | str,
    device: str = "auto",
    values: Literal["own", "classes"] = "own",
) -> FolderResult:
    """Write a mask for every image of a folder, in its geometry and format (see `predict_folder`)."""
    return predict_folder(Path(run), Path(images), Path(out), device, values=values)


def report(run: Path | str, data: Path | str | None = None) -> Path:
    """Write the page of a run and return its path; `data` as of `evaluate`."""
    return write_report(Path(run), None if data is None else Path(data))


def compare(a: Path | str, b: Path | str) -> Comparison:
    """Compare two measured runs, or two measured trainings of several seeds, case by case (see `compare_runs`)."""
    return compare_runs(Path(a), Path(b))


def evaluate(
    run: Path | str,
    on: Literal["test", "labelled"] = "test",
    device: str = "auto",
    data: Path | str | None = None,
    allow_shared_images: bool = False,
) -> Any:
    """Measure a run on its test cases: here, and only here, their files are opened.

    Returns what the task summarises: for segmentation a `nissl.tasks.scores.Summary`.

    Predicted masks go to `predictions/`, numbers to `metrics.csv` (a row per case and class) and `metrics.json`, all in
    the run folder. Masks are compared at the resolution of the files. `data` says where the folder of the data is, if
    that is not where it was, or if the run does not know it (it holds DICOM). A test image whose file equals one that
    the training opened is refused, or with `allow_shared_images` named in a warning that goes with the numbers.

    Raises:
        InputError: the folder is not a run, its data are gone, or a test image is a training image.
        DataError: a fault in the data or the weights.

    """
    run = Path(run)
    model, config = Model.load(run, device), load_config(run / "config.toml")
    facts = read_json(run / "data.json")
    split = Split.from_tree(read_json(run / "split.json"), run / "split.json")
    dataset = find_cases(find_root(run, facts, data), config.data)
    task = model.task
    if (outputs := task.outputs(dataset)) != model.classes:
        found, fix = f"the classes {', '.join(outputs)}", "state the label map of the run's data"
        raise InputError(dataset.place, found, f"those of the run: {', '.join(model.classes)}", fix)
    cases = chosen(dataset, split.test if on == "test" else split.labelled)
    copies = name_copies(cases, facts["cases"]) if on == "test" else ""
    if copies and not allow_shared_images:
        fix = "remove the copies and train again, or accept them with --allow-shared-images (the results will say so)"
        raise InputError(dataset.root, copies, "test images that no training saw", fix)
    folder = run / ("predictions" if on == "test" else f"predictions_{on}")
    folder.mkdir(exist_ok=True)
    rows = _measure(model, cases, dataset, config.data, folder)
    counts = read_json(run / "budget.json").get("class_pixels", {})
    known = [*unfinished(model.steps, model.planned_steps), *caveats(split.shared_groups, split.transductive)]
    protocol = published(config.protocol)
    known += [*([Caveat("shared-images", copies)] if copies else []), *(protocol.caveats(run) if protocol else [])]
    summary = task.summarise(rows, np.random.default_rng([config.seed, BOOTSTRAP]), counts, known)
    name = "metrics" if on == "test" else f"metrics_{on}"
    write_whole(run / f"{name}.csv", task.columns.to_csv(rows))
    facts = {"split": on, "cases": len(cases), "steps": model.steps, "planned_steps": model.planned_steps}
    write_json(run / f"{name}.json", summary.to_tree() | facts)
    return summary


def _measure(model: Model, cases: list[CaseFile], dataset: Dataset, settings: DataConfig, folder: Path) -> list[Any]:
    """Predict each case, write what is predicted to a folder, and compare it; return the rows of all."""
    task, fallback = model.task, MemoryFallback(model)
    rows: list[Any] = []
    with track(len(cases), "measuring") as advance:
        for file in cases:
            case = task.targets.read(file, dataset.label_map, settings)
            if case.target is None:
                raise InputError(file.image_name, "its mask is gone", "the data of the run", "put the mask back")
            prediction = predict_mask(model, case.image, fallback)
            like = read_raster(file.image, settings.limit_gib, file.alias, settings.axes)
            target = folder / f"{file.id}{mask_suffix(file.image)}"
            task.write(target, iter([prediction]), like, model.values, "")
            rows += task.rows(case, prediction, model.classes)
            advance(case.id)
    return rows


@contextmanager
def _exactness(deterministic: bool, device: torch.device) -> Iterator[None]:
    """Use operations that give the same bits each time, for the time of the block.

    A GPU has none for the gradient of 3-D pooling, among others: there torch names the operation in a warning.
    The mode is set by its own name, as `torch.use_deterministic_algorithms` loads the compiler (see `optimisers`).
    """
    before = torch.get_deterministic_debug_mode()
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    mode = "error" if device.type == "cpu" else "warn"
    torch.set_deterministic_debug_mode(mode if deterministic else "default")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)
