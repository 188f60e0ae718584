"""Answer queries from a trained run: which movies would a person rate highest, and why; which movies are alike.

    recommender = Recommender.load("runs/default")
    history = recommender.history_of(user_id)
    print(recommender.recommend(history, top_n=10))

A person is a `History`: some ratings and, for a user of the data set, a row of the user table. A history typed in by
somebody who was not there in training is served by the same tower, without any retraining. `Filters` say which movies
may be listed; every list is made of `Recommendation`.

Letters: R ratings, M movies, N movies asked for, B users, P coordinates of a vector, L of a taste.
"""

import datetime
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

from models.blend import Blend
from models.checkpoint import check_data_set, data_dir_of, load_model
from models.movie_tower import MEAN_SHRINK
from models.stars_link import interval, spread_features
from models.user_tower import Context
from preprocessing import dataset
from preprocessing.dataset import (
    TEST,
    DataError,
    Id,
    Movies,
    Ratings,
    RatingsFile,
    Users,
    UsersFile,
    are_text,
    position_of,
    typed_id,
)
from recommending.asking import best_known, choose, second_moment
from recommending.dates import AsOf
from recommending.movie_finder import MovieFinder, fold
from recommending.one_user import FoldIn, OneUserTower
from recommending.top_k import BestMovies, best_of, only, products

LEAST_EFFECT = 0.005  # of a reason; less would be shown as +0.00
INTERVAL = 0.8  # of ratings lie in the interval around a prediction
NUM_REASONS = 3  # of a movie in a list, at most, unless another number is asked for


@dataclass(eq=False)
class History:
    """What a person has rated (R ratings, a movie at most once), and who they are, if the data set knows them."""

    movie_idx: torch.Tensor  # int64 (R,)
    stars: torch.Tensor  # float32 (R,)
    day: torch.Tensor  # int64 (R,), counted from the data set's first
    user_id: Id | None = None
    user_idx: int | None = None


@dataclass
class Filters:
    """Which movies may be listed; as it stands, all unseen ones with training ratings."""

    year_from: int | None = None  # a movie of unknown year passes neither bound
    year_to: int | None = None  # inclusive, as is year_from
    min_ratings: int = 1  # in training; without any, a movie has no vector of its own, only what its features say
    title: str = ""  # what the title contains; upper and lower case are the same
    include_seen: bool = False  # list what the person has rated too


@dataclass
class Reason:
    """A rated movie that raised a recommendation's score, and by how much."""

    movie_id: Id
    title: str
    stars: float  # that the person gave
    effect: float  # on the score, or on the relevance in a list by it


@dataclass
class Recommendation:
    """One line of a list; `because` is filled by `Recommender.explain`."""

    rank: int  # from 1
    movie_id: Id
    title: str
    year: int | None
    num_ratings: int  # of the movie, in training
    stars: float | None = None  # predicted; of a popular movie the mean; None in a list of similar movies
    stars_bound: float | None = None  # two standard errors below the prediction: what `recommend` orders by
    interval: list[float] | None = None  # stars that INTERVAL of such ratings lie between
    probabilities: dict[str, float] | None = None  # of each of the stars that can be given
    similarity: float | None = None  # cosine, -1 to 1; None unless it is a list of similar movies
    rated: float | None = None  # stars that the person gave, where they have seen the movie
    because: list[Reason] | None = None


class Recommender:
    """A trained model with its data set, asked as of a day: the data set's last, unless another is given.

    The stars in its lists are predicted. Lists are in the order of the prediction less two standard errors of what the
    movie's ratings say of it, so that chance does not put a movie with a handful of ratings first
    (`Blend.list_vectors`).
    """

    def __init__(self, model: Blend, meta: dict, users_file: UsersFile, movies: Movies, ratings: RatingsFile,
                 date: datetime.date | None = None, as_of_training: bool = False) -> None:
        """Take over what `load` reads."""
        self.model, self.meta, self.movies, self.ratings = model, meta, movies, ratings
        self._users_file, self.as_of_training = users_file, as_of_training
        self._as_of = AsOf.of(date, meta)
        self.day, self.as_of = self._as_of.day, self._as_of.date
        with torch.no_grad():
            self._movie_table = model.movie_table()
            self._user_tower = OneUserTower(model.user_based, self._movie_table)
            self._margins = model.margins().numpy()  # float32 (M,)
        # A movie without a single training rating has no vector that could be trusted.
        self.recommendable = torch.tensor(movies.num_train_ratings > 0)  # bool (M,)

    @classmethod
    def load(cls, run_dir: str | Path, data_dir: str | Path | None = None,
             date: datetime.date | None = None, as_of_training: bool = False) -> "Recommender":
        """Load the best checkpoint of a run and the data set it was trained on.

        Args:
            data_dir: folder of the data set; the run remembers it.
            date: the day to recommend as of; users have only the ratings that they had given by then, and movies of
                later years are not listed. A date outside the data set stands for its first or last (`date_remarks`).
            as_of_training: leave test ratings aside, as if nobody had given them: then they can measure a list, while
                a list leaves out else whatever its user has rated, test ratings too.

        Raises:
            DataError: one of them is missing or damaged, or they do not belong together.
        """
        best = Path(run_dir) / "best.pt"
        folder = None if data_dir is None else Path(data_dir)
        meta = None if folder is None else dataset.read_meta(folder)
        if not best.parent.is_dir():
            named = "" if folder is None else f" --data_dir {folder}"
            raise DataError(f"{run_dir} not found; run: python main.py --run_dir {run_dir}{named}")
        model, checkpoint = load_model(best, None)
        folder = folder or data_dir_of(best, checkpoint)
        meta = meta or dataset.read_meta(folder)
        check_data_set(best, checkpoint, meta["fingerprint"])
        return cls(model, meta, UsersFile(folder), dataset.read_movies(folder), RatingsFile(folder, meta), date,
                   as_of_training)

    def as_of_date(self, date: datetime.date | None) -> "Recommender":
        """Return a recommender of the same run and data set for another date; nothing is read again."""
        other = Recommender(self.model, self.meta, self._users_file, self.movies, self.ratings, date,
                            self.as_of_training)
        other.__dict__.update({name: self.__dict__[name] for name in ("_finder", "_folded_titles", "_second_moment")
                               if name in self.__dict__})
        return other

    @cached_property
    def users(self) -> Users:
        """All users of the data set; read when first asked for."""
        return self._users_file.read()

    @cached_property
    def list_vectors(self) -> torch.Tensor:
        """All movies' vectors, float (M, P), whose inner products with a person's are the scores of their list."""
        return self.model.list_vectors(self.day, self._movie_table)

    @cached_property
    def _best_movies(self) -> BestMovies:
        """The search among them; similar and popular movies and the map do without."""
        return BestMovies(self.list_vectors)

    def any_user_id(self) -> Id:
        """Return the id of a user chosen by the data set's seed."""
        return self._users_file.id_of(int(np.random.default_rng(self.meta["seed"]).integers(self.meta["num_users"])))

    def has_user(self, user_id: Id) -> bool:
        """Tell whether the data set has a user."""
        return self._users_file.find(user_id) is not None

    def user_id_of(self, text: str) -> Id:
        """Return the user_id that somebody types: a whole number, or text where the data set's are text."""
        return typed_id(text, self._users_file.has_text_ids)

    def history_of(self, user_id: Id) -> History:
        """Return the ratings of a user of the data set, up to the day asked about.

        Raises:
            DataError: there is no such user.
        """
        user = self._users_file.find(user_id)
        if user is None:
            raise DataError(f"user_id {user_id} is not in the data set; for somebody new, give ratings instead: "
                            'python rec.py --rate "MOVIE:STARS,...", or add --fallback popular')
        ratings = self.known(self.ratings.read_user(user, with_split=self.as_of_training))
        ratings = ratings.subset(slice(0, int(np.searchsorted(ratings.day, self.day, side="right"))))
        return History(torch.from_numpy(ratings.movie_idx.astype(np.int64)),
                       torch.from_numpy(ratings.stars.astype(np.float32)) * self.meta["stars_step"],
                       torch.from_numpy(ratings.day.astype(np.int64)), user_id, user.user_idx)

    def known(self, ratings: Ratings) -> Ratings:
        """Return those of some ratings, read with their split where it counts, that a list is made from and leaves
        out."""
        return ratings.subset(ratings.known_split() != TEST) if self.as_of_training else ratings

    def history_from(self, ratings: Mapping[Any, float]) -> History:
        """Return the history of somebody new from {movie_id: stars}; raises as `add_ratings` does."""
        return self.add_ratings(History(torch.zeros(0, dtype=torch.int64), torch.zeros(0),
                                        torch.zeros(0, dtype=torch.int64)), ratings)

    def add_ratings(self, history: History, ratings: Mapping[Any, float]) -> History:
        """Return a person's history with more ratings, {movie_id: stars}, given on the day asked about; a
        movie rated again has the new stars.

        Raises:
            DataError: a movie_id that the data set does not have, or stars outside its scale.
        """
        low, high = self.meta["stars_range"]
        movie_idx = torch.tensor([self.movie_idx_of(movie_id) for movie_id in ratings], dtype=torch.int64)
        for movie_id, stars in ratings.items():
            if not low <= stars <= high:
                raise DataError(f"movie_id {movie_id} is given {stars:g} stars, outside {low:g} to {high:g}")
        kept = ~torch.isin(history.movie_idx, movie_idx)
        return History(torch.cat([history.movie_idx[kept], movie_idx]),
                       torch.cat([history.stars[kept], torch.tensor(list(ratings.values()), dtype=torch.float32)]),
                       torch.cat([history.day[kept], torch.full_like(movie_idx, self.day)]),
                       history.user_id, history.user_idx)

    def date_remarks(self, filters: Filters | None = None, history: History | None = None,
                     leaves_out: bool = True) -> list[str]:
        """Return sentences on what the date asked about does to a list, for who reads it; none without a date.

        Args:
            leaves_out: whether movies of later years are left out, as they are but where movies are named.
        """
        later = self._passing(filters, history) & ~self._as_of.released(self.movies.year)
        nothing_rated = None if history is None or len(history.movie_idx) else history.user_id
        return self._as_of.remarks(int(later.sum()) * leaves_out, nothing_rated)

    def movie_idx_of(self, movie_id: Id) -> int:
        """Return the index of a movie.

        Raises:
            DataError: there is no such movie.
        """
        movie_idx = position_of(self.movies.movie_id, movie_id)
        if movie_idx is None and isinstance(movie_id, str):
            raise DataError(f"{movie_id!r} is a text and no movie_id; movie_id_of({movie_id!r}) finds the one it names")
        if movie_idx is None:
            of_text = "; its movie_ids are text" if are_text(self.movies.movie_id) else ""
            raise DataError(f"movie_id {movie_id} is not in the data set{of_text}")
        return movie_idx

    def movie_id_of(self, text: str, year: int | None = None, movie_id: Id | None = None, title_first: bool = False,
                    with_suggestions: bool = True) -> Id:
        """Return the id of a movie that somebody names by id or title; see `MovieFinder.find`."""
        return self.movies.movie_id[self._finder.find(text, year, movie_id, title_first, with_suggestions)].item()

    def movie_ids_of(self, text: str) -> list[Id]:
        """Return the ids of movies that somebody names with commas between them; see `MovieFinder.find_all`."""
        return self.movies.movie_id[self._finder.find_all(text)].tolist()

    def movies_called(self, title: str) -> list[Id]:
        """Return the movie_id of every movie that somebody may mean by a title."""
        return self.movies.movie_id[self._finder.called(title)].tolist()

    @torch.no_grad()
    def vector_of(self, history: History, fold_in: FoldIn | None = None) -> torch.Tensor:
        """Return a person's vector, float (P,): its inner products with `list_vectors` are the scores of their list.

        Args:
            fold_in: theirs, where it is at hand.
        """
        vector = torch.from_numpy(self._user_tower.vector(fold_in or self._fold_in(history), history.day.numpy(),
                                                          self.day))
        return self.model.join(vector.unsqueeze(0), _user_idx(history), _context(history))[0]

    @torch.no_grad()
    def vectors_of(self, users: range, ratings: Ratings) -> torch.Tensor:
        """Return the vectors, float (B, P), of users of the data set that follow each other, from their ratings."""
        row, movie_idx, day = (torch.from_numpy(getattr(ratings, name).astype(np.int64))
                               for name in ("user_idx", "movie_idx", "day"))
        stars = torch.from_numpy(ratings.stars.astype(np.float32)) * self.meta["stars_step"]
        return self.model.user_vectors(self._movie_table, torch.arange(users.start, users.stop),
                                       Context(row - users.start, movie_idx, stars, day), self.day)

    @torch.inference_mode()
    def recommend(self, history: History, top_n: int = 10, filters: Filters | None = None,
                  rank_by: str = "rating", num_reasons: int = 0) -> list[Recommendation]:
        """Return the best movies, best first; fewer than top_n if there are no more.

        Equal scores keep the order of movie_id. The prediction for a movie that the person has seen
        (`filters.include_seen`) knows the stars that they gave.

        Args:
            rank_by: "rating", the highest stars, movies with few ratings a little lower, or "relevance", what they will
                like to watch next.
            num_reasons: of each movie at most, see `explain`.

        Raises:
            DataError: relevance is asked for, and the run was trained without.
        """
        fold_in = self._fold_in(history)
        vector, allowed = self.vector_of(history, fold_in), self._allowed(filters, history)
        if rank_by == "rating":
            order, scores = self._best_movies.find(vector.numpy(), allowed, top_n)
        else:
            order = best_of(only(self._relevance(history, vector).numpy(), allowed), top_n)
            scores = self._best_movies.products(vector.numpy(), order)
        rated = _given(history, order) if filters is not None and filters.include_seen else None
        lines = self._predicted(history, fold_in, order, scores + self._margins[order], rated)
        if num_reasons:
            self._explain(history, fold_in, lines, num_reasons, rank_by)
        return lines

    @torch.inference_mode()
    def predict(self, history: History, movie_ids: Iterable[Id]) -> np.ndarray:
        """Return the stars that a person would give some movies, float32 (N,), on the day asked about.

        That for a movie that the person has rated knows the stars that they gave; of a movie without training ratings
        only its features speak.

        Args:
            history: of a user of the data set or of somebody new; it may be empty.
            movie_ids: any movies (N), in any order.

        Raises:
            DataError: a movie_id that the data set does not have.
        """
        scores = self._scores(history, self._fold_in(history), self._indices(movie_ids))
        return self.model.stars(torch.from_numpy(scores)).numpy()

    def predictions(self, history: History, movie_ids: Iterable[Id]) -> list[Recommendation]:
        """Return what `predict` says of some movies as a list, the highest stars first; equal ones keep their order."""
        movie_idx, fold_in = self._indices(movie_ids), self._fold_in(history)
        score = self._scores(history, fold_in, movie_idx)
        order = np.argsort(-score, kind="stable")
        return self._predicted(history, fold_in, movie_idx[order], score[order], _given(history, movie_idx[order]))

    def ask(self, history: History, top_n: int = 10, filters: Filters | None = None,
            passed: Iterable[Id] = ()) -> list[Recommendation]:
        """Return the movies whose ratings would tell most about a person, the one that tells most first; what they have
        rated is never among them. See recommending/asking.py.

        The list shows no stars: who sees some before they answer gives others (Cosley et al. 2003, "Is seeing
        believing?").

        Args:
            history: of a user of the data set or of somebody new; it may be empty.
            top_n: at most; there may be fewer movies that pass, and more than CANDIDATES are never asked.
            filters: which movies may be asked; their `include_seen` does not count.
            passed: movies that they were asked for and do not know.

        Raises:
            DataError: a movie_id in `passed` that the data set does not have.
        """
        allowed, number = self._allowed(filters, None), self.movies.num_train_ratings
        allowed[history.movie_idx.numpy()] = False
        allowed[self._indices(passed)] = False
        candidates = best_known(number, allowed)
        chosen = choose(self._user_tower.rows[candidates, :, :-1],
                        self._user_tower.covariance(history.movie_idx.numpy()), self._second_moment,
                        number[candidates].astype(float), top_n)
        return self._lines(candidates[chosen])

    def popular(self, top_n: int = 10, filters: Filters | None = None) -> list[Recommendation]:
        """Return the movies with the most training ratings; their stars are the mean of these, shrunk where few."""
        order = best_of(only(self.movies.num_train_ratings.astype(np.float32), self._allowed(filters, None)), top_n)
        return self._lines(order, stars=(self.model.config.stars_mean + self._movie_table.mean[order]).tolist())

    def search(self, text: str, filters: Filters) -> list[Recommendation]:
        """Return the movies that pass whose title has a text in it, most ratings first; see `MovieFinder.search`."""
        allowed = self._allowed(filters, None)
        return self._lines(np.array([movie for movie in self._finder.search(text) if allowed[movie]], np.int64))

    def search_alike(self, text: str) -> list[Recommendation]:
        """Return movies with a title, or a word in it, much like a text that a search does not find."""
        return self.lines_of(self._finder.search_alike(text))

    def lines_of(self, movie_idx: list[int]) -> list[Recommendation]:
        """Return some movies as a list, in their order."""
        return self._lines(np.array(movie_idx, np.int64))

    def suggestion(self, text: str) -> str:
        """Return a question that names movies with a title much like a text, or words; "" where there are none."""
        return self._finder.suggestion(text)

    def busiest_users(self, top_n: int) -> list[tuple[Id, int]]:
        """Return the ids of the users with the most ratings, and these numbers; equal ones by their ids."""
        number = np.diff(self.users.offset)
        order = np.argsort(-number, kind="stable")[:top_n]
        return list(zip(self.users.user_id[order].tolist(), number[order].tolist(), strict=True))

    @torch.inference_mode()
    def similar(self, movie_id: Id, top_n: int = 10, filters: Filters | None = None) -> list[Recommendation]:
        """Return the movies whose vectors have the highest cosine with a movie's, nearest first, itself left out.

        The coordinates that hold biases do not count: two movies are not alike because both are liked.

        Raises:
            DataError: there is no such movie.
        """
        movie_idx = self.movie_idx_of(movie_id)
        vectors = normalize(self._movie_table.vectors.flatten(1))  # (M, E D)
        cosines = (vectors @ vectors[movie_idx]).numpy()  # (M,)
        allowed = self._allowed(filters, None)
        allowed[movie_idx] = False
        order = best_of(only(cosines, allowed), top_n)
        return self._lines(order, similarity=cosines[order].tolist())

    def vectors_without_bias(self, filters: Filters | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the indices of the movies that pass, int64 (F,), and their vectors without biases, float (F, E D)."""
        movie_idx = torch.from_numpy(self._allowed(filters, None).nonzero()[0])
        return movie_idx, self._movie_table.vectors[movie_idx].flatten(1)

    @torch.inference_mode()
    def explain(self, history: History, recommendations: list[Recommendation], num_reasons: int = NUM_REASONS,
                rank_by: str = "rating") -> None:
        """Fill `because` of each recommendation with the rated movies that raised its score most."""
        self._explain(history, self._fold_in(history), recommendations, num_reasons, rank_by)

    def _explain(self, history: History, fold_in: FoldIn, recommendations: list[Recommendation], num_reasons: int,
                 rank_by: str) -> None:
        if not len(history.movie_idx) or not recommendations:
            return
        listed = np.searchsorted(self.movies.movie_id, [line.movie_id for line in recommendations])
        movie_idx, stars = history.movie_idx.numpy(), history.stars.numpy()
        effects = self._user_tower.contributions(fold_in, listed)
        if history.user_idx is not None and self.model.item_based is not None:
            effects = float(self.model.share) * effects
        trust = float(self.model.trust(torch.tensor(len(movie_idx))))
        of_means = self.model.above_means(_context(history)).numpy() / (len(movie_idx) + MEAN_SHRINK)
        effects = trust * effects + (1 - trust) * of_means
        if rank_by == "relevance" and self.model.relevance is not None:
            relevance = self.model.relevance
            is_new = history.user_idx is None
            of_taste = relevance.contributions(_context(history), torch.from_numpy(listed), is_new).numpy()
            effects = of_taste + float(relevance.weights[int(is_new), 2]) * effects
        best = (-effects).argsort(1, kind="stable")[:, :num_reasons]
        for recommendation, *reasons in zip(recommendations, movie_idx[best].tolist(), stars[best].tolist(),
                                            np.take_along_axis(effects, best, 1).tolist(), strict=True):
            recommendation.because = [
                Reason(self.movies.movie_id[movie].item(), self.movies.title[movie], given, value)
                for movie, given, value in zip(*reasons, strict=True) if value >= LEAST_EFFECT]

    def _indices(self, movie_ids: Iterable[Id]) -> np.ndarray:
        """Return the indices of movies, int64 (N,); raises as `movie_idx_of`."""
        return np.array([self.movie_idx_of(movie_id) for movie_id in movie_ids], np.int64)

    def _fold_in(self, history: History) -> FoldIn:
        """Return a person's ridge regression."""
        return self._user_tower.fold_in(history.user_idx, history.movie_idx.numpy(), history.stars.numpy(),
                                        history.day.numpy())

    def _scores(self, history: History, fold_in: FoldIn, movie_idx: np.ndarray) -> np.ndarray:
        """Return a person's scores of movies, int64 (N,), float32 (N,), as predictions have them."""
        bounds = products(self.list_vectors.numpy(), self.vector_of(history, fold_in).numpy(), movie_idx)
        return bounds + self._margins[movie_idx]

    def _predicted(self, history: History, fold_in: FoldIn, movie_idx: np.ndarray, score: np.ndarray,
                   rated: list[float | None] | None) -> list[Recommendation]:
        """Return a list of movies, int64 (N,), with what is predicted of each from its score, float32 (N,)."""
        link, scores = self.model.link, torch.from_numpy(score)
        squared, variance = self._user_tower.uncertainty(fold_in, movie_idx)
        features = spread_features(torch.full_like(scores, squared),
                                   torch.full_like(scores, len(history.movie_idx)), torch.from_numpy(variance))
        probabilities = link.probabilities(scores, features)
        ends = interval(probabilities, link.low, link.step, INTERVAL)
        names = [f"{link.low + k * link.step:g}" for k in range(link.num_above + 1)]
        lines = self._lines(movie_idx, stars=link(scores).tolist(), rated=rated)
        columns = link(scores - torch.from_numpy(self._margins[movie_idx])).tolist(), *map(torch.Tensor.tolist, ends)
        for line, bound, lowest, highest, chances in zip(lines, *columns, probabilities.tolist(), strict=True):
            line.stars_bound, line.interval = bound, [lowest, highest]
            line.probabilities = dict(zip(names, chances, strict=True))
        return lines

    def _relevance(self, history: History, vector: torch.Tensor) -> torch.Tensor:
        """Return the relevance of all movies to a person, float (M,), from their vector of the rating, float (P,)."""
        if self.model.relevance is None:
            raise DataError("this run has no order by relevance; train one: python main.py --relevance_weight 1 "
                            "--run_dir DIR")
        user = self.model.relevance.user_vectors(_context(history), vector.unsqueeze(0), history.user_idx is None)[0]
        return self._relevance_vectors @ user

    @cached_property
    def _relevance_vectors(self) -> torch.Tensor:
        """The movies' vectors of relevance, float (M, L + 1 + P); made when first asked for."""
        assert self.model.relevance is not None
        return self.model.relevance.movie_vectors(self.model.movie_vectors(self.day, self._movie_table))

    @cached_property
    def _second_moment(self) -> np.ndarray:
        """What the predictions that are asked for most have to do with a person's vector, float32 (E, D + 1, D + 1);
        made when first asked for."""
        return second_moment(self._user_tower.rows[..., :-1], self.movies.num_train_ratings)

    @cached_property
    def _finder(self) -> MovieFinder:
        """Looks titles up; made when first asked for."""
        return MovieFinder(self.movies)

    @cached_property
    def _folded_titles(self) -> list[str]:
        """All titles in the form in which a filter looks into them; made when first asked for."""
        return [fold(title) for title in self.movies.title]

    def _allowed(self, filters: Filters | None, history: History | None) -> np.ndarray:
        """Return which movies may be listed, bool (M,)."""
        return self._passing(filters, history) & self._as_of.released(self.movies.year)

    def _passing(self, filters: Filters | None, history: History | None) -> np.ndarray:
        """Return which movies pass the filters, and are not to be left out as seen, bool (M,)."""
        filters, movies = filters or Filters(), self.movies
        allowed = movies.num_train_ratings >= filters.min_ratings
        if filters.year_from is not None:
            allowed &= (movies.year > 0) & (movies.year >= filters.year_from)
        if filters.year_to is not None:
            allowed &= (movies.year > 0) & (movies.year <= filters.year_to)
        if filters.title:
            text = fold(filters.title)
            allowed &= np.array([text in title for title in self._folded_titles])
        if history is not None and not filters.include_seen:
            allowed[history.movie_idx.numpy()] = False
        return allowed

    def _lines(self, order: np.ndarray, stars: list[float] | None = None, similarity: list[float] | None = None,
               rated: list[float | None] | None = None) -> list[Recommendation]:
        """Return a list of movies, int64 (N,), best first, with what is said of each (N)."""
        movies, nothing = self.movies, [None] * len(order)
        columns = zip(order.tolist(), movies.movie_id[order].tolist(), movies.year[order].tolist(),
                      movies.num_train_ratings[order].tolist(), stars or nothing, similarity or nothing,
                      rated or nothing, strict=True)
        return [Recommendation(rank, movie_id, movies.title[movie], year or None, num_ratings, stars=predicted,
                               similarity=cosine, rated=given)
                for rank, (movie, movie_id, year, num_ratings, predicted, cosine, given) in enumerate(columns, start=1)]


def _context(history: History) -> Context:
    """Return a history as what the model knows of a batch of one."""
    return Context(torch.zeros_like(history.movie_idx), history.movie_idx, history.stars, history.day)


def _given(history: History, movie_idx: np.ndarray) -> list[float | None]:
    """Return the stars that a person gave movies, int64 (N,); None where they gave none."""
    given = dict(zip(history.movie_idx.tolist(), history.stars.tolist(), strict=True))
    return [given.get(movie) for movie in movie_idx.tolist()]


def _user_idx(history: History) -> torch.Tensor | None:
    """Return the index of a user of the data set, int64 (1,)."""
    return None if history.user_idx is None else torch.tensor([history.user_idx])
