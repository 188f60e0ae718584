"""What the preprocessing commands share: flags, the exit code, and the summary that a person reads."""

import argparse
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from preprocessing.building import Statistics
from preprocessing.dataset import exit_code, machine
from preprocessing.titles import Titles

MOST_BARS = 20  # of the histogram of stars in the summary
MOST_TEST = 0.2  # fraction of the ratings; where test takes more, the summary says so
MOST_FILES = 100  # of a folder that meta.json names one by one


def run(args: argparse.Namespace, preprocess: Callable[[argparse.Namespace], object]) -> int:
    """Run a command's work and return its exit code: 0, 1, 130 or 143, see `exit_code`."""
    return exit_code(lambda: preprocess(args), args.out_dir, lambda: f"{args.out_dir} is as it was")


def new_parser(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser without flags, whose help begins with a module's docstring as it stands there."""
    return argparse.ArgumentParser(description=doc, allow_abbrev=False,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)


def add_flags(parser: argparse.ArgumentParser, methods: tuple[str, ...], split_help: str) -> None:
    """Add the flags that all preprocessing commands share."""
    parser.add_argument("--out_dir", type=Path, default=Path("data/processed"), metavar="DIR",
                        help="folder of the data set, replaced as a whole (default: %(default)s)")
    parser.add_argument("--split", choices=methods, default="auto", help=split_help)
    parser.add_argument("--test_fraction", type=float, default=0.1, metavar="F",
                        help="fraction of the ratings in test, for --split random (default: %(default)s)")
    parser.add_argument("--latest_n", type=int, default=9, metavar="N",
                        help="test ratings per user, at most half of theirs, for --split latest (default: %(default)s)")
    parser.add_argument("--val_fraction", type=float, default=0.05, metavar="F",
                        help="fraction in validation of the ratings that test leaves, cut in the same manner "
                             "(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0,
                        help="seed of all random choices in the split (default: %(default)s)")


def check_flags(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with exit code 2 and a sentence where a flag's value cannot be."""
    for name in ("test_fraction", "val_fraction"):
        if not 0 < getattr(args, name) < 1:
            parser.error(f"--{name} must lie between 0 and 1, not {getattr(args, name)}")
    if args.latest_n < 1:
        parser.error(f"--latest_n must be at least 1, not {args.latest_n}")
    if args.latest_n >= 2**31:
        parser.error(f"--latest_n must be below 2^31, not {args.latest_n}")
    if not 0 <= args.seed < 2**63:
        parser.error(f"--seed must be a whole number from 0 to 2^63 - 1, not {args.seed}")


def describe_file(path: Path) -> dict:
    """Return name, size in bytes and SHA-256 of a source file."""
    with open(path, "rb") as file:
        return {"name": path.name, "bytes": path.stat().st_size,
                "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def describe_files(paths: list[Path]) -> list[dict]:
    """Return name, size and SHA-256 of source files; a folder of more than MOST_FILES of them counts as one, with their
    contents one after the other."""
    by_folder: dict[Path, list[Path]] = {}
    for path in paths:
        by_folder.setdefault(path.parent, []).append(path)
    described = []
    for folder, files in by_folder.items():
        if len(files) <= MOST_FILES:
            described += [describe_file(path) for path in files]
            continue
        digest, num_bytes = hashlib.sha256(), 0
        for path in files:
            content = path.read_bytes()
            digest.update(content)
            num_bytes += len(content)
        described.append({"name": folder.name, "files": len(files), "bytes": num_bytes, "sha256": digest.hexdigest()})
    return described


def align_titles(titles: Titles, movie_id: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return year int16 (M,) and title (M,) per movie_idx; a movie without a title gets an empty one."""
    year, title = np.zeros(len(movie_id), np.int16), [""] * len(movie_id)
    positions = np.searchsorted(movie_id, titles.movie_id)
    year[positions] = titles.year
    for movie_idx, text in zip(positions.tolist(), titles.title, strict=True):
        title[movie_idx] = text
    return year, title


def print_summary(args: argparse.Namespace, meta: dict, titles: Titles, rated_ids: np.ndarray,
                  statistics: Statistics, elapsed_s: float, remark: str | None = None) -> None:
    """Print counts, histogram, split and times of a data set; `rated_ids` are the ids of the rated movies."""
    num_ratings, split = meta["num_ratings"], meta["split"]
    num_untitled = len(np.setdiff1d(rated_ids, titles.movie_id))
    print(f"{num_ratings:,} ratings of {meta['num_rated_movies']:,} movies by {meta['num_users']:,} users")
    print(f"{meta['num_movies']:,} movies known: {meta['num_movies'] - len(rated_ids):,} without ratings, "
          f"{num_untitled:,} without a title")
    mean = sum(float(stars) * count for stars, count in meta["histogram"].items()) / num_ratings
    bars = _bars(meta["histogram"])
    highest, width = max(bars.values()), max(3, *map(len, bars))
    for stars, count in bars.items():
        print(f"  {stars:>{width}} stars {count:>12,}  {count / num_ratings:6.1%}  {'#' * round(30 * count / highest)}")
    print(f"  mean {mean:.5f}")
    if remark:
        print(remark)
    split_counts = ", ".join(f"{name} {split[f'num_{name}']:,}" for name in ("train", "validation", "test"))
    print(f"split {split['method']} (seed {split['seed']}): {split_counts}; train and test share no pair")
    if (fraction := split["num_test"] / num_ratings) > MOST_TEST:
        less = {"latest": "--latest_n 1 or --split random" if split["latest_n"] > 1 else "--split random",
                "random": "a smaller --test_fraction"}.get(split["method"], "--split random")
        print(f"test takes {fraction:.0%} of all ratings; {less} leaves more to learn from")
    peak_mib = machine.peak_rss_mib(with_children=True)
    stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in statistics.seconds.items())
    print(f"{elapsed_s:.1f} s ({stages}), {num_ratings / elapsed_s:,.0f} ratings/s, peak memory {peak_mib:,.0f} MiB")
    print(f"written to {args.out_dir}; next: python main.py --data_dir {args.out_dir}")


def _bars(histogram: dict[str, int]) -> dict[str, int]:
    """Return a histogram of at most MOST_BARS entries: of many stars, ranges of equally many steps."""
    if len(histogram) <= MOST_BARS:
        return histogram
    stars = list(histogram)
    low, width = float(stars[0]), (float(stars[-1]) - float(stars[0])) / (MOST_BARS // 2)
    bars: dict[int, list[str]] = {}
    for text in stars:
        bars.setdefault(min(int((float(text) - low) / width), MOST_BARS // 2 - 1), []).append(text)
    return {texts[0] if len(texts) == 1 else f"{texts[0]} to {texts[-1]}": sum(histogram[text] for text in texts)
            for texts in bars.values()}
