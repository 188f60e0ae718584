"""What any model must beat: user and movie biases, fitted to the ratings that are known."""

from dataclasses import dataclass
from functools import partial

import torch

from models.ops.ranks import ALONE, Ranks
from models.ops.threads import in_threads
from training.batches import RatingTensors, blocks_of

BLOCKS_AT_ONCE = 128  # of `blocks_of`, whose ratings are in memory as wide numbers, in each thread


@dataclass
class Biases:
    """rating(u, m) = mean + user[u] + movie[m], in stars (Koren 2008, equation 1)."""

    mean: float
    user: torch.Tensor  # float32 (U,), of a rank's own users
    movie: torch.Tensor  # float32 (M,)
    first_user: int = 0

    def predict(self, user_idx: torch.Tensor, movie_idx: torch.Tensor) -> torch.Tensor:
        """Predict the stars of users and movies, int64 (R,)."""
        return self.mean + self.user[user_idx - self.first_user] + self.movie[movie_idx.long()]


def fit_biases(train: RatingTensors, num_movies: int, stars_step: float = 1, ranks: Ranks = ALONE,
               user_shrink: float = 5.0, movie_shrink: float = 5.0, num_rounds: int = 10) -> Biases:
    """Fit user and movie biases by alternating ridge regression.

    A bias is the sum of its residuals over their number plus the shrinkage, which stands for so many ratings of
    residual zero. Sums in float64, over all ranks, each of which has the biases of its own users.
    """
    counts = train.offset.diff()
    blocks = [slice(int(users[0]) - train.first_user, int(users[-1]) + 1 - train.first_user)
              for users in blocks_of(train.users(), train, BLOCKS_AT_ONCE)]

    def sums_by_movie(of_users: torch.Tensor) -> torch.Tensor:
        """Return for each movie the sum of its raters' values, (M,), over all ranks; of_users (U,)."""
        def sums(users: slice) -> torch.Tensor:
            values = of_users[users].repeat_interleave(counts[users])
            return torch.bincount(_movies(train, users), values, num_movies)

        total = torch.zeros(num_movies, dtype=torch.float64)
        for part in in_threads([partial(sums, users) for users in blocks]):
            total += part
        ranks.sum_(total)
        return total

    def sums_by_user(of_movies: torch.Tensor) -> torch.Tensor:
        """Return for each user the sum of the values of what they rated, (U,); of_movies (M,)."""
        def sums(users: slice) -> torch.Tensor:
            return _sums(of_movies[_movies(train, users)], counts[users])

        total = torch.zeros(len(counts), dtype=torch.float64)
        for users, part in zip(blocks, in_threads([partial(sums, users) for users in blocks]), strict=True):
            total[users] = part
        return total

    def stars_of(users: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sums of the stars by user and by movie."""
        stars = train.stars[_ratings(train, users)].double() * stars_step
        return _sums(stars, counts[users]), torch.bincount(_movies(train, users), stars, num_movies)

    of_user, of_movie = torch.zeros(len(counts), dtype=torch.float64), torch.zeros(num_movies, dtype=torch.float64)
    for users, (by_user, by_movie) in zip(blocks, in_threads([partial(stars_of, users) for users in blocks]),
                                          strict=True):
        of_user[users] = by_user
        of_movie += by_movie
    movie_count = sums_by_movie(torch.ones(len(counts), dtype=torch.float64))
    ranks.sum_(of_movie)
    mean = float(of_movie.sum() / movie_count.sum().clamp(min=1))
    of_user, of_movie = of_user - mean * counts, of_movie - mean * movie_count  # of residuals
    user, movie = torch.zeros_like(of_user), torch.zeros_like(of_movie)
    for _ in range(num_rounds):
        movie = (of_movie - sums_by_movie(user)) / (movie_count + movie_shrink)
        user = (of_user - sums_by_user(movie)) / (counts + user_shrink)
    return Biases(mean, user.float(), movie.float(), train.first_user)


def _ratings(ratings: RatingTensors, users: slice) -> slice:
    """Return which ratings are those of a range of users."""
    return slice(int(ratings.offset[users.start]), int(ratings.offset[users.stop]))


def _movies(ratings: RatingTensors, users: slice) -> torch.Tensor:
    """Return the movies of the ratings of a range of users, int64."""
    return ratings.movie_idx[_ratings(ratings, users)].long()


def _sums(values: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Return sums of values that follow each other, so many at a time, float64."""
    row = torch.arange(len(counts)).repeat_interleave(counts)
    return torch.bincount(row, values, len(counts))
