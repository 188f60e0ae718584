"""The models that compare_ranking.py orders lists by beside the towers, and how their settings are chosen.

Each is fitted to (user, movie) pairs without stars: to all ratings ("rated") or to those of 4 stars and more ("liked"),
whichever validation prefers; svd and svdpp, which are fitted to stars, are those of peers.py, with Surprise's defaults.
Needs requirements-bench.txt; a peer whose package is missing is left out.

    popularity   the movie's number of pairs
    ease         a linear model of a user's row on itself, closed form (Steck 2019)
    als          implicit's alternating least squares on weighted pairs (Hu, Koren and Volinsky 2008), 15 sweeps
    bpr          implicit's Bayesian personalised ranking (Rendle et al. 2009)
    lightfm      LightFM without features, WARP loss (Weston et al. 2011)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from benchmarks.peers import PEERS as RATING_PEERS
from preprocessing.dataset import DataError
from training.batches import DataSet, RatingTensors
from training.metrics import evaluate_ranking, relevant_stars

PACKAGES = {"scipy": "scipy", "implicit": "implicit", "lightfm": "rectools-lightfm", "surprise": "scikit-surprise"}
SIGNALS = ("rated", "liked")
Scorer = Callable[[torch.Tensor], torch.Tensor]  # user_idx int64 (B,) -> scores (B, M)


def pairs_of(data: DataSet, signal: str) -> object:
    """Return the training part as a sparse float32 matrix (U, M) of ones."""
    from scipy.sparse import csr_matrix

    train = data.train
    chosen = torch.ones(len(train), dtype=torch.bool)
    if signal == "liked":
        chosen = train.stars.float() * data.meta["stars_step"] >= relevant_stars(*data.meta["stars_range"])
    user_idx, movie_idx = train.user_idx()[chosen].numpy(), train.movie_idx.long()[chosen].numpy()
    return csr_matrix((np.ones(len(user_idx), np.float32), (user_idx, movie_idx)), (data.num_users, data.num_movies))


def _inner_product(user: np.ndarray, movie: np.ndarray) -> Scorer:
    """Score by vectors of users (U, K) and of movies (M, K)."""
    user, movie = torch.from_numpy(np.ascontiguousarray(user)), torch.from_numpy(np.ascontiguousarray(movie))
    return lambda users: user[users] @ movie.T


def fit_popularity(data: DataSet, seed: int, num_threads: int, signal: str) -> Scorer:
    number = torch.from_numpy(np.asarray(pairs_of(data, signal).sum(0))).squeeze(0)  # (M,)
    return lambda users: number.repeat(len(users), 1)


def fit_ease(data: DataSet, seed: int, num_threads: int, signal: str, penalty: float) -> Scorer:
    pairs = pairs_of(data, signal)
    weights = ease_weights(pairs, penalty)
    return lambda users: torch.from_numpy(pairs[users.numpy()] @ weights)


def ease_weights(pairs: object, penalty: float) -> np.ndarray:
    """Fit EASE to X, sparse (U, M): return the B, float32 (M, M), of zero diagonal that minimises
    |X - X B|^2 + penalty |B|^2 (Steck 2019, equation 8).

    With P = (X'X + penalty I)^-1, B_ij = -P_ij / P_jj off the diagonal. Takes 16 M^2 bytes while fitting.
    """
    gram = (pairs.T @ pairs).toarray().astype(np.float64)
    gram[np.diag_indices_from(gram)] += penalty
    inverse = np.linalg.inv(gram)
    weights = (inverse / -np.diag(inverse)).astype(np.float32)
    np.fill_diagonal(weights, 0)
    return weights


def fit_als(data: DataSet, seed: int, num_threads: int, signal: str, **settings: float) -> Scorer:
    from implicit.cpu.als import AlternatingLeastSquares

    model = AlternatingLeastSquares(**settings, iterations=15, random_state=seed, num_threads=num_threads)
    return _fit_implicit(model, data, signal)


def fit_bpr(data: DataSet, seed: int, num_threads: int, signal: str, **settings: float) -> Scorer:
    from implicit.cpu.bpr import BayesianPersonalizedRanking

    model = BayesianPersonalizedRanking(**settings, random_state=seed, num_threads=num_threads)
    return _fit_implicit(model, data, signal)


def _fit_implicit(model: object, data: DataSet, signal: str) -> Scorer:
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, "blas"):  # implicit has threads of its own; with BLAS's beside them it warns and is slow
        model.fit(pairs_of(data, signal), show_progress=False)
    return _inner_product(model.user_factors, model.item_factors)


def fit_lightfm(data: DataSet, seed: int, num_threads: int, signal: str, epochs: int, **settings: float) -> Scorer:
    from lightfm import LightFM

    model = LightFM(**settings, loss="warp", random_state=seed)
    model.fit(pairs_of(data, signal).tocoo(), epochs=epochs, num_threads=num_threads)
    one = np.ones((data.num_users, 1), np.float32)  # the user's bias orders nothing
    return _inner_product(np.concatenate([model.user_embeddings, one], 1),
                          np.concatenate([model.item_embeddings, model.item_biases[:, None]], 1))


def fit_svd(data: DataSet, seed: int, num_threads: int) -> Scorer:
    return RATING_PEERS["svd"].fit(data, seed, num_threads).score_users


def fit_svdpp(data: DataSet, seed: int, num_threads: int) -> Scorer:
    return RATING_PEERS["svdpp"].fit(data, seed, num_threads).score_users


@dataclass(frozen=True)
class RankingPeer:
    """A model to fit, and the values that each of its settings may take; without such it has nothing to choose."""

    fit: Callable[..., Scorer]
    title: str
    package: str
    grid: dict[str, tuple] = field(default_factory=dict)
    is_random: bool = True
    is_default: bool = True


FACTORS = (8, 16, 32, 64, 128)
PEERS = {
    "popularity": RankingPeer(fit_popularity, "popularity", "scipy", {"signal": SIGNALS}, is_random=False),
    "ease": RankingPeer(fit_ease, "EASE", "scipy", {
        "signal": SIGNALS, "penalty": (10, 30, 100, 200, 300, 500, 1000, 3000)}, is_random=False),
    "als": RankingPeer(fit_als, "implicit ALS", "implicit", {
        "signal": SIGNALS, "factors": FACTORS, "regularization": (0.01, 0.1, 1, 10, 100), "alpha": (1, 3, 10, 30)}),
    "bpr": RankingPeer(fit_bpr, "implicit BPR", "implicit", {
        "signal": SIGNALS, "factors": FACTORS, "regularization": (0.001, 0.01, 0.1),
        "learning_rate": (0.001, 0.003, 0.01), "iterations": (50, 100, 200)}),
    "lightfm": RankingPeer(fit_lightfm, "LightFM WARP", "lightfm", {
        "signal": SIGNALS, "no_components": FACTORS, "learning_rate": (0.01, 0.02, 0.05), "user_alpha": (0, 1e-6, 1e-5),
        "item_alpha": (0, 1e-6, 1e-5), "epochs": (10, 30, 100)}),
    "svd": RankingPeer(fit_svd, "Surprise SVD", "surprise"),
    "svdpp": RankingPeer(fit_svdpp, "Surprise SVD++", "surprise"),
}


def validation_ndcg(name: str, data: DataSet, num_threads: int, **settings: object) -> float:
    """Fit a peer to the training part with some settings; return its NDCG@10 on the validation part.

    Raises:
        DataError: the data set has no validation rating of `relevant_stars` or more.
    """
    measures = evaluate(PEERS[name].fit(data, 0, num_threads, **settings), data, [data.train], data.validation)
    if math.isnan(measures["ndcg@10"]):
        stars = relevant_stars(*data.meta["stars_range"])
        raise DataError(f"the data set has no validation rating of {stars:.3g} stars or more to choose the "
                        f"settings of {name} by; preprocess it with a larger --val_fraction")
    return measures["ndcg@10"]


def evaluate(score_users: Scorer, data: DataSet, seen: list[RatingTensors], held_out: RatingTensors
             ) -> dict[str, float]:
    """Measure the order of all movies that have training ratings and that a user has not seen."""
    number = torch.tensor(data.movies.num_train_ratings)
    return evaluate_ranking(score_users, seen, held_out, number > 0, num_ratings=number,
                            stars_step=data.meta["stars_step"], stars_range=data.meta["stars_range"])
