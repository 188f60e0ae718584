"""Coordinates of who rated what, against NumPy's singular vectors and planted groups."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from models.ops.ranks import ALONE
from training import raters
from training.batches import RatingTensors
from training.raters import coordinates, num_coordinates

CPU = torch.device("cpu")


def ratings_of(matrix: np.ndarray) -> RatingTensors:
    """Return the ratings of a matrix of who rated what, bool (U, M)."""
    user, movie = matrix.nonzero()
    offset = torch.from_numpy(np.searchsorted(user, np.arange(len(matrix) + 1)))
    zeros = torch.zeros(len(user))
    return RatingTensors(offset, torch.from_numpy(movie).short(), zeros.byte(), zeros.short())


@pytest.fixture
def matrix() -> np.ndarray:
    """90 users, the last of whom rated nothing, and 40 movies, the last of which nobody rated; those of two halves."""
    rng = np.random.default_rng(0)
    same = (np.arange(90) < 50)[:, None] == (np.arange(40) < 15)
    matrix = rng.random((90, 40)) < np.where(same, 0.6, 0.15) * rng.uniform(0.4, 1, (90, 1))
    matrix[-1], matrix[:, -1] = False, False
    return matrix


def test_they_are_the_singular_vectors_of_who_rated_what_without_the_first(matrix, monkeypatch):
    monkeypatch.setattr(raters, "ITERATIONS", 300)
    weights = [(matrix.sum(axis, keepdims=True) + 5) ** -0.5 for axis in (0, 1)]
    left, values, right = np.linalg.svd(matrix * weights[0] * weights[1], full_matrices=False)
    of_movies, of_users = coordinates(ratings_of(matrix), 40, 3, ALONE, CPU, num_users=90)
    for made, vectors in ((of_movies, right.T), (of_users, left)):
        known = np.abs(vectors[:, 0]) > 1e-9
        expected = vectors[:, 1:4] / vectors[known, 1:4].std(0) * values[1:4] / values[1]
        expected = np.clip(expected, -4 * values[1:4] / values[1], 4 * values[1:4] / values[1])
        signs = np.sign((made.numpy() * expected).sum(0))
        np.testing.assert_allclose(made.numpy() * signs, expected, rtol=1e-4, atol=1e-5)
    assert (of_movies[-1] == 0).all() and (of_users[-1] == 0).all()


def test_movies_that_the_same_people_rated_are_alike(matrix):
    first = coordinates(ratings_of(matrix), 40, 1, ALONE, CPU, num_users=0)[0][:-1, 0]
    assert (first[:15] < 0).all() != (first[:15] > 0).all()
    assert ((first[:15] < 0) == (first[15:].max() > 0)).all() and ((first > 0) == (first[0] > 0))[:15].all()
    assert not ((first > 0) == (first[0] > 0))[15:].any()


def test_a_sample_of_users_finds_nearly_the_same(matrix, monkeypatch):
    whole = coordinates(ratings_of(matrix), 40, 1, ALONE, CPU, num_users=90)
    monkeypatch.setattr(raters, "SAMPLE_RATINGS", matrix.sum() // 2)
    sampled = coordinates(ratings_of(matrix), 40, 1, ALONE, CPU, num_users=90)
    for one, other in zip(whole, sampled):
        assert not torch.equal(one, other)
        assert abs(np.corrcoef(one[:, 0], other[:, 0])[0, 1]) > 0.9


def test_as_many_coordinates_as_ratings_movies_and_users_allow():
    assert num_coordinates(480_189, 17_770, 99_000_000) == 128
    assert num_coordinates(943, 1682, 72_000) == 24  # few ratings
    assert num_coordinates(3000, 100, 200_000) == 3  # few movies
    assert num_coordinates(50, 2000, 200_000) == 1  # few users
    assert num_coordinates(20, 2000, 20_000) == 0


@pytest.mark.parametrize("matrix", [np.ones((64, 64), bool), np.arange(64)[None].repeat(64, 0) == 5],
                         ids=["everybody rated everything", "one movie is rated"])
def test_where_all_rated_the_same_nobody_and_no_movie_stands_apart(matrix):
    of_movies, of_users = coordinates(ratings_of(matrix), 64, 2, ALONE, CPU, num_users=64)
    assert of_movies.shape == of_users.shape == (64, 2)
    assert of_movies.abs().max() < 1e-6 and of_users.abs().max() < 1e-6


@pytest.mark.parametrize("border", [30, 90])
def test_two_ranks_find_what_one_does_though_one_of_them_has_nobody(border, matrix):
    """Each rank in a thread of its own; their sums meet at a barrier."""
    whole = coordinates(ratings_of(matrix), 40, 2, ALONE, CPU, num_users=90)
    parts, barrier, found = [None, None], threading.Barrier(2), {}

    class Rank:
        size = 2

        def __init__(self, rank: int) -> None:
            self.rank = rank

        def sum_(self, tensor: torch.Tensor) -> None:
            parts[self.rank] = tensor.clone()
            barrier.wait()
            tensor.copy_(parts[0] + parts[1])
            barrier.wait()

    def work(rank: int) -> None:
        own = ratings_of((matrix[:border], matrix[border:])[rank])
        found[rank] = coordinates(replace(own, first_user=rank * border), 40, 2, Rank(rank), CPU, num_users=90)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for rank in (0, 1):
        for one, other in zip(whole, found[rank], strict=True):
            torch.testing.assert_close(other * (other * one).sum(0).sign(), one, rtol=1e-4, atol=1e-5)
