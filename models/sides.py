"""The towers asked from both sides: users solved from movies, and movies solved from users.

A TwoTower treats its two kinds unlike: a user's vector is solved from his ratings, a movie's is an embedding. Where
movies are few beside users that is the better half by far. Where they are not, a second TwoTower with the roles
swapped, movies solved from their ratings and users embedded, errs elsewhere, and the mean of the two is better than
either (compare I-AutoRec and U-AutoRec, Sedhain et al. 2015):

    score(u, m) = (p_u . q_m + p'_u . q'_m) / 2 = [p_u / 2, p'_u / 2] . [q_m, q'_m]

The movie side knows nothing of dates. Its movies are solved after every epoch from the training ratings, and in the end
from all that is known before the test; the result is kept in `solved`. A person without a row in its table of users is
scored by the user side alone.

Letters: B users, T targets, M movies, U users of the data set, K coordinates of a side's vectors.
"""

from dataclasses import asdict, replace

import torch
from torch import nn

from models.config import OF_DATES, ModelConfig
from models.movie_tower import CONSTANT, Films
from models.relevance import Relevance
from models.two_tower import Target, TwoTower
from models.user_tower import Context

USERS_PER_MOVIE = 4  # the movie side pays where there are no more
STANDARD_ERRORS = 2  # of a movie, by which its score is lower in a list


class TwoSided(nn.Module):
    """The user side, the movie side where there is one, and relevance where it was trained."""

    def __init__(self, config: ModelConfig, both: bool) -> None:
        super().__init__()
        self.config = config
        self.user_side = TwoTower(config)
        self.movie_side = None
        if both:
            self.movie_side = TwoTower(replace(config, num_users=config.num_movies, num_movies=config.num_users,
                                               without=(*config.without, *OF_DATES, "year")))
            width = config.num_heads * (config.head_dim + 2)
            self.register_buffer("solved", torch.zeros(config.num_movies, width))
        # Last, so that the towers begin the same with it and without.
        self.relevance = Relevance(config) if config.relevance_dim else None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.user_side.offset.device

    def films(self) -> Films:
        """Return the films of the user side."""
        return self.user_side.films()

    def predict(self, films: Films, user_idx: torch.Tensor, context: Context, target: Target) -> torch.Tensor:
        """Return scores, float (T,), of ratings on their own days.

        Args:
            films: `films()`.
            user_idx: int64 (B,), users of the data set.
            context: what is known of them.
            target: what is asked for.
        """
        score = self.user_side.predict(films, self.user_side.user_embedding[user_idx], context, target)
        if self.movie_side is None:
            return score
        users = self.movie_side.movie_vectors(0, user_idx)
        return (score + (users[target.row] * self.solved[target.movie_idx]).sum(1)) / 2

    def user_vectors(self, films: Films, user_idx: torch.Tensor | None, context: Context, day: int) -> torch.Tensor:
        """Return users' vectors as of a day, float (B, K or 2 K), such that their product with `movie_vectors` is the
        score; arguments as for `predict`, but user_idx is None for one person whom the data set does not know."""
        return self.join(self.user_side.user_vectors(films, self._embedding(user_idx), context, day), user_idx)

    def join(self, vectors: torch.Tensor, user_idx: torch.Tensor | None) -> torch.Tensor:
        """Return `user_vectors` of what the user side says of the users, float (B, K)."""
        if self.movie_side is None:
            return vectors
        if user_idx is None:
            return torch.cat([vectors, vectors.new_zeros(1, self.solved.shape[1])], 1)
        return torch.cat([vectors, self.movie_side.movie_vectors(0, user_idx)], 1) / 2

    def movie_vectors(self, day: int, films: Films | None = None) -> torch.Tensor:
        """Return all movies' vectors as of a day, float (M, K or 2 K); `films()` where they are at hand."""
        vectors = self.user_side.movie_vectors(day, films=films)
        return vectors if self.movie_side is None else torch.cat([vectors, self.solved], 1)

    @torch.no_grad()
    def list_vectors(self, day: int, films: Films | None = None) -> torch.Tensor:
        """Return `movie_vectors` for a list of the highest scores: every score is lower by its movie's uncertainty.

        A rating differs from its prediction by about 1 in units of score, so what n training ratings say of a movie has
        a standard error of about 1 / sqrt(n + 1), the prior counting as a rating. In the order of the scores themselves
        those movies lead that chance has raised most, and it raises those with few ratings most; two standard errors
        below, a score is nearly sure (a lower confidence bound; Auer 2002, "Using confidence bounds for
        exploitation-exploration trade-offs", has the upper one).
        """
        vectors, heads = self.movie_vectors(day, films), self.config.num_heads
        by_head = vectors.view(len(vectors), -1, self.config.head_dim + 2)
        lower = self._uncertainty().unsqueeze(1)
        by_head[:, :heads, -1] -= lower  # the user side's: users have 1 / H there
        by_head[:, heads:, -2] -= lower / (CONSTANT * heads)  # the movie side's, if any: users have the constant there
        return vectors

    def _uncertainty(self) -> torch.Tensor:
        """Return by how much the scores of movies are lower in a list, float (M,)."""
        return STANDARD_ERRORS * (self.user_side.movie_tower.num_ratings + 1).rsqrt()

    def contributions(self, films: Films, user_idx: torch.Tensor | None, context: Context,
                      target_idx: torch.Tensor) -> torch.Tensor:
        """Return what each context rating adds to the scores of movies, int64 (T,), through the user's solved history,
        float (T, R); see `TwoTower.contributions`."""
        effects = self.user_side.contributions(films, self._embedding(user_idx), context, target_idx)
        return effects if user_idx is None or self.movie_side is None else effects / 2

    def stars(self, score: torch.Tensor) -> torch.Tensor:
        """Turn scores into stars."""
        return self.user_side.stars(score)

    def _embedding(self, user_idx: torch.Tensor | None) -> torch.Tensor:
        """Return rows of the user table, float (B, user_dim), zero for somebody whom the data set does not know."""
        table = self.user_side.user_embedding
        return table.new_zeros(1, self.config.user_dim) if user_idx is None else table[user_idx]

    def description(self) -> dict:
        """Return what the constructor needs, as plain values, for a checkpoint."""
        return {"config": asdict(self.config), "both": self.movie_side is not None}


def wants_both(num_users: int, num_movies: int) -> bool:
    """Tell whether the movie side pays on a data set of this shape."""
    return num_users <= USERS_PER_MOVIE * num_movies
