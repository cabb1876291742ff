"""Memory: what this process keeps of it, its peak, and what the machine has left."""

import ctypes
import platform
import re
import resource
import sys
from pathlib import Path

import psutil
import torch


def keep_freed_memory() -> bool:
    """Let glibc keep freed blocks instead of returning large ones to the kernel; True where that took effect.

    Activations of many MB are allocated and freed at every layer of every step; what goes back to the kernel has to be
    cleared, page by page, when it is asked for again.
    """
    return set_thresholds(mmap_threshold=1 << 30, trim_threshold=(1 << 31) - 1)


def return_freed_memory() -> bool:
    """Undo `keep_freed_memory` for blocks of 4 MiB and more, where memory is short; True where that took effect.

    Between such blocks on the heap lie small ones that live longer, and the heap grows although most of it is free.
    """
    return set_thresholds(mmap_threshold=1 << 22, trim_threshold=1 << 26)


def trim_memory() -> None:
    """Give what is free in glibc's heap to the kernel once, before memory is asked for that does not come from there."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def set_thresholds(mmap_threshold: int, trim_threshold: int) -> bool:
    if platform.libc_ver()[0] != "glibc":
        return False
    libc, m_trim_threshold, m_mmap_threshold = ctypes.CDLL(None), -1, -3
    return bool(libc.mallopt(m_mmap_threshold, mmap_threshold) and libc.mallopt(m_trim_threshold, trim_threshold))


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory in MiB: of the CUDA allocator there, of the whole process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would include the parent process, from which this one was forked
        return int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text()).group(1)) / 2**10
    unit = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss is in bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def available_memory_mb() -> float:
    """Memory in MiB that processes of this machine can still get before it swaps."""
    return psutil.virtual_memory().available / 2**20
