"""The processed data set on disk: what is in its four files, how they are written and how they are read.

    ratings.parquet   a row per rating, sorted by user_idx, day, movie_idx; a row group never cuts a user
        user_idx int32, movie_idx int16 (int32 past 32,767 movies), stars uint8 (in steps of `stars_step`),
        day int16 (int32 past 32,767 days), counted from the schema's metadata entry `day_epoch` (YYYY-MM-DD),
        split: "train", "validation" or "test"
    users.parquet     row user_idx: user_id int64, offset int64 into ratings.parquet, num_ratings int32; in row groups,
        so that one user is found without reading all
    movies.parquet    row movie_idx: movie_id int32, year int16 or null, title string, num_train_ratings int32; it and
        users.parquet without dictionaries
    meta.json         format version, counts, split and its parameters, histogram, sources, one fingerprint,
        digests of the parquet files' footers, and of its own entries

user_idx is the rank of user_id, movie_idx the rank of movie_id among all movies that have a title or a rating.
Damage is noticed wherever it is: parquet pages carry checksums, the digests of their footers are in meta.json,
and what a page header alone could change is checked against the catalogues. A file from a stranger is data at most: its
counts are checked before memory is taken for them.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FORMAT_VERSION = 4
SPLITS = ("train", "validation", "test")
TRAIN, VALIDATION, TEST = range(3)
COLUMNS = ("user_idx", "movie_idx", "stars", "day")  # of ratings.parquet, beside the split
FILES = ("ratings.parquet", "users.parquet", "movies.parquet", "meta.json")
PREPROCESS = "python preprocessing/netflix_preprocess.py"

CODEC = "lz4"  # quick, and cannot make more than 255 bytes of one
USERS_PER_GROUP = 8_192  # of users.parquet: what is read to find one of them

MOST_META_BYTES = 1 << 24  # what a reader takes memory for without a second look
MOST_GROUP_ROWS = 1 << 24
MOST_ROWS_PER_BYTE = 1000  # of a parquet file; real ones have less than one
META_TYPES = {"num_ratings": int, "num_users": int, "num_movies": int, "seed": int, "stars_step": (int, float),
              "stars_range": list, "split": dict, "footers": dict, "day_epoch": str, "fingerprint": str}


class DataError(Exception):
    """Something in the input is wrong; the message is one sentence for the person who can mend it."""

    def __str__(self) -> str:
        """Return the sentence; what it quotes from a file cannot steer a terminal."""
        return "".join(letter if letter.isprintable() else "?" for letter in super().__str__())


class Movies(NamedTuple):
    """The catalogue, one entry per movie_idx (M)."""

    movie_id: np.ndarray  # int32 (M,)
    year: np.ndarray  # int16 (M,), 0 where unknown
    title: Sequence[str]
    num_train_ratings: np.ndarray  # int32 (M,)


class Titles(Sequence):
    """The titles of a data set: what is read of them is text only when it is asked for."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        """Take over a column of valid text without nulls."""
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, movie_idx: int | slice) -> str | list[str]:
        if isinstance(movie_idx, slice):
            return self._column[movie_idx].to_pylist()
        return self._column[int(movie_idx)].as_py()

    def __iter__(self) -> Iterator[str]:
        return iter(self._column.to_pylist())


class User(NamedTuple):
    """Where one user is."""

    user_idx: int
    rows: slice  # of ratings.parquet


class Users(NamedTuple):
    """The users, one entry per user_idx (U); their rows of ratings.parquet are offset[u]:offset[u + 1]."""

    user_id: np.ndarray  # int64 (U,), ascending
    offset: np.ndarray  # int64 (U + 1,)

    def user(self, user_idx: int) -> User:
        """Return where one of them is."""
        return User(user_idx, slice(*self.offset[user_idx:user_idx + 2].tolist()))


class Ratings(NamedTuple):
    """Columns of ratings.parquet for a range of rows (R)."""

    user_idx: np.ndarray  # int32 (R,)
    movie_idx: np.ndarray  # int16 or int32 (R,)
    stars: np.ndarray  # uint8 (R,), in steps of `stars_step`
    day: np.ndarray  # int16 or int32 (R,), since the data set's `day_epoch`
    split: np.ndarray | None  # uint8 (R,): TRAIN, VALIDATION or TEST; None where it was not asked for

    def part(self, rows: slice) -> "Ratings":
        """Return some of the rows."""
        return Ratings(*(column if column is None else column[rows] for column in self))


# --- writing ---------------------------------------------------------------------------------------------------


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
    return pq.ParquetWriter(folder / "ratings.parquet", schema, compression=CODEC, write_page_checksum=True,
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
    pq.write_table(table, folder / "users.parquet", compression=CODEC, write_page_checksum=True, use_dictionary=False,
                   column_encoding=ascending, row_group_size=USERS_PER_GROUP)


def write_movies(folder: Path, movies: Movies) -> None:
    """Write movies.parquet."""
    table = pa.table({"movie_id": movies.movie_id, "year": pa.array(movies.year, mask=movies.year == 0),
                      "title": pa.array(movies.title, pa.string()), "num_train_ratings": movies.num_train_ratings})
    pq.write_table(table, folder / "movies.parquet", compression=CODEC, write_page_checksum=True, use_dictionary=False)


def write_meta(folder: Path, meta: dict) -> None:
    """Write meta.json, after the files that it describes."""
    meta = {**meta, "footers": {name: _footer_digest(folder / name) for name in FILES[:-1]}}
    meta["digest"] = _meta_digest(meta)
    (folder / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")


# --- reading ---------------------------------------------------------------------------------------------------


def read_meta(data_dir: Path) -> dict:
    """Read meta.json.

    Raises:
        DataError: it is missing, damaged, or of another format version; says which command makes it.
    """
    path = data_dir / "meta.json"
    damaged = f"{path} is damaged; run: {PREPROCESS} --out_dir {data_dir}"
    try:
        with open(path, "rb") as file:
            meta = json.loads(file.read(MOST_META_BYTES))
        version = meta["format_version"]
    except FileNotFoundError:
        raise DataError(f"{path} not found; run: {PREPROCESS} --out_dir {data_dir}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DataError(damaged) from None
    if version != FORMAT_VERSION:
        raise DataError(f"{path} has format version {str(version)[:20]}, this program reads version {FORMAT_VERSION}; "
                        f"run: {PREPROCESS} --out_dir {data_dir}")
    if meta.get("digest") != _meta_digest(meta) or not _is_sound(meta):
        raise DataError(damaged)
    return meta


def read_users(data_dir: Path) -> Users:
    """Read users.parquet."""
    return UsersFile(data_dir).read()


def read_movies(data_dir: Path) -> Movies:
    """Read movies.parquet."""
    path = data_dir / "movies.parquet"
    with _damage_named(path):
        table = _read_whole(_open(path))
        _demand(table["year"].type == pa.int16() and table["title"].type == pa.string(), "its columns have other types")
        table["title"].validate(full=True)
        year = np.concatenate([np.zeros(0, np.int16), *map(_years, table["year"].chunks)])
        movies = Movies(_column(table, "movie_id"), year, Titles(table["title"]), _column(table, "num_train_ratings"))
        _demand((np.diff(movies.movie_id) > 0).all() and (movies.num_train_ratings >= 0).all()
                and not table["title"].null_count, "its movies are out of order")
        return movies


class UsersFile:
    """users.parquet opened for reading: all of it, or what is needed to find one user.

    Raises:
        DataError: the file is missing or damaged; every read verifies the checksums of its pages.
    """

    def __init__(self, data_dir: Path) -> None:
        self.path = data_dir / "users.parquet"
        with _damage_named(self.path):
            self._file = _open(self.path)
            self._group_starts = _group_starts(self._file)
            metadata = self._file.metadata
            self._lowest = [metadata.row_group(group).column(0).statistics.min
                            for group, size in enumerate(np.diff(self._group_starts)) if size]

    def read(self) -> Users:
        """Read all users."""
        with _damage_named(self.path):
            users = _users_of(_read_whole(self._file))
            _demand(users.offset[0] == 0, "its ratings do not begin at the first")
            return users

    def find(self, user_id: int) -> User | None:
        """Return where a user is; None if there is no such user."""
        group = bisect_right(self._lowest, user_id) - 1
        if group < 0:
            return None
        users = self._read_group(group)
        place = place_of(users.user_id, user_id)
        return None if place is None else users.user(place)._replace(user_idx=int(self._group_starts[group]) + place)

    def id_of(self, user_idx: int) -> int:
        """Return the id of a user."""
        group = bisect_right(self._group_starts, user_idx) - 1
        return int(self._read_group(group).user_id[user_idx - self._group_starts[group]])

    def _read_group(self, group: int) -> Users:
        with _damage_named(self.path):
            return _users_of(_read_row_group(self._file, group, use_threads=False))


class RatingsFile:
    """ratings.parquet opened for reading: all of it, a row group, or one user's rows.

    Raises:
        DataError: the file is missing or damaged; every read verifies the checksums of its pages.
    """

    def __init__(self, data_dir: Path, meta: dict | None = None) -> None:
        """Open the file; `meta` is meta.json, where it has been read."""
        self.path = data_dir / "ratings.parquet"
        with _damage_named(self.path):
            meta = read_meta(data_dir) if meta is None else meta
            self._num_users, self._num_movies = meta["num_users"], meta["num_movies"]
            self._file = _open(self.path, read_dictionary=["split"])
            self.group_starts = _group_starts(self._file)
            largest = np.diff(self.group_starts).max(initial=0)
            _demand(largest <= MOST_GROUP_ROWS, f"a row group of {largest:,} rows")

    def __len__(self) -> int:
        return int(self.group_starts[-1])

    @property
    def schema(self) -> pa.Schema:
        return self._file.schema_arrow

    def read_groups(self) -> Iterator[tuple[slice, Ratings]]:
        """Yield (rows, their ratings) for each row group in order."""
        for group in range(len(self.group_starts) - 1):
            yield slice(*self.group_starts[group:group + 2]), self.read_group(group)

    def read_rows(self, rows: slice, with_split: bool = True) -> Iterator[Ratings]:
        """Yield the ratings of a range of rows, row group by row group."""
        first, last = np.searchsorted(self.group_starts, [rows.start + 1, rows.stop])
        for group in range(first - 1, last):
            ratings, start = self.read_group(group, with_split), self.group_starts[group]
            yield ratings.part(slice(max(rows.start - start, 0), rows.stop - start))

    def read_user(self, user: User) -> Ratings:
        """Read one user's ratings, in order of day, without the split."""
        ratings = next(self.read_rows(user.rows, with_split=False))
        with _damage_named(self.path):
            _demand((ratings.user_idx == user.user_idx).all(), "ratings of one user where another's should be")
        return ratings

    def read_group(self, group: int, with_split: bool = True) -> Ratings:
        """Read one row group; the split takes a fourth of the time."""
        with _damage_named(self.path):
            table = _read_row_group(self._file, group, columns=None if with_split else COLUMNS)
            ratings = Ratings(*(_column(table, name) for name in COLUMNS), _split(table) if with_split else None)
            _demand(self._is_sound(ratings, self.group_starts[group + 1] - self.group_starts[group]),
                    f"row group {group} holds what no data set can")
            return ratings

    def _is_sound(self, ratings: Ratings, num_rows: int) -> bool:
        """Tell whether a row group can be one: its indices are those of a user and a movie, in order of users."""
        lengths = {len(column) for column in ratings if column is not None}
        return lengths == {num_rows} and (not num_rows or bool(
            ratings.user_idx[0] >= 0 and ratings.user_idx[-1] < self._num_users
            and (ratings.user_idx[1:] >= ratings.user_idx[:-1]).all()
            and ratings.movie_idx.min() >= 0 and ratings.movie_idx.max() < self._num_movies))


# --- files and folders -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(folder: Path, otherwise: str) -> Iterator[None]:
    """Hold a folder for this process; the lock vanishes with the process.

    Raises:
        DataError: another process holds it; `otherwise` is the sentence.
    """
    lock = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(otherwise) from None
        yield
    finally:
        os.close(lock)


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def place_of(ids: np.ndarray, wanted: int) -> int | None:
    """Return where an id stands among ascending ids; None if it is not there."""
    place = int(np.searchsorted(ids, wanted)) if abs(wanted) < 2**63 else len(ids)
    return place if place < len(ids) and ids[place] == wanted else None


def _split(table: pa.Table) -> np.ndarray:
    """Return the split of rows of ratings.parquet, uint8 (R,)."""
    codes = [np.zeros(0, np.uint8)]
    for chunk in table["split"].chunks:
        number = np.array([SPLITS.index(name) for name in chunk.dictionary.to_pylist()], np.uint8)
        codes.append(number[np.from_dlpack(chunk.indices)])
    return np.concatenate(codes)


def _years(chunk: pa.Array) -> np.ndarray:
    """Return the years of movies, int16 (M,), 0 where there is none; one by one they would take 2 ms at Netflix's size.
    """
    valid, years = chunk.buffers()
    years = np.frombuffer(years, np.int16, len(chunk), 2 * chunk.offset)
    if valid is None:
        return years
    return years * np.unpackbits(np.frombuffer(valid, np.uint8), bitorder="little")[chunk.offset:][:len(chunk)]


def _users_of(table: pa.Table) -> Users:
    """Return users who follow each other from their rows of users.parquet."""
    user_id, offset, num_ratings = (_column(table, name) for name in ("user_id", "offset", "num_ratings"))
    users = Users(user_id, np.append(offset, offset[-1] + num_ratings[-1] if len(offset) else 0))
    _demand((user_id[1:] > user_id[:-1]).all() and (offset >= 0).all() and (num_ratings > 0).all()
            and (offset + num_ratings == users.offset[1:]).all(), "its users are out of order")
    return users


def _open(path: Path, **options: object) -> pq.ParquetFile:
    """Open a parquet file, its footer checked; reads will verify the checksums of its pages."""
    expected, size = read_meta(path.parent)["footers"].get(path.name), path.stat().st_size
    _demand(_footer_digest(path) == expected, "its footer is not the one that was written")
    file = pq.ParquetFile(path, page_checksum_verification=True, **options)
    _demand(file.metadata.num_rows <= MOST_ROWS_PER_BYTE * size, f"{file.metadata.num_rows:,} rows in {size:,} bytes")
    return file


def _group_starts(file: pq.ParquetFile) -> np.ndarray:
    """Return where each row group begins, and the end of the last, int64 (G + 1,)."""
    metadata = file.metadata
    return np.cumsum([0, *(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))])


def _read_row_group(file: pq.ParquetFile, group: int, **options: object) -> pa.Table:
    """Read one row group, once it is known to be compressed as it is written."""
    _check_codec(file, group)
    return file.read_row_group(group, **options)


def _read_whole(file: pq.ParquetFile) -> pa.Table:
    """Read all row groups of a small file, which has no dictionaries: one could make a text of some megabytes that of
    every row."""
    for group in range(file.num_row_groups):
        _check_codec(file, group)
        columns = map(file.metadata.row_group(group).column, range(file.metadata.num_columns))
        _demand(not any(column.has_dictionary_page for column in columns), "packed in a dictionary")
    return file.read(use_threads=False)  # starting threads takes longer


def _check_codec(file: pq.ParquetFile, group: int) -> None:
    """Raise ValueError unless a row group is compressed as it is written: other codecs can pack gigabytes in a few
    bytes."""
    metadata = file.metadata.row_group(group)
    codecs = {metadata.column(column).compression for column in range(metadata.num_columns)}
    _demand(codecs <= {CODEC.upper()}, f"compressed by {', '.join(sorted(codecs))}")


def _footer_digest(path: Path) -> str:
    """Return the SHA-256 of a parquet file's footer and size: where its pages are and what they mean."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 8, 0))
        length = int.from_bytes(file.read(4), "little") + 8
        file.seek(max(size - length, 0))
        return hashlib.sha256(size.to_bytes(8, "little") + file.read()).hexdigest()


def _meta_digest(meta: dict) -> str:
    """Return the SHA-256 of all entries of meta.json but the digest itself."""
    return hashlib.sha256(json.dumps({key: meta[key] for key in meta if key != "digest"}).encode()).hexdigest()


def _is_sound(meta: dict) -> bool:
    """Tell whether the entries that the program relies on are there and can be."""
    if not all(isinstance(meta.get(name), kind) for name, kind in META_TYPES.items()):
        return False
    sizes = [meta["split"].get(f"num_{name}") for name in SPLITS]
    counts = [meta["num_ratings"], meta["num_users"], meta["num_movies"], *sizes]
    if not all(type(count) is int and 0 <= count < 2**48 for count in counts) or sum(sizes) != meta["num_ratings"]:
        return False
    numbers = [meta["stars_step"], *meta["stars_range"]]
    return (len(numbers) == 3 and all(type(number) in (int, float) and abs(number) < 1000 for number in numbers)
            and meta["stars_step"] > 0 and meta["stars_range"][0] < meta["stars_range"][1] and meta["seed"] >= 0
            and re.fullmatch("[0-9a-f]{64}", meta["fingerprint"]) is not None)


def _column(table: pa.Table, name: str) -> np.ndarray:
    """Return a column of whole numbers without nulls, read-only.

    pyarrow's own `to_numpy` would import pandas, for half a second.
    """
    _demand(table[name].null_count == 0 and pa.types.is_integer(table[name].type), f"column {name}")
    return np.from_dlpack(table[name].combine_chunks())


def _demand(condition: bool, otherwise: str) -> None:
    """Raise ValueError, which `_damage_named` turns into a sentence, unless a file is as it must be."""
    if not condition:
        raise ValueError(otherwise)


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Turn whatever a missing or damaged file makes the reader raise into one sentence that names it."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path} not found; run: {PREPROCESS} --out_dir {path.parent}") from None
    except (pa.ArrowException, OSError, LookupError, ValueError, TypeError, AttributeError, MemoryError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path} is damaged ({reason}); run: {PREPROCESS} --out_dir {path.parent}") from None
