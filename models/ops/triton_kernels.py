"""What is done with every rating on a GPU, as kernels that Triton compiles; Triton comes with PyTorch for GPUs.

The functions are those of numba_kernels.py, and some that need no loops of ours on a CPU. In array operations a row of
coordinates is written to memory for every rating, and read again. Here a program takes a chunk of the ratings and a
head, goes through the users whose ratings these are, and keeps what it makes of them in registers. Programs add to the
same sums in any order, so their last bits differ from call to call.

Letters: R ratings, T questions, B users, N films, H heads, S numbers of a row, W windows. A user's ratings, or
questions, are start[user]:start[user + 1], start being int64 (B + 1,).
"""

from functools import cache

import torch
import triton
import triton.language as tl

CHUNK = 256  # ratings of a program
TILE, PRODUCT_TILE = 32, 16  # ratings of a user that are taken together, and those whose rows are multiplied
QUESTIONS = 64  # of a user, likewise
HASH_BLOCK = 1024  # numbers of a program
OF_A_STEP = ["num_ratings", "num_users", "num_asked"]  # differ from step to step: not worth a kernel of their own


def dots(users: torch.Tensor, films: torch.Tensor, column: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """Return the inner products, float (R, H), of users (B, H, S) with the films (N, H, S) that they meet; see
    numba_kernels.py."""
    heads, size = users.shape[1:]
    out = users.new_empty(len(column), heads)
    _run(_dots, users.contiguous(), films.contiguous(), column, start, out, heads=heads, size=size)
    return out


def sum_films(films: torch.Tensor, weight: torch.Tensor, column: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """Return for each user the sum of weight times film over his ratings, (B, H, S), of (N, H, S) and (R, H)."""
    heads, size = films.shape[1:]
    out = films.new_zeros(len(start) - 1, heads, size)
    _run(_sum_films, films.contiguous(), weight.contiguous(), column, start, out, heads=heads, size=size)
    return out


def sum_users(users: torch.Tensor, weight: torch.Tensor, column: torch.Tensor, start: torch.Tensor,
              num_films: int) -> torch.Tensor:
    """Return for each film the sum of weight times user over its ratings, (N, H, S), of (B, H, S) and (R, H)."""
    heads, size = users.shape[1:]
    out = users.new_zeros(num_films, heads, size)
    _run(_sum_users, users.contiguous(), weight.contiguous(), column, start, out, heads=heads, size=size)
    return out


def ridge(films: torch.Tensor, wanted: torch.Tensor, column: torch.Tensor, start: torch.Tensor, prior: torch.Tensor,
          penalty: torch.Tensor, keep: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the solutions, float (B, H, S), what they leave of the residuals, (R, H), and what `ridge_again` needs, if
    it is to be kept; arguments as for numba_kernels.py."""
    num_users, heads, size = prior.shape
    gram = films.new_zeros(num_users, heads, size + 1, size + 1)  # of a user's [v, residual]
    _run(_gram, films.contiguous(), wanted, column, start, gram, heads=heads, size=size + 1, tile=PRODUCT_TILE,
         num_warps=4)
    solution = prior.new_empty(num_users, heads, size + 1)  # with a coordinate of 1, which meets the films' biases
    inverse = prior.new_empty(num_users if keep else 0, heads, size, size)
    if num_users:
        padded = triton.next_power_of_2(max(size - 1, 1))
        _solve[num_users, heads](gram, prior.contiguous(), penalty.contiguous(), solution, inverse, heads, size, padded,
                                 keep, num_warps=1 if padded <= 32 else 8)
    left = wanted.unsqueeze(1) - dots(solution, films, column, start)
    return solution[..., :-1], left, inverse


def ridge_again(inverse: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return the solutions of the same systems for other right sides, both float (B, H, S)."""
    return (inverse @ right.unsqueeze(-1)).squeeze(-1)


def mood_sums(day: torch.Tensor, residual: torch.Tensor, start: torch.Tensor, asked: torch.Tensor,
              asked_start: torch.Tensor, windows: tuple[int, ...]) -> torch.Tensor:
    """Return for each question and window the sum of the residuals that its user has in the same window, and their
    number, float (2, T, W); arguments as for numba_kernels.py, but all residuals must be finite."""
    sums = residual.new_empty(2, len(asked), len(windows))
    if sums.numel():
        before = torch.nn.functional.pad(residual.cumsum(0, dtype=torch.float64), (1, 0))  # of each rating
        _mood_sums[len(start) - 1, len(windows)](day, before, start, asked, asked_start, _tensor(windows, day.device),
                                                 sums, len(asked), len(windows), QUESTIONS)
    return sums


def uniform(seed: int, first: torch.Tensor, second: torch.Tensor | None = None) -> torch.Tensor:
    """Return what training/batches.py's `uniform` does of one column or two, int64 (R,)."""
    out = torch.empty_like(first, dtype=torch.float32)
    if len(out):
        _uniform[(triton.cdiv(len(out), HASH_BLOCK),)](seed, first.contiguous(),
                                                       first if second is None else second.contiguous(), out, len(out),
                                                       second is not None, HASH_BLOCK)
    return out


def row_adam(table: torch.Tensor, mean: torch.Tensor, square: torch.Tensor, steps: torch.Tensor, rows: torch.Tensor,
             grad: torch.Tensor, rate: float, betas: tuple[float, float], epsilon: float) -> None:
    """Take a step of Adam on rows, int64 (B,), of a table, in place.

    Args:
        table, mean, square: float (U, E).
        steps: float (U, 1), that the rows have taken.
        grad: float (B, E).
    """
    if len(rows):
        size = table.shape[1]
        _row_adam[(len(rows),)](table, mean, square, steps, rows, grad.contiguous(), rate, *betas, epsilon, size,
                                triton.next_power_of_2(size), num_warps=1)


def _run(kernel: triton.JITFunction, *arrays: torch.Tensor, heads: int, size: int, tile: int = TILE,
         num_warps: int = 1) -> None:
    """Run a kernel for all chunks of ratings and all heads; its third array is `column`, the fourth `start`."""
    column, start = arrays[2:4]
    if len(column):
        padded = max(triton.next_power_of_2(size), 16)  # a tile is a power of two; Triton multiplies none below 16
        kernel[triton.cdiv(len(column), CHUNK), heads](*arrays, len(column), len(start) - 1, heads, size, padded, CHUNK,
                                                       tile, num_warps=num_warps)


@cache
def _tensor(numbers: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Return numbers on a device, int64; made once, as the host waits for it."""
    return torch.tensor(numbers, device=device)


@triton.jit
def _chunk(start, num_ratings, num_users, CHUNK: tl.constexpr):
    """Return the first of a program's ratings, one past the last, and the user of the first."""
    begin = tl.program_id(0).to(tl.int64) * CHUNK
    low, high = tl.program_id(0) * 0, num_users
    while high - low > 1:
        middle = (low + high) // 2
        before = tl.load(start + middle) <= begin
        low, high = tl.where(before, middle, low), tl.where(before, high, middle)
    return begin, tl.minimum(begin + CHUNK, num_ratings), low.to(tl.int64)


@triton.jit
def _rows(films, column, rating, last, head, heads, size, i):
    """Return the rows of the films that ratings before the last one meet, (TILE, SIZE), zero beyond."""
    film = tl.load(column + rating, rating < last, 0)
    place = (film * heads + head)[:, None] * size + i[None, :]
    return tl.load(films + place, (rating < last)[:, None] & (i < size)[None, :], 0)


@triton.jit(do_not_specialize=OF_A_STEP)
def _dots(users, films, column, start, out, num_ratings, num_users, heads, size, SIZE: tl.constexpr,
          CHUNK: tl.constexpr, TILE: tl.constexpr):
    head, i = tl.program_id(1), tl.arange(0, SIZE)
    begin, end, user = _chunk(start, num_ratings, num_users, CHUNK)
    while begin < end:
        last = tl.minimum(tl.load(start + user + 1), end)
        own = tl.load(users + (user * heads + head) * size + i, i < size, 0)
        for first in range(begin, last, TILE):
            rating = first + tl.arange(0, TILE)
            rows = _rows(films, column, rating, last, head, heads, size, i)
            tl.store(out + rating * heads + head, tl.sum(rows * own[None, :], 1), rating < last)
        begin, user = last, user + 1


@triton.jit(do_not_specialize=OF_A_STEP)
def _sum_films(films, weight, column, start, out, num_ratings, num_users, heads, size, SIZE: tl.constexpr,
               CHUNK: tl.constexpr, TILE: tl.constexpr):
    head, i = tl.program_id(1), tl.arange(0, SIZE)
    begin, end, user = _chunk(start, num_ratings, num_users, CHUNK)
    while begin < end:
        last = tl.minimum(tl.load(start + user + 1), end)
        total = tl.zeros([SIZE], films.dtype.element_ty)
        for first in range(begin, last, TILE):
            rating = first + tl.arange(0, TILE)
            rows = _rows(films, column, rating, last, head, heads, size, i)
            total += tl.sum(rows * tl.load(weight + rating * heads + head, rating < last, 0)[:, None], 0)
        tl.atomic_add(out + (user * heads + head) * size + i, total, i < size, sem="relaxed")
        begin, user = last, user + 1


@triton.jit(do_not_specialize=OF_A_STEP)
def _sum_users(users, weight, column, start, out, num_ratings, num_users, heads, size, SIZE: tl.constexpr,
               CHUNK: tl.constexpr, TILE: tl.constexpr):
    head, i = tl.program_id(1), tl.arange(0, SIZE)
    begin, end, user = _chunk(start, num_ratings, num_users, CHUNK)
    while begin < end:
        last = tl.minimum(tl.load(start + user + 1), end)
        own = tl.load(users + (user * heads + head) * size + i, i < size, 0)
        for first in range(begin, last, TILE):
            rating = first + tl.arange(0, TILE)
            film = tl.load(column + rating, rating < last, 0)
            added = tl.load(weight + rating * heads + head, rating < last, 0)[:, None] * own[None, :]
            tl.atomic_add(out + (film * heads + head)[:, None] * size + i[None, :], added,
                          (rating < last)[:, None] & (i < size)[None, :], sem="relaxed")
        begin, user = last, user + 1


@triton.jit(do_not_specialize=OF_A_STEP)
def _gram(films, wanted, column, start, gram, num_ratings, num_users, heads, size, SIZE: tl.constexpr,
          CHUNK: tl.constexpr, TILE: tl.constexpr):
    """Sum the products of a user's rows [v, residual] by themselves."""
    head, i = tl.program_id(1), tl.arange(0, SIZE)
    begin, end, user = _chunk(start, num_ratings, num_users, CHUNK)
    while begin < end:
        last = tl.minimum(tl.load(start + user + 1), end)
        products = tl.zeros([SIZE, SIZE], tl.float32)
        for first in range(begin, last, TILE):
            rating = first + tl.arange(0, TILE)
            rows = _rows(films, column, rating, last, head, heads, size, i)
            residual = tl.load(wanted + rating, rating < last, 0)[:, None] - rows
            rows = tl.where((i == size - 1)[None, :], residual, rows)
            products = tl.dot(tl.trans(rows), rows, products, input_precision="ieee")
        place = ((user * heads + head) * size + i[:, None]) * size + i[None, :]
        tl.atomic_add(gram + place, products, (i < size)[:, None] & (i < size)[None, :], sem="relaxed")
        begin, user = last, user + 1


@triton.jit
def _solve(gram, prior, penalty, solution, inverse, heads, size, SIZE: tl.constexpr, KEEP: tl.constexpr):
    """Solve a user's system from its inverse, and refine the solution.

    The block of the vector's coordinates is inverted by sweeping its pivots one after the other (Gauss and Jordan's
    way, which keeps a symmetric matrix symmetric: Goodnight 1979, "A tutorial on the SWEEP operator"). The bias, the
    last coordinate, is then added by its Schur complement: a block of 32 fits the threads, one of 33 does not.
    """
    own, i, bias = tl.program_id(0) * heads + tl.program_id(1), tl.arange(0, SIZE), size - 1
    inside, width = i < bias, size + 1
    gram += own.to(tl.int64) * width * width
    shrink, center = tl.load(penalty + own * size + i, inside, 1), tl.load(prior + own * size + i, inside, 0)
    bias_shrink, bias_center = tl.load(penalty + own * size + bias), tl.load(prior + own * size + bias)
    right = tl.load(gram + i * width + size, inside, 0) + shrink * center
    bias_right = tl.load(gram + bias * width + size) + bias_shrink * bias_center
    edge, corner = tl.load(gram + bias * width + i, inside, 0), tl.load(gram + bias * width + bias) + bias_shrink
    block = inside[:, None] & inside[None, :]
    system = tl.load(gram + i[:, None] * width + i[None, :], block, 0)
    system += tl.where(i[:, None] == i[None, :], shrink[None, :], 0)
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
    # What rounding has left of the right side is solved for once more; sweeping has overwritten the system.
    whole = tl.load(gram + i[:, None] * width + i[None, :], block, 0)
    rest = right - tl.sum(whole * found[:, None], 0) - shrink * found - edge * bias_found
    bias_rest = bias_right - tl.sum(edge * found, 0) - corner * bias_found
    bias_more = (bias_rest - tl.sum(of_edge * rest, 0)) * complement
    found += -tl.sum(system * rest[:, None], 0) - of_edge * bias_more
    bias_found += bias_more
    tl.store(solution + own * width + i, found, inside)
    tl.store(solution + own * width + bias, bias_found)
    tl.store(solution + own * width + size, 1.0)
    if KEEP:
        inverse += own.to(tl.int64) * size * size
        tl.store(inverse + i[:, None] * size + i[None, :], of_edge[:, None] * (of_edge * complement)[None, :] - system,
                 block)
        tl.store(inverse + i * size + bias, -of_edge * complement, inside)
        tl.store(inverse + bias * size + i, -of_edge * complement, inside)
        tl.store(inverse + bias * size + bias, complement)


@triton.jit(do_not_specialize=OF_A_STEP)
def _mood_sums(day, before, start, asked, asked_start, windows, sums, num_asked, num_windows, TILE: tl.constexpr):
    """Look for the two ends of a question's window among the user's days, which ascend."""
    user, window = tl.program_id(0), tl.load(windows + tl.program_id(1))
    first, end = tl.load(start + user), tl.load(start + user + 1)
    first_asked, end_asked = tl.load(asked_start + user), tl.load(asked_start + user + 1)
    last = tl.load(asked + end_asked - 1, end_asked > first_asked, 0)
    last = tl.maximum(last, tl.load(day + end - 1, end > first, 0))
    for begin in range(first_asked, end_asked, TILE):
        question = begin + tl.arange(0, TILE)
        age = last - tl.load(asked + question, question < end_asked, 0)
        newest = last - age // window * window
        low = _first_after(day, first, end, newest - window)
        high = _first_after(day, first, end, newest)
        total = tl.load(before + high) - tl.load(before + low)
        out = sums + question * num_windows + tl.program_id(1)
        tl.store(out, total.to(sums.dtype.element_ty), question < end_asked)
        tl.store(out + num_asked * num_windows, (high - low).to(sums.dtype.element_ty), question < end_asked)


@triton.jit
def _first_after(day, first, end, limit):
    """Return the first places in first:end whose day is after a limit, or `end`."""
    low = tl.zeros_like(limit) + first
    high = tl.zeros_like(limit) + end
    size = end - first
    while size > 0:
        middle = (low + high) // 2
        after = tl.load(day + middle, low < high, 0) > limit
        high = tl.where((low < high) & after, middle, high)
        low = tl.where((low < high) & (after == 0), middle + 1, low)
        size = size // 2
    return low


@triton.jit(do_not_specialize=["seed", "num"])
def _uniform(seed, first, second, out, num, TWO: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    word = _mixed(tl.zeros([BLOCK], tl.int64) + seed)
    word = _mixed(word + tl.load(first + place, place < num, 0))
    if TWO:
        word = _mixed(word + tl.load(second + place, place < num, 0))
    tl.store(out + place, (word >> 40 & 0xFFFFFF).to(tl.float32) * 5.9604644775390625e-08, place < num)


@triton.jit
def _mixed(word):
    word = (word ^ (word >> 30 & 0x3FFFFFFFF)) * -4658895280553007687
    word = (word ^ (word >> 27 & 0x1FFFFFFFFF)) * -7723592293110705685
    return word ^ (word >> 31 & 0x1FFFFFFFF)


@triton.jit(do_not_specialize=["rate"])
def _row_adam(table, mean, square, steps, rows, grad, rate, beta_mean, beta_square, epsilon, size, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    row = tl.load(rows + tl.program_id(0))
    place = row * size + i
    slope = tl.load(grad + tl.program_id(0) * size + i, i < size, 0)
    step = tl.load(steps + row) + 1
    first = tl.load(mean + place, i < size, 0)
    first += (slope - first) * (1 - beta_mean)
    second = tl.load(square + place, i < size, 0) * beta_square + slope * slope * (1 - beta_square)
    scale = tl.sqrt(1 - tl.exp(step * tl.log(beta_square))) / (1 - tl.exp(step * tl.log(beta_mean))) * rate
    value = tl.load(table + place, i < size, 0) - scale * first / (tl.sqrt(second) + epsilon)
    tl.store(table + place, value, i < size)
    tl.store(mean + place, first, i < size)
    tl.store(square + place, second, i < size)
    tl.store(steps + row, step)
