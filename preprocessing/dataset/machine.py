"""What differs between operating systems: how many cores and how much memory there are, how processes begin and end.

The modules of one system, and psutil, are imported where they are used: Windows lacks the former, and a list of movies
needs neither.
"""

import importlib
import os
import sys


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


def start_method() -> str:
    """Return how other processes are started: a fork is ready at once, but only Linux' survives its parent's
    threads."""
    return "fork" if sys.platform == "linux" and hasattr(os, "fork") else "spawn"


def has_parent(parent_pid: int) -> bool:
    """Tell whether the process that started this one still runs: POSIX gives an orphan another parent, Windows leaves
    it the number of the one that was."""
    import psutil

    return os.getppid() == parent_pid and psutil.Process().parent() is not None
