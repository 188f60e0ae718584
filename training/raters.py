"""Who rated a movie, as a few numbers that its tower reads.

Movies that the same people rated are alike, whatever stars they got. The coordinates are those of a spectral embedding
(von Luxburg 2007, "A tutorial on spectral clustering"): singular vectors of the matrix of who rated what, its rows and
columns divided by the roots of their sums + SHRINK. The first one, which says how much a movie is rated, is left out.
In SVD++ "flipped" (Rendle, Zhang and Koren 2019) a movie has a learned vector of each of its raters; these are fixed.

Letters: U users, M movies, R ratings, K coordinates.
"""

from functools import partial

import torch
from torch.nn.functional import embedding_bag

from models.ops.ranks import Ranks
from models.ops.threads import in_threads, num_threads, shared_out
from training.batches import RatingTensors, batch_of, blocks_of, uniform

MOST_COORDINATES, FEWEST_COORDINATES = 128, 24  # fewer where movies or users are few
RATINGS_PER_COORDINATE, ROWS_PER_COORDINATE = 6000, 32
SAMPLE_RATINGS = 4_000_000  # the coordinates are found from a sample of users with about so many ratings together
SHRINK = 5.0  # added to every number of ratings, so that users and movies with few do not stand apart
ITERATIONS, SPARE = 6, 16  # of subspace iteration (Halko, Martinsson and Tropp 2011), with so many vectors more
LARGEST = 4.0  # standard deviations, at which coordinates are cut
ROUNDING = 1e-10  # of the largest eigenvalue: those below are none
SEED = 2  # not that of the users whom validation measures, 0, nor of those who fit the weights of relevance, 1


def num_coordinates(num_users: int, num_movies: int, num_ratings: int) -> int:
    """Return K for a data set, 0 where users or movies are too few to tell them apart."""
    by_ratings = min(max(num_ratings // RATINGS_PER_COORDINATE, FEWEST_COORDINATES), MOST_COORDINATES)
    return min(by_ratings, num_movies // ROWS_PER_COORDINATE, num_users // ROWS_PER_COORDINATE)


@torch.no_grad()
def coordinates(ratings: RatingTensors, num_movies: int, dim: int, ranks: Ranks, device: torch.device,
                num_users: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return coordinates of movies, float (M, K), by who rated them, and of users, float (U, K), by what they rated.

    A coordinate's standard deviation, before it is cut at LARGEST, is its singular value divided by the largest one
    kept. All ranks return the same. The work is done in float64, so that the order of sums does not show in float32,
    unless singular values are equal.

    Args:
        ratings: training ratings of this rank's users.
        dim: K.
        device: where ranks can talk to each other; the work is done on the CPU.
        num_users: U, over all ranks; 0: return those of movies alone.
    """
    def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
        if ranks.size == 1:
            return tensor
        on_device = tensor.to(device)
        ranks.sum_(on_device)
        return on_device.cpu()

    with shared_out():
        rated, users = ratings.offset.diff(), ratings.users()
        rated_by_all = sum_over_ranks(torch.bincount(ratings.movie_idx, minlength=num_movies).double())
        sampled = uniform(SEED, users) < SAMPLE_RATINGS / max(float(rated_by_all.sum()), 1.0)
        matrix = _Matrix(ratings, users[sampled & (rated > 0)], num_movies)
        matrix.weigh(sum_over_ranks(matrix.of_movie.double()))
        vectors = torch.randn(num_movies, min(dim + 1 + SPARE, num_movies),
                              generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
        for _ in range(ITERATIONS):
            products = sum_over_ranks(matrix.transposed_times(matrix.times(vectors)))
            vectors = torch.linalg.qr(products)[0]
        products = matrix.times(vectors)
        eigenvalues, eigenvectors = torch.linalg.eigh(sum_over_ranks(products.T @ products))
        vectors = vectors @ eigenvectors.flip(1)[:, 1:dim + 1]
        largest = eigenvalues[-2].clamp(min=ROUNDING * eigenvalues[-1] + torch.finfo(torch.float64).tiny)
        scale = (eigenvalues.flip(0)[1:dim + 1].clamp(min=0) / largest).sqrt()
        by_user = vectors.new_zeros(0, dim)
        if num_users:
            by_user, rated_by = vectors.new_zeros(num_users, dim), vectors.new_zeros(num_users)
            rated_by[users] = rated.double()
            for some in blocks_of(ratings.rated_users(), ratings):
                rows = _Matrix(ratings, some, num_movies)
                rows.weigh(rated_by_all)
                by_user[some] = rows.times(vectors)
            by_user = _standardized(sum_over_ranks(by_user), sum_over_ranks(rated_by) > 0) * scale
    return (_standardized(vectors, rated_by_all > 0) * scale).float(), by_user.float()


class _Matrix:
    """Who of some users rated what, (users, M), each one divided by the roots of its user's and its movie's numbers of
    ratings."""

    def __init__(self, ratings: RatingTensors, users: torch.Tensor, num_movies: int) -> None:
        batch, count = batch_of(ratings, users), ratings.offset.diff()[ratings.positions(users)]
        self.row, self.movie_idx, self.begin = batch.row.int(), batch.movie_idx.int(), count.cumsum(0) - count
        self.of_movie = torch.bincount(self.movie_idx, minlength=num_movies)
        self.user_weight = (count.double() + SHRINK).rsqrt().unsqueeze(1)
        self.row_by_movie: torch.Tensor | None = None

    def weigh(self, rated: torch.Tensor) -> None:
        """Take over how many ratings movies have, float (M,), over all ranks."""
        self.movie_weight = (rated + SHRINK).rsqrt().unsqueeze(1)

    def times(self, of_movies: torch.Tensor) -> torch.Tensor:
        """Multiply by (M, K); return (users, K)."""
        return _sums_of_rows(of_movies * self.movie_weight, self.movie_idx, self.begin) * self.user_weight

    def transposed_times(self, of_users: torch.Tensor) -> torch.Tensor:
        """Multiply the transpose by (users, K); return (M, K)."""
        if self.row_by_movie is None:
            self.row_by_movie = self.row[self.movie_idx.argsort(stable=True)]
        begin = self.of_movie.cumsum(0) - self.of_movie
        return _sums_of_rows(of_users * self.user_weight, self.row_by_movie, begin) * self.movie_weight


def _sums_of_rows(values: torch.Tensor, index: torch.Tensor, begin: torch.Tensor) -> torch.Tensor:
    """Return sums of rows of values (N, K): sum k is over index[begin[k]:begin[k + 1]]."""
    columns, begin = values.split(-(-values.shape[1] // num_threads()), 1), begin.to(index.dtype)
    return torch.cat(in_threads([partial(embedding_bag, index, part.contiguous(), begin, mode="sum")
                                 for part in columns]), 1)


def _standardized(rows: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Return (N, K) with standard deviation 1 over the known rows, cut at LARGEST; the others are zero."""
    scale = rows[known].std(0, correction=0).clamp(min=1e-12) if known.any() else 1.0
    return (rows / scale).clamp(-LARGEST, LARGEST) * known.unsqueeze(1)
