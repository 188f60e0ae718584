"""The tower of users: a vector from what is known of a user, his context ratings, and from his embedding.

Letters: B users, or G rows a user where heads are in G groups (see `Films`); R context ratings, N films, H heads (of a
group, where there are groups), D coordinates of a head.
"""

from typing import NamedTuple

import torch
from torch import nn

from models.config import ModelConfig
from models.movie_tower import MEAN_SHRINK, Films
from models.ops.ragged import Pairs, pool, ridge_solve, unexplained


class Context(NamedTuple):
    """Ratings that users' vectors are made of (R), ascending in row, and those of a row in day."""

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

    def forward(self, embedding: torch.Tensor, context: Context, films: Films,
                drift: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return user vectors, float (B, H, D + 1), the last coordinate being the user's bias, and what they leave of
        the context's residuals, float (R, H), of which no gradient is taken.

        Args:
            embedding: float (B, user_dim), zero for a user who has none.
            context: the ratings to make the vectors of.
            films: at least those of the context.
            drift: float (R,), the films' drift at the time.
        """
        prior, penalty, wanted = self.regression(embedding, context, films, drift)
        pairs = films.pairs(context.row, context.movie_idx, len(embedding))
        if self.config.has("solved_history"):
            return ridge_solve(films.table, wanted, prior, penalty, pairs)
        with torch.no_grad():
            return prior, unexplained(wanted, prior, films.table, pairs)

    def regression(self, embedding: torch.Tensor, context: Context, films: Films,
                   drift: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return what the solved history is solved from; arguments as for `forward`.

        Returns:
            The prior vector and the penalties, both (B, H, D + 1); and what film and user together shall explain of
            the context's ratings, (R,), in units of score.
        """
        config, row, num_users = self.config, context.row, len(embedding)
        pairs = Pairs(row, context.movie_idx, num_users, config.num_movies)
        size = pairs.count.to(context.stars.dtype)
        above_mean = context.stars - config.stars_mean  # (R,)
        surprise = above_mean - films.mean.index_select(0, context.movie_idx)

        def sum_by_user(values: torch.Tensor) -> torch.Tensor:
            return values.new_zeros(num_users).index_add_(0, row, values)

        mean = sum_by_user(surprise) / (size + MEAN_SHRINK)
        spread = (sum_by_user(surprise.square()) / (size + 1)).sqrt()
        pooled = pool(self.pooled, surprise - mean.index_select(0, row), pairs)
        features = torch.stack([(size + 1).log() / 2 - 2, mean * 2, spread - 1], 1)
        x = torch.cat([embedding * config.has("user_embedding"),
                       pooled * (size + 1).rsqrt().unsqueeze(1) * config.has("pooled_history"),
                       features * config.has("user_features")], 1)
        hidden = torch.relu(self.hidden(x))
        prior = self.out(self.dropout(hidden)).view(num_users, config.num_heads, config.head_dim + 1)
        prior = self._of_group(prior, films.groups)  # (B, H, D + 1)
        if not config.has("biases"):
            prior = prior * (torch.arange(config.head_dim + 1, device=prior.device) < config.head_dim)
        penalty = self.log_base.exp() + self.log_per_rating.exp() * size.view(-1, 1, 1)
        return prior, self._of_group(penalty, films.groups), above_mean / config.slope - drift

    def _of_group(self, values: torch.Tensor, groups: int) -> torch.Tensor:
        """Return of each row, with all heads, the heads of its group."""
        if groups == 1:
            return values
        heads = self.config.num_heads // groups
        return torch.cat([rows[:, group * heads:][:, :heads] for group, rows in enumerate(values.chunk(groups))])
