"""Data sets at the edge of what a data set can be, through the real commands."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import main
import rec
from preprocessing import netflix_preprocess
from preprocessing.dataset import RatingsFile, read_meta, read_movies, read_users
from recommending.recommender import Recommender
from training.batches import load_dataset


@pytest.fixture
def commands(tmp_path, capsys):
    """Preprocess some lines, train for an epoch, recommend for a user: the data set, and what rec.py prints."""

    def run(ratings: str, titles: str, *user: str, split: tuple = ("latest",),
            batch_size: str = "4096", train: tuple = ()) -> tuple[Path, str]:
        (tmp_path / "combined_data_1.txt").write_text(ratings)
        (tmp_path / "movie_titles.csv").write_text(titles)
        data = ["--data_dir", str(tmp_path / "data"), "--run_dir", str(tmp_path / "run")]
        assert netflix_preprocess.main(["--raw_dir", str(tmp_path), "--out_dir", str(tmp_path / "data"), "--split",
                                        *split]) == 0, capsys.readouterr().err
        assert main.main([*data, "--epochs", "1", "--num_threads", "1", "--embedding_dim", "8", "--ensemble_size", "2",
                          "--hidden_dim", "8", "--batch_size", batch_size, *train]) == 0, capsys.readouterr().err
        capsys.readouterr()
        assert rec.main([*data, *user]) == 0, capsys.readouterr().err
        return tmp_path / "data", capsys.readouterr().out

    return run


def titles_of(*movie_ids: int) -> str:
    return "".join(f"{movie_id},2000,Title {movie_id}\n" for movie_id in movie_ids)


def test_one_user_one_movie_one_rating(commands):
    data_dir, printed = commands("7:\n42,4,2005-01-01\n", titles_of(7))
    assert read_meta(data_dir)["num_ratings"] == 1
    assert "user 42, 1 movie" in printed and "nothing to" in printed


def test_one_user_with_many_movies(commands):
    lines = "".join(f"{movie_id}:\n42,{1 + movie_id % 5},2005-01-{movie_id:02}\n" for movie_id in range(1, 29))
    _, printed = commands(lines, titles_of(*range(1, 30)))
    assert "user 42, 28 movies" in printed and "nothing to" in printed


def test_one_movie_with_many_users(commands):
    lines = "7:\n" + "".join(f"{user_id},{1 + user_id % 5},2005-01-01\n" for user_id in range(1, 300))
    _, printed = commands(lines, titles_of(7), "--rate", "7:5")
    assert "nothing to" in printed


@pytest.mark.parametrize("stars", [1, 3, 5])
def test_all_ratings_equal(commands, tmp_path, stars):
    lines = "".join(f"{movie_id}:\n" + "".join(f"{user_id},{stars},2005-01-{user_id % 28 + 1:02}\n"
                                               for user_id in range(1, 40) if (user_id + movie_id) % 3)
                    for movie_id in range(1, 11))
    _, printed = commands(lines, titles_of(*range(1, 11)), "--json")
    rows = json.loads(printed)["recommendations"]
    assert rows and all(1 <= row["stars"] <= 5 for row in rows)
    # a score of one is a star there, or less, and a list is lower by two standard errors
    assert all(-2 / (row["num_ratings"] + 1)**0.5 - 0.1 < row["stars"] - stars < 0.1 for row in rows)
    results = json.loads((tmp_path / "run" / "test_metrics.json").read_text(), parse_constant=pytest.fail)  # no NaN
    assert (results["two_tower"]["ndcg@10"] is None) == (stars < 4)  # nobody likes a movie of the test
    assert results["global_mean"]["rmse"] == pytest.approx(0, abs=1e-6)


def test_a_user_who_rated_everything_is_told_so(commands):
    lines = "".join(f"{movie_id}:\n" + "".join(f"{user_id},{1 + (user_id * movie_id) % 5},2005-01-{movie_id:02}\n"
                                               for user_id in range(1, 30) if user_id == 1 or (user_id + movie_id) % 2)
                    for movie_id in range(1, 11))
    _, printed = commands(lines, titles_of(*range(1, 11)), "--user_id", "1")
    assert "user 1, 10 movies rated\n" in printed and "nothing to" in printed


def test_movie_ids_and_catalogues_above_32767(commands):
    """A catalogue past int16: the type of the column changes, and nothing else."""
    movie_ids = [1, 32_767, 32_768, 32_769, 2**31 - 1]
    lines = "".join(f"{movie_id}:\n" + "".join(f"{user_id},{1 + user_id % 5},2005-01-{user_id % 28 + 1:02}\n"
                                               for user_id in range(1, 40) if (user_id + movie_id) % 3)
                    for movie_id in movie_ids)
    data_dir, printed = commands(lines, titles_of(*range(1, 32_770), 2**31 - 1), "--json", "--top_n", "100",
                                 batch_size="100000")
    assert pq.read_schema(data_dir / "ratings.parquet").field("movie_idx").type == "int32"
    movies = read_movies(data_dir)
    groups = [ratings for _, ratings in RatingsFile(data_dir).read_groups()]
    assert set(movies.movie_id[np.concatenate([ratings.movie_idx for ratings in groups])].tolist()) == set(movie_ids)
    assert {row["movie_id"] for row in json.loads(printed)["recommendations"]} <= set(movie_ids)
    assert load_dataset(data_dir).test.movie_idx.max() == 32_769


def test_user_ids_above_two_to_the_31(commands):
    users = [1, 2**31 - 1, 2**31, 2**31 + 1, 2**32 + 5, 99_999_999_999]
    lines = "".join(f"{movie_id}:\n" + "".join(f"{user_id},{1 + movie_id % 5},2005-01-{movie_id:02}\n"
                                               for k, user_id in enumerate(users) if (k + movie_id) % 3)
                    for movie_id in range(1, 20))
    data_dir, printed = commands(lines, titles_of(*range(1, 20)), "--user_id", "99999999999")
    assert read_users(data_dir).user_id.tolist() == users
    assert "user 99999999999" in printed


def test_more_than_two_to_the_31_cells(commands):
    """61,000 users and 36,000 movies; the last user rated the last movie."""
    lines = ["36000:", *(f"{user_id},{1 + user_id % 5},2005-01-01" for user_id in range(1, 61_001, 3)), "35999:",
             *(f"{user_id},{1 + user_id % 4},2005-01-02" for user_id in range(2, 61_001, 3)), "1:",
             *(f"{user_id},3,2005-01-03" for user_id in range(1, 61_001))]
    data_dir, _ = commands("\n".join(lines) + "\n", titles_of(*range(1, 36_001)), "--user_id", "61000",
                           split=("random", "--test_fraction", "0.001", "--val_fraction", "0.001"),
                           batch_size="50000", train=("--blend", "user", "--relevance_weight", "0"))
    meta = read_meta(data_dir)
    assert meta["num_users"] * meta["num_movies"] > 2**31
    users = read_users(data_dir)
    seen = RatingsFile(data_dir).read_user(users.user(60_999))
    assert users.user_id[-1] == 61_000 and seen.movie_idx.tolist() == [35_999, 0]
    data = load_dataset(data_dir)
    kept = sum(len(part) for part in (data.train, data.validation, data.test))
    assert kept == meta["num_ratings"] == 61_000 + 20_334 + 20_333


def test_dates_before_1970_and_before_the_calendar(commands):
    dates = ["0001-01-01", "1582-10-15", "1969-12-31", "1970-01-01", "9999-12-31"]
    lines = "".join(f"{movie_id}:\n" + "".join(f"{user_id},{1 + user_id % 5},{date}\n" for user_id in range(1, 9))
                    for movie_id, date in enumerate(dates, start=1))
    data_dir, _ = commands(lines, titles_of(*range(1, 6)))
    first = np.datetime64(read_meta(data_dir)["day_epoch"])
    read = RatingsFile(data_dir).read_user(read_users(data_dir).user(0))
    assert [str(first + int(day)) for day in read.day] == dates
    assert read.day.dtype == np.int32


def test_a_user_of_no_training_rating_is_served(tmp_path, data_dir, run_dir):
    """All their ratings are in the test split, or they have none: their vector is that of nobody, and it is finite."""
    recommender = Recommender.load(run_dir, data_dir)
    history = recommender.history_from({})
    rows = recommender.recommend(history, 5)
    assert len(rows) == 5 and all(np.isfinite(row.stars) for row in rows)


def test_a_batch_of_users_without_ratings_is_a_step_like_any_other(commands):
    """Users whose only rating is tested leave whole batches without a single training rating."""
    lines = "".join(f"{movie_id}:\n" + "".join(f"{user_id},{1 + user_id % 5},2005-01-0{movie_id}\n"
                                               for user_id in range(1, last)) for movie_id, last in ((1, 40), (2, 4)))
    split = ("random", "--test_fraction", "0.5")
    data_dir, printed = commands(lines, titles_of(1, 2), "--user_id", "39", split=split, batch_size="1")
    assert (load_dataset(data_dir).train.offset.diff() == 0).any()
    assert "user 39, 1 movie" in printed
