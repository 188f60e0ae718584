"""The user tower: a vector from what is known of a user, their context ratings, and from their embedding.

Letters: B users, or G rows a user where the ensemble is in G groups (see `MovieTable`); R context ratings, N movies,
E members (of a group, where there are groups), D coordinates of a member.
"""

from typing import NamedTuple

import torch
from torch import nn

from models.config import ModelConfig
from models.movie_tower import MEAN_SHRINK, MovieTable
from models.ops.array_ops import residuals
from models.ops.ragged import pool, ridge_solve
from models.ops.rating_pattern import counts

NUM_STAR_VALUES = 5


class Context(NamedTuple):
    """Ratings that users' vectors are made of (R), ascending in row, and those of a row in day."""

    row: torch.Tensor  # int64: which of the users (B) gave the rating
    movie_idx: torch.Tensor  # int64
    stars: torch.Tensor  # float
    day: torch.Tensor  # int64


class UserTower(nn.Module):
    """User vectors from a user's context ratings, and from an embedding where they have one."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        members, dim = config.ensemble_size, config.member_dim
        self.pooled = nn.Parameter(torch.empty(config.num_movies, 2 * config.pooled_dim).normal_(std=0.02))
        self.hidden = nn.Linear(config.user_dim + config.pooled_dim + 3, config.hidden_dim)
        self.out = nn.Linear(config.hidden_dim + config.pooled_dim, members * (dim + 1))
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.dropout = nn.Dropout(config.dropout)
        # What the fold-in adds to the stars of 0, 1/4, 2/4, 3/4 and all of the scale, in units of score: that from 4 to
        # 5 stars is as far as from 2 to 3 is only how they are written.
        self.star_values = nn.Parameter(torch.zeros(NUM_STAR_VALUES))
        # Strength of the fold-in's shrinkage, exp(base) + exp(per_rating) |C|; the last coordinate is the user's bias.
        base, per_rating = torch.full((members, dim + 1), 0.7), torch.full((members, dim + 1), 0.02)
        base[:, -1], per_rating[:, -1] = 4.0, 0.001
        self.log_base = nn.Parameter(base.log())
        self.log_per_rating = nn.Parameter(per_rating.log())

    def forward(self, embedding: torch.Tensor, context: Context, movies: MovieTable,
                movie_bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return user vectors, float (B, E, D + 1), the last coordinate being the user's bias, and the residuals of the
        context ratings, float (R, E), of which no gradient is taken.

        Args:
            embedding: float (B, user_dim), zero for a user who has none.
            context: the ratings to make the vectors of.
            movies: at least those of the context.
            movie_bias: float (R,), the movies' biases at the time (models/temporal.py).
        """
        prior, l2, target = self.regression(embedding, context, movies, movie_bias)
        pattern = movies.pattern(context.row, context.movie_idx, len(embedding))
        if not self.config.has("fold_in"):
            with torch.no_grad():
                return prior, residuals(target, prior, movies.rows, pattern)
        if pattern.row.device.type != "cpu" or pattern.count.all():
            return ridge_solve(movies.rows, target, prior, l2, pattern)
        known = pattern.count.nonzero().squeeze(1)  # the solution of others is their prior
        solution, residual = ridge_solve(movies.rows, target, prior.index_select(0, known), l2.index_select(0, known),
                                         pattern.of_rows(known))
        return prior.index_copy(0, known, solution), residual

    def regression(self, embedding: torch.Tensor, context: Context, movies: MovieTable,
                   movie_bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return what the fold-in is solved from; arguments as for `forward`.

        Returns:
            The prior and the strength of the shrinkage to it, both (B, E, D + 1); and the regression targets, (R,):
            ratings above the mean in units of score, less the movies' biases at the time.
        """
        config, row, num_users = self.config, context.row, len(embedding)
        count = counts(row, num_users).to(context.stars.dtype)
        above_mean = context.stars - config.stars_mean  # (R,)
        surprise = (above_mean - movies.mean.index_select(0, context.movie_idx)) / config.unit

        def sum_by_user(values: torch.Tensor) -> torch.Tensor:
            return values.new_zeros(num_users).index_add_(0, row, values)

        mean = sum_by_user(surprise) / (count + MEAN_SHRINK)
        spread = (sum_by_user(surprise.square()) / (count + 1)).sqrt()
        pooled = pool(movies.pooled, surprise - mean.index_select(0, row), row, movies.indices(context.movie_idx),
                      num_users)
        pooled = pooled * (count + 1).rsqrt().unsqueeze(1) * config.has("pooled_history")
        features = torch.stack([(count + 1).log() / 2 - 2, mean * 2, spread - 1], 1)
        x = torch.cat([embedding * config.has("user_embedding"), pooled, features * config.has("user_features")], 1)
        hidden = self.dropout(torch.relu(self.hidden(x)))
        prior = self._prior(torch.cat([hidden, pooled], 1), movies)
        if not config.has("biases"):
            prior = prior * (torch.arange(config.member_dim + 1, device=prior.device) < config.member_dim)
        members, count = config.ensemble_size // movies.groups, count.view(-1, 1, 1)
        base, per_rating = self.log_base.exp(), self.log_per_rating.exp()
        l2 = torch.cat([base[group * members:][:members] + per_rating[group * members:][:members] * of_group
                        for group, of_group in enumerate(_by_group(count, movies))])
        return prior, l2, above_mean / config.slope + self._star_value(context.stars) - movie_bias

    def _star_value(self, stars: torch.Tensor) -> torch.Tensor:
        """Return `star_values` at stars, float (R,), on straight lines between them."""
        position = (stars - self.config.stars_low) / self.config.unit
        knots = torch.arange(NUM_STAR_VALUES, device=stars.device)
        return (1 - (position.unsqueeze(1) - knots).abs()).clamp(min=0) @ self.star_values

    def _prior(self, hidden: torch.Tensor, movies: MovieTable) -> torch.Tensor:
        """Return the second layer's output of each row for the members of its group (see `MovieTable`), float
        (B, E, D + 1)."""
        members, dim = self.config.ensemble_size // movies.groups, self.config.member_dim + 1
        by_group = zip(_by_group(hidden, movies), self.out.weight.split(members * dim),
                       self.out.bias.split(members * dim), strict=True)
        return torch.cat([nn.functional.linear(*of_group) for of_group in by_group]).view(len(hidden), members, dim)


def _by_group(rows: torch.Tensor, movies: MovieTable) -> tuple[torch.Tensor, ...]:
    """Divide the users' rows by groups of members."""
    second = movies.second_group(len(rows))
    return (rows,) if movies.groups == 1 else (rows[:second], rows[second:])
