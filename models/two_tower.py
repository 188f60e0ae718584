"""The two towers: a user's ratings become one vector, a movie another, and a prediction is their dot product.

    p_u = prior(x_u) + solved history       x_u = [user embedding; pooled history; user features]  -> MLP, ReLU
    q_m = embedding + MLP(x_m)              x_m = [movie embedding; release year; rating count]
    score(u, m) = p_u . q_m                 biases are coordinates of the vectors
    stars(u, m) = low + (high - low) sigmoid(score)

Both histories are made of a user's CONTEXT ratings, in training a random part of his ratings that excludes the ones
he is asked to predict. Pooled: |C|^-1/2 sum over j in C of (residual_j w_j + c_j) (Koren 2008, equations 6 and 15).
Solved: the ridge regression of what the prior leaves unexplained on the film vectors q_j (see `ridge_solve`). A user
without an embedding of his own is served by the same tower: his context is enough.

The vectors consist of H heads of D coordinates. Each head is a model of its own, with its own loss and its own noise
on the film vectors; the prediction is the mean of the heads' scores, which is again one dot product.

Letters: B users, R ratings, M movies, N distinct movies of a step, H heads, D coordinates of a head.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import nn

from models.layers import gather_rows, gram, paired_dot, pool_rows, ridge_solve, ridge_solve_rows, unexplained_rows
from models.time import FilmDrift, UserMood, ages, recent

CONFIDENCE = 20.0  # ratings at which a film's random first embedding has half its size
CONSTANT = 0.5  # coordinate of every film vector, which the user's bias multiplies
MEAN_SHRINK = 5.0  # a movie's mean counts as if it had so many more ratings at the global mean
PARTS = ("user_embedding", "pooled_history", "solved_history", "user_features", "year", "movie_features", "biases",
         "drift", "mood")


@dataclass
class ModelConfig:
    """Everything that fixes the shapes and the scale of a model; saved with it."""

    num_users: int
    num_movies: int
    num_days: int  # of the data set
    stars_low: float
    stars_high: float
    stars_mean: float  # of the training ratings
    embedding_dim: int = 128  # H * D
    num_heads: int = 4
    hidden_dim: int = 128
    user_dim: int = 16  # user embedding
    pooled_dim: int = 32
    relevance_dim: int = 0  # of tastes (models/relevance.py); 0: there is no order by relevance
    dropout: float = 0.0  # of hidden units
    without: tuple[str, ...] = ()  # of PARTS, left out to see what they are worth

    @property
    def head_dim(self) -> int:
        """D."""
        return self.embedding_dim // self.num_heads

    def has(self, part: str) -> float:
        """Return 1 for a part of the model that is there, 0 for one that is left out."""
        return float(part not in self.without)

    @property
    def slope(self) -> float:
        """Stars per unit of score where the prediction is the mean: the sigmoid's derivative there."""
        low, high = self.stars_low, self.stars_high
        return max((self.stars_mean - low) * (high - self.stars_mean) / (high - low), 1e-3)


class Context(NamedTuple):
    """Ratings that users' vectors are made of (R), ascending in row."""

    row: torch.Tensor  # int64: which of the users (B) a rating is of
    movie_idx: torch.Tensor  # int64
    stars: torch.Tensor  # float
    day: torch.Tensor  # int64


class Target(NamedTuple):
    """Ratings to be predicted (T), ascending in row."""

    row: torch.Tensor  # int64
    movie_idx: torch.Tensor  # int64
    day: torch.Tensor  # int64


@dataclass
class Films:
    """Vectors of the movies of a step (N), or of all (N = M)."""

    vectors: torch.Tensor  # float (N, H, D)
    bias: torch.Tensor  # float (N, H)
    mean: torch.Tensor  # float (N,): shrunk mean of the training stars, less the global mean
    pooled: torch.Tensor  # float (N, 2 P): what ratings of the film add to a user's pooled history
    drift: torch.Tensor | None  # float (N, PERIODS)
    constant: float = CONSTANT  # what the user's bias multiplies; 0 where biases are left out

    @cached_property
    def extended(self) -> torch.Tensor:
        """The vectors with the coordinate that a user's bias multiplies, float (N, H, D + 1)."""
        return with_constant(self.vectors, self.constant)

    @cached_property
    def with_room(self) -> torch.Tensor:
        """The same with room for a residual, float (N, H, D + 2), as `ridge_solve_rows` wants it."""
        return nn.functional.pad(self.extended, (0, 1))


class StepFilms(NamedTuple):
    """The movies of a training step (N), as its context and its targets see them."""

    place: torch.Tensor  # int64 (M,): where a movie is among them
    num_ratings: torch.Tensor  # float (N,), in training
    vectors: torch.Tensor  # float (N, H, D), without noise
    seen: Films  # with the noise of the context
    predicted: torch.Tensor  # float (N, H, D), with the noise of the targets

    def learned(self) -> list[torch.Tensor]:
        """Return what users' parts of the step send gradients to."""
        seen = self.seen
        return [seen.vectors, self.predicted, seen.bias, seen.pooled, *([] if seen.drift is None else [seen.drift])]

    def cut_off(self) -> "StepFilms":
        """Return the same as leaves of a graph of their own: the films' part of it is gone through once a step, however
        many parts the users' is in."""
        seen, leaf = self.seen, lambda tensor: tensor.detach().requires_grad_()
        films = replace(seen, vectors=leaf(seen.vectors), bias=leaf(seen.bias), pooled=leaf(seen.pooled),
                        drift=None if seen.drift is None else leaf(seen.drift))
        return self._replace(seen=films, predicted=leaf(self.predicted))

    def size(self, num_targets: torch.Tensor, penalty: float, film_prior: float) -> torch.Tensor:
        """Return the sum over targets and heads of (penalty + film_prior / n_m) |q_m|^2, a scalar, n_m being the
        film's number of training ratings: over an epoch a film pays for its ratings and once for itself, a Gaussian
        prior. `num_targets` is float (N,)."""
        per_film = num_targets * (penalty + film_prior / self.num_ratings.clamp(min=1))
        return self.vectors.square().sum((1, 2)) @ per_film


class MovieTower(nn.Module):
    """Film vectors from a learned embedding, the release year, and what the training ratings say of the film."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        heads, dim = config.num_heads, config.head_dim
        self.embedding = nn.Parameter(torch.empty(config.num_movies, heads, dim).normal_(std=0.07))
        self.bias = nn.Parameter(torch.zeros(config.num_movies, heads))
        num_features = 5
        self.hidden = nn.Linear(heads * dim + num_features, config.hidden_dim)
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
        own = gather_rows(self.embedding, movie_idx)  # (N, H, D)
        hidden = torch.relu(self.hidden(torch.cat([own.flatten(1), features], 1)))
        out = self.out(self.dropout(hidden)).view(-1, config.num_heads, config.head_dim + 1)  # (N, H, D + 1)
        bias = (gather_rows(self.bias, movie_idx) + out[..., -1]) * config.has("biases")
        return own + out[..., :-1], bias


class UserTower(nn.Module):
    """User vectors from a user's context ratings, and from an embedding where he has one."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        heads, dim = config.num_heads, config.head_dim
        self.pooled = nn.Parameter(torch.empty(config.num_movies, 2 * config.pooled_dim).normal_(std=0.02))
        self.hidden = nn.Linear(config.user_dim + config.pooled_dim + 3, config.hidden_dim)
        self.out = nn.Linear(config.hidden_dim, heads * (dim + 1))
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.dropout = nn.Dropout(config.dropout)
        # Penalties of the solved history, exp(base) + exp(per_rating) |C|; the last coordinate is the user's bias.
        base, per_rating = torch.full((heads, dim + 1), 0.7), torch.full((heads, dim + 1), 0.02)
        base[:, -1], per_rating[:, -1] = 4.0, 0.001
        self.log_base = nn.Parameter(base.log())
        self.log_per_rating = nn.Parameter(per_rating.log())

    def forward(self, embedding: torch.Tensor, context: Context, films: Films, column: torch.Tensor,
                drift: torch.Tensor, wanted: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return user vectors, float (B, H, D + 1), the last coordinate being the user's bias, and what they leave of
        the context's residuals, float (R, H), of which no gradient is taken.

        Args:
            embedding: float (B, user_dim), zero for a user who has none.
            context: the ratings to make the vectors of.
            films: vectors of the distinct films.
            column: int64 (R,), the place among the films of each context rating's film.
            drift: float (R,), the films' drift at the time.
            wanted: int64, places of the context ratings of which alone is told what is left; None: of all (R).
        """
        prior, residual, penalty, count = self.regression(embedding, context, films, column, drift)
        if self.config.has("solved_history") and (torch.is_grad_enabled() or residual.device.type != "cpu"):
            users, left = ridge_solve(gather_rows(films.extended, column), residual, prior, penalty, context.row, count)
            return users, left if wanted is None else left[wanted]
        users, row = prior, context.row
        if self.config.has("solved_history"):
            users = ridge_solve_rows(films.with_room, column, residual, prior, penalty, count)
        if wanted is not None:
            column, residual, row = (each[wanted] for each in (column, residual, row))
        with torch.no_grad():
            return users, unexplained_rows(films.extended, column, residual, users, row)

    def regression(self, embedding: torch.Tensor, context: Context, films: Films, column: torch.Tensor,
                   drift: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return what the solved history is solved from; arguments as for `forward`.

        Returns:
            The prior vector (B, H, D + 1); residuals (R, H) of the context, in units of score and above the films'
            biases; the penalties (B, H, D + 1); the number of context ratings, int64 (B,).
        """
        config, row, num_users = self.config, context.row, len(embedding)
        count = torch.bincount(row, minlength=num_users)
        size = count.to(context.stars.dtype)
        above_mean = context.stars - config.stars_mean  # (R,)
        surprise = above_mean - films.mean[column]

        def sum_by_user(values: torch.Tensor) -> torch.Tensor:
            return values.new_zeros(num_users, *values.shape[1:]).index_add_(0, row, values)

        mean = sum_by_user(surprise) / (size + MEAN_SHRINK)
        spread = (sum_by_user(surprise.square()) / (size + 1)).sqrt()
        if torch.is_grad_enabled():
            by_residual, by_presence = gather_rows(films.pooled, column).split(config.pooled_dim, 1)
            pooled = sum_by_user(by_residual * (surprise - mean[row]).unsqueeze(1) + by_presence)
        else:
            pooled = pool_rows(films.pooled, column, surprise - mean[row], count)
        features = torch.stack([(size + 1).log() / 2 - 2, mean * 2, spread - 1], 1)
        x = torch.cat([embedding * config.has("user_embedding"),
                       pooled * (size + 1).rsqrt().unsqueeze(1) * config.has("pooled_history"),
                       features * config.has("user_features")], 1)
        hidden = torch.relu(self.hidden(x))
        prior = self.out(self.dropout(hidden)).view(num_users, config.num_heads, config.head_dim + 1)  # (B, H, D + 1)
        if not config.has("biases"):
            prior = prior * (torch.arange(config.head_dim + 1, device=prior.device) < config.head_dim)

        residual = (above_mean / config.slope - drift).unsqueeze(1) - gather_rows(films.bias, column)
        penalty = self.log_base.exp() + self.log_per_rating.exp() * size.view(-1, 1, 1)
        return prior, residual, penalty, count


class TwoTower(nn.Module):
    """Both towers, and the table of user embeddings, which is updated by rows and not by the optimizer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.movie_tower = MovieTower(config)
        self.user_tower = UserTower(config)
        self.drift = FilmDrift(config.num_movies, config.num_days) if config.has("drift") else None
        self.mood = UserMood() if config.has("mood") else None
        self.register_buffer("user_embedding", torch.empty(config.num_users, config.user_dim).normal_(std=0.05))
        spread = config.stars_high - config.stars_low
        share = min(max((config.stars_mean - config.stars_low) / spread, 1e-3), 1 - 1e-3)
        self.register_buffer("offset", torch.tensor(share / (1 - share)).log())  # score of the training mean

    def forward(self, embedding: torch.Tensor, context: Context, target: Target,
                films: StepFilms) -> tuple[torch.Tensor, torch.Tensor]:
        """Predict a step's target ratings from its context ratings, as in training.

        Args:
            embedding: float (B, user_dim), these users' rows of the user table.
            context, target: what is known, and what is asked for.
            films: of the step.

        Returns:
            Scores per head, float (T, H), and the sum over targets and heads of |p_u|^2, a scalar.
        """
        column, target_column, seen = films.place[context.movie_idx], films.place[target.movie_idx], films.seen
        users, unexplained = self.user_tower(embedding, context, seen, column, self._drift(seen, column, context.day))
        score = paired_dot(users, with_constant(films.predicted, seen.constant), target.row, target_column)
        score = score + gather_rows(seen.bias, target_column)
        of_days = self._drift(seen, target_column, target.day) + self._mood(context, unexplained, target, len(users))
        size = users.square().sum((1, 2)) @ torch.bincount(target.row, minlength=len(users)).to(users.dtype)
        return score + of_days.unsqueeze(1) + self.offset, size

    def step_films(self, movie_idx: torch.Tensor, noise: tuple[torch.Tensor, torch.Tensor] | None = None) -> StepFilms:
        """Return the films of a step.

        Args:
            movie_idx: int64 (R,), movies of its ratings.
            noise: factors on the film vectors, float (M, H * D), as the context and as the targets see them: dropout's
                smooth sibling (Srivastava et al. 2014, section 10).
        """
        distinct, place = self._distinct_movies(movie_idx)
        films = self.films(distinct)
        seen, predicted = films, films.vectors
        if noise is not None:
            context_vectors, predicted = (films.vectors * factor.index_select(0, distinct).view_as(films.vectors)
                                          for factor in noise)
            seen = replace(films, vectors=context_vectors)
        return StepFilms(place, self.movie_tower.num_ratings[distinct], films.vectors, seen, predicted)

    def films(self, movie_idx: torch.Tensor | None = None) -> Films:
        """Return the films of distinct movies, int64 (N,); of the whole catalogue where None are given."""
        pooled, drift = self.user_tower.pooled, self.drift.table if self.drift else None
        mean = self.movie_tower.mean
        if movie_idx is None:
            movie_idx = torch.arange(self.config.num_movies, device=self.offset.device)
        else:
            pooled, drift = gather_rows(pooled, movie_idx), None if drift is None else gather_rows(drift, movie_idx)
            mean = mean[movie_idx]
        return Films(*self.movie_tower(movie_idx), mean, pooled, drift, CONSTANT * self.config.has("biases"))

    def predict(self, films: Films, embedding: torch.Tensor, context: Context, target: Target) -> torch.Tensor:
        """Return scores (T,) of ratings on their own days, as `forward` does without noise; arguments as for
        `user_vectors`."""
        users, unexplained = self._users(films, embedding, context)
        score = paired_dot(users, films.extended, target.row, target.movie_idx)
        score = (score + films.bias[target.movie_idx]).mean(1) + self.offset
        drift = self._drift(films, target.movie_idx, target.day)
        return score + drift + self._mood(context, unexplained, target, len(users))

    def movie_vectors(self, day: int, movie_idx: torch.Tensor | None = None,
                      films: Films | None = None) -> torch.Tensor:
        """Return q_m as of a day, float (N, H (D + 2)): per head its coordinates, what the user's bias multiplies, and
        the movie's bias.

        Args:
            day: drift has its value on this day.
            movie_idx: int64 (N,), the movies asked for; None for all.
            films: of these movies, where they are at hand.
        """
        films = self.films(movie_idx) if films is None else films
        every = torch.arange(len(films.vectors), device=self.offset.device)
        drift = self._drift(films, every, torch.full_like(every, day))
        bias = films.bias + self.offset + drift.unsqueeze(1)
        return torch.cat([with_constant(films.vectors), bias.unsqueeze(-1)], -1).flatten(1)

    def user_vectors(self, films: Films, embedding: torch.Tensor, context: Context, day: int) -> torch.Tensor:
        """Return p_u as of a day, float (B, H (D + 2)), such that p_u . q_m is the score.

        Args:
            films: `films()`.
            embedding: float (B, user_dim), zero for a user without one.
            context: what is known of the users.
            day: the same as for `movie_vectors`.
        """
        bias = 0.0
        if self.mood is None:
            users, _ = self._users(films, embedding, context, context.row[:0])
        else:
            age, asked_age = ages(context.row, context.day, context.day.new_full((len(embedding),), day))
            chosen = recent(context.row, age, asked_age)
            users, unexplained = self._users(films, embedding, context, chosen)
            mood = self.mood.at(context.row[chosen], age[chosen], unexplained.mean(1), asked_age)
            bias = mood.view(-1, 1, 1) / CONSTANT
        bias = users[..., -1:] + bias
        return torch.cat([users[..., :-1], bias, torch.ones_like(bias)], -1).flatten(1) / self.config.num_heads

    def _users(self, films: Films, embedding: torch.Tensor, context: Context,
               wanted: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        return self.user_tower(embedding, context, films, context.movie_idx,
                               self._drift(films, context.movie_idx, context.day), wanted)

    def _drift(self, films: Films, column: torch.Tensor, day: torch.Tensor) -> torch.Tensor:
        if films.drift is None:
            return self.offset.new_zeros(len(column))
        return self.drift(films.drift, column, day)

    def _mood(self, context: Context, unexplained: torch.Tensor, target: Target, num_users: int) -> torch.Tensor:
        if self.mood is None:
            return self.offset.new_zeros(len(target.row))
        return self.mood(context.row, context.day, unexplained.mean(1), target.row, target.day, num_users)

    def contributions(self, films: Films, embedding: torch.Tensor, context: Context,
                      target_idx: torch.Tensor) -> torch.Tensor:
        """Return what each context rating of one user adds to the scores of some movies, float (T, R).

        The solved history is linear in the residuals, w = sum over j of A^-1 v_j residual_j, so these are its exact
        parts: their sum over R, and the score without a solved history, is the score.

        Args:
            films: `films()`.
            embedding: float (1, user_dim).
            context: what the user has rated (R).
            target_idx: int64 (T,), movies to explain.
        """
        prior, residual, penalty, count = self.user_tower.regression(
            embedding, context, films, context.movie_idx, self._drift(films, context.movie_idx, context.day))
        vectors = films.extended[context.movie_idx]  # (R, H, D + 1)
        residual = residual - (vectors * prior).sum(-1)  # what the prior leaves unexplained
        system = gram(vectors, context.row, count)[0] + torch.diag_embed(penalty[0])  # (H, D + 1, D + 1)
        targets = films.extended[target_idx].permute(1, 2, 0)  # (H, D + 1, T)
        weight = torch.einsum("rhd,hdt->trh", vectors, torch.linalg.solve(system, targets))
        return (weight * residual).mean(-1)

    def stars(self, score: torch.Tensor) -> torch.Tensor:
        """Turn scores into stars."""
        return self.config.stars_low + (self.config.stars_high - self.config.stars_low) * torch.sigmoid(score)

    def _distinct_movies(self, movie_idx: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the movies that occur, int64 (N,), and each movie's place among them, int64 (M,)."""
        num_movies, device = self.config.num_movies, self.offset.device
        every = torch.arange(num_movies, device=device)
        if device.type != "cpu":  # finding them would make the host wait for the device
            return every, every
        occurs = torch.zeros(num_movies, dtype=torch.bool)
        occurs[movie_idx] = True
        distinct = occurs.nonzero().squeeze(1)
        place = torch.zeros(num_movies, dtype=torch.int64)
        place[distinct] = every[:len(distinct)]
        return distinct, place


def with_constant(vectors: torch.Tensor, constant: float = CONSTANT) -> torch.Tensor:
    """Append the coordinate that a user's bias multiplies: (..., D) -> (..., D + 1)."""
    return torch.cat([vectors, vectors.new_full((*vectors.shape[:-1], 1), constant)], -1)
