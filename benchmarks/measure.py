"""Time and memory of functions, measured side by side in one run."""

import ctypes
import statistics
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import torch

Work = Callable[[], object]


def times(works: dict[str, Work], rounds: int = 15, warmup: int = 3) -> dict[str, list[float]]:
    """Run the works in turn, so that a change of the machine's speed meets them all; seconds of each round."""
    for _ in range(warmup):
        for work in works.values():
            work()
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            start = perf_counter()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            taken[name].append(perf_counter() - start)
    return taken


def ratio(numerator: list[float], denominator: list[float]) -> float:
    """Median of the ratios round by round."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def peak_bytes(work: Work) -> int:
    """Most memory that a work needs beyond what was in use before it, as the operating system counts it (Linux)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # memory that was freed but kept would hide the need
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def machine() -> dict[str, object]:
    """Say what was measured on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {"device": device, "threads": torch.get_num_threads(), "torch": torch.__version__}
