"""Which movies are asked: against values worked out by hand, and against the expected variance itself, computed anew by
inverting whole matrices for every movie that could be asked."""

import datetime

import numpy as np
import pytest
import torch

from preprocessing.dataset import DataError, read_movies, read_users
from recommending.asking import CANDIDATES, best_known, choose, second_moment
from recommending.one_user import OneUserTower
from recommending.recommender import Filters, Recommender


def array(*rows: list[float]) -> np.ndarray:
    """Return vectors of a single member, float32 (K, 1, D + 1)."""
    return np.array(rows, np.float32)[:, None]


def test_the_first_movie_is_the_one_of_the_largest_gain_by_hand():
    """With C = diag(1, 4) and S = diag(1, 1/2), q = (x, y) has u = (x, 4 y), so it gains (x^2 + 8 y^2) over
    1 + x^2 + 4 y^2: 1/2 of (1, 0), 8/5 of (0, 1), 9/6 of (1, 1); known as these are, 3, 1.6 and 1.5."""
    covariance, moment = np.diag([1.0, 4.0])[None].astype(np.float32), np.diag([1.0, 0.5])[None].astype(np.float32)
    vectors = array([1, 0], [0, 1], [1, 1])
    assert choose(vectors, covariance, moment, np.array([1.0, 1.0, 1.0]), 1).tolist() == [1]
    assert choose(vectors, covariance, moment, np.array([6.0, 1.0, 1.0]), 1).tolist() == [0]
    # After (0, 1), C = diag(1, 4/5): (1, 0) gains 1/2, (1, 1) gains (1 + 8/25) / (1 + 1 + 4/5) = .4714
    assert choose(vectors, covariance, moment, np.ones(3), 3).tolist() == [1, 0, 2]


def test_the_second_moment_makes_the_weighted_mean_of_all_variances():
    rng = np.random.default_rng(0)
    vectors, weight = rng.normal(size=(9, 2, 3)).astype(np.float32), rng.random(9)
    root = rng.normal(size=(2, 3, 3))
    covariance = root @ root.transpose(0, 2, 1)
    moment = second_moment(vectors, weight)
    for member in range(2):
        variance = np.einsum("md,de,me->m", vectors[:, member], covariance[member], vectors[:, member])
        assert np.trace(moment[member] @ covariance[member]) == pytest.approx(variance @ weight / weight.sum())
    np.testing.assert_allclose(second_moment(vectors, np.zeros(9)), second_moment(vectors, np.ones(9)))
    assert not second_moment(vectors[:0], weight[:0]).any()


@pytest.mark.parametrize("seed", range(5))
def test_every_movie_asked_shrinks_the_expected_variance_most_of_all_that_are_left(seed):
    rng = np.random.default_rng(seed)
    everything = rng.normal(size=(60, 2, 4)).astype(np.float32)
    vectors, known, weight = everything[:20], rng.random(20), rng.random(60)
    precision = np.stack([np.diag(rng.uniform(0.5, 3, 4)) for _ in range(2)])

    def expected_variance(asked: list[int]) -> float:
        total = 0.0
        for member in range(2):
            rows = vectors[asked, member].astype(float)
            covariance = np.linalg.inv(precision[member] + rows.T @ rows)
            variance = np.einsum("md,de,me->m", everything[:, member], covariance, everything[:, member])
            total += variance @ weight / weight.sum() / 2
        return total

    asked = choose(vectors, np.linalg.inv(precision).astype(np.float32), second_moment(everything, weight), known,
                   8).tolist()
    for number, movie in enumerate(asked):
        before = asked[:number]
        gains = {other: known[other] * (expected_variance(before) - expected_variance([*before, other]))
                 for other in range(20) if other not in before}
        assert movie == max(gains, key=gains.__getitem__)


def test_what_is_like_an_asked_movie_is_not_asked_next():
    """The second is the first once more; the third says something else, but little."""
    vectors = array([3, 0], [3, 0], [0, 0.5])
    identity = np.eye(2, dtype=np.float32)[None]
    assert choose(vectors, identity, identity, np.ones(3), 3).tolist() == [0, 2, 1]


def test_equal_movies_keep_their_order_and_no_more_are_asked_than_there_are():
    identity = np.eye(2, dtype=np.float32)[None]
    assert choose(array(*[[0, 0]] * 4), identity, identity, np.ones(4), 9).tolist() == [0, 1, 2, 3]
    assert choose(array(*[[1, 2]] * 3), identity, identity, np.ones(3), 2).tolist() == [0, 1]
    assert choose(array([1, 2])[:0], identity, identity, np.ones(0), 3).tolist() == []


def test_candidates_are_the_best_known_of_the_movies_allowed():
    number = np.array([5, 9, 9, 0, 7])
    assert best_known(number, np.array([True, True, True, True, False])).tolist() == [1, 2, 0, 3]
    many = np.random.default_rng(0).integers(0, 50, 3 * CANDIDATES)
    chosen = best_known(many, np.ones(len(many), bool))
    assert len(chosen) == CANDIDATES and many[chosen].tolist() == np.sort(many)[::-1][:CANDIDATES].tolist()


@pytest.fixture(scope="module")
def recommender(data_dir, run_dir) -> Recommender:
    return Recommender.load(run_dir, data_dir)


def test_a_trained_run_asks_for_what_leaves_the_predictions_for_the_best_known_movies_surest(recommender):
    """In the mean over all predictions, weighted by the movies' numbers of ratings, and times that number once more,
    for how likely the movie is known; measured by the variances behind the intervals of a list."""
    tower, number = recommender._user_tower, recommender.movies.num_train_ratings
    rated = dict.fromkeys(recommender.movies.movie_id[[3, 8]].tolist(), 4.0)

    def expected_variance(movie_idx: np.ndarray, l2: np.ndarray) -> float:
        rows = tower.rows[..., :-1].astype(float)
        covariance = [np.linalg.inv(rows[movie_idx, member].T @ rows[movie_idx, member] + np.diag(l2[member]))
                      for member in range(rows.shape[1])]
        return float(np.mean([np.einsum("md,de,me->m", rows[:, member], covariance[member], rows[:, member]) @ number
                              for member in range(rows.shape[1])]))

    for given in ({}, rated):
        history = recommender.history_from(given)
        asked = [recommender.movie_idx_of(row.movie_id) for row in recommender.ask(history, 3)]
        before, l2 = history.movie_idx.numpy(), tower.l2_base + tower.l2_per_rating * len(given)
        for movie in asked:
            gains = {other: number[other] * (expected_variance(before, l2) - expected_variance(
                np.append(before, other), l2)) for other in set(np.flatnonzero(number).tolist()) - set(before.tolist())}
            assert gains[movie] == pytest.approx(max(gains.values()), rel=1e-3)
            before = np.append(before, movie)


def test_the_covariance_is_the_one_of_which_lists_have_their_intervals(recommender):
    tower, movie_idx = recommender._user_tower, np.array([2, 5, 11])
    stars, day, asked = np.array([5, 1, 3], np.float32), np.array([0, 5, 9]), np.arange(30)
    rows, covariance = tower.rows[asked, :, :-1].transpose(1, 0, 2), tower.covariance(movie_idx)
    _, expected = tower.uncertainty(tower.fold_in(None, movie_idx, stars, day), asked)
    np.testing.assert_allclose(((rows @ covariance) * rows).sum(-1).mean(0), expected, rtol=1e-4)


def test_seen_movies_are_never_asked(recommender, data_dir):
    for user_id in read_users(data_dir).user_id[::60].tolist():
        history = recommender.history_of(user_id)
        asked = [recommender.movie_idx_of(row.movie_id) for row in recommender.ask(history, 1000)]
        rated = set(history.movie_idx.tolist())
        assert len(set(asked)) == len(asked) and not set(asked) & rated
        assert len(asked) == int((recommender.movies.num_train_ratings > 0).sum()) - len(
            [movie for movie in rated if recommender.movies.num_train_ratings[movie]])
        assert recommender.ask(history, 1000, Filters(include_seen=True)) == recommender.ask(history, 1000)


def test_a_list_of_movies_to_ask_is_the_beginning_of_a_longer_one(recommender):
    history = recommender.history_from({})
    rows = recommender.ask(history, 30)
    assert [row.rank for row in rows] == list(range(1, 31)) and recommender.ask(history, 7) == rows[:7]
    assert recommender.ask(history) == rows[:10] and {row.stars for row in rows} == {None}


def test_movies_that_are_passed_are_not_asked_again_and_the_others_are_asked_as_if_there_were_none_such(recommender):
    history = recommender.history_from({})
    first, *others = recommender.ask(history, 90)
    without = recommender.ask(history, 90, passed=[first.movie_id])
    assert len(without) == len(others) and first.movie_id not in [row.movie_id for row in without]
    number = recommender.movies.num_train_ratings
    recommender.movies = recommender.movies._replace(num_train_ratings=np.where(
        recommender.movies.movie_id == first.movie_id, 0, number))
    assert without == recommender.ask(history, 90)
    recommender.movies = recommender.movies._replace(num_train_ratings=number)
    with pytest.raises(DataError, match="movie_id 9999 is not in the data set"):
        recommender.ask(history, passed=[9999])


def test_answers_change_what_is_asked_next(recommender):
    first = recommender.ask(recommender.history_from({}), 3)
    after = recommender.ask(recommender.history_from({row.movie_id: 4 for row in first}), 90)
    assert not {row.movie_id for row in first} & {row.movie_id for row in after}
    assert after == recommender.ask(recommender.history_from({row.movie_id: 1 for row in first}), 90)


def test_filters_and_the_date_say_what_may_be_asked(recommender, data_dir):
    movies = read_movies(data_dir)
    history = recommender.history_from({})
    for filters, passing in (
            (Filters(year_from=1980, year_to=1995), (movies.year >= 1980) & (movies.year <= 1995)),
            (Filters(min_ratings=100), movies.num_train_ratings >= 100),
            (Filters(title="the"), np.array(["the" in title.casefold() for title in movies.title])),
            (Filters(title="no such title"), np.zeros(len(movies.title), bool))):
        found = recommender.ask(history, 1000, filters)
        expected = movies.movie_id[passing & (movies.num_train_ratings > 0)].tolist()
        assert sorted(row.movie_id for row in found) == expected
    early = recommender.as_of_date(datetime.date(2000, 1, 1))
    assert 0 < len(early.ask(history, 1000)) < len(recommender.ask(history, 1000))
    assert all(row.year is None or row.year <= 2000 for row in early.ask(history, 1000))


def test_odd_persons_are_asked_too(recommender):
    movie_ids = recommender.movies.movie_id[recommender.recommendable.numpy()].tolist()
    for given in (dict.fromkeys(movie_ids[:40], 1), dict.fromkeys(movie_ids[:40], 5), {movie_ids[0]: 1},
                  {movie_ids[0]: 1, movie_ids[1]: 5}):
        rows = recommender.ask(recommender.history_from(given), 5)
        assert len(rows) == 5 and not {row.movie_id for row in rows} & set(given)
    assert recommender.ask(recommender.history_from(dict.fromkeys(movie_ids, 3)), 5) == []
    last = recommender.ask(recommender.history_from(dict.fromkeys(movie_ids[:-1], 3)), 5)
    assert [row.movie_id for row in last] == movie_ids[-1:]


def test_by_hand_of_planted_movies_the_one_of_many_ratings_and_a_long_vector_comes_first(planted):
    """Heat has 100 ratings and a vector of length 1, the third movie 50 and one of length 2; what is rated by nobody
    is asked only where the filters let it pass, and then last."""
    tower = planted._user_tower
    number, rows = planted.movies.num_train_ratings, tower.rows[:, 0, :-1].astype(float)
    covariance = np.diag(1 / tower.l2_base[0].astype(float))
    moment = np.einsum("m,md,me->de", number / number.sum(), rows, rows)
    gain = [n * (q @ covariance @ moment @ covariance @ q) / (1 + q @ covariance @ q)
            for n, q in zip(number, rows, strict=True)]
    history = planted.history_from({})
    assert planted.ask(history, 1)[0].movie_id == planted.movies.movie_id[np.argmax(gain)]
    assert 50 not in [row.movie_id for row in planted.ask(history)]
    assert [row.movie_id for row in planted.ask(history, 6, Filters(min_ratings=0))][-1] == 50


@torch.no_grad()
def test_a_run_without_a_fold_in_asks_as_if_it_had_one(planted):
    planted.model.config.without = ("fold_in",)
    planted._user_tower = OneUserTower(planted.model.user_based, planted._movie_table)
    assert len(planted.ask(planted.history_from({10: 5}), 3)) == 3
