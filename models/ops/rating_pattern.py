"""Which user rated which movie: the places of a sparse matrix of users and movies, without its values."""

from functools import cached_property

import numpy as np
import torch


class RatingPattern:
    """The pattern of a sparse matrix (B, N) in compressed sparse rows (CSR): B users, N movies, R ratings.

    Users and movies have V vectors each, and the v-th of a user meets the v-th of a movie.
    """

    def __init__(self, row: torch.Tensor, indices: torch.Tensor, num_users: int, num_movies: int,
                 num_vectors: int = 1) -> None:
        """Keep each rating's user and movie, `row` and `indices`, both int64 (R,), `row` ascending."""
        self.row, self.indices = row, indices
        self.num_users, self.num_movies, self.num_vectors = num_users, num_movies, num_vectors

    def of_rows(self, rows: torch.Tensor) -> "RatingPattern":
        """Return the pattern of some of the rows, int64 (K,), ascending, which have all of the ratings."""
        row = positions(rows, self.num_users).index_select(0, self.row)
        return RatingPattern(row, self.indices, len(rows), self.num_movies, self.num_vectors)

    @cached_property
    def indptr(self) -> torch.Tensor:
        """Where the ratings of each user begin, and the end of the last, int64 (B + 1,)."""
        return row_starts(self.row, self.num_users)

    @cached_property
    def count(self) -> torch.Tensor:
        """The number of ratings of each user, int64 (B,)."""
        return self.indptr.diff()

    @cached_property
    def movie_count(self) -> torch.Tensor:
        """The number of ratings of each movie, int64 (N,)."""
        return counts(self.indices, self.num_movies)

    @cached_property
    def by_movie(self) -> torch.Tensor:
        """The positions of the ratings in order of movies, those of a movie in order of users, int64 (R,)."""
        if self.indices.device.type != "cpu":
            return self.indices.argsort(stable=True)
        keys = self.indices.numpy()  # NumPy counts numbers of two bytes, in a tenth of the time of torch's sort
        return torch.from_numpy((keys.astype(np.uint16) if self.num_movies <= 2**16 else keys).argsort(kind="stable"))

    @cached_property
    def user_bags(self) -> tuple[torch.Tensor, torch.Tensor]:
        """For sums by user, vector by vector: the movies' vectors to add, int64 (V R,), of a table (N V, D), and where
        those of each user begin, int64 (V B,)."""
        return self._bags(self.indices, self.indptr[:-1])

    @cached_property
    def movie_bags(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The same for sums by movie: the users' vectors, of a table (B V, D), and where those of each movie begin."""
        return self._bags(self.row.index_select(0, self.by_movie), self.movie_count.cumsum(0) - self.movie_count)

    def _bags(self, index: torch.Tensor, first: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        vector = torch.arange(self.num_vectors, device=index.device).unsqueeze(1)
        return (index * self.num_vectors + vector).view(-1), (first + len(index) * vector).view(-1)


def row_starts(row: torch.Tensor, num_rows: int) -> torch.Tensor:
    """Return where each row begins in ascending rows, int64 (R,), and the end of the last, int64 (B + 1,)."""
    return torch.searchsorted(row, torch.arange(num_rows + 1, device=row.device))


def distinct(index: torch.Tensor, num_values: int) -> torch.Tensor:
    """Return the numbers below `num_values` that occur in int64 (R,), ascending, int64 (N,); on a GPU all numbers, as
    finding them would make the host wait."""
    if index.device.type != "cpu":
        return torch.arange(num_values, device=index.device)
    occurs = torch.zeros(num_values, dtype=torch.bool)
    occurs[index] = True
    return occurs.nonzero().squeeze(1)


def positions(found: torch.Tensor, num_values: int) -> torch.Tensor:
    """Return where numbers below `num_values` are among distinct ones, int64 (N,); int64 (num_values,), 0 if nowhere.
    """
    position = torch.zeros(num_values, dtype=torch.int64, device=found.device)
    position[found] = torch.arange(len(found), device=found.device)
    return position


def counts(index: torch.Tensor, num_values: int) -> torch.Tensor:
    """Return how often each number below `num_values` occurs in int64 (R,), int64 (num_values,).

    On a GPU `bincount` would make the host wait.
    """
    return index.new_zeros(num_values).index_add_(0, index, torch.ones_like(index))
