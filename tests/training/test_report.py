from pathlib import Path

import numpy as np
import pytest
import torch

from preprocessing.dataset import Movies, Users
from training.batches import DataSet, RatingTensors
from training.report import plot_training, validation_baselines
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
    users, meta = Users(np.arange(2), np.array([0, 6, 13])), {"stars_step": 0.5, "stars_range": [0.5, 5]}
    found = validation_baselines(DataSet(Path(), meta, users, movies, known, asked, none))
    assert found == pytest.approx({"global mean": 1.0, "user + movie bias": 0.5})
    assert validation_baselines(DataSet(Path(), meta, users, movies, known, none, asked)) == {}


def test_a_curve_is_drawn_where_the_environment_asks_for_a_display_that_is_not_there(no_display, tmp_path):
    rows = [EpochMetrics(epoch, 1.0, 1.0, 1.0 / epoch, 1.0, 0.001, 1.0, 1.0, 1.0) for epoch in (1, 2)]
    plot_training(tmp_path / "training.png", rows, 2, {"global mean": 1.1})
    assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")
