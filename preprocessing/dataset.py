"""The processed data set on disk: what is in its four files, how they are written and how they are read.

    ratings.parquet   a row per rating, sorted by user_idx, day, movie_idx; a row group never cuts a user
        user_idx int32, movie_idx int16 (int32 past 32,767 movies), stars uint8 (in steps of `stars_step`),
        day int16 (int32 past 32,767 days), counted from the schema's metadata entry `day_epoch` (YYYY-MM-DD),
        split: "train", "validation" or "test"
    users.parquet     row user_idx: user_id int64, offset int64 into ratings.parquet, num_ratings int32
    movies.parquet    row movie_idx: movie_id int32, year int16 or null, title string, num_train_ratings int32
    meta.json         format version, counts, split and its parameters, histogram, sources, one fingerprint

user_idx is the rank of user_id, movie_idx the rank of movie_id among all movies that have a title or a rating.
A data set appears whole or not at all: it is written into a hidden folder beside it, which then takes its place.
"""

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FORMAT_VERSION = 1
SPLITS = ("train", "validation", "test")
TRAIN, VALIDATION, TEST = range(3)
FILES = ("ratings.parquet", "users.parquet", "movies.parquet", "meta.json")
PREPROCESS = "python preprocessing/netflix_preprocess.py"


class DataError(Exception):
    """Something in the input is wrong; the message is one sentence for the person who can mend it."""


@dataclass
class Movies:
    """The catalogue, one entry per movie_idx (M)."""

    movie_id: np.ndarray  # int32 (M,)
    year: np.ndarray  # int16 (M,), 0 where unknown
    title: list[str]
    num_train_ratings: np.ndarray  # int32 (M,)


@dataclass
class Users:
    """The users, one entry per user_idx (U); their rows of ratings.parquet are offset[u]:offset[u + 1]."""

    user_id: np.ndarray  # int64 (U,), ascending
    offset: np.ndarray  # int64 (U + 1,)


@dataclass
class Ratings:
    """Columns of ratings.parquet for a range of rows (R)."""

    user_idx: np.ndarray  # int32 (R,)
    movie_idx: np.ndarray  # int16 or int32 (R,)
    stars: np.ndarray  # uint8 (R,), in steps of `stars_step`
    day: np.ndarray  # int16 or int32 (R,), since the data set's `day_epoch`
    split: np.ndarray  # uint8 (R,): TRAIN, VALIDATION or TEST

    def part(self, rows: slice) -> "Ratings":
        """Return some of the rows."""
        return Ratings(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


# --- writing ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def replace_dataset(out_dir: Path) -> Iterator[Path]:
    """Yield an empty folder to write a data set into; on success it takes the place of `out_dir` in one step.

    On any failure, Ctrl-C included, the folder is removed and `out_dir` is as it was. What a killed run left
    behind is removed by the next one.

    Raises:
        DataError: `out_dir` holds something that is not a data set, or another run is writing it.
    """
    out_dir = out_dir.resolve()
    if out_dir.exists() and not out_dir.is_dir():
        raise DataError(f"{out_dir} is a file; name a folder with --out_dir")
    if out_dir.is_dir():
        foreign = sorted(path.name for path in out_dir.iterdir() if path.name not in FILES)
        if foreign:
            raise DataError(f"{out_dir} holds {foreign[0]!r}, which is no part of a data set and would be lost; "
                            "choose another --out_dir")
    new_parents = [folder for folder in out_dir.parents if not folder.exists()]  # the innermost first
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    partial = out_dir.with_name(f".{out_dir.name}.partial")
    partial.mkdir(exist_ok=True)
    lock = os.open(partial, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"another run is writing {out_dir}; wait for it, or choose another --out_dir") from None
        try:
            _empty(partial)
            yield partial
            for path in partial.iterdir():
                _sync(path)
            _exchange(partial, out_dir)
            _sync(out_dir.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    finally:
        os.close(lock)
        with contextlib.suppress(OSError):  # not empty: the data set is there
            for folder in new_parents:
                folder.rmdir()


def ratings_schema(num_movies: int, num_days: int, day_epoch: str) -> pa.Schema:
    """Return the schema of ratings.parquet for a catalogue and a span of days."""
    return pa.schema([
        ("user_idx", pa.int32()),
        ("movie_idx", pa.int16() if num_movies <= 2**15 else pa.int32()),
        ("stars", pa.uint8()),
        ("day", pa.int16() if num_days <= 2**15 else pa.int32()),
        ("split", pa.dictionary(pa.int8(), pa.string())),
    ], metadata={"day_epoch": day_epoch})


def ratings_writer(folder: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Open ratings.parquet for writing; each `write_ratings` adds one row group."""
    return pq.ParquetWriter(folder / "ratings.parquet", schema, compression="lz4", write_page_checksum=True,
                            write_statistics=["user_idx"])


def write_ratings(writer: pq.ParquetWriter, ratings: Ratings) -> None:
    """Write the ratings of some users, whole, as one row group."""
    split = pa.DictionaryArray.from_arrays(pa.array(ratings.split.view(np.int8)), pa.array(SPLITS))
    columns = [ratings.user_idx, ratings.movie_idx, ratings.stars, ratings.day]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, writer.schema, strict=False)]
    table = pa.Table.from_arrays([*arrays, split], schema=writer.schema)
    writer.write_table(table, row_group_size=max(len(table), 1))


def write_users(folder: Path, users: Users) -> None:
    """Write users.parquet."""
    table = pa.table({"user_id": users.user_id, "offset": users.offset[:-1],
                      "num_ratings": np.diff(users.offset).astype(np.int32)})
    ascending = {"user_id": "DELTA_BINARY_PACKED", "offset": "DELTA_BINARY_PACKED"}  # read five times as fast
    pq.write_table(table, folder / "users.parquet", compression="lz4", write_page_checksum=True, use_dictionary=False,
                   column_encoding=ascending)


def write_movies(folder: Path, movies: Movies) -> None:
    """Write movies.parquet."""
    table = pa.table({"movie_id": movies.movie_id, "year": pa.array(movies.year, mask=movies.year == 0),
                      "title": pa.array(movies.title, pa.string()), "num_train_ratings": movies.num_train_ratings})
    pq.write_table(table, folder / "movies.parquet", compression="zstd", write_page_checksum=True)


def write_meta(folder: Path, meta: dict) -> None:
    """Write meta.json."""
    (folder / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")


# --- reading ---------------------------------------------------------------------------------------------------


def read_meta(data_dir: Path) -> dict:
    """Read meta.json.

    Raises:
        DataError: it is missing, damaged, or of another format version; says which command makes it.
    """
    path = data_dir / "meta.json"
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        version = meta["format_version"]
    except FileNotFoundError:
        raise DataError(f"{path} not found; run: {PREPROCESS} --out_dir {data_dir}") from None
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path} is damaged; run: {PREPROCESS} --out_dir {data_dir}") from None
    if version != FORMAT_VERSION:
        raise DataError(f"{path} has format version {version}, this program reads version {FORMAT_VERSION}; "
                        f"run: {PREPROCESS} --out_dir {data_dir}")
    return meta


def read_users(data_dir: Path) -> Users:
    """Read users.parquet."""
    path = data_dir / "users.parquet"
    with _damage_named(path):
        table = _open(path).read(use_threads=False)  # starting threads takes longer
        user_id, offset, num_ratings = (_to_numpy(table[name]) for name in ("user_id", "offset", "num_ratings"))
        end = offset[-1] + num_ratings[-1] if len(offset) else 0
        return Users(user_id, np.append(offset, end))


def read_movies(data_dir: Path) -> Movies:
    """Read movies.parquet."""
    path = data_dir / "movies.parquet"
    with _damage_named(path):
        table = _open(path).read(use_threads=False)  # starting threads takes longer
        year = np.array([year or 0 for year in table["year"].to_pylist()], np.int16)
        return Movies(_to_numpy(table["movie_id"]), year, table["title"].to_pylist(),
                      _to_numpy(table["num_train_ratings"]))


class RatingsFile:
    """ratings.parquet opened for reading: all of it, a row group, or one user's rows.

    Raises:
        DataError: the file is missing or damaged (pages carry checksums, which every read verifies).
    """

    def __init__(self, data_dir: Path) -> None:
        self.path = data_dir / "ratings.parquet"
        with _damage_named(self.path):
            self._file = _open(self.path, read_dictionary=["split"])
            sizes = [self._file.metadata.row_group(k).num_rows for k in range(self._file.num_row_groups)]
        self.group_starts = np.cumsum([0, *sizes])

    def __len__(self) -> int:
        return int(self.group_starts[-1])

    @property
    def schema(self) -> pa.Schema:
        return self._file.schema_arrow

    def read_groups(self) -> Iterator[tuple[slice, Ratings]]:
        """Yield (rows, their ratings) for each row group in order."""
        for group in range(len(self.group_starts) - 1):
            yield slice(*self.group_starts[group:group + 2]), self.read_group(group)

    def read_rows(self, rows: slice) -> Iterator[Ratings]:
        """Yield the ratings of a range of rows, row group by row group."""
        first, last = np.searchsorted(self.group_starts, [rows.start + 1, rows.stop])
        for group in range(first - 1, last):
            ratings, start = self.read_group(group), self.group_starts[group]
            yield ratings.part(slice(max(rows.start - start, 0), rows.stop - start))

    def read_user(self, users: Users, user_idx: int) -> Ratings:
        """Read one user's ratings, in order of day."""
        start, stop = users.offset[user_idx:user_idx + 2]
        return next(self.read_rows(slice(start, stop)))

    def read_group(self, group: int) -> Ratings:
        """Read one row group."""
        with _damage_named(self.path):
            table = self._file.read_row_group(group)
            columns = [_to_numpy(table[name]) for name in ("user_idx", "movie_idx", "stars", "day")]
            codes = [np.zeros(0, np.uint8)]
            for chunk in table["split"].chunks:
                number = np.array([SPLITS.index(name) for name in chunk.dictionary.to_pylist()], np.uint8)
                codes.append(number[np.from_dlpack(chunk.indices)])
            return Ratings(*columns, np.concatenate(codes))


# --- files and folders -----------------------------------------------------------------------------------------


def _open(path: Path, **options: object) -> pq.ParquetFile:
    """Open a parquet file with the checksums of its pages verified."""
    return pq.ParquetFile(path, page_checksum_verification=True, **options)


def _to_numpy(column: pa.ChunkedArray) -> np.ndarray:
    """Return a column without nulls, read-only; pyarrow's own `to_numpy` would import pandas, half a second."""
    if column.null_count:
        raise ValueError("missing values")
    return np.from_dlpack(column.combine_chunks())


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Turn whatever a missing or damaged file makes the reader raise into one sentence that names it."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path} not found; run: {PREPROCESS} --out_dir {path.parent}") from None
    except (pa.ArrowException, OSError, KeyError, ValueError, IndexError, AttributeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path} is damaged ({reason}); run: {PREPROCESS} --out_dir {path.parent}") from None


def _empty(folder: Path) -> None:
    """Remove what a killed run left in the folder."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(new: Path, old: Path) -> None:
    """Put folder `new` in the place of folder `old`, in one step where the system can swap two names (Linux)."""
    if not old.exists():
        new.rename(old)
        return
    swap = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    at_cwd, rename_exchange = -100, 2
    if swap is not None:
        if swap(at_cwd, os.fsencode(new), at_cwd, os.fsencode(old), rename_exchange) == 0:
            return
        if ctypes.get_errno() not in (errno.ENOSYS, errno.EINVAL):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(old))
    aside = new.with_name(new.name + ".old")
    old.rename(aside)
    new.rename(old)
    shutil.rmtree(aside)
