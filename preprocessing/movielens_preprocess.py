"""Turn MovieLens' files into a data set of the same form as Netflix's.

    python preprocessing/movielens_preprocess.py --raw_dir ml-100k --split u1 --out_dir data/u1

Reads from --raw_dir whichever of these it holds:
    u.data, u.item                  MovieLens-100K; with u1.base, u1.test .. u5.base, u5.test its five splits too
    ratings*.dat, movies.dat        MovieLens-1M and -10M, with or without the column of timestamps
    ratings.csv, movies.csv         MovieLens-20M and later; Kaggle's rating.csv, movie.csv; exports of these
Half stars are kept: stars are then stored in steps of 0.5, and meta.json says so.
"""

import argparse
import codecs
import itertools
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from preprocessing import building, command, indexing  # before pyarrow, whose allocator it chooses

# isort: split

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from preprocessing.dataset import DataError, exit_code
from preprocessing.dataset import folder as folders
from preprocessing.dataset.tables import (
    PLAIN_TEXT,
    decode,
    header_positions,
    number_of,
    read_table,
    sniff,
    split_line,
)
from preprocessing.lines import DAY_ZERO
from preprocessing.splitting import SplitPlan
from preprocessing.titles import Titles, is_movie_id

CANONICAL = ("u1", "u2", "u3", "u4", "u5")
HEAD_BYTES = 1 << 16  # of a rating file, by which its form is found
EARLIEST_S, LATEST_S = 631_152_000, 4_102_444_800  # 1990 and 2100, in seconds since 1970
TIME_FORMS = [csv.ISO8601, "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d"]
COLUMNS = {  # names that a header may have for a column, in the form of `plain_name`
    "user_id": ("userid", "user", "uid", "reviewerid"),
    "movie_id": ("movieid", "itemid", "movie", "item", "mid", "filmid"),
    "stars": ("rating", "stars", "score", "ratingvalue"),
    "time": ("timestamp", "time", "tstamp", "datetime", "date", "ratedat"),
}
TITLE_COLUMNS = {"movie_id": ("movieid", "itemid", "id", "mid", "filmid"),
                 "title": ("title", "movietitle", "name", "movie", "film")}
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
    names = {".dat": ["movies.dat"], ".csv": ["movies.csv", "movie.csv"]}.get(rating_files[0].suffix, ["u.item"])
    found = [raw_dir / name for name in names if (raw_dir / name).exists()]
    if not found:
        raise DataError(f"{raw_dir / names[0]} not found; it comes with {rating_files[0].name}")
    return rating_files, found[0]


def read_ratings(path: Path) -> RawRatings:
    """Read a rating file: columns of user, movie, stars and, where it is there, the time, by the names of its header;
    without a header in this order.

    Raises:
        DataError: a header without one of the first three (its names are listed); a line that is no rating, stars that
            are no half star from 0.5 to 5, or a time that nobody could have meant; with its line number.
    """
    form = form_of(path)
    text = form.text.replace(b"::", b"\t") if form.separator == "::" else form.text
    delimiter = "\t" if form.separator == "::" else form.separator
    names = [f"column {position}" for position in range(form.num_fields)]
    wanted = {column: names[position] for column, position in form.positions.items()}
    types = {wanted["user_id"]: pa.int64(), wanted["movie_id"]: pa.int64(),
             wanted["stars"]: pa.string() if form.decimal_comma else pa.float64()}
    if "time" in wanted:
        types[wanted["time"]] = form.time_type
    try:
        table = csv.read_csv(
            pa.BufferReader(text), csv.ReadOptions(column_names=names, skip_rows=form.has_header),
            csv.ParseOptions(delimiter=delimiter, quote_char=False if form.separator in PLAIN_TEXT else '"'),
            csv.ConvertOptions(column_types=types, include_columns=list(wanted.values()), null_values=[""],
                               strings_can_be_null=True, timestamp_parsers=TIME_FORMS))
        if form.decimal_comma:
            position = table.column_names.index(wanted["stars"])
            point = pc.replace_substring(table[wanted["stars"]], ",", ".")
            table = table.set_column(position, wanted["stars"], pc.cast(point, pa.float64()))
    except pa.ArrowInvalid:
        raise _bad_line(path, form) from None
    if any(table[name].null_count for name in wanted.values()):
        raise _bad_line(path, form)
    columns = {column: table[name].to_numpy() for column, name in wanted.items()}
    stars, movie_id = columns["stars"], columns["movie_id"]
    sound = (stars >= 0.5) & (stars <= 5) & (stars * 2 % 1 == 0) & (movie_id >= 0) & (movie_id < 2**31)
    if not (sound & (columns["user_id"] >= 0)).all():
        raise _bad_line(path, form)
    seconds = _seconds(columns.pop("time")) if "time" in columns else np.zeros(len(table), np.int64)
    if seconds is None:
        raise _bad_line(path, form)
    return RawRatings(**columns, seconds=seconds)


@dataclass
class Form:
    """How a rating file is written."""

    text: bytes  # of the whole file, in UTF-8 or an encoding whose digits are the same
    separator: str
    has_header: bool
    num_fields: int
    positions: dict[str, int]  # of the columns user_id, movie_id, stars and perhaps time
    decimal_comma: bool
    time_type: pa.DataType

    def fields(self, line: str) -> dict[str, str]:
        """Return the fields of a line by column; what a short line lacks is empty."""
        fields = split_line(line, self.separator)
        return {column: fields[position].strip() if position < len(fields) else ""
                for column, position in self.positions.items()}


def form_of(path: Path) -> Form:
    """Find out from its beginning how a rating file is written."""
    text = path.read_bytes()
    if text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in text[:200]:
        text = decode(text).encode()
    text = text.removeprefix(codecs.BOM_UTF8)
    lines = [line for line in decode(text[:HEAD_BYTES]).split("\n") if line.strip()] or [""]
    separator = sniff("\n".join(lines))
    first = [field.strip() for field in split_line(lines[0], separator)]
    has_header = not all(_is_number(field) for field in first[:3])
    data = split_line(lines[min(int(has_header), len(lines) - 1)], separator)
    if has_header and any(name and not _is_number(name) for name in first) and not text[:1].isdigit():
        positions = header_positions(COLUMNS, first)
        if missing := [column for column in COLUMNS if column != "time" and column not in positions]:
            raise DataError(f"{path}, line 1: no column is named for {', '.join(missing)}; its names are "
                            f"{', '.join(repr(name) for name in first)}")
    else:  # a first line that is no rating is named as such when the file is read
        has_header = False
        positions = {column: position for position, column in enumerate(COLUMNS)
                     if position < max(len(first), 3)}
    stars, time = (data[positions[name]].strip() if positions.get(name, len(data)) < len(data) else ""
                   for name in ("stars", "time"))
    return Form(text, separator, has_header, max(len(first), len(data), 3), positions, "," in stars,
                pa.int64() if re.fullmatch(r"-?\d*", time) else pa.float64() if _is_number(time)
                else pa.timestamp("s"))


def _seconds(time: np.ndarray) -> np.ndarray | None:
    """Return times as seconds since 1970, int64; None where nobody could have meant them.

    Numbers are seconds, or thousandths, millionths or billionths of them, whichever makes all of them times since 1990.
    """
    if time.dtype.kind == "M":
        seconds = time.astype("datetime64[s]").astype(np.int64)
    else:
        size = float(np.abs(time).max(initial=0))
        unit = next((unit for unit in (1, 10**3, 10**6, 10**9) if size / unit < LATEST_S), None)
        if unit is None or not np.isfinite(size):
            return None
        seconds = np.floor_divide(time, unit).astype(np.int64)
    return seconds if len(seconds) == 0 or (seconds.min() >= EARLIEST_S and seconds.max() < LATEST_S) else None


def read_titles(path: Path) -> Titles:
    """Read u.item, movies.dat or movies.csv; a year stands in parentheses in a title.

    Raises:
        DataError: a line without id and title, or an id twice; with its line number.
    """
    table = read_table(path, TITLE_COLUMNS, ("movie_id", "title"), lambda fields: fields[0].isdigit())
    for column in ("movie_id", "title"):
        if column not in table.frame:
            raise DataError(f"{path}, line 1: no column is named for {column}; found: "
                            f"{', '.join(map(repr, table.named.values())) or 'one column'}")
    rows: dict[int, tuple[int, str]] = {}
    columns = table.frame["movie_id"], table.frame["title"]
    for number, movie_id, title in zip(table.frame.index, *columns, strict=True):
        if not is_movie_id(movie_id) or not title or int(movie_id) in rows:
            row = f"{movie_id} {title}"[:60]
            raise DataError(f"{path}, line {number}: {row!a} is no movie id and title, or its id stands above already")
        rows[int(movie_id)] = year_and_title(title)
    ids = sorted(rows)
    return Titles(np.array(ids, np.int64), np.array([rows[k][0] for k in ids], np.int16), [rows[k][1] for k in ids])


def year_and_title(text: str) -> tuple[int, str]:
    """Return the last year in parentheses, of a range the first, 0 if there is none; and the title without it."""
    years = list(re.finditer(r"\s*\((\d{4})\s*(?:[-\u2010-\u2015]\s*\d{0,4}\s*)?\)+", text))
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


def _bad_line(path: Path, form: Form) -> DataError:
    """Find the first line that is no rating."""
    for number, line in enumerate(decode(form.text).split("\n"), start=1):
        if (form.has_header and number == 1) or not line.strip():
            continue
        problem, fields = None, form.fields(line)
        if not (fields["user_id"].isdigit() and _is_number(fields["stars"]) and fields["movie_id"].isdigit()):
            problem = "is no rating"
        elif not is_movie_id(fields["movie_id"]):
            problem = "has a movie id that is no number below 2147483648"
        elif not 0.5 <= number_of(fields["stars"]) <= 5 or number_of(fields["stars"]) * 2 % 1:
            problem = "has stars that are no half star from 0.5 to 5"
        elif "time" in fields and not _is_time(fields["time"], form):
            problem = "has a time that is none since 1990"
        if problem:
            return DataError(f"{path}, line {number}: {line[:60]!a} {problem}")
    return DataError(f"{path} cannot be read as ratings separated by {form.separator!r}")


def _is_time(text: str, form: Form) -> bool:
    """Tell whether a time is written as the first one of its file, and can be meant."""
    try:
        if form.time_type == pa.timestamp("s"):
            return _seconds(np.array([text.replace(" ", "T")], "datetime64[s]")) is not None
        return _is_number(text) and _seconds(np.array([float(text)])) is not None
    except (ValueError, OverflowError):
        return False


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-?\d+([.,]\d+)?", text) is not None


def _locate(error: indexing.PairError, rating_files: list[Path]) -> DataError:
    """Say in which file and line a wrong pair stands."""
    pair = str(error.user_id), str(error.movie_id)
    lines = ((path, number, line) for path in rating_files for form in [form_of(path)]
             for number, line in enumerate(decode(form.text).split("\n"), start=1)
             if (fields := form.fields(line))["user_id"] == pair[0] and fields["movie_id"] == pair[1])
    path, number, line = next(itertools.islice(lines, error.occurrence - 1, None))
    return DataError(f"{path}, line {number}: {line[:60]!a} is wrong: {error}")


if __name__ == "__main__":
    sys.exit(main())
