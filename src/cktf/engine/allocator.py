"""Keep freed CPU memory in the process, for the next step to reuse.

Every step allocates and frees the same activations. The C library of Linux returns freed blocks of
that size to the system, which maps and zeroes their pages again in the next step. For small
networks that is 6 to 17 % of a step (docs/performance.md).
"""

import ctypes
import functools
import os
import platform

# Values of macros in glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER = -1
# Blocks of 1 GiB or more, such as a bank, still go back to the system. Releases of glibc before
# 2.35 accept at most 32 MiB.
_THRESHOLDS = (1 << 30, 1 << 25)
# Environment variables by which a user configures the allocator.
CHOSEN_BY = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")


@functools.cache
def keep_freed_memory() -> bool:
    """Make this process keep the memory that it frees, until it ends; returns whether it does.

    It does with glibc only, and unless an environment variable configures the allocator.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in CHOSEN_BY):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    accepted = any(mallopt(_M_MMAP_THRESHOLD, size) for size in _THRESHOLDS)
    return bool(accepted and mallopt(_M_TRIM_THRESHOLD, _NEVER))
