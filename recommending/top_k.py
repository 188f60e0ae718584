"""The movies whose vectors have the highest inner products with a person's, exactly: `BestMovies` for one person, and
`BestProducts` for everybody, without most of the multiplications. Equal products keep the order of the movies.

Inner products stay the same in other coordinates. There are some in which coordinate i has the same mean square with
users and with movies, and the first ones have nearly all of it: the singular vectors of the matrix of scores, but found
from the second moments of either side. A vector in them consists of a head, its first k coordinates, and a tail. With
the heads multiplied out, a product is at most

    p . q <= p_head . q_head + |p_tail| |q_tail|                                    (Cauchy and Schwarz)

and only where that is above the lowest of the best so far it is computed, from the vectors as they came (Teflioudi,
Gemulla and Mykytiuk 2015, "LEMP: fast retrieval of large entries in a matrix product"; theirs are sorted by norm, and
split). Movies that many like come first, so that the lowest of the best soon is high.

Letters: B users, M movies, L of them listed, P coordinates, N movies of a list.
"""

import numpy as np
import torch

HEADS = (16, 24, 32, 40, 48, 64, 96)  # coordinates that a head may have, beside all
PRODUCT_COST = 3000  # a product that is computed takes the time of so many coordinates of heads
MOVIES_PER_TILE = 1024  # of one product of matrices: so many scores stay in the processor's cache until they are used
MOST_KEPT = 100  # a longer list is cut from a sort of all scores
RIDGE = 1e-6  # fraction of the mean square that coordinates have at least, where no user of the sample has any
ROUNDING = 2**-23  # of |p| |q|, per coordinate: what two ways to sum a product may differ by
STRIPS = 256  # that one person's scores are cut into; their highest scores are looked at first
LOWEST = np.finfo(np.float32).min


class BestMovies:
    """Finds one person's best movies.

    BLAS sums a product in an order that depends on where a movie stands. So whatever rounding could have kept from a
    list is multiplied again, each product summed alike: equal movies have equal products.
    """

    def __init__(self, vectors: torch.Tensor) -> None:
        """Keep a view of the movies' vectors, float (M, P), M > 0."""
        self._vectors = vectors.numpy()
        self._largest_norm = float(vectors.norm(dim=1).nan_to_num(0.0).max())

    def find(self, vector: np.ndarray, allowed: np.ndarray, top_n: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the movies with the highest products among those allowed, best first, and the products, int64 and
        float32 (N,), N <= top_n.

        Equal ones keep the order of the movies, and what is not a number is not among the best.

        Args:
            vector: the person's, float32 (P,).
            allowed: bool (M,).
            top_n: most movies of the list.
        """
        scores = only(self._vectors @ vector, allowed)
        first = best_of(scores, top_n)
        near = np.flatnonzero(allowed)
        if top_n and len(first) == top_n:
            slack = 4 * ROUNDING * len(vector) * float(np.linalg.norm(vector)) * self._largest_norm
            near = np.flatnonzero(scores >= scores[first[-1]] - slack)
        exact = self.products(vector, near)
        order = best_of(exact, top_n)
        return near[order], exact[order]

    def products(self, vector: np.ndarray, movie_idx: np.ndarray) -> np.ndarray:
        """Return the products of some movies, int64 (N,), float32 (N,)."""
        return products(self._vectors, vector, movie_idx)


def products(vectors: np.ndarray, vector: np.ndarray, movie_idx: np.ndarray) -> np.ndarray:
    """Return a person's products with some movies, float32 (N,), each summed alike: equal movies have equal ones.

    Args:
        vectors: of all movies, float32 (M, P).
        vector: the person's, float32 (P,).
        movie_idx: int64 (N,).
    """
    return np.einsum("np,p->n", vectors.take(movie_idx, 0), vector)


def only(scores: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Return scores with -inf for those that are not allowed, both (M,)."""
    return np.where(allowed, scores, -np.inf)


def best_of(scores: np.ndarray, top_n: int) -> np.ndarray:
    """Return the positions of the highest scores, best first, int64 (N,), N <= top_n.

    Only those at least as high as the top_n-th highest maximum of a strip are sorted: at least top_n are that high.

    Args:
        scores: float32 (M,); equal ones keep the order of the index, and neither -inf nor NaN is among the best.
    """
    lowest = LOWEST
    if 0 < top_n <= STRIPS:
        strips = scores[:len(scores) // STRIPS * STRIPS].reshape(-1, STRIPS)  # each a column
        highest = np.fmax.reduce(strips, initial=-np.inf)  # what is not a number is passed over
        lowest = max(lowest, np.partition(highest, -top_n)[-top_n])
    found = np.flatnonzero(scores >= lowest)
    return found[(-scores[found]).argsort(kind="stable")[:top_n]]


class BestProducts:
    """Finds every user's best movies among some."""

    def __init__(self, movies: torch.Tensor, listed: torch.Tensor, sample: torch.Tensor, top_n: int) -> None:
        """Choose the coordinates, and how many of them are heads.

        Args:
            movies: vectors, float (M, P).
            listed: bool (M,), the movies that may be found.
            sample: vectors of some users, float (S, P), S > 0, like those to come; only the speed depends on them.
            top_n: movies of a list.
        """
        self.top_n, (self.num_movies, num_coordinates) = top_n, movies.shape
        self.order = listed.nonzero().squeeze(1)  # int64 (L,), the movies that may be found
        self.by_sorting = top_n > MOST_KEPT or not len(self.order)
        self.movies = movies.index_select(0, self.order)  # (L, P)
        if self.by_sorting:
            return
        liked_first = (self.movies @ sample.mean(0)).argsort(descending=True, stable=True)
        self.order, self.movies = self.order[liked_first], self.movies[liked_first]
        self.head, self.user_rotation, rotated = num_coordinates, None, self.movies
        if (rotations := _rotations(sample, self.movies)) is not None:
            rotated_sample, rotated_movies = ((vectors.double() @ rotation).float() for vectors, rotation
                                              in zip((sample, self.movies), rotations, strict=True))
            self.head = self._best_head(sample, rotated_sample, rotated_movies)
            if self.head < num_coordinates:
                self.user_rotation, rotated = rotations[0], rotated_movies
        self.heads, self.tail_norms = rotated[:, :self.head].T.contiguous(), rotated[:, self.head:].norm(dim=1)
        self.largest_norm, self.largest_rotated_norm = (float(vectors.norm(dim=1).nan_to_num(0.0).max())
                                                        for vectors in (self.movies, rotated))

    def find(self, users: torch.Tensor, indptr: torch.Tensor,
             seen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the highest products of each user, best first, and their movies, float and int64 (B, N), N being the
        smaller of top_n and L; -inf where there are fewer movies.

        Of equal ones the movie with the smaller index comes first. What is not a number is not found.

        Args:
            users: vectors, float (B, P).
            indptr, seen: int64 (B + 1,) and (R,): the movies seen[indptr[b]:indptr[b + 1]] are not found for user b.
        """
        if self.by_sorting:
            return self._sorted(users, indptr, seen)
        from models.ops import numba_kernels as kernels  # which one person's list need not wait for

        num_users, num_listed = len(users), len(self.order)
        best = torch.full((num_users, min(self.top_n, num_listed)), -torch.inf)
        movie_idx = torch.zeros(best.shape, dtype=torch.int64)
        rotated = users if self.user_rotation is None else (users.double() @ self.user_rotation).float()
        heads, tail_norms = rotated[:, :self.head].contiguous(), rotated[:, self.head:].norm(dim=1)
        slack = self.largest_norm * users.norm(dim=1) + self.largest_rotated_norm * rotated.norm(dim=1)
        slack = slack * (ROUNDING * users.shape[1]) + torch.finfo(torch.float32).tiny
        memory = torch.empty(num_users * MOVIES_PER_TILE)
        for begin in range(0, num_listed, MOVIES_PER_TILE):
            tile = slice(begin, begin + MOVIES_PER_TILE)
            movies, movie_tails = self.movies[tile], self.tail_norms[tile]
            out = memory[:num_users * len(movies)].view(num_users, -1)
            if begin:
                scores = torch.mm(heads, self.heads[:, tile], out=out)
            else:  # nearly all would have to be computed
                scores, movie_tails = torch.mm(users, movies.T, out=out), torch.zeros_like(movie_tails)
            kernels.keep_best(scores, tail_norms, movie_tails, slack, users, movies, self.order[tile], indptr, seen,
                              best, movie_idx)
        return best, movie_idx

    def _sorted(self, users: torch.Tensor, indptr: torch.Tensor,
                seen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Do the same by all products, for a long list."""
        scores = users @ self.movies.T
        column = torch.full((self.num_movies,), -1)
        column[self.order] = torch.arange(len(self.order))
        row, column = torch.arange(len(users)).repeat_interleave(indptr.diff()), column[seen]
        scores[row[column >= 0], column[column >= 0]] = -torch.inf
        found = scores.masked_fill_(scores.isnan(), -torch.inf).sort(dim=1, descending=True, stable=True)
        return found.values[:, :self.top_n], self.order[found.indices[:, :self.top_n]]

    def _best_head(self, sample: torch.Tensor, users: torch.Tensor, movies: torch.Tensor) -> int:
        """Return how many coordinates of a head cost least, judged by the sample: its vectors, and the rotated ones."""
        scores = sample @ self.movies.T
        lowest = scores.topk(min(self.top_n, scores.shape[1]), dim=1).values[:, -1:]
        costs = {movies.shape[1]: float(movies.shape[1])}
        for head in HEADS:
            if head < movies.shape[1]:
                bound = users[:, :head] @ movies[:, :head].T
                bound += users[:, head:].norm(dim=1).unsqueeze(1) * movies[:, head:].norm(dim=1)
                costs[head] = head + PRODUCT_COST * float((bound >= lowest).float().mean())
        return min(costs, key=lambda head: costs[head])


def _rotations(users: torch.Tensor, movies: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return matrices T and U, float64 (P, P), with T U' = 1, such that the columns of users T and of movies U have the
    same mean square, the largest first; None for vectors that are not finite."""
    moments = [vectors.double().T @ vectors.double() / len(vectors) for vectors in (users, movies)]
    if not all(moment.isfinite().all() for moment in moments):
        return None
    identity = torch.eye(users.shape[1], dtype=torch.float64)
    smallest = (RIDGE * moments[0].trace() / len(identity)).clamp(min=torch.finfo(torch.float32).tiny)
    lower = torch.linalg.cholesky(moments[0] + identity * smallest)
    squares, rotation = (part.flip(-1) for part in torch.linalg.eigh(lower.T @ moments[1] @ lower))
    scale = squares.clamp(min=float(squares[0]) * RIDGE**2 + torch.finfo(torch.float32).tiny) ** 0.25
    return torch.linalg.solve_triangular(lower.T, rotation, upper=True) * scale, lower @ rotation / scale
