"""From indexed ratings to a finished data set: sort, check, split, write, verify.

The keys (see preprocessing/indexing.py) are sorted in place. What follows works on blocks of whole users, which become
the row groups of ratings.parquet.
"""

import contextlib
import hashlib
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from preprocessing import dataset
from preprocessing.dataset import SPLITS, TEST, TRAIN, DataError, Id, Movies, Ratings, Users, are_text, writer
from preprocessing.dataset.machine import num_cores
from preprocessing.dataset.schema import FORMAT_VERSION, ratings_schema
from preprocessing.indexing import Index, KeyLayout, PairError, Partition
from preprocessing.lines import STARS_BITS
from preprocessing.splitting import SplitPlan, split_users

GROUP_ROWS = 1 << 17  # ratings in a row group, as near as whole users allow
FINGERPRINT_VERSION = 1  # of what the fingerprint covers


@dataclass
class Catalogue:
    """What the raw files say beside the ratings."""

    year: np.ndarray  # int16 (M,), 0 where unknown
    title: list[str]  # (M,)
    stars_step: float = 1  # stars of one unit in ratings.parquet
    stars_range: tuple[float, float] = (1, 5)


@dataclass
class Statistics:
    """What is timed and counted while the ratings are read, split and written."""

    seconds: dict[str, float] = field(default_factory=dict)
    split_counts: np.ndarray = field(default_factory=lambda: np.zeros(len(SPLITS), np.int64))
    histogram: np.ndarray = field(default_factory=lambda: np.zeros(1 << STARS_BITS, np.int64))
    lowest_stars: int = 0  # in steps, of the histogram's first entry
    num_train_ratings: np.ndarray = field(init=False)  # int32 (M,), once the movies are known

    def count(self, ratings: Ratings) -> None:
        """Count the ratings of a row group; only training ratings are counted per movie."""
        self.split_counts += np.bincount(ratings.known_split(), minlength=len(SPLITS))
        stars = ratings.stars - self.lowest_stars if self.lowest_stars else ratings.stars
        self.histogram += np.bincount(stars, minlength=len(self.histogram))
        trained = ratings.movie_idx[ratings.split == TRAIN]
        self.num_train_ratings += np.bincount(trained, minlength=len(self.num_train_ratings)).astype(np.int32)

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the seconds of a with-block to a stage."""
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0) + time.perf_counter() - start


def row_groups(offset: np.ndarray) -> list[int]:
    """Cut the users into ranges of about GROUP_ROWS ratings; return the first user of each, and U."""
    marks = np.arange(0, offset[-1], GROUP_ROWS)
    return np.unique(np.append(np.searchsorted(offset, marks), len(offset) - 1)).tolist()


def sort_in_threads(keys: np.ndarray) -> None:
    """Sort in place, a thread per core: partition around quantiles, then sort the pieces side by side."""
    bounds = np.arange(1, num_cores()) * len(keys) // num_cores()
    if len(keys) < 1 << 20 or not len(bounds):
        keys.sort()
        return
    keys.partition(bounds)
    with ThreadPoolExecutor(num_cores()) as threads:
        list(threads.map(np.ndarray.sort, np.split(keys, bounds)))


def write_dataset(folder: Path, index: Index, partitions: list[Partition], catalogue: Catalogue, plan: SplitPlan,
                  meta: dict, statistics: Statistics) -> dict:
    """Sort, check, split and write the ratings, and verify what was written.

    Args:
        folder: empty, for the files; see `replace_dataset`.
        partitions: all keys, in ranges of users that begin and end with row groups; each is emptied when it is loaded.
        meta: entries for meta.json that the reader of the raw files knows (name, sources, ...).
        statistics: gets the counts and times of this function too.

    Returns:
        The data set's meta.json.

    Raises:
        PairError: a (user, movie) pair is rated twice, or a test pair was never rated.
        DataError: what was written reads back otherwise.
        OSError: the disk is full, or a folder cannot be written.
    """
    _plan_validation(plan, index)
    statistics.num_train_ratings = np.zeros(len(index.movie_id), np.int32)
    layout = index.layout
    statistics.histogram = np.zeros(1 << layout.stars_bits, np.int64)
    statistics.lowest_stars = layout.lowest_stars
    fit_a_byte = layout.lowest_stars >= 0 and layout.lowest_stars + len(statistics.histogram) <= 256
    schema = ratings_schema(layout.num_movies, layout.num_days, index.day_epoch, fit_a_byte)
    groups, digests = row_groups(index.offset), []
    content_hashers = hashlib.sha256(), hashlib.sha256()  # of keys and of splits, however cut into row groups
    with (writer.ratings_writer(folder, schema) as parquet, ThreadPoolExecutor(1) as background,
          tqdm(total=int(index.offset[-1]), desc="write", unit=" ratings", unit_scale=True, leave=False,
               disable=None) as bar):

        def write(ratings: Ratings) -> bytes:
            writer.write_ratings(parquet, ratings)
            bar.update(len(ratings.stars))
            content = _content(index.layout, ratings)
            for hasher, column in zip(content_hashers, content, strict=True):
                hasher.update(column.data)
            return _digest(content)

        for partition in partitions:
            with statistics.timed("sort"):
                keys = partition.load()
                sort_in_threads(keys)
            with statistics.timed("split and write"):
                bounds = [user for user in groups if partition.first_user <= user <= partition.last_user]
                waiting: deque[Future] = deque()  # encoding one row group overlaps with splitting the next
                for first_user, last_user in pairwise(bounds):
                    rows = index.offset[[first_user, last_user]] - index.offset[partition.first_user]
                    ratings = _split_group(keys[slice(*rows)], first_user, last_user, index, plan, schema)
                    statistics.count(ratings)
                    waiting.append(background.submit(write, ratings))
                    if len(waiting) > 2:
                        digests.append(waiting.popleft().result())
                digests += [future.result() for future in waiting]
            del keys
    writer.write_users(folder, Users(index.user_id, index.offset))
    movie_id = index.movie_id if are_text(index.movie_id) else index.movie_id.astype(np.int32)
    writer.write_movies(folder, Movies(movie_id, catalogue.year, catalogue.title, statistics.num_train_ratings))
    meta = _complete_meta(meta, index, catalogue, plan, statistics, _fingerprint(index, catalogue, content_hashers))
    writer.write_meta(folder, meta)
    with statistics.timed("verify"):
        _verify(folder, index, digests)
    return meta


# --- stages ----------------------------------------------------------------------------------------------------


def _plan_validation(plan: SplitPlan, index: Index) -> None:
    """Tell the plan what no user alone shows: how many ratings there are to cut validation from."""
    if plan.method == "random" or plan.val_method == "random":
        return
    num_test = None
    if plan.method != "latest":
        num_test = np.bincount(plan.test_pairs // index.layout.num_movies, minlength=index.layout.num_users)
    plan.limit_validation(np.diff(index.offset), num_test)


def _split_group(keys: np.ndarray, first_user: int, last_user: int, index: Index, plan: SplitPlan,
                 schema: pa.Schema) -> Ratings:
    """Unpack the sorted keys of some whole users, check their pairs and assign them to splits."""
    num_movies = index.layout.num_movies
    user_idx, day, movie_idx, stars = index.layout.unpack(keys)
    low, high = np.searchsorted(plan.test_pairs, [first_user * num_movies, last_user * num_movies])
    test_rows = _check_pairs(index, (user_idx - first_user) * num_movies + movie_idx, first_user,
                             plan.test_pairs[low:high] - first_user * num_movies)
    split = split_users(plan, user_idx, movie_idx, day, test_rows)
    types = {name: schema.field(name).type.to_pandas_dtype() for name in ("movie_idx", "stars", "day")}
    return Ratings(user_idx.astype(np.int32), movie_idx.astype(types["movie_idx"]), stars.astype(types["stars"]),
                   day.astype(types["day"]), split)


def _check_pairs(index: Index, pairs: np.ndarray, first_user: int, test_pairs: np.ndarray) -> np.ndarray:
    """Check that no pair of a block occurs twice, and return the rows of the test pairs.

    A pair's row number is kept in its low bits, so that one sort serves both.
    """
    row_bits = max(len(pairs) - 1, 1).bit_length()
    ordered = np.sort(pairs << row_bits | np.arange(len(pairs)))
    sorted_pairs = ordered >> row_bits

    def ids_of(pair: np.int64) -> tuple[Id, Id]:
        user, movie_idx = divmod(int(pair), index.layout.num_movies)
        return index.user_id[first_user + user].item(), index.movie_id[movie_idx].item()

    twice = np.flatnonzero(sorted_pairs[1:] == sorted_pairs[:-1])
    if len(twice):
        raise PairError.rated_twice(*ids_of(sorted_pairs[twice[0]]))
    positions = np.searchsorted(sorted_pairs, test_pairs)
    missing = sorted_pairs[np.minimum(positions, len(pairs) - 1)] != test_pairs
    if missing.any():
        raise PairError.never_rated(*ids_of(test_pairs[np.argmax(missing)]))
    return ordered[positions] & ((1 << row_bits) - 1)


def _content(layout: KeyLayout, ratings: Ratings) -> tuple[np.ndarray, np.ndarray]:
    """Return what a row group says, whatever its types and encoding: keys int64 (R,) and splits uint8 (R,)."""
    columns = (getattr(ratings, name).astype(np.int64) for name in ("user_idx", "day", "movie_idx", "stars"))
    return layout.pack(*columns), ratings.known_split()


def _digest(content: tuple[np.ndarray, np.ndarray]) -> bytes:
    """Return the SHA-256 of a row group's content."""
    digest = hashlib.sha256()
    for column in content:
        digest.update(column.data)
    return digest.digest()


def _verify(folder: Path, index: Index, digests: list[bytes]) -> None:
    """Read the ratings back: they must be what was written, and no (user, movie) pair may be in train and in test."""

    def check(first: int) -> None:
        with dataset.RatingsFile(folder) as file:  # a reader is not shared between threads
            for group in range(first, len(digests), num_cores()):
                ratings = file.read_group(group)
                if _digest(_content(index.layout, ratings)) != digests[group]:
                    raise DataError(f"{file.path} reads back otherwise than it was written; the disk may be failing")
                pairs = ratings.user_idx.astype(np.int64) * index.layout.num_movies + ratings.movie_idx
                train, test = np.sort(pairs[ratings.split == TRAIN]), pairs[ratings.split == TEST]
                if len(train) and (train[np.minimum(np.searchsorted(train, test), len(train) - 1)] == test).any():
                    raise DataError("train and test share a (user, movie) pair; please report this as a bug")
                bar.update(len(pairs))

    with (tqdm(total=int(index.offset[-1]), desc="verify", unit=" ratings", unit_scale=True, leave=False,
               disable=None) as bar,
          ThreadPoolExecutor(num_cores()) as threads):
        list(threads.map(check, range(num_cores())))
    with dataset.RatingsFile(folder) as file:
        num_ratings = len(file)
    if num_ratings != index.offset[-1]:
        raise DataError(f"{folder / 'ratings.parquet'} lacks ratings that were written; the disk may be failing")


def _fingerprint(index: Index, catalogue: Catalogue, content_hashers: tuple["hashlib._Hash", ...]) -> str:
    """Return the SHA-256 of all that the data set says, whichever raw files say it."""
    fingerprint = hashlib.sha256(repr((FINGERPRINT_VERSION, index.layout, index.day_epoch, catalogue.stars_step,
                                       catalogue.stars_range)).encode())
    for hasher in content_hashers:
        fingerprint.update(hasher.digest())
    for column in (index.user_id, index.movie_id, catalogue.year):
        fingerprint.update("\0".join(column.tolist()).encode() if are_text(column) else column.data)
    fingerprint.update("\n".join(catalogue.title).encode())
    return fingerprint.hexdigest()


def _complete_meta(meta: dict, index: Index, catalogue: Catalogue, plan: SplitPlan, statistics: Statistics,
                   fingerprint: str) -> dict:
    """Return what meta.json holds."""
    step = catalogue.stars_step
    stars = np.flatnonzero(statistics.histogram)
    return {
        "format_version": FORMAT_VERSION,
        "num_ratings": int(index.offset[-1]),
        "num_users": len(index.user_id),
        "num_movies": len(index.movie_id),
        "num_rated_movies": int(meta.pop("num_rated_movies")),
        "day_epoch": index.day_epoch,
        "num_days": index.layout.num_days,
        "stars_range": list(catalogue.stars_range),
        "stars_step": step,
        "histogram": {f"{(value + statistics.lowest_stars) * step:g}": int(statistics.histogram[value])
                      for value in stars},
        "split": {"method": plan.method, "test_fraction": plan.test_fraction, "latest_n": plan.latest_n,
                  "val_fraction": plan.val_fraction, "seed": plan.seed,
                  **{f"num_{name}": int(n) for name, n in zip(SPLITS, statistics.split_counts, strict=True)}},
        "seed": plan.seed,
        **meta,
        "fingerprint": fingerprint,
    }
