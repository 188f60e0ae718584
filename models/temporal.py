"""What the date of a question adds to a score: how a film drifts, and how a user has been rating lately.

All are scalars of the film and the date, or of the user and the date, and enter as bias coordinates: a score stays a
dot product of a user's vector and a movie's, each as of a day (Koren 2010, "Collaborative filtering with temporal
dynamics", for drifting biases).

Days are int64, counted from the data set's first. R context ratings and T questions of B users, M movies.
"""

import torch
from torch import nn

from models.ops.ragged import kernels_for, stable_order, starts

PERIODS = 32  # of the data set's days, in each of which a film has a bias of its own
WINDOWS = (1, 8, 64, 512)  # days, over which a user's mood is measured; each lies within one of the next
MOST_DAYS = 2**22  # a multiple of every window; the years 1 to 9999 have fewer


class FilmDrift(nn.Module):
    """A film's bias by period, beside the one it has always."""

    def __init__(self, num_movies: int, num_days: int) -> None:
        super().__init__()
        self.days = -(-num_days // PERIODS)  # of a period
        self.table = nn.Parameter(torch.zeros(num_movies, PERIODS))

    def forward(self, movie_idx: torch.Tensor, day: torch.Tensor) -> torch.Tensor:
        """Return what is added to the scores of movies, int64 (R,), on days of the data set, int64 (R,); float (R,)."""
        return self.table.view(-1).index_select(0, (day // self.days).add_(movie_idx, alpha=PERIODS))


class UserMood(nn.Module):
    """A user's recent residuals: sum over windows w of weight_w sum_j residual_j / (n + shrink_w).

    Time is cut into windows backwards from the user's last day, known or asked about; j are the n context ratings
    in the same window as the question.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(len(WINDOWS)))
        self.log_shrink = nn.Parameter(torch.full((len(WINDOWS),), 5.0).log())

    def forward(self, row: torch.Tensor, day: torch.Tensor, residual: torch.Tensor, target_row: torch.Tensor,
                target_day: torch.Tensor, num_users: int) -> torch.Tensor:
        """Return what is added to the scores of questions, float (T,).

        Args:
            row, day: int64 (R,), user and day of the context ratings, both ascending: by user, then by day.
            residual: float (R,), what of them the user's vector leaves unexplained, in units of score.
            target_row, target_day: int64 (T,), user and day of the questions, in the same order.
            num_users: B.
        """
        if kernels := kernels_for(row, num_users):
            start, asked_start = starts(row, num_users), starts(target_row, num_users)
            total, count = kernels.mood_sums(day, residual, start, target_day, asked_start, WINDOWS)
        else:
            total, count = _sums_in_windows(row, day, residual, target_row, target_day, num_users)
        return (total / (count + self.log_shrink.exp())) @ self.weight  # of (T, W)


def _sums_in_windows(row: torch.Tensor, day: torch.Tensor, residual: torch.Tensor, target_row: torch.Tensor,
                     target_day: torch.Tensor, num_users: int) -> torch.Tensor:
    """Return the sums of the residuals in the windows of the questions, and their numbers, float (2, T, W); arguments
    as for `UserMood.forward`."""
    last = day.new_zeros(num_users).scatter_reduce_(0, torch.cat([row, target_row]), torch.cat([day, target_day]),
                                                    "amax")
    # A day of a user's in one number, context and questions, ascending; of each the residual, and that it is one.
    key = torch.cat([(of_row + 1) * MOST_DAYS - 1 - (last.index_select(0, of_row) - of_day)
                     for of_row, of_day in ((row, day), (target_row, target_day))])  # (R + T,)
    order = stable_order(key)
    key = key.index_select(0, order)
    each = torch.nn.functional.pad(torch.stack([residual, torch.ones_like(residual)]), (0, len(target_row)))
    each = each.index_select(1, order)  # (2, R + T)
    place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    place = place[len(row):]  # of the questions (T,)
    sums = []
    for window in WINDOWS:
        number = (key // window).diff(prepend=key[:1] // window).ne(0).cumsum(0)  # of the window
        total = torch.zeros_like(each).index_add_(1, number, each)
        sums.append(total.index_select(1, number.index_select(0, place)))
    return torch.stack(sums, -1)
