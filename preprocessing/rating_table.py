"""Read ratings from a table, a row per rating, millions of them: CSV and its like, or parquet.

One reader for MovieLens' files and anyone's: columns are found by their header's names, in any order, others are passed
over. pyarrow reads them as numbers, as they mostly are; where it cannot, as text, of which numbers and times are made.
"""

import contextlib
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv

from preprocessing.dataset import DataError
from preprocessing.dataset.tables import Layout, Names, decode, encoding_of, layout_of, named_positions, split_line
from preprocessing.ids import Ids
from preprocessing.times import TIMES

HEAD_BYTES = 1 << 16  # of a rating file, by which its layout is found
NEEDED = ("user_id", "movie_id", "stars")
IN_ORDER = (*NEEDED, "time")  # of a file without header
Columns = dict[str, pa.ChunkedArray]


@dataclass
class RawRatings:
    """The ratings of a table (R)."""

    user_id: Ids  # int64 or text (R,)
    movie_id: Ids
    stars: np.ndarray  # float64 (R,)
    seconds: np.ndarray  # int64 (R,), since 1970; zero where the file has no times


@dataclass
class TableFile:
    """A file of ratings, and how it is written."""

    path: Path
    layout: Layout
    encoding: str
    num_skipped: int  # lines before the first rating
    num_fields: int
    positions: dict[str, int]  # of the columns user_id, movie_id, stars, and those of the others that are there
    time_type: pa.DataType | None  # by which pyarrow reads the times; None: not as a number, nor as a plain date
    is_parquet: bool = False

    @property
    def header(self) -> dict[str, str]:
        """What the header calls each column; empty without a header."""
        names = self.layout.header
        return {} if names is None else {column: names[position] for column, position in self.positions.items()}

    def lines(self) -> Iterator[tuple[int, str]]:
        """Yield number and text of every line that holds a rating."""
        with open(self.path, encoding=self.encoding, errors="surrogateescape") as file:
            for number, line in enumerate(file, start=1):
                if number > self.num_skipped and (text := line.rstrip("\n")):
                    yield number, text

    def where(self, row: int) -> str:
        """Say where a rating stands, counted from 0, and what its line says."""
        if self.is_parquet:
            return f"{self.path}, row {row + 1}:"
        number, line = next(itertools.islice(self.lines(), row, None))
        return f"{self.path}, line {number}: {line[:60]!a}"

    def refuse(self, problems: dict[str, np.ndarray]) -> None:
        """Raise DataError for the first rating of which a problem, bool (R,), is true."""
        first = {problem: int(rows.argmax()) for problem, rows in problems.items() if rows.any()}
        if first:
            problem = min(first, key=lambda name: first[name])
            raise DataError(f"{self.where(first[problem])} {problem}")


def open_table(path: Path, columns: Names) -> TableFile:
    """Find out from its beginning how a file of ratings is written.

    Args:
        columns: the names that a header may have for user_id, movie_id, stars, time and perhaps others.

    Raises:
        DataError: a header without one of the first three; its names are listed.
    """
    if path.suffix.lower() in (".parquet", ".pq"):
        return _open_parquet(path, columns)
    with open(path, "rb") as file:
        data = file.read(HEAD_BYTES)
        is_whole = not file.read(1)
    head = decode(data)
    if not is_whole:
        head = head[:head.rfind("\n") + 1]
    layout = layout_of(head, columns)
    if layout.header is not None:
        positions = named_positions(path, columns, NEEDED, layout)
    else:
        positions = {name: position for position, name in enumerate(IN_ORDER) if position < max(len(layout.first), 3)}
    data_rows = layout.rows if layout.header is not None else [layout.first, *layout.rows]
    times = [row[positions["time"]] for row in data_rows if positions.get("time", len(row)) < len(row)]
    time_type = next((kind for pattern, kind in TIMES.items() if all(re.fullmatch(pattern, text) for text in times)),
                     None)
    return TableFile(path, layout, encoding_of(data), layout.first_line - (layout.header is None),
                     max(len(layout.first), max(positions.values()) + 1), positions, time_type)


def read_columns(file: TableFile, id_type: pa.DataType) -> Columns:
    """Read the columns of ratings, all as long (R): of a text file stars are float64 and ids of a type, or all is text
    where these cannot be; of parquet everything is as it stands there, without dictionaries and nulls.

    Raises:
        DataError: a line of other fields, a row without user, item or rating; with its number.
    """
    if file.is_parquet:
        return _read_parquet(file)
    columns, texts = None, dict.fromkeys(file.positions, pa.string())
    if file.time_type is not None:
        with contextlib.suppress(pa.ArrowInvalid):
            columns = _read_text(file, texts | {"user_id": id_type, "movie_id": id_type, "stars": pa.float64(),
                                                "time": file.time_type})
    if columns is not None and not any(column.null_count for column in columns.values()):
        return columns
    try:
        return _read_text(file, texts)
    except pa.ArrowInvalid as error:
        raise _uneven_line(file, str(error)) from None


def numbers_of(column: pa.ChunkedArray) -> np.ndarray:
    """Return a column as numbers, float64 (R,); NaN where a text is none."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        text = pc.utf8_trim_whitespace(column)
        sound = pc.match_substring_regex(text, r"^-?(\d{1,9}([.,]\d*)?|[.,]\d+)$")
        column = pc.if_else(sound, pc.replace_substring(text, ",", "."), "nan")
    elif pa.types.is_float16(column.type) or pa.types.is_float32(column.type):
        encoded = pc.dictionary_encode(column).unify_dictionaries().combine_chunks()  # 3.1 is 3.1, not 3.0999999
        values = np.array([float(str(value)) for value in np.asarray(encoded.dictionary)], np.float64)
        return values[np.asarray(encoded.indices)]
    return np.asarray(pc.cast(column, pa.float64()))


def whole_numbers_of(column: pa.ChunkedArray) -> np.ndarray:
    """Return a column as whole numbers, int64 (R,); -1 where a text is none."""
    if pa.types.is_string(column.type):
        text = pc.utf8_trim_whitespace(column)
        sound = pc.match_substring_regex(text, r"^\d{1,18}(\.0*)?$")
        column = pc.if_else(sound, pc.replace_substring_regex(text, r"[.,]0*$", ""), "-1")
    return np.asarray(pc.cast(column, pa.int64()))


def _read_text(file: TableFile, types: dict[str, pa.DataType]) -> Columns:
    """Read columns of a text file; raise ArrowInvalid at a line of other fields."""
    layout, source, delimiter, encoding = file.layout, str(file.path), file.layout.separator, file.encoding
    if layout.separator in ("::", " "):  # of which pyarrow knows nothing, or only one between two columns
        text = file.path.read_bytes()
        if encoding != "utf-8-sig":
            text, encoding = decode(text).encode(), "utf-8-sig"
        source, delimiter = pa.BufferReader(_with_tabs(text, layout.separator)), "\t"
    names = [str(position) for position in range(file.num_fields)]
    wanted = {column: names[position] for column, position in file.positions.items()}

    def read(source: str | pa.BufferReader, encoding: str) -> Columns:
        table = csv.read_csv(
            source, csv.ReadOptions(column_names=names, skip_rows=file.num_skipped,
                                    encoding="utf8" if encoding == "utf-8-sig" else encoding),
            csv.ParseOptions(delimiter=delimiter, quote_char='"' if layout.is_quoted else False),
            csv.ConvertOptions(column_types={wanted[column]: types[column] for column in wanted}, check_utf8=False,
                               include_columns=list(wanted.values()), null_values=[""], strings_can_be_null=False,
                               timestamp_parsers=[csv.ISO8601]))
        return {column: table[name] for column, name in wanted.items()}

    columns = read(source, encoding)
    try:
        for column in columns.values():
            column.validate(full=pa.types.is_string(column.type))
    except pa.ArrowInvalid:  # not UTF-8, as Windows saves it
        text = decode(file.path.read_bytes()).encode()
        columns = read(pa.BufferReader(_with_tabs(text, layout.separator)), "utf8")
    return columns


def _with_tabs(text: bytes, separator: str) -> bytes:
    """Return a text with tabs in place of a separator that pyarrow cannot be told: "::", or any number of spaces."""
    if separator == "::":
        return text.replace(b"::", b"\t")
    if separator != " ":
        return text
    return re.sub(rb" +", b"\t", re.sub(rb"(?m)^ +| +(?=\r?$)", b"", text))


def _open_parquet(path: Path, columns: Names) -> TableFile:
    with _parquet_named(path):
        header = pq.read_schema(path).names
    layout = Layout("", False, header, header, 0, [])
    return TableFile(path, layout, "", 0, len(header), named_positions(path, columns, NEEDED, layout), None, True)


def _read_parquet(file: TableFile) -> Columns:
    header = file.header
    with _parquet_named(file.path):
        table = pq.read_table(file.path, columns=list(header.values()))
        columns = {column: table[name] for column, name in header.items()}
        for name, column in columns.items():
            if pa.types.is_dictionary(column.type):
                column = pc.cast(column, column.type.value_type)
            if pa.types.is_large_string(column.type) or pa.types.is_null(column.type):
                column = pc.cast(column, pa.string())
            if pa.types.is_timestamp(column.type) and column.type.tz is not None:
                column = pc.local_timestamp(column)  # the date that is written counts
            elif pa.types.is_date(column.type):
                column = pc.cast(column, pa.timestamp("s"))
            elif pa.types.is_decimal(column.type):
                column = pc.cast(column, pa.string() if name in ("user_id", "movie_id") else pa.float64())
            columns[name] = column
    kind = {"user_id": "user", "movie_id": "item", "stars": "rating"}
    file.refuse({f"holds no {kind[name]} in column {header[name]!r}": np.asarray(pc.is_null(columns[name]))
                 for name in NEEDED})
    if "title" in columns:
        columns["title"] = pc.fill_null(pc.cast(columns["title"], pa.string()), "")
    if "time" in columns:
        is_missing = np.asarray(pc.is_null(columns["time"]))
        if is_missing.all():
            del columns["time"]
        else:
            file.refuse({f"holds no time in column {header['time']!r}": is_missing})
    return columns


@contextlib.contextmanager
def _parquet_named(path: Path) -> Iterator[None]:
    """Turn what pyarrow raises for a file that is no sound parquet into one sentence."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, FileNotFoundError | IsADirectoryError | PermissionError):
            raise
        raise DataError(f"{path} cannot be read as parquet: {str(error).splitlines()[0][:100]}") from None


def _uneven_line(file: TableFile, reason: str) -> DataError:
    """Find the first line that has more fields or fewer than the first line of the file."""
    for number, line in file.lines():
        num_fields = len(split_line(line, file.layout.separator, file.layout.is_quoted))
        if num_fields != file.num_fields:
            return DataError(f"{file.path}, line {number}: {line[:60]!a} is no rating: {num_fields} fields separated "
                             f"by {file.layout.separator!r}, not {file.num_fields} as in the first line")
    return DataError(f"{file.path} cannot be read as ratings separated by {file.layout.separator!r}: {reason}")
