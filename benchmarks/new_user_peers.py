"""What compare_new_users.py asks beside the towers: models that answer people who were not there when they were fitted.

Each is fitted to all ratings of the people who stay, and then answers somebody new from their ratings alone, without
being fitted again. A scorer maps what people give to scores of all movies: predicted stars, not cut to the scale, or
any numbers that order the movies. Needs requirements-bench.txt; a peer whose package is missing is left out.

    movie_mean    the movie's mean, shrunk to the mean of all; whatever the person gives
    two_means     the same, and the person's mean over those of the movies that they give, shrunk to zero
    als           cmfrec's CMF with implicit features, biases and vector by `factors_warm`; a penalty is one a rating
                  ("rating", its scale_lam, as in peers.py) or one a row ("row", its default), which asks more of people
                  with few ratings
    popularity    the movie's number of ratings; whatever the person gives
    implicit_als  implicit's alternating least squares, `recalculate_user`
    ease          a linear model of a user's row on itself, closed form (Steck 2019)

The last two know pairs without stars, all that are given or those of 4 stars and more, whichever validation prefers;
they list the popular movies for people who give none such.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers import columns_of
from benchmarks.ranking_peers import SIGNALS, ease_weights, pairs_of
from training.batches import DataSet
from training.metrics import relevant_stars

Given = list[tuple[NDArray[np.int64], NDArray[np.float64]]]  # by person, movie_idx and stars (R,)
Scorer = Callable[[Given], NDArray[np.float64]]  # of B people -> scores (B, M)
PACKAGES = {"cmfrec": "cmfrec", "implicit": "implicit", "scipy": "scipy"}


def fit_movie_mean(data: DataSet, seed: int, num_threads: int, shrink: float) -> Scorer:
    mean = _movie_mean(data, shrink)
    return lambda given: np.tile(mean, (len(given), 1))


def fit_two_means(data: DataSet, seed: int, num_threads: int, shrink: float, user_shrink: float) -> Scorer:
    mean = _movie_mean(data, shrink)
    return lambda given: np.stack([
        mean + (stars - mean[movie_idx]).sum() / (len(stars) + user_shrink) for movie_idx, stars in given])


def _movie_mean(data: DataSet, shrink: float) -> np.ndarray:
    """Return the means of the movies (M,), as if each had `shrink` more ratings of the mean of all."""
    _, movie_idx, stars = columns_of(data)
    total, number = np.bincount(movie_idx, stars, data.num_movies), np.bincount(movie_idx, minlength=data.num_movies)
    return (total + shrink * stars.mean()) / (number + shrink)


def fit_als(data: DataSet, seed: int, num_threads: int, k: int, penalty: tuple[str, float]) -> Scorer:
    from cmfrec import CMF
    from scipy.sparse import coo_matrix

    user_idx, movie_idx, stars = columns_of(data)
    model = CMF(k=k, lambda_=penalty[1], scale_lam=penalty[0] == "rating", add_implicit_features=True, use_float=False,
                random_state=seed, nthreads=num_threads)
    model.fit(coo_matrix((stars, (user_idx, movie_idx)), shape=(data.num_users, data.num_movies)))
    rated = np.bincount(movie_idx, minlength=data.num_movies) > 0  # the others' rows mean nothing
    movie_bias, vectors = np.where(rated, model.item_bias_, 0), np.where(rated[:, None], model.B_, 0)

    def score(given: Given) -> np.ndarray:
        people = [model.factors_warm(X_col=movie_idx, X_val=stars, return_bias=True) for movie_idx, stars in given]
        return np.stack([vectors @ vector + movie_bias + bias + model.glob_mean_ for vector, bias in people])

    return score


def fit_popularity(data: DataSet, seed: int, num_threads: int) -> Scorer:
    number = np.bincount(columns_of(data)[1], minlength=data.num_movies).astype(np.float64)
    return lambda given: np.tile(number, (len(given), 1))


def fit_implicit_als(data: DataSet, seed: int, num_threads: int, signal: str, **settings: float) -> Scorer:
    from implicit.cpu.als import AlternatingLeastSquares
    from threadpoolctl import threadpool_limits

    model = AlternatingLeastSquares(**settings, iterations=15, random_state=seed, num_threads=num_threads)
    with threadpool_limits(1, "blas"):  # implicit has threads of its own; with BLAS's beside them it warns and is slow
        model.fit(pairs_of(data, signal), show_progress=False)
    return _of_pairs(data, signal, lambda rows: model.recalculate_user(
        np.arange(rows.shape[0]), rows) @ model.item_factors.T)


def fit_ease(data: DataSet, seed: int, num_threads: int, signal: str, penalty: float) -> Scorer:
    weights = ease_weights(pairs_of(data, signal), penalty)
    return _of_pairs(data, signal, lambda rows: rows @ weights)


def _of_pairs(data: DataSet, signal: str, score: Callable[[object], np.ndarray]) -> Scorer:
    """Return a scorer of a function from pairs without stars, sparse (B, M), to scores (B, M)."""
    from scipy.sparse import csr_matrix

    lowest = relevant_stars(*data.meta["stars_range"]) if signal == "liked" else -np.inf
    popular = fit_popularity(data, 0, 1)

    def score_given(given: Given) -> np.ndarray:
        chosen = [movie_idx[stars >= lowest] for movie_idx, stars in given]
        sizes = np.array([len(movie_idx) for movie_idx in chosen])
        rows = csr_matrix((np.ones(sizes.sum(), np.float32), np.concatenate(chosen), np.append(0, sizes.cumsum())),
                          (len(given), data.num_movies))
        return np.where(sizes[:, None] > 0, score(rows), popular(given))

    return score_given


@dataclass(frozen=True)
class NewUserPeer:
    """A model to fit, `fit(data, seed, num_threads, **settings)`, and the values to try of each setting."""

    fit: Callable[..., Scorer]
    title: str
    package: str = ""
    grid: dict[str, tuple] = field(default_factory=dict)
    is_random: bool = True
    is_default: bool = True
    predicts_stars: bool = True  # and orders by them; else it only orders
    needs_ratings: bool = False  # of people who give none it knows nothing


SHRINK = (1, 2, 5, 10, 20, 50)
PENALTIES = (*(("rating", l2) for l2 in (0.04, 0.08, 0.12)), *(("row", l2) for l2 in (3, 10, 20, 40, 80)))
PEERS = {
    "movie_mean": NewUserPeer(fit_movie_mean, "movie's mean", grid={"shrink": SHRINK}, is_random=False),
    "two_means": NewUserPeer(fit_two_means, "movie's mean + person's", is_random=False,
                             grid={"shrink": SHRINK, "user_shrink": (0.5, 1, 2, 3, 5, 10)}),
    "als": NewUserPeer(fit_als, "cmfrec ALS, factors_warm", "cmfrec", {"k": (10, 20, 40), "penalty": PENALTIES},
                       needs_ratings=True),
    "popularity": NewUserPeer(fit_popularity, "popularity", is_random=False, predicts_stars=False),
    "implicit_als": NewUserPeer(fit_implicit_als, "implicit ALS", "implicit", {
        "signal": SIGNALS, "factors": (8, 16, 32, 64, 128), "regularization": (0.01, 0.1, 1, 10, 100),
        "alpha": (1, 3, 10, 30)}, predicts_stars=False),
    "ease": NewUserPeer(fit_ease, "EASE", "scipy", {
        "signal": SIGNALS, "penalty": (300, 1000, 2000, 4000, 8000, 16000, 32000, 64000)}, is_random=False,
                        predicts_stars=False),
}
