"""The operations on ratings in array operations of PyTorch: the reference for the compiled ones, on any device.

numba_kernels.py (CPU) and triton_kernels.py (GPU) have the same functions; backend.py chooses between the three.

Letters: R ratings, B users, N movies, V vectors of each user and movie, D coordinates.
"""

import torch
from torch.nn.functional import pad

from models.ops.rating_pattern import RatingPattern
from preprocessing.dataset import hash_ids

PIECE = 128  # most ratings of a user that are multiplied together


def dots(users: torch.Tensor, movies: torch.Tensor, pattern: RatingPattern) -> torch.Tensor:
    """Return each rating's inner products of its user and its movie, (R, V), of (B, V, D) and (N, V, D)."""
    return (users.index_select(0, pattern.row) * movies.index_select(0, pattern.indices)).sum(-1)


def sum_by_user(movies: torch.Tensor, weight: torch.Tensor, pattern: RatingPattern) -> torch.Tensor:
    """Return each user's sum of weight times movie over their ratings, (B, V, D), of (N, V, D) and (R, V)."""
    return _weighted_sums(movies, *pattern.user_bags, weight)


def sum_by_movie(users: torch.Tensor, weight: torch.Tensor, pattern: RatingPattern) -> torch.Tensor:
    """Return each movie's sum of weight times user over its ratings, (N, V, D), of (B, V, D) and (R, V)."""
    return _weighted_sums(users, *pattern.movie_bags, weight.index_select(0, pattern.by_movie))


def ridge(movies: torch.Tensor, target: torch.Tensor, prior: torch.Tensor, l2: torch.Tensor, pattern: RatingPattern,
          keep: bool = True) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Solve a ridge regression for each user and vector; see `ragged.ridge_solve` for the equation.

    Args:
        movies: float (N, V, D + 1), each a vector and a bias.
        target: float (R,).
        prior, l2: float (B, V, D).
        keep: whether `ridge_again` will be called.

    Returns:
        The solutions w, (B, V, D); the residuals target - bias - v . w, (R, V); and what `ridge_again` needs.
    """
    gram, right = normal_equations(movies, target, pattern)
    factor = torch.linalg.cholesky(gram + torch.diag_embed(l2))
    solution = ridge_again(factor, right + l2 * prior)
    return solution, residuals(target, solution, movies, pattern), factor


def ridge_again(factor: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Solve the systems that `ridge` has factorised for other right-hand sides, (B, V, D)."""
    return torch.cholesky_solve(right.unsqueeze(-1), factor).squeeze(-1)


def normal_equations(movies: torch.Tensor, target: torch.Tensor,
                     pattern: RatingPattern) -> tuple[torch.Tensor, torch.Tensor]:
    """Return V'V and V'(target - bias) of each user's movies, (B, V, D, D) and (B, V, D); arguments as for `ridge`."""
    rows = movies.index_select(0, pattern.indices)  # (R, V, D + 1)
    rows[..., -1] = target.unsqueeze(1) - rows[..., -1]
    product = _products_by_user(rows, pattern)  # of [v, target - bias] by itself, (B, V, D + 1, D + 1)
    return product[..., :-1, :-1], product[..., :-1, -1]


def residuals(target: torch.Tensor, users: torch.Tensor, movies: torch.Tensor, pattern: RatingPattern) -> torch.Tensor:
    """Return target - bias - v . w of each rating, (R, V), of users w, (B, V, D); other arguments as for `ridge`."""
    return target.unsqueeze(1) - dots(with_one(users), movies, pattern)


def with_one(users: torch.Tensor) -> torch.Tensor:
    """Append a coordinate of 1, which meets the movies' biases: (B, V, D) -> (B, V, D + 1)."""
    return pad(users, (0, 1), value=1.0)


def window_sums(row: torch.Tensor, day: torch.Tensor, values: torch.Tensor, asked_row: torch.Tensor,
                asked_day: torch.Tensor, windows: tuple[int, ...],
                num_days: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum each user's ratings near questions, each of which is about a user and a day.

    Args:
        row, day: int64 (R,), user and day of the ratings, by user and for each by day.
        values: float (R,), of the ratings.
        asked_row, asked_day: int64 (T,), user and day of the questions, in the same order.
        windows: W lengths, in days; a rating is in a window if it is fewer days before or after the question.
        num_days: one more than the last day of all.

    Returns:
        The sums of the values and the numbers of the ratings, float (W, T).
    """
    days = num_days + max(windows)  # of a user, so that no window reaches another's
    key, asked_key = row * days + day, asked_row * days + asked_day
    sums = pad(values.double().cumsum(0), (1, 0))
    found = []
    for window in windows:
        first = torch.searchsorted(key, asked_key - window, right=True)
        last = torch.searchsorted(key, asked_key + window)
        found.append(torch.stack([(sums[last] - sums[first]).to(values.dtype), (last - first).to(values.dtype)]))
    total, count = torch.stack(found, 1)
    return total, count


def uniform(seed: int, *columns: torch.Tensor) -> torch.Tensor:
    """Hash whole numbers, int64 (R,), to numbers in [0, 1), float32 (R,): 24 bits of `hash_ids`."""
    words = hash_ids(seed % 2**64, *(column.cpu().numpy() for column in columns)) >> 40
    return torch.from_numpy(words.astype("float32") * 2.0**-24).to(columns[0].device)


def row_adam(table: torch.Tensor, mean: torch.Tensor, square: torch.Tensor, steps: torch.Tensor, rows: torch.Tensor,
             grad: torch.Tensor, lr: float, betas: tuple[float, float], epsilon: float) -> None:
    """Run a step of Adam (Kingma and Ba 2015) on some rows of a table, in place.

    Args:
        table, mean, square: float (U, D), the table and the running means of its gradients and of their squares.
        steps: float (U, 1), the steps that each row has taken.
        rows: int64 (B,), distinct.
        grad: float (B, D).
    """
    beta_mean, beta_square = betas
    steps_now = steps[rows] + 1
    mean_now = mean[rows].lerp_(grad, 1 - beta_mean)
    square_now = square[rows].mul_(beta_square).addcmul_(grad, grad, value=1 - beta_square)
    scale = ((1 - beta_square ** steps_now).sqrt_() / (1 - beta_mean ** steps_now)) * lr
    table[rows] -= scale * mean_now / square_now.sqrt().add_(epsilon)
    steps[rows], mean[rows], square[rows] = steps_now, mean_now, square_now


def _weighted_sums(table: torch.Tensor, index: torch.Tensor, first: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return sums of weighted rows, (S, V, D), of a table (T, V, D), weighted by (R, V); index and first as
    `RatingPattern.user_bags`."""
    num_vectors = table.shape[1]
    sums = torch.embedding_bag(table.flatten(0, 1), index, first, mode=0,
                               per_sample_weights=weight.T.reshape(-1))[0]  # (V S, D)
    return sums.unflatten(0, (num_vectors, len(first) // num_vectors)).transpose(0, 1)


def _products_by_user(rows: torch.Tensor, pattern: RatingPattern) -> torch.Tensor:
    """Return for each user the product of their ratings' rows by themselves, (B, V, D, D), of (R, V, D).

    The rows are laid out in padded pieces of one user each, so that one batched product is enough. There are as many
    pieces as could be needed: to count them would make the host wait for a GPU.
    """
    row, count, (num_ratings, num_vectors, dim) = pattern.row, pattern.count, rows.shape
    piece = min(max(num_ratings // max(pattern.num_users, 1), 8), PIECE)
    num_pieces, pieces = num_ratings // piece + pattern.num_users, (count + piece - 1) // piece
    position = torch.arange(num_ratings, device=row.device) - pattern.indptr[row]
    padded = rows.new_zeros(num_pieces * piece, num_vectors, dim)
    padded[(pieces.cumsum(0) - pieces)[row] * piece + position] = rows
    padded = padded.view(num_pieces, piece, num_vectors, dim).transpose(1, 2)  # (pieces, V, piece, D)
    user = torch.searchsorted(pieces.cumsum(0), torch.arange(num_pieces, device=row.device), right=True)
    products = rows.new_zeros(pattern.num_users + 1, num_vectors, dim, dim)  # the last of pieces that are not needed
    return products.index_add_(0, user, padded.mT @ padded)[:-1]
