"""Read a data set: meta.json, its users and movies, and its ratings whole, by row group or of one user."""

import json
from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from preprocessing.dataset.integrity import (
    MOST_GROUP_ROWS,
    MOST_META_BYTES,
    MOST_ROWS_PER_BYTE,
    check_codec,
    damage_named,
    demand,
    footer_digest,
    is_sound,
    meta_digest,
)
from preprocessing.dataset.records import SPLITS, DataError, Id, Movies, Ratings, Titles, User, Users, position_of
from preprocessing.dataset.schema import COLUMNS, FORMAT_VERSION, MOST_ID_LETTERS, PREPROCESS

GROUPS_KEPT = 64  # row groups of users.parquet in memory, 128 KiB each where ids are numbers; Netflix's has 59


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
    if meta.get("digest") != meta_digest(meta) or not is_sound(meta):
        raise DataError(damaged)
    return meta


def read_users(data_dir: Path) -> Users:
    """Read users.parquet."""
    return UsersFile(data_dir).read()


def read_movies(data_dir: Path) -> Movies:
    """Read movies.parquet."""
    path = data_dir / "movies.parquet"
    with damage_named(path):
        table = _read_whole(_open(path))
        demand(table["year"].type == pa.int16() and table["title"].type == pa.string(), "its columns have other types")
        table["title"].validate(full=True)
        year = np.concatenate([np.zeros(0, np.int16), *map(_years, table["year"].chunks)])
        movies = Movies(_ids(table, "movie_id"), year, Titles(table["title"]), _column(table, "num_train_ratings"))
        is_ordered = ((movies.movie_id[1:] > movies.movie_id[:-1]).all() and (movies.num_train_ratings >= 0).all())
        demand(bool(is_ordered) and not table["title"].null_count, "its movies are out of order")
        return movies


class UsersFile:
    """users.parquet opened for reading: all of it, or the row group that one user is in.

    Raises:
        DataError: the file is missing or damaged; every read verifies the checksums of its pages.
    """

    def __init__(self, data_dir: Path) -> None:
        self.path = data_dir / "users.parquet"
        with damage_named(self.path):
            self._file = _open(self.path)
            self.has_text_ids = pa.types.is_string(self._file.schema_arrow.field("user_id").type)
            self._group_starts = _group_starts(self._file)
            metadata = self._file.metadata
            self._read_group = lru_cache(GROUPS_KEPT)(partial(_read_user_group, self._file, self.path))
            self._lowest_ids = [metadata.row_group(group).column(0).statistics.min
                                for group, num_rows in enumerate(np.diff(self._group_starts)) if num_rows]

    def read(self) -> Users:
        """Read all users."""
        with damage_named(self.path):
            users = _users_of(_read_whole(self._file))
            demand(users.offset[0] == 0, "its ratings do not begin at the first")
            return users

    def read_groups(self) -> Iterator[Users]:
        """Yield the users of one row group after the other."""
        end, last_id = 0, None
        for group in range(len(self._group_starts) - 1):
            users = _read_user_group(self._file, self.path, group)  # once: nothing is kept
            if len(users.user_id):
                with damage_named(self.path):
                    demand(users.offset[0] == end and (last_id is None or users.user_id[0] > last_id),
                           "its users are out of order")
                end, last_id = users.offset[-1], users.user_id[-1]
                yield users

    def find(self, user_id: Id) -> User | None:
        """Return a user's index and rows; None if there is no such user."""
        if isinstance(user_id, str) != self.has_text_ids:
            return None
        group = bisect_right(self._lowest_ids, user_id) - 1
        if group < 0:
            return None
        users = self._read_group(group)
        position = position_of(users.user_id, user_id)
        if position is None:
            return None
        return users.user(position)._replace(user_idx=int(self._group_starts[group]) + position)

    def id_of(self, user_idx: int) -> Id:
        """Return the id of a user."""
        group = bisect_right(self._group_starts, user_idx) - 1
        return self._read_group(group).user_id[user_idx - self._group_starts[group]].item()


class RatingsFile:
    """ratings.parquet opened for reading: all of it, a row group, or one user's rows.

    Raises:
        DataError: the file is missing or damaged; every read verifies the checksums of its pages.
    """

    def __init__(self, data_dir: Path, meta: dict | None = None) -> None:
        """Open the file; `meta` is meta.json, where it has been read."""
        self.path = data_dir / "ratings.parquet"
        with damage_named(self.path):
            meta = read_meta(data_dir) if meta is None else meta
            self._num_users, self._num_movies = meta["num_users"], meta["num_movies"]
            self._file = _open(self.path, read_dictionary=["split"])
            self.group_starts = _group_starts(self._file)
            largest = np.diff(self.group_starts).max(initial=0)
            demand(largest <= MOST_GROUP_ROWS, f"a row group of {largest:,} rows")

    def __len__(self) -> int:
        return int(self.group_starts[-1])

    def __enter__(self) -> "RatingsFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()  # Windows moves no folder in which a file is open

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
            yield ratings.subset(slice(max(rows.start - start, 0), rows.stop - start))

    def read_user(self, user: User, with_split: bool = False) -> Ratings:
        """Read one user's ratings, in order of day."""
        ratings = next(self.read_rows(user.rows, with_split))
        with damage_named(self.path):
            demand((ratings.user_idx == user.user_idx).all(), "ratings of one user where another's should be")
        return ratings

    def read_group(self, group: int, with_split: bool = True) -> Ratings:
        """Read one row group; the split takes a fourth of the time."""
        with damage_named(self.path):
            table = _read_row_group(self._file, group, columns=None if with_split else COLUMNS)
            user_idx, movie_idx, stars, day = (_column(table, name) for name in COLUMNS)
            ratings = Ratings(user_idx, movie_idx, stars, day, _split(table) if with_split else None)
            demand(self._is_sound(ratings, self.group_starts[group + 1] - self.group_starts[group]),
                   f"row group {group} holds what no data set can")
            return ratings

    def _is_sound(self, ratings: Ratings, num_rows: int) -> bool:
        """Tell whether a row group is possible: its users and movies are in the catalogues, its users in order."""
        lengths = {len(column) for column in ratings if column is not None}
        return lengths == {num_rows} and (not num_rows or bool(
            ratings.user_idx[0] >= 0 and ratings.user_idx[-1] < self._num_users
            and (ratings.user_idx[1:] >= ratings.user_idx[:-1]).all()
            and ratings.movie_idx.min() >= 0 and ratings.movie_idx.max() < self._num_movies))


def _split(table: pa.Table) -> np.ndarray:
    """Return the split of rows of ratings.parquet, uint8 (R,)."""
    codes = [np.zeros(0, np.uint8)]
    for chunk in table["split"].chunks:
        code_of_entry = np.array([SPLITS.index(name) for name in chunk.dictionary.to_pylist()], np.uint8)
        codes.append(code_of_entry[np.from_dlpack(chunk.indices)])
    return np.concatenate(codes)


def _years(chunk: pa.Array) -> np.ndarray:
    """Return the years of movies, int16 (M,), 0 for null; converted one by one they would take 2 ms for Netflix."""
    valid, years = chunk.buffers()
    years = np.frombuffer(years, np.int16, len(chunk), 2 * chunk.offset)
    if valid is None:
        return years
    return years * np.unpackbits(np.frombuffer(valid, np.uint8), bitorder="little")[chunk.offset:][:len(chunk)]


def _read_user_group(file: pq.ParquetFile, path: Path, group: int) -> Users:
    """Read one row group of users.parquet."""
    with damage_named(path):
        return _users_of(_read_row_group(file, group, use_threads=False))


def _users_of(table: pa.Table) -> Users:
    """Return the users of consecutive rows of users.parquet."""
    user_id, (offset, num_ratings) = _ids(table, "user_id"), (_column(table, name) for name in ("offset",
                                                                                                 "num_ratings"))
    users = Users(user_id, np.append(offset, offset[-1] + num_ratings[-1] if len(offset) else 0))
    demand(bool((user_id[1:] > user_id[:-1]).all() and (offset >= 0).all() and (num_ratings > 0).all()
                and (offset + num_ratings == users.offset[1:]).all()), "its users are out of order")
    return users


def _open(path: Path, **options: object) -> pq.ParquetFile:
    """Open a parquet file, its footer checked; reads will verify the checksums of its pages."""
    expected, num_bytes = read_meta(path.parent)["footers"].get(path.name), path.stat().st_size
    demand(footer_digest(path) == expected, "its footer is not the one that was written")
    file = pq.ParquetFile(path, page_checksum_verification=True, **options)
    num_rows = file.metadata.num_rows
    demand(num_rows <= MOST_ROWS_PER_BYTE * num_bytes, f"{num_rows:,} rows in {num_bytes:,} bytes")
    return file


def _group_starts(file: pq.ParquetFile) -> np.ndarray:
    """Return where each row group begins, and the end of the last, int64 (G + 1,)."""
    metadata = file.metadata
    return np.cumsum([0, *(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))])


def _read_row_group(file: pq.ParquetFile, group: int, **options: object) -> pa.Table:
    """Read one row group, once it is known to be compressed as it is written."""
    check_codec(file, group)
    return file.read_row_group(group, **options)


def _read_whole(file: pq.ParquetFile) -> pa.Table:
    """Read all row groups of a small file without dictionaries: one could give a text of megabytes to every row."""
    for group in range(file.num_row_groups):
        check_codec(file, group)
        columns = map(file.metadata.row_group(group).column, range(file.metadata.num_columns))
        demand(not any(column.has_dictionary_page for column in columns), "packed in a dictionary")
    return file.read(use_threads=False)  # starting threads takes longer


def _ids(table: pa.Table, name: str) -> np.ndarray:
    """Return a column of ids, integers or str (N,); a long one would make an array of text huge."""
    if not pa.types.is_string(table[name].type):
        return _column(table, name)
    table[name].validate(full=True)
    texts = table[name].to_pylist()
    demand(None not in texts and max(map(len, texts), default=0) <= MOST_ID_LETTERS, f"column {name}")
    return np.array(texts, str)


def _column(table: pa.Table, name: str) -> np.ndarray:
    """Return a column of whole numbers without nulls, read-only.

    pyarrow's `to_numpy` would import pandas, which takes half a second.
    """
    demand(table[name].null_count == 0 and pa.types.is_integer(table[name].type), f"column {name}")
    return np.from_dlpack(table[name].combine_chunks())
