"""The verbs, from Python as from the command line: check, train, evaluate, predict, report, demo."""

import dataclasses
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import UInt8

from nissl.config import Config, DataConfig, from_tree, load_config, to_tree
from nissl.data.cases import CaseFile, find_cases, list_cases, load_case, look, scan
from nissl.data.check import Accepted, Report
from nissl.data.check import check as check_data
from nissl.data.duplicates import name_copies
from nissl.data.split import Split, caveats, make_split, seal
from nissl.errors import InputError
from nissl.evaluation.compare import Comparison
from nissl.evaluation.compare_runs import compare_runs
from nissl.evaluation.table import Summary, score_case, scores_to_csv, summarise
from nissl.files import write_whole
from nissl.imageio.formats import mask_suffix, read_raster, write_mask
from nissl.inference.folder import FolderResult, predict_folder
from nissl.inference.memory import Retreat
from nissl.inference.tiles import predict_mask
from nissl.learner import BOOTSTRAP
from nissl.progress import Advance, track, warn
from nissl.reporting.run_page import write_report
from nissl.runs.folder import choose_device, find_root, load_model, read_json, write_json
from nissl.runs.provenance import (
    changes,
    claimed,
    count_classes,
    describe,
    note_session,
    require_same,
    without_names,
)
from nissl.runs.reuse import has_begun, require_alike
from nissl.training import parity
from nissl.training.distributed import World, joined
from nissl.training.memory import keep_freed_memory
from nissl.training.network import require_fit, resolve_settings
from nissl.training.session import Control, Session
from nissl.training.stages import Job, chosen, open_stores, train_stages


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
        data: the folder (see `nissl.data.cases.find_cases` for its layouts).
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
    scanned = list_cases(data, config.data)
    if scanned.private:
        config = without_names(config, scanned)
    split = make_split(scanned.cases, config.split, config.seed)
    whole = look(data, scanned, config.data, split.labelled + split.unlabelled)  # not even a header of a test image
    dataset = seal(whole, split)
    device = choose_device(config.device)
    config = resolve_settings(config, dataset, split, device)
    with joined(device) as world, claimed(out, bool(resume)) if world.first else nullcontext():
        session = Session(out, device, world, control, config.data.workers)
        job = Job(config, dataset, split, session, _to_take_over(pretrained, out, world, device))
        changed = _admit(job, resume)
        networks, stores = job.networks(), open_stores(job, whole)  # what cannot work shows before the run starts
        class_pixels = count_classes(stores.labelled, dataset)
        network = require_fit(next(iter(networks.values())), config, dataset)
        if world.first and resume:
            note_session(out, config, changed)
        if world.first and (changed or not resume):
            write_json(out / "network.json", network)
            describe(out, config, dataset, split, class_pixels)
        test_masks = stores.test and parity.Looks(stores.test, config, len(split.labelled), device)
        if test_masks:
            job = dataclasses.replace(job, session=replace(session, control=replace(control, after_step=test_masks)))
        with _exactness(config.deterministic, device):
            train_stages(job, networks, stores)
        if test_masks:
            test_masks.write(out)
    return out


def _to_take_over(pretrained: Path | str | None, out: Path, world: World, device: torch.device) -> Path | None:
    """The run whose stage 1 is taken over, unless this one has begun its own."""
    if pretrained is None:
        return None
    # Asked of all processes, so that they agree: the first must not copy while another still looks.
    return None if world.largest(has_begun(out), device) else Path(pretrained)


def _admit(job: Job, resume: bool | Literal["changed"]) -> tuple[str, ...]:
    """Refuse what the protocol does not cover and runs that are not what they should be; return what has changed."""
    config, dataset, split, session = job.config, job.dataset, job.split, job.session
    if config.protocol == "parity":
        parity.require(dataset, config.data, session.world.size)
        warn(parity.WARNING)
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


def predict(run: Path | str, images: Path | str, out: Path | str, device: str = "auto") -> FolderResult:
    """Write a mask for every image of a folder, in its geometry and format (see `predict_folder`)."""
    return predict_folder(Path(run), Path(images), Path(out), device)


def report(run: Path | str, data: Path | str | None = None) -> Path:
    """Write the page of a run and return its path; `data` as of `evaluate`."""
    return write_report(Path(run), None if data is None else Path(data))


def compare(a: Path | str, b: Path | str) -> Comparison:
    """Compare two measured runs, or two measured series of seeds, case by case (see `compare_runs`)."""
    return compare_runs(Path(a), Path(b))


def evaluate(
    run: Path | str,
    on: Literal["test", "labelled"] = "test",
    device: str = "auto",
    data: Path | str | None = None,
    allow_shared_images: bool = False,
) -> Summary:
    """Measure a run on its test cases: here, and only here, their files are opened.

    Predicted masks go to `predictions/`, numbers to `metrics.csv` (a row per case and class) and `metrics.json`, all in
    the run folder. Masks are compared at the resolution of the files. `data` says where the folder of the data is, if
    that is not where it was, or if the run does not know it (it holds DICOM). A test image whose file equals one that
    the training opened is refused, or with `allow_shared_images` named in a warning that goes with the numbers.

    Raises:
        InputError: the folder is not a run, its data are gone, or a test image is a training image.
        DataError: a fault in the data or the weights.

    """
    run = Path(run)
    model = load_model(run, device)
    facts = read_json(run / "data.json")
    split = Split.from_json((run / "split.json").read_text(encoding="utf-8"))
    dataset = find_cases(find_root(run, facts, data), model.config.data)
    cases = chosen(dataset, split.test if on == "test" else split.labelled)
    copies = name_copies(cases, facts["cases"]) if on == "test" else ""
    if copies and not allow_shared_images:
        fix = "remove the copies and train again, or accept them with --allow-shared-images (the results will say so)"
        raise InputError(dataset.root, copies, "test images that no training saw", fix)
    folder = run / ("predictions" if on == "test" else f"predictions_{on}")
    folder.mkdir(exist_ok=True)
    rows, retreat = [], Retreat(model)
    with track(len(cases), "measuring") as advance:
        for file in cases:
            case = load_case(file, dataset.label_map, model.config.data)
            if case.mask is None:
                raise InputError(file.image_name, "its mask is gone", "the data of the run", "put the mask back")
            prediction = predict_mask(model, case.image, retreat)
            _write_prediction(folder, file, prediction, model.config.data)
            rows += score_case(case.id, case.group, prediction, case.mask, model.classes, case.spacing)
            advance(case.id)
    pixels = read_json(run / "budget.json").get("class_pixels", {})
    not_trained = [name for name in model.classes[1:] if pixels.get(name) == 0]
    known = [*caveats(split.shared_groups, split.transductive), *([copies] if copies else [])]
    known += parity.caveats(run, model.config.protocol)
    summary = summarise(rows, np.random.default_rng([model.config.seed, BOOTSTRAP]), not_trained, known)
    name = "metrics" if on == "test" else f"metrics_{on}"
    write_whole(run / f"{name}.csv", scores_to_csv(rows))
    write_json(run / f"{name}.json", summary.to_tree() | {"split": on, "cases": len(cases)})
    return summary


def _write_prediction(
    folder: Path, file: CaseFile, prediction: UInt8[np.ndarray, "*space"], config: DataConfig
) -> None:
    kind = mask_suffix(file.image)
    like = read_raster(file.image, config.limit_gib, file.alias) if kind.startswith(".nii") else None
    write_mask(folder / f"{file.id}{kind}", prediction, like)


@contextmanager
def _exactness(deterministic: bool, device: torch.device) -> Iterator[None]:
    """Use operations that give the same bits each time, for the time of the block.

    A GPU has none for the gradient of 3-D pooling, among others: there torch names the operation in a warning.
    """
    before = torch.are_deterministic_algorithms_enabled()
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic, warn_only=device.type != "cpu")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
