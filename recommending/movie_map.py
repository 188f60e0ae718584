"""A picture of the movie vectors: their two principal axes, the most rated movies labelled."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from preprocessing.dataset import DataError, replaced
from recommending.formatting import fit
from recommending.recommender import Filters, Recommender

MAX_LABELS = 50
LABEL_WIDTH = 30  # columns


@dataclass
class MovieMap:
    """Where F movies lie, and how much of their vectors' variance each of the two axes has."""

    movie_idx: torch.Tensor  # int64 (F,)
    position: torch.Tensor  # float64 (F, 2)
    variance: tuple[float, float]  # fractions, 0 to 1


@torch.no_grad()
def map_movies(recommender: Recommender, filters: Filters | None = None) -> MovieMap:
    """Project the movie vectors, without their bias coordinates, on the two axes along which they differ most.

    An axis has no direction of its own: it is turned so that its largest coordinate is positive.

    Raises:
        DataError: fewer than three movies pass the filters, or their vectors have a single coordinate.
    """
    movie_idx, vectors = recommender.vectors_without_bias(filters)
    if len(movie_idx) < 3:
        raise DataError(f"a map needs at least 3 movies, and {len(movie_idx)} pass the filters; widen them")
    if vectors.shape[1] < 2:
        raise DataError("a map needs movie vectors of at least 2 coordinates; run: python main.py --embedding_dim 128")
    centred = vectors.double() - vectors.double().mean(0)
    left, singular, axes = torch.linalg.svd(centred, full_matrices=False)
    largest = axes[:2].gather(1, axes[:2].abs().argmax(1, keepdim=True))[:, 0]
    first, second = (singular[:2].square() / singular.square().sum().clamp(min=1e-12)).tolist()
    return MovieMap(movie_idx, left[:, :2] * singular[:2] * largest.sign(), (first, second))


def map_object(recommender: Recommender, movie_map: MovieMap, path: Path | None = None) -> dict:
    """Return what `--json` prints of a map; `path` is its picture, if there is one."""
    movies, order = recommender.movies, movie_map.movie_idx.numpy()
    columns = zip(order.tolist(), movies.movie_id[order].tolist(), movies.year[order].tolist(),
                  movies.num_train_ratings[order].tolist(), movie_map.position.tolist(), strict=True)
    rows = [{"movie_id": movie_id, "title": movies.title[movie], "year": year or None, "num_ratings": num_ratings,
             "x": x, "y": y} for movie, movie_id, year, num_ratings, (x, y) in columns]
    file = None if path is None else str(path)
    return {"kind": "map", "file": file, "variance": list(movie_map.variance), "movies": rows}


def draw_map(path: Path, recommender: Recommender, movie_map: MovieMap) -> list[int]:
    """Draw a map into a .png, .pdf or .svg file; return the indices of the movies labelled, most rated first.

    A label is left out where it would cover another one; the colour is the release year.
    """
    import matplotlib  # costs half a second, so only where a picture is drawn

    matplotlib.use("Agg")
    from matplotlib import colormaps, pyplot

    movies, movie_idx = recommender.movies, movie_map.movie_idx.numpy()
    position = movie_map.position.numpy()
    year, num_ratings = movies.year[movie_idx], movies.num_train_ratings[movie_idx]
    figure, axes = pyplot.subplots(figsize=(12, 9), layout="constrained")
    most_rated = np.argsort(-num_ratings, kind="stable")
    order = most_rated[::-1]  # the most rated on top
    sizes = 4 + 60 * num_ratings / max(num_ratings.max(), 1)
    colour, colours = np.where(year > 0, year, np.nan), colormaps["plasma"].with_extremes(bad="0.7")
    points = axes.scatter(*position[order].T, s=sizes[order], c=colour[order], cmap=colours, plotnonfinite=True,
                          edgecolors="white", linewidths=0.3)
    if year.any():
        figure.colorbar(points, label="release year", shrink=0.6, pad=0.01, format="%d")
    first, second = movie_map.variance
    axes.set(title=f"{len(movie_idx):,} movie vectors; a larger dot has more ratings",
             xlabel=f"first principal axis ({first:.0%} of the variance)",
             ylabel=f"second principal axis ({second:.0%} of the variance)")
    axes.margins(0.04)
    with warnings.catch_warnings():  # a title in a script that the font does not have
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        labelled = _label(axes, [(*position[row], fit(movies.title[movie_idx[row]], LABEL_WIDTH).rstrip())
                                 for row in most_rated[:4 * MAX_LABELS]])
        with replaced(path) as partial:
            figure.savefig(partial, dpi=120, format=path.suffix[1:].lower())
    pyplot.close(figure)
    return [int(movie_idx[most_rated[number]]) for number in labelled]


def _label(axes: Any, points: list[tuple[float, float, str]]) -> list[int]:
    """Write up to MAX_LABELS texts beside their points, with a dot each, where text and dot cover no other.

    Returns:
        The numbers of the points labelled.
    """
    from matplotlib import patheffects
    from matplotlib.transforms import Bbox

    halo = [patheffects.withStroke(linewidth=2.5, foreground="white", alpha=0.8)]
    axes.figure.canvas.draw()  # fixes limits and layout, so that sizes in pixels are final
    axes.autoscale(False)
    renderer, frame = axes.figure.canvas.get_renderer(), axes.get_window_extent()
    taken: list[Bbox] = []
    shown: list[int] = []
    for number, (x, y, text) in enumerate(points):
        if len(shown) == MAX_LABELS:
            break
        across, up = axes.transData.transform((x, y))
        dot = Bbox.from_extents(across - 4, up - 4, across + 4, up + 4)
        for offset, horizontal, vertical in (((5, 0), "left", "center"), ((-5, 0), "right", "center"),
                                             ((0, 5), "center", "bottom"), ((0, -5), "center", "top")):
            label = axes.annotate(text, (x, y), offset, textcoords="offset points", ha=horizontal, va=vertical,
                                  fontsize=8, parse_math=False, path_effects=halo)
            box = label.get_window_extent(renderer)
            inside = frame.x0 < box.x0 and box.x1 < frame.x1 and frame.y0 < box.y0 and box.y1 < frame.y1
            if inside and not any(box.overlaps(other) or dot.overlaps(other) for other in taken):
                taken += [box, dot]
                shown.append(number)
                axes.plot(x, y, "o", ms=3, color="black")
                break
            label.remove()
    return shown
