"""The backend of a GPU: kernels over ratings that Triton compiles; Triton comes with PyTorch for GPUs on Linux.

In array operations a row of coordinates is written to memory for every rating, and read again. Here a program takes a
chunk of the ratings and one of the V vectors, goes through the users whose ratings these are, and keeps what it makes
of them in registers. Programs add to the same sums in any order, so their last bits differ from call to call.

Letters: R ratings, B users, N movies, V vectors of each, D coordinates. `indptr`, `indices`: see rating_pattern.py.
"""

import torch
import triton
import triton.language as tl

from models.ops.array_ops import window_sums
from models.ops.rating_pattern import RatingPattern

__all__ = ["dots", "ridge", "ridge_again", "row_adam", "sum_by_movie", "sum_by_user", "uniform", "window_sums"]

CHUNK = 256  # ratings of a program
TILE, PRODUCT_TILE = 32, 16  # ratings of a user that are taken together, and those whose rows are multiplied
HASH_BLOCK = 1024  # numbers of a program
PER_STEP = ["num_ratings", "num_users"]  # differ from step to step: not worth a kernel of their own


def dots(users: torch.Tensor, movies: torch.Tensor, pattern: RatingPattern) -> torch.Tensor:
    """Do what `array_ops.dots` does."""
    out = users.new_empty(len(pattern.indices), users.shape[1])
    _run(_dots, users, movies, pattern, out, dim=users.shape[2])
    return out


def sum_by_user(movies: torch.Tensor, weight: torch.Tensor, pattern: RatingPattern) -> torch.Tensor:
    """Do what `array_ops.sum_by_user` does."""
    out = movies.new_zeros(pattern.num_users, *movies.shape[1:])
    _run(_sum_by_user, movies, weight, pattern, out, dim=movies.shape[2])
    return out


def sum_by_movie(users: torch.Tensor, weight: torch.Tensor, pattern: RatingPattern) -> torch.Tensor:
    """Do what `array_ops.sum_by_movie` does."""
    out = users.new_zeros(pattern.num_movies, *users.shape[1:])
    _run(_sum_by_movie, users, weight, pattern, out, dim=users.shape[2])
    return out


def ridge(movies: torch.Tensor, target: torch.Tensor, prior: torch.Tensor, l2: torch.Tensor, pattern: RatingPattern,
          keep: bool = True) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Do what `array_ops.ridge` does, of rows that are not wider than backend.py allows."""
    num_users, num_vectors, dim = prior.shape
    gram = movies.new_zeros(num_users, num_vectors, dim + 1, dim + 1)  # of a user's [v, target - bias]
    _run(_gram, movies, target, pattern, gram, dim=dim + 1, tile=PRODUCT_TILE, num_warps=4)
    solution = prior.new_empty(num_users, num_vectors, dim + 1)  # with a coordinate of 1, which meets the biases
    inverse = prior.new_empty(num_users if keep else 0, num_vectors, dim, dim)
    if num_users:
        padded = triton.next_power_of_2(max(dim - 1, 1))
        _solve[num_users, num_vectors](gram, prior.contiguous(), l2.contiguous(), solution, inverse, num_vectors, dim,
                                       padded, keep, num_warps=1 if padded <= 32 else 8)
    residual = target.unsqueeze(1) - dots(solution, movies, pattern)
    return solution[..., :-1], residual, inverse


def ridge_again(inverse: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Do what `array_ops.ridge_again` does."""
    return (inverse @ right.unsqueeze(-1)).squeeze(-1)


def uniform(seed: int, first: torch.Tensor, second: torch.Tensor | None = None) -> torch.Tensor:
    """Do what `array_ops.uniform` does, of one column or two."""
    out = torch.empty_like(first, dtype=torch.float32)
    if len(out):
        _uniform[(triton.cdiv(len(out), HASH_BLOCK),)](seed, first.contiguous(),
                                                       first if second is None else second.contiguous(), out, len(out),
                                                       second is not None, HASH_BLOCK)
    return out


def row_adam(table: torch.Tensor, mean: torch.Tensor, square: torch.Tensor, steps: torch.Tensor, rows: torch.Tensor,
             grad: torch.Tensor, lr: float, betas: tuple[float, float], epsilon: float) -> None:
    """Do what `array_ops.row_adam` does."""
    if len(rows):
        dim = table.shape[1]
        _row_adam[(len(rows),)](table, mean, square, steps, rows, grad.contiguous(), lr, *betas, epsilon, dim,
                                triton.next_power_of_2(dim), num_warps=1)


def _run(kernel: triton.JITFunction, first: torch.Tensor, second: torch.Tensor, pattern: RatingPattern,
         out: torch.Tensor, dim: int, tile: int = TILE, num_warps: int = 1) -> None:
    """Run a kernel for all chunks of ratings and all vectors."""
    num_ratings = len(pattern.indices)
    if num_ratings:
        padded = max(triton.next_power_of_2(dim), 16)  # a tile is a power of two; Triton multiplies none below 16
        kernel[triton.cdiv(num_ratings, CHUNK), pattern.num_vectors](
            first.contiguous(), second.contiguous(), pattern.indices, pattern.indptr, out, num_ratings,
            pattern.num_users, pattern.num_vectors, dim, padded, CHUNK, tile, num_warps=num_warps)


@triton.jit
def _chunk(indptr, num_ratings, num_users, CHUNK: tl.constexpr):
    """Return the first of a program's ratings, one past the last, and the user of the first."""
    begin = tl.program_id(0).to(tl.int64) * CHUNK
    low, high = tl.program_id(0) * 0, num_users
    while high - low > 1:
        middle = (low + high) // 2
        before = tl.load(indptr + middle) <= begin
        low, high = tl.where(before, middle, low), tl.where(before, high, middle)
    return begin, tl.minimum(begin + CHUNK, num_ratings), low.to(tl.int64)


@triton.jit
def _rows(movies, indices, rating, last, vector, num_vectors, dim, i):
    """Return the rows of the movies that ratings before the last one meet, (TILE, WIDTH), zero beyond."""
    movie = tl.load(indices + rating, rating < last, 0)
    position = (movie * num_vectors + vector)[:, None] * dim + i[None, :]
    return tl.load(movies + position, (rating < last)[:, None] & (i < dim)[None, :], 0)


@triton.jit(do_not_specialize=PER_STEP)
def _dots(users, movies, indices, indptr, out, num_ratings, num_users, num_vectors, dim, WIDTH: tl.constexpr,
          CHUNK: tl.constexpr, TILE: tl.constexpr):
    vector, i = tl.program_id(1), tl.arange(0, WIDTH)
    begin, end, user = _chunk(indptr, num_ratings, num_users, CHUNK)
    while begin < end:
        last = tl.minimum(tl.load(indptr + user + 1), end)
        user_vector = tl.load(users + (user * num_vectors + vector) * dim + i, i < dim, 0)
        for first in range(begin, last, TILE):
            rating = first + tl.arange(0, TILE)
            rows = _rows(movies, indices, rating, last, vector, num_vectors, dim, i)
            tl.store(out + rating * num_vectors + vector, tl.sum(rows * user_vector[None, :], 1), rating < last)
        begin, user = last, user + 1


@triton.jit(do_not_specialize=PER_STEP)
def _sum_by_user(movies, weight, indices, indptr, out, num_ratings, num_users, num_vectors, dim, WIDTH: tl.constexpr,
                 CHUNK: tl.constexpr, TILE: tl.constexpr):
    vector, i = tl.program_id(1), tl.arange(0, WIDTH)
    begin, end, user = _chunk(indptr, num_ratings, num_users, CHUNK)
    while begin < end:
        last = tl.minimum(tl.load(indptr + user + 1), end)
        total = tl.zeros([WIDTH], movies.dtype.element_ty)
        for first in range(begin, last, TILE):
            rating = first + tl.arange(0, TILE)
            rows = _rows(movies, indices, rating, last, vector, num_vectors, dim, i)
            total += tl.sum(rows * tl.load(weight + rating * num_vectors + vector, rating < last, 0)[:, None], 0)
        tl.atomic_add(out + (user * num_vectors + vector) * dim + i, total, i < dim, sem="relaxed")
        begin, user = last, user + 1


@triton.jit(do_not_specialize=PER_STEP)
def _sum_by_movie(users, weight, indices, indptr, out, num_ratings, num_users, num_vectors, dim, WIDTH: tl.constexpr,
                  CHUNK: tl.constexpr, TILE: tl.constexpr):
    vector, i = tl.program_id(1), tl.arange(0, WIDTH)
    begin, end, user = _chunk(indptr, num_ratings, num_users, CHUNK)
    while begin < end:
        last = tl.minimum(tl.load(indptr + user + 1), end)
        user_vector = tl.load(users + (user * num_vectors + vector) * dim + i, i < dim, 0)
        for first in range(begin, last, TILE):
            rating = first + tl.arange(0, TILE)
            movie = tl.load(indices + rating, rating < last, 0)
            added = tl.load(weight + rating * num_vectors + vector, rating < last, 0)[:, None] * user_vector[None, :]
            tl.atomic_add(out + (movie * num_vectors + vector)[:, None] * dim + i[None, :], added,
                          (rating < last)[:, None] & (i < dim)[None, :], sem="relaxed")
        begin, user = last, user + 1


@triton.jit(do_not_specialize=PER_STEP)
def _gram(movies, target, indices, indptr, gram, num_ratings, num_users, num_vectors, dim, WIDTH: tl.constexpr,
          CHUNK: tl.constexpr, TILE: tl.constexpr):
    """Sum the products of a user's rows [v, target - bias] by themselves."""
    vector, i = tl.program_id(1), tl.arange(0, WIDTH)
    begin, end, user = _chunk(indptr, num_ratings, num_users, CHUNK)
    while begin < end:
        last = tl.minimum(tl.load(indptr + user + 1), end)
        products = tl.zeros([WIDTH, WIDTH], tl.float32)
        for first in range(begin, last, TILE):
            rating = first + tl.arange(0, TILE)
            rows = _rows(movies, indices, rating, last, vector, num_vectors, dim, i)
            above_bias = tl.load(target + rating, rating < last, 0)[:, None] - rows
            rows = tl.where((i == dim - 1)[None, :], above_bias, rows)
            products = tl.dot(tl.trans(rows), rows, products, input_precision="ieee")
        position = ((user * num_vectors + vector) * dim + i[:, None]) * dim + i[None, :]
        tl.atomic_add(gram + position, products, (i < dim)[:, None] & (i < dim)[None, :], sem="relaxed")
        begin, user = last, user + 1


@triton.jit
def _solve(gram, prior, l2, solution, inverse, num_vectors, dim, WIDTH: tl.constexpr, KEEP: tl.constexpr):
    """Solve a user's system from its inverse, and refine the solution.

    The block of the vector's coordinates is inverted by sweeping its pivots one after the other (Gauss and Jordan's
    way, which keeps a symmetric matrix symmetric; Goodnight 1979, "A tutorial on the SWEEP operator"). The bias, the
    last coordinate, is then added by its Schur complement: a block of 32 fits the threads, one of 33 does not.
    """
    number, i, bias = tl.program_id(0) * num_vectors + tl.program_id(1), tl.arange(0, WIDTH), dim - 1
    inside, width = i < bias, dim + 1
    gram += number.to(tl.int64) * width * width
    l2_here, prior_here = tl.load(l2 + number * dim + i, inside, 1), tl.load(prior + number * dim + i, inside, 0)
    bias_l2, bias_prior = tl.load(l2 + number * dim + bias), tl.load(prior + number * dim + bias)
    right = tl.load(gram + i * width + dim, inside, 0) + l2_here * prior_here
    bias_right = tl.load(gram + bias * width + dim) + bias_l2 * bias_prior
    edge, corner = tl.load(gram + bias * width + i, inside, 0), tl.load(gram + bias * width + bias) + bias_l2
    block = inside[:, None] & inside[None, :]
    system = tl.load(gram + i[:, None] * width + i[None, :], block, 0)
    system += tl.where(i[:, None] == i[None, :], l2_here[None, :], 0)
    for pivot in range(bias):
        is_row, is_column = (i == pivot)[:, None], (i == pivot)[None, :]
        across = tl.sum(tl.where(is_row, system, 0), 0)
        down = tl.sum(tl.where(is_column, system, 0), 1)  # the same numbers, but for rounding
        scale = 1 / tl.sum(tl.where(i == pivot, across, 0), 0)
        swept = system - down[:, None] * (across * scale)[None, :]
        swept = tl.where(is_row, (across * scale)[None, :], tl.where(is_column, (down * scale)[:, None], swept))
        system = tl.where(is_row & is_column, -scale, swept)
    of_edge = -tl.sum(system * edge[:, None], 0)  # the block's inverse times the edge
    complement = 1 / (corner - tl.sum(of_edge * edge, 0))
    bias_found = (bias_right - tl.sum(of_edge * right, 0)) * complement
    found = -tl.sum(system * right[:, None], 0) - of_edge * bias_found
    # Solve once more for what rounding has left of the right-hand side; sweeping has overwritten the system.
    whole = tl.load(gram + i[:, None] * width + i[None, :], block, 0)
    remainder = right - tl.sum(whole * found[:, None], 0) - l2_here * found - edge * bias_found
    bias_remainder = bias_right - tl.sum(edge * found, 0) - corner * bias_found
    bias_more = (bias_remainder - tl.sum(of_edge * remainder, 0)) * complement
    found += -tl.sum(system * remainder[:, None], 0) - of_edge * bias_more
    bias_found += bias_more
    tl.store(solution + number * width + i, found, inside)
    tl.store(solution + number * width + bias, bias_found)
    tl.store(solution + number * width + dim, 1.0)
    if KEEP:
        inverse += number.to(tl.int64) * dim * dim
        tl.store(inverse + i[:, None] * dim + i[None, :], of_edge[:, None] * (of_edge * complement)[None, :] - system,
                 block)
        tl.store(inverse + i * dim + bias, -of_edge * complement, inside)
        tl.store(inverse + bias * dim + i, -of_edge * complement, inside)
        tl.store(inverse + bias * dim + bias, complement)


@triton.jit(do_not_specialize=["seed", "num"])
def _uniform(seed, first, second, out, num, TWO: tl.constexpr, BLOCK: tl.constexpr):
    position = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    word = tl.zeros([BLOCK], tl.int64) + seed
    word = _mixed(word, tl.load(first + position, position < num, 0))
    if TWO:
        word = _mixed(word, tl.load(second + position, position < num, 0))
    tl.store(out + position, (word >> 40 & 0xFFFFFF).to(tl.float32) * 5.9604644775390625e-08, position < num)


@triton.jit
def _mixed(word, column):
    """Take a column into a word: SplitMix64's finalizer, its constants as signed numbers."""
    word = (word ^ column) + -7046029254386353131
    word = (word ^ (word >> 30 & 0x3FFFFFFFF)) * -4658895280553007687
    word = (word ^ (word >> 27 & 0x1FFFFFFFFF)) * -7723592293110705685
    return word ^ (word >> 31 & 0x1FFFFFFFF)


@triton.jit(do_not_specialize=["lr"])
def _row_adam(table, mean, square, steps, rows, grad, lr, beta_mean, beta_square, epsilon, dim, WIDTH: tl.constexpr):
    i = tl.arange(0, WIDTH)
    row = tl.load(rows + tl.program_id(0))
    position = row * dim + i
    slope = tl.load(grad + tl.program_id(0) * dim + i, i < dim, 0)
    step = tl.load(steps + row) + 1
    first = tl.load(mean + position, i < dim, 0)
    first += (slope - first) * (1 - beta_mean)
    second = tl.load(square + position, i < dim, 0) * beta_square + slope * slope * (1 - beta_square)
    scale = tl.sqrt(1 - tl.exp(step * tl.log(beta_square))) / (1 - tl.exp(step * tl.log(beta_mean))) * lr
    value = tl.load(table + position, i < dim, 0) - scale * first / (tl.sqrt(second) + epsilon)
    tl.store(table + position, value, i < dim)
    tl.store(mean + position, first, i < dim)
    tl.store(square + position, second, i < dim)
    tl.store(steps + row, step)
