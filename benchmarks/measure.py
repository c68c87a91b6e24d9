"""Time and memory of functions, measured side by side in one run."""

import itertools
import statistics
from collections.abc import Callable
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
    """Most memory that a work holds in tensors at one time, beyond what was in use before it.

    On a CPU torch's allocations are added up in their order; what oneDNN needs inside a kernel is not among them. The
    resident size of the process is no measure: freed memory that is kept makes it differ by half from run to run.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    assert profile.profiler is not None
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return max(held)


def machine() -> dict[str, object]:
    """Say what was measured on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {"device": device, "threads": torch.get_num_threads(), "torch": torch.__version__}
