"""A bench without processes of its own: this process makes the cells, and no cost is measured."""

from contextlib import contextmanager

import pytest

from nissl.bench import runner
from nissl.bench.run import cost
from nissl.bench.run.cell import make
from nissl.bench.run.cost import Cost
from nissl.bench.run.workers import Finished, WorkerPool


class PoolOfThisProcess(WorkerPool):
    """Makes each cell as soon as it is handed over."""

    tries = 1

    def __init__(self, out, size, threads):
        super().__init__(out)
        self.size, self.threads = 1, threads
        self._finished = []

    def free(self):
        return self.size - len(self._finished)

    def submit(self, cell):
        make(cell, self.out)
        self._finished.append(Finished(cell))

    def poll(self):
        finished, self._finished = self._finished, []
        return finished

    def stop(self):
        self.token.unlink(missing_ok=True)


def unmeasured(cell, threads):
    """The cost of an arm as it is where nothing could be measured."""
    return Cost(cell.data, cell.arm, threads=threads)


def probed_here(folder):
    """Measure costs in this process; for tests of what is done with the numbers."""
    return lambda cell, threads: cost.probe(cell, folder / "probes" / cell.id)


@contextmanager
def here(apart=unmeasured):
    """Let benches make their cells in this process; `apart` gives the costs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "LocalPool", PoolOfThisProcess)
        patch.setattr(cost, "_apart", apart)
        yield
