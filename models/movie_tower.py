"""The tower of movies, and its results: the vectors of all films, or of those of a training step.

Letters: N films, M movies of the data set, B users, H heads in G groups, D coordinates of a head.
"""

from typing import NamedTuple

import torch
from torch import nn

from models.config import ModelConfig
from models.ops.ragged import Pairs, gather_distinct

CONFIDENCE = 20.0  # ratings at which a film's random first embedding has half its size
CONSTANT = 0.5  # coordinate of every film vector, which the user's bias multiplies
MEAN_SHRINK = 5.0  # a mean, of a movie or a user, counts as if there were so many more ratings at the global mean


class Films(NamedTuple):
    """The movies of a step (N), or all (N = M).

    In training the H heads are in G groups, each of which sees a context of its own of every user. There a user is G
    rows, g B + b being user b as group g sees him, and a film's vectors are G rows, n G + g being those of group g.
    """

    table: torch.Tensor  # float (N G, H / G, D + 2): a film's vector, what the user's bias multiplies, the film's bias
    mean: torch.Tensor  # float (M,): of every movie the shrunk mean of the training stars, less the global mean
    place: torch.Tensor | None = None  # int64 (M,): where a movie is among the N; None where they are all
    groups: int = 1  # G

    @property
    def vectors(self) -> torch.Tensor:
        """The vectors alone, float (N G, H / G, D)."""
        return self.table[..., :-2]

    def pairs(self, row: torch.Tensor, movie_idx: torch.Tensor, num_rows: int) -> Pairs:
        """Return which rows of users and which rows of `table` ratings join.

        Args:
            row, movie_idx: int64 (R,), the ratings' users' rows and movies.
            num_rows: of users, G B.
        """
        column = movie_idx if self.place is None else self.place.index_select(0, movie_idx)
        if self.groups > 1:
            column = column * self.groups + row // (num_rows // self.groups)
        return Pairs(row, column, num_rows, *self.table.shape[:2])


class StepFilms(NamedTuple):
    """The movies of a training step (N), as its context and its targets see them."""

    num_ratings: torch.Tensor  # float (N,), in training
    vectors: torch.Tensor  # float (N G, H / G, D), without noise
    seen: Films  # with the noise of the context
    predicted: Films  # with the noise of the targets

    def tables(self) -> list[torch.Tensor]:
        """Return where gradients of the users' part of the step go on into that of the films."""
        return [self.seen.table, self.predicted.table]

    def cut_off(self) -> "StepFilms":
        """Return the same as leaves of a graph of their own: the films' part of it is gone through once a step, however
        many parts the users' is in."""
        seen, predicted = (films._replace(table=films.table.detach().requires_grad_())
                           for films in (self.seen, self.predicted))
        return self._replace(seen=seen, predicted=predicted)

    def size(self, num_targets: torch.Tensor, penalty: float, film_prior: float) -> torch.Tensor:
        """Return the sum over targets and heads of (penalty + film_prior / n_m) |q_m|^2, a scalar, n_m being the
        film's number of training ratings: over an epoch a film pays for its ratings and once for itself, a Gaussian
        prior. `num_targets` is float (N G,)."""
        weight = penalty + film_prior / self.num_ratings.clamp(min=1)
        return self.vectors.square().sum((1, 2)) @ (num_targets * weight.repeat_interleave(self.seen.groups))


class MovieTower(nn.Module):
    """Film vectors from a learned embedding, the release year, and what the training ratings say of the film."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        heads, dim = config.num_heads, config.head_dim
        self.embedding = nn.Parameter(torch.empty(config.num_movies, heads, dim).normal_(std=0.07))
        self.bias = nn.Parameter(torch.zeros(config.num_movies, heads))
        num_features = 5
        self.hidden = nn.Linear(dim + num_features, config.hidden_dim)
        self.out = nn.Linear(config.hidden_dim, heads * (dim + 1))
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.dropout = nn.Dropout(config.dropout)
        self.register_buffer("year", torch.zeros(config.num_movies))  # 0 where unknown
        self.register_buffer("num_ratings", torch.zeros(config.num_movies))  # in training
        self.register_buffer("mean", torch.zeros(config.num_movies))  # shrunk, of their stars less the global mean

    @torch.no_grad()
    def set_statistics(self, year: torch.Tensor, num_ratings: torch.Tensor, sum_ratings: torch.Tensor) -> None:
        """Take over what is known of the movies (M): year, 0 if unknown; number and sum of their training ratings,
        the sum in stars above the global mean.

        The biases begin at the shrunk means. The random embeddings shrink where ratings are few, so that chance does
        not speak for a film; one without training ratings has none, only its features speak for it.
        """
        self.year.copy_(year)
        self.num_ratings.copy_(num_ratings)
        self.mean.copy_(sum_ratings / (num_ratings + MEAN_SHRINK))
        self.bias.copy_((self.mean / self.config.slope).unsqueeze(1).expand_as(self.bias))
        self.embedding *= (num_ratings / (num_ratings + CONFIDENCE)).view(-1, 1, 1)

    def forward(self, movie_idx: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return vectors, float (N, H, D), and biases, float (N, H), of distinct movies, int64 (N,).

        The mean of a film's training stars is no input of the MLP: it contains the very ratings that the step has to
        predict, and without them it would give them away by what is missing from the film's learned bias.
        """
        config = self.config
        count, year = self.num_ratings[movie_idx], self.year[movie_idx] * config.has("year")
        age = (year - 1985) / 15 * (year > 0)
        log_count = (count + 1).log() / 3 - 2
        features = torch.stack([age, age.square() - 1, (year > 0).float(), log_count, (count + 1).rsqrt()], 1)
        features = features * config.has("movie_features")
        own = gather_distinct(self.embedding, movie_idx)  # (N, H, D)
        hidden = torch.relu(self.hidden(torch.cat([own.mean(1), features], 1)))
        out = self.out(self.dropout(hidden)).view(-1, config.num_heads, config.head_dim + 1)  # (N, H, D + 1)
        learned, learned_bias = out.split([config.head_dim, 1], -1)
        bias = (gather_distinct(self.bias, movie_idx) + learned_bias.squeeze(-1)) * config.has("biases")
        return own + learned, bias


def table_of(vectors: torch.Tensor, bias: torch.Tensor, constant: float) -> torch.Tensor:
    """Return the table of `Films`, float (N, H, D + 2), of vectors (N, H, D) and biases (N, H)."""
    return torch.cat([vectors, torch.full_like(bias, constant).unsqueeze(-1), bias.unsqueeze(-1)], -1)
