"""Time preprocessing from text to a verified data set, beside what people would write instead.

    python benchmarks/bench_preprocess.py                       100,480,507 ratings, 2 GB of text
    python benchmarks/bench_preprocess.py --ratings 10000000
    python benchmarks/bench_preprocess.py --scaling --splits    also 1 M, 10 M and all; also every kind of split
    python benchmarks/bench_preprocess.py --wrappings           also Kaggle's zip and the original tar.gz, beside plain
    python benchmarks/bench_preprocess.py --before DIR          also the command of another checkout, in turn with ours

The raw files are synthetic, in Netflix's layout and sizes, and are made first where --work_dir does not hold them;
archives too (20 minutes of compressing). What is compared runs in turn, --rounds times. On all files, the whole job:
    polars, duckdb    see preprocess_peers.py; what they write is compared with ours
On the first of the four files, side by side:
    pandas   the idiom that people use: read_csv, forward-fill of the header rows, drop them, convert the types
             (ours in memory: the same table and more, every byte validated, users and movies numbered; ours whole:
             also sorted, split, written and verified)
    pyarrow  the floor: pyarrow.csv on the same bytes, header lines blanked beforehand, 2 threads, parse only
Every measurement runs in a process of its own; memory (PSS, sampled) and CPU seconds are those of its process tree.
CPU seconds say more than seconds where other work shares the machine. The last line is JSON. Needs
requirements-bench.txt.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.measuring import in_turn, measure
from benchmarks.preprocess_peers import PACKAGES, checksum, run_duckdb, run_polars
from benchmarks.preprocess_wrappings import WRAPPINGS
from preprocessing import dataset, netflix_preprocess, parsing, synthetic_netflix

NETFLIX_RATINGS = 100_480_507
ROOT = Path(__file__).resolve().parents[1]
PEERS = {"polars": run_polars, "duckdb": run_duckdb}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratings", type=int, default=NETFLIX_RATINGS, help="size (default: that of Netflix)")
    parser.add_argument("--work_dir", type=Path, help="keeps the raw files for the next run (default: a temporary one)")
    parser.add_argument("--raw_dir", type=Path, help="use these raw files instead of making some")
    parser.add_argument("--scaling", action="store_true", help="also measure a hundredth and a tenth of the ratings")
    parser.add_argument("--splits", action="store_true", help="also measure every kind of split")
    parser.add_argument("--wrappings", action="store_true", help="also measure archives of the same files")
    parser.add_argument("--before", type=Path, metavar="DIR", help="also measure the command of another checkout")
    parser.add_argument("--rounds", type=int, default=3, help="of what is measured in turn (default: 3)")
    args = parser.parse_args(argv)
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        print(f"error: {', '.join(missing)} not installed; run: pip install -r requirements-bench.txt", file=sys.stderr)
        return 1
    if sys.platform != "linux":
        print("memory is measured on Linux alone, here it reads 0", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        work_dir = args.work_dir or Path(temporary)
        raw_dir = args.raw_dir or make_raw(work_dir, args.ratings)
        result = whole(raw_dir, work_dir / "out", "auto")
        print_row("all of it", result)
        if args.scaling:
            for size in (args.ratings // 100, args.ratings // 10):
                print_row(f"{size:,} ratings", whole(make_raw(work_dir, size), work_dir / "out", "auto"))
        if args.splits:
            for split in ("latest", "random", "probe"):
                print_row(f"--split {split}", whole(raw_dir, work_dir / "out", split))
        load = measure(run_load, work_dir / "out")
        load_mib, load_s = load.peak_mib, load.result
        frame = measure(run_frame, work_dir / "out")
        history_ms = measure(run_history, work_dir / "out").result
        print(f"into tensors in {load_s:.2f} s, peak {load_mib:,.0f} MiB; into a DataFrame in {frame.seconds:.2f} s, "
              f"peak {frame.peak_mib:,.0f} MiB; one user's history in {history_ms:.2f} ms (median of 200 users, file "
              "open)", flush=True)
        result |= {"load_s": round(load_s, 2), "frame_s": round(frame.seconds, 2),
                   "frame_peak_mib": round(frame.peak_mib), "history_ms": round(history_ms, 3)}
        if args.before:
            commands = {name: (run_command, (tree.resolve(), raw_dir, work_dir / "out"))
                        for name, tree in (("before", args.before), ("ours", ROOT))}
            result["before"] = in_turn("command", commands, args.rounds)
        if args.wrappings:
            archives = {name: (run_preprocess, (make_archive(raw_dir, work_dir / name), work_dir / "out", "latest"))
                        for name in WRAPPINGS}
            plain = {"plain": (run_preprocess, (raw_dir, work_dir / "out", "latest"))}
            result["wrappings"] = in_turn("wrapping", archives | plain, args.rounds)
        result["peers"] = beside_peers(raw_dir, work_dir, args.rounds)
        result |= side_by_side(raw_dir, work_dir)
        print(json.dumps(result))
    return 0


def make_raw(work_dir: Path, num_ratings: int) -> Path:
    """Make raw files with Netflix's numbers of ratings per user and per movie, or as near as the size permits."""
    raw_dir = work_dir / f"raw_{num_ratings}"
    if not (raw_dir / "movie_titles.csv").exists():
        sizes = {"num_users": 480_189, "num_movies": 17_770, "num_ratings": num_ratings}
        if num_ratings != NETFLIX_RATINGS:
            sizes |= {"num_users": max(num_ratings // 209, 1), "num_movies": max(min(num_ratings // 5655, 17_770), 500)}
        print(f"making {num_ratings:,} synthetic ratings ...", flush=True)
        synthetic_netflix.generate(raw_dir, **sizes, seed=0, with_probe=True, quiet=True)
    return raw_dir


def whole(raw_dir: Path, out_dir: Path, split: str) -> dict:
    """Run the command on a folder; return its size, seconds by stage and peak memory."""
    text_bytes = sum(path.stat().st_size for path in raw_dir.glob("combined_data_*.txt"))
    seconds, cpu_s, peak_mib, stages = measure(run_preprocess, raw_dir, out_dir, split)
    num_ratings = stages.pop("num_ratings")
    return {"ratings": num_ratings, "seconds": round(seconds, 2), "cpu_s": round(cpu_s, 2),
            "peak_rss_mib": round(peak_mib),
            "stages": {name: round(value, 2) for name, value in stages.items()},
            "ratings_per_s": round(num_ratings / seconds), "text_mb_per_s": round(text_bytes / seconds / 1e6, 1),
            "ratings_parquet_mib": round((out_dir / "ratings.parquet").stat().st_size / 2**20, 1)}


def print_row(title: str, result: dict) -> None:
    stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in result["stages"].items())
    million = result["ratings"] / 1e6
    print(f"{title:<20} {result['seconds']:6.1f} s ({stages}), CPU {result['cpu_s']:.1f} s; "
          f"{result['ratings_per_s']:,} ratings/s, {result['text_mb_per_s']:.0f} MB/s of text, peak "
          f"{result['peak_rss_mib']:,} MiB; per million {result['seconds'] / million:.3f} s, "
          f"{result['peak_rss_mib'] / million:.1f} MiB; ratings.parquet {result['ratings_parquet_mib']} MiB",
          flush=True)


def make_archive(raw_dir: Path, path: Path) -> Path:
    """Make an archive of raw files, by its name one of WRAPPINGS, where it is not there yet; return it."""
    if not path.exists():
        print(f"making {path.name} ...", flush=True)
        partial = path.with_name(f"partial_{path.name}")
        WRAPPINGS[path.name](raw_dir, partial)
        partial.replace(path)
    return path


def beside_peers(raw_dir: Path, work_dir: Path, num_rounds: int) -> dict:
    """Measure the whole job of the peers and ours in turn, and compare what came out."""
    paths = sorted(raw_dir.glob("combined_data_*.txt"))
    jobs: dict[str, tuple[Callable, tuple]] = {}
    for name, function in PEERS.items():
        (work_dir / name).mkdir(exist_ok=True)
        jobs[name] = function, (paths, work_dir / name)
    figures = in_turn("whole job", jobs | {"ours": (run_preprocess, (raw_dir, work_dir / "out", "latest"))}, num_rounds)
    ours = checksum(work_dir / "out", np.datetime64(dataset.read_meta(work_dir / "out")["day_epoch"]))
    for name in PEERS:
        if checksum(work_dir / name) != ours:
            raise SystemExit(f"error: {name} has written other ratings than ours")
    print(f"all wrote the same {ours[0]:,} ratings, checksum {ours[1]:016x}", flush=True)
    return figures


def side_by_side(raw_dir: Path, work_dir: Path) -> dict:
    """Measure ours, pandas and pyarrow on the first rating file, three rounds in turn; return ratios of medians."""
    first = work_dir / "first"
    first.mkdir(exist_ok=True)
    for name in ("combined_data_1.txt", "movie_titles.csv"):
        shutil.copy(raw_dir / name, first / name)
    path = first / "combined_data_1.txt"
    times: dict[str, list[float]] = {"ours_whole": [], "ours_in_memory": [], "ours_parse": [], "pandas": [],
                                     "pyarrow_parse": []}
    for round_number in range(3):
        seconds, _, _, stages = measure(run_preprocess, first, work_dir / "out_first", "latest")
        times["ours_whole"].append(seconds)
        times["ours_in_memory"].append(stages["parse"] + stages["index"])
        times["ours_parse"].append(measure(run_parse, path).result)
        times["pyarrow_parse"].append(measure(run_pyarrow, path).result)
        if round_number == 0:  # slow, and far from the others
            seconds, _, pandas_mib, _ = measure(run_pandas, path)
            times["pandas"].append(seconds)
    shutil.rmtree(first)
    median = {name: sorted(values)[len(values) // 2] for name, values in times.items()}
    print("first file: " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in median.items())
          + f"; pandas peaks at {pandas_mib:,.0f} MiB")
    return {"first_file_s": {name: round(seconds, 3) for name, seconds in median.items()},
            "pandas_peak_rss_mib": round(pandas_mib),
            "ratio_pandas": round(median["pandas"] / median["ours_in_memory"], 2),
            "ratio_pandas_whole": round(median["pandas"] / median["ours_whole"], 2),
            "ratio_pyarrow_parse": round(median["ours_parse"] / median["pyarrow_parse"], 3)}


# --- what is measured, each in a process of its own --------------------------------------------------------------


def run_preprocess(raw_dir: Path, out_dir: Path, split: str) -> dict:
    """Text to finished data set; returns the seconds by stage and the number of ratings."""
    args = netflix_preprocess.parse_args(["--raw_dir", str(raw_dir), "--out_dir", str(out_dir), "--split", split])
    statistics = netflix_preprocess.preprocess(args)
    return {**statistics.seconds, "num_ratings": int(statistics.split_counts.sum())}


def run_command(tree: Path, raw_dir: Path, out_dir: Path) -> None:
    """The command of a checkout, from its start to its end."""
    subprocess.run([sys.executable, tree / "preprocessing" / "netflix_preprocess.py", "--raw_dir", raw_dir,
                    "--out_dir", out_dir, "--split", "latest"], check=True, capture_output=True)


def run_load(data_dir: Path) -> float:
    """The data set into tensors, as training does; returns seconds, without the import of torch."""
    from training.batches import load_dataset

    start = time.perf_counter()
    load_dataset(data_dir)
    return time.perf_counter() - start


def run_frame(data_dir: Path) -> int:
    """All ratings as a DataFrame, with the import of pandas; returns how many."""
    return len(dataset.ratings_frame(data_dir))


def run_history(data_dir: Path) -> float:
    """One user's ratings from the file, as rec.py reads them; returns the median milliseconds of 200 users."""
    ratings, users = dataset.RatingsFile(data_dir), dataset.UsersFile(data_dir)
    user_id = users.read().user_id
    times = []
    for one in user_id[np.linspace(0, len(user_id) - 1, 200).astype(int)].tolist():
        start = time.perf_counter()
        ratings.read_user(users.find(one))
        times.append(time.perf_counter() - start)
    return 1000 * sorted(times)[len(times) // 2]


def run_parse(path: Path) -> float:
    """Our parse stage alone; returns seconds."""
    start = time.perf_counter()
    parsing.parse_files([path])
    return time.perf_counter() - start


def run_pyarrow(path: Path) -> float:
    """pyarrow's parse alone, of the same bytes with the header lines blanked before the clock starts."""
    import pyarrow as pa
    from pyarrow import csv

    pa.set_cpu_count(2)
    blanked = re.sub(rb"(?m)^\d+:$", b"", path.read_bytes())
    start = time.perf_counter()
    csv.read_csv(pa.BufferReader(blanked), csv.ReadOptions(column_names=["user_id", "stars", "date"]),
                 convert_options=csv.ConvertOptions(column_types={"user_id": pa.int32(), "stars": pa.int8(),
                                                                  "date": pa.date32()}))
    return time.perf_counter() - start


def run_pandas(path: Path) -> int:
    """The idiom of the public notebooks: parse and types only, no index, no split, no file written."""
    import pandas as pd

    frame = pd.read_csv(path, header=None, names=["user_id", "stars", "date"])
    is_header = frame["stars"].isna()
    frame["movie_id"] = frame["user_id"].where(is_header).str.rstrip(":").ffill().astype("int32")
    frame = frame[~is_header]
    frame = frame.assign(user_id=frame["user_id"].astype("int32"), stars=frame["stars"].astype("int8"),
                         date=pd.to_datetime(frame["date"], format="%Y-%m-%d"))
    return len(frame)


if __name__ == "__main__":
    sys.exit(main())
