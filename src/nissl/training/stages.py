"""A whole training: the pre-training of each network, then the method, each a stage of the one loop."""

import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from nissl.config import TrainConfig
from nissl.data.batches import Cache, Schedule, Store, Stream
from nissl.data.cases import CaseFile, Dataset
from nissl.data.orientation import differences
from nissl.data.resizing import loss
from nissl.errors import DataError, InputError, TestSplitLocked
from nissl.files import write_whole
from nissl.learner import PRETRAIN, TRAIN, Learner, derived_seed
from nissl.plasticity import plastic_layers
from nissl.pretrain.pretraining import Pretraining, at_point
from nissl.pretrain.settings import Gradient, Learning, Stepped
from nissl.progress import track, warn
from nissl.runs.checkpoint import has_checkpoint
from nissl.runs.folder import FILTERS, STATE, checkpoint_of, pretraining_log, write_json
from nissl.runs.reuse import note_origin, reuse
from nissl.training.job import Job
from nissl.training.loop import Trainer, run_stage
from nissl.training.network import per_stream
from nissl.training.session import Stage

CURVES = ("step", "loss", "terms", "change")
"""Of a line of the log of a pre-training, what its curves show."""


@dataclass(frozen=True)
class Stores:
    """The cases that a training reads; None where it does not need them."""

    labelled: Store
    unlabelled: Store | None
    images: Store | None
    """All training images without their masks, for a learner that sees images only."""
    cache: Cache
    """What they have in common."""


def open_stores(job: Job) -> Stores:
    """Read each file that the training will use, so that a fault shows at once and not after hours.

    Raises:
        InputError: the method wants unlabelled images, and there are none.
        DataError: a file cannot be read or used, or is of another kind than the others.

    """
    config, dataset, split = job.config, job.dataset, job.split
    unlabelled = job.method.sees == "labelled+unlabelled"
    if unlabelled and not split.unlabelled:
        found, fix = "no unlabelled training image", "lower --labels, or use --method supervised"
        raise InputError(f"method.name {config.method.name}", found, "unlabelled images to learn from", fix)
    cache, pretrains = Cache(config.data), isinstance(config.pretrain, Stepped)

    def store(ids: Sequence[str], with_masks: bool = False) -> Store:
        files, targets = chosen(dataset, ids), job.task.targets
        return Store(files, dataset.label_map, config.data, with_masks=with_masks, cache=cache, targets=targets)

    stores = Stores(
        store(split.labelled, with_masks=True),
        store(split.unlabelled) if unlabelled else None,
        store(sorted(split.labelled + split.unlabelled)) if pretrains else None,
        cache,
    )
    read = [part for part in (stores.labelled, stores.unlabelled, stores.images) if part is not None]
    with track(sum(map(len, read)), "reading") as advance:
        for part in read:
            for index, file in enumerate(part.files):
                channels = len(part[index].image)
                if channels != dataset.channels:
                    found, expected = f"{channels} channels", f"{dataset.channels}, as the first image"
                    raise DataError(file.image_name, found, expected, "add --colour rgb or --colour gray")
                advance(file.id)
    warnings = list(differences({name: place for part in read for name, place in part.places.items()}))
    for found, _, fix in [*warnings, *loss(stores.labelled.kept.values())]:
        warn(f"{found}: {fix}")
    return stores


def chosen(dataset: Dataset, ids: Sequence[str]) -> list[CaseFile]:
    """Return the cases of these ids; an InputError where one is gone, TestSplitLocked where one is locked."""
    by_id = {case.id: case for case in dataset.cases}
    if missing := [name for name in ids if name not in by_id]:
        found = f"{len(missing)} cases of the run are gone, such as {missing[0]}"
        fix = "put the files back, or train again"
        raise InputError(dataset.place, found, "the data that the run was trained on", fix)
    for name in ids:
        if by_id[name].locked:
            raise TestSplitLocked(name)
    return [by_id[name] for name in ids]


def train_stages(job: Job, networks: Mapping[str, nn.Module], stores: Stores) -> None:
    """Pre-train the networks and train the method over them, from where an interrupted run stopped.

    Raises:
        ResourceError: a stage stayed without a finite step, or the disk is full.
        Interrupted: it was asked to stop; the state is saved.

    """
    config, session = job.config, job.session
    for net in networks.values():
        session.place(net)
    resumed = has_checkpoint(session.folder / STATE)
    start, trained = _pretrain(job, networks, stores.images, resumed)
    seed = derived_seed(config.seed, TRAIN)
    schedule = Schedule(seed, per_stream(config), session.world.rank, session.world.size)
    stream = Stream(stores.labelled, stores.unlabelled, config.augment, schedule)
    learner: Learner = job.method.build(config.method, job.problem, start, seed)
    if isinstance(config.pretrain, Learning):
        learner.fine_tuning = trained, config.pretrain.fine_tuning_rate
    trainer = run_stage(learner, stream, Stage("training", config.train, seed), session, resumed)
    if session.world.first and trainer.average:
        save_filters(session.folder / FILTERS, trainer.average.module)


def _pretrain(
    job: Job, networks: Mapping[str, nn.Module], images: Store | None, resumed: bool
) -> tuple[dict[str, nn.Module], list[nn.Parameter]]:
    """Pre-train each network; return them, and the parameters that were trained.

    The report left behind is that of the first, with the cost of all. Where the last stage has begun the networks only
    get the form that they had after the pre-training.
    """
    config, session = job.config, job.session
    world, out = session.world, session.folder
    if job.pretrained and not resumed:
        if world.first:
            note_origin(out, job.pretrained, job.dataset.private)
            reuse(job.pretrained, out, len(networks))
        world.largest(0, session.device)  # the others wait for it
    start: dict[str, nn.Module] = {}
    trained: list[nn.Parameter] = []
    reports, seconds = [], 0.0
    for index, (name, net) in enumerate(networks.items()):
        seed = derived_seed(config.seed, PRETRAIN, index)
        learner = job.pretraining.build(config.pretrain, job.problem, {"0": net}, seed)
        if resumed:
            learner.restructure()
        elif images is None:
            reports.append(learner.finish(lambda step: ()))
        else:
            trainer = _run_pretraining(job, learner, images, index)
            reports.append(_report(out, trainer))
            seconds += trainer.seconds
        start[name] = learner.hands_over()["0"]
        trained += learner.trained_of_the_network()
    if world.first and not resumed:
        cost = {"images": sum(report["images"] for report in reports), "seconds": seconds}
        write_json(out / "pretrain.json", reports[0] | cost)
        save_filters(out / "filters_start.npy", next(iter(start.values())))
    return start, trained


def _run_pretraining(job: Job, learner: Pretraining, images: Store, index: int) -> Trainer:
    config, session = job.config, job.session
    settings = config.pretrain
    assert isinstance(settings, Stepped)
    path = checkpoint_of(session.folder, index)
    schedule = Schedule(learner.seed, settings.batch, session.world.rank, session.world.size)
    precision, save_every = config.train.precision, config.train.save_every
    train = dataclasses.replace(pretraining_loop(settings), precision=precision, save_every=save_every)
    state, title = path.relative_to(session.folder), f"pre-training ({settings.name})"
    stage = Stage(title, train, learner.seed, state, None, pretraining_log(index))
    return run_stage(learner, Stream(None, images, config.augment, schedule), stage, session, has_checkpoint(path))


def pretraining_loop(settings: Stepped) -> TrainConfig:
    """Return the settings of the loop for a pre-training: Adam, if any, falling linearly to zero."""
    rate = settings.rate if isinstance(settings, Gradient) else 1.0
    return TrainConfig(
        steps=settings.steps,
        batch=settings.batch,
        optimiser="adam",
        learning_rate=rate,
        weight_decay=0.0,
        schedule="linear",
        warmup=0.0,
    )


def _report(out: Path, trainer: Trainer) -> dict[str, Any]:
    """What a pre-training did: the learner's facts, the images that this process saw, and the curves from its log."""
    steps, world = trainer.stage.train.steps, trainer.session.world
    images = steps * (trainer.stage.train.batch // world.size)
    log = out / trainer.stage.log
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.is_file() else []
    shown = [line for line in lines if at_point(line["step"] - 1, steps) and "skipped" not in line]
    curves = [{key: line[key] for key in CURVES if key in line} for line in shown]
    facts = trainer.finished or {}
    return facts | {"images": images, "curves": [point for point in curves if len(point) > 1]}


def save_filters(path: Path, net: nn.Module) -> None:
    """Write the filters of the first layer, `(out, in, *kernel)`."""
    first = next(plastic_layers(net))[1]
    buffer = io.BytesIO()
    np.save(buffer, first.weight.detach().cpu().numpy(), allow_pickle=False)
    write_whole(path, buffer.getvalue())
