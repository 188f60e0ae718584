"""Measure functions in processes of their own, in turn: seconds, CPU seconds and memory of the process tree."""

import contextlib
import io
import multiprocessing
import os
import re
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Measured(NamedTuple):
    """What a function took in a process of its own, and returned."""

    seconds: float
    cpu_s: float  # of the process tree
    peak_mib: float  # of the process tree
    result: object


def in_turn(title: str, functions: dict[str, tuple[Callable, tuple]], num_rounds: int) -> dict:
    """Measure functions in turn; print each one's figures and how it compares with the last, and return them."""
    runs: dict[str, list[Measured]] = {name: [] for name in functions}
    for _ in range(num_rounds):
        for name, (function, parameters) in functions.items():
            runs[name].append(measure(function, *parameters))
    figures = {}
    for name, measured in runs.items():
        reference = list(runs.values())[-1]
        figures[name] = row = {
            "seconds": [round(one.seconds, 1) for one in measured], "cpu_s": [round(one.cpu_s, 1) for one in measured],
            "peak_mib": round(max(one.peak_mib for one in measured)),
            "over_last": {
                "minimum": round(min(one.seconds for one in measured) / min(one.seconds for one in reference), 3),
                "median": round(float(np.median([one.seconds for one in measured])
                                      / np.median([one.seconds for one in reference])), 3),
                "cpu": round(float(np.median([one.cpu_s for one in measured])
                                   / np.median([one.cpu_s for one in reference])), 3),
                "peak": round(max(one.peak_mib for one in measured) / max(one.peak_mib for one in reference), 2)}}
        print(f"{title} {name}: {row['seconds']} s, CPU {row['cpu_s']} s, peak {row['peak_mib']:,} MiB; over "
              f"{list(runs)[-1]}: {row['over_last']}", flush=True)
    return figures


def measure(function: Callable, *args: object) -> Measured:
    """Call a function in a new process."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(sender, function, args))
    process.start()
    sender.close()
    peak, stop = [0.0], threading.Event()
    sampler = threading.Thread(target=_sample, args=(process.pid, peak, stop))
    sampler.start()
    try:
        seconds, cpu_s, result = receiver.recv()
    except EOFError:
        raise SystemExit(f"error: {function.__name__} has failed") from None
    finally:
        stop.set()
        sampler.join()
        process.join()
    return Measured(seconds, cpu_s, peak[0], result)


def _call(sender: Connection, function: Callable, args: tuple) -> None:
    """Run quietly and send (seconds, CPU seconds, result) back."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        start, start_cpu = time.perf_counter(), sum(os.times()[:4])
        result = function(*args)
        seconds, cpu_s = time.perf_counter() - start, sum(os.times()[:4]) - start_cpu
    sender.send((seconds, cpu_s, result))


def _sample(pid: int, peak: list[float], stop: threading.Event) -> None:
    """Keep the largest sum of proportional set sizes over a process and its descendants."""
    while not stop.wait(0.05):
        total, waiting = 0, [pid]
        while waiting:
            current = waiting.pop()
            try:
                rollup = Path(f"/proc/{current}/smaps_rollup").read_text(encoding="utf-8")
                total += int(re.search(r"^Pss:\s+(\d+)", rollup, re.MULTILINE).group(1))
                for task in Path(f"/proc/{current}/task").iterdir():
                    waiting += [int(child) for child in (task / "children").read_text(encoding="utf-8").split()]
            except (OSError, AttributeError):
                continue
        peak[0] = max(peak[0], total / 1024)
