"""The two towers: a user's ratings become one vector, a movie another, and a prediction is their dot product.

    p_u = prior(x_u) + solved history       x_u = [user embedding; pooled history; user features]  -> MLP, ReLU
    q_m = embedding + MLP(x_m)              x_m = [movie embedding, mean of heads; release year; rating count]
    score(u, m) = p_u . q_m                 biases are coordinates of the vectors
    stars(u, m) = low + (high - low) sigmoid(score)

Both histories are made of a user's CONTEXT ratings, in training a random part of his ratings that excludes the ones
he is asked to predict. Pooled: (|C| + 1)^-1/2 sum over j in C of (residual_j w_j + c_j) (Koren 2008, equations 6 and
15). Solved: the ridge regression of what the prior leaves unexplained on the film vectors q_j (see `ridge_solve`). A
user without an embedding of his own is served by the same tower: his context is enough.

The vectors consist of H heads of D coordinates. Each head is a model of its own, with its own loss and its own noise
on the film vectors, and what is context for half of them is target for the others; the prediction is the mean of the
heads' scores, which is again one dot product.

Letters: B users, R ratings, T targets, M movies, N distinct movies of a step, H heads in G groups, D coordinates of a
head.
"""

from typing import NamedTuple

import torch
from torch import nn

from models.config import ModelConfig
from models.movie_tower import CONSTANT, Films, MovieTower, StepFilms, table_of
from models.ops.ragged import normal_equations, paired_dot, unexplained, with_one
from models.temporal import FilmDrift, UserMood
from models.user_tower import Context, UserTower

FILMS_PER_BLOCK = 2048  # whose hidden units are in memory at once


class Target(NamedTuple):
    """Ratings to be predicted (T), ascending in row."""

    row: torch.Tensor  # int64
    movie_idx: torch.Tensor  # int64
    day: torch.Tensor  # int64


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
                films: StepFilms) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Predict a step's target ratings from its context ratings, as in training.

        Args:
            embedding: float (G B, user_dim), these users' rows of the user table, once for every group of heads.
            context, target: what is known, and what is asked for, by group and user.
            films: of the step.

        Returns:
            Scores per head of a group, float (T, H / G); the sum over targets and heads of |p_u|^2, a scalar; and the
            number of targets by film and group, float (N G,).
        """
        users, left = self._users(films.seen, embedding, context)
        pairs = films.predicted.pairs(target.row, target.movie_idx, len(users))
        score = paired_dot(with_one(users), films.predicted.table, pairs)
        of_days = self._drift(target.movie_idx, target.day)
        of_days = of_days + self._user_on(context, left, target.row, target.day, len(users))
        size = users.square().sum((1, 2)) @ pairs.count.to(users.dtype)
        return score + of_days.unsqueeze(1) + self.offset, size, pairs.film_count.to(users.dtype)

    def step_films(self, movie_idx: torch.Tensor, noise: tuple[torch.Tensor, torch.Tensor] | None = None,
                   groups: int = 1) -> StepFilms:
        """Return the films of a step.

        Args:
            movie_idx: int64 (R,), movies of its ratings.
            noise: factors on the film vectors, float (M, H * D), as the context and as the targets see them: dropout's
                smooth sibling (Srivastava et al. 2014, section 10).
            groups: G, of heads.
        """
        distinct, place = self._distinct_movies(movie_idx)
        vectors, bias = self.movie_tower(distinct)
        shape = (len(distinct) * groups, self.config.num_heads // groups)
        vectors, bias = vectors.view(*shape, self.config.head_dim), bias.view(shape)

        def films(vectors: torch.Tensor) -> Films:
            return Films(table_of(vectors, bias, self._constant), self.movie_tower.mean, place, groups)

        both = [films(vectors if noise is None else vectors * noise[k].index_select(0, distinct).view_as(vectors))
                for k in range(2)]
        return StepFilms(self.movie_tower.num_ratings[distinct], vectors, *both)

    def films(self) -> Films:
        """Return the films of the whole catalogue."""
        config = self.config
        table = self.offset.new_empty(config.num_movies, config.num_heads, config.head_dim + 2)
        for begin in range(0, config.num_movies, FILMS_PER_BLOCK):
            end = min(begin + FILMS_PER_BLOCK, config.num_movies)
            movie_idx = torch.arange(begin, end, device=self.offset.device)
            table[begin:end] = table_of(*self.movie_tower(movie_idx), self._constant)
        return Films(table, self.movie_tower.mean)

    def predict(self, films: Films, embedding: torch.Tensor, context: Context, target: Target) -> torch.Tensor:
        """Return scores (T,) of ratings on their own days, as `forward` does without noise; arguments as for
        `user_vectors`."""
        users, left = self._users(films, embedding, context)
        pairs = films.pairs(target.row, target.movie_idx, len(users))
        score = paired_dot(with_one(users), films.table, pairs).mean(1) + self.offset
        score = score + self._drift(target.movie_idx, target.day)
        return score + self._user_on(context, left, target.row, target.day, len(users))

    def movie_vectors(self, day: int, movie_idx: torch.Tensor | None = None,
                      films: Films | None = None) -> torch.Tensor:
        """Return q_m as of a day, float (N, H (D + 2)): per head its coordinates, what the user's bias multiplies, and
        the movie's bias.

        Args:
            day: the drift has its values on this day.
            movie_idx: int64 (N,), the distinct movies asked for; None for all.
            films: `films()`, where they are at hand and all are asked for.
        """
        if movie_idx is None:
            movie_idx = torch.arange(self.config.num_movies, device=self.offset.device)
        if films is None:
            table = table_of(*self.movie_tower(movie_idx), CONSTANT)
        else:
            table = films.table.clone()
            table[..., -2] = CONSTANT
        table[..., -1] += (self.offset + self._drift(movie_idx, torch.full_like(movie_idx, day))).unsqueeze(1)
        return table.flatten(1)

    def user_vectors(self, films: Films, embedding: torch.Tensor, context: Context, day: int) -> torch.Tensor:
        """Return p_u as of a day, float (B, H (D + 2)), such that p_u . q_m is the score.

        Args:
            films: `films()`.
            embedding: float (B, user_dim), zero for a user without one.
            context: what is known of the users.
            day: the same as for `movie_vectors`.
        """
        users, left = self._users(films, embedding, context)
        row = torch.arange(len(embedding), device=embedding.device)
        of_day = self._user_on(context, left, row, torch.full_like(row, day), len(embedding))
        bias = users[..., -1:] + of_day.view(-1, 1, 1) / CONSTANT
        return torch.cat([users[..., :-1], bias, torch.ones_like(bias)], -1).flatten(1) / self.config.num_heads

    @property
    def _constant(self) -> float:
        """What a user's bias multiplies."""
        return CONSTANT * self.config.has("biases")

    def _users(self, films: Films, embedding: torch.Tensor, context: Context) -> tuple[torch.Tensor, torch.Tensor]:
        return self.user_tower(embedding, context, films, self._drift(context.movie_idx, context.day))

    def _drift(self, movie_idx: torch.Tensor, day: torch.Tensor) -> torch.Tensor:
        return self.offset.new_zeros(len(day)) if self.drift is None else self.drift(movie_idx, day)

    def _user_on(self, context: Context, left: torch.Tensor, row: torch.Tensor, day: torch.Tensor,
                 num_users: int) -> torch.Tensor:
        """Return what the days of questions add, whatever the movies, float (T,); row and day int64 (T,), of each the
        user and the day."""
        score = self.offset.new_zeros(len(row))
        if self.mood is not None:
            score = score + self.mood(context.row, context.day, left.mean(1), row, day, num_users)
        return score

    @torch.no_grad()
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
        if not self.config.has("solved_history"):
            return self.offset.new_zeros(len(target_idx), len(context.row))
        drift = self._drift(context.movie_idx, context.day)
        prior, penalty, wanted = self.user_tower.regression(embedding, context, films, drift)
        pairs, rows = films.pairs(context.row, context.movie_idx, 1), films.table[context.movie_idx]
        left = unexplained(wanted, prior, films.table, pairs)  # by the prior, (R, H)
        system = normal_equations(films.table, wanted, pairs)[0][0] + torch.diag_embed(penalty[0])
        targets = films.table[target_idx, :, :-1].permute(1, 2, 0)  # (H, D + 1, T)
        weight = torch.einsum("rhd,hdt->trh", rows[..., :-1], torch.linalg.solve(system, targets))
        return (weight * left).mean(-1)

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
