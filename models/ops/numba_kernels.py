"""The backend of a CPU: loops over ratings that Numba compiles, and the loop that finds everybody's best movies.

The sums by user and by movie are array_ops.py's: PyTorch has a compiled loop for them, `embedding_bag`. For ridge
regressions array operations would gather the rows of a user's movies into memory, multiply them there, and factorise
with a library that is made for larger matrices. Here the rows of some ratings lie in a buffer that stays in the cache.
The systems of several users are factorised side by side, so that vector instructions take the same number of all of
them together.

The loops themselves are in numba_loops.py. One thread computes a user, in one order, so results do not depend on the
number of threads.

Letters: R ratings, B users, N movies, V vectors of each, D coordinates. `indptr`, `indices`: see rating_pattern.py.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import torch

from models.ops import compiling, numba_loops
from models.ops.array_ops import sum_by_movie, sum_by_user, uniform
from models.ops.rating_pattern import RatingPattern
from models.ops.threads import in_threads, num_threads

__all__ = ["dots", "keep_best", "ridge", "ridge_again", "row_adam", "sum_by_movie", "sum_by_user", "uniform",
           "window_sums"]

FEW = 4096  # ratings that are not worth a second thread
PACKS = 16  # factorised at a time


def dots(users: torch.Tensor, movies: torch.Tensor, pattern: RatingPattern) -> torch.Tensor:
    """Do what `array_ops.dots` does."""
    users, movies = users.contiguous(), movies.contiguous()  # once for all threads
    out = users.new_empty(len(pattern.indices), users.shape[1])
    _run_in_ranges([numba_loops.dots], pattern.num_users, len(out),
                   partial(_run, numba_loops.dots, users, movies, pattern.indices, pattern.indptr, out))
    return out


def ridge(movies: torch.Tensor, target: torch.Tensor, prior: torch.Tensor, l2: torch.Tensor, pattern: RatingPattern,
          keep: bool = True) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Do what `array_ops.ridge` does."""
    num_users, num_vectors, dim = prior.shape
    movies, target, prior, l2 = (tensor.contiguous() for tensor in (movies, target, prior, l2))  # once for all packs
    solution = prior.new_ones(num_users, num_vectors, dim + 1)  # with a coordinate of 1, which meets the biases
    product, right = target.new_empty(len(target), num_vectors), torch.empty_like(prior)
    users = max(numba_loops.LANES // num_vectors, 1)  # of a pack
    num_packs = -(-num_users // users)
    factor = movies.new_empty(num_packs if keep else 0, dim * (dim + 1) // 2, users * num_vectors)
    indices, indptr = pattern.indices, pattern.indptr

    def solve(first: int, last: int) -> None:
        for begin in range(first, last, PACKS):
            end = min(begin + PACKS, last)
            upper = factor[begin:end] if keep else movies.new_empty(end - begin, *factor.shape[1:])
            _run(numba_loops.factorize, movies, target, indices, indptr, prior, l2, upper, right, begin, end)
            _run(numba_loops.substitute, upper, right, solution, begin, end)
            _run(numba_loops.dots, solution, movies, indices, indptr, product, begin * users,
                 min(end * users, num_users))

    _run_in_ranges([numba_loops.factorize, numba_loops.substitute, numba_loops.dots], num_packs, len(target), solve)
    return solution[..., :-1], target.unsqueeze(1) - product, factor


def ridge_again(factor: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Do what `array_ops.ridge_again` does."""
    right, solution = right.contiguous(), torch.empty_like(right)

    def solve(first: int, last: int) -> None:
        _run(numba_loops.substitute, factor[first:last], right, solution, first, last)

    _run_in_ranges([numba_loops.substitute], len(factor), solution.numel(), solve)
    return solution


def window_sums(row: torch.Tensor, day: torch.Tensor, values: torch.Tensor, asked_row: torch.Tensor,
                asked_day: torch.Tensor, windows: tuple[int, ...],
                num_days: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Do what `array_ops.window_sums` does."""
    total, count = values.new_empty(2, len(windows), len(asked_row))
    _run(numba_loops.window_sums, row, day, values, asked_row, asked_day, torch.tensor(windows), total, count)
    return total, count


def row_adam(table: torch.Tensor, mean: torch.Tensor, square: torch.Tensor, steps: torch.Tensor, rows: torch.Tensor,
             grad: torch.Tensor, lr: float, betas: tuple[float, float], epsilon: float) -> None:
    """Do what `array_ops.row_adam` does."""
    _run(numba_loops.row_adam, table, mean, square, steps.view(-1), rows, grad, lr, *betas, epsilon)


def keep_best(scores: torch.Tensor, user_tail: torch.Tensor, movie_tail: torch.Tensor, slack: torch.Tensor,
              users: torch.Tensor, movies: torch.Tensor, movie_idx: torch.Tensor, indptr: torch.Tensor,
              seen: torch.Tensor, best: torch.Tensor, best_idx: torch.Tensor) -> None:
    """Take products of users and some movies into the N best so far of every user, in place; see top_k.py.

    Args:
        scores: float (B, C), of the first coordinates.
        user_tail, movie_tail: float (B,) and (C,), norms of what the other coordinates are.
        slack: float (B,), by how much a bound may be wrong.
        users, movies: float (B, P) and (C, P), whose products count.
        movie_idx: int64 (C,); of equal products that of the smaller movie_idx is better.
        indptr, seen: int64 (B + 1,) and (R,), movies seen[indptr[b]:indptr[b + 1]] are not taken for user b.
        best, best_idx: float and int64 (B, N), N > 0, descending; -inf, of no movie, to begin with.
    """
    if {scores.shape[1], len(movie_tail), len(movies)} != {len(movie_idx)} or not best.shape[1]:
        raise ValueError(f"{scores.shape[1]} columns of {len(movie_idx)} movies, {best.shape[1]} kept")
    _run(numba_loops.keep_best, scores, user_tail, movie_tail, slack, users, movies, movie_idx, indptr, seen, best,
         best_idx)


def _run(function: Any, *args: Any) -> None:
    """Call a compiled function, which may be compiled by that; what it writes to lies in one piece."""
    arrays = [arg.contiguous().numpy() if isinstance(arg, torch.Tensor) else arg for arg in args]
    if function.signatures:
        function(*arrays)
        return
    compiling.finish()
    with _uninterrupted():
        function(*arrays)


def _run_in_ranges(loops: list[Any], stop: int, size: int, run: Callable[[int, int], None]) -> None:
    """Call what runs these loops for the whole range from 0, or, if its work has a size and the loops are compiled, for
    a part of it in each thread."""
    parts = num_threads() if size >= FEW and all(loop.signatures for loop in loops) else 1
    bounds = [stop * part // parts for part in range(parts + 1)]
    in_threads([partial(run, first, last) for first, last in pairwise(bounds)])


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold signals back that end a run, until the compiler, which they would leave half-done, is through."""
    if threading.current_thread() is not threading.main_thread():  # signals go to that one
        yield
        return
    held: list[int] = []
    before = {number: signal.signal(number, lambda number, _: held.append(number))
              for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        for late in held:
            signal.raise_signal(late)
