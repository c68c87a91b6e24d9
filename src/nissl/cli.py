"""The command line: one dataclass per verb, whose fields are the flags.

Nothing heavy is imported before a verb runs, so that `--help` answers at once.
"""

import argparse
import io
import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

import nissl
from nissl.config import Config, DataConfig
from nissl.errors import InputError, NisslError, ResourceError, out_of_memory
from nissl.members import REGISTRIES, changed_options
from nissl.progress import is_first_process
from nissl.runs.format import load_config

if TYPE_CHECKING:
    from nissl.data import check

DESCRIPTION = "Segment biomedical images when there are many images and few masks."
DATA_FAULTS = 3
LISTED = 3
"""Files that `check` prints of one fault."""
Settings = Annotated[Config, tyro.conf.arg(name="")]
Folder = Annotated[Path, tyro.conf.Positional]
SHORT = {"--widths": "--net.widths"} | {f"--{name}": f"--pretrain.{name}" for name in ("rule", "layers", "handover")}
"""Short flags of options of members."""


@dataclass(frozen=True)
class Demo:
    """Run the whole job on simulated microscopy: a few minutes on a laptop, no data needed."""

    out: Path = Path("nissl-demo")
    """Folder to make; where it exists already, NAME-2, NAME-3 and so on."""

    def __call__(self) -> int:
        """Run the verb."""
        from nissl.demo import demo

        print(f"report: {demo(self.out)}")
        return 0


@dataclass(frozen=True)
class Check:
    """List every fault of a data set, with its file and its fix; exit 3 where there are any."""

    folder: Folder
    """Folder with images/ and masks/, or of the Medical Segmentation Decathlon."""
    data: DataConfig = field(default_factory=DataConfig)
    allow_shared_groups: bool = False
    """Patients on both sides of the split are a warning, not an error."""
    allow_shared_images: bool = False
    """Copies of an image on both sides of the split are a warning, not an error."""
    json: bool = False
    """Print one JSON object instead of text."""
    all: bool = False
    """List every file of a fault, not the first three."""

    def __call__(self) -> int:
        """Run the verb."""
        from nissl import api
        from nissl.data.check import Accepted

        accepted = Accepted(self.allow_shared_groups, self.allow_shared_images)
        report = api.check(self.folder, self.data, accepted)
        tree = {"findings": [asdict(finding) for finding in report.findings], "facts": report.facts}
        _print(tree if self.json else _check_text(report, None if self.all else LISTED))
        return DATA_FAULTS if report.errors else 0


@dataclass(frozen=True)
class Train:
    """Train a model on a folder of images with a few masks."""

    folder: Folder
    """Folder with images/ and masks/, or of the Medical Segmentation Decathlon."""
    out: Path
    """Run folder: new or empty, or an interrupted run with --resume."""
    settings: Settings = field(default_factory=Config)
    config: Path | None = None
    """TOML file of settings; flags on the command line win over it."""
    resume: bool = False
    """Continue an interrupted run, with its settings."""
    seeds: int | None = None
    """Train so often, each time with a seed of its own: OUT/seed-0, OUT/seed-1, ... on the same test cases."""
    allow_changed: bool = False
    """With --resume: accept settings or data that differ from those that the run began with; with several seeds, data
    only."""
    pretrained: Path | None = None
    """Another run with the same images, seed and pre-training, of any budget and method: take its pre-trained
    networks."""

    def __call__(self) -> int:
        """Run the verb."""
        from nissl import api, several_seeds
        from nissl.runs.folder import holds_seeds

        several = self.seeds is not None or holds_seeds(self.out)
        if several and self.pretrained:
            expected = "a run of its own: each seed has its own pre-training"
            raise InputError("--pretrained", "given with several seeds", expected, "leave one of them out")
        try:
            if not several:
                resume: bool | Literal["changed"] = "changed" if self.resume and self.allow_changed else self.resume
                api.train(self.folder, self.out, self.settings, resume, self.pretrained)
            else:
                options = (self.settings, self.seeds, self.resume, self.allow_changed)
                several_seeds.train(self.folder, self.out, *options)
        except SystemExit:
            if is_first_process() and (self.out / "config.toml").exists():  # else it was stopped before it began
                place = api.place(self.folder, self.settings)
                print(f"stopped; resume with: nissl train {place} --out {self.out} --resume", file=sys.stderr)
            raise
        if is_first_process():
            print(f"trained: {self.out}\nnext: nissl evaluate {self.out}")
        return 0


@dataclass(frozen=True)
class Evaluate:
    """Measure a run, or several seeds, on its test cases: no other command scores them."""

    run: Folder
    """Run folder, or folder of several seeds."""
    on: Literal["test", "labelled"] = "test"
    """`test`, or the labelled training cases for comparison."""
    allow_shared_images: bool = False
    """Measure although test images are copies of training images; the results will say so."""
    json: bool = False
    """Print one JSON object instead of a table."""
    device: str = "auto"
    """`auto`, `cpu` or `cuda`."""
    data: Path | None = None
    """Folder of the data, where it is not where it was, or where the run does not know it (DICOM)."""

    def __call__(self) -> int:
        """Run the verb."""
        from nissl import api, several_seeds
        from nissl.evaluation.text import score_text
        from nissl.runs.folder import holds_seeds, read_json
        from nissl.runs.format import load_config
        from nissl.tasks.task import task_of

        options = (self.run, self.on, self.device, self.data, self.allow_shared_images)
        (several_seeds if holds_seeds(self.run) else api).evaluate(*options)
        found = read_json(self.run / ("metrics.json" if self.on == "test" else f"metrics_{self.on}.json"))
        task = task_of(load_config(self.run / "config.toml").task)
        _print(found if self.json else score_text(task, found))
        return 0


@dataclass(frozen=True)
class Compare:
    """Compare two measured runs, or several seeds of both, on the same test cases: is one better, by how much?"""

    a: Folder
    """Run folder, or folder of several seeds."""
    b: Folder
    """The other one."""
    json: bool = False
    """Print one JSON object instead of text."""

    def __call__(self) -> int:
        """Run the verb."""
        from nissl import api
        from nissl.evaluation.text import comparison_text

        found = api.compare(self.a, self.b)
        _print(found.to_tree() if self.json else comparison_text(found))
        return 0


@dataclass(frozen=True)
class Bench:
    """Run a grid of data sets, label budgets, arms and seeds; stop and start again at any time."""

    grid: Folder
    """TOML file of the grid."""
    out: Path
    """Folder of the bench: new or empty, or that of the same grid, which then continues."""
    workers: int | None = None
    """Processes of this machine that train side by side; one, where nothing is stated."""
    cluster: str | None = None
    """Address of a Dask scheduler, such as tcp://10.0.0.1:8786: its workers make the runs."""

    def __call__(self) -> int:
        """Run the verb."""
        from nissl.bench.runner import bench

        try:
            outcome = bench(self.grid, self.out, self.workers, self.cluster)
        except SystemExit:
            given = {"--workers": self.workers, "--cluster": self.cluster}
            where = "".join(f" {flag} {value}" for flag, value in given.items() if value)
            print(f"stopped; resume with: nissl bench {self.grid} --out {self.out}{where}", file=sys.stderr)
            raise
        for result in outcome.failed:
            print(f"failed: {result.run}: {result.message}", file=sys.stderr)
        print(f"{len(outcome.results)} cells, {len(outcome.failed)} failed")
        print(f"results: {outcome.table}\nreport: {outcome.page}")
        return ResourceError.exit_code if outcome.failed else 0


@dataclass(frozen=True)
class Predict:
    """Write masks for a folder of new images, in their geometry and format."""

    run: Folder
    """Run folder."""
    images: Folder
    """Folder of images, or one image."""
    out: Path
    """Folder for the masks: new or empty."""
    values: Literal["own", "classes"] = "own"
    """What masks hold: the values or colours of the run's own masks, or the numbers of the classes."""
    device: str = "auto"
    """`auto`, `cpu` or `cuda`."""

    def __call__(self) -> int:
        """Run the verb."""
        from nissl import api
        from nissl.runs.folder import unfinished

        result = api.predict(self.run, self.images, self.out, self.device, self.values)
        for error in result.failed:
            print(f"error: {error}", file=sys.stderr)
        left = f"; not read: {result.left_out}" if result.left_out else ""
        print(f"{len(result.written)} masks written to {self.out}, {len(result.failed)} images failed{left}")
        for caveat in unfinished(result.steps, result.planned_steps):
            print(f"warning: {caveat.text}")
        if result.values:
            print(f"in the masks: {', '.join(f'{value} is {name}' for name, value in result.values.items())}")
        return DATA_FAULTS if result.failed else 0


@dataclass(frozen=True)
class MakeReport:
    """Write the page of a run, several seeds or a bench: report.html, one file that holds everything."""

    run: Folder
    """Run folder, or folder of several seeds or of a bench."""
    data: Path | None = None
    """Folder of the data, where it is not where it was, or where the run does not know it (DICOM)."""

    def __call__(self) -> int:
        """Run the verb."""
        from nissl import api, several_seeds
        from nissl.bench.page.page import report_bench
        from nissl.bench.run.results import is_bench
        from nissl.runs.folder import holds_seeds

        report = several_seeds.report if holds_seeds(self.run) else api.report
        print(f"report: {report_bench(self.run) if is_bench(self.run) else report(self.run, self.data)}")
        return 0


@dataclass(frozen=True)
class Fetch:
    """Download a public data set by name and arrange it into images/ and masks/."""

    name: tyro.conf.Positional[str]
    """glas, dsb2018, kvasir-seg, msd-hippocampus, la2018."""
    folder: Folder
    """Folder to make."""
    archive: Path | None = None
    """The archive, where you have it already."""
    yes: bool = False
    """Agree to the terms that are shown, without being asked."""

    def __call__(self) -> int:
        """Run the verb."""
        from nissl.datasets.public import PUBLIC, fetch

        place = fetch(self.name, self.folder, accept=self._agrees, archive=self.archive)
        label_map = PUBLIC[self.name].label_map
        print(f"next: nissl check {place}" + (f" --data.label-map {label_map}" if label_map else ""))
        return 0

    def _agrees(self, terms: str) -> bool:
        print(terms)
        if self.yes or not sys.stdin.isatty():
            return self.yes
        return input("download under these terms? [y/N] ").strip().lower() in ("y", "yes")


Report = Annotated[MakeReport, tyro.conf.subcommand("report")]
Verb = Demo | Check | Train | Evaluate | Compare | Bench | Predict | Report | Fetch


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name may have letters that the console has not
        sys.stdout.reconfigure(errors="backslashreplace")
    # As with Ctrl-C, what is open is closed and what was begun is removed; training has an answer of its own.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.exit(run(list(sys.argv[1:] if arguments is None else arguments)))


def run(arguments: list[str]) -> int:
    """Run a verb; 0 good, 2 the user's input, 3 faults in the data, 4 resources, 130 or 143 interrupted."""
    try:
        return _answer(arguments)
    except NisslError as error:
        if is_first_process() if error.reported is None else not error.reported:
            print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # whoever reads the output, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        print("error: out of memory\n  next step: lower --train.batch, --size or --data.cache-gib", file=sys.stderr)
        return ResourceError.exit_code
    except OSError as error:
        reason, where = error.strerror or str(error), error.filename or "a file or folder"
        print(f"error: {ResourceError(where, reason, 'that it can be used', 'check it and its disk')}", file=sys.stderr)
        return ResourceError.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _answer(arguments: list[str]) -> int:
    try:
        if arguments == ["--version"]:
            print(f"nissl {nissl.__version__}")
            return 0
        return _parse(arguments)()
    finally:
        sys.stdout.flush()  # here, where a closed pipe can still be answered


def _parse(arguments: list[str]) -> Verb:
    """Parse the flags; what they win over says which flags there are."""
    if arguments[:1] != ["train"]:
        verb = Annotated[Verb, tyro.conf.arg(help="")]  # else tyro parses the source of `typing` for one
        return tyro.cli(verb, prog="nissl", description=DESCRIPTION, args=arguments)
    default = Train(tyro.MISSING, tyro.MISSING, _base(arguments[1:]))
    return tyro.cli(Train, prog="nissl train", args=arguments[1:], default=default)


def _base(flags: list[str]) -> Config:
    """Make the settings below the flags: of a file or of the run that is resumed, with the members that flags name.

    A member has the flags of its own options and no others; an InputError where a flag names none or one of another.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--config", "--out"):
        parser.add_argument(name, type=Path, nargs="?")
    parser.add_argument("--resume", action="store_true")
    for members in REGISTRIES.values():
        parser.add_argument(f"--{members.kind}", f"--{members.kind}.name", dest=members.kind, nargs="?")
    known, _ = parser.parse_known_args(flags)
    path = known.config or (known.out / "config.toml" if known.resume and known.out else None)
    base = load_config(path) if path else Config()
    for members in REGISTRIES.values():
        own = getattr(base, members.kind)
        name = getattr(known, members.kind) or own.name
        if name != own.name:
            base = replace(base, **{members.kind: members.make(name, **changed_options(own))})
        for flag in (word.partition("=")[0] for word in flags if word.startswith("--")):
            table, _, option = SHORT.get(flag, flag).partition(".")
            if table == f"--{members.kind}":
                members.require_option(name, option.replace("-", "_") or "name", flag)
    return base


def _check_text(report: "check.Report", listed: int | None = LISTED) -> str:
    """Write all findings, those of one cause together with the first of their files, then the facts."""
    alike: dict[tuple[str, str, str], list[str]] = {}
    for finding in report.findings:
        line = f"{finding.where}\n    found: {finding.found}"
        alike.setdefault((finding.level, finding.expected, finding.fix), []).append(line)
    blocks = []
    for (level, expected, fix), places in alike.items():
        lines = [f"{level}: {where}" for where in places[:listed]]
        more = len(places) - len(lines)
        lines += [f"    and {more} more, {len(places)} in all (--all or --json lists them)"] if more else []
        blocks.append("\n".join([*lines, f"  expected: {expected}", f"  next step: {fix}"]))
    facts = "\n".join(f"{name.replace('_', ' ')}: {value}" for name, value in report.facts.items())
    faults = len(report.errors)
    ending = f"{faults} faults to fix" if faults else "no fault"
    return "\n".join([*blocks, facts, f"{ending}, {len(report.findings) - faults} warnings"])


def _print(content: dict[str, Any] | str) -> None:
    print(content if isinstance(content, str) else json.dumps(content, indent=1))
