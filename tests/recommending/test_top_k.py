import numpy as np
import pytest
import torch

from models.ops import numba_kernels as kernels
from recommending import top_k
from recommending.top_k import BestMovies, BestProducts, best_of


def sorted_out(users: torch.Tensor, movies: torch.Tensor, listed: torch.Tensor, start: torch.Tensor,
               seen: torch.Tensor, top_n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what `find` does, from a stable sort of all products."""
    scores = (users @ movies.T).nan_to_num(-torch.inf)
    scores[:, ~listed] = -torch.inf
    scores[torch.arange(len(users)).repeat_interleave(start.diff()), seen] = -torch.inf
    found = scores.sort(dim=1, descending=True, stable=True)
    return found.values[:, :top_n], found.indices[:, :top_n]


def ratings_of(num_users: int, num_movies: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where each user's ratings begin, and their movies: the first has none, the second all but two."""
    counts = torch.randint(num_movies // 2, (num_users,))
    counts[0], counts[1] = 0, num_movies - 2
    seen = [torch.randperm(num_movies)[:count] for count in counts.tolist()]
    return torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]), torch.cat(seen)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(top_k, "MOVIES_PER_TILE", 100)
    torch.manual_seed(0)


@pytest.mark.parametrize("num_movies", [9, 100, 1000])
@pytest.mark.parametrize("top_n", [1, 9, 101])
def test_equal_products_keep_the_order_of_the_movies(num_movies, top_n):
    """Small whole numbers: most products are equal to others, and exact."""
    users, movies = (torch.randint(-2, 3, (size, 20)).float() for size in (40, num_movies))
    users[2] = 0
    listed = torch.rand(num_movies) < 0.8
    start, seen = ratings_of(40, num_movies)
    best, movie_idx = BestProducts(movies, listed, users[:7], top_n).find(users, start, seen)
    expected, expected_idx = sorted_out(users, movies, listed, start, seen, min(top_n, int(listed.sum())))
    assert torch.equal(best, expected)
    found = expected > -torch.inf
    assert torch.equal(movie_idx[found], expected_idx[found])


def decaying(size: int, turn: torch.Tensor) -> torch.Tensor:
    """Return vectors whose products have nearly all of their variance in a few directions."""
    return torch.randn(size, 40) * torch.arange(1, 41) ** -1.5 @ turn


def test_products_that_few_coordinates_bound_are_mostly_left_out_and_the_best_are_all_found():
    turn = torch.linalg.qr(torch.randn(40, 40)).Q
    users, movies = decaying(50, turn), decaying(3000, turn)
    listed = torch.rand(3000) < 0.9
    start, seen = ratings_of(50, 3000)
    ours = BestProducts(movies, listed, users[:20], 10)
    assert ours.head < 40
    best, movie_idx = ours.find(users, start, seen)
    expected, expected_idx = sorted_out(users, movies, listed, start, seen, 10)
    torch.testing.assert_close(best, expected)
    found = expected > -torch.inf
    assert torch.equal(movie_idx[found], expected_idx[found])


def test_equal_products_keep_their_order_where_most_are_left_out():
    turn = torch.linalg.qr(torch.randn(40, 40)).Q
    users, movies = decaying(50, turn), decaying(1500, turn).repeat(2, 1)[torch.randperm(3000)]  # every movie twice
    listed, start, seen = torch.ones(3000, dtype=torch.bool), *ratings_of(50, 3000)
    ours = BestProducts(movies, listed, users[:20], 10)
    assert ours.head < 40
    best, movie_idx = ours.find(users, start, seen)
    expected = sorted_out(users.double(), movies.double(), listed, start, seen, 10)
    found = expected[0] > -torch.inf
    torch.testing.assert_close(best, expected[0].float())
    assert torch.equal(movie_idx[found], expected[1][found])


def test_only_products_whose_bound_is_above_the_lowest_of_the_best_are_completed():
    """The product of every movie is 100, whatever its first coordinates say."""
    user, movie, none = torch.full((1, 4), 5.0), torch.full((1, 4), 5.0), torch.zeros(0, dtype=torch.int64)

    def is_taken(score: float, rest: float, slack: float) -> bool:
        best, best_idx = torch.tensor([[9.0, 8.0, 7.0]]), torch.tensor([[7, 8, 9]])
        kernels.keep_best(torch.tensor([[score]]), torch.tensor([1.5]), torch.tensor([rest]), torch.tensor([slack]),
                          user, movie, torch.tensor([3]), torch.zeros(2, dtype=torch.int64), none, best, best_idx)
        assert best_idx.tolist() in ([[7, 8, 9]], [[3, 7, 8]]) and best[0, 0] in (9, 100)
        return bool(best_idx[0, 0] == 3)

    bounds = [(6.9, 0.0), (7.1, 0.0), (5.0, 1.0), (5.0, 1.4)]
    assert [is_taken(*bound, slack=0.01) for bound in bounds] == [False, True, False, True]
    assert [is_taken(*bound, slack=0.2) for bound in bounds] == [True, True, False, True]


@pytest.mark.parametrize(("columns", "kept"), [(4, 1), (3, 0)])
def test_loops_that_know_no_bounds_are_not_given_what_does_not_belong_together(columns, kept):
    vectors, of_movies, of_user = torch.ones(3, 4), torch.zeros(3), torch.zeros(1)
    start, none, best = torch.zeros(2, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(1, kept)
    with pytest.raises(ValueError, match=f"{columns} columns of 3 movies, {kept} kept"):
        kernels.keep_best(torch.zeros(1, columns), of_user, of_movies, of_user, vectors[:1], vectors, torch.arange(3),
                          start, none, best, best.long())


def test_users_unlike_the_sample_get_their_best_too():
    users, movies = decaying(50, torch.eye(40)), decaying(3000, torch.eye(40))
    ours = BestProducts(movies, torch.ones(3000, dtype=torch.bool), users[:20], 10)
    assert ours.head < 40
    strangers, nothing = 100 * users[20:].flip(1), torch.zeros(0, dtype=torch.int64)
    start = torch.zeros(31, dtype=torch.int64)
    expected = sorted_out(strangers, movies, torch.ones(3000, dtype=torch.bool), start, nothing, 10)
    best, movie_idx = ours.find(strangers, start, nothing)
    torch.testing.assert_close(best, expected[0])
    assert torch.equal(movie_idx, expected[1])


def test_where_no_coordinate_says_more_than_another_all_are_multiplied_out():
    users, movies = torch.randn(50, 40), torch.randn(3000, 40)
    ours = BestProducts(movies, torch.ones(3000, dtype=torch.bool), users, 10)
    assert ours.head == 40
    start, seen = ratings_of(50, 3000)
    expected = sorted_out(users, movies, torch.ones(3000, dtype=torch.bool), start, seen, 10)[0]
    torch.testing.assert_close(ours.find(users, start, seen)[0], expected)


@pytest.mark.parametrize("top_n", [5, 101])
def test_what_is_not_a_number_is_not_found(top_n):
    users, movies = torch.randn(4, 6), torch.randn(150, 6)
    movies[40], users[3] = torch.nan, torch.nan
    nothing, start = torch.zeros(0, dtype=torch.int64), torch.zeros(5, dtype=torch.int64)
    best, movie_idx = BestProducts(movies, torch.ones(150, dtype=torch.bool), users[:2], top_n).find(users, start,
                                                                                                    nothing)
    assert (best[:3] > -torch.inf).all() and 40 not in movie_idx[:3]
    assert (best[3] == -torch.inf).all()


def test_where_no_movie_is_listed_none_is_found():
    users, start = torch.randn(4, 6), torch.zeros(5, dtype=torch.int64)
    nothing = torch.zeros(0, dtype=torch.int64)
    best, movie_idx = BestProducts(torch.randn(9, 6), torch.zeros(9, dtype=torch.bool), users, 3).find(users, start,
                                                                                                      nothing)
    assert best.shape == movie_idx.shape == (4, 0)


def test_coordinates_have_the_same_mean_square_on_either_side_and_keep_products():
    turn = torch.linalg.qr(torch.randn(40, 40)).Q
    users, movies = decaying(500, turn).double(), decaying(600, turn).double()
    users, movies = users @ torch.randn(40, 40).double(), movies * torch.rand(40)
    of_users, of_movies = top_k._rotations(users, movies)
    torch.testing.assert_close(of_users @ of_movies.T, torch.eye(40, dtype=torch.float64), rtol=0, atol=1e-6)
    squares = [(vectors @ turns).square().mean(0) for vectors, turns in ((users, of_users), (movies, of_movies))]
    torch.testing.assert_close(squares[0][:20], squares[1][:20], rtol=1e-2, atol=0)
    assert (squares[1].diff() <= 0).all()


# --- one person --------------------------------------------------------------------------------------------------


def first_by_sorting(scores: np.ndarray, allowed: np.ndarray, top_n: int) -> list[int]:
    return sorted((i for i in np.flatnonzero(allowed) if scores[i] > -np.inf), key=lambda i: (-scores[i], i))[:top_n]


@pytest.mark.parametrize("num_movies", [1, 7, 300, 3000])
@pytest.mark.parametrize("size", [4, 33, 136])
def test_the_best_of_one_person_and_their_products_are_those_of_a_sort(num_movies, size):
    vectors, vector = torch.randn(num_movies, size), torch.randn(size).numpy()
    allowed = np.random.default_rng(size).random(num_movies) < 0.7
    expected, movies = vectors.double().numpy() @ vector, BestMovies(vectors)
    for top_n in (1, 10, 100, 5000):
        order, found = movies.find(vector, allowed, top_n)
        assert len(set(order.tolist())) == len(order) and allowed[order].all()
        np.testing.assert_allclose(expected[order], expected[first_by_sorting(expected, allowed, top_n)], atol=1e-4)
        np.testing.assert_allclose(found, expected[order], atol=1e-4)
        np.testing.assert_array_equal(movies.products(vector, order), found)
        assert found.dtype == np.float32


def test_equal_products_of_one_person_keep_the_order_of_the_movies():
    """Small whole numbers: the sums are exact, and most are equal to others."""
    vectors = torch.randint(-1, 2, (3000, 44)).float()
    for number in range(20):
        vector = torch.randint(-2, 3, (44,)).float().numpy()
        allowed = np.random.default_rng(number).random(3000) < 0.5
        for top_n in (1, 10, 200, 300):
            expected = first_by_sorting(vectors.numpy() @ vector, allowed, top_n)
            assert BestMovies(vectors).find(vector, allowed, top_n)[0].tolist() == expected


@pytest.mark.parametrize("size", [12, 66, 99, 136])
def test_equal_movies_have_equal_products(size):
    """Whatever stands beside them: a sum in another order would order them by chance."""
    vectors = torch.randn(1, size).repeat(1000, 1)
    for movies in (BestMovies(vectors), BestMovies(vectors.T.contiguous().T)):
        for top_n in (1, 10, 99):
            found, _ = movies.find(torch.randn(size).numpy(), np.ones(1000, bool), top_n)
            assert found.tolist() == list(range(top_n))


def test_what_rounding_puts_behind_the_list_is_multiplied_again(monkeypatch):
    """Two equal movies, of which BLAS says that the second is better by a last bit."""
    vectors = torch.randn(600, 40)
    vectors[5] = vectors[400] = 3 * vectors.norm(dim=1).max() * torch.ones(40) / 40**0.5
    vector, movies = np.ones(40, np.float32), BestMovies(vectors)

    class Lopsided(np.ndarray):
        def __matmul__(self, other: np.ndarray) -> np.ndarray:
            scores = np.asarray(self) @ other
            scores[400] = np.nextafter(scores[400], np.inf)
            return scores

    movies._vectors = movies._vectors.view(Lopsided)
    assert movies.find(vector, np.ones(600, bool), 1)[0].tolist() == [5]


def test_nothing_is_found_among_nothing():
    for allowed, top_n in ((np.zeros(500, bool), 10), (np.ones(500, bool), 0)):
        order, found = BestMovies(torch.randn(500, 44)).find(torch.randn(44).numpy(), allowed, top_n)
        assert len(order) == len(found) == 0


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_movies_that_are_not_finite_hide_no_others(bad):
    vectors, everything = torch.randn(3000, 44), np.ones(3000, bool)
    vectors[::100, 0] = bad
    for _ in range(10):
        vector = torch.randn(44).numpy()
        with np.errstate(invalid="ignore"):
            expected = vectors.double().numpy() @ vector
            order = BestMovies(vectors).find(vector, everything, 40)[0]
        best = first_by_sorting(expected, everything, 40)
        np.testing.assert_allclose(expected[order], expected[best], atol=1e-4)
    assert BestMovies(vectors).find(np.full(44, np.nan, np.float32), everything, 10)[0].tolist() == []


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
