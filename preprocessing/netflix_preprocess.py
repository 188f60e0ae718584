"""Turn the Netflix Prize's raw text into an indexed, sorted and split data set.

    python preprocessing/netflix_preprocess.py --raw_dir data/raw --out_dir data/processed

Reads combined_data_*.txt, movie_titles.csv and, where it is there, probe.txt from --raw_dir.
Writes ratings.parquet, users.parquet, movies.parquet and meta.json (see preprocessing/dataset.py) into --out_dir.
"""

import argparse
import errno
import hashlib
import itertools
import os
import resource
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from preprocessing import assembly, dataset, indexing, parsing
from preprocessing.dataset import DataError
from preprocessing.splitting import SplitPlan
from preprocessing.titles import Titles, read_titles

BYTES_PER_LINE = 20  # of text, about
BYTES_PER_RATING = 10  # that are in memory at the peak, while the ratings are sorted, split and written
OVERHEAD_BYTES = 400 << 20  # what the processes take that does not grow with the ratings

# The published totals of the whole Netflix Prize training set, as a check of its parse.
NETFLIX_COUNTS = (100_480_507, 480_189, 17_770)
NETFLIX_HISTOGRAM = {"1": 4_617_990, "2": 10_132_080, "3": 28_811_247, "4": 33_750_958, "5": 23_168_232}


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code: 0 done, 1 the input or the disk is at fault, 130 interrupted."""
    args = parse_args(argv)
    try:
        preprocess(args)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        place = error.filename or args.out_dir
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or error
        print(f"error: {place}: {reason}; {args.out_dir} is as it was", file=sys.stderr)
    except MemoryError:
        print(f"error: out of memory; {args.out_dir} is as it was", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"\ninterrupted; {args.out_dir} is as it was", file=sys.stderr)
        return 130
    else:
        return 0
    return 1


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the flags."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw_dir", type=Path, default=Path("data/raw"), metavar="DIR",
                        help="folder of the raw files (default: %(default)s)")
    parser.add_argument("--out_dir", type=Path, default=Path("data/processed"), metavar="DIR",
                        help="folder of the data set, replaced as a whole (default: %(default)s)")
    add_split_flags(parser, ("auto", "probe", "latest", "random"),
                    "how test ratings are chosen: probe.txt; each user's latest; at random; auto: the probe where "
                    "probe.txt is there, else latest (default: auto)")
    parser.add_argument("--max_memory", type=int, metavar="MIB",
                        help="sort on disk what would need more memory than this (default: 70 %% of what is free)")
    args = parser.parse_args(argv)
    check_split_flags(parser, args)
    if args.max_memory is not None and args.max_memory < 1:
        parser.error(f"--max_memory must be at least 1 MiB, not {args.max_memory}")
    return args


def add_split_flags(parser: argparse.ArgumentParser, methods: tuple[str, ...], split_help: str) -> None:
    """Add the flags that all preprocessing commands share."""
    parser.add_argument("--split", choices=methods, default="auto", help=split_help)
    parser.add_argument("--test_fraction", type=float, default=0.1, metavar="F",
                        help="share of the ratings in test, for --split random (default: %(default)s)")
    parser.add_argument("--latest_n", type=int, default=9, metavar="N",
                        help="test ratings per user, at most half of his, for --split latest (default: %(default)s)")
    parser.add_argument("--val_fraction", type=float, default=0.05, metavar="F",
                        help="share of the ratings left by test in validation, cut in the same manner "
                             "(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all chance in the split (default: %(default)s)")


def check_split_flags(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with exit code 2 and a sentence where a flag's value cannot be."""
    for name in ("test_fraction", "val_fraction"):
        if not 0 < getattr(args, name) < 1:
            parser.error(f"--{name} must lie between 0 and 1, not {getattr(args, name)}")
    if args.latest_n < 1:
        parser.error(f"--latest_n must be at least 1, not {args.latest_n}")
    if not 0 <= args.seed < 2**63:
        parser.error(f"--seed must be a whole number from 0 to 2^63 - 1, not {args.seed}")


def preprocess(args: argparse.Namespace) -> dict:
    """Do the work and print the summary; return meta.json."""
    start = time.perf_counter()
    rating_files, titles_file, probe_file = find_files(args.raw_dir, args.split)
    sources = [*rating_files, titles_file, *([probe_file] if probe_file else [])]
    statistics = assembly.Statistics()
    with ThreadPoolExecutor(1) as background, dataset.replace_dataset(args.out_dir) as folder:
        digests = background.submit(lambda: [describe_file(path) for path in sources])
        titles = read_titles(titles_file)
        partition_rows = memory_for_ratings(rating_files, args.max_memory)
        with statistics.timed("parse"):
            runs = parsing.parse_files(rating_files, spill=folder / "cells.bin" if partition_rows else None)
            if not len(runs):
                raise DataError(f"{rating_files[0].parent} holds combined_data files without a single rating")
        with statistics.timed("index"):
            index = indexing.index_runs(runs, titles.movie_id)
            if partition_rows:
                bounds = partition_bounds(index.offset, partition_rows)
                partitions = indexing.pack_partitions(runs, index, bounds, folder)
                runs.cells.unlink()
            else:
                partitions = [indexing.Partition(0, len(index.user_id), indexing.pack_keys(runs, index))]
                runs.cells = None
        plan = SplitPlan("probe" if probe_file else args.split.replace("auto", "latest"), args.test_fraction,
                         args.latest_n, args.val_fraction, args.seed)
        rated = np.unique(runs.movie_ids[runs.lengths > 0])
        try:
            if probe_file:
                with statistics.timed("probe"):
                    probe = parsing.parse_files([probe_file], with_stars=False, description="probe")
                    plan.test_pairs = indexing.pair_keys(probe, index)
            meta = {"name": "netflix", "num_rated_movies": len(rated), "sources": digests.result()}
            catalogue = assembly.Catalogue(*_align_titles(titles, index.movie_id))
            meta = assembly.write_dataset(folder, index, partitions, catalogue, plan, meta, statistics)
        except indexing.PairError as error:
            raise _locate(error, rating_files, probe_file) from None
    print_summary(args, meta, titles, rated, statistics, time.perf_counter() - start)
    return meta


def memory_for_ratings(rating_files: list[Path], max_memory_mib: int | None) -> int | None:
    """Return how many ratings may be sorted in memory at once, or None where all of them fit."""
    most_bytes = max_memory_mib * 2**20 if max_memory_mib else 0.7 * available_bytes()
    for_ratings = max(most_bytes - OVERHEAD_BYTES, most_bytes / 10)
    estimate = sum(path.stat().st_size for path in rating_files) / BYTES_PER_LINE * BYTES_PER_RATING
    return None if estimate <= for_ratings else int(for_ratings / BYTES_PER_RATING)


def partition_bounds(offset: np.ndarray, most_rows: int) -> list[int]:
    """Group row groups into ranges of users with at most so many ratings each, but at least one row group."""
    bounds, groups = [0], assembly.row_groups(offset)
    for user, after in itertools.pairwise(groups):
        if offset[after] - offset[bounds[-1]] > most_rows:
            bounds.append(user)
    return [*bounds, groups[-1]]


def available_bytes() -> int:
    """Return how much memory is free for use now, in bytes."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def find_files(raw_dir: Path, split: str) -> tuple[list[Path], Path, Path | None]:
    """Find the rating files, in the order of their first movie header, the title file, and the probe if it is used.

    Raises:
        DataError: the folder or a file that is needed is not there.
    """
    if not raw_dir.is_dir():
        raise DataError(f"{raw_dir} is no folder; put the raw files there, or make some: "
                        f"python preprocessing/synthetic_netflix.py --out_dir {raw_dir}")
    rating_files = [path for path in raw_dir.iterdir() if path.match("combined_data_*.txt")]
    if not rating_files:
        raise DataError(f"{raw_dir} holds no combined_data_*.txt; name the folder that does with --raw_dir")
    titles_file, probe_file = raw_dir / "movie_titles.csv", raw_dir / "probe.txt"
    if not titles_file.exists():
        raise DataError(f"{titles_file} not found; it comes with the rating files")
    if split == "probe" and not probe_file.exists():
        raise DataError(f"{probe_file} not found; put it there, or choose --split latest")

    def first_movie(path: Path) -> tuple[int, str]:
        with open(path, "rb") as file:
            header = file.readline(20).strip().removesuffix(b":")
        return int(header) if header.isdigit() else 0, path.name

    use_probe = split in ("auto", "probe") and probe_file.exists()
    return sorted(rating_files, key=first_movie), titles_file, probe_file if use_probe else None


def describe_file(path: Path) -> dict:
    """Return name, size in bytes and SHA-256 of a source file."""
    with open(path, "rb") as file:
        return {"name": path.name, "bytes": path.stat().st_size,
                "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def print_summary(args: argparse.Namespace, meta: dict, titles: Titles, rated: np.ndarray,
                  statistics: assembly.Statistics, elapsed_s: float) -> None:
    """Print what a person wants to know about the data set."""
    num_ratings, split = meta["num_ratings"], meta["split"]
    untitled = len(np.setdiff1d(rated, titles.movie_id))
    print(f"{num_ratings:,} ratings of {meta['num_rated_movies']:,} movies by {meta['num_users']:,} users")
    print(f"{meta['num_movies']:,} movies known: {meta['num_movies'] - len(rated):,} without ratings, "
          f"{untitled:,} without a title")
    mean = sum(float(stars) * count for stars, count in meta["histogram"].items()) / num_ratings
    widest = max(meta["histogram"].values())
    for stars, count in meta["histogram"].items():
        print(f"  {stars:>3} stars {count:>12,}  {count / num_ratings:6.1%}  {'#' * round(30 * count / widest)}")
    print(f"  mean {mean:.5f}")
    if (num_ratings, meta["num_users"], meta["num_rated_movies"]) == NETFLIX_COUNTS:
        same = meta["histogram"] == NETFLIX_HISTOGRAM
        print("counts and histogram are those of the Netflix Prize data" if same else
              "the counts are those of the Netflix Prize data, the histogram is not")
    parts = ", ".join(f"{name} {split[f'num_{name}']:,}" for name in ("train", "validation", "test"))
    print(f"split {split['method']} (seed {split['seed']}): {parts}; train and test share no pair")
    peak_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                + resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) / (1024 if sys.platform == "linux" else 2**20)
    stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in statistics.seconds.items())
    print(f"{elapsed_s:.1f} s ({stages}), {num_ratings / elapsed_s:,.0f} ratings/s, peak memory {peak_mib:,.0f} MiB")
    print(f"written to {args.out_dir}; next: python main.py --data_dir {args.out_dir}")


def _align_titles(titles: Titles, movie_id: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return year int16 (M,) and title (M,) per movie_idx; a movie that has no title gets an empty one."""
    year, title = np.zeros(len(movie_id), np.int16), [""] * len(movie_id)
    places = np.searchsorted(movie_id, titles.movie_id)
    year[places] = titles.year
    for place, text in zip(places.tolist(), titles.title, strict=True):
        title[place] = text
    return year, title


def _locate(error: indexing.PairError, rating_files: list[Path], probe_file: Path | None) -> DataError:
    """Say in which file and line a wrong pair stands."""
    files = rating_files if error.in_ratings else [probe_file]
    places = (place for path in files for place in parsing.find_lines(path, error.movie_id, error.user_id))
    path, offset = next(itertools.islice(places, error.occurrence - 1, None))
    return parsing.bad_line(path, offset, f"is wrong: {error}")


if __name__ == "__main__":
    sys.exit(main())
