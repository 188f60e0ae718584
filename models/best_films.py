"""One person's best films, exactly, and with most of the films' numbers left unread.

For one person the product of his vector with all films' waits for memory, 10 MB of them at Netflix's size. But films
are alike: turned to their principal axes, their first coordinates have nearly all of their length. From those a score
is known up to what the rest may add, at most |p_rest| |q_rest| (Cauchy and Schwarz). So the films that are best by
their first coordinates are scored in full, and then whatever else may reach the lowest of those;
recommending/best_products.py does the like for everybody at once. A checkpoint keeps the films turned.

Letters: M movies, N of a list, H heads, D coordinates of a head, P = H (D + 2), k first coordinates of a turned film.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from models.movie_tower import CONSTANT

FIRST = 32  # coordinates: more would take longer to read, fewer leave more films to be scored in full
# Times |p| |q| and the coordinates: more than rounding changes in a product, whether turned or not. Less is enough in
# recommending/best_products.py, which turns in float64.
ROUNDING = 2**-21
STRIPS = 256  # that scores are cut into; their highest scores are looked at first
LOWEST = np.finfo(np.float32).min


class TurnedFilms(NamedTuple):
    """The films of the catalogue, and the same turned to their principal axes: the vectors alone, with zeros for the
    biases and for what multiplies the users'."""

    films: torch.Tensor  # float (M, H, D + 2), `Films.table`
    film_turn: torch.Tensor  # float (P, P), orthogonal
    film_first: torch.Tensor  # float (k, M), the first coordinates of the turned films
    film_rest: torch.Tensor  # float (M,), the length of the others
    film_bias: torch.Tensor  # float (M,), the mean of the heads'
    film_length: float  # of the longest film, without biases

    @classmethod
    @torch.no_grad()
    def of(cls, table: torch.Tensor) -> "TurnedFilms":
        """Turn the films of a table, float (M, H, D + 2), M > 0, on the CPU."""
        table = table.cpu()
        vectors = table.clone()
        vectors[..., -2:] = 0
        vectors = vectors.flatten(1)
        moments = (vectors.T @ vectors).double()
        turn = torch.linalg.eigh(moments.nan_to_num(0, 0, 0)).eigenvectors.flip(1).float()  # the largest first
        first, rest = (vectors @ turn).tensor_split([min(FIRST, len(turn))], 1)
        return cls(table, turn.contiguous(), first.T.contiguous(), rest.norm(dim=1), table[..., -1].mean(1),
                   float(vectors.norm(dim=1).max()))

    @staticmethod
    def shapes(num_movies: int, num_heads: int, head_dim: int) -> dict[str, tuple[int, ...]]:
        """Return the shape of each of the tensors."""
        size = num_heads * (head_dim + 2)
        return {"films": (num_movies, num_heads, head_dim + 2), "film_turn": (size, size),
                "film_first": (min(FIRST, size), num_movies), "film_rest": (num_movies,), "film_bias": (num_movies,)}


class BestFilms:
    """Finds a person's best films, and scores films for him, in NumPy; of the user side alone. Vectors are those of
    `TwoTower.user_vectors`, float32 (P,)."""

    def __init__(self, turned: TurnedFilms, offset: torch.Tensor) -> None:
        """Keep views of the turned films (M > 0); `offset`, float (M,), is what scores have beside products and biases.
        """
        table, self._turn = turned.films.numpy(), turned.film_turn.numpy()
        self._first, self._rest = turned.film_first.numpy(), turned.film_rest.numpy()
        self._shape = table.shape[1:]
        self._rows = table.reshape(len(table), -1)
        self._bias = (turned.film_bias + offset).numpy()
        self._longest, self._largest_bias = turned.film_length, float(abs(self._bias).max())

    def find(self, vector: np.ndarray, allowed: np.ndarray, top_n: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the films with the highest scores among those allowed, bool (M,), best first, and their scores, int64
        and float32 (N,), N <= top_n.

        Equal scores keep the order of the index, and what is not a number is not among the best.
        """
        own, of_all = self._split(vector)
        turned, size = own @ self._turn, len(self._first)
        scores = turned[:size] @ self._first
        scores += self._bias
        rest = np.linalg.norm(turned[size:]) * self._rest
        slack = ROUNDING * len(own) * (np.linalg.norm(turned) * self._longest + self._largest_bias)
        best, scores = _best_in_full(scores, rest, slack, allowed, top_n, lambda films: self._in_full(own, films))
        return best, scores + of_all

    def scores(self, vector: np.ndarray, movie_idx: np.ndarray) -> np.ndarray:
        """Return the scores of some films, float32 (N,); movie_idx int64 (N,)."""
        own, of_all = self._split(vector)
        return self._in_full(own, movie_idx) + of_all

    def _split(self, vector: np.ndarray) -> tuple[np.ndarray, np.float32]:
        """Return a vector without what multiplies biases, (P,), and what the user's bias adds to every score."""
        own = vector.copy()
        biases = own.reshape(self._shape)[:, -2:]
        of_all = np.float32(CONSTANT) * biases[:, 0].sum()
        biases[:] = 0
        return own, of_all

    def _in_full(self, own: np.ndarray, movie_idx: np.ndarray) -> np.ndarray:
        """Return scores without what the user's bias adds, (N,)."""
        return _products(self._rows, movie_idx, own) + self._bias[movie_idx]


class AllFilms:
    """The same for a model with a movie side, whose films are not turned: all of them are scored."""

    def __init__(self, vectors: torch.Tensor) -> None:
        """Keep a view of the films' vectors, float (M, K), M > 0, film by film in memory."""
        self._vectors = vectors.numpy()
        self._longest = float(vectors.norm(dim=1).max())

    def find(self, vector: np.ndarray, allowed: np.ndarray, top_n: int) -> tuple[np.ndarray, np.ndarray]:
        """Do what `BestFilms.find` does; the vector is float32 (K,)."""
        slack = ROUNDING * len(vector) * np.linalg.norm(vector) * self._longest
        return _best_in_full(vector @ self._vectors.T, 0, slack, allowed, top_n,
                             lambda films: self.scores(vector, films))

    def scores(self, vector: np.ndarray, movie_idx: np.ndarray) -> np.ndarray:
        """Return the scores of some films, float32 (N,); movie_idx int64 (N,)."""
        return _products(self._vectors, movie_idx, vector)


def _best_in_full(scores: np.ndarray, rest: np.ndarray | float, slack: float, allowed: np.ndarray, top_n: int,
                  in_full: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the films that are best in full, and these scores, (N,); see `BestFilms.find`.

    Args:
        scores: float32 (M,), written over: what the scores are without the rest.
        rest: at most what that adds, (M,) or a number.
        slack: at most what rounding adds.
        in_full: returns the scores of films, int64 (N,), float32 (N,).
    """
    scores[~allowed] = -np.inf
    best = best_of(scores, top_n)
    if not top_n or len(best) < top_n:
        near = np.flatnonzero(allowed)
    else:
        scores += rest
        # A bound that is not a number proves nothing, so such a film is scored.
        near = np.flatnonzero(~(scores < in_full(best).min() - slack))
    scores = in_full(near)
    scores[~allowed[near]] = -np.inf
    order = (-scores).argsort(kind="stable")[:top_n]
    order = order[scores[order] > -np.inf]
    return near[order], scores[order]


def _products(vectors: np.ndarray, movie_idx: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Return the products of some of the vectors with one, float32 (N,). Each sum is formed alike, wherever its film
    stands, which BLAS does not promise: equal films have equal scores."""
    return np.einsum("np,p->n", vectors.take(movie_idx, 0), vector)


def best_of(scores: np.ndarray, top_n: int) -> np.ndarray:
    """Return the places of the highest scores, best first, int64 (N,), N <= top_n.

    Only those at least as high as the top_n-th highest maximum of a strip are sorted: at least top_n are that high.

    Args:
        scores: float32 (M,); equal ones keep the order of the index, and neither -inf nor NaN is among the best.
    """
    lowest = LOWEST
    if 0 < top_n <= STRIPS:
        strips = scores[:len(scores) // STRIPS * STRIPS].reshape(-1, STRIPS)  # each a column
        highest = np.fmax.reduce(strips, initial=-np.inf)  # what is not a number is passed over
        lowest = max(lowest, np.partition(highest, -top_n)[-top_n])
    places = np.flatnonzero(scores >= lowest)
    return places[(-scores[places]).argsort(kind="stable")[:top_n]]
