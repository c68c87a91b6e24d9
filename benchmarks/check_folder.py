"""Time of `nissl check` on 1,000 small images with masks: 128 x 128, simulated, PNG. Prints one JSON line."""

import contextlib
import io
import json
import statistics
import tempfile
from pathlib import Path

from measure import machine, times
from nissl import api
from nissl.datasets.phantom import PhantomConfig, write_phantoms

BOUND = 10.0
"""Seconds."""
COUNT = 1000


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        write_phantoms(Path(folder), COUNT, PhantomConfig(), seed=0)
        taken = times({"check": lambda: api.check(folder)}, rounds=3, warmup=1)["check"]
    seconds = round(statistics.median(taken), 2)
    print(json.dumps({"benchmark": "check_folder", "images": COUNT, "seconds": seconds, "bound": BOUND, **machine()}))


if __name__ == "__main__":
    main()
