"""Turn the Netflix Prize's raw text into an indexed, sorted and split data set.

    python preprocessing/netflix_preprocess.py --raw_dir data/raw --out_dir data/processed

Reads ratings (combined_data_*.txt, or training_set's mv_*.txt), movie_titles.csv or .txt and, where it is there,
probe.txt from --raw_dir. That is a folder, or the archive as it was downloaded: Kaggle's zip, or the original
nf_prize_dataset.tar.gz; files in the folder may be .gz, .zip or .tar too. Nothing is unpacked onto the disk. Get it by

    kaggle datasets download -d netflix-inc/netflix-prize-data
    python preprocessing/netflix_preprocess.py --raw_dir netflix-prize-data.zip

(the Download button of its web page gives archive.zip, which is the same).

Writes ratings.parquet, users.parquet, movies.parquet and meta.json (see preprocessing/dataset/) into --out_dir.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import preprocessing  # noqa: F401 - it says what to do where packages are missing, before they are imported

# isort: split
import numpy as np

from preprocessing import building, command, indexing, parsing
from preprocessing.dataset import DataError
from preprocessing.dataset import folder as folders
from preprocessing.dataset.machine import available_bytes
from preprocessing.finding import find_files
from preprocessing.raw_files import RawFile, disk_file, size_of
from preprocessing.splitting import SplitPlan
from preprocessing.titles import read_titles

BYTES_PER_LINE = 20  # of text, about
BYTES_PER_RATING = 10  # of memory at the peak, while the ratings are sorted, split and written
OVERHEAD_BYTES = 400 << 20  # of memory that does not grow with the ratings

# The published totals of the whole Netflix Prize training set, as a check of its parse.
NETFLIX_COUNTS = (100_480_507, 480_189, 17_770)
NETFLIX_HISTOGRAM = {"1": 4_617_990, "2": 10_132_080, "3": 28_811_247, "4": 33_750_958, "5": 23_168_232}


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code, see `exit_code`."""
    return command.run(parse_args(argv), preprocess)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the flags."""
    parser = command.new_parser(__doc__)
    parser.add_argument("--raw_dir", type=Path, default=Path("data/raw"), metavar="DIR",
                        help="folder or archive of the raw files (default: %(default)s)")
    command.add_flags(parser, ("auto", "probe", "latest", "random"),
                      "how test ratings are chosen: probe.txt; each user's latest; at random; auto: the probe where "
                      "probe.txt is there, else latest (default: auto)")
    parser.add_argument("--max_memory", type=int, metavar="MIB",
                        help="sort on disk if the ratings need more memory than this (default: 70 %% of what is free)")
    args = parser.parse_args(argv)
    command.check_flags(parser, args)
    if args.max_memory is not None and args.max_memory < 1:
        parser.error(f"--max_memory must be at least 1 MiB, not {args.max_memory}")
    return args


def preprocess(args: argparse.Namespace) -> building.Statistics:
    """Make the data set and print its summary; return what was counted and timed."""
    start = time.perf_counter()
    rating_files, titles_file, probe_file = find_files(args.raw_dir, args.split)
    probe_files = [probe_file] if probe_file else []
    sources = list(dict.fromkeys(disk_file(file) for file in [*rating_files, titles_file, *probe_files]))
    statistics = building.Statistics()
    with ThreadPoolExecutor(1) as background, folders.replace_dataset(args.out_dir) as folder:
        digests = background.submit(lambda: command.describe_files(sources))
        titles = read_titles(titles_file)
        partition_rows = memory_for_ratings(rating_files, args.max_memory)
        spill = folder / "cells.bin"  # for what is parsed, where memory will not hold it
        with statistics.timed("parse"):
            runs = parsing.parse_files(rating_files, spill=spill if partition_rows else None)
            if not len(runs):
                raise DataError(f"{args.raw_dir} holds rating files without a single rating")
        with statistics.timed("index"):
            index = indexing.index_runs(runs, titles.movie_id)
        plan = SplitPlan("probe" if probe_file else args.split.replace("auto", "latest"), args.test_fraction,
                         args.latest_n, args.val_fraction, args.seed)
        if probe_file:
            with statistics.timed("probe"):
                plan.test_pairs = read_probe(probe_file, runs, index)
        with statistics.timed("index"):
            if partition_rows:
                bounds = partition_bounds(index.offset, partition_rows)
                partitions = indexing.pack_partitions(runs, index, bounds, folder)
                spill.unlink()
            else:
                partitions = [indexing.Partition(0, len(index.user_id), indexing.pack_keys(runs, index))]
        rated_ids = np.unique(runs.movie_ids[runs.lengths > 0])
        del runs  # the partitions hold its memory
        try:
            meta = {"name": "netflix", "num_rated_movies": len(rated_ids), "sources": digests.result()}
            catalogue = building.Catalogue(*command.align_titles(titles, index.movie_id))
            meta = building.write_dataset(folder, index, partitions, catalogue, plan, meta, statistics)
        except indexing.PairError as error:
            raise _locate(error, rating_files if error.in_ratings else probe_files) from None
    command.print_summary(args, meta, titles, rated_ids, statistics, time.perf_counter() - start, known_totals(meta))
    return statistics


def read_probe(probe_file: RawFile, runs: parsing.MovieRuns, index: indexing.Index) -> np.ndarray:
    """Return the test pairs, see `indexing.pair_keys`; print how many are left out as they are not among the ratings.

    Raises:
        DataError: a bad line, a pair that is listed twice, or not one pair among the ratings.
    """
    probe = parsing.parse_files([probe_file], with_stars=False, description="probe")
    try:
        pairs, unrated_ids = indexing.pair_keys(probe, runs, index)
    except indexing.PairError as error:
        raise _locate(error, [probe_file]) from None
    num_missing = len(probe) - len(pairs)
    if not num_missing:
        return pairs
    of_movies = f"; {len(unrated_ids):,} of its movies have no ratings there" if len(unrated_ids) else ""
    if not len(pairs):
        raise DataError(f"{probe_file}: none of its {num_missing:,} pairs is among the ratings{of_movies}; "
                        "use --split latest")
    print(f"{probe_file}: left out {num_missing:,} of {len(probe):,} pairs, which are not among the ratings{of_movies} "
          "(--split latest does without the probe)")
    return pairs


def memory_for_ratings(rating_files: Sequence[RawFile], max_memory_mib: int | None) -> int | None:
    """Return how many ratings may be sorted in memory at once, or None where all of them fit."""
    max_bytes = max_memory_mib * 2**20 if max_memory_mib else 0.7 * available_bytes()
    bytes_for_ratings = max(max_bytes - OVERHEAD_BYTES, max_bytes / 10)
    needed_bytes = sum(size_of(file) for file in rating_files) / BYTES_PER_LINE * BYTES_PER_RATING
    return None if needed_bytes <= bytes_for_ratings else int(bytes_for_ratings / BYTES_PER_RATING)


def partition_bounds(offset: np.ndarray, max_rows: int) -> list[int]:
    """Group row groups into ranges of users with at most `max_rows` ratings, or a single row group."""
    bounds, groups = [0], building.row_groups(offset)
    for user, next_user in itertools.pairwise(groups):
        if user > bounds[-1] and offset[next_user] - offset[bounds[-1]] > max_rows:
            bounds.append(user)
    return [*bounds, groups[-1]]


def known_totals(meta: dict) -> str | None:
    """Say whether a data set with the counts of the Netflix Prize has its histogram too; None for other counts."""
    if (meta["num_ratings"], meta["num_users"], meta["num_rated_movies"]) != NETFLIX_COUNTS:
        return None
    if meta["histogram"] == NETFLIX_HISTOGRAM:
        return "counts and histogram are those of the Netflix Prize data"
    return "the counts are those of the Netflix Prize data, the histogram is not"


def _locate(error: indexing.PairError, files: Sequence[RawFile]) -> DataError:
    """Say in which of the files, and in which line, a wrong pair stands."""
    lines = parsing.find_lines(files, int(error.movie_id), int(error.user_id))
    file, offset = next(itertools.islice(lines, error.occurrence - 1, None))
    return parsing.bad_line(file, offset, f"is wrong: {error}")


if __name__ == "__main__":
    sys.exit(main())
