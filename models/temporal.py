"""What the date of a question adds to a score: a movie's bias over time, and a user's recent bias.

Both are added to a score as biases of the movie and of the user, so that it stays a dot product of two vectors, each as
of a day (Koren 2010, "Collaborative filtering with temporal dynamics").

Days are int64, counted from the data set's first. R context ratings and T questions of B users, M movies.
"""

import torch
from torch import nn

from models.ops.rating_pattern import row_starts

PERIODS = 32  # of the data set's days, in each of which a movie has a bias of its own
WINDOWS = (8, 64)  # days over which a user's recent bias is measured, powers of two


class MovieBiasOverTime(nn.Module):
    """A movie's bias by period, beside the one that it always has."""

    def __init__(self, num_movies: int, num_days: int) -> None:
        super().__init__()
        self.days = -(-num_days // PERIODS)  # of a period
        self.table = nn.Parameter(torch.zeros(num_movies, PERIODS))

    def forward(self, rows: torch.Tensor, indices: torch.Tensor, day: torch.Tensor) -> torch.Tensor:
        """Return what is added to the scores of movies on days, float (R,).

        Args:
            rows: float (N, PERIODS), of the table.
            indices: int64 (R,), the movies' among them.
            day: int64 (R,).
        """
        return rows.view(-1).index_select(0, (day // self.days).add_(indices, alpha=PERIODS))

    def on_day(self, movie_idx: torch.Tensor, day: int) -> torch.Tensor:
        """Return what is added to the scores of movies, int64 (N,), on a day; float (N,)."""
        return self.table[movie_idx, day // self.days]


class RecentUserBias(nn.Module):
    """What a user's vector leaves unexplained of their ratings around the day of a question.

        sum over windows w of weight_w sum_j residual_j / (n + shrinkage_w)

    Time is cut into windows backwards from the user's last day, known or asked about; j are the n context ratings in
    the same window as the question.
    """

    def __init__(self, num_days: int) -> None:
        super().__init__()
        self.num_days = num_days
        self.weight = nn.Parameter(torch.zeros(len(WINDOWS)))
        self.log_shrinkage = nn.Parameter(torch.full((len(WINDOWS),), 5.0).log())

    def forward(self, row: torch.Tensor, day: torch.Tensor, residual: torch.Tensor, target_row: torch.Tensor,
                target_day: torch.Tensor, num_users: int) -> torch.Tensor:
        """Return what is added to the scores of questions, float (T,).

        Args:
            row, day: int64 (R,), user and day of the context ratings, by user and for each by day.
            residual: float (R,), of the context ratings, in units of score; no gradient is taken of it.
            target_row, target_day: int64 (T,), user and day of the questions, in the same order.
            num_users: B.
        """
        last = torch.maximum(_last_days(row, day, num_users), _last_days(target_row, target_day, num_users))
        age, target_age = (last.index_select(0, rows) - days for rows, days in ((row, day), (target_row, target_day)))
        one = torch.stack([residual, torch.ones_like(residual)])
        score = torch.zeros_like(target_day, dtype=residual.dtype)
        for window, weight, shrinkage in zip(WINDOWS, self.weight, self.log_shrinkage.exp(), strict=True):
            bits, num_windows = window.bit_length() - 1, -(-self.num_days // window)
            cell, target_cell = ((rows + 1) * num_windows - 1 - (ages >> bits)
                                 for rows, ages in ((row, age), (target_row, target_age)))  # by user and in time
            total, count = _sums_of_cells(cell, one, target_cell)
            score = score + total / (count + shrinkage) * weight
        return score


def _sums_of_cells(cell: torch.Tensor, values: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
    """Return the sums of values (K, R) over the ratings of the cells that are asked for, (K, T); in the time of the
    ratings, however many cells there could be.

    Args:
        cell: int64 (R,), of each rating, ascending.
        asked: int64 (T,).
    """
    num_ratings = len(cell)
    run = torch.cat([cell.new_zeros(min(num_ratings, 1)), (cell[1:] != cell[:-1]).cumsum(0)])
    cells = cell.new_full((num_ratings + 1,), torch.iinfo(cell.dtype).max).scatter_(0, run, cell)  # that have ratings
    sums = values.new_zeros(len(values), num_ratings + 1).index_add_(1, run, values)
    position = torch.searchsorted(cells, asked)
    return sums.index_select(1, position) * (cells.index_select(0, position) == asked)


def _last_days(row: torch.Tensor, day: torch.Tensor, num_users: int) -> torch.Tensor:
    """Return the last day of each user, int64 (B,), 0 without any; row and day int64 (R,) in order."""
    starts = row_starts(row, num_users)
    before = torch.cat([day.new_zeros(1), day])  # of each rating the day before it
    return before.index_select(0, starts[1:]) * (starts.diff() > 0)
