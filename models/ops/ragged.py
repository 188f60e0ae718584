"""Differentiable operations on ragged groups of ratings, with gradients written out by hand.

A rating joins a user with a film, so ratings are the entries of a sparse matrix of users and films. What the towers do
with them is three products with it (see `Pairs`): a score for every entry, a sum over the entries of a user, a sum over
those of a film. Unless they are few, none of these and none of their gradients makes a row of coordinates for every
rating, nor do the ridge regressions: they are compiled loops, on a CPU of numba_kernels.py and on a GPU of
triton_kernels.py. Elsewhere, and for few ratings, rows are picked by index_select, in half of the time of indexing, and
added up in array operations. The tests hold all of it to plain autograd in float64.

Letters: R ratings, B users, N films, H heads (of a group, where there are groups), D coordinates.
"""

import warnings
from functools import cache, cached_property
from types import ModuleType

import numpy as np
import torch

FEW_RATINGS = 1024  # array operations are as fast for so few
MOST_ON_GPU = 128  # numbers of a row, whose products with each other a GPU's registers hold


class Pairs:
    """Which user and which film each rating joins: a sparse matrix (B, N), of which only the places are kept.

    Users and films have H vectors each, of which the h-th of a user meets the h-th of a film.
    """

    def __init__(self, row: torch.Tensor, column: torch.Tensor, num_users: int, num_films: int, heads: int = 1) -> None:
        """Keep the ratings' rows and columns, both int64 (R,), the rows ascending."""
        self.row, self.column = row, column
        self.num_users, self.num_films, self.heads = num_users, num_films, heads
        self.on_cpu = row.device.type == "cpu"  # tests take the other way on a CPU too

    @cached_property
    def kernels(self) -> ModuleType | None:
        """The compiled loops that go through the ratings, if there are any."""
        return kernels_for(self.row, self.num_users) if self.on_cpu else triton_kernels(self.row.device)

    def dots(self, users: torch.Tensor, films: torch.Tensor) -> torch.Tensor:
        """Return the inner products of the users and films that meet, (R, H), of (B, H, D) and (N, H, D)."""
        if self.kernels:
            return self.kernels.dots(users, films, self.column, self.start)
        return (users.index_select(0, self.row) * films.index_select(0, self.column)).sum(-1)

    def sum_films(self, films: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Return for each user the sum of weight times film over his ratings, (B, H, D), of (N, H, D) and (R, H)."""
        if not self.on_cpu:
            if self.kernels:
                return self.kernels.sum_films(films, weight, self.column, self.start)
            rows = films.index_select(0, self.column) * weight.unsqueeze(-1)
            return films.new_zeros(self.num_users, *films.shape[1:]).index_add_(0, self.row, rows)
        sums = _sum_rows(films.flatten(0, 1), self.film_of, self.user_start, weight.T.reshape(-1))
        return sums.unflatten(0, (self.heads, self.num_users)).transpose(0, 1)

    def sum_users(self, users: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Return for each film the sum of weight times user over its ratings, (N, H, D), of (B, H, D) and (R, H)."""
        if not self.on_cpu:
            if self.kernels:
                return self.kernels.sum_users(users, weight, self.column, self.start, self.num_films)
            rows = users.index_select(0, self.row) * weight.unsqueeze(-1)
            return users.new_zeros(self.num_films, *users.shape[1:]).index_add_(0, self.column, rows)
        weight = torch.cat([column.index_select(0, self.order) for column in weight.unbind(1)])
        sums = _sum_rows(_by_head(users), self.user_of, self.film_start, weight)
        return sums.unflatten(0, (self.heads, self.num_films)).transpose(0, 1)

    @cached_property
    def count(self) -> torch.Tensor:
        """The ratings of each user, int64 (B,)."""
        return self.start.diff()

    @cached_property
    def film_count(self) -> torch.Tensor:
        """The ratings of each film, int64 (N,)."""
        return counts(self.column, self.num_films)

    @cached_property
    def start(self) -> torch.Tensor:
        """Where the ratings of each user begin, and their end, int64 (B + 1,)."""
        return starts(self.row, self.num_users)

    @cached_property
    def user_start(self) -> torch.Tensor:
        """Where the ratings of a head and user begin among those of all heads, int64 (H B,), head by head."""
        return self._of_heads(self.start[:-1], len(self.row))

    @cached_property
    def film_of(self) -> torch.Tensor:
        """The row among the films' vectors (N H) that a rating of a head meets, int64 (H R,), head by head."""
        return self._of_heads(self.column * self.heads, 1)

    @cached_property
    def order(self) -> torch.Tensor:
        """The ratings film by film, int64 (R,)."""
        return stable_order(self.column, self.num_films)

    @cached_property
    def film_start(self) -> torch.Tensor:
        """Where the ratings of a head and film begin in the order of the films, int64 (H N,), head by head."""
        return self._of_heads(self.film_count.cumsum(0) - self.film_count, len(self.row))

    @cached_property
    def user_of(self) -> torch.Tensor:
        """The row among the users' vectors by head that a rating meets, film by film, int64 (H R,), head by head."""
        return self._of_heads(self.row.index_select(0, self.order), self.num_users)

    def _of_heads(self, values: torch.Tensor, step: int) -> torch.Tensor:
        """Return int64 (V,) once for every head, (H V,), each time with a step added."""
        return (values + step * torch.arange(self.heads, device=values.device).unsqueeze(1)).view(-1)


def starts(row: torch.Tensor, num_rows: int) -> torch.Tensor:
    """Return where the ratings of each row begin among ascending rows, int64 (R,), and their end, int64 (B + 1,)."""
    return torch.searchsorted(row, torch.arange(num_rows + 1, device=row.device))


def counts(index: torch.Tensor, size: int) -> torch.Tensor:
    """Return how often each number from 0 to size - 1 occurs among int64 (R,), int64 (size,)."""
    if index.device.type == "cpu":
        return torch.bincount(index, minlength=size)
    return index.new_zeros(size).index_add_(0, index, torch.ones_like(index))  # for bincount the host waits


def paired_dot(users: torch.Tensor, films: torch.Tensor, pairs: Pairs) -> torch.Tensor:
    """Return the inner products of the users and films that meet, (R, H), of (B, H, D) and (N, H, D)."""
    return _PairedDot.apply(users, films, pairs)


def pool(table: torch.Tensor, weight: torch.Tensor, pairs: Pairs) -> torch.Tensor:
    """Return for each user the sum over his ratings j of weight_j * first half + second half of row j, float (B, D).

    Args:
        table: float (N, 2 D).
        weight: float (R,), of which no gradient is taken.
        pairs: of one head.
    """
    return _Pool.apply(table, weight, pairs)


def gather_distinct(table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return table[index] of distinct rows, int64 (N,), whose gradients need not be added up."""
    return _GatherDistinct.apply(table, index)


def ridge_solve(films: torch.Tensor, wanted: torch.Tensor, prior: torch.Tensor, penalty: torch.Tensor,
                pairs: Pairs) -> tuple[torch.Tensor, torch.Tensor]:
    """Solve one ridge regression per user and head: the user's half of alternating least squares, as a layer.

    A film is [v, b], its vector and its bias. What v shall explain of a rating is residual = wanted - b. The regression
    shrinks to a prior in place of zero: w minimises |residual_u - V_u w|^2 + sum of penalty_u (w - prior_u)^2, so

        w_u = (V_u' V_u + diag(penalty_u))^-1 (V_u' residual_u + diag(penalty_u) prior_u)

    (Hu, Koren and Volinsky 2008, for the solution with a prior of zero). With A = V_u' V_u + diag(penalty_u) and
    z = A^-1 dL/dw the gradients are dL/dresidual_j = v_j.z, which wanted_j has the sum of over heads and b_j has from
    every rating with a minus, dL/dv_j = (residual_j - v_j.w) z - (v_j.z) w, dL/dprior = penalty z and
    dL/dpenalty = (prior - w) z, so the backward pass costs R D, not R D^2.

    Args:
        films: float (N, H, D + 1).
        wanted: float (R,).
        prior: float (B, H, D), the solution of a user without ratings.
        penalty: float (B, H, D), positive.
        pairs: of users and films.

    Returns:
        w, float (B, H, D), and what it leaves of the residuals, (R, H), of which no gradient is taken.
    """
    return _RidgeSolve.apply(films, wanted, prior, penalty, pairs)


def kernels_for(row: torch.Tensor, num_users: int) -> ModuleType | None:
    """Return the compiled loops for ratings in the rows of users, int64 (R,).

    On a CPU these are numba_kernels.py, or None for few ratings, and for the list of one user, who would wait until
    they are loaded: array operations do better there. On another device see `triton_kernels`.
    """
    if row.device.type != "cpu":
        return triton_kernels(row.device)
    if len(row) <= FEW_RATINGS or num_users <= 1:
        return None
    from models.ops import numba_kernels as kernels  # imported when it is first needed
    return kernels


@cache
def triton_kernels(device: torch.device) -> ModuleType | None:
    """Return triton_kernels.py for a CUDA device, and None for a device of another kind; also, after a warning, where
    Triton is missing or has no C compiler."""
    if device.type != "cuda":
        return None
    try:
        from models.ops import triton_kernels as gpu_kernels
        gpu_kernels.uniform(0, torch.zeros(1, dtype=torch.int64, device=device))
    except Exception as error:  # of whatever kind: array operations do the same, but slower
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        warnings.warn(f"training is several times slower on this GPU without Triton's kernels: {reason}", stacklevel=2)
        return None
    return gpu_kernels


def stable_order(keys: torch.Tensor, num_keys: int = 2**63) -> torch.Tensor:
    """Return where keys, int64 (R,) from 0 to num_keys - 1, stand in ascending order, equal ones as they come."""
    if keys.device.type != "cpu":
        return keys.argsort(stable=True)
    # NumPy's order takes a tenth of the time of torch's: it counts numbers of two bytes, and merges sorted runs.
    return torch.from_numpy((keys.numpy().astype(np.uint16) if num_keys <= 2**16 else keys.numpy()).argsort(
        kind="stable"))


def with_one(users: torch.Tensor) -> torch.Tensor:
    """Append a coordinate of 1, which meets the films' biases: (B, H, D) -> (B, H, D + 1)."""
    return torch.nn.functional.pad(users, (0, 1), value=1.0)


def unexplained(wanted: torch.Tensor, users: torch.Tensor, films: torch.Tensor, pairs: Pairs) -> torch.Tensor:
    """Return what users leave of the residuals, float (R, H), of users (B, H, D); films and wanted as for
    `ridge_solve`."""
    return wanted.unsqueeze(1) - pairs.dots(with_one(users), films)


def normal_equations(films: torch.Tensor, wanted: torch.Tensor, pairs: Pairs) -> tuple[torch.Tensor, torch.Tensor]:
    """Return V_u' V_u and V_u' residual_u per user and head, float (B, H, D, D) and (B, H, D); see `ridge_solve`."""
    rows = films.index_select(0, pairs.column)
    torch.sub(wanted.unsqueeze(1), rows[..., -1], out=rows[..., -1])
    if pairs.on_cpu:
        of_users = rows.transpose(0, 1).split_with_sizes(pairs.count.tolist(), 1)  # (H, R of a user, D + 1)
        product = films.new_empty(pairs.num_users, *rows.shape[1:], rows.shape[2])
        for own, out in zip(of_users, product.unbind(), strict=True):
            torch.bmm(own.mT, own, out=out)
    else:
        product = gram_padded(rows, pairs.row, pairs.count)
    return product[..., :-1, :-1], product[..., :-1, -1]


def gram_padded(rows: torch.Tensor, row: torch.Tensor, count: torch.Tensor, piece: int = 128) -> torch.Tensor:
    """Return the products of each user's rows by themselves, float (B, H, D, D), of (R, H, D), row and count as of
    `Pairs`, from one batched product of padded pieces: on a GPU, launches per user cost more."""
    num_users, (_, heads, dim) = len(count), rows.shape
    pieces = (count + piece - 1) // piece
    place = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
    first_piece = pieces.cumsum(0) - pieces
    # As many pieces as could be needed, so that the host need not wait for the device to count them.
    num_pieces = len(row) // piece + num_users
    padded = rows.new_zeros(num_pieces * piece, heads, dim)
    padded[first_piece[row] * piece + place] = rows
    padded = padded.view(num_pieces, piece, heads, dim).transpose(1, 2)  # (pieces, H, 128, D)
    products = padded.transpose(2, 3) @ padded  # (pieces, H, D, D)
    owner = torch.searchsorted(pieces.cumsum(0), torch.arange(num_pieces, device=row.device), right=True)
    return rows.new_zeros(num_users + 1, heads, dim, dim).index_add_(0, owner, products)[:num_users]


def _by_head(users: torch.Tensor) -> torch.Tensor:
    """Return vectors (B, H, D) head by head, (H B, D)."""
    return users.transpose(0, 1).flatten(0, 1)


def _sum_rows(table: torch.Tensor, index: torch.Tensor, start: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return S sums of weighted rows of a table, (S, D), of index and weight (R,): from each start (S,) to the next."""
    return torch.embedding_bag(table, index, start, mode=0, per_sample_weights=weight)[0]


class _PairedDot(torch.autograd.Function):
    @staticmethod
    def forward(ctx, users, films, pairs):
        ctx.save_for_backward(users, films)
        ctx.pairs = pairs
        return pairs.dots(users, films)

    @staticmethod
    def backward(ctx, grad):
        users, films = ctx.saved_tensors
        return ctx.pairs.sum_films(films, grad), ctx.pairs.sum_users(users, grad), None


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, table, weight, pairs):
        ctx.save_for_backward(weight)
        ctx.pairs = pairs
        if not pairs.on_cpu:
            both = table.reshape(len(table), 2, -1)
            return pairs.sum_films(both, torch.stack([weight, torch.ones_like(weight)], 1)).sum(1)
        halves = torch.stack([2 * pairs.column, 2 * pairs.column + 1], 1).view(-1)  # rows of the table cut in two
        weights = torch.stack([weight, torch.ones_like(weight)], 1).view(-1)
        return _sum_rows(table.reshape(-1, table.shape[1] // 2), halves, 2 * pairs.user_start, weights)

    @staticmethod
    def backward(ctx, grad):
        (weight,), users = ctx.saved_tensors, grad.unsqueeze(1)
        weights = (weight.unsqueeze(1), torch.ones_like(weight).unsqueeze(1))
        if not ctx.pairs.on_cpu:
            return ctx.pairs.sum_users(users.expand(-1, 2, -1), torch.cat(weights, 1)).flatten(1), None, None
        return torch.cat([ctx.pairs.sum_users(users, each).squeeze(1) for each in weights], 1), None, None


class _GatherDistinct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, table, index):
        ctx.save_for_backward(index)
        ctx.shape = table.shape
        return table.index_select(0, index)

    @staticmethod
    def backward(ctx, grad):
        return grad.new_zeros(ctx.shape).index_copy_(0, ctx.saved_tensors[0], grad), None


class _RidgeSolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx, films, wanted, prior, penalty, pairs):
        ctx.kernels = pairs.kernels if pairs.on_cpu or films.shape[2] <= MOST_ON_GPU else None
        if ctx.kernels:
            solution, left, factor = ctx.kernels.ridge(films, wanted, pairs.column, pairs.start, prior, penalty,
                                                       keep=any(ctx.needs_input_grad))
        else:
            system, right = normal_equations(films, wanted, pairs)
            system.diagonal(dim1=-2, dim2=-1).add_(penalty)
            factor = torch.linalg.cholesky(system)
            right = torch.addcmul(right, penalty, prior)
            solution = torch.cholesky_solve(right.unsqueeze(-1), factor).squeeze(-1)
            left = unexplained(wanted, solution, films, pairs)
        ctx.save_for_backward(films, prior, penalty, factor, solution, left)
        ctx.pairs = pairs
        ctx.mark_non_differentiable(left)
        return solution, left

    @staticmethod
    def backward(ctx, grad, _):
        (films, prior, penalty, factor, solution, left), pairs = ctx.saved_tensors, ctx.pairs
        if ctx.kernels:
            adjoint = ctx.kernels.ridge_again(factor, grad)
        else:
            adjoint = torch.cholesky_solve(grad.unsqueeze(-1), factor).squeeze(-1)  # z, (B, H, D)
        solved, adjoints = with_one(solution), torch.nn.functional.pad(adjoint, (0, 1))  # 0 meets the bias
        grad_residual = pairs.dots(adjoints, films)
        grad_films = pairs.sum_users(adjoints, left).sub_(pairs.sum_users(solved, grad_residual))
        return grad_films, grad_residual.sum(1), adjoint * penalty, adjoint * (prior - solution), None
