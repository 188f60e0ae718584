"""The model's evaluation written a second time, the plainest way: NumPy in float64, one person after another.

Nothing of the product is imported; test_referee.py compares with this what the commands write. Read from the top, it
is also the shortest description of the model:

    Data       a data set's files: who gave which movie how many stars, on which day, in which split
    Towers     both towers: vectors of movies, and a person's vector, folded in from their ratings
    Model      the score of user-based and item-based towers, stars, the order of lists, reasons, relevance
    the rest   RMSE, MAE, NDCG, recall; the baselines; how the weights of relevance are fitted

Letters: M movies, R known ratings of a person, T questions, E members, D coordinates of a member. A person's vector has
D + 1 coordinates a member, the last their bias; a movie's has a constant there, and its own bias is kept apart.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy import optimize

SHRINK = 5.0  # a mean or a bias counts as if there were so many more ratings, without a surprise
FEW = 10.0  # ratings, of which half of what they say among few counts for relevance
CONSTANT = 0.5  # coordinate of every movie, which a person's bias multiplies
PERIODS = 32  # of a data set's days, in each of which a movie has another bias
WINDOWS = (1, 4, 16, 64)  # days, of a recent bias
STANDARD_ERRORS = 2.0  # by which the score of a movie is lower in a list
LIKED = 4.0  # stars, at least, of a movie that is worth finding
DATES = ("movie_bias_over_time", "recent_user_bias")  # parts of the model that know of days
SWAPPED = {"user": "movie", "movie": "user"}


class Ratings(NamedTuple):
    """Of one person, each array (R,)."""

    movie: np.ndarray
    stars: np.ndarray
    day: np.ndarray


def by_user(table: pd.DataFrame, num_users: int) -> list[Ratings]:
    """Return the ratings of each user of a table."""
    table = table.sort_values("user", kind="stable")
    begins = np.searchsorted(table.user, range(1, num_users))
    columns = (np.split(table[name].to_numpy(), begins) for name in Ratings._fields)
    return [Ratings(*of_user) for of_user in zip(*columns, strict=True)]


class Data:
    """The files of a data set; users and movies are numbered in the order of their ids."""

    def __init__(self, folder: Path) -> None:
        self.meta = json.loads((folder / "meta.json").read_text())
        self.users, self.movies, ratings = (pd.read_parquet(folder / f"{name}.parquet")
                                            for name in ("users", "movies", "ratings"))
        self.ratings = pd.DataFrame({"user": ratings.user_idx.astype(int), "movie": ratings.movie_idx.astype(int),
                                     "stars": ratings.stars * float(self.meta["stars_step"]),
                                     "day": ratings.day.astype(int), "split": ratings.split.astype(str)})
        (self.low, self.high), self.step = self.meta["stars_range"], self.meta["stars_step"]
        self.last_day = self.meta["num_days"] - 1
        self.num_ratings = np.bincount(self.split("train").movie, minlength=len(self.movies))  # of movies, in training

    def split(self, *names: str) -> pd.DataFrame:
        return self.ratings[self.ratings.split.isin(names)]


class Person(NamedTuple):
    """What ratings make of a person: their vector is the prior and a part from every rating."""

    known: Ratings
    prior: np.ndarray  # (E, D + 1)
    parts: np.ndarray  # (R, E, D + 1)
    vector: np.ndarray  # (E, D + 1)
    left: np.ndarray  # (R,), what the vector leaves unexplained of the ratings, in units of score


class Towers:
    """Movies are embedded, and a person is folded in from the movies that they have rated. In the item-based towers the
    roles are swapped: a person is a movie there, and their movies are its users."""

    def __init__(self, data: Data, config: dict, without: tuple[str, ...], tensors: dict[str, np.ndarray],
                 fitted: pd.DataFrame, year: np.ndarray) -> None:
        self.tensors, self.without, self.year = tensors, without, year
        self.shape = config["ensemble_size"], config["embedding_dim"] // config["ensemble_size"] + 1
        self.days_of_period = -(-data.meta["num_days"] // PERIODS)
        self.stars_mean = fitted.stars.mean()
        height = np.clip((self.stars_mean - data.low) / (data.high - data.low), 0.001, 0.999)
        self.offset = np.log(height / (1 - height))  # the score of the mean
        self.stars_low = data.low
        self.unit = (data.high - data.low) / 4  # stars that one of 1 to 5 stars is
        self.slope = max((self.stars_mean - data.low) * (data.high - self.stars_mean) / (data.high - data.low),
                         0.001 * self.unit)
        self.count = np.bincount(fitted.movie, minlength=len(year))
        self.mean = np.bincount(fitted.movie, fitted.stars - self.stars_mean, len(year)) / (self.count + SHRINK)
        self.vectors, self.biases = map(np.array, zip(*map(self.movie, range(len(year))), strict=True))

    def has(self, part: str) -> bool:
        return part not in self.without

    def mlp(self, tower: str, *x: np.ndarray, past: tuple[np.ndarray, ...] = ()) -> np.ndarray:
        """Return (E, D + 1) from the parts of an input: a hidden layer with ReLU, and a linear one, which also gets
        what goes past the hidden layer."""
        weight, bias, out, out_bias = (self.tensors[f"{tower}.{layer}"]
                                       for layer in ("hidden.weight", "hidden.bias", "out.weight", "out.bias"))
        hidden = np.maximum(weight @ np.concatenate(x) + bias, 0)
        return (out @ np.concatenate([hidden, *past]) + out_bias).reshape(self.shape)

    def movie(self, m: int) -> tuple[np.ndarray, np.ndarray]:
        """q_m = embedding + MLP(mean of the embedding; release year; rating count; who rated it) + W (who rated it),
        (E, D + 1); and its bias, (E,)."""
        year, n = self.year[m] * self.has("year"), self.count[m]
        age = (year - 1985) / 15 if year else 0.0
        features = np.array([age, age**2 - 1, year > 0, np.log(n + 1) / 3 - 2, 1 / np.sqrt(n + 1)])
        embedding = self.tensors["movie_tower.embedding"][m]
        raters = self.tensors["movie_tower.raters"][m]
        learned = self.mlp("movie_tower", embedding.mean(0), features * self.has("movie_features"), raters,
                           past=(raters,))
        constant = np.full((len(embedding), 1), CONSTANT * self.has("biases"))
        bias = (self.tensors["movie_tower.bias"][m] + learned[:, -1]) * self.has("biases")
        return np.hstack([embedding + learned[:, :-1], constant]), bias

    def surprise(self, known: Ratings) -> np.ndarray:
        """Return how far ratings lie above the shrunk means of their movies, in units, (R,)."""
        return (known.stars - self.stars_mean - self.mean[known.movie]) / self.unit

    def pool(self, table: np.ndarray, known: Ratings) -> np.ndarray:
        """(n + 1)^-1/2 sum over the n ratings j of (residual_j g_j + c_j), [g_j, c_j] being a row of the table; the
        residual is the surprise less its shrunk mean."""
        n, surprise = len(known.movie), self.surprise(known)
        by_residual, by_presence = np.hsplit(table[known.movie], 2)
        return ((surprise - surprise.sum() / (n + SHRINK)) @ by_residual + by_presence.sum(0)) / np.sqrt(n + 1)

    def prior(self, user: int | None, known: Ratings) -> np.ndarray:
        """MLP(user embedding; pooled history; user features) + W pooled history, (E, D + 1); somebody new has an
        embedding of zeros."""
        n, surprise = len(known.movie), self.surprise(known)
        features = np.array([np.log(n + 1) / 2 - 2, 2 * surprise.sum() / (n + SHRINK),
                             np.sqrt(surprise @ surprise / (n + 1)) - 1])
        embedding = self.tensors["user_embedding"][user or 0] * (user is not None)
        pooled = self.pool(self.tensors["user_tower.pooled"], known) * self.has("pooled_history")
        prior = self.mlp("user_tower", embedding * self.has("user_embedding"), pooled,
                         features * self.has("user_features"), past=(pooled,))
        prior[:, -1] *= self.has("biases")
        return prior

    def person(self, user: int | None, known: Ratings) -> Person:
        """Solve the ridge regression of the ratings, shrunk to the prior: rating j adds to it
        (V'V + diag(l2))^-1 v_j (residual_j - v_j . prior)."""
        prior, residual, l2 = self.prior(user, known), self.residual(known), self.l2(len(known.movie))
        parts, left = np.zeros((*residual.shape, prior.shape[1])), np.zeros(residual.shape)
        for h in range(len(prior)):
            v = self.vectors[known.movie, h]
            if self.has("fold_in"):
                parts[:, h] = np.linalg.solve(v.T @ v + np.diag(l2[h]), v.T * (residual[:, h] - v @ prior[h])).T
            left[:, h] = residual[:, h] - v @ (prior[h] + parts[:, h].sum(0))
        return Person(known, prior, parts, prior + parts.sum(0), left.mean(1))

    def residual(self, known: Ratings) -> np.ndarray:
        """Return what the biases of the movies leave of ratings, (R, E), in units of score."""
        value = np.interp((known.stars - self.stars_low) / self.unit, range(5), self.tensors["user_tower.star_values"])
        target = (known.stars - self.stars_mean) / self.slope + value - self.movie_bias(known.movie, known.day)
        return target[:, None] - self.biases[known.movie]

    def l2(self, n: int) -> np.ndarray:
        """Return what a distance from the prior costs somebody with n ratings, (E, D + 1)."""
        return np.exp(self.tensors["user_tower.log_base"]) + np.exp(self.tensors["user_tower.log_per_rating"]) * n

    def score(self, person: Person, movie: np.ndarray, day: np.ndarray) -> np.ndarray:
        """Return the scores of all questions to a person, (T,): the members' mean product, and what days add."""
        products = (self.vectors[movie] * person.vector).sum(-1) + self.biases[movie]
        return products.mean(1) + self.offset + self.movie_bias(movie, day) + self.user_bias(person, day)

    def movie_bias(self, movie: np.ndarray, day: np.ndarray) -> np.ndarray | float:
        if not self.has("movie_bias_over_time"):
            return 0.0
        return self.tensors["movie_bias_over_time.table"][movie, day // self.days_of_period]

    def user_bias(self, person: Person, day: np.ndarray) -> np.ndarray | float:
        """Return the weighted sum over windows of the shrunk mean of what the vector leaves of the ratings that are
        fewer days from the question."""
        if not self.has("recent_user_bias"):
            return 0.0
        score = np.zeros(len(day))
        shrinkages = np.exp(self.tensors["recent_user_bias.log_shrinkage"])
        for window, weight, shrinkage in zip(WINDOWS, self.tensors["recent_user_bias.weight"], shrinkages, strict=True):
            near = abs(day[:, None] - person.known.day) < window  # (T, R)
            score += weight * (near @ person.left) / (near.sum(1) + shrinkage)
        return score


class Model:
    """A checkpoint, of which parts can be left out; its statistics are not believed, but taken from the data set."""

    def __init__(self, path: Path, data: Data, without: tuple[str, ...] = ()) -> None:
        self.data, self.checkpoint = data, torch.load(path, weights_only=True)
        config, tensors = self.checkpoint["config"], {}
        for name, tensor in self.checkpoint["model"].items():
            part, _, rest = name.partition(".")
            tensors.setdefault(part, {})[rest] = tensor.double().numpy()
        fitted = data.split("train", "validation") if self.checkpoint["refit"] else data.split("train")
        without, self.tensors = (*config["without"], *without), tensors.get("relevance")
        self.link, self.step = tensors["link"], data.step
        self.share = tensors["share"][""] if "share" in tensors else 1.0  # of the user-based towers in a score
        year = data.movies.year.fillna(0).to_numpy(int)
        self.users, self.movies = Towers(data, config, without, tensors["user_based"], fitted, year), None
        if self.checkpoint["item_based"]:
            members = min(config["ensemble_size"], 2)
            sizes = {"ensemble_size": members, "embedding_dim": members * (self.users.shape[1] - 1)}
            self.movies = Towers(data, config | sizes, (*without, *DATES), tensors["item_based"],
                                 fitted.rename(columns=SWAPPED), np.zeros(len(data.users), int))
        self.mean_score = np.array([optimize.brentq(lambda x, stars=stars: self.stars(x) - stars, -60, 60, xtol=1e-12)
                                    for stars in self.users.stars_mean + self.users.mean])
        self.know(fitted)

    def know(self, table: pd.DataFrame) -> "Model":
        """Take over the ratings that are known; the item-based towers fold their movies in from them."""
        self.known = by_user(table, len(self.data.users))
        if self.movies is not None:
            of_movies = by_user(table.rename(columns=SWAPPED), len(self.data.movies))
            self.folded_in = [self.movies.person(m, ratings) for m, ratings in enumerate(of_movies)]
        return self

    def score(self, user: int | None, known: Ratings, movie: np.ndarray, day: np.ndarray) -> np.ndarray:
        """Return the scores of questions to a person, (T,): of the towers, and the less they have rated the more of the
        movies' means and of what their ratings are above these."""
        trust, above = self.trust(known), self.above_means(known)
        return trust * self.of_towers(user, known, movie, day) + (1 - trust) * (self.mean_score[movie] + above.sum())

    def of_towers(self, user: int | None, known: Ratings, movie: np.ndarray, day: np.ndarray) -> np.ndarray:
        """Return both towers' scores by their shares where the data set knows the person, (T,)."""
        score = self.users.score(self.users.person(user, known), movie, day)
        if self.movies is None or user is None:
            return score
        of_items = [self.movies.score(self.folded_in[m], np.array([user]), np.zeros(1))[0] for m in movie]
        return self.share * score + (1 - self.share) * np.array(of_items)

    def trust(self, known: Ratings) -> float:
        return len(known.movie) / (len(known.movie) + 2)

    def above_means(self, known: Ratings) -> np.ndarray:
        """Return what each rating adds to how far a person's are above the movies' means, (R,); the sum is shrunk."""
        above = known.stars - self.users.stars_mean - self.users.mean[known.movie]
        return above / self.users.slope / (len(known.movie) + SHRINK)

    def scores(self, user: int | None, known: Ratings, day: int) -> np.ndarray:
        """Return the scores of all movies on a day, (M,)."""
        num_movies = len(self.data.movies)
        return self.score(user, known, np.arange(num_movies), np.full(num_movies, day))

    def list_scores(self, user: int | None, known: Ratings, day: int) -> np.ndarray:
        """Return what lists are ordered by, (M,): `scores` less standard errors of the movies."""
        return self.scores(user, known, day) - STANDARD_ERRORS / np.sqrt(self.users.count + 1)

    def stars(self, score: np.ndarray) -> np.ndarray:
        """low + step times the sum over the thresholds of the probability of being above."""
        return self.data.low + self.step * self.at_least(np.asarray(score), 1.0).sum(-1)

    def at_least(self, score: np.ndarray, spread: float) -> np.ndarray:
        """Return the probabilities of as many stars or more, (.., K), with so many times the curve's spread."""
        return 1 / (1 + np.exp((self.link["thresholds"] - self.link["slope"] * score[..., None]) / spread))

    def distribution(self, user: int | None, known: Ratings, movie: int, score: float) -> np.ndarray:
        """Return the probabilities of the stars for a movie, (K + 1,), from its score; their mean is `stars`.

        The curve's spread follows the user's residuals, shrunk to 1, the variance of the score,
        v (V'V + diag(l2))^-1 v, and how few ratings there are.
        """
        towers, person, l2 = self.users, self.users.person(user, known), self.users.l2(len(known.movie))
        variances = [asked @ np.linalg.solve(v.T @ v + np.diag(of_member), asked) for asked, v, of_member in zip(
            towers.vectors[movie], towers.vectors[known.movie].transpose(1, 0, 2), l2, strict=True)]
        log_residual = np.log((person.left @ person.left + 10) / (len(known.movie) + 10)) / 2
        features = np.array([1, log_residual, np.log(np.mean(variances) * towers.has("fold_in") + 0.02) + 2,
                             1 / (len(known.movie) + 1)])
        spread, expected = np.exp(self.link["spread_weights"] @ features), self.stars(score)
        number = (expected - self.data.low) / self.step  # of steps above the lowest
        moved = optimize.brentq(lambda x: self.at_least(np.array(x), spread).sum() - number, score - 60, score + 60,
                                xtol=1e-12)
        return -np.diff(np.concatenate([[1], self.at_least(np.array(moved), spread), [0]]))

    def effects(self, user: int | None, known: Ratings, movie: int) -> np.ndarray:
        """Return what each known rating adds to the score of a movie, (R,)."""
        effects = (self.users.person(user, known).parts * self.users.vectors[movie]).sum(-1).mean(1)
        effects = effects if self.movies is None or user is None else self.share * effects
        return self.trust(known) * effects + (1 - self.trust(known)) * self.above_means(known)

    def relevance_effects(self, user: int | None, known: Ratings, movie: int) -> np.ndarray:
        """Return what each known rating adds to the relevance of a movie, (R,): the taste is a sum over them."""
        n, surprise = len(known.movie), self.users.surprise(known)
        by_residual, by_presence = np.hsplit(self.tastes_of_movies(n)[known.movie], 2)
        parts = (surprise - surprise.sum() / (n + SHRINK))[:, None] * by_residual + by_presence
        of_taste, _, of_score = self.tensors["weights"][int(user is None)]
        taste = parts @ self.tensors["vectors"][movie] / np.sqrt(n + 1)
        return of_taste * taste + of_score * self.effects(user, known, movie)

    def tastes_of_movies(self, n: int) -> np.ndarray:
        """Return what each of n ratings adds to a taste, by residual and by presence, (M, 2 L)."""
        of_any_number, of_few = self.tensors["history"].reshape(len(self.data.movies), 2, 2, -1).swapaxes(0, 2)[:2]
        return (of_any_number + FEW / (n + FEW) * of_few).swapaxes(0, 1).reshape(len(self.data.movies), -1)

    def of_relevance(self, user: int | None, known: Ratings, day: int) -> np.ndarray:
        """Return what relevance is a weighted sum of, (3, M): taste, popularity, score."""
        taste = self.tensors["vectors"] @ self.users.pool(self.tastes_of_movies(len(known.movie)), known)
        return np.array([taste, self.tensors["popularity"], self.scores(user, known, day)])

    def relevance(self, user: int | None, known: Ratings, day: int) -> np.ndarray:
        return self.tensors["weights"][int(user is None)] @ self.of_relevance(user, known, day)


def best(score: np.ndarray, allowed: np.ndarray, top_n: int = 10) -> np.ndarray:
    """Return the movies of a list, best first; equal ones in the order of movie_id."""
    order = np.argsort(-score.round(9), kind="stable")
    return order[allowed[order]][:top_n]


def interval(distribution: np.ndarray, data: Data, fraction: float = 0.8) -> list[float]:
    """Return the ends of an interval with a fraction of the probability, and half of the rest on either side; a star's
    is spread evenly from half a step below it to half a step above."""
    up_to = np.concatenate([[0], distribution.cumsum()])
    cells = np.arange(len(up_to)) - 0.5
    ends = np.interp([(1 - fraction) / 2, (1 + fraction) / 2], up_to, cells)
    return (data.low + data.step * ends.clip(0, len(distribution) - 1)).tolist()


def errors(predicted: np.ndarray, stars: np.ndarray) -> dict[str, float]:
    return {"rmse": np.sqrt(np.mean((predicted - stars) ** 2)), "mae": np.mean(np.abs(predicted - stars))}


def ndcg_and_recall(listed: np.ndarray, relevant: np.ndarray, k: int = 10) -> tuple[float, float]:
    """Score a list; a relevant movie that could not be in it is missed all the same."""
    hits, discount = np.isin(listed[:k], relevant), 1 / np.log2(np.arange(2, k + 2))
    return discount[:len(hits)] @ hits / discount[:len(relevant)].sum(), hits.sum() / len(relevant)


def split_errors(model: Model, split: str) -> dict[str, float]:
    """Predict the ratings of a split, each on its day, from what the model knows."""
    asked = by_user(model.data.split(split), len(model.known))
    predicted = [model.stars(model.score(user, model.known[user], own.movie, own.day))
                 for user, own in enumerate(asked) if len(own.movie)]
    return errors(np.concatenate(predicted), np.concatenate([own.stars for own in asked]))


def ranking(model: Model, score_of: Callable[[int], np.ndarray]) -> dict[str, float]:
    """Compare lists of what a user is not known to have rated, of movies with training ratings, with what they like in
    the test; the mean over the users who like something there."""
    measured = []
    for user, own in enumerate(by_user(model.data.split("test"), len(model.known))):
        allowed = model.data.num_ratings > 0
        allowed[model.known[user].movie] = False
        if (liked := own.movie[own.stars >= LIKED]).size:
            measured.append(ndcg_and_recall(best(score_of(user), allowed), liked))
    return dict(zip(("ndcg@10", "recall@10"), np.mean(measured, 0), strict=True))


def calibration(model: Model) -> Iterator[tuple[float, list[float]]]:
    """Yield of each test rating the logarithm of its probability, and how much of its star's cell lies in the intervals
    of 50, 80 and 95 % of the probability."""
    for user, own in enumerate(by_user(model.data.split("test"), len(model.known))):
        scores = model.score(user, model.known[user], own.movie, own.day) if len(own.movie) else []
        for movie, stars, score in zip(own.movie, own.stars, scores, strict=True):
            chances = model.distribution(user, model.known[user], movie, score)
            star = round((stars - model.data.low) / model.step)
            below, up_to = chances[:star].sum(), chances[:star + 1].sum()
            yield np.log(chances[star]), [max(min(up_to, 0.5 + fraction / 2) - max(below, 0.5 - fraction / 2), 0)
                                          / chances[star] for fraction in (0.5, 0.8, 0.95)]


def fit_biases(known: pd.DataFrame, num_users: int, num_movies: int, rounds: int = 10) -> tuple[np.ndarray, ...]:
    """Return what users and what movies add to the mean: ridge regressions by turns, the movies' first."""
    above, user, movie = (known.stars - known.stars.mean()).to_numpy(), known.user.to_numpy(), known.movie.to_numpy()
    users, movies = np.zeros(num_users), np.zeros(num_movies)
    for _ in range(rounds):
        for own, other, place, other_place in ((movies, users, movie, user), (users, movies, user, movie)):
            total = np.bincount(place, above - other[other_place], len(own))
            own[:] = total / (np.bincount(place, minlength=len(own)) + SHRINK)
    return users, movies


def test_metrics(model: Model) -> dict[str, dict[str, float]]:
    """Return what is measured on the test: training and validation ratings are known before it."""
    data, day = model.data, model.data.last_day
    known, test = data.split("train", "validation"), data.split("test")
    users, movies = fit_biases(known, len(data.users), len(data.movies))
    mean, of_user = known.stars.mean(), model.know(known).known
    biased = np.clip(mean + users[test.user] + movies[test.movie], data.low, data.high)
    results = {"global_mean": errors(mean, test.stars),
               "popularity": ranking(model, lambda user: data.num_ratings),
               "bias": errors(biased, test.stars) | ranking(model, lambda user: movies),
               "two_tower": split_errors(model, "test")
               | ranking(model, lambda user: model.list_scores(user, of_user[user], day))}
    log_likelihood, inside = zip(*calibration(model), strict=True)
    results["calibration"] = {"log_likelihood": np.mean(log_likelihood)} | {
        f"coverage_{percent}": value for percent, value in zip((50, 80, 95), np.mean(inside, 0), strict=True)}
    if model.tensors:
        results["relevance"] = ranking(model, lambda user: model.relevance(user, of_user[user], day))
    return results


def stack(model: Model, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights of relevance of known users after steps of Newton's method from (1, 1, 0), none longer than
    1, and the gradient there. They maximise the likelihood of what users like in validation, among the movies with
    training ratings that are not known to be theirs, with a Gaussian prior around where they begin."""
    weights = begin = np.array([1.0, 1.0, 0.0])
    users = []
    for user, own in enumerate(by_user(model.data.split("validation"), len(model.known))):
        if (liked := own.movie[own.stars >= LIKED]).size:
            parts, candidate = model.of_relevance(user, model.known[user], model.data.last_day), model.users.count > 0
            candidate[model.known[user].movie] = False
            users.append((parts[:, candidate], parts[:, liked]))
    for step in range(steps + 1):
        gradient, curvature = begin - weights, np.eye(3)
        for parts, liked in users:
            share = np.exp(weights @ parts - (weights @ parts).max())
            share /= share.sum()
            mean = parts @ share
            gradient = gradient + (liked.T - mean).sum(0)
            curvature = curvature + liked.shape[1] * (parts * share @ parts.T - np.outer(mean, mean))
        change = np.linalg.solve(curvature, gradient) * (step < steps)
        weights = weights + change / max(1.0, np.linalg.norm(change))
    return weights, gradient
