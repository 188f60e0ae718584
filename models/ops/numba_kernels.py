"""What is done with every rating on a CPU, and with every score of everybody's lists, as loops that Numba compiles;
formulas are in ragged.py and temporal.py.

In array operations the rows of a user's films are gathered into memory, multiplied there, and factorised by a library
that is made for larger matrices. Here some rows at a time are laid across a buffer that stays in the cache, and the
systems of a pack of users are factorised side by side: numbers of the same place in all of them follow each other, and
vector instructions take them together.

Users are shared out over OpenMP's threads, which torch has started: a thread of another kind would compete with them.
A user is computed by one thread in one order, so results do not depend on the number of threads. (Lists are made by
threads of their own.)

Letters: R ratings, T questions, B users in packs, N films, H heads, D coordinates of a film's vector, S = D + 1 of a
user's, W windows. A user's ratings, or questions, are start[user]:start[user + 1], start being int64 (B + 1,).
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial

import numba
import numpy as np
import torch

CHUNK = 256  # ratings of a user that are taken together
APART = 8  # numbers between their rows: a power of two apart, rows share few places of the cache
LANES = 32  # systems of a pack, about
STRIP = 64  # scores that are looked at one by one only if one of them is high enough
OF_A_USER = 16  # ratings that take as long as what a user costs beside his ratings
LITTLE = 10_000  # ratings that are not worth a second thread

numba.config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]


def compiled(function: Callable[..., None], parallel: bool = False) -> Callable[..., None]:
    """Compile a function when it is first called; what is compiled is kept beside this file for the next process.

    Sums may be taken in another order than written, but numbers that are not finite stay so.
    """
    options = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "reassoc", "nsz", "arcp"}}
    try:
        return numba.njit(cache=True, parallel=parallel, **options)(function)
    except RuntimeError:  # neither the folder of this file nor that of the user can be written to
        return numba.njit(parallel=parallel, **options)(function)


def dots(users: torch.Tensor, films: torch.Tensor, column: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """Return the inner products, float (R, H), of users (B, H, S) with the films (N, H, S) that they meet.

    Args:
        column: int64 (R,), the rating's film.
        start: of the users' ratings.
    """
    out = users.new_empty(len(column), users.shape[1])
    _in_threads(_dots, _dots_shared_out, start.numpy(), 1, users, films, column, start, out)
    return out


def ridge(films: torch.Tensor, wanted: torch.Tensor, column: torch.Tensor, start: torch.Tensor, prior: torch.Tensor,
          penalty: torch.Tensor, keep: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what `ridge_solve` does, float (B, H, S) and (R, H), and what `ridge_again` needs, if it is to be kept.

    Args:
        films: float (N, H, S + 1).
        wanted, column: float and int64 (R,), of each rating: what is to be explained, and its film.
        start: of the users' ratings.
        prior, penalty: float (B, H, S).
    """
    num_users, heads, size = prior.shape
    solution = prior.new_ones(num_users, heads, size + 1)  # with a coordinate of 1, which meets the films' biases
    left = wanted.new_empty(len(wanted), heads)
    users = max(LANES // heads, 1)
    factor = films.new_empty(-(-num_users // users) if keep else 0, size, size, users * heads)
    _in_threads(_ridge, _ridge_shared_out, start.numpy(), users, films, wanted, column, start, prior, penalty, factor,
                solution, left)
    return solution[..., :-1], left, factor


def ridge_again(factor: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return the solutions of the same systems for other right sides, both float (B, H, S)."""
    solution, (num_users, heads, _) = torch.empty_like(right), right.shape
    _in_threads(_ridge_again, _ridge_again_shared_out, np.arange(num_users + 1), factor.shape[-1] // heads, factor,
                right, solution)
    return solution


def mood_sums(day: torch.Tensor, residual: torch.Tensor, start: torch.Tensor, asked: torch.Tensor,
              asked_start: torch.Tensor, windows: tuple[int, ...]) -> torch.Tensor:
    """Return for each question and window the sum of the residuals that its user has in the same window, and their
    number, float (2, T, W); see `UserMood`.

    Args:
        day, residual, start: int64 (R,), ascending within a user, float (R,), and of the users' ratings.
        asked, asked_start: int64 (T,), the same days of the questions, and of the users' questions.
        windows: days, powers of two.
    """
    sums = residual.new_empty(2, len(asked), len(windows))
    shifts = torch.tensor([window.bit_length() - 1 for window in windows])
    _in_threads(_mood_sums, _mood_sums_shared_out, (start + asked_start).numpy(), 1, day, residual, start,
                asked, asked_start, shifts, sums)
    return sums


def keep_best(scores: torch.Tensor, user_rest: torch.Tensor, movie_rest: torch.Tensor, slack: torch.Tensor,
              users: torch.Tensor, movies: torch.Tensor, movie_idx: torch.Tensor, start: torch.Tensor,
              seen: torch.Tensor, best: torch.Tensor, best_idx: torch.Tensor) -> None:
    """Take products of users and some movies into the K best so far of every user, in place; see top_k.py.

    Args:
        scores: float (B, C), of the first coordinates.
        user_rest, movie_rest: float (B,) and (C,), lengths of what the other coordinates are.
        slack: float (B,), by how much a bound may be wrong.
        users, movies: float (B, P) and (C, P), whose products count.
        movie_idx: int64 (C,); of equal products that of the smaller movie_idx is better.
        start, seen: int64 (B + 1,) and (R,), movies seen[start[b]:start[b + 1]] are not taken for user b.
        best, best_idx: float and int64 (B, K), K > 0, descending; -inf, of no movie, to begin with.
    """
    if {scores.shape[1], len(movie_rest), len(movies)} != {len(movie_idx)} or not best.shape[1]:
        raise ValueError(f"{scores.shape[1]} columns of {len(movie_idx)} movies, {best.shape[1]} kept")
    tensors = (scores, user_rest, movie_rest, slack, users, movies, movie_idx, start, seen)
    _run(_keep_best, *(tensor.contiguous().numpy() for tensor in tensors), best.numpy(), best_idx.numpy())


def _in_threads(kernel: Callable[..., None], shared_out: Callable[..., None], start: np.ndarray, pack: int,
                *tensors: torch.Tensor) -> None:
    """Call kernel(*arrays, first, last) for shares of the packs of so many users, on torch's number of threads."""
    arrays, threads = [tensor.contiguous().numpy() for tensor in tensors], torch.get_num_threads()
    num_users = len(start) - 1
    num_packs = -(-num_users // pack)
    cost = start + OF_A_USER * np.arange(num_users + 1)
    if threads == 1 or cost[-1] < LITTLE:  # the caller may be one of many threads, which OpenMP's are not for
        function, bounds = kernel, (0, num_packs)
    else:
        cost = cost[np.minimum(np.arange(num_packs + 1) * pack, num_users)]
        threads = min(threads, numba.config.NUMBA_NUM_THREADS)
        numba.set_num_threads(threads)
        function, bounds = shared_out, (np.searchsorted(cost, np.linspace(0, cost[-1], threads + 1)),)
    _run(function, *arrays, *bounds)


def _run(function: Callable[..., None], *args: object) -> None:
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
        for number in held:
            signal.raise_signal(number)


@compiled
def _dots(users, films, column, start, out, first, last):
    heads, size = users.shape[1:]
    for user in range(first, last):
        whole = start[user] + (start[user + 1] - start[user]) // 4 * 4
        for rating in range(start[user], whole, 4):  # four together, whose sums do not wait for each other
            for head in range(heads):
                own = users[user, head]
                film_a, film_b = films[column[rating], head], films[column[rating + 1], head]
                film_c, film_d = films[column[rating + 2], head], films[column[rating + 3], head]
                a = b = c = d = films.dtype.type(0)
                for i in range(size):
                    a += own[i] * film_a[i]
                    b += own[i] * film_b[i]
                    c += own[i] * film_c[i]
                    d += own[i] * film_d[i]
                out[rating, head], out[rating + 1, head], out[rating + 2, head], out[rating + 3, head] = a, b, c, d
        for rating in range(whole, start[user + 1]):
            for head in range(heads):
                a = films.dtype.type(0)
                for i in range(size):
                    a += users[user, head, i] * films[column[rating], head, i]
                out[rating, head] = a


@partial(compiled, parallel=True)
def _dots_shared_out(users, films, column, start, out, bounds):
    for share in numba.prange(len(bounds) - 1):
        _dots(users, films, column, start, out, bounds[share], bounds[share + 1])


@compiled
def _ridge(films, wanted, column, start, prior, penalty, factor, solution, left, first, last):
    num_users, heads, size = prior.shape
    users = factor.shape[-1] // heads
    rows = -(-(size + 1) // 4) * 4  # coordinates, and what they shall explain; a multiple of four
    across = np.zeros((rows, CHUNK + APART), films.dtype)  # of some ratings
    gram = np.zeros((heads, rows, rows), films.dtype)  # of a user
    right = np.zeros((size, users * heads), films.dtype)
    scratch = np.zeros((size, size, users * heads), films.dtype)
    for pack in range(first, last):
        system = factor[pack] if len(factor) else scratch
        begin, end = pack * users, min((pack + 1) * users, num_users)
        for user in range(begin, end):
            gram[:] = 0
            for chunk in range(start[user], start[user + 1], CHUNK):
                count = min(start[user + 1] - chunk, CHUNK)
                for head in range(heads):
                    _lay_across(films, column[chunk:chunk + count], head, across)
                    for k in range(count):
                        across[size, k] = wanted[chunk + k] - across[size, k]
                    _add_products(across, count, size, gram[head])
            for head in range(heads):
                lane = (user - begin) * heads + head
                for i in range(size):
                    for j in range(i, size):
                        system[i, j, lane] = gram[head, i, j]
                    system[i, i, lane] += penalty[user, head, i]
                    right[i, lane] = gram[head, i, size] + penalty[user, head, i] * prior[user, head, i]
        _factorise(system, (end - begin) * heads)
        _substitute(system, right, solution, begin, end)
        _dots(solution, films, column, start, left, begin, end)
        for rating in range(start[begin], start[end]):
            for head in range(heads):
                left[rating, head] = wanted[rating] - left[rating, head]


@partial(compiled, parallel=True)
def _ridge_shared_out(films, wanted, column, start, prior, penalty, factor, solution, left, bounds):
    for share in numba.prange(len(bounds) - 1):
        _ridge(films, wanted, column, start, prior, penalty, factor, solution, left, bounds[share], bounds[share + 1])


@compiled
def _lay_across(films, column, head, across):
    """Write a head's rows of films to columns; of eight together, numbers that follow each other are written at once.
    """
    whole = len(column) // 8 * 8
    for k in range(0, whole, 8):
        a, b, c, d = (films[column[k], head], films[column[k + 1], head], films[column[k + 2], head],
                      films[column[k + 3], head])
        e, f, g, h = (films[column[k + 4], head], films[column[k + 5], head], films[column[k + 6], head],
                      films[column[k + 7], head])
        for i in range(films.shape[2]):
            across[i, k], across[i, k + 1], across[i, k + 2], across[i, k + 3] = a[i], b[i], c[i], d[i]
            across[i, k + 4], across[i, k + 5], across[i, k + 6], across[i, k + 7] = e[i], f[i], g[i], h[i]
    for k in range(whole, len(column)):
        for i in range(films.shape[2]):
            across[i, k] = films[column[k], head, i]


@compiled
def _add_products(across, count, size, gram):
    """Add the inner products of the rows of across[:, :count], the first `size` of them with all, to the upper triangle
    of a matrix: two rows with four at a time, so that eight sums stay in registers and six numbers are read for them.
    """
    for i in range(0, size, 2):
        a, b = across[i, :count], across[i + 1, :count]
        for j in range(i // 4 * 4, size + 1, 4):
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
    num_users, heads, size = right.shape
    users = factor.shape[-1] // heads
    values = np.zeros((size, users * heads), right.dtype)
    for pack in range(first, last):
        begin, end = pack * users, min((pack + 1) * users, num_users)
        for user in range(begin, end):
            for head in range(heads):
                for i in range(size):
                    values[i, (user - begin) * heads + head] = right[user, head, i]
        _substitute(factor[pack], values, solution, begin, end)


@partial(compiled, parallel=True)
def _ridge_again_shared_out(factor, right, solution, bounds):
    for share in numba.prange(len(bounds) - 1):
        _ridge_again(factor, right, solution, bounds[share], bounds[share + 1])


@compiled
def _factorise(system, lanes):
    """Turn the upper triangles of matrices A (S, S, lanes) into Cholesky's factors U, A = U'U, with the reciprocals of
    their diagonals."""
    size = len(system)
    for i in range(size):
        for j in range(i, size):
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
    """Solve U'U x = values (S, lanes), U as `_factorise` leaves it, and write x to the solution of users begin:end."""
    heads, size = solution.shape[1], len(factor)
    lanes = (end - begin) * heads
    for i in range(size):
        for k in range(i):
            for lane in range(lanes):
                values[i, lane] -= factor[k, i, lane] * values[k, lane]
        for lane in range(lanes):
            values[i, lane] *= factor[i, i, lane]
    for i in range(size - 1, -1, -1):
        for j in range(i + 1, size):
            for lane in range(lanes):
                values[i, lane] -= factor[i, j, lane] * values[j, lane]
        for lane in range(lanes):
            values[i, lane] *= factor[i, i, lane]
    for user in range(begin, end):
        for head in range(heads):
            for i in range(size):
                solution[user, head, i] = values[i, (user - begin) * heads + head]


@compiled
def _mood_sums(day, residual, start, asked, asked_start, shifts, sums, first, last):
    for user in range(first, last):
        end, newest = start[user + 1], np.int64(0)
        if end > start[user]:
            newest = day[end - 1]
        if asked_start[user + 1] > asked_start[user]:
            newest = max(newest, asked[asked_start[user + 1] - 1])
        for number in range(len(shifts)):
            place, current = start[user], np.int64(-1)
            total = count = sums.dtype.type(0)
            for question in range(asked_start[user], asked_start[user + 1]):
                window = (newest - asked[question]) >> shifts[number]
                if window != current:
                    current, total, count = window, sums.dtype.type(0), sums.dtype.type(0)
                    while place < end and (newest - day[place]) >> shifts[number] > window:
                        place += 1
                    while place < end and (newest - day[place]) >> shifts[number] == window:
                        total += residual[place]
                        count += 1
                        place += 1
                sums[0, question, number], sums[1, question, number] = total, count


@partial(compiled, parallel=True)
def _mood_sums_shared_out(day, residual, start, asked, asked_start, shifts, sums, bounds):
    for share in numba.prange(len(bounds) - 1):
        _mood_sums(day, residual, start, asked, asked_start, shifts, sums, bounds[share], bounds[share + 1])


@compiled
def _keep_best(scores, user_rest, movie_rest, slack, users, movies, movie_idx, start, seen, best, best_idx):
    last = best.shape[1] - 1
    for row in range(len(scores)):
        radius, floor = user_rest[row], best[row, last] - slack[row]
        for begin in range(0, scores.shape[1], STRIP):
            some, rest = scores[row, begin:begin + STRIP], movie_rest[begin:begin + STRIP]
            above = False
            for i in range(len(some)):
                above |= some[i] + radius * rest[i] > floor
            if above:
                for i in range(len(some)):
                    if some[i] + radius * rest[i] > floor:
                        _insert(users[row], movies[begin + i], movie_idx[begin + i], seen[start[row]:start[row + 1]],
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
