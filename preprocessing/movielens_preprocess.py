"""Turn MovieLens' files into a data set of the same form as Netflix's.

    python preprocessing/movielens_preprocess.py --raw_dir ml-100k --split u1 --out_dir data/u1

Reads from --raw_dir whichever of these it holds:
    u.data, u.item                  MovieLens-100K; with u1.base, u1.test .. u5.base, u5.test its five splits too
    ratings*.dat, movies.dat        MovieLens-1M and -10M, with or without the column of timestamps
    ratings.csv, movies.csv         MovieLens-20M and later; Kaggle's rating.csv, movie.csv; exports of these
Half stars are kept: stars are then stored in steps of 0.5, and meta.json says so.
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

from preprocessing.dataset import DataError
from preprocessing.dataset import folder as folders
from preprocessing.dataset.tables import Names
from preprocessing.rating_table import RawRatings, TableFile, numbers_of, open_table, read_columns, whole_numbers_of
from preprocessing.scales import Scale
from preprocessing.table_building import build_dataset
from preprocessing.times import NO_TIME, seconds_of
from preprocessing.titles import read_title_table

CANONICAL = ("u1", "u2", "u3", "u4", "u5")
WHOLE_STARS, HALF_STARS = Scale(1, 5, 1), Scale(0.5, 5, 0.5)
COLUMNS: Names = {
    "user_id": ("userid", "user", "uid", "customerid", "reviewerid", "memberid", "profileid"),
    "movie_id": ("movieid", "itemid", "movie", "item", "mid", "filmid", "film", "titleid"),
    "stars": ("rating", "stars", "score", "ratingvalue", "userrating"),
    "time": ("timestamp", "time", "tstamp", "datetime", "date", "ratedat", "unixtime", "ratingdate", "ratingtimestamp"),
}
TITLE_FILES = {".dat": ("movies.dat",), ".csv": ("movies.csv", "movie.csv"), "": ("u.item",)}  # by the ratings' suffix


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code, see `exit_code`."""
    return command.run(parse_args(argv), preprocess)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the flags."""
    parser = command.new_parser(__doc__)
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
            titles = read_title_table(titles_file)
            files = [open_table(path, COLUMNS) for path in rating_files]
            by_file = [read_ratings(file) for file in files]
        has_halves = any((raw.stars % 1).any() for raw in by_file)
        meta = {"name": "movielens", "sources": [command.describe_file(path) for path in (*rating_files, titles_file)]}
        meta, rated_ids = build_dataset(args, folder, files, by_file, titles, HALF_STARS if has_halves else WHOLE_STARS,
                                        meta, statistics, lists_test=args.split in CANONICAL)
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


def read_ratings(file: TableFile) -> RawRatings:
    """Read a file of user, movie, stars and, where it is there, the time.

    Raises:
        DataError: a line that is no rating, stars that are no half star from 0.5 to 5, or a time that nobody could have
            meant; with its line number.
    """
    columns = read_columns(file, pa.int64())
    user_id, movie_id = (whole_numbers_of(columns[name]) for name in ("user_id", "movie_id"))
    stars = numbers_of(columns["stars"])
    seconds, time_problem = np.zeros(len(user_id), np.int64), "has a time that is none"
    if "time" in columns:
        seconds, time_problem = seconds_of(columns["time"])
    file.refuse({
        "is no rating": (user_id < 0) | (movie_id < 0) | np.isnan(stars),
        "has a movie id that is no number below 2147483648": movie_id >= 2**31,
        "has stars that are no half star from 0.5 to 5": ~((stars >= 0.5) & (stars <= 5) & (stars * 2 % 1 == 0)),
        time_problem: seconds == NO_TIME,
    })
    return RawRatings(user_id, movie_id, stars, seconds)


if __name__ == "__main__":
    sys.exit(main())
