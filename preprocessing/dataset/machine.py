"""What differs between operating systems: how many cores and how much memory there are, how processes begin and end.

The modules of one system, and psutil, are imported where they are used: Windows lacks the former, and a list of movies
needs neither.
"""

import importlib
import os
import sys

LARGEST_KEPT = 2**28  # bytes of a piece of memory that is not given back
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)


def num_cores() -> int:
    """Return how many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def available_bytes() -> int:
    """Return how many bytes of memory are free now."""
    import psutil

    return int(psutil.virtual_memory().available)


def peak_rss_mib(with_children: bool = False) -> float:
    """Return the largest memory that this process has held so far, in MiB.

    Args:
        with_children: add the most that one of its ended processes has held; Windows does not tell.
    """
    try:
        resource = importlib.import_module("resource")
    except ImportError:
        import psutil

        memory = psutil.Process().memory_info()
        return float(getattr(memory, "peak_wset", memory.rss)) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if with_children:
        peak += resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return float(peak) / (1024 if sys.platform == "linux" else 2**20)


def keep_freed_memory() -> None:
    """Keep what is freed for what is allocated next, where the C library is glibc and the environment names no sizes.

    A step frees and allocates hundreds of tensors, whose pages glibc would give back to the system each time, and
    Linux clear again: a tenth of a step's time.
    """
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt and not any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def start_method() -> str:
    """Return how other processes are started: a fork is ready at once, but only Linux' survives its parent's
    threads."""
    return "fork" if sys.platform == "linux" and hasattr(os, "fork") else "spawn"


def has_parent(parent_pid: int) -> bool:
    """Tell whether the process that started this one still runs: POSIX gives an orphan another parent, Windows leaves
    it the number of the one that was.

    On POSIX psutil would compare when the two began, by clocks that may be set between its looks.
    """
    if sys.platform != "win32":
        return os.getppid() == parent_pid
    import psutil

    return os.getppid() == parent_pid and psutil.Process().parent() is not None
