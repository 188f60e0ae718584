"""Measure the memory of each of several ranks: its users' rows, the state of their optimizer, its ratings, and in all.

    python benchmarks/rank_memory.py                            2 million made-up users with 10 ratings each
    python benchmarks/rank_memory.py --data_dir data/processed --ranks 1,2,4,8

All ranks are processes of one thread on this machine, started by torchrun; each runs main.py for one epoch, with
validation, a checkpoint and the measures of the test split. Prints for each number of ranks, of the rank that has most,
    users, rows, optimizer, ratings     what it holds of its users in training, in MiB
    start                               the program before it has read anything: Python, PyTorch, compiled loops
    peak                                the most it has held at any time, in MiB
    private                             the same without files that are mapped, which the system can drop: of the main
                                        rank the checkpoint's rows of all users
The last line is JSON. For Linux.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psutil
import torch

import main as train_command
from models.ops import ranks as processes
from models.ops.ranks import Ranks
from preprocessing import netflix_preprocess, synthetic_netflix
from preprocessing.dataset.machine import peak_rss_mib
from training.batches import DataSet, RatingTensors
from training.report import read_metrics
from training.trainer import Trainer

COLUMNS = ("users", "row_bytes", "optimizer_bytes", "rating_bytes", "start_bytes", "peak_bytes", "private_bytes")
SAMPLE_S = 0.02  # between looks at the private memory


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if args.results is not None:
        return be_a_rank(args)
    with tempfile.TemporaryDirectory(dir=args.temp_dir) as folder:
        if args.data_dir is None:
            args.data_dir = make_dataset(Path(folder), args.num_users, args.num_movies, args.num_ratings)
        print(f"{'ranks':>5}" + "".join(f"{name.removesuffix('_bytes'):>11}" for name in COLUMNS) + f"{'RMSE':>9}")
        rows = []
        for size in args.ranks:
            results = Path(folder, f"{size}")
            results.mkdir()
            of_ranks = run_ranks(args.data_dir, results, size)
            row = {"ranks": size, "val_rmse": round(float(read_metrics(results / "run")["val_rmse"].iloc[-1]), 4),
                   **{name: max(of_rank[name] for of_rank in of_ranks) for name in COLUMNS}, "of_each": of_ranks}
            rows.append(row)
            print(f"{size:>5}{row['users']:>11,}" + "".join(f"{row[name] / 2**20:>11,.1f}" for name in COLUMNS[1:])
                  + f"{row['val_rmse']:>9}", flush=True)
    print(json.dumps({"rows": rows}))
    return 0


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, help="processed data set (default: a made-up one)")
    parser.add_argument("--ranks", type=lambda text: [int(size) for size in text.split(",")], default=[1, 2, 4],
                        help="numbers of ranks, separated by commas (default: 1,2,4)")
    parser.add_argument("--num_users", type=int, default=2_000_000, help="made up (default: %(default)s)")
    parser.add_argument("--num_movies", type=int, default=1000, help="made up (default: %(default)s)")
    parser.add_argument("--num_ratings", type=int, default=20_000_000, help="made up (default: %(default)s)")
    parser.add_argument("--temp_dir", type=Path, help="where data and runs lie meanwhile (default: the system's)")
    parser.add_argument("--results", type=Path, help=argparse.SUPPRESS)  # where a rank leaves its figures
    args = parser.parse_args(argv)
    if min(args.ranks) < 1:
        parser.error(f"--ranks must be at least 1, not {min(args.ranks)}")
    return args


def make_dataset(folder: Path, num_users: int, num_movies: int, num_ratings: int) -> Path:
    """Make up a data set in a process of its own, so that its memory is gone afterwards; return its folder."""
    for module, flags in (
            (synthetic_netflix, ["--out_dir", f"{folder}/raw", "--num_users", f"{num_users}", "--num_movies",
                                 f"{num_movies}", "--num_ratings", f"{num_ratings}"]),
            (netflix_preprocess, ["--raw_dir", f"{folder}/raw", "--out_dir", f"{folder}/data"])):
        subprocess.run([sys.executable, str(module.__file__), *flags], check=True, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL)
    return folder / "data"


def run_ranks(data_dir: Path, results: Path, size: int) -> list[dict]:
    """Run main.py as so many ranks; return the figures of each."""
    ended = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={size}",
                            __file__, "--data_dir", str(data_dir), "--results", str(results)],
                           env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, encoding="utf-8",
                           check=False)
    if ended.returncode:
        raise SystemExit(f"error: {size} ranks have failed\n{ended.stderr}")
    return [json.loads((results / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(size)]


def be_a_rank(args: argparse.Namespace) -> int:
    """Run main.py as one of the ranks that torchrun has started, and leave its figures in a file."""
    figures, build_trainer = {"start_bytes": peak_rss_bytes()}, train_command.build_trainer

    def build(flags: argparse.Namespace, data: DataSet, device: torch.device, ranks: Ranks) -> Trainer:
        trainer = build_trainer(flags, data, device, ranks)
        figures.update(held(trainer, data))
        return trainer

    train_command.build_trainer = build
    private, stop = [0], threading.Event()
    sampler = threading.Thread(target=sample, args=(private, stop))
    sampler.start()
    code = train_command.main(["--data_dir", str(args.data_dir), "--run_dir", str(args.results / "run"), "--epochs",
                               "1", "--no-refit", "--num_threads", "1", "--device", "cpu"])
    stop.set()
    sampler.join()
    figures |= {"peak_bytes": peak_rss_bytes(), "private_bytes": private[0]}
    (args.results / f"{os.environ['RANK']}.json").write_text(json.dumps(figures), encoding="utf-8")
    return code


def held(trainer: Trainer, data: DataSet) -> dict:
    """Return what a rank holds of its users, and of its movies in item-based towers, in training, in bytes."""
    def columns(ratings: RatingTensors) -> list[torch.Tensor]:
        return [ratings.offset, ratings.movie_idx, ratings.stars, ratings.day]

    engines = trainer.engines
    return {"users": len(engines[0].model.user_embedding), "num_ratings": len(data.train),
            "row_bytes": sum(engine.model.user_embedding.nbytes for engine in engines),
            "optimizer_bytes": sum(state.nbytes for engine in engines for state in engine.user_rows.state.values()),
            "rating_bytes": sum(column.nbytes for ratings in (*(engine.ratings for engine in engines),
                                                              trainer.validation, data.test)
                                for column in columns(ratings))}


def peak_rss_bytes() -> int:
    """Return the most that this process has held so far."""
    return round(peak_rss_mib() * 2**20)


def sample(private: list[int], stop: threading.Event) -> None:
    """Keep the most memory of this process, in bytes, that is no mapped file."""
    process = psutil.Process()
    while not stop.wait(SAMPLE_S):
        memory = process.memory_info()
        private[0] = max(private[0], memory.rss - memory.shared)


if __name__ == "__main__":
    processes.leave(main())
