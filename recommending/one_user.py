"""One user's vector in NumPy: what `TwoTower.user_vectors` does for many, in a quarter of its time for one.

A single user's numbers are so few that torch takes longer to begin its operations than to carry them out. This is the
same tower, formula by formula, and a short way to read it; the tests hold it to the other.

Letters: R ratings, H heads, D coordinates of a head, S = D + 1 of a user's, W windows.
"""

import math

import numpy as np
import torch

from models.movie_tower import CONSTANT, MEAN_SHRINK, Films
from models.temporal import PERIODS, WINDOWS
from models.two_tower import TwoTower

WINDOW_COLUMN = np.array(WINDOWS)[:, None]  # (W, 1)


class OneUser:
    """A TwoTower's user tower, on a CPU and without gradients."""

    def __init__(self, model: TwoTower, films: Films) -> None:
        """Keep views of the weights, and of `model.films()`."""
        tower, drift, mood = model.user_tower, model.drift, model.mood
        self.config = model.config
        self.has_embedding, self.has_pooled, self.has_features = map(
            model.config.has, ("user_embedding", "pooled_history", "user_features"))
        self.films, self.film_mean = films.table.numpy(), films.mean.numpy()
        self.embedding, self.pooled = _array(model.user_embedding), _array(tower.pooled)
        self.hidden, self.out = [(_array(layer.weight), _array(layer.bias)) for layer in (tower.hidden, tower.out)]
        self.penalty = np.exp(_array(tower.log_base)), np.exp(_array(tower.log_per_rating))  # (H, S)
        self.drift = None if drift is None else (_array(drift.table).ravel(), drift.days)
        self.mood = None if mood is None else (_array(mood.weight), np.exp(_array(mood.log_shrink)))

    def vector(self, user_idx: int | None, movie_idx: np.ndarray, stars: np.ndarray, day: np.ndarray,
               asked: int) -> np.ndarray:
        """Return p_u as of a day, float32 (H (D + 2),).

        Args:
            user_idx: whose embedding to take; None for somebody without one.
            movie_idx, stars, day: int64, float32 and int64 (R,), what he has rated.
            asked: the day.
        """
        above_mean = stars - np.float32(self.config.stars_mean)
        wanted = above_mean / np.float32(self.config.slope)  # (R,), in units of score
        if self.drift is not None:
            table, days = self.drift
            wanted -= table[movie_idx * PERIODS + day // days]
        embedding = np.zeros(self.config.user_dim) if user_idx is None else self.embedding[user_idx]
        prior = self._prior(embedding, movie_idx, above_mean - self.film_mean[movie_idx])
        solution, left = self._solve(movie_idx, wanted, prior)
        vector = np.ones((len(solution), solution.shape[1] + 1), np.float32)
        vector[:, :-1] = solution
        vector[:, -2] += self._on_day(day, left, asked) / np.float32(CONSTANT)
        return vector.ravel() / np.float32(self.config.num_heads)

    def stars(self, score: np.ndarray) -> np.ndarray:
        """Turn scores into stars, float32, as `TwoTower.stars` does."""
        low, high = self.config.stars_low, self.config.stars_high
        return low + (high - low) / 2 * (1 + np.tanh(score / 2))  # a sigmoid, which no score makes overflow

    def _prior(self, embedding: np.ndarray, movie_idx: np.ndarray, surprise: np.ndarray) -> np.ndarray:
        """Return the vector before the ridge regression, (H, S); see `UserTower.regression`."""
        config, size, dim = self.config, len(movie_idx), self.config.pooled_dim
        mean, spread = float(surprise.sum()) / (size + MEAN_SHRINK), math.sqrt(surprise @ surprise / (size + 1))
        weights = np.ones((2, size), np.float32)  # of the two halves of a row
        weights[0] = surprise - np.float32(mean)
        sums = weights @ self.pooled.take(movie_idx, 0)  # (2, 2 pooled_dim)
        x = np.empty(len(embedding) + dim + 3, np.float32)
        x[:-dim - 3] = embedding * self.has_embedding
        x[-dim - 3:-3] = (sums[0, :dim] + sums[1, dim:]) * (self.has_pooled / math.sqrt(size + 1))
        x[-3:] = [self.has_features * one for one in (math.log(size + 1) / 2 - 2, mean * 2, spread - 1)]
        weight, constant = self.hidden
        hidden = np.maximum(weight @ x + constant, 0)
        weight, constant = self.out
        prior = (weight @ hidden + constant).reshape(config.num_heads, -1)
        if not config.has("biases"):
            prior[:, -1] = 0
        return prior

    def _solve(self, movie_idx: np.ndarray, wanted: np.ndarray, prior: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the solved history, (H, S), and what it leaves of the residuals, the heads' mean, (R,); see
        `ridge_solve`."""
        films = self.films.take(movie_idx, 0).transpose(1, 0, 2)  # (H, R, S + 1)
        vectors, residual = films[..., :-1], wanted - films[..., -1]
        solution = prior
        if self.config.has("solved_history"):
            base, per_rating = self.penalty
            penalty = base + per_rating * np.float32(len(movie_idx))
            system = vectors.transpose(0, 2, 1) @ vectors
            system.reshape(len(system), -1)[:, ::system.shape[1] + 1] += penalty  # their diagonals
            right = (residual[:, None] @ vectors)[:, 0] + penalty * prior
            solution = np.linalg.solve(system, right[..., None])[..., 0]
        explained = (vectors @ solution[..., None])[..., 0]
        return solution, (residual - explained).sum(0) / self.config.num_heads

    def _on_day(self, day: np.ndarray, left: np.ndarray, asked: int) -> np.float32:
        """Return what the day adds to all scores: the mood; see models/temporal.py."""
        score = np.float32(0)
        if self.mood is not None:
            weight, shrink = self.mood
            last = day.max(initial=asked)
            same = ((last - day) // WINDOW_COLUMN == (last - asked) // WINDOW_COLUMN).astype(np.float32)  # (W, R)
            score += same @ left / (same.sum(1) + shrink) @ weight
        return np.float32(score)


def _array(parameter: torch.Tensor) -> np.ndarray:
    return parameter.detach().numpy()
