"""The verbs, from Python as from the command line: check, train, evaluate, predict, report, demo."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from nissl import nets
from nissl.config import Config, DataConfig, from_tree, load_config, to_tree
from nissl.data.batches import ImageStream, Schedule, Store, Stream
from nissl.data.cases import CaseFile, Dataset, find_cases, list_cases, load_case, look, scan
from nissl.data.check import Accepted, Report
from nissl.data.check import check as check_data
from nissl.data.duplicates import name_copies
from nissl.data.split import Split, caveats, make_split, seal
from nissl.errors import Caveat, DataError, InputError, TestSplitLocked
from nissl.evaluation.compare import Comparison
from nissl.evaluation.compare_runs import compare_runs
from nissl.evaluation.table import Summary, score_case, scores_to_csv, summarise
from nissl.files import write_whole
from nissl.imageio.formats import mask_suffix, read_raster, write_mask
from nissl.inference.folder import FolderResult, predict_folder
from nissl.inference.memory import Retreat
from nissl.inference.tiles import predict_mask
from nissl.methods import METHODS
from nissl.plasticity import plastic_layers
from nissl.pretrain import PRETRAININGS, Images, Pretraining
from nissl.progress import Advance, track, warn
from nissl.reporting.run_page import write_report
from nissl.runs.checkpoint import has_checkpoint
from nissl.runs.folder import FILTERS, STATE, checkpoint_of, choose_device, find_root, load_model, read_json, write_json
from nissl.runs.provenance import (
    changes,
    claimed,
    count_classes,
    describe,
    note_session,
    require_same,
    without_names,
)
from nissl.runs.reuse import has_begun, note_origin, require_alike, take_over
from nissl.training import parity
from nissl.training.distributed import World, joined, synchronise
from nissl.training.loop import CHANNELS_LAST, Trainer, lay_out
from nissl.training.memory import keep_freed_memory
from nissl.training.network import per_stream, require_fit, settled
from nissl.training.stage1 import Stage1

NETWORK, STAGE_1, STAGE_2, BOOTSTRAP = 1, 2, 3, 4
"""Names of the draws that follow from one seed."""


def train(
    data: Path | str,
    out: Path | str,
    config: Config | None = None,
    resume: bool = False,
    allow_changed: bool = False,
    pretrained: Path | str | None = None,
) -> Path:
    """Train a model on a folder of images with a few masks; returns the run folder.

    Args:
        data: the folder (see `nissl.data.cases.find_cases` for its layouts).
        out: the run folder: new or empty, or an interrupted run with `resume`.
        config: the settings; None takes the defaults, or those of the run with `resume`.
        resume: go on with an interrupted run of the same settings and data.
        allow_changed: with `resume`, accept other settings or data where the state still fits; the report says so.
        pretrained: another run that began with the same stage 1 (images, settings and seed), whatever its budget and
            method: its networks as they left stage 1 are taken, which saves the time and gives the same bits as making
            them here would on the same machine. A run that has begun a stage 1 of its own goes on with that.

    Raises:
        InputError: unusable folder, settings or label budget; the output folder is in use or holds something else; or
            the stage 1 of `pretrained` is not that of this run.
        DataError: a fault in the data.
        ResourceError: out of disk, or a training that diverges.

    """
    data, out = Path(data), Path(out)
    config = config or (load_config(out / "config.toml") if resume else Config())
    config = from_tree(Config, to_tree(config), "settings")  # as they read back: 0 of a rate is 0.0
    _known("method.name", config.method.name, METHODS)
    _known("pretrain.name", config.pretrain.name, PRETRAININGS)
    keep_freed_memory()
    scanned = list_cases(data, config.data)
    if scanned.private:
        config = without_names(config, scanned)
    split = make_split(scanned.cases, config.split, config.seed)
    whole = look(data, scanned, config.data, split.labelled + split.unlabelled)  # not even a header of a test image
    dataset = seal(whole, split)
    config = settled(config, dataset, split)
    device = choose_device(config.device)
    with joined(device) as world, claimed(out, resume) if world.first else nullcontext():
        other = _to_take_over(pretrained, out, world, device)
        job = _Job(out, config, dataset, split, device, world, other)
        changed = _admit(job, resume, allow_changed)
        # What cannot work shows here, before the run starts.
        networks, stores = _networks(job), _stores(job, whole)
        class_pixels = count_classes(stores.labelled, dataset)
        network = require_fit(networks[0], config, dataset)
        if world.first and resume:
            note_session(out, config, changed)
        if world.first and (changed or not resume):
            write_json(out / "network.json", network)
            describe(out, config, dataset, split, class_pixels)
        with _exactness(config.deterministic, device):
            _train(job, networks, stores)
    return out


def _to_take_over(pretrained: Path | str | None, out: Path, world: World, device: torch.device) -> Path | None:
    """The run whose stage 1 is taken over, unless this one has begun its own."""
    if pretrained is None:
        return None
    # Asked of all processes, so that they agree: the first must not copy while another still looks.
    return None if world.largest(has_begun(out), device) else Path(pretrained)


def _admit(job: "_Job", resume: bool, allow_changed: bool) -> tuple[str, ...]:
    """Refuse what the protocol does not cover and runs that are not what they should be; return what has changed."""
    config, dataset, split = job.config, job.dataset, job.split
    if config.protocol == "parity":
        parity.require(dataset, config.data, job.world.size)
        warn(parity.WARNING)
    changed = changes(job.out, config, dataset, split) if resume else ()
    if not allow_changed:
        require_same(job.out, changed)
    if job.pretrained:
        require_alike(job.pretrained, config, dataset, split)
    return changed


@dataclasses.dataclass(frozen=True)
class _Job:
    """One training: what, of what, where to and by whom."""

    out: Path
    config: Config
    dataset: Dataset
    split: Split
    device: torch.device
    world: World
    pretrained: Path | None
    """The run whose stage 1 is taken over."""


@dataclasses.dataclass(frozen=True)
class _Stores:
    """The cases that the run reads; None where it does not look at them."""

    labelled: Store
    unlabelled: Store | None
    images: Store | None
    """All training images without their masks, for stage 1."""
    test: Store | None
    """The test cases, which the published protocol alone looks at."""


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


def _train(job: _Job, networks: Sequence[nn.Module], stores: _Stores) -> None:
    """Pre-train and train."""
    out, config, world = job.out, job.config, job.world
    resumed = has_checkpoint(out / STATE)
    if resumed:
        for index, net in enumerate(networks):
            _pretraining(config, index).restructure(net)
    else:
        _pretrain(job, networks, stores.images)
    seed = _seed(config.seed, STAGE_2)
    schedule = Schedule(seed, per_stream(config), world.rank, world.size)
    stream = Stream(stores.labelled, stores.unlabelled, config.augment, schedule)
    method = METHODS[config.method.name](networks, config.method)
    apart = [parameter for net in networks for parameter in _pretraining(config, 0).trained(net)]
    share = config.pretrain.fine_tuning_rate
    trainer = Trainer(method, stream, config.train, out, seed, job.device, world, config.data.workers, apart, share)
    masks = len(job.split.labelled)
    trainer.after = looks = parity.Looks(method, stores.test, config, masks, job.device) if stores.test else None
    if resumed and (warning := trainer.resume()):
        warn(warning)
    trainer.run()
    if looks:
        looks.write(out)
    if world.first:
        _save_filters(out / FILTERS, trainer.average.module)


def _pretrain(job: _Job, networks: Sequence[nn.Module], store: Store | None) -> None:
    """Pre-train the networks in place; the report left behind is that of the first, with the cost of all."""
    out, config, world = job.out, job.config, job.world
    reports, seconds = [], 0.0
    if job.pretrained:
        if world.first:
            note_origin(out, job.pretrained, job.dataset.private)
            take_over(job.pretrained, out, len(networks))
        world.largest(0, job.device)  # the others wait for it
    for index, net in enumerate(networks):
        net.to(job.device)
        lay_out(net)
        if world.size > 1:
            synchronise(net)
        path = checkpoint_of(out, index)
        stage = Stage1(_pretraining(config, index), net, path, config.train.save_every, job.device, world)
        reports.append(stage.run(_images(job, store, index)))
        seconds += stage.seconds
    if world.first:
        cost = {"images": sum(report.images for report in reports), "seconds": seconds}
        write_json(out / "pretrain.json", dataclasses.asdict(reports[0]) | cost)
        _save_filters(out / "filters_start.npy", networks[0])


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
    chosen = _chosen(dataset, split.test if on == "test" else split.labelled)
    copies = name_copies(chosen, facts["cases"]) if on == "test" else ""
    if copies and not allow_shared_images:
        fix = "remove the copies and train again, or accept them with --allow-shared-images (the results will say so)"
        raise InputError(dataset.root, copies, "test images that no training saw", fix)
    folder = run / ("predictions" if on == "test" else f"predictions_{on}")
    folder.mkdir(exist_ok=True)
    rows, retreat = [], Retreat(model)
    with track(len(chosen), "measuring") as advance:
        for file in chosen:
            case = load_case(file, dataset.label_map, model.config.data)
            if case.mask is None:
                raise InputError(file.image_name, "its mask is gone", "the data of the run", "put the mask back")
            prediction = predict_mask(model, case.image, retreat)
            _write_prediction(folder, file, prediction, model.config.data)
            rows += score_case(case.id, case.group, prediction, case.mask, model.classes, case.spacing)
            advance(case.id)
    pixels = read_json(run / "budget.json").get("class_pixels", {})
    not_trained = [name for name in model.classes[1:] if pixels.get(name) == 0]
    known = [*caveats(split.shared_groups, split.transductive), *([Caveat("shared-images", copies)] if copies else [])]
    known += parity.caveats(run, model.config.protocol)
    summary = summarise(rows, np.random.default_rng([model.config.seed, BOOTSTRAP]), not_trained, known)
    name = "metrics" if on == "test" else f"metrics_{on}"
    write_whole(run / f"{name}.csv", scores_to_csv(rows))
    write_json(run / f"{name}.json", summary.to_tree() | {"split": on, "cases": len(chosen)})
    return summary


def _write_prediction(
    folder: Path, file: CaseFile, prediction: UInt8[np.ndarray, "*space"], config: DataConfig
) -> None:
    kind = mask_suffix(file.image)
    like = read_raster(file.image, config.limit_gib, file.alias) if kind.startswith(".nii") else None
    write_mask(folder / f"{file.id}{kind}", prediction, like)


def _chosen(dataset: Dataset, ids: Sequence[str]) -> list[CaseFile]:
    by_id = {case.id: case for case in dataset.cases}
    missing = [name for name in ids if name not in by_id]
    if missing:
        raise InputError(
            dataset.place,
            f"{len(missing)} cases of the run are gone, such as {missing[0]}",
            "the data that the run was trained on",
            "put the files back, or train again",
        )
    for name in ids:
        if by_id[name].locked:
            raise TestSplitLocked(name)
    return [by_id[name] for name in ids]


def _pretraining(config: Config, index: int) -> Pretraining:
    return PRETRAININGS[config.pretrain.name](config.pretrain, _seed(config.seed, STAGE_1, index))


def _networks(job: _Job) -> list[nn.Module]:
    """Build the networks that the method trains.

    Raises:
        InputError: they cannot be made.

    """
    config, dataset = job.config, job.dataset
    classes = len(dataset.label_map.names)
    return [
        nets.build(config.net, dataset.dims, dataset.channels, classes, _seed(config.seed, NETWORK, index))
        for index in range(METHODS[config.method.name].count)
    ]


def _stores(job: _Job, whole: Dataset) -> _Stores:
    """Read each file that the run will use, so that a fault shows at once and not after hours.

    `whole` are the cases before they were sealed: the published protocol alone takes test cases from them.

    Raises:
        InputError: the method wants images without masks, and there are none.
        DataError: a file cannot be read or used, or is of another kind than the others.

    """
    config, dataset, split = job.config, job.dataset, job.split
    if METHODS[config.method.name].uses_unlabelled and not split.unlabelled:
        found, fix = "no training image without a mask", "lower --labels, or use --method supervised"
        raise InputError(f"method.name {config.method.name}", found, "images without masks to learn from", fix)
    semi, looks = METHODS[config.method.name].uses_unlabelled, _pretraining(config, 0).steps > 0
    tests = config.protocol == "parity"
    data = dataclasses.replace(config.data, cache_gib=config.data.cache_gib / (1 + semi + looks + tests))

    def store(ids: Sequence[str], with_masks: bool = False, source: Dataset = dataset) -> Store:
        return Store(_chosen(source, ids), dataset.label_map, data, with_masks=with_masks)

    stores = _Stores(
        store(split.labelled, with_masks=True),
        store(split.unlabelled) if semi else None,
        store(sorted(split.labelled + split.unlabelled)) if looks else None,
        store(split.test, with_masks=True, source=whole) if tests else None,
    )
    read = [part for part in (stores.labelled, stores.unlabelled, stores.images, stores.test) if part is not None]
    with track(sum(map(len, read)), "reading") as advance:
        for part in read:
            for index, file in enumerate(part.files):
                channels = len(part[index].image)
                if channels != dataset.channels:
                    found, expected = f"{channels} channels", f"{dataset.channels}, as the first image"
                    raise DataError(file.image_name, found, expected, "add --colour rgb or --colour gray")
                advance(file.id)
    return stores


def _images(job: _Job, store: Store | None, index: int) -> Images:
    """Serve images of all training cases, on the device; no mask file is opened."""
    if store is None:
        return ()
    schedule = Schedule(
        _seed(job.config.seed, STAGE_1, index), job.config.pretrain.batch, job.world.rank, job.world.size
    )
    return _Placed(ImageStream(store, job.config.augment, schedule), job.device)


@dataclasses.dataclass(frozen=True)
class _Placed:
    """Images by step, on the device and laid out as the network."""

    stream: ImageStream
    device: torch.device

    def __getitem__(self, step: int) -> Tensor:
        images = self.stream[step].to(self.device)
        return images.contiguous(memory_format=CHANNELS_LAST[images.ndim])

    def ids(self, step: int) -> tuple[str, ...]:
        """Ids of the cases of a step."""
        return self.stream.ids(step)


def _save_filters(path: Path, net: nn.Module) -> None:
    """Write the filters of the first layer, `(out, in, *kernel)`."""
    import io

    first = next(plastic_layers(net))[1]
    assert isinstance(first.weight, Tensor)
    buffer = io.BytesIO()
    np.save(buffer, first.weight.detach().cpu().numpy(), allow_pickle=False)
    write_whole(path, buffer.getvalue())


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


def _known(key: str, name: str, registry: dict[str, Any]) -> None:
    if name not in registry:
        import difflib

        near = difflib.get_close_matches(name, registry, n=1)
        fix = f"did you mean `{near[0]}`?" if near else "choose one of them"
        raise InputError(key, repr(name), f"one of {', '.join(registry)}", fix)


def _seed(*names: int) -> int:
    """Derive a seed of its own for each draw."""
    return int(np.random.SeedSequence(names).generate_state(1, np.uint64)[0] >> 1)
