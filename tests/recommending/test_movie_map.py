import itertools

import numpy as np
import pytest
import torch
from matplotlib import pyplot

from preprocessing.dataset import DataError
from recommending.movie_map import _label, draw_map, map_movies
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


def test_three_movies_are_a_map_with_their_distances_and_fewer_are_none(planted):
    result = map_movies(planted, Filters(min_ratings=10))
    assert result.movie_idx.tolist() == [0, 1, 2] and sum(result.variance) == pytest.approx(1)
    assert torch.pdist(result.position).tolist() == pytest.approx([5**0.5, 5**0.5, 10**0.5])
    with pytest.raises(DataError, match="at least 3 movies, and 2 pass"):
        map_movies(planted, Filters(min_ratings=20))


def test_a_dot_grows_with_the_ratings_of_its_movie_and_lies_above_smaller_ones(planted, tmp_path, monkeypatch):
    monkeypatch.setattr(pyplot, "close", lambda figure: None)
    movie_map = map_movies(planted)
    draw_map(tmp_path / "map.png", planted, movie_map)
    dots = pyplot.gcf().axes[0].collections[0]
    monkeypatch.undo()
    pyplot.close("all")
    order = [movie_map.movie_idx.tolist().index(movie) for movie in (5, 3, 1, 2, 0)]  # of 1, 7, 10, 50, 100 ratings
    assert dots.get_sizes() == pytest.approx([4.6, 8.2, 10, 34, 64])
    np.testing.assert_allclose(dots.get_offsets(), movie_map.position[order])
    assert dots.get_array().filled(-1).tolist() == [1984, -1, 1986, 1966, 1995]  # years, of which one is not known


def test_a_map_is_drawn_where_the_environment_asks_for_a_display_that_is_not_there(planted, no_display, tmp_path):
    draw_map(tmp_path / "map.svg", planted, map_movies(planted))
    assert (tmp_path / "map.svg").exists()


def test_no_label_covers_another_one_or_the_dot_of_another():
    """In a crowd, where most labels have to be left out."""
    figure, axes = pyplot.subplots()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    points = np.random.default_rng(3).uniform(0.3, 0.7, (150, 2))
    shown = _label(axes, [(*point, f"Movie {number}") for number, point in enumerate(points)])
    renderer = figure.canvas.get_renderer()
    texts, dots = ([drawn.get_window_extent(renderer) for drawn in kind] for kind in (axes.texts, axes.lines))
    pyplot.close(figure)
    assert [text.get_text() for text in axes.texts] == [f"Movie {number}" for number in shown]
    assert len(shown) == len(dots) > 20 and shown == sorted(shown)
    for (i, text), (j, other) in itertools.permutations(enumerate(texts), 2):
        assert not text.overlaps(other) and not text.overlaps(dots[j]), (i, j)


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
