"""Keeps what a training step frees for the next one, on CPUs.

glibc gives large blocks back to the operating system as soon as they are freed, and the next step
gets them again as pages of zeros: a fault for every 4 KiB of every activation and of the logits,
which on a small network is a tenth to a third of a step (``benchmarks/``). On a GPU torch's caching
allocator does this already.
"""

from __future__ import annotations

import ctypes
import platform

# Parameters of mallopt(3), from malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST_INT = 2**31 - 1
_THRESHOLDS = (1 << 30, 1 << 25)  # bytes; the second is the most that older versions take


def keep_freed_memory() -> bool:
    """Tells glibc to keep freed memory for this process; without effect elsewhere.

    The process then holds its peak until it ends.

    Returns:
        Whether the allocator took the settings.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    from_heap = any(mallopt(_M_MMAP_THRESHOLD, threshold) for threshold in _THRESHOLDS)
    return from_heap and bool(mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT))
