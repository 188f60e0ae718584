"""Share work out among threads: whole pieces of a step, one after the other in each thread.

PyTorch would divide every operation among its threads and wait for the last of them a thousand times a step; where
another program has a core, each wait takes as long as that program holds it. So while `shared_out` is entered PyTorch
has one thread, and what is given to `in_threads` runs side by side. What is computed does not depend on their number.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import torch

Result = TypeVar("Result")
_pool: ThreadPoolExecutor | None = None  # beside the thread that asks


@contextlib.contextmanager
def shared_out() -> Iterator[None]:
    """Let `in_threads` use as many threads as PyTorch has, and PyTorch one each."""
    global _pool
    num_threads, before = torch.get_num_threads(), _pool
    if num_threads == 1:
        yield
        return
    # A thread begins with the first GPU, whichever one this process works on.
    begin = partial(torch.cuda.set_device, torch.cuda.current_device()) if torch.cuda.is_initialized() else None
    with ThreadPoolExecutor(num_threads - 1, "worker", begin) as _pool:
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(num_threads)
            _pool = before


def num_threads() -> int:
    """Return how many tasks may run side by side."""
    return 1 if _pool is None else 1 + _pool._max_workers


def in_threads(tasks: Sequence[Callable[[], Result]]) -> list[Result]:
    """Call functions, in this thread and in others that are free; return their results in order.

    A task may call `in_threads` in turn. Of errors the first in order is raised, when no task is running any more.
    Gradients are recorded where they are in this thread.
    """
    if _pool is None or len(tasks) < 2:
        return [task() for task in tasks]
    with_grad = torch.is_grad_enabled()
    # What is cancelled stays in the pool's queue, behind all that was there before: it must not hold on to a task.
    waiting = list(tasks)

    def elsewhere(number: int) -> Result:
        with torch.set_grad_enabled(with_grad):
            return waiting[number]()

    futures = [_pool.submit(elsewhere, number) for number in range(1, len(tasks))]
    results: dict[int, Result] = {}
    try:
        results[0] = tasks[0]()
        for number in range(len(tasks) - 1, 0, -1):  # the others begin at the other end
            if futures[number - 1].cancel():
                results[number] = tasks[number]()
    finally:
        for future in futures:
            future.cancel()
        for future in futures:
            if not future.cancelled():
                future.exception()
        waiting.clear()
    return [results[number] if number in results else futures[number - 1].result() for number in range(len(tasks))]
