"""Freed memory stays with the process."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
import torch
from nissl.training.memory import keep_freed_memory
if {kept}:
    keep_freed_memory()
def pages(blocks):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(blocks):
        torch.ones(10_000_000)  # above the 32 MiB up to which glibc adapts
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
pages(20)  # the first blocks do not fit where the last one lay: what aligning them cut off is kept apart, seven times
print(pages(5))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep freed memory")
def test_memory_that_is_freed_is_used_again_without_new_pages():
    kept, given_back = (
        int(subprocess.run([sys.executable, "-c", FAULTS.format(kept=kept)], capture_output=True, check=True).stdout)
        for kept in (True, False)
    )
    assert kept < 100 < 1000 < given_back
