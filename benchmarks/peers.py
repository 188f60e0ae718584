"""The models that compare_accuracy.py measures the towers against: how each is configured, fitted and asked.

Each is fitted on all that is known before the test, with the settings below, or with those of its `grid` that
validation ratings choose (`choose_settings`). Every one but knn_baseline predicts
user_bias[u] + movie_bias[m] + p_u . q_m once it is fitted, so that all movies are scored by one matrix product.
Needs requirements-bench.txt; a peer whose package is missing is left out.

    global_mean, bias   training/baselines.py
    svd, svdpp          Surprise's defaults; the ratings are shuffled first, as in the files that its figures are of
    knn_baseline        Surprise's, over movies, with the similarity that its documentation recommends; ranks nothing,
                        for it scores pair by pair
    als                 cmfrec's CMF with implicit features (Rendle, Zhang and Koren 2019), k 40 as by default; its
                        default penalty, 10 a row, has to be tuned for every data set (its documentation), so 0.08 a
                        rating, the best of 0.05 to 0.12 on the validation parts of MovieLens-1M and netflix-dense
                        (.8483 and .7832 against .8593 and .8887; on u1 .9063 against .8919)
    libmf               LIBMF, SGD with row-adaptive rates, k 128, 100 passes, penalty 0.05: tuned on MovieLens-1M. The
                        package's defaults do worse on netflix-dense (validation .8121 against .7799) and the same on u1
                        (.9303, .9312). It knows neither biases nor a seed; the seed permutes users, movies and ratings.
                        Run only where --models names it: in trials two of some 25 fits did not end
    myfm                Bayesian factorisation machine, Gibbs sampling, rank 32, 300 samples after 20 that are dropped
    myfm_svdpp          the same with the movies of each user and the users of each movie as features, relation blocks
                        as in its documentation (Rendle et al. 2019, "SVD++ flipped")
    myfm_time           the same with the day of the rating as a category; ranks as of no day
"""

import contextlib
import importlib
import io
import itertools
import math
import random
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from preprocessing.dataset import DataError
from training.baselines import fit_biases
from training.batches import DataSet, RatingTensors

PACKAGES = {"surprise": "scikit-surprise", "cmfrec": "cmfrec", "libmf.mf": "libmf", "myfm": "myfm"}


@dataclass
class Fitted:
    """What a fit leaves: a score for any user and movie, in stars, not cut to the scale."""

    fit_s: float
    user_bias: torch.Tensor | None = None  # (U,)
    movie_bias: torch.Tensor | None = None  # (M,)
    user: torch.Tensor | None = None  # (U, K)
    movie: torch.Tensor | None = None  # (M, K)
    predicted: torch.Tensor | None = None  # (R,) of the test part, where a score needs more than a user and a movie
    no_ranking: str = ""  # the reason, where there is none

    def score_users(self, users: torch.Tensor) -> torch.Tensor:
        """Score all movies for users (B,): (B, M)."""
        return self.user[users] @ self.movie.T + self.user_bias[users].unsqueeze(1) + self.movie_bias

    def predict(self, test: RatingTensors) -> torch.Tensor:
        """Predict the stars of the test part (R,)."""
        if self.predicted is not None:
            return self.predicted
        user_idx, movie_idx = test.user_idx(), test.movie_idx.long()
        blocks = [(self.user[u] * self.movie[m]).sum(1) + self.user_bias[u] + self.movie_bias[m]
                  for u, m in zip(user_idx.split(4096), movie_idx.split(4096), strict=True)]
        return torch.cat(blocks)


def importable(package: str) -> bool:
    """Tell whether a package can be used here, quietly."""
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # libmf prints, and warns of itself
            warnings.simplefilter("ignore")
            importlib.import_module(package)
    except (ImportError, OSError):
        return False
    return True


def columns_of(data: DataSet) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return user_idx, movie_idx and stars of the training part as arrays (R,)."""
    train = data.train
    return (train.user_idx().numpy(), train.movie_idx.long().numpy(),
            train.stars.numpy().astype(np.float64) * data.meta["stars_step"])


# --- baselines --------------------------------------------------------------------------------------------------


def fit_global_mean(data: DataSet, seed: int, num_threads: int) -> Fitted:
    start = time.perf_counter()
    mean = float(columns_of(data)[2].mean())
    return _from_biases(time.perf_counter() - start, torch.full((data.num_users,), mean), torch.zeros(data.num_movies),
                        no_ranking="all movies score the same")


def fit_bias(data: DataSet, seed: int, num_threads: int) -> Fitted:
    start = time.perf_counter()
    biases = fit_biases(data.train, data.num_movies, data.meta["stars_step"])
    return _from_biases(time.perf_counter() - start, biases.mean + biases.user, biases.movie)


def _from_biases(fit_s: float, user_bias: torch.Tensor, movie_bias: torch.Tensor, no_ranking: str = "") -> Fitted:
    return Fitted(fit_s, user_bias, movie_bias, torch.zeros(len(user_bias), 1), torch.zeros(len(movie_bias), 1),
                  no_ranking=no_ranking)


# --- Surprise ---------------------------------------------------------------------------------------------------


def fit_svd(data: DataSet, seed: int, num_threads: int, n_epochs: int = 20, **settings: float) -> Fitted:
    from surprise import SVD

    return from_surprise(*_fit_surprise(SVD(n_epochs=n_epochs, random_state=seed, **settings), data, seed), data)


def fit_svdpp(data: DataSet, seed: int, num_threads: int, n_epochs: int = 20, **settings: float) -> Fitted:
    from surprise import SVDpp

    algorithm = SVDpp(n_epochs=n_epochs, random_state=seed, cache_ratings=True, **settings)
    return from_surprise(*_fit_surprise(algorithm, data, seed), data)


def fit_knn_baseline(data: DataSet, seed: int, num_threads: int, k: int = 40) -> Fitted:
    from surprise import KNNBaseline

    algorithm = KNNBaseline(k=k, sim_options={"name": "pearson_baseline", "user_based": False}, verbose=False)
    algorithm, fit_s = _fit_surprise(algorithm, data, seed)
    pairs = zip(data.test.user_idx().tolist(), data.test.movie_idx.tolist(), strict=True)
    predicted = [algorithm.predict(user, movie).est for user, movie in pairs]
    return Fitted(fit_s, predicted=torch.tensor(predicted), no_ranking="scores pair by pair")


def _fit_surprise(algorithm: object, data: DataSet, seed: int) -> tuple[object, float]:
    """Fit one of Surprise's algorithms, user_idx and movie_idx being its raw ids; return it and its seconds."""
    import pandas as pd
    from surprise import Dataset, Reader

    user_idx, movie_idx, stars = columns_of(data)
    order = np.random.default_rng(seed).permutation(len(stars))
    frame = pd.DataFrame({"user": user_idx[order], "movie": movie_idx[order], "stars": stars[order]})
    reader = Reader(rating_scale=tuple(data.meta["stars_range"]))
    trainset = Dataset.load_from_df(frame, reader).build_full_trainset()
    start = time.perf_counter()
    algorithm.fit(trainset)
    return algorithm, time.perf_counter() - start


def from_surprise(algorithm: object, fit_s: float, data: DataSet) -> Fitted:
    """Take the vectors out of a fitted SVD or SVDpp; who is not in the training part has zeros, as in Surprise."""
    trainset = algorithm.trainset
    inner_user = torch.arange(trainset.n_users)
    user_idx = torch.tensor([trainset.to_raw_uid(inner) for inner in range(trainset.n_users)])
    movie_idx = torch.tensor([trainset.to_raw_iid(inner) for inner in range(trainset.n_items)])
    user_vectors = torch.from_numpy(algorithm.pu).clone()
    if hasattr(algorithm, "yj"):  # SVD++: p_u + |I_u|^-1/2 sum of y_j over I_u, once per user
        implicit = torch.from_numpy(algorithm.yj)
        for inner in inner_user.tolist():
            rated = torch.tensor([movie for movie, _ in trainset.ur[inner]])
            user_vectors[inner] += implicit[rated].sum(0) / len(rated) ** 0.5

    def spread(size: int, index: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return torch.zeros(size, *values.shape[1:], dtype=values.dtype).index_copy_(0, index, values)

    return Fitted(fit_s, spread(data.num_users, user_idx, torch.from_numpy(algorithm.bu)) + trainset.global_mean,
                  spread(data.num_movies, movie_idx, torch.from_numpy(algorithm.bi)),
                  spread(data.num_users, user_idx, user_vectors),
                  spread(data.num_movies, movie_idx, torch.from_numpy(algorithm.qi)))


# --- alternating least squares and LIBMF ------------------------------------------------------------------------


def fit_als(data: DataSet, seed: int, num_threads: int, niter: int = 10, k: int = 40, l2: float = 0.08) -> Fitted:
    from cmfrec import CMF
    from scipy.sparse import coo_matrix

    user_idx, movie_idx, stars = columns_of(data)
    ratings = coo_matrix((stars, (user_idx, movie_idx)), shape=(data.num_users, data.num_movies))
    model = CMF(k=k, lambda_=l2, scale_lam=True, add_implicit_features=True, precompute_for_predictions=False,
                random_state=seed, nthreads=num_threads, niter=niter)
    start = time.perf_counter()
    model.fit(ratings)
    fit_s = time.perf_counter() - start
    sides = []
    for vectors, bias, index in ((model.A_, model.user_bias_, user_idx), (model.B_, model.item_bias_, movie_idx)):
        rated = torch.from_numpy(np.bincount(index, minlength=len(vectors)) > 0)  # the others' rows mean nothing
        sides.append((torch.from_numpy(bias).where(rated, 0), torch.from_numpy(vectors).where(rated.unsqueeze(1), 0)))
    (user_bias, user), (movie_bias, movie) = sides
    return Fitted(fit_s, user_bias + float(model.glob_mean_), movie_bias, user, movie)


def fit_libmf(data: DataSet, seed: int, num_threads: int, nr_iters: int = 100, k: int = 128,
              l2: float = 0.05) -> Fitted:
    importable("libmf.mf")  # quietly
    from libmf import mf

    user_idx, movie_idx, stars = columns_of(data)
    generator = np.random.default_rng(seed)
    user_label, movie_label = generator.permutation(data.num_users), generator.permutation(data.num_movies)
    triples = np.stack([user_label[user_idx], movie_label[movie_idx], stars], 1).astype(np.float32)
    triples = triples[generator.permutation(len(triples))]
    model = mf.MF(k=k, nr_iters=nr_iters, lambda_p1=0.0, lambda_q1=0.0, lambda_p2=l2, lambda_q2=l2,
                  nr_threads=num_threads, quiet=True)
    start = time.perf_counter()
    model.fit(triples)
    fit_s = time.perf_counter() - start
    sides = []
    for label, factors in ((user_label, model.p_factors()), (movie_label, model.q_factors())):
        full = np.full((len(label), factors.shape[1]), np.nan, np.float32)  # LIBMF stops at the last one with ratings
        full[:len(factors)] = factors
        full = torch.from_numpy(full[label])
        sides.append((~full.isnan().any(1, keepdim=True), full.nan_to_num()))
    (user_known, user), (movie_known, movie) = sides
    # Who or what has no ratings scores the mean, by LIBMF's rule: mean - mean [both known] + p_u . q_m.
    mean = float(model.model.b)
    return Fitted(fit_s, torch.full((data.num_users,), mean), torch.zeros(data.num_movies),
                  torch.cat([user, -mean * user_known], 1), torch.cat([movie, movie_known.float()], 1))


# --- myFM -------------------------------------------------------------------------------------------------------


def fit_myfm(data: DataSet, seed: int, num_threads: int, implicit: bool = False, days: bool = False,
             rank: int = 32, num_burn_in: int = 20, num_samples: int = 300) -> Fitted:
    """Fit a Bayesian factorisation machine on relation blocks of users and of movies."""
    from myfm import MyFMRegressor, RelationBlock
    from scipy import sparse

    user_idx, movie_idx, stars = columns_of(data)
    user_rows, movie_rows = (sparse.identity(size, format="csr") for size in (data.num_users, data.num_movies))
    groups = [data.num_users, data.num_movies]
    if implicit:
        rated = sparse.csr_matrix((np.ones(len(stars)), (user_idx, movie_idx)), (data.num_users, data.num_movies))
        user_rows, movie_rows = (sparse.hstack([identity, _row_normed(matrix)], format="csr")
                                 for identity, matrix in ((user_rows, rated), (movie_rows, rated.T.tocsr())))
        groups = [data.num_users, data.num_movies, data.num_movies, data.num_users]
    day_rows = test_day_rows = None
    if days:
        known, column = np.unique(data.train.day.numpy(), return_inverse=True)
        day_rows = sparse.identity(len(known), format="csr")[column]
        test_day = data.test.day.numpy()
        column = np.searchsorted(known, test_day).clip(max=len(known) - 1)
        seen = np.flatnonzero(known[column] == test_day)  # a day without training ratings has no features
        test_day_rows = sparse.csr_matrix((np.ones(len(seen)), (seen, column[seen])), (len(test_day), len(known)))
        groups = [len(known), *groups]
    model = MyFMRegressor(rank=rank, random_seed=seed)
    start = time.perf_counter()
    # It draws a bar of its own, wanted only where someone watches.
    with contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO()):
        model.fit(day_rows, stars, X_rel=[RelationBlock(user_idx, user_rows), RelationBlock(movie_idx, movie_rows)],
                  group_shapes=groups, n_iter=num_burn_in + num_samples, n_kept_samples=num_samples)
    fit_s = time.perf_counter() - start
    predicted = None
    if days:
        blocks = [RelationBlock(data.test.user_idx().numpy(), user_rows),
                  RelationBlock(data.test.movie_idx.long().numpy(), movie_rows)]
        predicted = torch.from_numpy(model.predict(test_day_rows, blocks, n_workers=num_threads))
    first = groups[0] if days else 0
    return _from_samples(fit_s, model.predictor_.samples, first, user_rows, movie_rows, predicted)


def _row_normed(matrix: object) -> object:
    """Return a sparse matrix of ones with each row divided by the root of its number of ones (Koren 2008)."""
    from scipy import sparse

    return sparse.diags(np.maximum(np.diff(matrix.indptr), 1) ** -0.5) @ matrix


def _from_samples(fit_s: float, samples: list, first: int, user_rows: object, movie_rows: object,
                  predicted: torch.Tensor | None) -> Fitted:
    """Write the mean of the samples' predictions as biases and one dot product, the samples' vectors end to end.

    A sample predicts w_0 + w . x + sum over i < j of (v_i . v_j) x_i x_j (Rendle 2010), x being [days, user, movie];
    the pairs within a user's features are part of the user's bias, those within a movie's of its bias; else p_u . q_m.
    """
    border = first + user_rows.shape[1]
    sides = []
    for rows, columns in ((user_rows, slice(first, border)), (movie_rows, slice(border, None))):
        bias, vectors, squares = 0.0, [], rows.multiply(rows).tocsr()
        for sample in samples:
            weight, table = np.asarray(sample.w)[columns], np.asarray(sample.V)[columns]
            summed = rows @ table
            bias = bias + rows @ weight + 0.5 * ((summed**2).sum(1) - squares @ (table**2).sum(1))
            vectors.append(summed.astype(np.float32))
        sides.append((torch.from_numpy(bias / len(samples)), torch.from_numpy(np.concatenate(vectors, 1))))
    (user_bias, user), (movie_bias, movie) = sides
    return Fitted(fit_s, (user_bias + np.mean([sample.w0 for sample in samples])).float(), movie_bias.float(),
                  user / len(samples), movie, predicted)


def fit_myfm_svdpp(data: DataSet, seed: int, num_threads: int, rank: int = 32, num_samples: int = 300) -> Fitted:
    return fit_myfm(data, seed, num_threads, implicit=True, rank=rank, num_samples=num_samples)


def fit_myfm_time(data: DataSet, seed: int, num_threads: int, rank: int = 32, num_samples: int = 300) -> Fitted:
    return fit_myfm(data, seed, num_threads, implicit=True, days=True, rank=rank, num_samples=num_samples)


@dataclass(frozen=True)
class Peer:
    """A model to fit, `fit(data, seed, num_threads, **settings)`, and the values to try of each setting."""

    fit: Callable[..., Fitted]
    title: str
    package: str = ""
    grid: dict[str, tuple] = field(default_factory=dict)
    is_random: bool = True
    is_default: bool = True


def points_of(grid: dict[str, tuple], max_points: int) -> list[dict]:
    """Return the points of a grid; a sample where they are more (Bergstra and Bengio 2012), the same every time."""
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())] if grid else []
    return random.Random(0).sample(points, max_points) if len(points) > max_points else points


def choose_settings(grid: dict[str, tuple], num_trials: int, measure: Callable[..., float], name: str,
                    highest: bool = False) -> list[dict]:
    """Measure settings of a grid, or of a sample of it, by `measure(**settings)`.

    Args:
        name: of what is measured; the lowest is best, or else the highest.

    Returns:
        What was tried, best first: the settings and what was measured; None, and last, where it is no number, for a fit
        may diverge. Empty for a peer without settings.
    """
    tried = []
    for settings in points_of(grid, num_trials):
        measured = measure(**settings)
        tried.append({**settings, name: measured if math.isfinite(measured) else None})
    sign = -1 if highest else 1
    return sorted(tried, key=lambda row: math.inf if row[name] is None else sign * row[name])


def validation_rmse(peer: Peer, data: DataSet, num_threads: int, **settings: object) -> float:
    """Fit a peer to the training part with some settings; return its RMSE on the validation part.

    Raises:
        DataError: the data set has no validation ratings.
    """
    if not len(data.validation):
        raise DataError(f"{data.data_dir} has no validation ratings to choose the settings of {peer.title} by; "
                        "preprocess it with a larger --val_fraction, or leave --trials out")
    fitted = peer.fit(replace(data, test=data.validation), 0, num_threads, **settings)
    stars = data.validation.stars.double() * data.meta["stars_step"]
    predicted = fitted.predict(data.validation).clamp(*data.meta["stars_range"])
    return float((predicted - stars).square().mean().sqrt())


RANKS = {"rank": (8, 16, 32, 64)}
PEERS = {
    "global_mean": Peer(fit_global_mean, "global mean", is_random=False),
    "bias": Peer(fit_bias, "user + movie bias", is_random=False),
    "knn_baseline": Peer(fit_knn_baseline, "Surprise KNNBaseline", "surprise", {"k": (20, 40, 80, 160)},
                         is_random=False),
    "svd": Peer(fit_svd, "Surprise SVD", "surprise", {
        "n_factors": (50, 100, 200, 400), "reg_all": (0.02, 0.05, 0.1), "lr_all": (0.005, 0.01),
        "n_epochs": (20, 40, 80)}),
    "svdpp": Peer(fit_svdpp, "Surprise SVD++", "surprise", {
        "n_factors": (10, 20, 40), "reg_all": (0.02, 0.05, 0.1), "n_epochs": (10, 20, 40)}),
    "als": Peer(fit_als, "cmfrec ALS + implicit", "cmfrec", {
        "k": (20, 40, 80, 160), "l2": (0.04, 0.06, 0.08, 0.1, 0.12, 0.16)}),
    "libmf": Peer(fit_libmf, "LIBMF", "libmf.mf", {
        "k": (32, 64, 128, 256), "l2": (0.01, 0.02, 0.05, 0.08, 0.12), "nr_iters": (5, 10, 20, 40, 100)},
                  is_default=False),
    "myfm": Peer(fit_myfm, "myFM", "myfm", RANKS),
    "myfm_svdpp": Peer(fit_myfm_svdpp, "myFM SVD++ flipped", "myfm", RANKS),
    "myfm_time": Peer(fit_myfm_time, "myFM timeSVD++ flipped", "myfm", RANKS),
}
