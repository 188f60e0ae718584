"""Turn MovieLens' files into a data set of the same form as Netflix's.

    python preprocessing/movielens_preprocess.py --raw_dir ml-100k --split u1 --out_dir data/u1

Reads from --raw_dir whichever of these it holds:
    u.data, u.item                  MovieLens-100K; with u1.base, u1.test .. u5.base, u5.test its five splits too
    ratings*.dat, movies.dat        MovieLens-1M and -10M, with or without the column of timestamps
    ratings.csv, movies.csv         MovieLens-20M and later; Kaggle's rating.csv, movie.csv; exports of these
Half stars are kept: stars are then stored in steps of 0.5, and meta.json says so.
"""

import argparse
import contextlib
import itertools
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import preprocessing  # noqa: F401 - it says what to do where packages are missing, before they are imported

# isort: split
from preprocessing import building, command, indexing  # before pyarrow, whose allocator it chooses

# isort: split

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from preprocessing.dataset import DataError, exit_code
from preprocessing.dataset import folder as folders
from preprocessing.dataset.tables import (
    Layout,
    Names,
    decode,
    encoding_of,
    layout_of,
    named_positions,
    read_table,
    split_line,
)
from preprocessing.lines import DAY_ZERO
from preprocessing.splitting import SplitPlan
from preprocessing.titles import Titles, is_movie_id

NO_TIME = np.iinfo(np.int64).min
CANONICAL = ("u1", "u2", "u3", "u4", "u5")
HEAD_BYTES = 1 << 16  # of a rating file, by which its layout is found
EARLIEST_S, LATEST_S = 631_152_000, 4_102_444_800  # 1990 and 2100, in seconds since 1970
UNITS = {1: "seconds", 10**3: "thousandths of a second", 10**6: "millionths of a second",
         10**9: "billionths of a second"}
NEEDED = ("user_id", "movie_id", "stars")
COLUMNS: Names = {  # in the order of a file without header
    "user_id": ("userid", "user", "uid", "customerid", "reviewerid", "memberid", "profileid"),
    "movie_id": ("movieid", "itemid", "movie", "item", "mid", "filmid", "film", "titleid"),
    "stars": ("rating", "stars", "score", "ratingvalue", "userrating"),
    "time": ("timestamp", "time", "tstamp", "datetime", "date", "ratedat", "unixtime", "ratingdate", "ratingtimestamp"),
}
TITLE_COLUMNS: Names = {
    "movie_id": ("movieid", "itemid", "mid", "filmid", "titleid", "id"),
    "title": ("title", "movietitle", "filmtitle", "primarytitle", "name", "movie", "film", "moviename"),
    "year": ("year", "releaseyear", "yearofrelease", "startyear", "releasedate"),
}
TITLE_FILES = {".dat": ("movies.dat",), ".csv": ("movies.csv", "movie.csv"), "": ("u.item",)}  # by the ratings' suffix
TIMES = {  # what pyarrow's reader makes of a text itself
    r"\d{1,19}": pa.int64(), r"\d{1,18}\.\d*": pa.float64(),
    r"\d{4}-\d\d-\d\d([ T]\d\d:\d\d(:\d\d)?)?": pa.timestamp("s"),
}
DATE = r"^(?P<first>\d{1,4})[-/.](?P<second>\d{1,2})[-/.](?P<third>\d{1,4})(?:[ T,].*)?$"
YEAR = re.compile(r"\s*\(\s*((?:1[89]|20)\d\d)\s*(?:[-/\u2010-\u2015]\s*(?:\d{0,4}|[IVX]+|present)\s*)?\)+")
_UNIX_EPOCH = int((np.datetime64("1970-01-01") - DAY_ZERO).astype(int))


@dataclass
class RawRatings:
    """The columns of one or more rating files (R)."""

    user_id: np.ndarray  # int64 (R,)
    movie_id: np.ndarray  # int64 (R,)
    stars: np.ndarray  # float64 (R,)
    seconds: np.ndarray  # int64 (R,), since 1970; zero where the file has no timestamps


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 1, 130 or 143, see `exit_code`."""
    args = parse_args(argv)
    return exit_code(lambda: preprocess(args), args.out_dir, lambda: f"{args.out_dir} is as it was")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the flags."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw_dir", type=Path, required=True, metavar="DIR", help="folder of the raw files")
    command.add_flags(parser, ("auto", "latest", "random", *CANONICAL),
                      "how test ratings are chosen: each user's latest; at random; u1 .. u5: those of MovieLens-100K; "
                      "auto: latest where there are timestamps, else random (default: auto)")
    args = parser.parse_args(argv)
    command.check_flags(parser, args)
    return args


def preprocess(args: argparse.Namespace) -> building.Statistics:
    """Make the data set and print its summary; return what was counted and timed."""
    start = time.perf_counter()
    rating_files, titles_file = find_files(args.raw_dir, args.split)
    statistics = building.Statistics()
    with folders.replace_dataset(args.out_dir) as folder:
        with statistics.timed("parse"):
            titles = read_titles(titles_file)
            by_file = [read_ratings(path) for path in rating_files]
            raw = RawRatings(*(np.concatenate([getattr(ratings, name) for ratings in by_file])
                               for name in RawRatings.__dataclass_fields__))
        if not len(raw.user_id):
            raise DataError(f"{rating_files[0]} holds no rating")
        method = args.split
        if method == "auto":
            method = "latest" if raw.seconds.any() else "random"
        if method == "latest" and not raw.seconds.any():
            raise DataError(f"{rating_files[0]} has no timestamps to split by; use --split random")
        with statistics.timed("index"):
            step = 0.5 if (raw.stars % 1).any() else 1
            index, keys = index_ratings(raw, titles.movie_id, step)
        plan = SplitPlan(method, args.test_fraction, args.latest_n, args.val_fraction, args.seed,
                         val_method="latest" if method == "latest" else "random")
        try:
            if method in CANONICAL:
                test = by_file[1]
                pairs = (np.searchsorted(index.user_id, test.user_id) * len(index.movie_id)
                         + np.searchsorted(index.movie_id, test.movie_id))
                plan.test_pairs = np.sort(pairs)
            rated_ids = np.unique(raw.movie_id)
            meta = {"name": "movielens", "num_rated_movies": len(rated_ids),
                    "sources": [command.describe_file(path) for path in (*rating_files, titles_file)]}
            catalogue = building.Catalogue(*command.align_titles(titles, index.movie_id), step,
                                           (0.5, 5) if step == 0.5 else (1, 5))
            partition = indexing.Partition(0, len(index.user_id), keys)
            meta = building.write_dataset(folder, index, [partition], catalogue, plan, meta, statistics)
        except indexing.PairError as error:
            raise _locate(error, rating_files) from None
    command.print_summary(args, meta, titles, rated_ids, statistics, time.perf_counter() - start)
    return statistics


def find_files(raw_dir: Path, split: str) -> tuple[list[Path], Path]:
    """Find the rating files and the title file; of a canonical split, the second rating file holds the test pairs."""
    if not raw_dir.is_dir():
        raise DataError(f"{raw_dir} is no folder; name the one of the MovieLens files with --raw_dir")
    if split in CANONICAL:
        rating_files = [raw_dir / f"{split}.base", raw_dir / f"{split}.test"]
    else:
        rating_files = [path for pattern in ("u.data", "ratings*.dat", "ratings.csv", "rating.csv")
                        for path in sorted(raw_dir.glob(pattern))][:1]
    missing = [path for path in rating_files if not path.exists()]
    if missing or not rating_files:
        raise DataError(f"{missing[0] if missing else raw_dir / 'u.data, ratings.dat or ratings.csv'} not found; name "
                        "the folder of the MovieLens files with --raw_dir")
    names = TITLE_FILES[rating_files[0].suffix] if rating_files[0].suffix in TITLE_FILES else TITLE_FILES[""]
    found = [raw_dir / name for name in names if (raw_dir / name).exists()]
    if not found:
        raise DataError(f"{raw_dir / names[0]} not found; it comes with {rating_files[0].name}")
    return rating_files, found[0]


def read_ratings(path: Path) -> RawRatings:
    """Read a rating file: columns of user, movie, stars and, where it is there, the time, by the names of its header;
    without a header in this order.

    pyarrow reads it as numbers, as they mostly are; where it cannot, as text, of which numbers and times are made.

    Raises:
        DataError: a header without one of the first three (its names are listed); a line that is no rating, stars that
            are no half star from 0.5 to 5, or a time that nobody could have meant; with its line number.
    """
    form = form_of(path)
    columns = None
    if form.time_type is not None:
        with contextlib.suppress(pa.ArrowInvalid):
            columns = _read_columns(path, form, {"user_id": pa.int64(), "movie_id": pa.int64(), "stars": pa.float64(),
                                                 "time": form.time_type})
    if columns is None or any(column.null_count for column in columns.values()):
        try:
            text = _read_columns(path, form, dict.fromkeys(COLUMNS, pa.string()))
        except pa.ArrowInvalid as error:
            raise _uneven_line(path, form, str(error)) from None
        columns = {name: _numbers(column, np.nan if name == "stars" else -1) if name != "time" else column
                   for name, column in text.items()}
    user_id, movie_id, stars = (np.asarray(columns[name]) for name in NEEDED)
    seconds, time_problem = np.zeros(len(user_id), np.int64), "has a time that is none"
    if "time" in columns:
        seconds, time_problem = _seconds(columns["time"])
    bad = {
        "is no rating": (user_id < 0) | (movie_id < 0) | np.isnan(stars),
        "has a movie id that is no number below 2147483648": movie_id >= 2**31,
        "has stars that are no half star from 0.5 to 5": ~((stars >= 0.5) & (stars <= 5) & (stars * 2 % 1 == 0)),
        time_problem: seconds == NO_TIME,
    }
    first = {problem: int(rows.argmax()) for problem, rows in bad.items() if rows.any()}
    if first:
        problem = min(first, key=lambda name: first[name])
        number, line = next(itertools.islice(_data_lines(path, form), first[problem], None))
        raise DataError(f"{path}, line {number}: {line[:60]!a} {problem}")
    return RawRatings(user_id, movie_id, stars, seconds)


@dataclass
class Form:
    """How a rating file is written."""

    layout: Layout
    encoding: str
    num_skipped: int  # lines before the first rating
    num_fields: int
    positions: dict[str, int]  # of the columns user_id, movie_id, stars and perhaps time
    time_type: pa.DataType | None  # by which pyarrow reads the times; None: not as a number, nor as a plain date


def form_of(path: Path) -> Form:
    """Find out from its beginning how a rating file is written."""
    with open(path, "rb") as file:
        data = file.read(HEAD_BYTES)
        is_whole = not file.read(1)
    head = decode(data)
    if not is_whole:
        head = head[:head.rfind("\n") + 1]
    layout = layout_of(head, COLUMNS)
    if layout.header is not None:
        positions = named_positions(path, COLUMNS, NEEDED, layout)
    else:
        positions = {name: position for position, name in enumerate(COLUMNS) if position < max(len(layout.first), 3)}
    data_rows = layout.rows if layout.header is not None else [layout.first, *layout.rows]
    times = [row[positions["time"]] for row in data_rows if positions.get("time", len(row)) < len(row)]
    time_type = next((kind for pattern, kind in TIMES.items() if all(re.fullmatch(pattern, text) for text in times)),
                     None)
    return Form(layout, encoding_of(data), layout.first_line - (layout.header is None),
                max(len(layout.first), max(positions.values()) + 1), positions, time_type)


def _read_columns(path: Path, form: Form, types: dict[str, pa.DataType]) -> dict[str, pa.ChunkedArray]:
    """Read the columns of a rating file; raise ArrowInvalid at a line of other fields."""
    layout, source, delimiter, encoding = form.layout, str(path), form.layout.separator, form.encoding
    if layout.separator == "::":  # of which pyarrow knows nothing
        text = path.read_bytes()
        if encoding != "utf-8-sig":
            text, encoding = decode(text).encode(), "utf-8-sig"
        source, delimiter = pa.BufferReader(text.replace(b"::", b"\t")), "\t"
    names = [str(position) for position in range(form.num_fields)]
    wanted = {column: names[position] for column, position in form.positions.items()}
    table = csv.read_csv(
        source, csv.ReadOptions(column_names=names, skip_rows=form.num_skipped,
                                encoding="utf8" if encoding == "utf-8-sig" else encoding),
        csv.ParseOptions(delimiter=delimiter, quote_char='"' if layout.is_quoted else False),
        csv.ConvertOptions(column_types={wanted[column]: types[column] for column in wanted}, check_utf8=False,
                           include_columns=list(wanted.values()), null_values=[""], strings_can_be_null=False,
                           timestamp_parsers=[csv.ISO8601]))
    return {column: table[name] for column, name in wanted.items()}


def _numbers(text: pa.ChunkedArray, missing: float) -> np.ndarray:
    """Return numbers, int64 or, if `missing` is one, float64; `missing` where a text is none."""
    is_whole = not np.isnan(missing)
    text = pc.utf8_trim_whitespace(text)
    sound = pc.match_substring_regex(text, r"^\d{1,18}(\.0*)?$" if is_whole else r"^\d{1,9}([.,]\d*)?$")
    plain = pc.replace_substring_regex(text, r"[.,]0*$", "") if is_whole else pc.replace_substring(text, ",", ".")
    kind = pa.int64() if is_whole else pa.float64()
    return np.asarray(pc.cast(pc.if_else(sound, plain, str(missing)), kind))


def _seconds(times: pa.ChunkedArray) -> tuple[np.ndarray, str]:
    """Return times as seconds since 1970, int64, NO_TIME where nobody could have meant them; and what to say of these.

    Numbers are dates as 20000730; or seconds, or thousandths, millionths or billionths of them, whichever makes the
    largest a time before 2100. Zeros alone, or empty cells, say nothing. Of a date and time the date counts, as it is
    written.
    """
    if pa.types.is_string(times.type):
        times = pc.utf8_trim_whitespace(times)
        are_numbers = pc.match_substring_regex(times, r"^\d{1,19}(\.\d*)?$")
        if not pc.any(pc.not_equal(times, "")).as_py():
            return np.zeros(len(times), np.int64), ""
        if np.asarray(are_numbers).mean() < 0.5:
            seconds = _seconds_of_dates(times)
            if seconds is None:
                return np.full(len(times), NO_TIME), "has a date: nothing tells whether month or day comes first"
            return _possible(seconds), "has a date that is none since 1990"
        times = pc.cast(pc.if_else(are_numbers, times, "-1"), pa.float64())
    if pa.types.is_timestamp(times.type):
        seconds = np.asarray(times).astype("datetime64[s]").astype(np.int64)
        return _possible(seconds), "has a date that is none since 1990"
    numbers = np.asarray(times)
    if not numbers.any():
        return np.zeros(len(numbers), np.int64), ""
    if numbers.min() >= 1900_01_01 and numbers.max() <= 2100_12_31:
        numbers = numbers.astype(np.int64)
        seconds = _seconds_of(numbers // 10_000, numbers // 100 % 100, numbers % 100)
        return _possible(seconds), "has a time that is none since 1990"
    unit = next((unit for unit in UNITS if numbers.max() < LATEST_S * unit), max(UNITS))
    seconds = np.floor_divide(numbers, unit).astype(np.int64)
    return _possible(seconds), f"has a time that is none since 1990 in {UNITS[unit]}"


def _seconds_of_dates(text: pa.ChunkedArray) -> np.ndarray | None:
    """Return dates, and whatever stands behind them, as seconds since 1970, int64, NO_TIME where there is none.

    Of 7/30/2000 and 30/7/2000 the month is the place in which no number of all exceeds 12; None if that is either.
    """
    fields = pc.extract_regex(text, DATE)
    first, second, third = (np.asarray(pc.cast(pc.fill_null(pc.struct_field(fields, name), "0"), pa.int64()))
                            for name in ("first", "second", "third"))
    if first.max() > 99:
        return _seconds_of(first, second, third)
    if first.max() <= 12 and second.max() <= 12 and (first != second).any():
        return None
    return _seconds_of(third, first, second) if second.max() > 12 >= first.max() else _seconds_of(third, second, first)


def _seconds_of(year: np.ndarray, month: np.ndarray, day: np.ndarray) -> np.ndarray:
    """Return dates as seconds since 1970, NO_TIME where there is no such date."""
    sound = (year >= 1000) & (year <= 9999) & (month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)
    begin = ((np.where(sound, year, 1970) - 1970) * 12 + np.where(sound, month, 1) - 1).astype("datetime64[M]")
    date = begin.astype("datetime64[D]") + np.where(sound, day, 1) - 1
    sound &= date.astype("datetime64[M]") == begin
    return np.where(sound, date.astype("datetime64[s]").astype(np.int64), NO_TIME)


def _possible(seconds: np.ndarray) -> np.ndarray:
    """Return times, NO_TIME in place of those at which nobody has rated a movie for others."""
    return np.where((seconds >= EARLIEST_S) & (seconds < LATEST_S), seconds, NO_TIME)


def read_titles(path: Path) -> Titles:
    """Read u.item, movies.dat or movies.csv; a year stands in parentheses in a title, or in a column of its own.

    Raises:
        DataError: a line without id and title, or an id twice; with its line number.
    """
    table = read_table(path, TITLE_COLUMNS, ("movie_id", "title"), lambda frame: ("movie_id", "title"))
    frame, rows = table.frame.reindex(columns=list(TITLE_COLUMNS), fill_value=""), {}
    for number, movie_id, text, written in zip(frame.index, *(frame[name] for name in TITLE_COLUMNS), strict=True):
        movie_id = re.sub(r"\.0*$", "", movie_id)
        if not is_movie_id(movie_id) or not text or int(movie_id) in rows:
            row = f"{movie_id} {text}"[:60]
            raise DataError(f"{path}, line {number}: {row!a} is no movie id and title, or its id stands above already")
        year, title = year_and_title(text)
        if not year and (found := re.match(r"(1[89]|20)\d\d(?!\d)", written)):
            year = int(found[0])
        rows[int(movie_id)] = year, title
    ids = sorted(rows)
    return Titles(np.array(ids, np.int64), np.array([rows[k][0] for k in ids], np.int16), [rows[k][1] for k in ids])


def year_and_title(text: str) -> tuple[int, str]:
    """Return the last year in parentheses, of a range the first, 0 if there is none; and the title without it."""
    years = list(YEAR.finditer(text))
    if not years:
        return 0, text.strip()
    title = f"{text[:years[-1].start()]}{text[years[-1].end():]}".strip()
    return int(years[-1][1]), title or text.strip()


def index_ratings(raw: RawRatings, title_ids: np.ndarray, stars_step: float) -> tuple[indexing.Index, np.ndarray]:
    """Number users and movies and pack the ratings into keys, int64 (R,)."""
    user_id, user_idx, count = np.unique(raw.user_id, return_inverse=True, return_counts=True)
    movie_id = np.union1d(title_ids, raw.movie_id)
    day = raw.seconds // 86_400
    layout = indexing.KeyLayout(len(user_id), len(movie_id), int(day.max() - day.min()) + 1)
    index = indexing.Index(user_id, movie_id, np.concatenate([[0], np.cumsum(count)]),
                           int(day.min()) + _UNIX_EPOCH, layout)
    stars = np.round(raw.stars / stars_step).astype(np.int64)
    return index, layout.pack(user_idx, day - day.min(), np.searchsorted(movie_id, raw.movie_id), stars)


def _data_lines(path: Path, form: Form) -> Iterator[tuple[int, str]]:
    """Yield number and text of every line that holds a rating."""
    with open(path, encoding=form.encoding, errors="surrogateescape") as file:
        for number, line in enumerate(file, start=1):
            if number > form.num_skipped and (text := line.rstrip("\n")):
                yield number, text


def _uneven_line(path: Path, form: Form, reason: str) -> DataError:
    """Find the first line that has more fields or fewer than the first line of the file."""
    for number, line in _data_lines(path, form):
        num_fields = len(split_line(line, form.layout.separator, form.layout.is_quoted))
        if num_fields != form.num_fields:
            return DataError(f"{path}, line {number}: {line[:60]!a} is no rating: {num_fields} fields separated by "
                             f"{form.layout.separator!r}, not {form.num_fields} as in the first line")
    return DataError(f"{path} cannot be read as ratings separated by {form.layout.separator!r}: {reason}")


def _locate(error: indexing.PairError, rating_files: list[Path]) -> DataError:
    """Say in which file and line a wrong pair stands."""
    pair = error.user_id, error.movie_id
    lines = ((path, number, line) for path in rating_files for form in [form_of(path)]
             for number, line in _data_lines(path, form) if all(str(key) in line for key in pair) and pair == tuple(
                 int(float(split_line(line, form.layout.separator, form.layout.is_quoted)[form.positions[name]]))
                 for name in ("user_id", "movie_id")))
    path, number, line = next(itertools.islice(lines, error.occurrence - 1, None))
    return DataError(f"{path}, line {number}: {line[:60]!a} is wrong: {error}")


if __name__ == "__main__":
    sys.exit(main())
