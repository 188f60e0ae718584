"""From parsed ratings to a finished data set: index, sort, check, split, write, verify.

A whole rating is one int64 key, user_idx | day | movie_idx | stars from the highest bits down, so that sorting the
keys in place orders the ratings by user, day and movie and no second copy of the data is made. What follows works on
blocks of whole users, which become the row groups of ratings.parquet.
"""

import contextlib
import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from preprocessing import dataset
from preprocessing.dataset import SPLITS, TEST, TRAIN, DataError, Movies, Ratings, Users
from preprocessing.parsing import DAY_ZERO, STARS_BITS, MovieRuns, days_of, stars_of, user_ids_of
from preprocessing.splitting import SplitPlan, split_users

GROUP_ROWS = 1 << 18  # ratings in a row group, as near as whole users allow
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


@dataclass
class Source:
    """Everything that a reader of raw files hands over; `keys` is sorted in place."""

    keys: np.ndarray  # int64 (R,)
    layout: KeyLayout
    user_id: np.ndarray  # int64 (U,), ascending
    movie_id: np.ndarray  # int64 (M,), ascending
    year: np.ndarray  # int16 (M,), 0 where unknown
    title: list[str]  # (M,)
    day_epoch: str  # the date of day 0
    stars_step: float = 1  # what a unit of the stars column is worth
    stars_range: tuple[float, float] = (1, 5)


@dataclass
class Statistics:
    """What is counted while the blocks pass by."""

    seconds: dict[str, float] = field(default_factory=dict)
    parts: np.ndarray = field(default_factory=lambda: np.zeros(len(SPLITS), np.int64))
    histogram: np.ndarray = field(default_factory=lambda: np.zeros(1 << STARS_BITS, np.int64))
    num_train_ratings: np.ndarray | None = None  # int32 (M,)


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


def write_dataset(out_dir: Path, source: Source, plan: SplitPlan, meta: dict) -> tuple[dict, Statistics]:
    """Sort, check, split and write the ratings, verify what was written, and put it in the place of `out_dir`.

    Args:
        meta: entries for meta.json that the reader of the raw files knows (name, sources).

    Returns:
        The data set's meta.json, and what was counted and timed on the way.

    Raises:
        PairError: a (user, movie) pair is rated twice, or a test pair was never rated.
        DataError: `out_dir` may not be replaced, or what was written reads back otherwise.
        OSError: the disk is full, or a folder cannot be written.
    """
    statistics = Statistics(num_train_ratings=np.zeros(len(source.movie_id), np.int32))
    with dataset.replace_dataset(out_dir) as folder:
        with _timed(statistics, "sort"):
            source.keys.sort()
            offset = _user_offsets(source)
            _plan_validation(plan, source, offset)
        fingerprint = hashlib.sha256(repr((dataset.FORMAT_VERSION, source.layout, source.day_epoch)).encode())
        with _timed(statistics, "split and write"):
            test_parts = _write_ratings(folder, source, plan, offset, statistics, fingerprint)
            dataset.write_users(folder, Users(source.user_id, offset))
            dataset.write_movies(folder, Movies(source.movie_id.astype(np.int32), source.year, source.title,
                                                statistics.num_train_ratings))
            for column in (source.user_id, source.movie_id, source.year):
                fingerprint.update(np.ascontiguousarray(column))
            fingerprint.update("\n".join(source.title).encode("utf-8", "surrogatepass"))
        with _timed(statistics, "verify"):
            _verify(folder, source, test_parts)
        meta = _complete_meta(meta, source, plan, statistics, fingerprint.hexdigest())
        dataset.write_meta(folder, meta)
    return meta, statistics


# --- stages ----------------------------------------------------------------------------------------------------


def _users_and_days(cells: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Return the distinct user ids, ascending, and the first and last day, of parsed cells."""
    highest, first_day, last_day = 0, 1 << 62, 0
    for block in _blocks(cells):
        highest = max(highest, int(user_ids_of(block).max()))
        days = days_of(block)
        first_day, last_day = min(first_day, int(days.min())), max(last_day, int(days.max()))
    if highest < _TABLE_LIMIT:
        seen = np.zeros(highest + 1, bool)
        for block in _blocks(cells):
            seen[user_ids_of(block)] = True
        return np.flatnonzero(seen), first_day, last_day
    user_id = np.zeros(0, np.int64)
    for block in _blocks(cells):
        user_id = np.union1d(user_id, user_ids_of(block))
    return user_id, first_day, last_day


def _blocks(array: np.ndarray, num_rows: int = 1 << 18) -> Iterator[np.ndarray]:
    return (array[start:start + num_rows] for start in range(0, len(array), num_rows))


def _user_offsets(source: Source) -> np.ndarray:
    """Return where each user's ratings begin among the sorted keys, int64 (U + 1,)."""
    counts = np.zeros(source.layout.num_users, np.int64)
    user_shift = source.layout.shifts[0]
    for block in _blocks(source.keys):
        users = block >> user_shift
        counts[users[0]:users[-1] + 1] += np.bincount(users - users[0])
    return np.concatenate([[0], np.cumsum(counts)])


def _plan_validation(plan: SplitPlan, source: Source, offset: np.ndarray) -> None:
    if plan.method == "random" or plan.val_method == "random":
        return
    num_test = None
    if plan.method != "latest":
        num_test = np.bincount(plan.test_pairs // source.layout.num_movies, minlength=source.layout.num_users)
    plan.limit_validation(np.diff(offset), num_test)


def _write_ratings(folder: Path, source: Source, plan: SplitPlan, offset: np.ndarray, statistics: Statistics,
                   fingerprint: "hashlib._Hash") -> list[np.ndarray]:
    """Write ratings.parquet block by block; return the test pairs of each block for verification."""
    num_movies = source.layout.num_movies
    schema = dataset.ratings_schema(num_movies, source.layout.num_days, source.day_epoch)
    test_parts = []
    with (dataset.ratings_writer(folder, schema) as writer,
          tqdm(total=len(source.keys), desc="write", unit=" ratings", unit_scale=True, leave=False) as bar):
        for first_user, last_user in _user_groups(offset):
            keys = source.keys[offset[first_user]:offset[last_user]]
            user_idx, day, movie_idx, stars = source.layout.unpack(keys)
            low, high = np.searchsorted(plan.test_pairs, [first_user * num_movies, last_user * num_movies])
            test_rows = _check_pairs(source, (user_idx - first_user) * num_movies + movie_idx, first_user,
                                     plan.test_pairs[low:high] - first_user * num_movies)
            part = split_users(plan, user_idx, movie_idx, test_rows)
            dataset.write_ratings(writer, Ratings(
                user_idx.astype(np.int32), movie_idx.astype(schema.field("movie_idx").type.to_pandas_dtype()),
                stars.astype(np.uint8), day.astype(schema.field("day").type.to_pandas_dtype()), part))
            statistics.parts += np.bincount(part, minlength=len(SPLITS))
            statistics.histogram += np.bincount(stars, minlength=1 << STARS_BITS)
            trained = np.bincount(movie_idx[part == TRAIN], minlength=num_movies)
            statistics.num_train_ratings += trained.astype(np.int32)
            fingerprint.update(keys)
            fingerprint.update(part)
            test_parts.append(np.flatnonzero(part == TEST))
            bar.update(len(keys))
    return test_parts


def _user_groups(offset: np.ndarray) -> list[tuple[int, int]]:
    """Cut the users into ranges of about GROUP_ROWS ratings."""
    marks = np.arange(0, offset[-1], GROUP_ROWS)
    bounds = np.unique(np.append(np.searchsorted(offset, marks), len(offset) - 1))
    return list(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True))


def _check_pairs(source: Source, pairs: np.ndarray, first_user: int, test_pairs: np.ndarray) -> np.ndarray:
    """Check that no pair of a block occurs twice and find the rows of the given test pairs among them.

    The row goes along in a pair's low bits, so that one sort serves both.
    """
    row_bits = max(len(pairs) - 1, 1).bit_length()
    ordered = np.sort(pairs << row_bits | np.arange(len(pairs)))
    sorted_pairs = ordered >> row_bits

    def ids(pair: np.int64) -> tuple[int, int]:
        user, movie_idx = divmod(int(pair), source.layout.num_movies)
        return source.user_id[first_user + user], source.movie_id[movie_idx]

    twice = np.flatnonzero(sorted_pairs[1:] == sorted_pairs[:-1])
    if len(twice):
        raise PairError.rated_twice(*ids(sorted_pairs[twice[0]]))
    place = np.searchsorted(sorted_pairs, test_pairs)
    missing = sorted_pairs[np.minimum(place, len(pairs) - 1)] != test_pairs
    if missing.any():
        raise PairError.never_rated(*ids(test_pairs[np.argmax(missing)]))
    return ordered[place] & ((1 << row_bits) - 1)


def _verify(folder: Path, source: Source, test_parts: list[np.ndarray]) -> None:
    """Read the ratings back: they must be the sorted keys, and no (user, movie) pair may be in train and in test."""
    file = dataset.RatingsFile(folder)
    with tqdm(total=len(source.keys), desc="verify", unit=" ratings", unit_scale=True, leave=False) as bar:
        for (rows, ratings), test_rows in zip(file.read_groups(), test_parts, strict=True):
            columns = (getattr(ratings, name).astype(np.int64) for name in ("user_idx", "day", "movie_idx", "stars"))
            if not (np.array_equal(source.layout.pack(*columns), source.keys[rows])
                    and np.array_equal(np.flatnonzero(ratings.split == TEST), test_rows)):
                raise DataError(f"{file.path} reads back otherwise than it was written; the disk may be failing")
            pairs = ratings.user_idx.astype(np.int64) * source.layout.num_movies + ratings.movie_idx
            train, test = np.sort(pairs[ratings.split == TRAIN]), pairs[ratings.split == TEST]
            if len(train) and (train[np.minimum(np.searchsorted(train, test), len(train) - 1)] == test).any():
                raise DataError("train and test share a (user, movie) pair; please report this as a bug")
            bar.update(len(pairs))
    if len(file) != len(source.keys):
        raise DataError(f"{file.path} has {len(file):,} ratings of {len(source.keys):,}; the disk may be failing")


def _complete_meta(meta: dict, source: Source, plan: SplitPlan, statistics: Statistics, fingerprint: str) -> dict:
    """Return what meta.json holds."""
    step = source.stars_step
    stars = np.flatnonzero(statistics.histogram)
    return {
        "format_version": dataset.FORMAT_VERSION,
        "num_ratings": len(source.keys),
        "num_users": len(source.user_id),
        "num_movies": len(source.movie_id),
        "num_rated_movies": int(meta.pop("num_rated_movies")),
        "day_epoch": source.day_epoch,
        "num_days": source.layout.num_days,
        "stars_range": list(source.stars_range),
        "stars_step": step,
        "histogram": {f"{value * step:g}": int(statistics.histogram[value]) for value in stars},
        "split": {"method": plan.method, "test_fraction": plan.test_fraction, "latest_n": plan.latest_n,
                  "val_fraction": plan.val_fraction, "seed": plan.seed,
                  **{f"num_{name}": int(n) for name, n in zip(SPLITS, statistics.parts, strict=True)}},
        "seed": plan.seed,
        **meta,
        "fingerprint": fingerprint,
    }


@contextlib.contextmanager
def _timed(statistics: Statistics, stage: str) -> Iterator[None]:
    """Note the seconds of a with-block under a stage's name."""
    start = time.perf_counter()
    yield
    statistics.seconds[stage] = time.perf_counter() - start
