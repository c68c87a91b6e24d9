"""What an arm costs on a data set: passes through the network, time and memory, measured before the cells run.

DIR/cost.json holds a row for each arm on each data set. Each is measured once, by a few steps in a process of its own,
one after the other, so that neither the cells nor another arm are in its numbers, and it is in none of theirs. How long
the cells will take is estimated from it.
"""

import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from statistics import mean
from time import perf_counter, process_time

import torch

from nissl import api
from nissl.bench.grid.grid import Cell
from nissl.bench.protocols import ciampi2024
from nissl.bench.run.processes import describe_exit
from nissl.bench.run.results import Result, one_line
from nissl.config import Config, TrainConfig
from nissl.data.batches import Batch
from nissl.data.discovery import list_cases
from nissl.data.split import make_split
from nissl.errors import NisslError
from nissl.inference.memory import resident_bytes
from nissl.learner import Learner, Problem
from nissl.methods import METHODS
from nissl.nets.flops import Flops
from nissl.pretrain import PRETRAININGS
from nissl.pretrain.settings import Stepped
from nissl.progress import track
from nissl.runs.folder import choose_device, read_json, write_json
from nissl.runs.format import load_config
from nissl.tasks.task import task_of
from nissl.training.loop import Trainer
from nissl.training.network import per_stream
from nissl.training.session import Session, Stage
from nissl.training.stages import pretraining_loop

COST = "cost.json"
STEPS = 5
"""Steps that are made; the fastest counts, for whatever else the machine does can only make a step slower."""
QUARTERS = (1 / 8, 3 / 8, 5 / 8, 7 / 8)
"""The middle of each quarter of a training: a method may begin with another kind of step (`bcp`)."""
Key = tuple[str, str]
"""Data set and arm."""


@dataclass(frozen=True)
class Cost:
    """A row of cost.json; what could not be measured is None."""

    data: str
    arm: str
    passes: float | None = None
    """Floating-point operations of both stages, all steps, over those of one image's way forward through the network;
    a supervised step of 8 images is about 24. None by the published protocol, whose length follows the budget."""
    seconds_stage_1: float | None = None
    """Of one optimiser step, batches not counted; on the CPU, processor time over the number of threads, which other
    load hardly changes."""
    seconds_stage_2: float | None = None
    memory_bytes: int | None = None
    """Most memory held at once: on a GPU by its tensors; on the CPU (Linux only) by the process, with what it used
    of its libraries."""
    device: str | None = None
    threads: int | None = None
    """With which it was measured."""
    message: str = ""
    """Why it could not be measured."""


def read_costs(out: Path) -> dict[Key, Cost]:
    """Read cost.json; where it is not there, or is damaged, nothing is known."""
    with suppress(NisslError, TypeError):
        return {(row["data"], row["arm"]): Cost(**row) for row in read_json(out / COST)["costs"]}
    return {}


def measure_costs(out: Path, cells: Sequence[Cell], threads: int) -> dict[Key, Cost]:
    """Measure each arm on each data set that was not measured yet, and write cost.json after each.

    One that fails is entered with the reason and tried again the next time; its cells will fail in the same way. Where
    an arm is to be measured, those of its data set that were with another number of threads are measured again: costs
    are there to be compared.
    """
    costs = read_costs(out)
    first: dict[Key, Cell] = {}
    for cell in cells:
        first.setdefault((cell.data, cell.arm), cell)
    new = {key for key in first if key not in costs or costs[key].message}
    unequal = {key for key in first if key in costs and costs[key].threads != threads}
    again = {key for key in unequal if key[0] in {data for data, _ in new}}
    todo = {key: cell for key, cell in first.items() if key in new | again}
    if not todo:
        return costs
    with track(len(todo), "measuring the cost of each arm") as advance:
        for key, cell in todo.items():
            costs[key] = _apart(cell, threads)
            write_json(out / COST, {"costs": [asdict(cost) for cost in costs.values()]})
            advance(costs[key].message or f"{key[1]} on {key[0]}")
    return costs


def _apart(cell: Cell, threads: int) -> Cost:
    """Probe a cell in a fresh process, whose memory is that of this cell alone."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            _command(Path(folder) / "run", threads),
            input=cell.to_json(),
            capture_output=True,
            text=True,
            start_new_session=True,  # Ctrl-C reaches the bench alone, which then ends this process
        )
    if done.returncode:
        return Cost(cell.data, cell.arm, message=describe_exit(done.returncode))
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def _command(run: Path, threads: int) -> list[str]:
    return [sys.executable, "-m", "nissl.bench.run.cost", str(run), str(threads)]


def main() -> None:
    """Probe the cell that comes over stdin and write its cost to stdout: the whole life of a process of `_apart`."""
    cell = Cell.from_json(sys.stdin.read())
    torch.set_num_threads(int(sys.argv[2]))
    try:
        answer = probe(cell, Path(sys.argv[1]))
    except Exception as error:  # whatever it is, the others are measured
        answer = Cost(cell.data, cell.arm, message=one_line(error))
    print(json.dumps(asdict(answer)))


def probe(cell: Cell, run: Path) -> Cost:
    """Make a short run of a cell in this process, in a new folder, and count the operations of its steps."""
    config = cell.config
    short = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=STEPS))
    if isinstance(config.pretrain, Stepped):
        shorter = dataclasses.replace(config.pretrain, steps=min(STEPS, config.pretrain.steps))
        short = dataclasses.replace(short, pretrain=shorter)
    api.train(cell.path, run, short)
    device = choose_device(config.device)
    memory = peak_memory(device)
    data, network = read_json(run / "data.json"), read_json(run / "network.json")
    resolved = dataclasses.replace(load_config(run / "config.toml"), pretrain=config.pretrain)  # but for its length
    task = task_of(resolved.task)
    problem = Problem(task, data["dims"], network["input"][0], len(data["classes"]), resolved.data.size, resolved.net)
    work = Work(resolved, problem, Session(run, device))
    passes = None
    if config.protocol != "parity":
        flops = work.flops_stage_1() + config.train.steps * work.flops_stage_2()
        passes = flops / (2 * network["multiply_adds"])
    return Cost(
        cell.data,
        cell.arm,
        passes=passes,
        seconds_stage_1=work.seconds_stage_1(),
        seconds_stage_2=work.seconds_stage_2(),
        memory_bytes=memory,
        device=read_json(run / "env.json")["device"],
        threads=torch.get_num_threads(),
    )


def peak_memory(device: torch.device) -> int | None:
    """Bytes that this process has held at most: on the GPU, or else in all; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resident_bytes() or None


@dataclass(frozen=True)
class Noise:
    """A stream of the same batch of noise: how much is to be computed does not depend on what the images show."""

    batch: Batch

    def __getitem__(self, step: int) -> Batch:
        return dataclasses.replace(self.batch, step=step)

    def ids(self, step: int) -> tuple[str, ...]:
        """Ids of the cases of a step."""
        return self.batch.ids


@dataclass(frozen=True)
class Work:
    """The steps of a training on noise, made by the loop itself."""

    config: Config
    """With `data.size` resolved."""
    problem: Problem
    session: Session

    def flops_stage_1(self) -> int:
        """Floating-point operations of the whole pre-training, of all networks; 0 where there is none."""
        if not isinstance(self.config.pretrain, Stepped):
            return 0
        with Flops() as flops:
            once, twice = self._pretrain(2, lambda: flops.count)
        whole = flops.count + (self.config.pretrain.steps - 2) * (twice - once)
        return int(whole * self._networks)

    def seconds_stage_1(self) -> float:
        """Seconds of one step of the pre-training, of all networks; 0 where there is none."""
        if not isinstance(self.config.pretrain, Stepped):
            return 0.0
        return _fastest(self._pretrain(STEPS, self._clock)) * self._networks

    def flops_stage_2(self) -> float:
        """Floating-point operations of one step of the method, forward and back, on average over the training."""
        with Flops() as flops:
            self._train(QUARTERS, lambda: flops.count)
        return float(flops.count) / len(QUARTERS)

    def seconds_stage_2(self) -> float:
        """Seconds of one step of the method, half way through the training."""
        return _fastest(self._train([0.5] * STEPS, self._clock))

    @property
    def _networks(self) -> int:
        return len(METHODS[self.config.method.name].initial(self.config.method, self.problem, 0))

    def _clock(self) -> float:
        """Seconds of this process's work."""
        if self.session.device.type == "cuda":
            torch.cuda.synchronize(self.session.device)
            return perf_counter()
        return process_time() / torch.get_num_threads()

    def _pretrain(self, steps: int, mark: Callable[[], float]) -> list[float]:
        """Pre-train a network; return what `mark` gives after each step."""
        assert isinstance(self.config.pretrain, Stepped)
        settings = dataclasses.replace(self.config.pretrain, steps=steps)
        net = self.problem.network(0)
        self.session.place(net)
        learner = PRETRAININGS[settings.name].build(settings, self.problem, {"0": net}, 0)
        return self._marked(learner, settings.batch, pretraining_loop(settings), range(steps), mark)

    def _train(self, moments: Sequence[float], mark: Callable[[], float]) -> list[float]:
        """Make steps, each at its fraction of the training; return what `mark` gives after each."""
        kind, train = METHODS[self.config.method.name], dataclasses.replace(self.config.train, steps=1000)
        networks = kind.initial(self.config.method, self.problem, 0)
        for net in networks.values():
            self.session.place(net)
        learner = kind.build(self.config.method, self.problem, networks, 0)
        at = [round(moment * train.steps) for moment in moments]
        return self._marked(learner, per_stream(self.config), train, at, mark)

    def _marked(
        self, learner: Learner, size: int, train: TrainConfig, at: Sequence[int], mark: Callable[[], float]
    ) -> list[float]:
        """Make the steps of these numbers; return what `mark` gives after each."""
        space = self.problem.size
        images = torch.randn(2 * size, self.problem.channels, *space)
        masks = torch.randint(self.problem.outputs, (size, *space))
        unlabelled = images[size:] if learner.sees == "labelled+unlabelled" else None
        stream = Noise(Batch(images[:size], masks, unlabelled, ("noise",) * size))
        stage = Stage("cost", train, 0, Path("cost.safetensors"), None)
        trainer, marks = Trainer(learner, stream, stage, self.session), list[float]()
        with trainer.learning() as model:
            for trainer.step in at:
                trainer.make_step(model, stream[trainer.step])
                marks.append(mark())
            learner.finish(trainer.serve)
        return marks


def _fastest(times: Sequence[float]) -> float:
    return min(after - before for before, after in pairwise(times))


def estimate(todo: Sequence[Cell], results: Sequence[Result], costs: Mapping[Key, Cost], workers: int) -> str:
    """State in a line how long the cells that are left will take.

    Each arm on each data set is estimated from its finished cells, or else from the short run that measured its cost;
    measuring and reading come on top. A short run that failed is left out here: its cells will say why.
    """
    known: dict[tuple[str, str, str], float | None] = {}
    sources = {"finished cells": 0, f"{STEPS} steps of a cell": 0, "no timing": 0}
    total = 0.0
    for cell in todo:
        by_budget = cell.config.protocol == "parity"  # the length follows the number of masks
        key = (cell.data, cell.arm, cell.budget if by_budget else "")
        if key not in known:
            own = [one for one in results if (one.data, one.arm) == key[:2] and one.status == "done"]
            alike = [one.training for one in own if one.budget == cell.budget or not by_budget]
            finished = [(one.seconds_stage_1 or 0.0) + (one.seconds_stage_2 or 0.0) for one in alike]
            known[key] = mean(finished) if finished else seconds_of(cell, costs)
            used = "finished cells" if finished else "no timing" if known[key] is None else f"{STEPS} steps of a cell"
            sources[used] += 1
        total += known[key] or 0.0
    told = ", ".join(f"{count} from {source}" for source, count in sources.items() if count)
    length = timedelta(seconds=round(total / min(workers, len(todo))))
    left_out = "measuring not counted, a shared pre-training counted each time"
    return f"estimate: {length} of training, {left_out} (arms on data sets: {told})"


def seconds_of(cell: Cell, costs: Mapping[Key, Cost]) -> float | None:
    """Seconds that the training of a cell should take; None where it could not be measured."""
    cost = costs[cell.data, cell.arm]
    if cost.seconds_stage_1 is None or cost.seconds_stage_2 is None:
        return None
    config = cell.config
    stage_1 = cost.seconds_stage_1 * (config.pretrain.steps if isinstance(config.pretrain, Stepped) else 0)
    return stage_1 + cost.seconds_stage_2 * _steps(cell)


def _steps(cell: Cell) -> float:
    """Steps of training; by the published protocol, with its measurements of the test images in units of a step.

    A step shows `batch` images to each network and takes three passes for each, a measurement one pass of all test
    images.
    """
    if cell.config.protocol != "parity":
        return cell.config.train.steps
    split = make_split(list_cases(cell.path, cell.config.data).cases, cell.config.split, cell.seed)
    train = ciampi2024.settled(cell.config, len(split.labelled)).train
    measurements = ciampi2024.EPOCHS // ciampi2024.epochs_between(cell.config)
    return train.steps + measurements * len(split.test) / (3 * train.batch)


if __name__ == "__main__":
    main()
