"""The two towers: a user's ratings become one vector, a movie another, and a prediction is their dot product.

    x_u = [user embedding; pooled history; user features]       -> MLP, ReLU, + W (pooled history) -> prior
    p_u = fold-in of the context ratings, shrunk to the prior
    x_m = [movie embedding, mean of the ensemble; release year; number of ratings; who rated it]
    q_m = movie embedding + MLP(x_m) + W (who rated it)
    score(u, m) = p_u . q_m                                     biases are coordinates of the two vectors
    stars(u, m) = low + (high - low) sigmoid(score)             in training; models/stars_link.py refines it

recommending/one_user.py is the user tower for a single person, in NumPy: read it first.

Pooled history and fold-in are made of a user's CONTEXT ratings C. In training these are a random part of their ratings,
mostly about half, and the others are the targets to predict. Pooled history: (|C| + 1)^-1/2 sum over j in C of
(residual_j w_j + c_j) (Koren 2008, equations 6 and 15). Fold-in: see `ridge_solve`. A user without an embedding is
served by the same tower: their context is enough.

The vectors consist of E members of D coordinates, an ensemble. Each member is a model of its own, with its own loss,
and what is context for half of them is target for the others. The prediction is the mean of their scores, which is
again one dot product.

Letters: B users, R ratings, T targets, M movies, N distinct movies of a step, E members in G groups, D coordinates of a
member.
"""

from typing import NamedTuple

import torch
from torch import nn

from models.config import ModelConfig
from models.movie_tower import CONSTANT, MovieTable, MovieTower, StepMovies, rows_of
from models.ops.array_ops import residuals, ridge, with_one
from models.ops.ragged import gather_distinct, paired_dot
from models.ops.rating_pattern import counts, distinct, positions
from models.temporal import MovieBiasOverTime, RecentUserBias
from models.user_tower import Context, UserTower

MOVIES_PER_BLOCK = 2048  # whose hidden units are in memory at once
TARGETS_AT_A_TIME = 2048  # whose users' factorised systems are in memory at once
ROWS_AT_A_TIME = 2**16  # of users, which are drawn for other ranks; a multiple of 16, as PyTorch draws numbers


class Target(NamedTuple):
    """Ratings to be predicted (T), ascending in row."""

    row: torch.Tensor  # int64
    movie_idx: torch.Tensor  # int64
    day: torch.Tensor  # int64


class TwoTower(nn.Module):
    """Both towers, and the table of user embeddings, which is updated by rows and not by the optimizer.

    Of many ranks each has the rows of its own users alone. Where a user's row is, `positions` knows, and nobody else.
    """

    user_embedding: torch.Tensor  # float (U, user_dim), of the users first_user and following
    offset: torch.Tensor  # score of the training mean

    def __init__(self, config: ModelConfig, owned: tuple[int, int] | None = None) -> None:
        """Make new towers; `owned` is the first user of this rank and the one after its last, None for all users."""
        super().__init__()
        self.config = config
        self.movie_tower = MovieTower(config)
        self.user_tower = UserTower(config)
        self.movie_bias_over_time = (MovieBiasOverTime(config.num_movies, config.num_days)
                                     if config.has("movie_bias_over_time") else None)
        self.recent_user_bias = RecentUserBias(config.num_days) if config.has("recent_user_bias") else None
        self.first_user, last_user = owned or (0, config.num_users)
        self._draw_rows(self.first_user)  # what others begin with: it makes own rows the same on any number of ranks
        self.register_buffer("user_embedding", self._draw_rows(last_user - self.first_user, keep=True))
        self._draw_rows(config.num_users - last_user)
        stars_range = config.stars_high - config.stars_low
        height = min(max((config.stars_mean - config.stars_low) / stars_range, 1e-3), 1 - 1e-3)
        self.register_buffer("offset", torch.tensor(height / (1 - height)).log())

    def forward(self, embedding: torch.Tensor, context: Context, target: Target,
                movies: MovieTable) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Predict a step's target ratings from its context ratings, as in training.

        Args:
            embedding: float (rows, user_dim), of the users' rows, see `MovieTable`.
            context, target: what is known, and what is asked for, by group and user.
            movies: of the step.

        Returns:
            Scores of the members of a group, float (T, E / G); the sum over targets and members of |p_u|^2, a scalar;
            and the number of targets by movie and group, float (N G,).
        """
        users, residual = self._users(movies, embedding, context)
        pattern = movies.pattern(target.row, target.movie_idx, len(users))
        score = paired_dot(with_one(users), movies.rows, pattern)
        of_day = self._movie_bias_over_time(movies, target.movie_idx, target.day)
        of_day = of_day + self._recent_user_bias(context, residual, target.row, target.day, len(users))
        squared_norms = users.square().sum((1, 2)) @ pattern.count.to(users.dtype)
        return score + of_day.unsqueeze(1) + self.offset, squared_norms, pattern.movie_count.to(users.dtype)

    def positions(self, user_idx: torch.Tensor) -> torch.Tensor:
        """Return the rows of users in the table of this rank, int64 (B,)."""
        return user_idx - self.first_user if self.first_user else user_idx

    def embedding_of(self, user_idx: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of users of this rank, int64 (B,); float (B, user_dim)."""
        return self.user_embedding[self.positions(user_idx)]

    def own_rows(self, table: torch.Tensor) -> torch.Tensor:
        """Return the rows of this rank's users of a table that has those of all; raise ValueError if it has not."""
        if len(table) != self.config.num_users:
            raise ValueError(f"{len(table)} rows of {self.config.num_users} users")
        return table[self.first_user:self.first_user + len(self.user_embedding)]

    def keep_users(self, first: int, last: int) -> None:
        """Keep of the rows of all users those of a range."""
        self.first_user, self.user_embedding = first, self.user_embedding[first:last]

    def _draw_rows(self, number: int, keep: bool = False) -> torch.Tensor:
        """Draw the embeddings that users begin with; return those of so many users, or, unless they are kept, none."""
        if keep:
            return torch.empty(number, self.config.user_dim).normal_(std=0.05)
        for size in [ROWS_AT_A_TIME] * (number // ROWS_AT_A_TIME) + [number % ROWS_AT_A_TIME]:
            torch.empty(size, self.config.user_dim).normal_(std=0.05)
        return torch.empty(0)

    def step_movies(self, movie_idx: torch.Tensor, groups: int = 1) -> StepMovies:
        """Return the movies of a step.

        Args:
            movie_idx: int64 (N,), distinct, at least those of its ratings; see `distinct_movies`.
            groups: G, of members.
        """
        num_movies, over_time = self.config.num_movies, self.movie_bias_over_time
        position = None if len(movie_idx) == num_movies else positions(movie_idx, num_movies)
        shape = (len(movie_idx) * groups, self.config.ensemble_size // groups)
        vectors, bias, embedding = (tensor.view(*shape, *tensor.shape[2:]) for tensor in self.movie_tower(movie_idx))
        pooled = gather_distinct(self.user_tower.pooled, movie_idx)
        biases = None if over_time is None else gather_distinct(over_time.table, movie_idx)
        rows = rows_of(vectors, bias, self._constant)
        table = MovieTable(rows, self.movie_tower.mean, pooled, biases, position, groups)
        return StepMovies(self.movie_tower.num_ratings[movie_idx], embedding, table)

    def movie_table(self) -> MovieTable:
        """Return the vectors of the whole catalogue."""
        config = self.config
        rows = self.offset.new_empty(config.num_movies, config.ensemble_size, config.member_dim + 2)
        for block in torch.arange(config.num_movies, device=self.offset.device).split(MOVIES_PER_BLOCK):
            vectors, bias, _ = self.movie_tower(block)
            rows[block] = rows_of(vectors, bias, self._constant)
        over_time = self.movie_bias_over_time
        return MovieTable(rows, self.movie_tower.mean, self.user_tower.pooled,
                          None if over_time is None else over_time.table)

    def predict(self, movies: MovieTable, embedding: torch.Tensor, context: Context, target: Target) -> torch.Tensor:
        """Return scores (T,) of ratings on their own days, as `forward` does; arguments as for `user_vectors`."""
        users, residual = self._users(movies, embedding, context)
        pattern = movies.pattern(target.row, target.movie_idx, len(users))
        score = paired_dot(with_one(users), movies.rows, pattern).mean(1) + self.offset
        score = score + self._movie_bias_over_time(movies, target.movie_idx, target.day)
        return score + self._recent_user_bias(context, residual, target.row, target.day, len(users))

    def uncertainty(self, movies: MovieTable, embedding: torch.Tensor, context: Context,
                    target: Target) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return how unsure predictions are; arguments as for `predict`.

        Returns:
            The sum of the squared residuals that the user's vector leaves of their context ratings, and the number of
            these; and the variance of the score, q_m' A^-1 q_m, the mean over the members, which the posterior of the
            fold-in has where ratings vary by 1 around it (A: see `ridge_solve`); 0 without a fold-in. Each float (T,).
        """
        num_users, of_day = len(embedding), self._movie_bias_over_time(movies, context.movie_idx, context.day)
        prior, l2, regression_target = self.user_tower.regression(embedding, context, movies, of_day)
        pattern = movies.pattern(context.row, context.movie_idx, num_users)
        _, residual, factor = ridge(movies.rows, regression_target, prior, l2, pattern)
        if not self.config.has("fold_in"):
            residual = residuals(regression_target, prior, movies.rows, pattern)
        variance = [torch.linalg.solve_triangular(factor[row], movies.rows[movie, :, :-1].unsqueeze(-1), upper=False)
                    .square().sum((-3, -2, -1)) / movies.rows.shape[1]
                    for row, movie in zip(target.row.split(TARGETS_AT_A_TIME),
                                          movies.indices(target.movie_idx).split(TARGETS_AT_A_TIME), strict=True)]
        squared = residual.new_zeros(num_users).index_add_(0, context.row, residual.mean(1).square())
        count = counts(context.row, num_users).to(squared.dtype)
        return squared[target.row], count[target.row], torch.cat(variance) * self.config.has("fold_in")

    def movie_vectors(self, day: int, movie_idx: torch.Tensor | None = None,
                      movies: MovieTable | None = None) -> torch.Tensor:
        """Return q_m as of a day, float (N, E (D + 2)): of each member its coordinates, what the user's bias
        multiplies, and the movie's bias.

        Args:
            day: on which the biases over time are taken.
            movie_idx: int64 (N,), the distinct movies asked for; None for all.
            movies: `movie_table()`, where it is at hand and all are asked for.
        """
        if movie_idx is None:
            movie_idx = torch.arange(self.config.num_movies, device=self.offset.device)
        if movies is None:
            vectors, bias, _ = self.movie_tower(movie_idx)
            rows = rows_of(vectors, bias, CONSTANT)
        else:
            rows = movies.rows.clone()
            rows[..., -2] = CONSTANT
        rows[..., -1] += self.offset
        if self.movie_bias_over_time is not None:
            rows[..., -1] += self.movie_bias_over_time.on_day(movie_idx, day).unsqueeze(1)
        return rows.flatten(1)

    def user_vectors(self, movies: MovieTable, embedding: torch.Tensor, context: Context, day: int) -> torch.Tensor:
        """Return p_u as of a day, float (B, E (D + 2)), such that p_u . q_m is the score.

        Args:
            movies: `movie_table()`.
            embedding: float (B, user_dim), zero for a user without one.
            context: what is known of the users.
            day: the same as for `movie_vectors`.
        """
        users, residual = self._users(movies, embedding, context)
        row = torch.arange(len(embedding), device=embedding.device)
        of_day = self._recent_user_bias(context, residual, row, torch.full_like(row, day), len(embedding))
        bias = users[..., -1:] + of_day.view(-1, 1, 1) / CONSTANT
        return torch.cat([users[..., :-1], bias, torch.ones_like(bias)], -1).flatten(1) / self.config.ensemble_size

    def stars(self, score: torch.Tensor) -> torch.Tensor:
        """Turn scores into stars, as the loss of training does."""
        return self.config.stars_low + (self.config.stars_high - self.config.stars_low) * torch.sigmoid(score)

    @property
    def _constant(self) -> float:
        """What a user's bias multiplies."""
        return CONSTANT * self.config.has("biases")

    def _users(self, movies: MovieTable, embedding: torch.Tensor,
               context: Context) -> tuple[torch.Tensor, torch.Tensor]:
        of_day = self._movie_bias_over_time(movies, context.movie_idx, context.day)
        return self.user_tower(embedding, context, movies, of_day)

    def _movie_bias_over_time(self, movies: MovieTable, movie_idx: torch.Tensor, day: torch.Tensor) -> torch.Tensor:
        """Return movies' biases over time, float (R,)."""
        if self.movie_bias_over_time is None or movies.over_time is None:
            return self.offset.new_zeros(len(day))
        return self.movie_bias_over_time(movies.over_time, movies.indices(movie_idx), day)

    def _recent_user_bias(self, context: Context, residual: torch.Tensor, row: torch.Tensor, day: torch.Tensor,
                   num_users: int) -> torch.Tensor:
        """Return the recent biases of users, float (T,), of each question's user and day, int64 (T,)."""
        if self.recent_user_bias is None:
            return self.offset.new_zeros(len(row))
        return self.recent_user_bias(context.row, context.day, residual.mean(1), row, day, num_users)

    def distinct_movies(self, movie_idx: torch.Tensor) -> torch.Tensor:
        """Return the movies that occur in int64 (R,), ascending, int64 (N,); all of them on a GPU, where finding them
        would make the host wait."""
        return distinct(movie_idx, self.config.num_movies)
