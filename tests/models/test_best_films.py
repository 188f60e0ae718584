import numpy as np
import pytest
import torch

from models.best_films import FIRST, AllFilms, BestFilms, TurnedFilms, best_of

SHAPE = 2, 22  # heads, and coordinates of one with biases: more than FIRST in all


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def all_scores(table: torch.Tensor, offset: torch.Tensor, vector: np.ndarray) -> np.ndarray:
    """Return the score of every film, in float64, from vectors as `TwoTower.movie_vectors` has them."""
    vectors = table.double()
    vectors[..., -2] = 0.5
    vectors[..., -1] += offset.double().unsqueeze(1)
    return vectors.flatten(1).numpy() @ vector.astype(np.float64)


def person(heads: int, size: int) -> np.ndarray:
    """Return a vector, whose coordinates for the films' biases are 1 / H."""
    vector = torch.randn(heads, size)
    vector[:, -1] = 1
    return (vector / heads).flatten().numpy()


def sorted_out(scores: np.ndarray, allowed: np.ndarray, top_n: int) -> list[int]:
    """Return what `find` finds, from a sort of all scores."""
    return sorted((i for i in np.flatnonzero(allowed) if scores[i] > -np.inf), key=lambda i: (-scores[i], i))[:top_n]


def demand_best(order: np.ndarray, scores: np.ndarray, allowed: np.ndarray, top_n: int) -> None:
    """Demand what `find` finds, but for the order of scores that rounding may have made equal."""
    assert len(set(order.tolist())) == len(order) and allowed[order].all()
    np.testing.assert_allclose(scores[order], scores[sorted_out(scores, allowed, top_n)], atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 4), (2, 22), (3, 34)])
@pytest.mark.parametrize("num_movies", [1, 7, 300, 3000])
@pytest.mark.parametrize("spread", [0.0, 1.5])  # films that their first coordinates tell badly, and well
def test_the_best_and_their_scores_are_those_of_all_products(shape, num_movies, spread):
    table, offset = torch.randn(num_movies, *shape), torch.randn(num_movies)
    table *= torch.arange(1, shape[1] + 1) ** -spread
    films = BestFilms(TurnedFilms.of(table), offset)
    for top_n in (1, 10, 100, 5000):
        vector, allowed = person(*shape), np.random.default_rng(top_n).random(num_movies) < 0.7
        expected = all_scores(table, offset, vector)
        order, scores = films.find(vector, allowed, top_n)
        demand_best(order, expected, allowed, top_n)
        np.testing.assert_allclose(scores, expected[order], atol=1e-5)
        np.testing.assert_allclose(films.scores(vector, order[::2]), expected[order[::2]], atol=1e-5)
        assert scores.dtype == films.scores(vector, order).dtype == np.float32


@pytest.mark.parametrize("shape", [(1, 22), SHAPE])  # first coordinates that are all, so that only rounding is left
def test_equal_scores_keep_the_order_of_the_films(shape):
    """Small whole numbers: the sums are exact, and most are equal to others."""
    table = torch.randint(-1, 2, (3000, *shape)).float()
    films = BestFilms(TurnedFilms.of(table), torch.zeros(3000))
    for _ in range(20):
        vector = torch.randint(-2, 3, shape).float()
        vector[:, -1] = 1 / shape[0]
        vector, allowed = vector.flatten().numpy(), np.random.default_rng(0).random(3000) < 0.5
        scores = all_scores(table, torch.zeros(3000), vector)
        for top_n in (1, 10, 200, 300):
            assert films.find(vector, allowed, top_n)[0].tolist() == sorted_out(scores, allowed, top_n)


@pytest.mark.parametrize("size", [4, 22, 33, 34])
def test_equal_films_have_equal_scores(size):
    """Whatever stands beside them: a sum in another order would order them by chance."""
    table = torch.randn(1, 3, size).repeat(1000, 1, 1)
    for films in (BestFilms(TurnedFilms.of(table), torch.zeros(1000)), AllFilms(table.flatten(1)),
                  AllFilms(table.flatten(1).T.contiguous().T)):
        for top_n in (1, 10, 99):
            assert films.find(person(3, size), np.ones(1000, bool), top_n)[0].tolist() == list(range(top_n))


def test_films_that_are_alike_are_mostly_left_out(monkeypatch):
    table = torch.randn(3000, *SHAPE)
    turn = torch.linalg.qr(torch.randn(44, 44)).Q  # without it they would be turned as they are
    table = (table.flatten(1) * torch.arange(1, 45) ** -1.5 @ turn).view_as(table)
    films, scored = BestFilms(TurnedFilms.of(table), torch.zeros(3000)), []
    in_full = films._in_full

    def counting(own: np.ndarray, movie_idx: np.ndarray) -> np.ndarray:
        scored.append(len(movie_idx))
        return in_full(own, movie_idx)

    monkeypatch.setattr(films, "_in_full", counting)
    for _ in range(20):
        films.find(person(*SHAPE), np.ones(3000, bool), 10)
    assert scored[::2] == [10] * 20  # best by their first coordinates
    assert np.mean(scored[1::2]) < 30  # and with what may be as good


def test_nothing_is_found_among_nothing():
    films = BestFilms(TurnedFilms.of(torch.randn(500, *SHAPE)), torch.zeros(500))
    for allowed, top_n in ((np.zeros(500, bool), 10), (np.ones(500, bool), 0)):
        order, scores = films.find(person(*SHAPE), allowed, top_n)
        assert len(order) == len(scores) == 0


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_films_that_are_not_finite_hide_no_others(bad):
    table = torch.randn(3000, *SHAPE)
    table[::100, 0, 0] = bad
    films = BestFilms(TurnedFilms.of(table), torch.zeros(3000))
    everything = np.ones(3000, bool)
    for _ in range(10):
        vector = person(*SHAPE)
        with np.errstate(invalid="ignore"):
            expected = all_scores(table, torch.zeros(3000), vector)
            demand_best(films.find(vector, everything, 40)[0], expected, everything, 40)
    assert films.find(np.full(44, np.nan, np.float32), everything, 10)[0].tolist() == []


def test_films_are_turned_and_not_changed():
    table = torch.randn(300, *SHAPE)
    turned = TurnedFilms.of(table)
    assert turned.films is table
    vectors = table.clone()
    vectors[..., -2:] = 0
    whole = vectors.flatten(1) @ turned.film_turn
    torch.testing.assert_close(turned.film_turn.T @ turned.film_turn, torch.eye(44), atol=1e-5, rtol=0)
    torch.testing.assert_close(turned.film_first.T, whole[:, :FIRST])
    torch.testing.assert_close(turned.film_rest, whole[:, FIRST:].norm(dim=1))
    torch.testing.assert_close(turned.film_bias, table[:, :, -1].mean(1))
    assert turned.film_length == pytest.approx(float(vectors.flatten(1).norm(dim=1).max()))
    squares = whole.square().sum(0)
    assert (squares.diff() < 1e-3).all()  # the largest first
    shapes = {name: tuple(getattr(turned, name).shape) for name in TurnedFilms.shapes(300, 2, 20)}
    assert shapes == TurnedFilms.shapes(300, 2, 20)


def test_vectors_of_any_kind_are_all_scored():
    vectors, vector = torch.randn(300, 9), torch.randn(9).numpy()
    allowed = np.random.default_rng(0).random(300) < 0.5
    order, scores = AllFilms(vectors).find(vector, allowed, 20)
    expected = vectors.double().numpy() @ vector
    demand_best(order, expected, allowed, 20)
    np.testing.assert_allclose(scores, expected[order], atol=1e-5)
    np.testing.assert_allclose(AllFilms(vectors).scores(vector, order), scores, atol=1e-5)


def test_best_equals_a_stable_sort_with_ties_at_every_cut():
    rng = np.random.default_rng(0)
    for size in (0, 1) + (30,) * 50 + (255, 256, 257, 511, 512, 3000):
        scores = rng.integers(0, 4 + size // 100, size).astype(np.float32) - 2
        scores[rng.random(size) < 0.4] = -np.inf
        expected = sorted(np.flatnonzero(scores > -np.inf).tolist(), key=lambda i: (-scores[i], i))
        for top_n in (0, 1, 3, 29, 100, 256, 257, 4000):
            assert best_of(scores, top_n).tolist() == expected[:top_n]


def test_what_is_not_a_number_is_not_among_the_best():
    scores = np.array([np.nan, 1, 2, np.nan, np.inf], np.float32)
    assert best_of(scores, 3).tolist() == [4, 2, 1]
    assert best_of(scores[:2], 3).tolist() == [1]
    assert best_of(scores[:1], 3).tolist() == []
    many = np.full(810, np.nan, np.float32)  # some strips have nothing else
    many[640:740] = range(100)
    assert best_of(many, 2).tolist() == [739, 738]
