import math
from pathlib import Path

import numpy as np
import pytest
import torch

from preprocessing.dataset import DataError, Movies, Users
from training.batches import DataSet, RatingTensors
from training.report import plot_training, published, read_metrics, validation_baselines, write_metrics
from training.trainer import EpochMetrics


def ratings_of(*users: list[int]) -> RatingTensors:
    """Return the ratings of users in steps of the data set's scale, each of the first so many movies."""
    offset = torch.tensor([0, *map(len, users)]).cumsum(0)
    movie_idx = torch.cat([torch.arange(len(steps)) for steps in users]).short()
    return RatingTensors(offset, movie_idx, torch.tensor([step for steps in users for step in steps]).byte(),
                         torch.zeros_like(movie_idx))


def test_baselines_of_validation_are_in_stars():
    """Of half stars: the mean is 3, that of users 4 and 2, of every movie 3; five ratings have half of a bias."""
    known, asked, none = ratings_of([8] * 5, [4] * 5), ratings_of([8], [4, 4]), ratings_of([], [])
    movies = Movies(np.arange(5, dtype=np.int32), np.zeros(5, np.int16), list("abcde"), np.full(5, 2, np.int32))
    users = Users(np.arange(2), np.array([0, 6, 13]))
    meta = {"num_users": 2, "stars_step": 0.5, "stars_range": [0.5, 5], "split": {"num_validation": 3}}
    found = validation_baselines(DataSet(Path(), meta, users, movies, known, asked, none))
    assert found == pytest.approx({"global mean": 1.0, "user + movie bias": 0.5})
    meta["split"]["num_validation"] = 0
    assert validation_baselines(DataSet(Path(), meta, users, movies, known, none, asked)) == {}


def test_a_curve_is_drawn_where_the_environment_asks_for_a_display_that_is_not_there(no_display, tmp_path):
    rows = [EpochMetrics(epoch, 1.0, 1.0, 1.0 / epoch, 1.0, 0.001, 1.0, 1.0, 1.0) for epoch in (1, 2)]
    plot_training(tmp_path / "training.png", rows, 2, {"global mean": 1.1})
    assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")


def test_metrics_read_back_as_they_were_written(tmp_path):
    rows = [EpochMetrics(1, 0.6, 0.7727, 0.7431, 0.58, 0.001, 10.25, 163260.0, 700.5),
            EpochMetrics(2, 0.5, 0.75, math.nan, math.nan, 1e-5, 10.0, 170000.0, 701.0)]
    write_metrics(tmp_path / "metrics.csv", rows)
    frame = read_metrics(tmp_path)
    assert [*frame] == list(EpochMetrics.__dataclass_fields__)
    assert frame.epoch.tolist() == [1, 2] and frame.epoch.dtype == "int64"
    assert frame.iloc[0].to_dict() == vars(rows[0])
    assert frame.val_rmse.isna().tolist() == [False, True] and frame.lr[1] == 1e-5


def test_metrics_of_a_run_before_its_first_epoch_are_an_empty_frame(tmp_path):
    write_metrics(tmp_path / "metrics.csv", [])
    frame = read_metrics(tmp_path)
    assert frame.empty and frame.val_rmse.dtype == "float64"


@pytest.mark.parametrize("text", [None, "", "epoch,val_rmse\n1,0.9\n", "{header}\nx,y,z,a,b,c,d,e,f\n"])
def test_metrics_that_are_missing_or_damaged_get_a_sentence(tmp_path, text):
    if text is not None:
        header = ",".join(EpochMetrics.__dataclass_fields__)
        (tmp_path / "metrics.csv").write_text(text.format(header=header), encoding="utf-8")
    with pytest.raises(DataError, match=r"metrics.csv (not found|is not what main.py wrote); run: python main.py"):
        read_metrics(tmp_path)


def test_what_others_reached_is_told_of_netflix_s_own_probe_alone():
    sizes = {"num_train": 95_000_000, "num_validation": 4_072_112, "num_test": 1_408_395}
    lines = published({"split": {"method": "probe", **sizes}}).splitlines()
    assert len(lines) > 5 and "SVD++, 200 factors                   0.8911  Koren 2008" in lines
    rmse = [float(line[37:43]) for line in lines[1:]]
    assert rmse == sorted(rmse, reverse=True)
    for other in ({"method": "latest"}, {"num_test": 1_408_394}, {"num_train": 95_000_001}):
        assert published({"split": {"method": "probe", **sizes, **other}}) == ""
