"""Measure how the RMSE falls with the number of coordinates, of the towers and of LIBMF, on one data set or several.

    python benchmarks/coordinates.py --data_dir data/ml1m data/made_up --coordinates 8,16,32,64,128,256

On data of the same size, a made-up data set whose curves fall as those of real data tells what more coordinates would
be worth where there is no real data: see --tastes of preprocessing/synthetic_netflix.py.
    two_tower    main.py --no-refit --relevance_weight 0 --embedding_dim D, with further --main_flags: the RMSE of the
                 epoch that validation chooses, on validation
    libmf        LIBMF with k = D, the lowest RMSE on validation of the penalties and rounds of LIBMF_GRID

Both are fitted to the training part and measured on the validation part; the test part is not read to choose, nor
printed. Prints a row per model, data set and number of coordinates, with the user + movie bias's RMSE before; the last
line is JSON. Needs requirements-bench.txt for LIBMF.
"""

import argparse
import csv
import json
import math
import shlex
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.compare_accuracy import checked, choose_models, exit_code, train_towers
from benchmarks.peers import PACKAGES, PEERS, choose_settings, validation_rmse
from training.batches import DataSet, load_dataset

MODELS = ("libmf", "two_tower")
LIBMF_GRID = {"l2": (0.02, 0.05, 0.08), "nr_iters": (5, 10, 20, 40)}


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code: 0 done, 1 the work failed, 130 interrupted."""
    return exit_code(measure, parse_args(argv))


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the flags."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data_dir", type=Path, nargs="+", default=[Path("data/processed")], metavar="DIR",
        help="processed data sets (default: data/processed)")
    add("--models", metavar="NAMES", help=f"comma separated, of: {', '.join(MODELS)} (default: two_tower)")
    add("--coordinates", type=typed_numbers, default=(8, 16, 32, 64, 128, 256), metavar="D,D",
        help="multiples of 4, the members of the ensemble (default: 8,16,32,64,128,256)")
    add("--seed", type=int, default=0, metavar="N", help="seed of the towers (default: %(default)s)")
    add("--main_flags", type=shlex.split, default=[], metavar="TEXT", help="further flags of main.py, as one text")
    add("--num_threads", type=int, default=1, metavar="N", help="CPU threads (default: %(default)s)")
    return checked(parser, parser.parse_args(argv), MODELS, ("num_threads",))


def typed_numbers(text: str) -> tuple[int, ...]:
    """Read the value of --coordinates."""
    numbers = text.split(",")
    if not all(number.isascii() and number.isdigit() and int(number) and not int(number) % 4 for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} must be multiples of 4, such as 8,32")
    return tuple(sorted({int(number) for number in numbers}))


def measure(args: argparse.Namespace) -> None:
    """Fit everything; print a row for each fit, then the line of JSON."""
    torch.set_num_threads(args.num_threads)
    models = choose_models(args.models, MODELS, PEERS, PACKAGES)
    rows = []
    for data_dir in args.data_dir:
        data = load_dataset(data_dir)
        bias = validation_rmse(PEERS["bias"], data, args.num_threads)
        print(f"{data_dir.resolve().name}: {len(data.train):,} training and {len(data.validation):,} validation "
              f"ratings of {data.num_users:,} users and {data.num_movies:,} movies; user + movie bias {bias:.4f}")
        for model in models:
            for number in args.coordinates:
                fitted = fit_towers(data_dir, number, args) if model == "two_tower" else fit_libmf(data, number, args)
                rows.append({"data_dir": str(data_dir), "model": model, "coordinates": number, "bias": bias, **fitted})
                print(f"{model:<12}{number:>5}{fitted['rmse']:>9.4f}  "
                      + ", ".join(f"{key} {value:g}" for key, value in fitted.items() if key != "rmse"), flush=True)
    print(json.dumps({"rows": rows, "seed": args.seed, "main_flags": args.main_flags,
                      "num_threads": args.num_threads}))


def fit_towers(data_dir: Path, number: int, args: argparse.Namespace) -> dict[str, float]:
    """Return the lowest validation RMSE of the towers' epochs, and the seconds that these took."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        train_towers(data_dir, run_dir, args.seed, args.num_threads,
                     ["--no-refit", "--relevance_weight", "0", "--embedding_dim", str(number), *args.main_flags])
        with open(run_dir / "metrics.csv", encoding="utf-8") as file:
            epochs = list(csv.DictReader(file))
    return {"rmse": min(float(row["val_rmse"]) for row in epochs), "epochs": len(epochs),
            "seconds": math.fsum(float(row["seconds"]) for row in epochs)}


def fit_libmf(data: DataSet, number: int, args: argparse.Namespace) -> dict[str, float]:
    """Return the lowest validation RMSE of LIBMF's penalties and rounds, and these."""
    return choose_settings(LIBMF_GRID, math.prod(map(len, LIBMF_GRID.values())),
                           lambda **settings: validation_rmse(PEERS["libmf"], data, args.num_threads, k=number,
                                                              **settings), "rmse")[0]


if __name__ == "__main__":
    sys.exit(main())
