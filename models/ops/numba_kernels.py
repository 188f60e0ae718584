"""The backend of a CPU: loops over ratings that Numba compiles, and the loop that finds everybody's best movies.

The sums by user and by movie are array_ops.py's: PyTorch has a compiled loop for them, `embedding_bag`. For ridge
regressions array operations would gather the rows of a user's movies into memory, multiply them there, and factorise
with a library that is made for larger matrices. Here the rows of some ratings lie in a buffer that stays in the cache.
The systems of several users are factorised side by side, so that vector instructions take the same number of all of
them together.

Users are divided among OpenMP's threads, which PyTorch has started: threads of another kind would compete with them.
One thread computes a user, in one order, so results do not depend on the number of threads.

Letters: R ratings, B users, N movies, V vectors of each, D coordinates. `indptr`, `indices`: see rating_pattern.py.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numba
import numpy as np
import torch

from models.ops.array_ops import sum_by_movie, sum_by_user, uniform
from models.ops.rating_pattern import RatingPattern

__all__ = ["dots", "keep_best", "ridge", "ridge_again", "row_adam", "sum_by_movie", "sum_by_user", "uniform"]

CHUNK = 256  # ratings of a user that are taken together
GAP = 8  # numbers between their rows: a power of two apart, rows share few lines of the cache
LANES = 32  # systems that are factorised side by side, about
STRIP = 64  # scores that are looked at one by one only if one of them is high enough
USER_COST = 16  # ratings that take as long as what a user costs beside their ratings
FEW = 10_000  # ratings that are not worth a second thread

numba.config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]


def compiled(function: Callable[..., None], parallel: bool = False) -> Callable[..., None]:
    """Compile a function when it is first called; keep the code beside this file for the next process.

    Sums may be taken in another order than written, but numbers that are not finite stay so.
    """
    options = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "reassoc", "nsz", "arcp"}}
    try:
        return numba.njit(cache=True, parallel=parallel, **options)(function)
    except RuntimeError:  # neither the folder of this file nor that of the user can be written to
        return numba.njit(parallel=parallel, **options)(function)


def dots(users: torch.Tensor, movies: torch.Tensor, pattern: RatingPattern) -> torch.Tensor:
    """Do what `array_ops.dots` does."""
    out = users.new_empty(len(pattern.indices), users.shape[1])
    _in_threads(_dots, _dots_threaded, pattern.indptr.numpy(), 1, users, movies, pattern.indices, pattern.indptr, out)
    return out


def ridge(movies: torch.Tensor, target: torch.Tensor, prior: torch.Tensor, l2: torch.Tensor, pattern: RatingPattern,
          keep: bool = True) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Do what `array_ops.ridge` does."""
    num_users, num_vectors, dim = prior.shape
    solution = prior.new_ones(num_users, num_vectors, dim + 1)  # with a coordinate of 1, which meets the biases
    residual = target.new_empty(len(target), num_vectors)
    pack = max(LANES // num_vectors, 1)  # users
    factor = movies.new_empty(-(-num_users // pack) if keep else 0, dim, dim, pack * num_vectors)
    _in_threads(_ridge, _ridge_threaded, pattern.indptr.numpy(), pack, movies, target, pattern.indices, pattern.indptr,
                prior, l2, factor, solution, residual)
    return solution[..., :-1], residual, factor


def ridge_again(factor: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Do what `array_ops.ridge_again` does."""
    solution, (num_users, num_vectors, _) = torch.empty_like(right), right.shape
    _in_threads(_ridge_again, _ridge_again_threaded, np.arange(num_users + 1), factor.shape[-1] // num_vectors, factor,
                right, solution)
    return solution


def row_adam(table: torch.Tensor, mean: torch.Tensor, square: torch.Tensor, steps: torch.Tensor, rows: torch.Tensor,
             grad: torch.Tensor, lr: float, betas: tuple[float, float], epsilon: float) -> None:
    """Do what `array_ops.row_adam` does."""
    _run(_row_adam, *(tensor.numpy() for tensor in (table, mean, square, steps.view(-1), rows, grad.contiguous())),
         lr, *betas, epsilon)


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
    tensors = (scores, user_tail, movie_tail, slack, users, movies, movie_idx, indptr, seen)
    _run(_keep_best, *(tensor.contiguous().numpy() for tensor in tensors), best.numpy(), best_idx.numpy())


def _in_threads(kernel: Callable[..., None], threaded: Callable[..., None], indptr: np.ndarray, pack: int,
                *tensors: torch.Tensor) -> None:
    """Call kernel(*arrays, first, last) for ranges of packs of `pack` users, on PyTorch's number of threads."""
    arrays, threads = [tensor.contiguous().numpy() for tensor in tensors], torch.get_num_threads()
    num_users = len(indptr) - 1
    num_packs = -(-num_users // pack)
    cost = indptr + USER_COST * np.arange(num_users + 1)
    if threads == 1 or cost[-1] < FEW:  # the caller may be one of many threads, which OpenMP's are not for
        _run(kernel, *arrays, 0, num_packs)
    else:
        cost = cost[np.minimum(np.arange(num_packs + 1) * pack, num_users)]
        threads = min(threads, numba.config.NUMBA_NUM_THREADS)
        numba.set_num_threads(threads)
        _run(threaded, *arrays, np.searchsorted(cost, np.linspace(0, cost[-1], threads + 1)))


def _run(function: Any, *args: object) -> None:
    """Call a compiled function, which may be compiled by that."""
    with contextlib.nullcontext() if function.signatures else _uninterrupted():
        function(*args)


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


@compiled
def _dots(users, movies, indices, indptr, out, first, last):
    num_vectors, dim = users.shape[1:]
    for user in range(first, last):
        whole = indptr[user] + (indptr[user + 1] - indptr[user]) // 4 * 4
        for rating in range(indptr[user], whole, 4):  # four together, whose sums do not wait for each other
            for v in range(num_vectors):
                user_vector = users[user, v]
                movie_a, movie_b = movies[indices[rating], v], movies[indices[rating + 1], v]
                movie_c, movie_d = movies[indices[rating + 2], v], movies[indices[rating + 3], v]
                a = b = c = d = movies.dtype.type(0)
                for i in range(dim):
                    a += user_vector[i] * movie_a[i]
                    b += user_vector[i] * movie_b[i]
                    c += user_vector[i] * movie_c[i]
                    d += user_vector[i] * movie_d[i]
                out[rating, v], out[rating + 1, v], out[rating + 2, v], out[rating + 3, v] = a, b, c, d
        for rating in range(whole, indptr[user + 1]):
            for v in range(num_vectors):
                a = movies.dtype.type(0)
                for i in range(dim):
                    a += users[user, v, i] * movies[indices[rating], v, i]
                out[rating, v] = a


@partial(compiled, parallel=True)
def _dots_threaded(users, movies, indices, indptr, out, bounds):
    for thread in numba.prange(len(bounds) - 1):
        _dots(users, movies, indices, indptr, out, bounds[thread], bounds[thread + 1])


@compiled
def _ridge(movies, target, indices, indptr, prior, l2, factor, solution, residual, first, last):
    num_users, num_vectors, dim = prior.shape
    users = factor.shape[-1] // num_vectors
    rows = -(-(dim + 1) // 4) * 4  # coordinates and target; a multiple of four
    across = np.zeros((rows, CHUNK + GAP), movies.dtype)  # of some ratings
    gram = np.zeros((num_vectors, rows, rows), movies.dtype)  # of a user
    right = np.zeros((dim, users * num_vectors), movies.dtype)
    scratch = np.zeros((dim, dim, users * num_vectors), movies.dtype)
    for pack in range(first, last):
        system = factor[pack] if len(factor) else scratch
        begin, end = pack * users, min((pack + 1) * users, num_users)
        for user in range(begin, end):
            gram[:] = 0
            for chunk in range(indptr[user], indptr[user + 1], CHUNK):
                count = min(indptr[user + 1] - chunk, CHUNK)
                for v in range(num_vectors):
                    _lay_across(movies, indices[chunk:chunk + count], v, across)
                    for k in range(count):
                        across[dim, k] = target[chunk + k] - across[dim, k]
                    _add_products(across, count, dim, gram[v])
            for v in range(num_vectors):
                lane = (user - begin) * num_vectors + v
                for i in range(dim):
                    for j in range(i, dim):
                        system[i, j, lane] = gram[v, i, j]
                    system[i, i, lane] += l2[user, v, i]
                    right[i, lane] = gram[v, i, dim] + l2[user, v, i] * prior[user, v, i]
        _factorize(system, (end - begin) * num_vectors)
        _substitute(system, right, solution, begin, end)
        _dots(solution, movies, indices, indptr, residual, begin, end)
        for rating in range(indptr[begin], indptr[end]):
            for v in range(num_vectors):
                residual[rating, v] = target[rating] - residual[rating, v]


@partial(compiled, parallel=True)
def _ridge_threaded(movies, target, indices, indptr, prior, l2, factor, solution, residual, bounds):
    for thread in numba.prange(len(bounds) - 1):
        _ridge(movies, target, indices, indptr, prior, l2, factor, solution, residual, bounds[thread],
               bounds[thread + 1])


@compiled
def _lay_across(movies, indices, v, across):
    """Write the v-th rows of movies to columns; of eight together, numbers that follow each other are written at once.
    """
    whole = len(indices) // 8 * 8
    for k in range(0, whole, 8):
        a, b, c, d = (movies[indices[k], v], movies[indices[k + 1], v], movies[indices[k + 2], v],
                      movies[indices[k + 3], v])
        e, f, g, h = (movies[indices[k + 4], v], movies[indices[k + 5], v], movies[indices[k + 6], v],
                      movies[indices[k + 7], v])
        for i in range(movies.shape[2]):
            across[i, k], across[i, k + 1], across[i, k + 2], across[i, k + 3] = a[i], b[i], c[i], d[i]
            across[i, k + 4], across[i, k + 5], across[i, k + 6], across[i, k + 7] = e[i], f[i], g[i], h[i]
    for k in range(whole, len(indices)):
        for i in range(movies.shape[2]):
            across[i, k] = movies[indices[k], v, i]


@compiled
def _add_products(across, count, dim, gram):
    """Add the inner products of the rows of across[:, :count], the first `dim` of them with all, to the upper triangle
    of a matrix: two rows with four at a time, so that eight sums stay in registers and six numbers are read for them.
    """
    for i in range(0, dim, 2):
        a, b = across[i, :count], across[i + 1, :count]
        for j in range(i // 4 * 4, dim + 1, 4):
            c, d, e, f = across[j, :count], across[j + 1, :count], across[j + 2, :count], across[j + 3, :count]
            ac = ad = ae = af = bc = bd = be = bf = across.dtype.type(0)
            for k in range(count):
                ac += a[k] * c[k]
                ad += a[k] * d[k]
                ae += a[k] * e[k]
                af += a[k] * f[k]
                bc += b[k] * c[k]
                bd += b[k] * d[k]
                be += b[k] * e[k]
                bf += b[k] * f[k]
            gram[i, j] += ac
            gram[i, j + 1] += ad
            gram[i, j + 2] += ae
            gram[i, j + 3] += af
            gram[i + 1, j] += bc
            gram[i + 1, j + 1] += bd
            gram[i + 1, j + 2] += be
            gram[i + 1, j + 3] += bf


@compiled
def _ridge_again(factor, right, solution, first, last):
    num_users, num_vectors, dim = right.shape
    users = factor.shape[-1] // num_vectors
    values = np.zeros((dim, users * num_vectors), right.dtype)
    for pack in range(first, last):
        begin, end = pack * users, min((pack + 1) * users, num_users)
        for user in range(begin, end):
            for v in range(num_vectors):
                for i in range(dim):
                    values[i, (user - begin) * num_vectors + v] = right[user, v, i]
        _substitute(factor[pack], values, solution, begin, end)


@partial(compiled, parallel=True)
def _ridge_again_threaded(factor, right, solution, bounds):
    for thread in numba.prange(len(bounds) - 1):
        _ridge_again(factor, right, solution, bounds[thread], bounds[thread + 1])


@compiled
def _row_adam(table, mean, square, steps, rows, grad, lr, beta_mean, beta_square, epsilon):
    dim = table.shape[1]
    one, beta_mean, beta_square = table.dtype.type(1), table.dtype.type(beta_mean), table.dtype.type(beta_square)
    epsilon = table.dtype.type(epsilon)
    for k in range(len(rows)):
        row = rows[k]
        steps[row] += 1
        scale = table.dtype.type(lr * np.sqrt(1 - np.float64(beta_square) ** steps[row])
                                 / (1 - np.float64(beta_mean) ** steps[row]))
        for i in range(dim):
            mean[row, i] += (one - beta_mean) * (grad[k, i] - mean[row, i])
            square[row, i] = beta_square * square[row, i] + (one - beta_square) * grad[k, i] * grad[k, i]
            table[row, i] -= scale * mean[row, i] / (np.sqrt(square[row, i]) + epsilon)


@compiled
def _factorize(system, lanes):
    """Turn the upper triangles of matrices A (D, D, lanes) into Cholesky's factors U, A = U'U, with the reciprocals of
    their diagonals."""
    dim = len(system)
    for i in range(dim):
        for j in range(i, dim):
            for k in range(i):
                for lane in range(lanes):
                    system[i, j, lane] -= system[k, i, lane] * system[k, j, lane]
            if j == i:
                for lane in range(lanes):
                    system[i, i, lane] = 1 / np.sqrt(system[i, i, lane])
            else:
                for lane in range(lanes):
                    system[i, j, lane] *= system[i, i, lane]


@compiled
def _substitute(factor, values, solution, begin, end):
    """Solve U'U x = values (D, lanes), U as `_factorize` leaves it, and write x to the solution of users begin:end."""
    num_vectors, dim = solution.shape[1], len(factor)
    lanes = (end - begin) * num_vectors
    for i in range(dim):
        for k in range(i):
            for lane in range(lanes):
                values[i, lane] -= factor[k, i, lane] * values[k, lane]
        for lane in range(lanes):
            values[i, lane] *= factor[i, i, lane]
    for i in range(dim - 1, -1, -1):
        for j in range(i + 1, dim):
            for lane in range(lanes):
                values[i, lane] -= factor[i, j, lane] * values[j, lane]
        for lane in range(lanes):
            values[i, lane] *= factor[i, i, lane]
    for user in range(begin, end):
        for v in range(num_vectors):
            for i in range(dim):
                solution[user, v, i] = values[i, (user - begin) * num_vectors + v]


@compiled
def _keep_best(scores, user_tail, movie_tail, slack, users, movies, movie_idx, indptr, seen, best, best_idx):
    last = best.shape[1] - 1
    for row in range(len(scores)):
        radius, floor = user_tail[row], best[row, last] - slack[row]
        for begin in range(0, scores.shape[1], STRIP):
            some, tail = scores[row, begin:begin + STRIP], movie_tail[begin:begin + STRIP]
            above = False
            for i in range(len(some)):
                above |= some[i] + radius * tail[i] > floor
            if above:
                for i in range(len(some)):
                    if some[i] + radius * tail[i] > floor:
                        _insert(users[row], movies[begin + i], movie_idx[begin + i], seen[indptr[row]:indptr[row + 1]],
                                best[row], best_idx[row])
                        floor = best[row, last] - slack[row]


@compiled
def _insert(user, movie, movie_idx, seen, best, best_idx):
    """Take a product into the best of a user, if it is one of them and the movie has not been seen."""
    score, rank = best.dtype.type(0), len(best) - 1
    for i in range(len(user)):
        score += user[i] * movie[i]
    if score > best[rank] or (score == best[rank] and movie_idx < best_idx[rank]):
        found = False
        for i in range(len(seen)):
            found |= seen[i] == movie_idx
        if not found:
            while rank > 0 and (score > best[rank - 1] or (score == best[rank - 1] and movie_idx < best_idx[rank - 1])):
                best[rank], best_idx[rank] = best[rank - 1], best_idx[rank - 1]
                rank -= 1
            best[rank], best_idx[rank] = score, movie_idx
