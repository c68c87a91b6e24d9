"""How the C library gives out memory while a network is trained on the CPU."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Names in <malloc.h>."""
KEPT = 2**30
"""Blocks up to a GiB are kept; a larger one goes back to the system when it is freed."""


def keep_freed_memory() -> None:
    """Let the process keep the memory that it frees, for the next step.

    By default glibc gives large blocks back to the system and is handed them again, page by page and zeroed, in each
    step: up to a tenth of a step's time. Does nothing where the C library is another one.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    # In this order: to set the second alone would end the first one's own adapting to what is freed.
    if hasattr(library, "mallopt") and library.mallopt(M_MMAP_THRESHOLD, KEPT):
        library.mallopt(M_TRIM_THRESHOLD, 2 * KEPT - 1)
