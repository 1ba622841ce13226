"""Keeps the memory that a training step frees for the next step, on CPUs.

glibc returns large blocks to the operating system as soon as they are freed, and the next step gets
them back as pages of zeros. This costs one page fault for every 4 KiB of the activations and the
logits, which on a small network takes a tenth to a third of a step (``benchmarks/``). On a GPU,
torch's caching allocator already keeps freed memory.
"""

import ctypes
import platform

# Parameters of mallopt(3), from malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST_INT = 2**31 - 1
_THRESHOLDS = (1 << 30, 1 << 25)  # bytes; older versions accept at most the second


def keep_freed_memory() -> bool:
    """Tells glibc to keep freed memory for this process; it has no effect with other C libraries.

    The process then holds its peak memory until it ends.

    Returns:
        Whether the allocator accepted the settings.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    from_heap = any(mallopt(_M_MMAP_THRESHOLD, threshold) for threshold in _THRESHOLDS)
    return from_heap and bool(mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT))
