"""What the date of a question adds to a score: a movie's bias over time, and a user's recent bias.

Both are added to a score as biases of the movie and of the user, so that it stays a dot product of two vectors, each as
of a day (Koren 2010, "Collaborative filtering with temporal dynamics").

Days are int64, counted from the data set's first. R context ratings and T questions of B users, M movies.
"""

import torch
from torch import nn

from models.ops import backend

PERIODS = 32  # of the data set's days, in each of which a movie has a bias of its own
WINDOWS = (1, 4, 16, 64)  # days; nearer than that to a question, a user's ratings are measured for their recent bias


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

    j are the n context ratings that are fewer days than the window from the question, before it or after.
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
        total, count = backend.of_ratings(row, num_users).window_sums(row, day, residual, target_row, target_day,
                                                                      WINDOWS, self.num_days)
        shrinkage = self.log_shrinkage.exp().unsqueeze(1)
        return self.weight @ (total / (count + shrinkage))
