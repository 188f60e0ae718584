"""Number users and movies, and pack a whole rating into one integer.

user_idx is the rank of user_id, movie_idx the rank of movie_id. A rating is one int64 key,
user_idx | day | movie_idx | stars from the highest bits down, so that sorting the keys in place orders the ratings by
user, day and movie, and no second copy of the data is made.
"""

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from preprocessing.dataset import DataError, Id
from preprocessing.lines import DAY_BITS, DAY_ZERO, STARS_BITS, days_of, stars_of, user_ids_of
from preprocessing.parsing import MovieRuns

_TABLE_LIMIT = 1 << 26  # user ids up to here are ranked through a table, larger ones by binary search
_CACHED_ROWS = 1 << 18  # a block whose columns stay in the processor's cache
_TABLED_ROWS = 1 << 22  # a block large enough to be worth a pass over a table of all user ids


class PairError(DataError):
    """A (user, movie) pair is rated twice, or listed twice among the test pairs, or listed there and never rated."""

    def __init__(self, sentence: str, user_id: Id, movie_id: Id, in_ratings: bool, occurrence: int) -> None:
        super().__init__(sentence.format(user=user_id, movie=movie_id))
        self.user_id, self.movie_id = user_id, movie_id
        self.in_ratings, self.occurrence = in_ratings, occurrence  # say which line to look for

    @classmethod
    def rated_twice(cls, user_id: Id, movie_id: Id) -> "PairError":
        return cls("user {user} rated movie {movie} twice", user_id, movie_id, True, 2)

    @classmethod
    def never_rated(cls, user_id: Id, movie_id: Id) -> "PairError":
        return cls("user {user} never rated movie {movie}", user_id, movie_id, False, 1)

    @classmethod
    def listed_twice(cls, user_id: int, movie_id: int) -> "PairError":
        return cls("user {user} is listed twice for movie {movie}", user_id, movie_id, False, 2)


@dataclass(frozen=True)
class KeyLayout:
    """At which bits of a key the user, day, movie and stars of a rating stand."""

    num_users: int
    num_movies: int
    num_days: int
    lowest_stars: int = field(default=0, repr=False)  # in steps, as stored
    stars_bits: int = field(default=STARS_BITS, repr=False)

    @property
    def shifts(self) -> tuple[int, int, int]:
        """How many bits of a key are below the user, the day and the movie."""
        movie = self.stars_bits
        day = movie + max(self.num_movies - 1, 1).bit_length()
        user = day + max(self.num_days - 1, 1).bit_length()
        if user + max(self.num_users - 1, 1).bit_length() > 63:
            raise DataError(f"{self.num_users:,} users, {self.num_movies:,} movies and {self.num_days:,} days "
                            "are too many to be indexed in 63 bits")
        return user, day, movie

    def pack(self, user_idx: np.ndarray, day: np.ndarray, movie_idx: np.ndarray, stars: np.ndarray) -> np.ndarray:
        """Return the keys, int64 (R,), of int64 columns (R,)."""
        user_shift, day_shift, movie_shift = self.shifts
        if self.lowest_stars:
            stars = stars - self.lowest_stars
        return user_idx << user_shift | day << day_shift | movie_idx << movie_shift | stars

    def unpack(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return user_idx, day, movie_idx and stars, int64 (R,) each."""
        user_shift, day_shift, movie_shift = self.shifts
        stars = keys & ((1 << movie_shift) - 1)
        if self.lowest_stars:
            stars += self.lowest_stars
        return (keys >> user_shift, keys >> day_shift & ((1 << (user_shift - day_shift)) - 1),
                keys >> movie_shift & ((1 << (day_shift - movie_shift)) - 1), stars)


@dataclass
class Index:
    """The numbering of users (U) and movies (M), and where each user's ratings stand once they are sorted."""

    user_id: np.ndarray  # int64 or str (U,), ascending
    movie_id: np.ndarray  # int64 or str (M,), ascending
    offset: np.ndarray  # int64 (U + 1,)
    first_day: int  # counted from DAY_ZERO
    layout: KeyLayout

    @property
    def day_epoch(self) -> str:
        """The date of day 0 of the keys."""
        return str(DAY_ZERO + np.timedelta64(self.first_day, "D"))


@dataclass
class Partition:
    """The keys of a range of users, in memory or in a file of their bytes."""

    first_user: int
    last_user: int  # exclusive
    keys: np.ndarray | Path | None  # None once they were loaded

    def load(self) -> np.ndarray:
        """Return the keys, int64, and forget them; a file is removed."""
        keys, self.keys = self.keys, None
        assert keys is not None, "the keys were loaded before"
        if isinstance(keys, np.ndarray):
            return keys
        loaded = np.fromfile(keys, np.int64)
        keys.unlink()
        return loaded


def index_runs(runs: MovieRuns, title_ids: np.ndarray) -> Index:
    """Number the users and movies of parsed ratings.

    Args:
        runs: parsed ratings, at least one.
        title_ids: int64, the movie ids of the title file; they are numbered whether rated or not.
    """
    highest_id, first_day, last_day = 0, 1 << 62, 0
    for cells, _ in runs.blocks(_CACHED_ROWS):
        highest_id = max(highest_id, int(cells.max() >> (DAY_BITS + STARS_BITS)))
        days = days_of(cells)
        first_day, last_day = min(first_day, int(days.min())), max(last_day, int(days.max()))
    if highest_id < _TABLE_LIMIT:
        table = np.zeros(highest_id + 1, np.int64)
        for cells, _ in runs.blocks(_TABLED_ROWS):
            table += np.bincount(user_ids_of(cells), minlength=highest_id + 1)
        user_id = np.flatnonzero(table)
        count = table[user_id]
    else:
        user_id = count = np.zeros(0, np.int64)
        for cells, _ in runs.blocks(_TABLED_ROWS):
            ids = np.sort(user_ids_of(cells))
            starts = np.flatnonzero(np.diff(ids, prepend=-1))
            new_id, new_count = ids[starts], np.diff(starts, append=len(ids))
            merged = np.union1d(user_id, new_id)
            total = np.zeros(len(merged), np.int64)
            total[np.searchsorted(merged, user_id)] += count
            total[np.searchsorted(merged, new_id)] += new_count
            user_id, count = merged, total
    movie_id = np.union1d(title_ids, runs.movie_ids[runs.lengths > 0])
    layout = KeyLayout(len(user_id), len(movie_id), last_day - first_day + 1)
    return Index(user_id, movie_id, np.concatenate([[0], np.cumsum(count)]), first_day, layout)


def pack_keys(runs: MovieRuns, index: Index) -> np.ndarray:
    """Turn the cells, which are in memory, into keys in place; return the keys of all ratings, int64 (R,)."""
    assert isinstance(runs.cells, np.ndarray), "cells in a file become keys by pack_partitions"
    for cells, keys in _packed_blocks(runs, index):
        cells[:] = keys
    return runs.cells


def pack_partitions(runs: MovieRuns, index: Index, bounds: list[int], folder: Path) -> list[Partition]:
    """Turn the cells into keys on disk, a file for each range of users.

    Args:
        bounds: user_idx at which the ranges begin, and U.
        folder: gets the files.
    """
    paths = [folder / f"keys_{first}.bin" for first in bounds[:-1]]
    lowest_keys = np.array(bounds[1:-1], np.int64) << index.layout.shifts[0]  # of all files but the first
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(open(path, "wb")) for path in paths]
        for _, keys in _packed_blocks(runs, index):
            keys.sort()
            for file, keys_of_file in zip(files, np.split(keys, np.searchsorted(keys, lowest_keys)), strict=True):
                keys_of_file.tofile(file)
    return [Partition(*users, path) for users, path in zip(itertools.pairwise(bounds), paths, strict=True)]


def pair_keys(probe: MovieRuns, runs: MovieRuns, index: Index) -> tuple[np.ndarray, np.ndarray]:
    """Return the listed test pairs that are among the ratings, and the listed movies that have no rating at all.

    Returns:
        user_idx * M + movie_idx of the pairs, int64, sorted; movie_id, int64, sorted.

    Raises:
        PairError: a pair is listed twice.
    """
    user_ids, movie_ids = user_ids_of(probe.cells_of(0, len(probe))), np.repeat(probe.movie_ids, probe.lengths)
    by_movie = np.lexsort((user_ids, movie_ids))
    user_ids, movie_ids = user_ids[by_movie], movie_ids[by_movie]
    twice = np.flatnonzero((np.diff(user_ids) == 0) & (np.diff(movie_ids) == 0))
    if len(twice):
        raise PairError.listed_twice(int(user_ids[twice[0]]), int(movie_ids[twice[0]]))
    has_table = index.user_id[-1] < _TABLE_LIMIT  # of what a user_id says, else of what its rank says
    is_listed = np.zeros(index.user_id[-1] + 1 if has_table else len(index.user_id), bool)  # for the movie at hand
    is_known = np.isin(user_ids, index.user_id)
    positions = user_ids[is_known] if has_table else np.searchsorted(index.user_id, user_ids[is_known])
    listed_ids, starts = np.unique(movie_ids[is_known], return_index=True)
    listed = dict(zip(listed_ids.tolist(), np.split(positions, starts[1:]), strict=True)) if len(positions) else {}
    keys = [np.zeros(0, np.int64)]
    ends = np.cumsum(runs.lengths)
    for movie_id, start, stop in zip(runs.movie_ids.tolist(), ends - runs.lengths, ends, strict=True):
        if movie_id in listed:
            users = user_ids_of(runs.cells_of(start, stop))
            users = users if has_table else np.searchsorted(index.user_id, users)
            is_listed[listed[movie_id]] = True
            users = users[is_listed[users]]
            is_listed[listed[movie_id]] = False
            user_idx = np.searchsorted(index.user_id, users) if has_table else users
            keys.append(user_idx * len(index.movie_id) + np.searchsorted(index.movie_id, movie_id))
    unrated_ids = np.setdiff1d(movie_ids, runs.movie_ids[runs.lengths > 0])
    return np.unique(np.concatenate(keys)), unrated_ids


def _packed_blocks(runs: MovieRuns, index: Index) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield blocks of cells and the keys they become."""
    rank = None
    if index.user_id[-1] < _TABLE_LIMIT:
        rank = np.zeros(index.user_id[-1] + 1, np.int32)
        rank[index.user_id] = np.arange(len(index.user_id))
    movie_runs = MovieRuns(runs.cells, np.searchsorted(index.movie_id, runs.movie_ids), runs.lengths)
    for cells, movie_idx in movie_runs.blocks(_CACHED_ROWS):
        ids = user_ids_of(cells)
        user_idx = np.searchsorted(index.user_id, ids) if rank is None else rank[ids].astype(np.int64)
        yield cells, index.layout.pack(user_idx, days_of(cells) - index.first_day, movie_idx, stars_of(cells))
