"""Differentiable operations on ragged groups of ratings, with gradients written out by hand.

Each does in one pass what plain autograd would do through several tensors of one row per rating; the tests hold them
to plain autograd in float64. R ratings of B users, H heads of D coordinates.
"""

import itertools

import torch

USERS_IN_CACHE = 8  # whose film vectors are gathered at once where no gradient is wanted
RATINGS_IN_CACHE = 1024  # whose film vectors `unexplained_rows` gathers at once


def ridge_solve(table: torch.Tensor, index: torch.Tensor, residual: torch.Tensor, prior: torch.Tensor,
                penalty: torch.Tensor, row: torch.Tensor, count: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Solve one ridge regression per user and head: the user's half of alternating least squares, as a layer.

    It shrinks to a prior in place of zero: w minimises |residual_u - V_u w|^2 + sum of penalty_u (w - prior_u)^2, so

        w_u = (V_u' V_u + diag(penalty_u))^-1 (V_u' residual_u + diag(penalty_u) prior_u)

    (Hu, Koren and Volinsky 2008, for the solution with a prior of zero). With z = A^-1 dL/dw the gradients are
    dL/dresidual_j = v_j.z, dL/dv_j = (residual_j - v_j.w) z - (v_j.z) w, dL/dprior = penalty z and
    dL/dpenalty = (prior - w) z, so the backward pass costs R D, not R D^2.

    Args:
        table: float (N, H, D), film vectors.
        index: int64 (R,), the film of each rating: V are these rows of the table.
        residual: float (R, H), what the vectors shall explain.
        prior: float (B, H, D), the solution of a user without ratings.
        penalty: float (B, H, D), positive.
        row: int64 (R,), ascending: the user of each rating.
        count: int64 (B,): the ratings of each user.

    Returns:
        w, float (B, H, D), and what it leaves of the residuals, (R, H), of which no gradient is taken.
    """
    return _RidgeSolve.apply(table, index, residual, prior, penalty, row, count)


def ridge_solve_rows(table: torch.Tensor, index: torch.Tensor, residual: torch.Tensor, prior: torch.Tensor,
                     penalty: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """Return w of `ridge_solve`, of rows of a table, without gradients and on the CPU.

    Only the rows of a few users are gathered at a time, always into the same memory, which a core's cache holds.

    Args:
        table: float (N, H, D + 1), the film vectors and a last coordinate that does not matter.
        index: int64 (R,), the film of each rating.
        residual, prior, penalty, count: as for `ridge_solve`.
    """
    num_users, (_, heads, dim) = len(count), table.shape
    product = table.new_empty(num_users, heads, dim, dim)  # [V, residual]' [V, residual]
    every_size = count.tolist()
    pieces = [every_size[first:first + USERS_IN_CACHE] for first in range(0, num_users, USERS_IN_CACHE)]
    bounds = [0, *itertools.accumulate(map(sum, pieces))]
    buffer = table.new_empty(max(map(sum, pieces), default=0), heads, dim)

    outputs = iter(product.unbind())
    for sizes, start, stop in zip(pieces, bounds[:-1], bounds[1:], strict=True):
        rows = torch.index_select(table, 0, index[start:stop], out=buffer[:stop - start])
        rows[..., -1] = residual[start:stop]
        for own in rows.transpose(0, 1).split_with_sizes(sizes, 1):  # (H, R of a user, D + 1)
            torch.bmm(own.transpose(1, 2), own, out=next(outputs))
    return solve_normal_equations(product, prior, penalty)[0]


def unexplained_rows(table: torch.Tensor, index: torch.Tensor, residual: torch.Tensor, solution: torch.Tensor,
                     row: torch.Tensor) -> torch.Tensor:
    """Return what solutions leave of the residuals, float (R, H), without gradients.

    Args:
        table: float (N, H, D or more), film vectors; coordinates beyond D do not matter.
        index, row: int64 (R,), the film and the user of each rating.
        residual: float (R, H).
        solution: float (B, H, D).
    """
    dim, pieces = solution.shape[-1], (each.split(RATINGS_IN_CACHE) for each in (index, residual, row))
    return torch.cat([piece - (table.index_select(0, films)[..., :dim] * solution.index_select(0, users)).sum(-1)
                      for films, piece, users in zip(*pieces, strict=True)])


def pool_rows(table: torch.Tensor, index: torch.Tensor, weight: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """Return for each user the sum over his ratings j of weight_j * first half + second half of row j, float (B, D).

    Without a copy of the rows, but with a slow backward.

    Args:
        table: float (N, 2 D).
        index, weight: int64 (R,) and float (R,), the ratings of a user adjacent.
        count: int64 (B,): the ratings of each user.
    """
    start, half = count.cumsum(0) - count, table.shape[1] // 2
    weighted = torch.embedding_bag(table, index, start, per_sample_weights=weight)[0]
    return weighted[:, :half] + torch.embedding_bag(table, index, start)[0][:, half:]


def paired_dot(users: torch.Tensor, films: torch.Tensor, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
    """Return users[row] . films[column] over the last dimension, (R, H), of (B, H, D) and (N, H, D)."""
    return _PairedDot.apply(users, films, row, column)


def gather_rows(table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return table[index], whose backward is a single index_add_."""
    return _GatherRows.apply(table, index)


def solve_normal_equations(product: torch.Tensor, prior: torch.Tensor,
                           penalty: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return w (B, H, D) of `ridge_solve`, and the Cholesky factor, from [V, residual]' [V, residual] of each user,
    to which the penalties are added in place."""
    system = product[..., :-1, :-1]
    system.diagonal(dim1=-2, dim2=-1).add_(penalty)
    factor = torch.linalg.cholesky(system)
    right = torch.addcmul(product[..., :-1, -1], penalty, prior)
    return torch.cholesky_solve(right.unsqueeze(-1), factor).squeeze(-1), factor


def gram(films: torch.Tensor, row: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """Return V_u' V_u per user and head, float (B, H, D, D), of films, float (R, H, D), a row per rating; row and count
    as for `ridge_solve`."""
    if films.device.type != "cpu":
        return gram_padded(films, row, count)
    result = films.new_zeros(len(count), films.shape[1], films.shape[2], films.shape[2])
    by_head = films.transpose(0, 1)
    start = 0
    for user, size in enumerate(count.tolist()):
        if size:
            block = by_head[:, start:start + size]
            torch.bmm(block.transpose(1, 2), block, out=result[user])
        start += size
    return result


def gram_padded(films: torch.Tensor, row: torch.Tensor, count: torch.Tensor, piece: int = 128) -> torch.Tensor:
    """Return the same as `gram` from one batched product of padded pieces: on a GPU, launches per user cost more."""
    num_users, (_, heads, dim) = len(count), films.shape
    pieces = (count + piece - 1) // piece
    place = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
    first_piece = pieces.cumsum(0) - pieces
    # As many pieces as could be needed, so that the host need not wait for the device to count them.
    num_pieces = len(row) // piece + num_users
    padded = films.new_zeros(num_pieces * piece, heads, dim)
    padded[first_piece[row] * piece + place] = films
    padded = padded.view(num_pieces, piece, heads, dim).transpose(1, 2)  # (pieces, H, 128, D)
    products = padded.transpose(2, 3) @ padded  # (pieces, H, D, D)
    owner = torch.searchsorted(pieces.cumsum(0), torch.arange(num_pieces, device=row.device), right=True)
    return films.new_zeros(num_users + 1, heads, dim, dim).index_add_(0, owner, products)[:num_users]


class _RidgeSolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx, table, index, residual, prior, penalty, row, count):
        rows = torch.nn.functional.pad(table, (0, 1)).index_select(0, index)  # (R, H, D + 1)
        rows[..., -1] = residual
        solution, factor = solve_normal_equations(gram(rows, row, count), prior, penalty)
        films = rows[..., :-1]
        unexplained = residual - (films * solution.index_select(0, row)).sum(-1)
        ctx.save_for_backward(films, index, unexplained, prior, penalty, row, factor, solution)
        ctx.shape = table.shape
        ctx.mark_non_differentiable(unexplained)
        return solution, unexplained

    @staticmethod
    def backward(ctx, grad, _):
        films, index, unexplained, prior, penalty, row, factor, solution = ctx.saved_tensors
        adjoint = torch.cholesky_solve(grad.unsqueeze(-1), factor).squeeze(-1)  # (B, H, D)
        solution_of, adjoint_of = solution.index_select(0, row), adjoint.index_select(0, row)  # (R, H, D)
        grad_residual = (films * adjoint_of).sum(-1)
        grad_films = adjoint_of.mul_(unexplained.unsqueeze(-1))
        grad_films.addcmul_(solution_of, grad_residual.unsqueeze(-1), value=-1)
        grad_table = grad.new_zeros(ctx.shape).index_add_(0, index, grad_films)
        return grad_table, None, grad_residual, adjoint * penalty, adjoint * (prior - solution), None, None


class _PairedDot(torch.autograd.Function):
    @staticmethod
    def forward(ctx, users, films, row, column):
        users_of, films_of = users.index_select(0, row), films.index_select(0, column)  # (R, H, D)
        ctx.save_for_backward(users_of, films_of, row, column)
        ctx.shapes = users.shape, films.shape
        return (users_of * films_of).sum(-1)

    @staticmethod
    def backward(ctx, grad):
        users_of, films_of, row, column = ctx.saved_tensors
        users_shape, films_shape = ctx.shapes
        rows = users_of * grad.unsqueeze(-1)
        grad_films = grad.new_zeros(films_shape).index_add_(0, column, rows)
        torch.mul(films_of, grad.unsqueeze(-1), out=rows)
        grad_users = grad.new_zeros(users_shape).index_add_(0, row, rows)
        return grad_users, grad_films, None, None


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, table, index):
        ctx.save_for_backward(index)
        ctx.shape = table.shape
        return table.index_select(0, index)

    @staticmethod
    def backward(ctx, grad):
        return grad.new_zeros(ctx.shape).index_add_(0, ctx.saved_tensors[0], grad.contiguous()), None
