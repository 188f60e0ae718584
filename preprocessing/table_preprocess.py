"""Turn a table of anyone's ratings into a data set of the same form as Netflix's: a book club's, a course's, a shop's.

    python preprocessing/table_preprocess.py --raw_file ratings.csv --titles_file books.csv --out_dir data/books

Reads a row per rating: user, item, rating and, where it is there, the time; from text with any separator (.csv, .tsv,
.txt ..) or from .parquet. Columns are found by the header's names, in any order, and others are passed over; where the
names are others, the flags --user_column .. give them. Ids are whole numbers or text, times are dates or seconds, and
the scale is any even one: its ends and its step are found from all ratings. Items are called movies from here on.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import preprocessing  # noqa: F401 - it says what to do where packages are missing, before they are imported

# isort: split
from preprocessing import building, command  # before pyarrow, whose allocator it chooses

# isort: split

import numpy as np
import pyarrow as pa

from preprocessing.dataset import DataError, are_text
from preprocessing.dataset import folder as folders
from preprocessing.dataset.tables import (
    COUNTS_TO,
    ITEM_ID_NAMES,
    ITEM_NAMES,
    TITLE_NAMES,
    USER_NAMES,
    Names,
    plain_name,
)
from preprocessing.ids import as_text, first_rows, ids_of, number_ids, unfit_ids
from preprocessing.rating_table import RawRatings, TableFile, numbers_of, open_table, read_columns
from preprocessing.scales import OffScale, Scale, find_scale
from preprocessing.table_building import build_dataset
from preprocessing.times import NO_TIME, seconds_of
from preprocessing.titles import Titles, read_title_table, year_and_title

COLUMNS: Names = {  # of the ratings
    "user_id": USER_NAMES,
    "movie_id": (*ITEM_ID_NAMES, *ITEM_NAMES, *TITLE_NAMES),
    "stars": ("rating", "ratings", "stars", "star", "score", "scores", "grade", "grades", "mark", "marks", "note",
              "points", "ratingvalue", "userrating", "bookrating", "starrating", "overall", "value", "vote"),
    "time": ("timestamp", "time", "datetime", "date", "ratedat", "ratedon", "ratingdate", "ratingtimestamp",
             "ratingtime", "unixtime", "unixreviewtime", "reviewdate", "reviewtime", "tstamp", "created", "createdat"),
    "title": TITLE_NAMES,
}
TITLE_COLUMNS: Names = {  # of the titles, where "book" is a title if an id stands beside it
    "movie_id": (*ITEM_ID_NAMES, "id", *ITEM_NAMES),
    "title": (*TITLE_NAMES, "name", "primarytitle", *ITEM_NAMES),
    "year": ("year", "releaseyear", "yearofrelease", "startyear", "releasedate", "yearofpublication",
             "publicationyear", "originalpublicationyear"),
}
EXPECTED = {"user_id": "users", "movie_id": "items", "stars": "ratings", "time": "times"}
FLAGS = {"user_id": "user_column", "movie_id": "item_column", "stars": "rating_column", "time": "time_column"}


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code, see `exit_code`."""
    return command.run(parse_args(argv), preprocess)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the flags."""
    parser = command.new_parser(__doc__)
    parser.add_argument("--raw_file", type=Path, required=True, metavar="FILE",
                        help="table of the ratings: .parquet, or text with columns")
    parser.add_argument("--titles_file", type=Path, metavar="FILE",
                        help="table of the items' ids and titles (default: titles beside the ids in the ratings, else "
                             "the ids themselves)")
    for column, flag in FLAGS.items():
        parser.add_argument(f"--{flag}", metavar="NAME", help=f"header's name of the column of {EXPECTED[column]} "
                            f"(default: found, such as {', '.join(COLUMNS[column][:4])}"
                            f"{'; none: there are no times' if column == 'time' else ''})")
    parser.add_argument("--scale", type=typed_scale, metavar="LOW:HIGH",
                        help="lowest and highest rating that can be given, such as 1:10; --scale=-10:10 where LOW is "
                             "negative (default: those that were given)")
    command.add_flags(parser, ("auto", "latest", "random"),
                      "how test ratings are chosen: each user's latest; at random; auto: latest where there are times, "
                      "else random (default: auto)")
    args = parser.parse_args(argv)
    command.check_flags(parser, args)
    return args


def typed_scale(text: str) -> tuple[float, float]:
    """Read the value of --scale."""
    low, _, high = text.partition(":")
    try:
        ends = float(low), float(high)
    except ValueError:
        ends = np.nan, np.nan
    if not -np.inf < ends[0] < ends[1] < np.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not LOW:HIGH, two numbers such as 1:10")
    return ends


def preprocess(args: argparse.Namespace) -> building.Statistics:
    """Make the data set and print its summary; return what was counted and timed."""
    start = time.perf_counter()
    statistics = building.Statistics()
    with folders.replace_dataset(args.out_dir) as folder:
        with statistics.timed("parse"):
            file = open_ratings(args)
            raw, written_titles = read_ratings(file)
            scale, found_from = scale_of(file, raw.stars, args.scale)
            raw, titles = with_titles(args, raw, written_titles)
        paths = [args.raw_file, *([args.titles_file] if args.titles_file else [])]
        meta = {"name": args.raw_file.stem, "sources": [command.describe_file(path) for path in paths]}
        meta, rated_ids = build_dataset(args, folder, [file], [raw], titles, scale, meta, statistics, title_by_id=True)
    columns = ", ".join(f"{what} in {file.header.get(column, number)!r}" if column in file.positions else f"no {what}"
                        for number, (column, what) in enumerate(EXPECTED.items(), start=1))
    titled = "" if titles.title else "; titles are the ids (--titles_file names a table of titles)"
    remark = f"scale {scale}, {found_from}\ncolumns: {columns}{titled}"
    command.print_summary(args, meta, titles, rated_ids, statistics, time.perf_counter() - start, remark)
    return statistics


def open_ratings(args: argparse.Namespace) -> TableFile:
    """Find the columns of the file of ratings, those first that flags name.

    Raises:
        DataError: there is no such file, or a column is not found; says what was expected.
    """
    if not args.raw_file.is_file():
        raise DataError(f"{args.raw_file} not found; name the table of the ratings with --raw_file")
    given: Names = {column: (plain_name(name),) for column, flag in FLAGS.items()
                    if (name := getattr(args, flag)) is not None}
    if args.time_column == "none":
        given["time"] = ()
    try:
        file = open_table(args.raw_file, given | {column: names for column, names in COLUMNS.items()
                                                  if column not in given})
    except DataError as error:
        raise DataError(f"{error}; expected are a column of users, one of items and one of ratings; name them with "
                        "--user_column, --item_column, --rating_column") from None
    if file.layout.header is None and given:
        column = next(iter(given))
        raise DataError(f"{file.path} has no header, so --{FLAGS[column]} {getattr(args, FLAGS[column])} names nothing;"
                        " its columns are user, item, rating and, where it is there, time")
    for column in given:
        if given[column] and column not in file.positions:
            raise DataError(f"{file.path}: no column is called {getattr(args, FLAGS[column])!r} (--{FLAGS[column]}); "
                            f"found: {', '.join(map(repr, file.layout.header or []))}")
    return file


def read_ratings(file: TableFile) -> tuple[RawRatings, pa.ChunkedArray | None]:
    """Read the ratings, and the titles beside them where there are any, text (R,).

    Raises:
        DataError: a row without user or item, a rating that is no number, or a time that nobody could have meant; with
            its line.
    """
    columns = read_columns(file, pa.string())
    user_id, movie_id = ids_of(columns["user_id"], 2**63 - 1), ids_of(columns["movie_id"], 2**31)
    stars = numbers_of(columns["stars"])
    seconds, time_problem = np.zeros(len(stars), np.int64), "has no time"
    if "time" in columns:
        seconds, time_problem = seconds_of(columns["time"])
    places = {column: f"column {file.header.get(column, number)!r}" for number, column in enumerate(EXPECTED, start=1)}
    file.refuse({
        f"is no rating: expected a user in {places['user_id']}": unfit_ids(user_id),
        f"is no rating: expected an item in {places['movie_id']}": unfit_ids(movie_id),
        f"is no rating: expected a number in {places['stars']}": ~np.isfinite(stars),
        f"{time_problem} ({places['time']}; expected dates such as 2005-12-31, or seconds since 1970)":
            seconds == NO_TIME,
    })
    return RawRatings(user_id, movie_id, stars, seconds), columns.get("title")


def scale_of(file: TableFile, stars: np.ndarray, given: tuple[float, float] | None) -> tuple[Scale, str]:
    """Return the scale of ratings, and where it comes from.

    Args:
        given: its ends, if a flag names them; else a header such as "rating (of 10)" names the upper one.

    Raises:
        DataError: there are no ratings, all are the same, or one is on no even scale with the others; with its line.
    """
    if not len(stars):
        raise DataError(f"{file.path} holds no rating")
    found_from = "found from the ratings (--scale LOW:HIGH names other ends)"
    low, high = given or (None, None)
    counts_to = COUNTS_TO.search(file.header.get("stars", ""))
    if given:
        found_from = "its ends as --scale names them"
    elif counts_to and counts_to.start():
        high, found_from = float(counts_to[1]), f"its upper end as the column {file.header['stars']!r} names it"
    try:
        return find_scale(stars, low, high), found_from
    except OffScale as error:
        where = file.where(int((stars == error.stars).argmax()))
        raise DataError(f"{where} has a rating, {error.stars:g}, that {error}") from None
    except ValueError as error:
        raise DataError(f"{file.path}: {error}") from None


def with_titles(args: argparse.Namespace, raw: RawRatings,
                written: pa.ChunkedArray | None) -> tuple[RawRatings, Titles]:
    """Return the ratings, and the titles of the items, their ids of the same kind: text, where either are.

    Raises:
        DataError: no item of the ratings is among the titles.
    """
    if args.titles_file is None:
        rated_ids, ranks = number_ids(raw.movie_id)
        if written is None:
            return raw, Titles(rated_ids[:0], np.zeros(0, np.int16), [])
        first = first_rows(ranks, len(rated_ids))
        years_titles = [year_and_title(text) for text in written.take(pa.array(first)).to_pylist()]
        return raw, Titles(rated_ids, np.array([year for year, _ in years_titles], np.int16),
                           [title for _, title in years_titles])
    titles = read_title_table(args.titles_file, TITLE_COLUMNS, with_text_ids=True)
    if are_text(titles.movie_id):
        raw.movie_id = as_text(raw.movie_id)
    elif not isinstance(raw.movie_id, np.ndarray):
        order = titles.movie_id.astype(str).argsort()
        titles = Titles(titles.movie_id.astype(str)[order], titles.year[order], [titles.title[k] for k in order])
    rated_ids, _ = number_ids(raw.movie_id)
    if not np.isin(rated_ids, titles.movie_id).any():
        named = f" (such as {titles.movie_id[0].item()!r})" if len(titles.movie_id) else ""
        raise DataError(f"{args.titles_file}: none of its {len(titles.movie_id):,} ids{named} is an item of "
                        f"{args.raw_file} (such as {rated_ids[0].item()!r}); name another --titles_file, or none")
    return raw, titles


if __name__ == "__main__":
    sys.exit(main())
