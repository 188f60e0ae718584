"""What the date of a question adds to a score: a movie's bias over time, and a user's recent bias.

Both are added to a score as biases of the movie and of the user, so that it stays a dot product of two vectors, each as
of a day (Koren 2010, "Collaborative filtering with temporal dynamics").

Days are int64, counted from the data set's first. R context ratings and T questions of B users, M movies.
"""

import torch
from torch import nn

PERIODS = 32  # of the data set's days, in each of which a movie has a bias of its own
WINDOWS = (8, 64)  # days over which a user's recent bias is measured


class MovieBiasOverTime(nn.Module):
    """A movie's bias by period, beside the one that it always has."""

    def __init__(self, num_movies: int, num_days: int) -> None:
        super().__init__()
        self.days = -(-num_days // PERIODS)  # of a period
        self.table = nn.Parameter(torch.zeros(num_movies, PERIODS))

    def forward(self, movie_idx: torch.Tensor, day: torch.Tensor) -> torch.Tensor:
        """Return what is added to the scores of movies, int64 (R,), on days, int64 (R,); float (R,)."""
        return self.table.view(-1).index_select(0, (day // self.days).add_(movie_idx, alpha=PERIODS))


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
            row, day: int64 (R,), user and day of the context ratings.
            residual: float (R,), of the context ratings, in units of score; no gradient is taken of it.
            target_row, target_day: int64 (T,), user and day of the questions.
            num_users: B.
        """
        last = day.new_zeros(num_users)
        for rows, days in ((row, day), (target_row, target_day)):
            last = last.scatter_reduce(0, rows, days, "amax")
        means = []
        for window, shrinkage in zip(WINDOWS, self.log_shrinkage.exp(), strict=True):
            num_windows = -(-self.num_days // window)
            known, asked = (rows * num_windows + (last.index_select(0, rows) - days) // window
                            for rows, days in ((row, day), (target_row, target_day)))
            total = residual.new_zeros(num_users * num_windows).index_add_(0, known, residual)
            count = torch.zeros_like(total).index_add_(0, known, torch.ones_like(residual))
            means.append(total.index_select(0, asked) / (count.index_select(0, asked) + shrinkage))
        return torch.stack(means, 1) @ self.weight
