"""The tower of users: a vector from what is known of a user, his context ratings, and from his embedding.

Letters: B users, or G rows a user where heads are in G groups (see `Films`); R context ratings, N films, H heads (of a
group, where there are groups), D coordinates of a head.
"""

from typing import NamedTuple

import torch
from torch import nn

from models.config import ModelConfig
from models.layers import gather_rows, pool_rows, ridge_solve, ridge_solve_rows, unexplained_rows
from models.movie_tower import MEAN_SHRINK, Films


class Context(NamedTuple):
    """Ratings that users' vectors are made of (R), ascending in row."""

    row: torch.Tensor  # int64: which of the users (B) a rating is of
    movie_idx: torch.Tensor  # int64
    stars: torch.Tensor  # float
    day: torch.Tensor  # int64


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
            wanted: int64 (W,), places of the ratings whose residuals are wanted, then (W, H); None: of all.
        """
        prior, residual, penalty, count = self.regression(embedding, context, films, column, drift)
        column = films.group_column(column, context.row, len(embedding))
        if self.config.has("solved_history") and (torch.is_grad_enabled() or residual.device.type != "cpu"):
            users, left = ridge_solve(films.extended, column, residual, prior, penalty, context.row, count)
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
        prior = self.out(self.dropout(hidden)).view(num_users, config.num_heads, config.head_dim + 1)
        prior = self._of_group(prior, films.groups)  # (B, H, D + 1)
        if not config.has("biases"):
            prior = prior * (torch.arange(config.head_dim + 1, device=prior.device) < config.head_dim)

        bias = gather_rows(films.bias, films.group_column(column, row, num_users))
        residual = (above_mean / config.slope - drift).unsqueeze(1) - bias
        penalty = self.log_base.exp() + self.log_per_rating.exp() * size.view(-1, 1, 1)
        return prior, residual, self._of_group(penalty, films.groups), count

    def _of_group(self, values: torch.Tensor, groups: int) -> torch.Tensor:
        """Return of each row, with all heads, the heads of its group."""
        if groups == 1:
            return values
        heads = self.config.num_heads // groups
        return torch.cat([rows[:, group * heads:][:, :heads] for group, rows in enumerate(values.chunk(groups))])
