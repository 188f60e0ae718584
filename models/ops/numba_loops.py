"""The loops over ratings that Numba compiles for a CPU, without PyTorch; numba_kernels.py calls them, and says more.

    python -m models.ops.numba_loops systems    compile what training needs, and keep the code for other processes
    python -m models.ops.numba_loops sums       the rest of it

A first run does both beside its own imports and the reading of its data, see compiling.py.
"""

import sys
from collections.abc import Callable

import numba
import numpy as np

CHUNK = 256  # ratings of a user that are taken together
GAP = 8  # numbers between their rows: a power of two apart, rows share few lines of the cache
RUN = 32  # ratings of which a compiled sum takes a turn; the rest one by one, which takes longer than a turn
LANES = 64  # systems that are factorised side by side, about
STRIP = 64  # scores that are looked at one by one only if one of them is high enough
OPTIONS = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "reassoc", "nsz", "arcp"}}


def compiled(function: Callable[..., None]) -> Callable[..., None]:
    """Compile a function when it is first called; keep the code beside this file for the next process.

    Sums may be taken in another order than written, but numbers that are not finite stay so.
    """
    try:
        return numba.njit(cache=True, **OPTIONS)(function)
    except RuntimeError:  # neither the folder of this file nor that of the user can be written to
        return numba.njit(**OPTIONS)(function)


@compiled
def dots(users, movies, indices, indptr, out, first, last):
    """Write each rating's inner products of its user and its movie, of users first:last, see `array_ops.dots`."""
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


@compiled
def factorize(movies, target, indices, indptr, prior, l2, factor, right, first, last):
    """Set up and factorise the systems of packs first:last of users, see `array_ops.ridge`.

    Args:
        factor: (packs, D (D + 1) / 2, lanes), receives upper triangles U, row by row, with the reciprocals of their
            diagonals, of which U'U is a system's matrix.
        right: (B, V, D), receives the right-hand sides.
    """
    num_users, num_vectors, dim = prior.shape
    users = factor.shape[-1] // num_vectors
    rows = -(-(dim + 1) // 4) * 4  # coordinates and target; a multiple of four
    across = np.zeros((rows, CHUNK + GAP), movies.dtype)  # of some ratings
    gram = np.zeros((num_vectors, rows, rows), movies.dtype)  # of a user
    for pack in range(first, last):
        system = factor[pack - first]
        begin, end = pack * users, min((pack + 1) * users, num_users)
        for user in range(begin, end):
            gram[:] = 0
            for chunk in range(indptr[user], indptr[user + 1], CHUNK):
                count = min(indptr[user + 1] - chunk, CHUNK)
                width = (count + RUN - 1) // RUN * RUN if 2 * count > RUN else count
                across[:, count:width] = 0
                for v in range(num_vectors):
                    lay_across(movies, indices[chunk:chunk + count], v, across)
                    for k in range(count):
                        across[dim, k] = target[chunk + k] - across[dim, k]
                    add_products(across, width, dim, gram[v])
            for v in range(num_vectors):
                lane, row = (user - begin) * num_vectors + v, 0
                for i in range(dim):
                    for j in range(i, dim):
                        system[row + j - i, lane] = gram[v, i, j]
                    system[row, lane] += l2[user, v, i]
                    right[user, v, i] = gram[v, i, dim] + l2[user, v, i] * prior[user, v, i]
                    row += dim - i
        decompose(system, dim, (end - begin) * num_vectors)


@compiled
def lay_across(movies, indices, v, across):
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
def add_products(across, count, dim, gram):
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
def substitute(factor, right, solution, first, last):
    """Solve the systems of packs first:last, which `factorize` has factorised, for right-hand sides (B, V, D)."""
    num_users, num_vectors, dim = right.shape
    users = factor.shape[-1] // num_vectors
    values = np.zeros((dim, users * num_vectors), right.dtype)
    for pack in range(first, last):
        upper = factor[pack - first]
        begin, end = pack * users, min((pack + 1) * users, num_users)
        lanes = (end - begin) * num_vectors
        for user in range(begin, end):
            for v in range(num_vectors):
                for i in range(dim):
                    values[i, (user - begin) * num_vectors + v] = right[user, v, i]
        row = 0
        for i in range(dim):
            for lane in range(lanes):
                values[i, lane] *= upper[row, lane]
            for j in range(i + 1, dim):
                for lane in range(lanes):
                    values[j, lane] -= upper[row + j - i, lane] * values[i, lane]
            row += dim - i
        for i in range(dim - 1, -1, -1):
            row -= dim - i
            for j in range(i + 1, dim):
                for lane in range(lanes):
                    values[i, lane] -= upper[row + j - i, lane] * values[j, lane]
            for lane in range(lanes):
                values[i, lane] *= upper[row, lane]
        for user in range(begin, end):
            for v in range(num_vectors):
                for i in range(dim):
                    solution[user, v, i] = values[i, (user - begin) * num_vectors + v]


@compiled
def window_sums(row, day, values, asked_row, asked_day, windows, total, count):
    """Sum what is in the window of each question, see `array_ops.window_sums`."""
    sums = np.zeros(len(row) + 1, np.float64)
    for rating in range(len(row)):
        sums[rating + 1] = sums[rating] + values[rating]
    begin = first = 0
    while first < len(asked_row):
        user, stop = asked_row[first], first
        while stop < len(asked_row) and asked_row[stop] == user:
            stop += 1
        while begin < len(row) and row[begin] < user:
            begin += 1
        end = begin
        while end < len(row) and row[end] == user:
            end += 1
        for w in range(len(windows)):
            low = high = begin
            for question in range(first, stop):
                while low < end and day[low] <= asked_day[question] - windows[w]:
                    low += 1
                while high < end and day[high] < asked_day[question] + windows[w]:
                    high += 1
                total[w, question], count[w, question] = sums[high] - sums[low], high - low
        first, begin = stop, end


@compiled
def row_adam(table, mean, square, steps, rows, grad, lr, beta_mean, beta_square, epsilon):
    """Run a step of Adam on rows of a table, see `array_ops.row_adam`."""
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
def decompose(system, dim, lanes):
    """Turn the upper triangles of matrices A (D (D + 1) / 2, lanes) into Cholesky's factors U, A = U'U, with the
    reciprocals of their diagonals."""
    row = 0
    for i in range(dim):
        for lane in range(lanes):
            system[row, lane] = 1 / np.sqrt(system[row, lane])
        for j in range(1, dim - i):
            for lane in range(lanes):
                system[row + j, lane] *= system[row, lane]
        below = row + dim - i
        for k in range(1, dim - i):  # what the row takes from those below it
            for j in range(k, dim - i):
                for lane in range(lanes):
                    system[below + j - k, lane] -= system[row + k, lane] * system[row + j, lane]
            below += dim - i - k
        row += dim - i


@compiled
def keep_best(scores, user_tail, movie_tail, slack, users, movies, movie_idx, indptr, seen, best, best_idx):
    """Take products into the best of every user, see `numba_kernels.keep_best`."""
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
                        insert(users[row], movies[begin + i], movie_idx[begin + i], seen[indptr[row]:indptr[row + 1]],
                               best[row], best_idx[row])
                        floor = best[row, last] - slack[row]


@compiled
def insert(user, movie, movie_idx, seen, best, best_idx):
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


def compile_for_training(some: str) -> None:
    """Compile some of what training calls, "systems" or "sums", for its types; nothing where Numba keeps no code for
    other processes."""
    if type(getattr(dots, "_cache")).__name__ == "NullCache":  # noqa: B009 - of Numba's
        return
    f32, i64 = (lambda *shape: np.ones(shape, np.float32)), (lambda *values: np.array(values))
    movies, vectors, factor = f32(2, 1, 3), f32(1, 1, 2), f32(1, 3, LANES)
    if some == "systems":
        factorize(movies, f32(1), i64(0), i64(0, 1), vectors, vectors, factor, vectors, 0, 1)
        return
    substitute(factor, vectors, vectors, 0, 1)
    dots(movies, movies, i64(0), i64(0, 1), f32(1, 1), 0, 1)
    window_sums(i64(0), i64(0), f32(1), i64(0), i64(0), i64(0), f32(1, 1), f32(1, 1))
    row_adam(f32(1, 2), f32(1, 2), f32(1, 2), f32(1), i64(0), f32(1, 2), 0.1, 0.9, 0.99, 1e-8)


if __name__ == "__main__":
    compile_for_training(sys.argv[1])
