"""What any model must beat: user and movie biases, fitted to the ratings that are known."""

from dataclasses import dataclass

import torch

from models.ops.ranks import ALONE, Ranks
from training.batches import RatingTensors


@dataclass
class Biases:
    """rating(u, m) = mean + user[u] + movie[m], in stars (Koren 2008, equation 1)."""

    mean: float
    user: torch.Tensor  # float32 (U,)
    movie: torch.Tensor  # float32 (M,)

    def predict(self, user_idx: torch.Tensor, movie_idx: torch.Tensor) -> torch.Tensor:
        """Predict the stars of users and movies, int64 (R,)."""
        return self.mean + self.user[user_idx] + self.movie[movie_idx.long()]


def fit_biases(train: RatingTensors, num_movies: int, stars_step: float = 1, ranks: Ranks = ALONE,
               user_shrink: float = 5.0, movie_shrink: float = 5.0, num_rounds: int = 10) -> Biases:
    """Fit user and movie biases by alternating ridge regression.

    A bias is the sum of its residuals over their number plus the shrinkage, which stands for so many ratings of
    residual zero. Sums in float64, over all ranks, each of which has the biases of its own users.
    """
    def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
        ranks.sum_(tensor)
        return tensor

    user_idx, movie_idx = train.user_idx(), train.movie_idx.long()
    num_users = len(train.offset) - 1
    stars = train.stars.double() * stars_step
    total, count = sum_over_ranks(torch.tensor([float(stars.sum()), len(stars)], dtype=torch.float64)).tolist()
    mean = total / max(count, 1)
    residual = stars - mean
    user_count = train.offset.diff() + user_shrink
    movie_count = sum_over_ranks(torch.bincount(movie_idx, minlength=num_movies)) + movie_shrink
    user, movie = residual.new_zeros(num_users), residual.new_zeros(num_movies)
    for _ in range(num_rounds):
        movie = sum_over_ranks(torch.bincount(movie_idx, residual - user[user_idx], num_movies)) / movie_count
        user = torch.bincount(user_idx, residual - movie[movie_idx], num_users) / user_count
    return Biases(mean, user.float(), movie.float())
