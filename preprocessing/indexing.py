"""Number users and movies, and pack a whole rating into one integer.

user_idx is the rank of user_id, movie_idx the rank of movie_id. A rating is one int64 key,
user_idx | day | movie_idx | stars from the highest bits down, so that sorting the keys in place orders the ratings by
user, day and movie, and no second copy of the data is made.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from preprocessing.dataset import DataError
from preprocessing.lines import DAY_ZERO, STARS_BITS, days_of, stars_of, user_ids_of
from preprocessing.parsing import MovieRuns

_TABLE_LIMIT = 1 << 26  # user ids up to here are ranked through a table, larger ones by binary search


class PairError(DataError):
    """A (user, movie) pair stands in the ratings or the test pairs a second time, or is to be held out unrated."""

    def __init__(self, sentence: str, user_id: int, movie_id: int, in_ratings: bool, occurrence: int) -> None:
        super().__init__(sentence.format(user=user_id, movie=movie_id))
        self.user_id, self.movie_id = int(user_id), int(movie_id)
        self.in_ratings, self.occurrence = in_ratings, occurrence  # where the offending line is to be looked for

    @classmethod
    def rated_twice(cls, user_id: int, movie_id: int) -> "PairError":
        return cls("user {user} rated movie {movie} twice", user_id, movie_id, True, 2)

    @classmethod
    def never_rated(cls, user_id: int, movie_id: int) -> "PairError":
        return cls("user {user} never rated movie {movie}", user_id, movie_id, False, 1)

    @classmethod
    def listed_twice(cls, user_id: int, movie_id: int) -> "PairError":
        return cls("user {user} is listed twice for movie {movie}", user_id, movie_id, False, 2)


@dataclass(frozen=True)
class KeyLayout:
    """Where the parts of a rating stand in its key."""

    num_users: int
    num_movies: int
    num_days: int

    @property
    def shifts(self) -> tuple[int, int, int]:
        """Bits below the user, the day and the movie."""
        movie = STARS_BITS
        day = movie + max(self.num_movies - 1, 1).bit_length()
        user = day + max(self.num_days - 1, 1).bit_length()
        if user + max(self.num_users - 1, 1).bit_length() > 63:
            raise DataError(f"{self.num_users:,} users, {self.num_movies:,} movies and {self.num_days:,} days "
                            "are too many to be indexed in 63 bits")
        return user, day, movie

    def pack(self, user_idx: np.ndarray, day: np.ndarray, movie_idx: np.ndarray, stars: np.ndarray) -> np.ndarray:
        """Return the keys, int64 (R,), of int64 columns (R,)."""
        user_shift, day_shift, movie_shift = self.shifts
        return user_idx << user_shift | day << day_shift | movie_idx << movie_shift | stars

    def unpack(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return user_idx, day, movie_idx and stars, int64 (R,) each."""
        user_shift, day_shift, movie_shift = self.shifts
        return (keys >> user_shift, keys >> day_shift & ((1 << (user_shift - day_shift)) - 1),
                keys >> movie_shift & ((1 << (day_shift - movie_shift)) - 1), keys & ((1 << movie_shift) - 1))


def index_runs(runs: MovieRuns, title_ids: np.ndarray) -> tuple[np.ndarray, KeyLayout, np.ndarray, np.ndarray, str]:
    """Replace parsed cells by keys, in place.

    Args:
        runs: parsed ratings; its cells are overwritten.
        title_ids: int64, the movie ids of the title file; they are indexed whether rated or not.

    Returns:
        keys int64 (R,), their layout, user_id int64 (U,), movie_id int64 (M,), and the date of day 0.
    """
    cells = runs.cells
    movie_id = np.union1d(title_ids, runs.movie_ids[runs.lengths > 0])
    user_id, first_day, last_day = _users_and_days(cells)
    layout = KeyLayout(len(user_id), len(movie_id), int(last_day - first_day) + 1)
    rank = None
    if user_id[-1] < _TABLE_LIMIT:
        rank = np.zeros(user_id[-1] + 1, np.int32)
        rank[user_id] = np.arange(len(user_id))
    for rows, movie_ids in runs.blocks():
        ids = user_ids_of(cells[rows])
        user_idx = np.searchsorted(user_id, ids) if rank is None else rank[ids].astype(np.int64)
        cells[rows] = layout.pack(user_idx, days_of(cells[rows]) - first_day, np.searchsorted(movie_id, movie_ids),
                                  stars_of(cells[rows]))
    return cells, layout, user_id, movie_id, str(DAY_ZERO + first_day)


def pair_keys(runs: MovieRuns, user_id: np.ndarray, movie_id: np.ndarray) -> np.ndarray:
    """Return user_idx * M + movie_idx of given test pairs, int64, sorted.

    Raises:
        PairError: a pair names an unknown user or movie, or is given twice.
    """
    keys = [np.zeros(0, np.int64)]
    for rows, movie_ids in runs.blocks():
        user_ids = user_ids_of(runs.cells[rows])
        user_idx, movie_idx = np.searchsorted(user_id, user_ids), np.searchsorted(movie_id, movie_ids)
        known = (user_id[np.minimum(user_idx, len(user_id) - 1)] == user_ids)
        known &= movie_id[np.minimum(movie_idx, len(movie_id) - 1)] == movie_ids
        if not known.all():
            row = np.argmin(known)
            raise PairError.never_rated(user_ids[row], movie_ids[row])
        keys.append(user_idx * len(movie_id) + movie_idx)
    keys = np.sort(np.concatenate(keys))
    twice = np.flatnonzero(keys[1:] == keys[:-1])
    if len(twice):
        user_idx, movie_idx = divmod(keys[twice[0]], len(movie_id))
        raise PairError.listed_twice(user_id[user_idx], movie_id[movie_idx])
    return keys


def blocks_of(array: np.ndarray, num_rows: int = 1 << 18) -> Iterator[np.ndarray]:
    """Cut an array into blocks that stay in the processor's cache."""
    return (array[start:start + num_rows] for start in range(0, len(array), num_rows))


def _users_and_days(cells: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Return the distinct user ids, ascending, and the first and last day, of parsed cells."""
    highest, first_day, last_day = 0, 1 << 62, 0
    for block in blocks_of(cells):
        highest = max(highest, int(user_ids_of(block).max()))
        days = days_of(block)
        first_day, last_day = min(first_day, int(days.min())), max(last_day, int(days.max()))
    if highest < _TABLE_LIMIT:
        seen = np.zeros(highest + 1, bool)
        for block in blocks_of(cells):
            seen[user_ids_of(block)] = True
        return np.flatnonzero(seen), first_day, last_day
    user_id = np.zeros(0, np.int64)
    for block in blocks_of(cells):
        user_id = np.union1d(user_id, user_ids_of(block))
    return user_id, first_day, last_day
