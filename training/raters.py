"""Who rated a movie, as a few numbers that its tower reads.

Movies that the same people rated are alike, whatever stars they got. The coordinates are those of a spectral embedding
(von Luxburg 2007, "A tutorial on spectral clustering"): singular vectors of the matrix of who rated what, its rows and
columns divided by the roots of their sums. The first one, which says how much a movie is rated, is left out. In
SVD++ "flipped" (Rendle, Zhang and Koren 2019) a movie has a learned vector of each of its raters; these are fixed.

Letters: U users, M movies, R ratings, K coordinates.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch.nn.functional import embedding_bag

from models.ops.threads import in_threads, num_threads, shared_out
from training.batches import RatingTensors, uniform
from training.distributed import Ranks

MOST, FEWEST = 128, 24  # coordinates; fewer where movies or users are few
RATINGS_PER_COORDINATE, ROWS_PER_COORDINATE = 6000, 32
SAMPLE_RATINGS = 4_000_000  # from which coordinates are found: of so many users
SHRINK = 5.0  # ratings that everybody and every movie has more, for few of them are no reason to be apart from all
ITERATIONS, SPARE = 6, 16  # of subspace iteration (Halko, Martinsson and Tropp 2011), with so many vectors more
LARGEST = 4.0  # standard deviations, to which coordinates are cut
SEED = 0


def num_coordinates(num_users: int, num_movies: int, num_ratings: int) -> int:
    """Return K for a data set of this size, 0 where users or movies are too few to tell them apart."""
    by_ratings = min(max(num_ratings // RATINGS_PER_COORDINATE, FEWEST), MOST)
    return min(by_ratings, num_movies // ROWS_PER_COORDINATE, num_users // ROWS_PER_COORDINATE)


@torch.no_grad()
def coordinates(ratings: RatingTensors, num_movies: int, size: int, ranks: Ranks, device: torch.device,
                of_users: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return coordinates of movies, float (M, K), by who rated them, and of users, float (U, K), by what they rated.

    A coordinate's standard deviation is its singular value, the largest one being 1. All ranks return the same, and as
    good as what one would: the work is done in float64, so that the order of sums leaves no trace.

    Args:
        ratings: training ratings of this rank's users.
        size: K.
        device: where ranks can talk to each other; the work is done on the CPU.
        of_users: whether those of users are wanted; else they have no rows.
    """
    total = torch.tensor(float(len(ratings)), dtype=torch.float64)

    def summed(tensor: torch.Tensor) -> torch.Tensor:
        on_device = tensor.to(device)
        ranks.sum_(on_device)
        return on_device.cpu()

    with shared_out():
        rated = ratings.offset.diff()
        users = torch.arange(len(rated))
        sampled = uniform(SEED, users) < SAMPLE_RATINGS / float(summed(total))
        matrix = _Matrix(ratings, users[sampled & (rated > 0)], num_movies, summed)
        vectors = torch.randn(num_movies, min(size + 1 + SPARE, num_movies),
                              generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
        for _ in range(ITERATIONS):
            vectors = torch.linalg.qr(summed(matrix.of_movies(matrix.of_users(vectors))))[0]
        products = matrix.of_users(vectors)
        squares, turn = torch.linalg.eigh(summed(products.T @ products))
        vectors = vectors @ turn.flip(1)[:, 1:size + 1]
        scale = (squares.flip(0)[1:size + 1].clamp(min=0) / squares[-2]).sqrt()
        by_user = vectors.new_zeros(0, size)
        if of_users:
            whole = _Matrix(ratings, users[rated > 0], num_movies, summed)
            by_user = vectors.new_zeros(len(users), size)
            by_user[whole.users] = whole.of_users(vectors)
            by_user = _standardized(summed(by_user)) * scale
    return (_standardized(vectors) * scale).float(), by_user.float()


class _Matrix:
    """Who rated what, (users, M), each one divided by the roots of its user's and its movie's numbers of ratings."""

    def __init__(self, ratings: RatingTensors, users: torch.Tensor, num_movies: int,
                 summed: Callable[[torch.Tensor], torch.Tensor]) -> None:
        count = ratings.offset.diff()[users]
        self.users, self.begin = users, count.cumsum(0) - count
        position = torch.arange(int(count.sum())) + (ratings.offset[users] - self.begin).repeat_interleave(count)
        self.movie_idx = ratings.movie_idx[position].int()
        self.by_movie = self.movie_idx.argsort(stable=True)
        self.row = torch.arange(len(users), dtype=torch.int32).repeat_interleave(count)[self.by_movie]
        of_movie = torch.bincount(self.movie_idx, minlength=num_movies)
        self.movie_begin = of_movie.cumsum(0) - of_movie
        self.user_weight = (count.double() + SHRINK).rsqrt().unsqueeze(1)
        self.movie_weight = (summed(of_movie.double()) + SHRINK).rsqrt().unsqueeze(1)

    def of_users(self, of_movies: torch.Tensor) -> torch.Tensor:
        """Multiply by (M, K); return (users, K)."""
        return _sums(of_movies * self.movie_weight, self.movie_idx, self.begin) * self.user_weight

    def of_movies(self, of_users: torch.Tensor) -> torch.Tensor:
        """Multiply the transpose by (users, K); return (M, K)."""
        return _sums(of_users * self.user_weight, self.row, self.movie_begin) * self.movie_weight


def _sums(values: torch.Tensor, index: torch.Tensor, begin: torch.Tensor) -> torch.Tensor:
    """Return the sums of the rows of values (N, K) that an index (R,) names, from each beginning to the next."""
    columns = values.split(-(-values.shape[1] // num_threads()), 1)
    begin = begin.to(index.dtype)
    return torch.cat(in_threads([partial(embedding_bag, index, part.contiguous(), begin, mode="sum")
                                 for part in columns]), 1)


def _standardized(rows: torch.Tensor) -> torch.Tensor:
    """Return (N, K) with standard deviation 1 over the rows that are not zero in all, cut at LARGEST."""
    known = (rows != 0).any(1)
    scale = rows[known].std(0, correction=0).clamp(min=1e-12) if known.any() else 1.0
    return (rows / scale).clamp(-LARGEST, LARGEST)
