"""Lists and reasons as DataFrames hold what the objects hold."""

import pandas as pd

from recommending.frames import list_frame, reasons_frame
from recommending.recommender import Filters, Reason, Recommendation


def test_a_list_becomes_a_row_per_movie_with_the_fields_that_it_has(planted):
    frame = list_frame(planted.popular(top_n=4))
    assert frame.index.tolist() == [1, 2, 3, 4] and frame.index.name == "rank"
    assert frame.columns.tolist() == ["movie_id", "title", "year", "num_ratings", "stars"]
    assert frame.movie_id.tolist() == [10, 30, 20, 40] and frame.num_ratings.tolist() == [100, 50, 10, 7]
    assert frame.loc[4].title == "Élan" and frame.year.isna().tolist() == [False, False, False, True]
    assert frame.year[:3].tolist() == [1995, 1966, 1986] and frame.stars.dtype == "float64"


def test_each_kind_of_list_has_its_own_columns(planted):
    fixed = ["movie_id", "title", "year", "num_ratings"]
    assert [*list_frame(planted.similar(10))] == [*fixed, "similarity"]
    assert [*list_frame(planted.search("the", Filters()))] == fixed
    seen = planted.recommend(planted.history_from({30: 2}), filters=Filters(include_seen=True))
    frame = list_frame(seen)
    assert [*frame] == [*fixed, "stars", "stars_bound", "interval_low", "interval_high", "rated"]
    assert frame.stars.tolist() == [row.stars for row in seen]
    assert frame[["interval_low", "interval_high"]].to_numpy().tolist() == [row.interval for row in seen]
    assert frame.rated.dropna().to_dict() == {next(row.rank for row in seen if row.movie_id == 30): 2.0}


def test_an_empty_list_has_every_column_in_its_type():
    frame = list_frame([])
    assert [*frame] == ["movie_id", "title", "year", "num_ratings", "stars", "stars_bound", "interval_low",
                        "interval_high", "similarity", "rated"]
    assert frame.empty
    assert frame.stars.dtype == frame.interval_high.dtype == "float64"
    assert frame.year.dtype == "Int64" and frame.index.name == "rank"
    assert reasons_frame([]).effect.dtype == "float64"


def test_text_ids_stay_text():
    assert list_frame([Recommendation(1, "tt0113277", "Heat", 1995, 3)]).movie_id.tolist() == ["tt0113277"]


def test_reasons_are_rows_under_the_rank_of_their_movie(planted):
    history = planted.history_from({10: 5, 30: 1})
    movies = planted.recommend(history)
    assert reasons_frame(movies).empty  # not yet explained
    planted.explain(history, movies)
    frame = reasons_frame(movies)
    assert [*zip(frame.index, frame.title, frame.rated_movie_id, frame.rated_title, frame.rated, frame.effect)] == [
        (row.rank, row.title, reason.movie_id, reason.title, reason.stars, reason.effect)
        for row in movies for reason in row.because]
    assert set(frame.rated_movie_id) <= {10, 30} and (frame.effect > 0).all() and len(frame)


def test_a_movie_without_reasons_has_no_row():
    because = [Reason(7, "Heat", 4.5, 0.25), Reason(8, "Ran", 5, 0.125)]
    movies = [Recommendation(1, 1, "A", None, 3, because=[]), Recommendation(2, 2, "B", 1999, 3, because=because)]
    pd.testing.assert_frame_equal(reasons_frame(movies), pd.DataFrame(
        {"title": ["B", "B"], "rated_movie_id": [7, 8], "rated_title": ["Heat", "Ran"], "rated": [4.5, 5.0],
         "effect": [0.25, 0.125]}, index=pd.Index([2, 2], name="rank")))


