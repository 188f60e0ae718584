"""One person's best films, exactly, and with most of the films' numbers left unread.

For one person the product of his vector with all films' waits for memory, 10 MB of them at Netflix's size. But films
are alike: turned to their principal axes, their first coordinates have nearly all of their squares. From those a score
is known up to what the rest may add, at most |p_rest| |q_rest| (Cauchy and Schwarz). So the films that are best by
their first coordinates are scored in full, and then whatever else may reach the lowest of those;
models/best_products.py does the like for everybody at once. A checkpoint keeps the films turned.

Letters: M movies, N of a list, H heads, D coordinates of a head, P = H (D + 2), k first ones of a turned film.
"""

from typing import NamedTuple

import numpy as np
import torch

from models.movie_tower import CONSTANT

FIRST = 32  # coordinates: more would take longer to read, fewer leave more films to be scored in full
ROUNDING = 2**-21  # of |p| |q|, per coordinate: more than two ways to sum a product may differ by, turned and as it was
STRIPS = 256  # of scores, whose highest are looked at first
LOWEST = np.finfo(np.float32).min


class TurnedFilms(NamedTuple):
    """The films of the catalogue, and the same turned to their principal axes. Biases are left out where films are
    turned, and what multiplies the users'."""

    films: torch.Tensor  # float (M, H, D + 2), `Films.table`
    film_turn: torch.Tensor  # float (P, P), orthogonal
    film_first: torch.Tensor  # float (k, M), the first coordinates of the turned films
    film_rest: torch.Tensor  # float (M,), the length of the others
    film_bias: torch.Tensor  # float (M,), the mean of the heads'
    film_length: float  # of the longest film

    @classmethod
    @torch.no_grad()
    def of(cls, table: torch.Tensor) -> "TurnedFilms":
        """Turn the films of a table, float (M, H, D + 2), on the CPU."""
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
    """Scores films for one person, in NumPy. Vectors are those of `TwoTower.user_vectors`, float32 (P,)."""

    def __init__(self, turned: TurnedFilms, offset: torch.Tensor) -> None:
        """Keep views of the turned films; `offset`, float (M,), is what the scores have beside products and biases."""
        table, self._turn, self._first, self._rest = (tensor.numpy() for tensor in turned[:4])
        self._shape = table.shape[1:]
        self._rows = table.reshape(len(table), -1)
        self._bias = (turned.film_bias + offset).numpy()
        self._largest = turned.film_length, float(abs(self._bias).max())

    def find(self, vector: np.ndarray, allowed: np.ndarray, top_n: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the films with the highest scores among those allowed, bool (M,), best first, and their scores, int64
        and float32 (N,), N <= top_n.

        Equal scores keep the order of the index, and what is not a number is not among the best.
        """
        own, of_all = self._split(vector)
        turned, size = own @ self._turn, len(self._first)
        scores = turned[:size] @ self._first
        scores += self._bias
        scores[~allowed] = -np.inf
        best = best_of(scores, top_n)
        if 0 < len(best) == top_n:
            longest, largest = self._largest
            slack = ROUNDING * len(turned) * (np.linalg.norm(turned) * longest + largest)
            scores += np.linalg.norm(turned[size:]) * self._rest  # as much as they can be
            best = np.flatnonzero(~(scores < self._in_full(own, best).min() - slack))  # NaN may be a number in full
        else:
            best = np.flatnonzero(allowed)
        scores = self._in_full(own, best)
        scores[~allowed[best]] = -np.inf
        order = (-scores).argsort(kind="stable")[:top_n]
        order = order[scores[order] > -np.inf]
        return best[order], scores[order] + of_all

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
        """Return scores without what the user's bias adds, (N,). Each sum is formed alike, wherever its film stands:
        equal films have equal scores."""
        return np.einsum("np,p->n", self._rows.take(movie_idx, 0), own) + self._bias[movie_idx]


class AllFilms:
    """The same for vectors of any kind, float (M, K): all films are scored in full."""

    def __init__(self, vectors: torch.Tensor) -> None:
        self._vectors = vectors.numpy()

    def find(self, vector: np.ndarray, allowed: np.ndarray, top_n: int) -> tuple[np.ndarray, np.ndarray]:
        scores = vector @ self._vectors.T
        scores[~allowed] = -np.inf
        best = best_of(scores, top_n)
        return best, scores[best]

    def scores(self, vector: np.ndarray, movie_idx: np.ndarray) -> np.ndarray:
        return self._vectors[movie_idx] @ vector


def best_of(scores: np.ndarray, top_n: int) -> np.ndarray:
    """Return the places of the highest scores, best first, int64 (N,), N <= top_n.

    Only those at least as high as the top_n-th highest maximum of a strip of them are sorted: so many there are.

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
