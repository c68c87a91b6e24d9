"""A lack of memory is known from other errors, whatever library says it."""

import errno
import sys

import numpy as np
import pytest
import torch

from nissl.errors import DataError, out_of_memory


def raised(work):
    with pytest.raises((MemoryError, RuntimeError)) as caught:
        work()
    return caught.value


def test_real_failures_to_allocate_are_known():
    assert out_of_memory(raised(lambda: np.empty(2**60, np.uint8)))
    assert out_of_memory(raised(lambda: torch.empty(2**60, dtype=torch.uint8)))
    assert out_of_memory(raised(lambda: bytearray(2**60)))


@pytest.mark.skipif(sys.platform != "linux", reason="the limit holds on Linux")
def test_a_map_that_does_not_fit_is_known():
    import mmap
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2**40, before[1]))
    try:
        with pytest.raises(OSError) as caught:
            mmap.mmap(-1, 2**41)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert caught.value.errno == errno.ENOMEM and out_of_memory(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
        RuntimeError("could not create a memory object"),
        RuntimeError("could not create a primitive"),
    ],
    ids=str,
)
def test_the_words_of_libraries_are_known(error):
    assert out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("unsupported memory format option ChannelsLast"),
        OSError(errno.ENOSPC, "No space left on device"),
        ValueError("out of memory"),
        DataError("a.png", "out of memory", "b", "c"),
        KeyboardInterrupt(),
    ],
    ids=repr,
)
def test_other_errors_are_not_taken_for_it(error):
    assert not out_of_memory(error)
