"""From indexed ratings to a finished data set: sort, check, split, write, verify.

The keys (see preprocessing/indexing.py) are sorted in place. What follows works on blocks of whole users, which become
the row groups of ratings.parquet.
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
from preprocessing.indexing import KeyLayout, PairError, blocks_of
from preprocessing.lines import STARS_BITS
from preprocessing.splitting import SplitPlan, split_users

GROUP_ROWS = 1 << 18  # ratings in a row group, as near as whole users allow


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


def _user_offsets(source: Source) -> np.ndarray:
    """Return where each user's ratings begin among the sorted keys, int64 (U + 1,)."""
    counts = np.zeros(source.layout.num_users, np.int64)
    user_shift = source.layout.shifts[0]
    for block in blocks_of(source.keys):
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
