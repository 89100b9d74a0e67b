"""What a process that computes on the CPU does first."""

import ctypes
import warnings

import cv2
import torch

_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def set_up(threads: int, is_16_bit: bool) -> None:
    """Set the number of threads (OpenCV has its own), keep freed memory, say where 16-bit arithmetic is emulated."""
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    keep_freed_memory()
    level = torch.backends.cpu.get_cpu_capability()
    if is_16_bit and level in ("DEFAULT", "AVX2"):
        warnings.warn(
            f"this CPU ({level}) has no 16-bit arithmetic: bf16 and fp16 are emulated, many times slower than fp32; "
            "leave out --precision here",
            stacklevel=2,
        )


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
