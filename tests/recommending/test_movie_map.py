import numpy as np
import pytest
import torch

from preprocessing.dataset import DataError
from recommending.movie_map import draw_map, map_movies
from recommending.recommender import Filters


def test_the_axes_are_those_along_which_the_films_differ_most(planted):
    """A cross, 6 long and 2 high, turned by 30 degrees: the axes find it upright, 18 and 2 of the variance's 20."""
    cross = np.array([[-3, 0], [3, 0], [0, -1], [0, 1]])
    turn = np.array([[0.75**0.5, 0.5], [-0.5, 0.75**0.5]])
    planted._movie_table.vectors[[0, 1, 2, 3], 0] = torch.tensor(cross @ turn + 7).float()
    result = map_movies(planted, Filters(min_ratings=2))
    assert result.movie_idx.tolist() == [0, 1, 2, 3]
    assert result.position.numpy() == pytest.approx(cross, abs=1e-5)
    assert result.variance == pytest.approx((0.9, 0.1))


def test_fewer_than_three_films_are_no_map(planted):
    with pytest.raises(DataError, match="at least 3 movies, and 2 pass"):
        map_movies(planted, Filters(min_ratings=20))


@pytest.mark.filterwarnings("error")
def test_the_most_rated_films_are_labelled_whatever_their_titles(planted, tmp_path):
    planted.movies.title[:3] = ["$x$ and $\\bad{", "七人の侍", "bell\x07"]
    for suffix, start in (("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")):
        path = tmp_path / f"map.{suffix}"
        labelled = draw_map(path, planted, map_movies(planted))
        assert path.read_bytes().startswith(start)
        assert labelled[:2] == [0, 2]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["map.pdf", "map.png", "map.svg"]


def test_labels_of_films_in_one_place_do_not_cover_each_other(planted, tmp_path):
    planted._movie_table.vectors[:3] = 0.0
    planted._movie_table.vectors[3, 0] = torch.tensor([1.0, -1.0])
    planted._movie_table.vectors[5] = 1.0
    labelled = draw_map(tmp_path / "map.png", planted, map_movies(planted))
    assert labelled == [0, 3, 5]
