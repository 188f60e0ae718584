"""Answer queries from a trained run: which unseen movies would a person rate highest, and why.

    recommender = Recommender.load("runs/default", "data/processed")
    history = recommender.history_of(user_id)
    print(recommender.recommend(history, top_n=10))

A person is a `History`: some ratings and, for a user of the data set, a row of the user table. A history typed in by
somebody who was not there in training is served by the same tower, without any retraining.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from models.checkpoint import load_checkpoint, model_of
from models.two_tower import Films, TwoTower
from preprocessing import dataset
from preprocessing.dataset import DataError, Movies, Ratings, RatingsFile, Users


@dataclass
class History:
    """What a person has rated (R ratings), and who he is, if the data set knows him."""

    movie_idx: torch.Tensor  # int64 (R,)
    stars: torch.Tensor  # float32 (R,)
    user_id: int | None = None
    user_idx: int | None = None


@dataclass
class Reason:
    """A rated movie that raised a recommendation's score, and by how much."""

    movie_id: int
    title: str
    stars: float  # that the person gave
    effect: float  # on the score, before the sigmoid


@dataclass
class Recommendation:
    """One line of a list; `because` is filled by `Recommender.explain`."""

    rank: int
    movie_id: int
    title: str
    year: int | None
    stars: float  # predicted
    num_ratings: int  # of the movie, in training
    because: list[Reason] | None = None


class Recommender:
    """A trained model with its data set."""

    def __init__(self, model: TwoTower, meta: dict, users: Users, movies: Movies, ratings: RatingsFile,
                 films: Films | None = None, movie_vectors: torch.Tensor | None = None) -> None:
        self.model, self.meta, self.users, self.movies, self.ratings = model, meta, users, movies, ratings
        with torch.no_grad():
            self._films = model.films() if films is None else films
        # Laid out coordinate by coordinate, which makes a product with one user's vector four times as fast.
        by_coordinate = self._films.rows.flatten(1).T.contiguous() if movie_vectors is None else movie_vectors
        self.movie_vectors = by_coordinate.T  # (M, P)
        # A movie without a single training rating has no vector that could be trusted.
        self.recommendable = torch.tensor(movies.num_train_ratings > 0)  # bool (M,)
        self._hidden = torch.zeros(len(self.recommendable)).masked_fill_(~self.recommendable, -torch.inf)

    @classmethod
    def load(cls, run_dir: str | Path, data_dir: str | Path) -> "Recommender":
        """Load the best checkpoint of a run and the data set it was trained on.

        Raises:
            DataError: one of them is missing or damaged, or they do not belong together.
        """
        run_dir, data_dir = Path(run_dir), Path(data_dir)
        meta = dataset.read_meta(data_dir)
        if not run_dir.is_dir():
            raise DataError(f"{run_dir} not found; run: python main.py --run_dir {run_dir} --data_dir {data_dir}")
        checkpoint = load_checkpoint(run_dir / "best.pt", meta["fingerprint"])
        return cls(model_of(checkpoint), meta, dataset.read_users(data_dir), dataset.read_movies(data_dir),
                   RatingsFile(data_dir), Films(**checkpoint["films"]), checkpoint["movie_vectors"])

    def any_user_id(self) -> int:
        """Return the id of a user chosen by the data set's seed."""
        return int(np.random.default_rng(self.meta["seed"]).choice(self.users.user_id))

    def history_of(self, user_id: int) -> History:
        """Return all ratings of a user of the data set.

        Raises:
            DataError: there is no such user.
        """
        user_idx = int(np.searchsorted(self.users.user_id, user_id))
        if user_idx == len(self.users.user_id) or self.users.user_id[user_idx] != user_id:
            raise DataError(f"user_id {user_id} is not in the data set; for somebody new, give ratings instead: "
                            'python rec.py --rate "MOVIE_ID:STARS,..."')
        ratings = self.ratings.read_user(self.users, user_idx)
        return History(torch.from_numpy(ratings.movie_idx.astype(np.int64)),
                       torch.from_numpy(ratings.stars.astype(np.float32)) * self.meta["stars_step"], user_id, user_idx)

    def history_from(self, ratings: dict[int, float]) -> History:
        """Return the history of somebody new from {movie_id: stars}.

        Raises:
            DataError: a movie_id that the data set does not have, or stars outside its scale.
        """
        low, high = self.meta["stars_range"]
        for movie_id, stars in ratings.items():
            place = int(np.searchsorted(self.movies.movie_id, movie_id))
            if place == len(self.movies.movie_id) or self.movies.movie_id[place] != movie_id:
                raise DataError(f"movie_id {movie_id} is not in the data set")
            if not low <= stars <= high:
                raise DataError(f"movie_id {movie_id} is given {stars:g} stars, outside {low:g} to {high:g}")
        movie_idx = np.searchsorted(self.movies.movie_id, list(ratings))
        return History(torch.from_numpy(movie_idx.astype(np.int64)), torch.tensor(list(ratings.values())).float())

    @torch.inference_mode()
    def vector_of(self, history: History) -> torch.Tensor:
        """Return the vector of a person, float (P,)."""
        movie_idx = history.movie_idx
        return self.model.user_vectors(self._films, self._embedding(history), torch.zeros_like(movie_idx), movie_idx,
                                       history.stars)[0]

    @torch.no_grad()
    def vectors_of(self, ratings: Ratings) -> torch.Tensor:
        """Return the vectors, float (B, P), of users of the data set that follow each other, from all their ratings."""
        first, last = int(ratings.user_idx[0]), int(ratings.user_idx[-1])
        row = torch.from_numpy(ratings.user_idx.astype(np.int64) - first)
        stars = torch.from_numpy(ratings.stars.astype(np.float32)) * self.meta["stars_step"]
        return self.model.user_vectors(self._films, self.model.user_embedding[first:last + 1], row,
                                       torch.from_numpy(ratings.movie_idx.astype(np.int64)), stars)

    @torch.inference_mode()
    def recommend(self, history: History, top_n: int = 10) -> list[Recommendation]:
        """Return the unseen movies with the highest predicted stars, best first; fewer than top_n if there are no more.

        Equal scores keep the order of movie_id.
        """
        scores = self.movie_vectors @ self.vector_of(history)  # (M,)
        scores += self._hidden
        scores[history.movie_idx] = -torch.inf
        order = best_of(scores, top_n)
        stars = self.model.stars(scores[order])
        return [Recommendation(rank, int(self.movies.movie_id[movie]), self.movies.title[movie],
                               int(self.movies.year[movie]) or None, predicted,
                               int(self.movies.num_train_ratings[movie]))
                for rank, (movie, predicted) in enumerate(zip(order.tolist(), stars.tolist(), strict=True), start=1)]

    @torch.no_grad()
    def explain(self, history: History, recommendations: list[Recommendation], num_reasons: int = 3) -> None:
        """Fill `because` of each recommendation with the rated movies that raised its score most."""
        if not len(history.movie_idx) or not recommendations:
            return
        targets = torch.from_numpy(np.searchsorted(self.movies.movie_id, [r.movie_id for r in recommendations]))
        effects = self.model.contributions(self._films, self._embedding(history), history.movie_idx, history.stars,
                                           targets)
        for recommendation, effect in zip(recommendations, effects, strict=True):
            best = effect.argsort(descending=True, stable=True)[:num_reasons]
            recommendation.because = [
                Reason(int(self.movies.movie_id[movie]), self.movies.title[movie], stars, value)
                for movie, stars, value in zip(history.movie_idx[best].tolist(), history.stars[best].tolist(),
                                               effect[best].tolist(), strict=True) if value > 0]

    def _embedding(self, history: History) -> torch.Tensor:
        """Return the user's row of the table, (1, user_dim), zero for somebody new."""
        if history.user_idx is None:
            return self.model.user_embedding.new_zeros(1, self.model.config.user_dim)
        return self.model.user_embedding[history.user_idx:history.user_idx + 1]


def best_of(scores: torch.Tensor, top_n: int) -> torch.Tensor:
    """Return the places of the highest scores (M,), best first, int64 (N,), N <= top_n; none that are minus infinity.

    Equal scores keep their order. (A sort of all scores would take 40 times as long.)
    """
    best, places = scores.topk(min(top_n + 1, len(scores)))
    if (best[1:] == best[:-1]).any():  # topk takes any of equal scores
        places = (scores >= best[:top_n].min()).nonzero().squeeze(1)
        places = places[scores[places].argsort(descending=True, stable=True)]
    places = places[:top_n]
    return places[scores[places] > -torch.inf]
