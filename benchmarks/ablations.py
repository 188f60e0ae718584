"""Train the towers with each part left out, one at a time: what a part is worth on a data set.

    python benchmarks/ablations.py --data_dir data/processed --seeds 3
    python benchmarks/ablations.py --data_dir data/processed --seeds 3 --rows dates,members

Runs main.py --no-refit, then with the flags of a row beside it (see ROWS), each with the seeds 0 to N-1.
RMSE is of the test part, at the epoch that validation chose. The change is that of a row against the default with the
same seed, its mean and the deviation of these paired differences, a sample's, null for a single seed; above zero the
part helps, and one that a row adds (with_...) where it is below zero. Ratings/s are training ratings times epochs, over
the seconds of training. The last line is JSON.
"""

import argparse
import csv
import json
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from tqdm import tqdm

from benchmarks.compare_accuracy import (
    add_cpu_time,
    check_cpu_time,
    clock,
    exit_code,
    format_cell,
    names_of,
    summarize,
    train_towers,
)
from models.blend import item_based_helps
from models.config import ModelConfig, default_embedding_dim
from preprocessing import dataset
from preprocessing.dataset import DataError

DEFAULT = "default"
ROWS = {  # the flags that leave a part out
    "user_embedding": ["--without", "user_embedding"],
    "pooled_history": ["--without", "pooled_history"],
    "fold_in": ["--without", "fold_in"],
    "history": ["--without", "pooled_history,fold_in"],
    "user_features": ["--without", "user_features"],
    "year": ["--without", "year"],
    "movie_features": ["--without", "movie_features"],
    "raters": ["--without", "raters"],
    "biases": ["--without", "biases"],
    "movie_bias_over_time": ["--without", "movie_bias_over_time"],
    "recent_user_bias": ["--without", "recent_user_bias"],
    "dates": ["--without", "movie_bias_over_time,recent_user_bias"],
    "l2": ["--l2", "0", "--movie_l2", "0"],
    "embedding_l2": ["--embedding_l2", "0"],
    "members": ["--ensemble_size", "1", "--embedding_dim"],  # of one member
    "item_based": ["--blend", "user"],
}


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code: 0 done, 1 the work failed, 130 interrupted."""
    args = parse_args(argv)
    with clock(args.cpu_time):
        return exit_code(ablate, args)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the flags."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, default=Path("data/processed"), metavar="DIR",
                        help="processed data set (default: %(default)s)")
    parser.add_argument("--rows", metavar="NAMES", help=f"comma separated, of: {', '.join(ROWS)} "
                        "(default: all, item_based where the default has one)")
    parser.add_argument("--seeds", type=int, default=3, metavar="N",
                        help="how many: runs with seeds 0 to N-1 (default: %(default)s)")
    add_cpu_time(parser)
    args = parser.parse_args(argv)
    if args.seeds < 1:
        parser.error(f"--seeds must be at least 1, not {args.seeds}")
    check_cpu_time(parser, args)
    args.rows = names_of(parser, "--rows", args.rows, ROWS, "row")
    return args


def ablate(args: argparse.Namespace) -> None:
    """Train everything; print the table and the line of JSON."""
    torch.set_num_threads(args.num_threads)
    meta = dataset.read_meta(args.data_dir)
    for part in ("train", "test"):
        if not meta["split"][f"num_{part}"]:
            raise DataError(f"{args.data_dir} has no {part} ratings; preprocess it with another --split")
    members = ModelConfig.ensemble_size
    member_dim = str(default_embedding_dim(meta["split"]["num_train"], members) // members)
    rows = choose_rows(args.rows, args.data_dir, meta)
    runs = [(name, seed) for seed in range(args.seeds) for name in rows]
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in rows}
    with tqdm(runs, unit=" runs", disable=None) as bar:
        for name, seed in bar:
            bar.set_description(f"{name}, seed {seed}")
            flags = [] if name == DEFAULT else ROWS[name]
            measures = train_row(args.data_dir, [*flags, member_dim] if name == "members" else flags, seed,
                                 args.num_threads)
            measures["change"] = measures["rmse"] - (measured[DEFAULT][seed] if name != DEFAULT else measures)["rmse"]
            measured[name].append(measures)
            bar.write(f"{name}, seed {seed}: RMSE {measures['rmse']:.4f}, {measures['ratings_per_s']:,.0f} ratings/s",
                      file=sys.stderr)
    results = {name: summarize(values, ("rmse", "change", "ratings_per_s", "epochs"))
               for name, values in measured.items()}
    print(f"{args.data_dir}; split {meta['split']['method']}; {meta['split']['num_test']:,} test ratings, {args.seeds} "
          f"seed(s), {args.num_threads} thread(s){', processor time' if args.cpu_time else ''}")
    print(f"{'WITHOUT':<16}{'TEST RMSE':>18}{'CHANGE':>20}{'RATINGS/S':>13}{'EPOCHS':>8}")
    for name, row in results.items():
        change = "-" if name == DEFAULT else format_cell(row["change"], row["change_std"], sign=True)
        print(f"{'(' + DEFAULT + ')' if name == DEFAULT else name:<16}{format_cell(row['rmse'], row['rmse_std']):>18}"
              f"{change:>20}{row['ratings_per_s']:>13,.0f}{row['epochs']:>8.1f}")
    print(json.dumps({"results": results, "flags": {name: ROWS.get(name, []) for name in rows},
                      "data_dir": str(args.data_dir), "seeds": args.seeds, "num_threads": args.num_threads,
                      "cpu_time": args.cpu_time}))


def choose_rows(named: list[str] | None, data_dir: Path, meta: dict) -> list[str]:
    """Return the rows to train, the default first.

    Raises:
        DataError: the movie side is named, and the default has none on this data set.
    """
    both = item_based_helps(meta["num_users"], meta["num_movies"])
    if named is None:
        named = [name for name in ROWS if name != "item_based" or both]
    elif "item_based" in named and not both:
        raise DataError(f"{data_dir} has {meta['num_users']:,} users and {meta['num_movies']:,} movies, for which "
                        "main.py trains no movie side; leave item_based out of --rows")
    return [DEFAULT, *named]


def train_row(data_dir: Path, flags: list[str], seed: int, num_threads: int) -> dict[str, float]:
    """Train once in a temporary folder; return test RMSE, training ratings/s and epochs."""
    with tempfile.TemporaryDirectory() as folder:
        written = train_towers(data_dir, Path(folder), seed, num_threads, ["--no-refit", *flags])
        with open(Path(folder) / "metrics.csv", encoding="utf-8") as file:
            speeds = [float(row["ratings_per_s"]) for row in csv.DictReader(file)]  # of each epoch
    return {"rmse": written["two_tower"]["rmse"], "epochs": len(speeds),
            "ratings_per_s": statistics.harmonic_mean(speeds)}


if __name__ == "__main__":
    sys.exit(main())
