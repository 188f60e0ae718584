"""The movie tower, and the table of movie vectors that it makes.

Letters: N movies, M movies of the data set, B users, E members of the ensemble in G groups, D coordinates of a member.
"""

from typing import NamedTuple

import torch
from torch import nn

from models.config import ModelConfig
from models.ops.ragged import gather_distinct
from models.ops.rating_pattern import RatingPattern

CONFIDENCE = 20.0  # ratings at which a movie's random first embedding has half its size
CONSTANT = 0.5  # coordinate of every movie vector, which the user's bias multiplies
MEAN_SHRINK = 5.0  # a mean, of a movie or a user, counts as if there were so many more ratings at the global mean


class MovieTable(NamedTuple):
    """The vectors of all movies (N = M), or of those of a training step.

    In training the E members may be in two groups, G = 2, each of which sees another context of every user. There users
    and movies have a row for each: first come the users as group 0 sees them, then as group 1 does, and row 2 n + g has
    movie n's vectors in group g. A user has no row where a group has nothing to predict of them.

        users   [group 0: user 0, user 1, ..][group 1: user 0, user 2, ..]
        movies  [movie 0: group 0, group 1][movie 1: group 0, group 1] ..
    """

    rows: torch.Tensor  # float (N G, E / G, D + 2): a movie's vector, what the user's bias multiplies, its bias
    mean: torch.Tensor  # float (M,): each movie's shrunk mean of the training stars, less the global mean
    pooled: torch.Tensor  # float (N, 2 P): what ratings of a movie add to a pooled history
    over_time: torch.Tensor | None  # float (N, PERIODS): its biases over time, see temporal.py; None without that part
    position: torch.Tensor | None = None  # int64 (M,): where a movie is among the N; None where they are all
    groups: int = 1  # G
    first_rows: int | None = None  # users' rows of group 0, where there are two; None for half of them

    def tensors(self) -> list[torch.Tensor]:
        """Return what gradients reach."""
        return [tensor for tensor in (self.rows, self.pooled, self.over_time) if tensor is not None]

    @property
    def vectors(self) -> torch.Tensor:
        """The vectors alone, float (N G, E / G, D)."""
        return self.rows[..., :-2]

    def indices(self, movie_idx: torch.Tensor) -> torch.Tensor:
        """Return where movies, int64 (R,), are among the N."""
        return movie_idx if self.position is None else self.position.index_select(0, movie_idx)

    def pattern(self, row: torch.Tensor, movie_idx: torch.Tensor, num_rows: int) -> RatingPattern:
        """Return which rows of users and of movies ratings join.

        Args:
            row, movie_idx: int64 (R,), the ratings' rows of users and movies.
            num_rows: of users.
        """
        indices = self.indices(movie_idx)
        if self.groups > 1:
            indices = 2 * indices + (row >= self.second_group(num_rows))
        return RatingPattern(row, indices, num_rows, *self.rows.shape[:2])

    def second_group(self, num_rows: int) -> int:
        """Return the row of users at which group 1 begins, of so many; all of them where there is one group."""
        if self.groups == 1:
            return num_rows
        return num_rows // 2 if self.first_rows is None else self.first_rows


class StepMovies(NamedTuple):
    """The movies of a training step (N)."""

    num_ratings: torch.Tensor  # float (N,), in training
    embedding: torch.Tensor  # float (N G, E / G, D), of which, and of features, the vectors are made
    table: MovieTable

    def detached(self) -> MovieTable:
        """Return the table as leaves of a graph of their own, so that gradients go on to the movie tower and to the
        tables once a step, however many pieces its users are in."""
        rows, pooled, over_time = self.table.rows, self.table.pooled, self.table.over_time
        return self.table._replace(rows=_leaf(rows), pooled=_leaf(pooled),
                                   over_time=None if over_time is None else _leaf(over_time))

    @torch.no_grad()
    def add_squared_norms(self, grad: torch.Tensor, num_targets: torch.Tensor, l2: float, movie_l2: float,
                          embedding_l2: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Add half of the sum over targets and members of l2 |v_m|^2 + (movie_l2 |v_m|^2 + embedding_l2 |e_m|^2) / n_m
        to a loss whose gradient by the rows is known; n_m is the movie's number of training ratings. So over an epoch
        the second term counts once per movie: a Gaussian prior around what its features say.

        Args:
            grad: by `table.rows`; that of the term is added to it.
            num_targets: float (N G,), of each row.

        Returns:
            The sum, a scalar, and the gradient of its half by the embeddings.
        """
        num_ratings = self.num_ratings.clamp(min=1).repeat_interleave(self.table.groups)
        of_vectors = num_targets * (l2 + movie_l2 / num_ratings)
        of_embeddings = num_targets * (embedding_l2 / num_ratings)
        total = grad.new_zeros(())
        for tensor, weight in ((self.table.vectors, of_vectors), (self.embedding, of_embeddings)):
            total += weight @ torch.linalg.vector_norm(tensor, dim=(1, 2)).square()
        grad[..., :-2].addcmul_(self.table.vectors, of_vectors.view(-1, 1, 1))
        return total, self.embedding * of_embeddings.view(-1, 1, 1)


def _leaf(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().requires_grad_()


class MovieTower(nn.Module):
    """Movie vectors from a learned embedding, who rated the movie, the release year, and the number of ratings."""

    raters: torch.Tensor  # float (M, raters_dim), coordinates of who rated a movie (training/raters.py)
    year: torch.Tensor  # float (M,), 0 where unknown
    num_ratings: torch.Tensor  # float (M,), in training
    mean: torch.Tensor  # float (M,), see `MovieTable`

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        members, dim = config.ensemble_size, config.member_dim
        self.embedding = nn.Parameter(torch.empty(config.num_movies, members, dim).normal_(std=0.07))
        self.bias = nn.Parameter(torch.zeros(config.num_movies, members))
        num_features = 5
        self.hidden = nn.Linear(dim + num_features + config.raters_dim, config.hidden_dim)
        self.out = nn.Linear(config.hidden_dim + config.raters_dim, members * (dim + 1))
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.dropout = nn.Dropout(config.dropout)
        for name in ("year", "num_ratings", "mean"):
            self.register_buffer(name, torch.zeros(config.num_movies))
        self.register_buffer("raters", torch.zeros(config.num_movies, config.raters_dim))

    @torch.no_grad()
    def set_statistics(self, year: torch.Tensor, num_ratings: torch.Tensor, sum_ratings: torch.Tensor) -> None:
        """Take over what is known of the movies (M): year, 0 if unknown; number and sum of their training ratings,
        the sum in stars above the global mean.

        The biases begin at the shrunk means. The random embeddings shrink where ratings are few, so that chance does
        not speak for a movie; one without training ratings has none, only its features speak for it.
        """
        self.year.copy_(year)
        self.num_ratings.copy_(num_ratings)
        self.mean.copy_(sum_ratings / (num_ratings + MEAN_SHRINK))
        self.bias.copy_((self.mean / self.config.slope).unsqueeze(1).expand_as(self.bias))
        self.embedding.mul_((num_ratings / (num_ratings + CONFIDENCE)).view(-1, 1, 1))

    def forward(self, movie_idx: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return vectors, float (N, E, D), biases, float (N, E), and the embeddings in the vectors, float (N, E, D), of
        distinct movies, int64 (N,).

        The mean of a movie's training stars is no input of the MLP: it contains the very ratings that the step has to
        predict, and without them it would give them away by what is missing from the movie's learned bias.
        """
        config = self.config
        count, year = self.num_ratings[movie_idx], self.year[movie_idx] * config.has("year")
        decades = (year - 1985) / 15 * (year > 0)
        log_count = (count + 1).log() / 3 - 2
        features = torch.stack([decades, decades.square() - 1, (year > 0).float(), log_count, (count + 1).rsqrt()], 1)
        embedding = gather_distinct(self.embedding, movie_idx)  # (N, E, D)
        raters = self.raters.index_select(0, movie_idx) * config.has("raters")
        known = torch.cat([features * config.has("movie_features"), raters], 1)
        hidden = self.dropout(torch.relu(_linear(self.hidden, embedding.mean(1), known)))
        out = _linear(self.out, hidden, raters)
        vectors, bias = out.view(-1, config.ensemble_size, config.member_dim + 1).split([config.member_dim, 1], -1)
        bias = (gather_distinct(self.bias, movie_idx) + bias.squeeze(-1)) * config.has("biases")
        return embedding + vectors, bias, embedding


def _linear(layer: nn.Linear, learned: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Return what a layer makes of inputs side by side, (N, K) and (N, L); without the product that would be the
    gradient of those that are known."""
    of_learned, of_known = layer.weight.split([learned.shape[1], known.shape[1]], 1)
    return torch.addmm(nn.functional.linear(known, of_known, layer.bias), learned, of_learned.T)


def rows_of(vectors: torch.Tensor, bias: torch.Tensor, constant: float) -> torch.Tensor:
    """Return the rows of a `MovieTable`, float (N, E, D + 2), of vectors (N, E, D) and biases (N, E)."""
    return torch.cat([vectors, torch.full_like(bias, constant).unsqueeze(-1), bias.unsqueeze(-1)], -1)
