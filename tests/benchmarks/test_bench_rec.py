import json

import pyarrow.parquet as pq
import pytest

from benchmarks import bench_rec
from preprocessing import dataset
from preprocessing.dataset import RatingsFile


def test_the_random_data_set_is_a_data_set(tmp_path):
    folder = bench_rec.make_dataset(tmp_path / "data", 700)
    users, movies, file = dataset.read_users(folder), dataset.read_movies(folder), RatingsFile(folder)
    assert len(users.user_id) == 700 and len(movies.movie_id) == bench_rec.NETFLIX_MOVIES
    assert users.offset[-1] == len(file) == dataset.read_meta(folder)["num_ratings"]
    assert len(file) == pytest.approx(700 * bench_rec.RATINGS_PER_USER, rel=0.02)
    groups = [ratings for _, ratings in file.read_groups()]
    assert [int(ratings.user_idx[-1]) for ratings in groups] == [626, 699]
    assert int(movies.num_train_ratings.sum()) == len(file)


def test_the_last_line_has_the_promised_figures(capfd, data_dir, monkeypatch):
    measure = bench_rec.measure
    monkeypatch.setattr(bench_rec, "measure", lambda function, *args, **named: (  # one process of its own is enough
        function(*args) if function is bench_rec.run_all_users else measure(function, *args, **named)))
    assert bench_rec.main(["--data_dir", str(data_dir), "--users", "40", "--rounds", "1"]) == 0
    result = json.loads(capfd.readouterr().out.splitlines()[-1])
    for name in ("query_ms", "history_ms", "ask_ms", "ask_again_ms", "load_ms", "process_over_import_torch",
                 "all_users_s", "all_users_over_matmul"):
        assert result[name] > 0
    assert result["users"] == 40


def test_everybody_means_the_users_of_the_data_set(data_dir, tmp_path):
    run_dir = bench_rec.make_run(tmp_path / "run", data_dir)
    result = bench_rec.run_all_users(data_dir, run_dir, tmp_path / "recs.parquet")
    assert result["users"] == len(dataset.read_users(data_dir).user_id)
    assert len(pq.ParquetFile(tmp_path / "recs.parquet").read()) > 0
