"""Worker processes whose trainings stand still for a test, which so finds them in the middle of a run for sure.

A training stands still after `AFTER` steps as long as there is a file `RUN.hold` beside its run folder; a signal that
asks it to stop it answers as ever. Cells without such a file are made at full speed.

    python -m tests.bench.held bench GRID --out OUT     `nissl bench` with such workers, which measures no costs
    python -m tests.bench.held TOKEN THREADS            such a worker process

`dask worker --preload tests.bench.held` starts such worker processes too.
"""

import subprocess
import sys
import time
from contextlib import contextmanager

from nissl.bench.run import processes

AFTER = 12


def hold(run):
    """Hold the training of a run folder that may not be there yet; it goes on when the file that is given is gone."""
    path = run.with_name(f"{run.name}.hold")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def start_worker(token, threads):
    """Start what `processes._start_worker` starts, with trainings that can be held."""
    command, pipe = [sys.executable, "-m", "tests.bench.held", str(token), str(threads)], subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, encoding="utf-8", start_new_session=True)


def dask_setup(worker):
    """What Dask calls in a worker that it has started."""
    processes._start_worker = start_worker


def make_holdable():
    """Have the trainings of this process look for the file before each step."""
    from nissl.training import loop

    make_step, stop_signals = loop.Trainer.make_step, loop.stop_signals
    asked_to_stop = [[]]

    @contextmanager
    def noted():
        with stop_signals() as caught:
            asked_to_stop.append(caught)
            yield caught

    def held(trainer, model, batch):
        run = trainer.session.folder
        path = run.with_name(f"{run.name}.hold")
        while trainer.step >= AFTER and path.exists() and not asked_to_stop[-1]:
            time.sleep(0.02)
        return make_step(trainer, model, batch)

    loop.stop_signals, loop.Trainer.make_step = noted, held


def main():
    if sys.argv[1] == "bench":
        from tests.bench.here import unmeasured

        from nissl import cli
        from nissl.bench.run import cost

        processes._start_worker, cost._apart = start_worker, unmeasured
        cli.main()
    else:
        from nissl.bench.run import cell

        make_holdable()
        cell.main()


if __name__ == "__main__":
    main()
