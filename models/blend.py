"""The model that is trained: user-based towers, blended with item-based ones where these help, the link from scores to
stars, and relevance.

A TwoTower treats its two kinds unlike: a user's vector is folded in from their ratings, a movie's is an embedding
(user-based). Where movies are few beside users that is the better half by far. Where they are not, a second TwoTower
with the roles swapped, movies folded in from their ratings and users embedded (item-based), errs elsewhere. Both
together are then better than either (compare U-AutoRec and I-AutoRec, Sedhain et al. 2015). What share b each has in a
score, stacking (Wolpert 1992) finds from validation ratings:

    score(u, m) = b p_u . q_m + (1 - b) p'_u . q'_m = [b p_u, (1 - b) p'_u] . [q_m, q'_m]

Of somebody who has rated little, the towers have learned little, and means say more. So a score is theirs by so much as
the number n of known ratings tells, and else that of the movie's mean g_m and of how far the ratings lie above such
means, c_u, which is shrunk as those are:

    trust = n / (n + TRUST)
    score(u, m) = trust * (score of the towers) + (1 - trust) (g_m + c_u)
                = [trust p_u, 1 - trust, (1 - trust) c_u] . [q_m, g_m, 1]

so that without a rating the stars to expect are the movie's mean.

The item-based towers know nothing of dates. Their movies are folded in after every epoch from the training ratings, and
in the end from all that is known before the test; the buffer `folded_in` keeps them. A person without a row in their
table of users is scored by the user-based towers alone.

Letters: B users, T targets, M movies, U users of the data set, E members of the ensemble, E' of the item-based one, D
coordinates of a member, P of a vector: (E + E') (D + 2) + 2.
"""

from dataclasses import asdict, replace
from typing import NamedTuple

import torch
from torch import nn

from models.config import DATE_PARTS, ModelConfig
from models.movie_tower import CONSTANT, MEAN_SHRINK, MovieTable
from models.ops.rating_pattern import counts
from models.relevance import Relevance
from models.stars_link import StarsLink, spread_features
from models.two_tower import Target, TwoTower
from models.user_tower import Context

USERS_PER_MOVIE = 4  # the item-based towers help where there are no more
STANDARD_ERRORS = 2  # of a movie, by which its score is lower in a list
TRUST = 2.0  # ratings of a person, of whom the towers and the means then say as much as each other
SHARE = 0.5  # of the user-based towers before it is fitted
ITEM_BASED_MEMBERS = 2  # at most; more add time, and nothing to a score of which they have the smaller share


class Predictions(NamedTuple):
    """What a score is mixed of, see `Blend.mix`; each (T,)."""

    user_based: torch.Tensor  # float, scores of the user-based towers
    item_based: torch.Tensor  # float, of the item-based ones; the same again where there are none
    trust: torch.Tensor  # float, 0 to 1
    above_means: torch.Tensor  # float, how far the user's ratings lie above the movies' means, in units of score
    movie_idx: torch.Tensor  # int64


class Blend(nn.Module):
    """User-based towers, item-based ones where `with_item_based`, and relevance where the config has it."""

    folded_in: torch.Tensor  # float (M, E' (D + 2)), vectors of the item-based towers
    share: torch.Tensor  # float (), of the user-based towers in a score, where there are item-based ones

    def __init__(self, config: ModelConfig, with_item_based: bool, users: tuple[int, int] | None = None,
                 movies: tuple[int, int] | None = None) -> None:
        """Make a new model; of many ranks, with the rows of a range of users in the user-based towers, and of movies in
        the item-based ones, see `TwoTower`."""
        super().__init__()
        self.config = config
        self.user_based = TwoTower(config, users)
        self.item_based = None
        if with_item_based:
            members = min(config.ensemble_size, ITEM_BASED_MEMBERS)
            self.item_based = TwoTower(replace(config, num_users=config.num_movies, num_movies=config.num_users,
                                               ensemble_size=members, embedding_dim=members * config.member_dim,
                                               without=(*config.without, *DATE_PARTS, "year")), movies)
            self.register_buffer("folded_in", torch.zeros(config.num_movies, members * (config.member_dim + 2)))
            self.register_buffer("share", torch.tensor(SHARE))
        self.link = StarsLink(config.stars_low, config.stars_high, config.stars_step)
        # Last, so that the towers begin the same with it and without.
        self.relevance = Relevance(config) if config.relevance_dim else None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.user_based.offset.device

    def load_rows(self, state: dict[str, torch.Tensor]) -> None:
        """Take over the state dict of a checkpoint, which has the rows of all users: of them those of this rank."""
        towers = {"user_based.user_embedding": self.user_based, "item_based.user_embedding": self.item_based}
        self.load_state_dict({name: value if (tower := towers.get(name)) is None else tower.own_rows(value)
                              for name, value in state.items()})

    def load_chosen(self, state: dict[str, torch.Tensor]) -> None:
        """Take over what validation ratings have chosen of the state dict of a first fit, for a second one."""
        for name, value in self.state_dict().items():
            if name.startswith("link.") or name in ("share", "relevance.weights"):
                value.copy_(state[name])

    def movie_table(self) -> MovieTable:
        """Return the movies of the user-based towers."""
        return self.user_based.movie_table()

    def mean_scores(self) -> torch.Tensor:
        """Return the scores that make the movies' shrunk means the stars to expect, float (M,)."""
        return self.link.score_of(self.config.stars_mean + self.user_based.movie_tower.mean)

    def of_towers(self, predictions: Predictions) -> torch.Tensor:
        """Return the scores of both kinds of towers together, float (T,)."""
        if self.item_based is None:
            return predictions.user_based
        return torch.lerp(predictions.item_based, predictions.user_based, self.share)

    def mix(self, predictions: Predictions) -> torch.Tensor:
        """Return scores, float (T,)."""
        of_means = self.mean_scores()[predictions.movie_idx] + predictions.above_means
        return torch.lerp(of_means, self.of_towers(predictions), predictions.trust)

    def predict(self, movies: MovieTable, user_idx: torch.Tensor, context: Context, target: Target,
                are_new: bool = False) -> Predictions:
        """Predict ratings on their own days.

        Args:
            movies: `movie_table()`.
            user_idx: int64 (B,), users of the data set.
            context: what is known of them.
            target: what is asked for.
            are_new: predict as if the data set did not know these users.
        """
        user_based = item_based = self.user_based.predict(movies, self._embedding(user_idx, are_new), context, target)
        if self.item_based is not None and not are_new:
            users = self.item_based.movie_vectors(0, user_idx)
            item_based = (users[target.row] * self.folded_in[target.movie_idx]).sum(1)
        trust, above_means = self._of_means(context, len(user_idx))
        return Predictions(user_based, item_based, trust[target.row], above_means[target.row], target.movie_idx)

    def user_vectors(self, movies: MovieTable, user_idx: torch.Tensor | None, context: Context, day: int,
                     are_new: bool = False) -> torch.Tensor:
        """Return users' vectors as of a day, float (B, P), such that their product with `movie_vectors` is the score;
        arguments as for `predict`, but user_idx is None for one person whom the data set does not know."""
        vectors = self.user_based.user_vectors(movies, self._embedding(user_idx, are_new), context, day)
        return self.join(vectors, None if are_new else user_idx, context)

    def join(self, vectors: torch.Tensor, user_idx: torch.Tensor | None, context: Context) -> torch.Tensor:
        """Return `user_vectors` of users' vectors from the user-based towers, float (B, E (D + 2)).

        Args:
            user_idx: None for people whom the data set does not know.
        """
        trust, above_means = self._of_means(context, len(vectors))
        if self.item_based is not None and user_idx is None:
            vectors = torch.cat([vectors, vectors.new_zeros(len(vectors), self.folded_in.shape[1])], 1)
        elif self.item_based is not None:
            item_based = self.item_based.movie_vectors(0, user_idx)
            vectors = torch.cat([self.share * vectors, (1 - self.share) * item_based], 1)
        rest = (1 - trust).unsqueeze(1)
        return torch.cat([trust.unsqueeze(1) * vectors, rest, rest * above_means.unsqueeze(1)], 1)

    def movie_vectors(self, day: int, movies: MovieTable | None = None) -> torch.Tensor:
        """Return all movies' vectors as of a day, float (M, P); `movie_table()` where it is at hand."""
        vectors = [self.user_based.movie_vectors(day, movies=movies)]
        if self.item_based is not None:
            vectors.append(self.folded_in)
        means = self.mean_scores().unsqueeze(1)
        return torch.cat([*vectors, means, torch.ones_like(means)], 1)

    def margins(self) -> torch.Tensor:
        """Return by how much a movie's score in a list is below the prediction, float (M,): two standard errors."""
        return STANDARD_ERRORS * (self.user_based.movie_tower.num_ratings + 1).rsqrt()

    @torch.no_grad()
    def list_vectors(self, day: int, movies: MovieTable | None = None) -> torch.Tensor:
        """Return `movie_vectors` for a list of the highest scores: every score is lower by its movie's `margins`.

        A rating differs from its prediction by about 1 in units of score, so what n training ratings say of a movie has
        a standard error of about 1 / sqrt(n + 1), the prior counting as a rating. In the order of the scores themselves
        those movies lead that chance has raised most, and it raises those with few ratings most; two standard errors
        below, a score is nearly sure (a lower confidence bound; Auer 2002, "Using confidence bounds for
        exploitation-exploration trade-offs", has the upper one).
        """
        vectors, members = self.movie_vectors(day, movies), self.config.ensemble_size
        by_member = vectors[:, :-2].unflatten(1, (-1, self.config.member_dim + 2))
        margins = self.margins().unsqueeze(1)
        by_member[:, :members, -1] -= margins  # user-based: meets 1 / E (`TwoTower.user_vectors`)
        of_items = by_member[:, members:]  # if any
        of_items[..., -2] -= margins / (CONSTANT * max(of_items.shape[1], 1))  # meets CONSTANT (`rows_of`)
        vectors[:, -2:-1] -= margins
        return vectors

    def coordinates(self) -> list[dict]:
        """Return what the coordinates of `movie_vectors` and `user_vectors` are, block by block, as plain values.

        In a block "user bias" the users' vectors have their bias and the movies' a constant; in "movie bias" the
        movies' have theirs, and the users' how far the towers, or else the means, are trusted, times a constant. The
        last two are of the means, and of no member. How alike two movies or two users are, the user-based blocks
        "vector" say.
        """
        user, movie = ("user bias", 1), ("movie bias", 1)
        vector, stop = ("vector", self.config.member_dim), 0
        towers = [("user-based", self.user_based, (vector, user, movie))]
        if self.item_based is not None:
            towers.append(("item-based", self.item_based, (vector, movie, user)))
        blocks = []
        for name, member, (what, size) in ((name, member, part) for name, tower, parts in towers
                                           for member in range(tower.config.ensemble_size) for part in parts):
            blocks.append({"towers": name, "member": member, "what": what, "start": stop, "stop": stop + size})
            stop += size
        for what in ("movie bias", "user bias"):
            blocks.append({"towers": "means", "member": None, "what": what, "start": stop, "stop": stop + 1})
            stop += 1
        return blocks

    def stars(self, score: torch.Tensor) -> torch.Tensor:
        """Turn scores into the stars to expect."""
        return self.link(score)

    def spread_features(self, movies: MovieTable, user_idx: torch.Tensor, context: Context, target: Target,
                        are_new: bool = False) -> torch.Tensor:
        """Return what the spread of ratings around their predictions depends on, float (T, 4), for `StarsLink`;
        arguments as for `predict`."""
        return spread_features(*self.user_based.uncertainty(movies, self._embedding(user_idx, are_new), context,
                                                            target))

    def description(self) -> dict:
        """Return what the constructor needs, as plain values, for a checkpoint."""
        return {"config": asdict(self.config), "item_based": self.item_based is not None}

    def trust(self, count: torch.Tensor) -> torch.Tensor:
        """Return how far the towers are trusted of somebody with so many ratings, from 0 to 1, of the same shape."""
        return count / (count + TRUST)

    def above_means(self, context: Context) -> torch.Tensor:
        """Return how far ratings lie above the means of their movies, in units of score, float (R,)."""
        means = self.config.stars_mean + self.user_based.movie_tower.mean.index_select(0, context.movie_idx)
        return (context.stars - means) / self.config.slope

    def _of_means(self, context: Context, num_users: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the trust in the towers of each user, and c_u, float (B,) each."""
        above, count = self.above_means(context), counts(context.row, num_users)
        total = above.new_zeros(num_users).index_add_(0, context.row, above)
        return self.trust(count), total / (count + MEAN_SHRINK)

    def _embedding(self, user_idx: torch.Tensor | None, are_new: bool = False) -> torch.Tensor:
        """Return rows of the user table, float (B, user_dim), zero for people whom the data set does not know."""
        if user_idx is None or are_new:
            return self.user_based.offset.new_zeros(1 if user_idx is None else len(user_idx), self.config.user_dim)
        return self.user_based.embedding_of(user_idx)


def item_based_helps(num_users: int, num_movies: int) -> bool:
    """Tell whether the item-based towers help on a data set of this shape."""
    return num_users <= USERS_PER_MOVIE * num_movies
