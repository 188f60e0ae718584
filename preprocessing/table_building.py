"""From the ratings of a table to a data set: what the commands for MovieLens' files and for anyone's share."""

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa

from preprocessing import building, command, indexing
from preprocessing.dataset import DataError, position_of
from preprocessing.ids import Ids, number_ids
from preprocessing.lines import DAY_ZERO, STARS_BITS
from preprocessing.rating_table import RawRatings, TableFile
from preprocessing.scales import Scale
from preprocessing.splitting import SplitPlan
from preprocessing.titles import Titles

_UNIX_EPOCH = int((np.datetime64("1970-01-01") - DAY_ZERO).astype(int))


def build_dataset(args: argparse.Namespace, folder: Path, files: list[TableFile], by_file: list[RawRatings],
                  titles: Titles, scale: Scale, meta: dict, statistics: building.Statistics,
                  lists_test: bool = False, title_by_id: bool = False) -> tuple[dict, np.ndarray]:
    """Number, sort and split ratings, and write them; see `building.write_dataset`.

    Args:
        args: the flags of the split.
        by_file: the ratings of each of the files.
        titles: their ids are of the kind of the ratings'.
        meta: name and sources.
        lists_test: the ratings of the last file are the test split.
        title_by_id: a movie without a title gets its id as one.

    Returns:
        The data set's meta.json, and the ids of the rated movies.

    Raises:
        DataError: there are no ratings, a (user, movie) pair is rated twice, or there are no times to split by.
    """
    stars, seconds = (np.concatenate([getattr(raw, name) for raw in by_file]) for name in ("stars", "seconds"))
    if not len(stars):
        raise DataError(f"{files[0].path} holds no rating")
    method = args.split
    if method == "auto":
        method = "latest" if seconds.any() else "random"
    if method == "latest" and not seconds.any():
        raise DataError(f"{files[0].path} has no timestamps to split by; use --split random")
    with statistics.timed("index"):
        user_id, user_idx = number_ids(_joined([raw.user_id for raw in by_file]))
        rated_ids, movie_idx = number_ids(_joined([raw.movie_id for raw in by_file]))
        movie_id = np.union1d(titles.movie_id, rated_ids)
        movie_idx = np.searchsorted(movie_id, rated_ids)[movie_idx]
        index, keys = _pack(user_id, movie_id, user_idx, movie_idx, seconds // 86_400, scale.stored(stars))
    plan = SplitPlan(method, args.test_fraction, args.latest_n, args.val_fraction, args.seed,
                     val_method="latest" if method == "latest" else "random")
    if lists_test:
        plan.test_pairs = np.sort((user_idx * len(movie_id) + movie_idx)[len(by_file[0].stars):])
    year, title = command.align_titles(titles, movie_id)
    if title_by_id:
        title = [text or str(own) for text, own in zip(title, movie_id.tolist(), strict=True)]
    catalogue = building.Catalogue(year, title, scale.step, (scale.low, scale.high))
    try:
        return building.write_dataset(folder, index, [indexing.Partition(0, len(user_id), keys)], catalogue, plan,
                                      {**meta, "num_rated_movies": len(rated_ids)}, statistics), rated_ids
    except indexing.PairError as error:
        pair = position_of(user_id, error.user_id), position_of(movie_id, error.movie_id)
        rows = np.flatnonzero((user_idx == pair[0]) & (movie_idx == pair[1]))
        raise _located(error, files, by_file, int(rows[error.occurrence - 1])) from None


def _joined(columns: list[Ids]) -> Ids:
    """Return the ids of several files as one column."""
    return columns[0] if len(columns) == 1 or isinstance(columns[0], pa.ChunkedArray) else np.concatenate(columns)


def _pack(user_id: np.ndarray, movie_id: np.ndarray, user_idx: np.ndarray, movie_idx: np.ndarray, day: np.ndarray,
          stars: np.ndarray) -> tuple[indexing.Index, np.ndarray]:
    """Pack ratings, int64 columns (R,) each, into keys, int64 (R,).

    Stars are packed as they are where the bits of Netflix's hold them, or a byte; else as the steps above the lowest.
    """
    low, high = int(stars.min()), int(stars.max())
    lowest = 0 if low >= 0 and high < 256 else low
    layout = indexing.KeyLayout(len(user_id), len(movie_id), int(day.max() - day.min()) + 1, lowest,
                                max((high - lowest).bit_length(), STARS_BITS))
    index = indexing.Index(user_id, movie_id, np.concatenate([[0], np.cumsum(np.bincount(user_idx))]),
                           int(day.min()) + _UNIX_EPOCH, layout)
    return index, layout.pack(user_idx, day - day.min(), movie_idx, stars)


def _located(error: indexing.PairError, files: list[TableFile], by_file: list[RawRatings], row: int) -> DataError:
    """Say in which file and line a wrong pair stands; `row` counts over all files."""
    for file, raw in zip(files, by_file, strict=True):
        if row < len(raw.stars):
            return DataError(f"{file.where(row)} is wrong: {error}")
        row -= len(raw.stars)
    return error
