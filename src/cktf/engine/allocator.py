"""Memory that tensors on the CPU free stays with the process, for the next step to take.

A step allocates and frees the same activations as the one before. The C library of Linux hands
freed memory of such sizes back to the system, which then has to map and zero it, page by page, when
the next step touches it: a good part of a small network's step (docs/performance.md).
"""

import ctypes
import functools
import os
import platform

# Names of glibc's malloc.h, which has them as macros.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER = -1
# Blocks of a GiB, such as a bank, still go back to the system once they are freed. Releases of
# glibc before 2.35 take no more than 32 MiB here.
_THRESHOLDS = (1 << 30, 1 << 25)
# Environment variables by which a user has chosen himself.
CHOSEN_BY = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")


@functools.cache
def keep_freed_memory() -> bool:
    """Have this process keep what it frees, from here to its end; whether it does.

    That is so with glibc alone, and where its environment variables do not say otherwise.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in CHOSEN_BY):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    kept = any(mallopt(_M_MMAP_THRESHOLD, size) for size in _THRESHOLDS)
    return bool(kept and mallopt(_M_TRIM_THRESHOLD, _NEVER))
