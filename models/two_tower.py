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

from dataclasses import asdict, dataclass

import torch
from torch import nn

from models.layers import gather_rows, gram, paired_dot, pool_rows, ridge_solve, ridge_solve_rows

CONFIDENCE = 20.0  # ratings at which a film's random first embedding has half its size
MEAN_SHRINK = 5.0  # a movie's mean counts as if it had so many more ratings at the global mean


@dataclass
class ModelConfig:
    """Everything that fixes the shapes and the scale of a model; saved with it."""

    num_users: int
    num_movies: int
    stars_low: float
    stars_high: float
    stars_mean: float  # of the training ratings
    embedding_dim: int = 128  # H * D
    num_heads: int = 4
    hidden_dim: int = 128
    user_dim: int = 16  # user embedding
    pooled_dim: int = 32
    dropout: float = 0.0  # of hidden units

    @property
    def head_dim(self) -> int:
        """D."""
        return self.embedding_dim // self.num_heads

    @property
    def slope(self) -> float:
        """Stars per unit of score where the prediction is the mean: the sigmoid's derivative there."""
        low, high = self.stars_low, self.stars_high
        return max((self.stars_mean - low) * (high - self.stars_mean) / (high - low), 1e-3)


@dataclass
class Films:
    """Vectors of the movies of a step (N), or of all (N = M)."""

    vectors: torch.Tensor  # float (N, H, D)
    bias: torch.Tensor  # float (N, H)
    mean: torch.Tensor  # float (N,): shrunk mean of the training stars, less the global mean
    rows: torch.Tensor | None = None  # of the whole catalogue: `movie_vectors`, float (M, H, D + 2)


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

    def forward(self, movie_idx: torch.Tensor) -> Films:
        """Return the films (N) of distinct movies, int64 (N,).

        The mean of a film's training stars is no input of the MLP: it contains the very ratings that the step has to
        predict, and without them it would give them away by what is missing from the film's learned bias.
        """
        count, year = self.num_ratings[movie_idx], self.year[movie_idx]
        age = (year - 1985) / 15 * (year > 0)
        log_count = (count + 1).log() / 3 - 2
        features = torch.stack([age, age.square() - 1, (year > 0).float(), log_count, (count + 1).rsqrt()], 1)
        own = gather_rows(self.embedding, movie_idx)  # (N, H, D)
        hidden = torch.relu(self.hidden(torch.cat([own.flatten(1), features], 1)))
        out = self.out(self.dropout(hidden)).view(-1, self.config.num_heads, self.config.head_dim + 1)  # (N, H, D + 1)
        return Films(own + out[..., :-1], gather_rows(self.bias, movie_idx) + out[..., -1], self.mean[movie_idx])


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

    def forward(self, embedding: torch.Tensor, row: torch.Tensor, stars: torch.Tensor, films: Films,
                column: torch.Tensor, movie_idx: torch.Tensor) -> torch.Tensor:
        """Return user vectors, float (B, H, D + 1); the last coordinate is the user's bias.

        Args:
            embedding: float (B, user_dim), zero for a user who has none.
            row, stars: user and stars of each context rating, (R,), ascending in row.
            films: vectors of the distinct films.
            column, movie_idx: int64 (R,), the place among the films of each context rating's film, and which it is.
        """
        prior, residual, penalty, count = self.regression(embedding, row, stars, films, column, movie_idx)
        if films.rows is not None and residual.device.type == "cpu" and not torch.is_grad_enabled():
            return ridge_solve_rows(films.rows, column, residual, prior, penalty, count)
        vectors = gather_rows(with_constant(films.vectors), column)  # (R, H, D + 1)
        return ridge_solve(vectors, residual, prior, penalty, row, count)

    def regression(self, embedding: torch.Tensor, row: torch.Tensor, stars: torch.Tensor, films: Films,
                   column: torch.Tensor, movie_idx: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return what the solved history is solved from; arguments as for `forward`.

        Returns:
            The prior vector (B, H, D + 1); residuals (R, H) of the context, in units of score and above the films'
            biases; the penalties (B, H, D + 1); the number of context ratings, int64 (B,).
        """
        config = self.config
        num_users = len(embedding)
        count = torch.bincount(row, minlength=num_users)
        size = count.to(stars.dtype)
        above_mean = stars - config.stars_mean  # (R,)
        surprise = above_mean - films.mean[column]

        def sum_by_user(values: torch.Tensor) -> torch.Tensor:
            return values.new_zeros(num_users, *values.shape[1:]).index_add_(0, row, values)

        mean = sum_by_user(surprise) / (size + MEAN_SHRINK)
        spread = (sum_by_user(surprise.square()) / (size + 1)).sqrt()
        if torch.is_grad_enabled():
            by_residual, by_presence = gather_rows(self.pooled, movie_idx).split(config.pooled_dim, 1)
            pooled = sum_by_user(by_residual * (surprise - mean[row]).unsqueeze(1) + by_presence)
        else:
            pooled = pool_rows(self.pooled, movie_idx, surprise - mean[row], count)
        features = torch.stack([(size + 1).log() / 2 - 2, mean * 2, spread - 1], 1)
        x = torch.cat([embedding, pooled * (size + 1).rsqrt().unsqueeze(1), features], 1)
        hidden = torch.relu(self.hidden(x))
        prior = self.out(self.dropout(hidden)).view(num_users, config.num_heads, config.head_dim + 1)  # (B, H, D + 1)

        residual = (above_mean / config.slope).unsqueeze(1) - gather_rows(films.bias, column)
        penalty = self.log_base.exp() + self.log_per_rating.exp() * size.view(-1, 1, 1)
        return prior, residual, penalty, count


class TwoTower(nn.Module):
    """Both towers, and the table of user embeddings, which is updated by rows and not by the optimizer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.movie_tower = MovieTower(config)
        self.user_tower = UserTower(config)
        self.register_buffer("user_embedding", torch.empty(config.num_users, config.user_dim).normal_(std=0.05))
        spread = config.stars_high - config.stars_low
        share = min(max((config.stars_mean - config.stars_low) / spread, 1e-3), 1 - 1e-3)
        self.register_buffer("offset", torch.tensor(share / (1 - share)).log())  # score of the training mean

    def forward(self, embedding: torch.Tensor, context: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
                target: tuple[torch.Tensor, torch.Tensor], noise: tuple[torch.Tensor, torch.Tensor] | None = None,
                penalty: float = 0.0, film_prior: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
        """Predict a step's target ratings from its context ratings, as in training.

        Args:
            embedding: float (B, user_dim), this step's rows of the user table.
            context, target: row int64, movie_idx int64 and, of the context, stars float; ascending in row.
            noise: factors on the film vectors, float (M, H * D), as the context and as the targets see them: dropout's
                smooth sibling (Srivastava et al. 2014, section 10).
            penalty, film_prior: see returns.

        Returns:
            Scores per head, float (T, H), of the T targets; and, a scalar, the sum over targets and heads of
            penalty * |p_u|^2 + (penalty + film_prior / n_m) * |q_m|^2, n_m being the film's number of training
            ratings: over an epoch a film pays for its ratings and once for itself, a Gaussian prior.
        """
        (row, movie_idx, stars), (target_row, target_movie) = context, target
        distinct, column_of = self._distinct_movies(movie_idx, target_movie)
        column, target_column = column_of[movie_idx], column_of[target_movie]
        num_targets = torch.bincount(target_column, minlength=len(distinct)).float()
        films = self.movie_tower(distinct)
        seen, predicted = films.vectors, films.vectors
        if noise is not None:
            seen, predicted = (films.vectors * factor[distinct].view_as(films.vectors) for factor in noise)
        users = self.user_tower(embedding, row, stars, Films(seen, films.bias, films.mean), column,
                                movie_idx)
        score = paired_dot(users, with_constant(predicted), target_row, target_column)
        score = score + gather_rows(films.bias, target_column)
        per_user = penalty * torch.bincount(target_row, minlength=len(users))
        per_film = num_targets * (penalty + film_prior / self.movie_tower.num_ratings[distinct].clamp(min=1))
        size = users.square().sum((1, 2)) @ per_user + films.vectors.square().sum((1, 2)) @ per_film
        return score + self.offset, size

    def movie_vectors(self) -> torch.Tensor:
        """Return q_m of all movies, float (M, H (D + 2)): per head its coordinates, the user's bias, the movie's."""
        return self.films().rows.flatten(1)

    def films(self) -> Films:
        """Return the films of the whole catalogue."""
        films = self.movie_tower(torch.arange(self.config.num_movies, device=self.offset.device))
        rows = torch.cat([with_constant(films.vectors), (films.bias + self.offset).unsqueeze(-1)], -1)
        return Films(rows[..., :-2], films.bias, films.mean, rows)

    def user_vectors(self, films: Films, embedding: torch.Tensor, row: torch.Tensor, movie_idx: torch.Tensor,
                     stars: torch.Tensor) -> torch.Tensor:
        """Return p_u, float (B, H (D + 2)), such that p_u . q_m is the score.

        Args:
            films: `films()`.
            embedding: float (B, user_dim), zero for a user without one.
            row, movie_idx, stars: context ratings (R,), ascending in row, 0 <= row < B.
        """
        users = self.user_tower(embedding, row, stars, films, movie_idx, movie_idx)
        one = users.new_ones(*users.shape[:-1], 1)
        return torch.cat([users, one], -1).flatten(1) / self.config.num_heads

    def contributions(self, films: Films, embedding: torch.Tensor, movie_idx: torch.Tensor, stars: torch.Tensor,
                      target_idx: torch.Tensor) -> torch.Tensor:
        """Return what each context rating of one user adds to the scores of some movies, float (T, R).

        The solved history is linear in the residuals, w = sum over j of A^-1 v_j residual_j, so these are its exact
        parts: their sum over R, and the score without a solved history, is the score.

        Args:
            films: `films()`.
            embedding: float (1, user_dim).
            movie_idx, stars: the context ratings (R,).
            target_idx: int64 (T,), movies to explain.
        """
        row = torch.zeros_like(movie_idx)
        prior, residual, penalty, count = self.user_tower.regression(embedding, row, stars, films, movie_idx, movie_idx)
        context = with_constant(films.vectors[movie_idx])  # (R, H, D + 1)
        residual = residual - (context * prior).sum(-1)  # what the prior leaves unexplained
        system = gram(context, row, count)[0] + torch.diag_embed(penalty[0])  # (H, D + 1, D + 1)
        targets = with_constant(films.vectors[target_idx]).permute(1, 2, 0)  # (H, D + 1, T)
        weight = torch.einsum("rhd,hdt->trh", context, torch.linalg.solve(system, targets))
        return (weight * residual).mean(-1)

    def stars(self, score: torch.Tensor) -> torch.Tensor:
        """Turn scores into stars."""
        return self.config.stars_low + (self.config.stars_high - self.config.stars_low) * torch.sigmoid(score)

    def config_dict(self) -> dict:
        """Return the config as plain values, for a checkpoint."""
        return asdict(self.config)

    def _distinct_movies(self, *movie_idx: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the movies that occur, int64 (N,), and each movie's place among them, int64 (M,)."""
        num_movies, device = self.config.num_movies, self.offset.device
        every = torch.arange(num_movies, device=device)
        if device.type != "cpu":  # finding them would make the host wait for the device
            return every, every
        occurs = torch.zeros(num_movies, dtype=torch.bool)
        for movies in movie_idx:
            occurs[movies] = True
        distinct = occurs.nonzero().squeeze(1)
        place = torch.zeros(num_movies, dtype=torch.int64)
        place[distinct] = every[:len(distinct)]
        return distinct, place


def with_constant(vectors: torch.Tensor) -> torch.Tensor:
    """Append the coordinate that a user's bias multiplies: (..., D) -> (..., D + 1)."""
    return torch.cat([vectors, vectors.new_full((*vectors.shape[:-1], 1), 0.5)], -1)
