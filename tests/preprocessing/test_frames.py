"""A data set's DataFrames say what the raw ratings said: ids, titles, stars, dates and the split."""

import datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from preprocessing import building
from preprocessing.dataset import (
    SPLITS,
    DataError,
    RatingsFile,
    Titles,
    Users,
    frames,
    movies_frame,
    ratings_frame,
    read_users,
    users_frame,
)

COLUMNS = ["user_id", "movie_id", "stars", "date", "split"]


@pytest.fixture
def known(kit):
    return kit.draw_ratings(7, num_users=40, num_movies=15)


@pytest.fixture
def data_dir(known, preprocess, monkeypatch):
    """Row groups of some users; two movies have the same title, one has none and no year."""
    monkeypatch.setattr(building, "GROUP_ROWS", 40)
    movie_ids = sorted({rating.movie_id for rating in known})
    lines = [f"{movie_id},{1950 + k},{'Heat' if k < 2 else f'No. {k}'}\n" for k, movie_id in enumerate(movie_ids[1:])]
    return preprocess(ratings=known, titles="".join(lines).encode())


def test_ratings_are_those_of_the_raw_files_in_order_of_user_date_and_movie(known, data_dir):
    frame = ratings_frame(data_dir)
    assert [*frame] == COLUMNS
    assert [*zip(frame.user_id, frame.movie_id, frame.stars, frame.date)] == [
        (rating.user_id, rating.movie_id, rating.stars, datetime.datetime.fromisoformat(rating.date))
        for rating in sorted(known, key=lambda rating: (rating.user_id, rating.date, rating.movie_id))]
    assert frame.date.dtype == "datetime64[s]" and frame.stars.dtype == "float32"
    assert frame.split.cat.categories.tolist() == list(SPLITS)


def test_the_split_of_a_frame_is_that_of_the_file(data_dir):
    expected = np.concatenate([group.split for _, group in RatingsFile(data_dir).read_groups()])
    assert ratings_frame(data_dir).split.cat.codes.tolist() == expected.tolist()


@pytest.mark.parametrize("split", ["train", "validation", "test", ["train", "test"], ["test", "train"]])
def test_a_split_alone_is_the_rows_of_it(data_dir, split):
    everything = ratings_frame(data_dir)
    expected = everything[everything.split.isin([split] if isinstance(split, str) else split)].reset_index(drop=True)
    assert 0 < len(expected) < len(everything)
    pd.testing.assert_frame_equal(ratings_frame(data_dir, split=split), expected)
    pd.testing.assert_frame_equal(ratings_frame(data_dir, ["stars", "user_id"], split), expected[["stars", "user_id"]])


def test_titles_come_with_ratings_as_categories(data_dir):
    frame = ratings_frame(data_dir, ["title", "movie_id"])
    movies = movies_frame(data_dir)
    assert [*frame] == ["title", "movie_id"] and frame.title.dtype == "category"
    assert frame.title.tolist() == frame.movie_id.map(movies.set_index("movie_id").title).tolist()
    assert frame.movie_id[frame.title == "Heat"].nunique() == 2


def test_half_stars_are_halved(data_dir, monkeypatch):
    whole = ratings_frame(data_dir).stars
    meta = frames.read_meta(data_dir)
    monkeypatch.setattr(frames, "read_meta", lambda folder: {**meta, "stars_step": 0.5})
    assert ratings_frame(data_dir).stars.tolist() == [stars / 2 for stars in whole]


@pytest.mark.parametrize("stars_range, step", [([-1, 1], 0.5), ([0, 100], 1), ([-10, -2], 2), ([0.5, 5], 0.5)])
def test_every_step_of_a_scale_has_its_stars(data_dir, stars_range, step):
    stars = np.arange(stars_range[0], stars_range[1] + step, step)
    codes = (stars / step).astype(np.int16)
    found = frames._lookup("stars", data_dir, {"stars_range": stars_range, "stars_step": step})[codes]
    assert found.dtype == "float32" and found.tolist() == stars.tolist()


def test_users_and_movies_are_those_of_their_files(known, data_dir):
    users, movies = users_frame(data_dir), movies_frame(data_dir)
    ids = [rating.user_id for rating in known]
    assert dict(zip(users.user_id, users.num_ratings)) == {user_id: ids.count(user_id) for user_id in ids}
    assert movies.movie_id.tolist() == sorted({rating.movie_id for rating in known})
    assert movies.title[:4].tolist() == ["", "Heat", "Heat", "No. 2"]
    assert movies.year.isna().tolist() == [True] + [False] * (len(movies) - 1) and movies.year[1] == 1950
    train = ratings_frame(data_dir, split="train").movie_id.value_counts()
    assert movies.num_train_ratings.tolist() == train.reindex(movies.movie_id, fill_value=0).tolist()


@pytest.mark.parametrize("hold", [np.array, lambda ids: np.array(ids, object),
                                  lambda ids: Titles(pa.chunked_array([ids]))])
def test_ids_that_are_text_are_text(data_dir, monkeypatch, hold):
    number = ratings_frame(data_dir).user_id
    users = read_users(data_dir)
    text = [f"reader {user_id}" for user_id in users.user_id]
    monkeypatch.setattr(frames, "read_users", lambda folder: Users(hold(text), users.offset))
    frame = ratings_frame(data_dir)
    assert frame.user_id.tolist() == [f"reader {user_id}" for user_id in number]
    assert users_frame(data_dir).user_id.tolist() == text
    assert frame.groupby("user_id", observed=True).size().tolist() == users_frame(data_dir).num_ratings.tolist()


def test_columns_and_splits_that_do_not_exist_are_named(data_dir, tmp_path):
    with pytest.raises(DataError, match="'genre' is none of user_id, movie_id, title, stars, date, split"):
        ratings_frame(data_dir, ["genre"])
    with pytest.raises(DataError, match="'probe' is none of train, validation, test"):
        ratings_frame(data_dir, split="probe")
    with pytest.raises(DataError, match=r"meta.json not found; run: python preprocessing"):
        ratings_frame(str(tmp_path / "nothing"))
