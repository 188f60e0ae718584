"""The user tower for one person, in NumPy: the shortest way to read the model.

From ratings to a vector, formula by formula, what `TwoTower.user_vectors` does for many with gradients. It is also what
serves a single list: one user's numbers are so few that PyTorch takes longer to begin its operations than to carry them
out. The tests hold it to the other.

Letters: R ratings, E members of the ensemble, D coordinates of a member, W windows.
"""

import math
from typing import NamedTuple

import numpy as np
import torch

from models.movie_tower import CONSTANT, MEAN_SHRINK, MovieTable
from models.temporal import PERIODS, WINDOWS
from models.two_tower import TwoTower


class FoldIn(NamedTuple):
    """A person's ridge regression, A w = V' target + l2 prior; without a fold-in the prior is its solution."""

    vectors: np.ndarray  # V, (E, R, D + 1), of the rated movies
    prior: np.ndarray  # (E, D + 1)
    target: np.ndarray  # (E, R)
    solution: np.ndarray  # w, (E, D + 1)
    inverse: np.ndarray | None  # A^-1, (E, D + 1, D + 1); None without a fold-in

    def residual(self, w: np.ndarray) -> np.ndarray:
        """Return what a vector of the person leaves of the targets, (E, R)."""
        return self.target - (self.vectors @ w[..., None])[..., 0]


class OneUserTower:
    """A TwoTower's user tower, on a CPU and without gradients."""

    def __init__(self, model: TwoTower, movies: MovieTable) -> None:
        """Keep views of the weights, and of `model.movie_table()`."""
        tower, over_time, recent = model.user_tower, model.movie_bias_over_time, model.recent_user_bias
        self.config = model.config
        self.rows, self.movie_mean = movies.rows.numpy(), movies.mean.numpy()
        self.embedding, self.pooled = _array(model.user_embedding), _array(tower.pooled)
        self.hidden, self.out = [(_array(layer.weight), _array(layer.bias)) for layer in (tower.hidden, tower.out)]
        self.l2_base, self.l2_per_rating = np.exp(_array(tower.log_base)), np.exp(_array(tower.log_per_rating))
        self.over_time = None if over_time is None else (_array(over_time.table), over_time.days)
        self.star_values = _array(tower.star_values)
        self.recent = None if recent is None else (_array(recent.weight), np.exp(_array(recent.log_shrinkage)))

    def fold_in(self, user_idx: int | None, movie_idx: np.ndarray, stars: np.ndarray, day: np.ndarray) -> FoldIn:
        """Solve a person's ridge regression, for what is made of it below.

        Args:
            user_idx: whose embedding to take; None for somebody without one.
            movie_idx, stars, day: int64, float32 and int64 (R,), what they have rated.
        """
        prior, target = self._regression(user_idx, movie_idx, stars, day)
        vectors, target = self._of_movies(movie_idx, target)
        if not self.config.has("fold_in"):
            return FoldIn(vectors, prior, target, prior, None)
        inverse, l2 = self._inverse(vectors)
        right = (target[:, None] @ vectors)[:, 0] + l2 * prior
        return FoldIn(vectors, prior, target, (inverse @ right[..., None])[..., 0], inverse)

    def vector(self, fold_in: FoldIn, day: np.ndarray, asked: int) -> np.ndarray:
        """Return p_u as of a day, float32 (E (D + 2),).

        Args:
            day: int64 (R,), of the ratings.
            asked: the day.
        """
        solution = fold_in.solution
        residual = fold_in.residual(solution).sum(0) / self.config.ensemble_size
        vector = np.ones((len(solution), solution.shape[1] + 1), np.float32)  # the last meets the movies' biases
        vector[:, :-1] = solution
        vector[:, -2] += self._recent_bias(day, residual, asked) / np.float32(CONSTANT)  # the user's bias
        return vector.ravel() / np.float32(self.config.ensemble_size)

    def contributions(self, fold_in: FoldIn, target_idx: np.ndarray) -> np.ndarray:
        """Return what each rating adds to the scores of some movies, int64 (T,), through the fold-in, float32 (T, R).

        The fold-in is linear in the residuals that the prior leaves, w - prior = sum over j of A^-1 v_j residual_j, so
        these are its exact terms: their sum over R, and the score without a fold-in, is the score.
        """
        if fold_in.inverse is None:
            return np.zeros((len(target_idx), fold_in.target.shape[1]), np.float32)
        weight = fold_in.vectors @ (fold_in.inverse @ self._asked(target_idx))  # (E, R, T)
        return (weight * fold_in.residual(fold_in.prior)[..., None]).mean(0).T

    def uncertainty(self, fold_in: FoldIn, target_idx: np.ndarray) -> tuple[float, np.ndarray]:
        """Return how unsure the predictions for some movies, int64 (T,), are, as `TwoTower.uncertainty` does: the sum
        of the squared residuals that the fold-in leaves of the ratings, and the variances of the scores, float (T,)."""
        residual = fold_in.residual(fold_in.solution).mean(0)
        if fold_in.inverse is None:
            return float(residual @ residual), np.zeros(len(target_idx), np.float32)
        asked = self._asked(target_idx)
        return float(residual @ residual), (asked * (fold_in.inverse @ asked)).sum(1).mean(0)

    def _asked(self, target_idx: np.ndarray) -> np.ndarray:
        """Return movies' vectors as columns, (E, D + 1, T)."""
        return self.rows.take(target_idx, 0)[..., :-1].transpose(1, 2, 0)

    def covariance(self, movie_idx: np.ndarray) -> np.ndarray:
        """Return A^-1, the covariance that the posterior of the fold-in has where the ratings of some movies, int64
        (R,), vary by 1 around their scores, float32 (E, D + 1, D + 1)."""
        vectors = self.rows.take(movie_idx, 0)[..., :-1].transpose(1, 0, 2)
        return self._inverse(vectors)[0]

    def _regression(self, user_idx: int | None, movie_idx: np.ndarray, stars: np.ndarray,
                    day: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the prior, (E, D + 1), and the regression targets, (R,), in units of score; see
        `UserTower.regression`."""
        above_mean = stars - np.float32(self.config.stars_mean)
        position = (stars - np.float32(self.config.stars_low)) / np.float32(self.config.unit)
        value = np.interp(position, np.arange(len(self.star_values)), self.star_values).astype(np.float32)
        target = above_mean / np.float32(self.config.slope) + value
        if self.over_time is not None:
            table, days = self.over_time
            target -= table.ravel()[movie_idx * PERIODS + day // days]
        embedding = np.zeros(self.config.user_dim) if user_idx is None else self.embedding[user_idx]
        surprise = (above_mean - self.movie_mean[movie_idx]) / np.float32(self.config.unit)
        return self._prior(embedding, movie_idx, surprise), target

    def _prior(self, embedding: np.ndarray, movie_idx: np.ndarray, surprise: np.ndarray) -> np.ndarray:
        """Return what the MLP says before the fold-in, (E, D + 1); see `UserTower.regression`."""
        config, count, dim = self.config, len(movie_idx), self.config.pooled_dim
        mean, spread = float(surprise.sum()) / (count + MEAN_SHRINK), math.sqrt(surprise @ surprise / (count + 1))
        weights = np.stack([surprise - np.float32(mean), np.ones_like(surprise)])  # of the two halves of a row, (2, R)
        sums = weights @ self.pooled.take(movie_idx, 0)  # (2, 2 pooled_dim)
        pooled = (sums[0, :dim] + sums[1, dim:]) / np.float32(math.sqrt(count + 1)) * config.has("pooled_history")
        features = np.array([math.log(count + 1) / 2 - 2, mean * 2, spread - 1], np.float32)
        x = np.concatenate([embedding * config.has("user_embedding"), pooled, features * config.has("user_features")],
                           dtype=np.float32)
        weight, bias = self.hidden
        hidden = np.maximum(weight @ x + bias, 0)
        weight, bias = self.out
        prior = (weight @ np.concatenate([hidden, pooled], dtype=np.float32) + bias).reshape(config.ensemble_size, -1)
        if not config.has("biases"):
            prior[:, -1] = 0
        return prior

    def _of_movies(self, movie_idx: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the rated movies' vectors, (E, R, D + 1), and the targets less their biases, (E, R)."""
        rows = self.rows.take(movie_idx, 0).transpose(1, 0, 2)  # (E, R, D + 2)
        return rows[..., :-1], target - rows[..., -1]

    def _inverse(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return A^-1, A = V'V + diag(l2) of the ridge regression, (E, D + 1, D + 1), and l2, (E, D + 1); see
        `ridge_solve`."""
        l2 = self.l2_base + self.l2_per_rating * np.float32(vectors.shape[1])
        system = vectors.transpose(0, 2, 1) @ vectors
        system.reshape(len(system), -1)[:, ::system.shape[1] + 1] += l2  # the diagonals
        return torch.linalg.inv(torch.from_numpy(system)).numpy(), l2  # in half of NumPy's time

    def _recent_bias(self, day: np.ndarray, residual: np.ndarray, asked: int) -> np.float32:
        """Return what the day adds to all scores; see `RecentUserBias`."""
        if self.recent is None:
            return np.float32(0)
        weight, shrinkage = self.recent
        within = (np.abs(day - asked) < np.array(WINDOWS)[:, None]).astype(np.float32)  # (W, R)
        return np.float32(within @ residual / (within.sum(1) + shrinkage) @ weight)


def _array(parameter: torch.Tensor) -> np.ndarray:
    return parameter.detach().numpy()
