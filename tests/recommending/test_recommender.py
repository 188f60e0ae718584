import math

import numpy as np
import pytest
import torch

from preprocessing.dataset import DataError
from recommending.recommender import Filters


def ids(rows) -> list[int]:
    return [row.movie_id for row in rows]


def stars_of(score: float) -> float:
    """Of a link of slope 2 that is not fitted: thresholds at .8 of the logits of 1/8, 3/8, 5/8 and 7/8."""
    return 1 + sum(1 / (1 + math.exp(1.6 * math.log(middle / (1 - middle)) - 2 * score))
                   for middle in (0.125, 0.375, 0.625, 0.875))


def of_one_rating(effects: dict[int, float]) -> dict[int, float]:
    """Return what 5 stars for Heat add to scores: a third of what they do in the towers, and two thirds of how far they
    lie above its mean, which five ratings more hold at zero."""
    above = (5 - stars_of(0.4)) / 1 / (1 + 5)
    return {movie_id: effect / 3 + 2 / 3 * above for movie_id, effect in effects.items()}


def test_without_history_the_biases_order_the_list(planted):
    rows = planted.recommend(planted.history_from({}))
    assert ids(rows) == [10, 30, 20, 40, 60]
    assert [row.rank for row in rows] == [1, 2, 3, 4, 5]
    scores = [0.4 - 2 * 101**-0.5, 0.2 - 2 * 51**-0.5, 0.3 - 2 * 11**-0.5, 0.1 - 2 * 8**-0.5, 0 - 2 * 2**-0.5]
    assert [row.stars_bound for row in rows] == pytest.approx([stars_of(score) for score in scores])
    assert [row.stars for row in rows] == pytest.approx([stars_of(score) for score in (0.4, 0.2, 0.3, 0.1, 0)])
    assert [row.year for row in rows] == [1995, 1966, 1986, None, 1984]


def test_one_rating_gives_the_ridge_regression_worked_out_by_hand(planted):
    """Context c = (v, 1/2): w = P^-1 c r / (1 + c' P^-1 c) with the l2s P (Sherman and Morrison)."""
    history = planted.history_from({10: 5})
    residual = (5 - 3) / 1 - 0.4  # one star above the mean is a score of one: slope (3 - 1)(5 - 3) / 4
    l2, bias_penalty = 0.7 + 0.02, 4 + 0.001
    scale = residual / (1 + 1 / l2 + 0.25 / bias_penalty)
    w = (scale / l2, 0, 0.5 * scale / bias_penalty)
    of_towers = {20: 3 * w[0] + w[2] / 2, 30: w[2] / 2, 40: -w[0] + w[2] / 2, 60: w[0] + w[2] / 2}
    effects = of_one_rating(of_towers)
    scores = {20: 0.3 - 2 * 11**-0.5, 30: 0.2 - 2 * 51**-0.5, 40: 0.1 - 2 * 8**-0.5, 60: 0 - 2 * 2**-0.5}
    expected = sorted(((scores[key] + effects[key], key) for key in effects), reverse=True)
    rows = planted.recommend(history)
    planted.explain(history, rows)
    assert ids(rows) == [key for _, key in expected] == [20, 30, 40, 60]
    assert [row.stars_bound for row in rows] == pytest.approx([stars_of(score) for score, _ in expected])
    for row in rows:
        reasons = [(reason.movie_id, reason.title, reason.stars) for reason in row.because]
        assert reasons == ([(10, "Heat", 5)] if effects[row.movie_id] > 0 else [])
        assert all(reason.effect == pytest.approx(effects[row.movie_id], abs=1e-6) for reason in row.because)
    assert planted.recommend(history, num_reasons=3) == rows
    assert [effect > 0 for effect in effects.values()] == [True, True, False, True]  # what lowered a score is no reason


def test_a_list_has_as_many_reasons_as_are_asked_for(planted):
    history = planted.history_from({10: 5, 60: 5})
    listed = {number: planted.recommend(history, num_reasons=number) for number in (0, 1, 3)}
    assert [row.because for row in listed[0]] == [None] * len(listed[0])
    assert max(len(row.because) for row in listed[1]) == 1 < max(len(row.because) for row in listed[3])
    assert [row.because for row in listed[1]] == [row.because[:1] for row in listed[3]]


def test_predictions_are_plain_and_of_any_movie(planted):
    """Without a standard error, also of a movie that nobody rated, of one that the person has, and of one twice."""
    plain = {10: 0.4, 20: 0.3, 30: 0.2, 40: 0.1, 50: 0.9, 60: 0.0}
    nobody, asked = planted.history_from({}), [50, 10, 60, 10]
    stars = planted.predict(nobody, asked)
    assert stars.dtype == np.float32
    assert stars.tolist() == pytest.approx([stars_of(plain[movie_id]) for movie_id in asked])
    residual, l2, l2_bias = (5 - 3) / 1 - 0.4, 0.7 + 0.02, 4 + 0.001  # as in the next test
    scale = residual / (1 + 1 / l2 + 0.25 / l2_bias)
    effects = {20: 3 * scale / l2 + 0.25 * scale / l2_bias, 10: scale / l2 + 0.25 * scale / l2_bias}
    effects = of_one_rating(effects)
    after = planted.predict(planted.history_from({10: 5}), (movie_id for movie_id in (20, 10)))
    assert after.tolist() == pytest.approx([stars_of(plain[movie_id] + effects[movie_id]) for movie_id in (20, 10)])
    assert planted.predict(nobody, []).shape == (0,)


def test_predictions_as_a_list_stand_in_order_of_the_stars_and_equal_ones_as_they_were_named(planted):
    with torch.no_grad():
        planted._movie_table.rows[3] = planted._movie_table.rows[0]
        planted.model.user_based.movie_tower.mean[3] = planted.model.user_based.movie_tower.mean[0]
    rows = planted.predictions(planted.history_from({20: 4.5}), [60, 40, 20, 10])
    assert ids(rows)[-1] == 60 and ids(rows).index(40) == ids(rows).index(10) - 1
    assert {row.movie_id: row.rated for row in rows} == {60: None, 40: None, 20: 4.5, 10: None}
    assert [row.rank for row in rows] == [1, 2, 3, 4] and rows[-1].title == "1984" and rows[-1].num_ratings == 1
    stars = planted.predict(planted.history_from({20: 4.5}), ids(rows))
    assert [row.stars for row in rows] == stars.tolist() == sorted(stars.tolist(), reverse=True)


@pytest.mark.parametrize("wrong", [11, 10**30, -1, "Heat", "10"])
def test_a_prediction_of_a_movie_that_is_not_there_gets_a_sentence(planted, wrong):
    with pytest.raises(DataError, match=r"is not in the data set|is a text and no movie_id"):
        planted.predict(planted.history_from({}), [10, wrong])


@pytest.mark.parametrize(("filters", "expected"), [
    (Filters(year_from=1986), [10, 20]),
    (Filters(year_to=1984), [30, 60]),
    (Filters(year_from=1984, year_to=1986), [20, 60]),
    (Filters(year_from=-10**30), [10, 30, 20, 60]),
    (Filters(year_to=10**30), [10, 30, 20, 60]),
    (Filters(min_ratings=10), [10, 30, 20]),
    (Filters(min_ratings=0), [10, 30, 20, 40, 50, 60]),
    (Filters(min_ratings=10**30), []),
    (Filters(title="hEaT"), [10, 20]),
    (Filters(title="E\u0301LAN"), [40]),  # the accent as a character of its own
    (Filters(title="the bad"), [30]),
    (Filters(title="heat", year_from=1990), [10]),
])
def test_filters_let_through_what_they_say(planted, filters, expected):
    assert ids(planted.recommend(planted.history_from({}), filters=filters)) == expected
    assert sorted(ids(planted.popular(filters=filters))) == sorted(expected)


def test_seen_movies_are_listed_only_when_asked_and_bear_the_stars_given(planted):
    history = planted.history_from({10: 2, 40: 4.5})
    assert sorted(ids(planted.recommend(history))) == [20, 30, 60]
    rows = planted.recommend(history, filters=Filters(include_seen=True))
    assert {row.movie_id: row.rated for row in rows} == {10: 2, 20: None, 30: None, 40: 4.5, 60: None}


def test_popular_movies_stand_in_order_of_their_ratings(planted):
    planted._movie_table.mean.copy_(torch.tensor([1, 0.5, 0, -1, 0, 0]))
    rows = planted.popular(3)
    assert [(row.movie_id, row.num_ratings, row.stars) for row in rows] == [(10, 100, 4), (30, 50, 3), (20, 10, 3.5)]


def test_similar_movies_stand_in_order_of_the_cosine_whatever_their_biases(planted):
    rows = planted.similar(10)
    assert ids(rows) == [20, 60, 30, 40]
    assert [row.similarity for row in rows] == pytest.approx([3 / 10**0.5, 0.5**0.5, 0, -1], abs=1e-6)
    assert ids(planted.similar(10, 1, Filters(min_ratings=0))) == [50]
    assert ids(planted.similar(50, 2)) == [10, 20]


def test_ratings_given_again_replace_the_old_stars(planted):
    before = planted.history_from({10: 5, 20: 1})
    before.user_id = 7
    after = planted.add_ratings(before, {20: 4, 30: 3})
    assert after.movie_idx.tolist() == [0, 1, 2] and after.stars.tolist() == [5, 4, 3] and after.user_id == 7
    assert before.stars.tolist() == [5, 1]


@pytest.mark.parametrize(("ratings", "sentence"), [
    ({11: 3}, "movie_id 11 is not in the data set"), ({10**30: 3}, f"movie_id {10**30} is not"),
    ({-1: 3}, "movie_id -1 is not"), ({10: 0.5}, "movie_id 10 is given 0.5 stars, outside 1 to 5"),
    ({10: 5.5}, "outside 1 to 5"), ({10: math.nan}, "nan stars, outside 1 to 5"),
])
def test_impossible_ratings_get_a_sentence(planted, ratings, sentence):
    with pytest.raises(DataError, match=sentence):
        planted.history_from(ratings)


def test_unknown_movies_and_users_get_a_sentence(planted):
    with pytest.raises(DataError, match="movie_id 11 is not in the data set"):
        planted.similar(11)
    with pytest.raises(DataError, match="user_id 5 is not in the data set"):
        planted.history_of(5)
    assert not planted.has_user(5) and not planted.has_user(10**30)


def test_a_title_finds_every_movie_of_that_name_whatever_the_blanks_around_it(planted):
    planted.movies.title[1] = "\u3000HEAT "
    assert planted.movies_called(" heat ") == [10, 20]
    assert planted.movies_called("hea") == []
