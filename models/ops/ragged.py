"""Differentiable operations on ragged groups of ratings, with gradients written out by hand.

Each is a product with the sparse matrix of users and movies (see rating_pattern.py), or a ridge regression for each of
its rows. No gradient makes a row of coordinates for every rating. How they are computed, backend.py chooses; the tests
hold every backend to plain autograd in float64.

Letters: R ratings, B users, N movies, V vectors of each user and movie (in models/: the members of the ensemble), D
coordinates (the user's bias is one of them here; in models/ it is counted apart).
"""

from functools import partial

import torch

from models.ops import backend
from models.ops.array_ops import with_one
from models.ops.rating_pattern import RatingPattern
from models.ops.threads import in_threads


def paired_dot(users: torch.Tensor, movies: torch.Tensor, pattern: RatingPattern) -> torch.Tensor:
    """Return each rating's inner products of its user and its movie, (R, V), of (B, V, D) and (N, V, D)."""
    return _PairedDot.apply(users, movies, pattern)


def pool(table: torch.Tensor, weight: torch.Tensor, row: torch.Tensor, indices: torch.Tensor,
         num_users: int) -> torch.Tensor:
    """Return for each user the sum over their ratings j of weight_j * first half + second half of row j, (B, D).

    Args:
        table: float (N, 2 D).
        weight: float (R,), of which no gradient is taken.
        row, indices: int64 (R,), each rating's user, ascending, and row of the table.
        num_users: B.
    """
    pattern = RatingPattern(row, indices, num_users, len(table), 2)
    halves, weights = table.view(len(table), 2, table.shape[1] // 2), torch.stack([weight, torch.ones_like(weight)], 1)
    return _WeightedSum.apply(halves, weights, pattern).sum(1)


def gather_distinct(table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return table[index] of distinct rows, ascending int64 (N,), whose gradients need not be added up.

    On a CPU the gradient is a sparse tensor of these rows: it costs as much as they do, however long the table is.
    """
    return table if len(index) == len(table) else _GatherDistinct.apply(table, index)


def ridge_solve(movies: torch.Tensor, target: torch.Tensor, prior: torch.Tensor, l2: torch.Tensor,
                pattern: RatingPattern) -> tuple[torch.Tensor, torch.Tensor]:
    """Solve a ridge regression for each user and vector: the user's half of alternating least squares, as a layer.

    A movie is [v, b], a vector and a bias. The regression explains y_j = target_j - b_j by v_j, and shrinks to a prior
    in place of zero: w minimises |y_u - V_u w|^2 + sum of l2_u (w - prior_u)^2, so

        w_u = (V_u' V_u + diag(l2_u))^-1 (V_u' y_u + diag(l2_u) prior_u)

    (Hu, Koren and Volinsky 2008, for a prior of zero). With A = V_u' V_u + diag(l2_u), z = A^-1 dL/dw and the residual
    e_j = y_j - v_j . w, the gradients are dL/dy_j = v_j . z, of which target_j gets the sum over its vectors and b_j
    the negative, dL/dv_j = e_j z - (v_j . z) w, dL/dprior = l2 z and dL/dl2 = (prior - w) z. So the backward pass
    costs R D, not R D^2.

    Args:
        movies: float (N, V, D + 1).
        target: float (R,).
        prior: float (B, V, D), the solution of a user without ratings.
        l2: float (B, V, D), positive.
        pattern: of users and movies.

    Returns:
        w, float (B, V, D), and the residuals e, (R, V), of which no gradient is taken.
    """
    return _RidgeSolve.apply(movies, target, prior, l2, pattern)


class _PairedDot(torch.autograd.Function):
    @staticmethod
    def forward(ctx, users, movies, pattern):
        ctx.save_for_backward(users, movies)
        ctx.pattern = pattern
        return backend.of_pattern(pattern).dots(users, movies, pattern)

    @staticmethod
    def backward(ctx, grad):
        (users, movies), pattern = ctx.saved_tensors, ctx.pattern
        ops = backend.of_pattern(pattern)
        return *in_threads([partial(ops.sum_by_user, movies, grad, pattern),
                            partial(ops.sum_by_movie, users, grad, pattern)]), None


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, movies, weight, pattern):
        ctx.save_for_backward(weight)
        ctx.pattern = pattern
        return backend.of_pattern(pattern).sum_by_user(movies, weight, pattern)

    @staticmethod
    def backward(ctx, grad):
        (weight,), pattern = ctx.saved_tensors, ctx.pattern
        return backend.of_pattern(pattern).sum_by_movie(grad, weight, pattern), None, None


class _GatherDistinct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, table, index):
        ctx.save_for_backward(index)
        ctx.shape = table.shape
        return table.index_select(0, index)

    @staticmethod
    def backward(ctx, grad):
        (index,) = ctx.saved_tensors
        if grad.device.type != "cpu":
            return grad.new_zeros(ctx.shape).index_copy_(0, index, grad), None
        return torch.sparse_coo_tensor(index.unsqueeze(0), grad.contiguous(), ctx.shape, is_coalesced=True,
                                       check_invariants=False), None


class _RidgeSolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx, movies, target, prior, l2, pattern):
        ctx.ops, ctx.pattern = backend.of_pattern(pattern, movies.shape[2]), pattern
        solution, residual, factor = ctx.ops.ridge(movies, target, prior, l2, pattern, keep=any(ctx.needs_input_grad))
        ctx.save_for_backward(movies, prior, l2, factor, solution, residual)
        ctx.mark_non_differentiable(residual)
        return solution, residual

    @staticmethod
    def backward(ctx, grad, _):
        (movies, prior, l2, factor, solution, residual), pattern = ctx.saved_tensors, ctx.pattern
        ops = backend.of_pattern(pattern)
        adjoint = ctx.ops.ridge_again(factor, grad)  # z, (B, V, D)
        solutions, adjoints = with_one(solution), torch.nn.functional.pad(adjoint, (0, 1))  # 0 meets the bias
        grad_target = ops.dots(adjoints, movies, pattern)
        _ = pattern.movie_bags  # once for both
        grad_movies, of_solutions = in_threads([partial(ops.sum_by_movie, adjoints, residual, pattern),
                                                partial(ops.sum_by_movie, solutions, grad_target, pattern)])
        grad_movies -= of_solutions
        return grad_movies, grad_target.sum(1), adjoint * l2, adjoint * (prior - solution), None
