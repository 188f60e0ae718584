"""Turn MovieLens' files into a data set of the same form as Netflix's.

    python preprocessing/movielens_preprocess.py --raw_dir ml-100k --split u1 --out_dir data/u1

Reads from --raw_dir whichever of these it holds:
    u.data, u.item                  MovieLens-100K; with u1.base, u1.test .. u5.base, u5.test its five splits too
    ratings*.dat, movies.dat        MovieLens-1M and -10M, with or without the column of timestamps
    ratings.csv, movies.csv         MovieLens-20M and later
Half stars are kept: stars are then stored in steps of 0.5, and meta.json says so.
"""

import argparse
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
from pyarrow import csv

from preprocessing.dataset import DataError, exit_code
from preprocessing.dataset import folder as folders
from preprocessing.lines import DAY_ZERO
from preprocessing.splitting import SplitPlan
from preprocessing.titles import Titles, is_movie_id, read_text

CANONICAL = ("u1", "u2", "u3", "u4", "u5")
_NUMBER = rb"\d+(\.\d+)?"
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
        rating_files = [path for pattern in ("u.data", "ratings*.dat", "ratings.csv")
                        for path in sorted(raw_dir.glob(pattern))][:1]
    missing = [path for path in rating_files if not path.exists()]
    if missing or not rating_files:
        raise DataError(f"{missing[0] if missing else raw_dir / 'u.data, ratings.dat or ratings.csv'} not found; name "
                        "the folder of the MovieLens files with --raw_dir")
    titles_file = raw_dir / {".dat": "movies.dat", ".csv": "movies.csv"}.get(rating_files[0].suffix, "u.item")
    if not titles_file.exists():
        raise DataError(f"{titles_file} not found; it comes with {rating_files[0].name}")
    return rating_files, titles_file


def read_ratings(path: Path) -> RawRatings:
    """Read a rating file: user, movie, stars and, where it is there, the time in seconds, separated by , tab or ::.

    Raises:
        DataError: a line that is no rating, or stars that are no half star from 0.5 to 5; with its line number.
    """
    text = path.read_bytes()
    header = path.suffix == ".csv"
    separator = b"," if header else b"::" if path.suffix == ".dat" else b"\t"
    lines = text.split(b"\n", 2)
    first = lines[1] if header and len(lines) > 1 else lines[0]
    names = ["user_id", "movie_id", "stars", "seconds"][:max(first.count(separator) + 1, 3)]
    types = {"user_id": pa.int64(), "movie_id": pa.int64(), "stars": pa.float64(), "seconds": pa.int64()}
    try:
        table = csv.read_csv(pa.BufferReader(text.replace(b"::", b"\t") if separator == b"::" else text),
                             csv.ReadOptions(column_names=names, skip_rows=1 if header else 0),
                             csv.ParseOptions(delimiter="," if header else "\t"),
                             csv.ConvertOptions(column_types=types, null_values=[]))
    except pa.ArrowInvalid:
        raise _bad_line(path, separator, len(names), header) from None
    columns = {name: table[name].to_numpy() for name in names}
    stars, movie_id = columns["stars"], columns["movie_id"]
    sound = (stars >= 0.5) & (stars <= 5) & (stars * 2 % 1 == 0) & (movie_id >= 0) & (movie_id < 2**31)
    if not (sound & (columns["user_id"] >= 0)).all():
        raise _bad_line(path, separator, len(names), header)
    columns.setdefault("seconds", np.zeros(len(table), np.int64))
    return RawRatings(**columns)


def read_titles(path: Path) -> Titles:
    """Read u.item, movies.dat or movies.csv; the year stands in parentheses at the end of a title.

    Raises:
        DataError: a line without id and title, or an id twice; with its line number.
    """
    rows: dict[int, tuple[int, str]] = {}
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        line = line.removesuffix("\r")
        if path.suffix == ".csv":
            match = re.match(r'(\d+),(?:"((?:[^"]|"")*)"|([^,]*)),', line)
            fields = [match[1], (match[2] or match[3] or "").replace('""', '"')] if match else []
        else:
            fields = line.split("::" if path.suffix == ".dat" else "|")[:2]
        if not line.strip() or (number == 1 and path.suffix == ".csv"):
            continue
        if len(fields) < 2 or not is_movie_id(fields[0]) or int(fields[0]) in rows:
            raise DataError(f"{path}, line {number}: {line[:60]!a} is no movie id and title, or its id stands above "
                            "already")
        year = re.search(r"\s*\((\d{4})\)\s*$", fields[1])
        rows[int(fields[0])] = (int(year[1]), fields[1][:year.start()]) if year else (0, fields[1].strip())
    ids = sorted(rows)
    return Titles(np.array(ids, np.int64), np.array([rows[k][0] for k in ids], np.int16), [rows[k][1] for k in ids])


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


def _bad_line(path: Path, separator: bytes, num_fields: int, header: bool) -> DataError:
    """Find the first line that is no rating."""
    pattern = re.compile(separator.join([rb"\d+", rb"\d+", _NUMBER, rb"\d+"][:num_fields]) + rb"\r?")
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if (header and number == 1) or not line.strip():
            continue
        problem, fields = None, line.split(separator)
        if not pattern.fullmatch(line):
            problem = "is no rating"
        elif not is_movie_id(fields[1].decode()):
            problem = "has a movie id that is no number below 2147483648"
        elif not 0.5 <= float(fields[2]) <= 5 or float(fields[2]) * 2 % 1:
            problem = "has stars that are no half star from 0.5 to 5"
        if problem:
            return DataError(f"{path}, line {number}: {line[:60].decode('latin-1')!a} {problem}")
    return DataError(f"{path} cannot be read as ratings separated by {separator.decode()!r}")


def _locate(error: indexing.PairError, rating_files: list[Path]) -> DataError:
    """Say in which file and line a wrong pair stands."""
    pattern = re.compile(rb"%d(,|::|\t)%d\1" % (error.user_id, error.movie_id))
    lines = ((path, number, line) for path in rating_files
             for number, line in enumerate(path.read_bytes().split(b"\n"), start=1) if pattern.match(line))
    path, number, line = next(itertools.islice(lines, error.occurrence - 1, None))
    return DataError(f"{path}, line {number}: {line[:60].decode('latin-1')!a} is wrong: {error}")


if __name__ == "__main__":
    sys.exit(main())
