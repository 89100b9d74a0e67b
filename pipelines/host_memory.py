"""Memory of a process that computes on the CPU: kept when it is freed, since fetching it again is dear."""

import ctypes

_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, for its next tensors; whether its allocator knows how (glibc's does).

    By default glibc gives every freed block of more than 32 MB back to the system, and the next one is fetched page by
    page and filled with zeros: a sixth of a training step's time on a CPU. Kept, the process stays as large as it was
    once.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    # No block is a mapping of its own, and the heap's end is not given back.
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1))
