"""Time of a small grid with one worker against two that share the same threads.

Twelve runs of pocket size (64x64, widths 8-128, 300 steps) on simulated images, one arm. Both benches train and measure
the same cells from nothing; the start of the workers and the timed steps of the estimate are part of it. Prints one
JSON line.
"""

import contextlib
import io
import json
import statistics
import tempfile
from itertools import count
from pathlib import Path

from measure import Work, machine, ratio, times
from nissl.bench.runner import bench
from nissl.datasets.phantom import PhantomConfig, write_phantoms

RUNS, STEPS = 12, 300
GRID = f"""\
budgets = ["4"]
seeds = {RUNS}
[data.phantom]
path = "data"
[settings]
data = {{ size = [64] }}
net = {{ widths = [8, 16, 32, 64, 128] }}
train = {{ steps = {STEPS} }}
[[arms]]
method = "supervised"
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stderr(io.StringIO()):
        folder, numbers = Path(name), count()
        write_phantoms(folder / "data", 24, PhantomConfig(), seed=0)
        (folder / "grid.toml").write_text(GRID)

        def run(workers: int) -> Work:
            def work() -> None:
                outcome = bench(folder / "grid.toml", folder / f"out{next(numbers)}", workers)
                assert not outcome.failed

            return work

        taken = times({"one": run(1), "two": run(2)}, rounds=2, warmup=0)
    result = {
        "benchmark": "bench_workers",
        "runs": RUNS,
        "steps": STEPS,
        "one_s": round(statistics.median(taken["one"]), 1),
        "two_s": round(statistics.median(taken["two"]), 1),
        "speed_ratio": round(ratio(taken["one"], taken["two"]), 3),
        **machine(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
