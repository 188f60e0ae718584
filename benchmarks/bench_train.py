"""Time training at Netflix size beside a plain PyTorch script: the same ratings, process and machine.

    python benchmarks/bench_train.py                        20 million ratings; tables of 480,189 users, 17,770 movies
    python benchmarks/bench_train.py --ratings 100480507    all of Netflix; the peak memory is that of main.py, but for
                                                            evaluation and checkpoints
    python benchmarks/bench_train.py --floor                also what the machine could do at best, stage by stage
    python benchmarks/bench_train.py --shape all            whole epochs of data sets of other shapes, with main.py's
                                                            defaults: ratings per user by size of the catalogue
    python benchmarks/bench_train.py --neighbour all        whole epochs of a data set like the demo beside other work,
                                                            with all threads and with one

The ratings are made in memory, at random but of Netflix's shape: how many a user has, how unlike movies' numbers are,
and stars. Measured are, as ratings per second of whole training steps,
    ours      training/engine.py `run_epoch` with main.py's default flags, history in closed form included
    pooled    the same with --without fold_in: pooled history alone
    plain     TensorDataset, DataLoader, nn.Embedding of 64 and an MLP of 128 for users and for movies, dot product,
              dense Adam; batches of 128 and of 8,192 RATINGS. It gets a random 2 million of the ratings, which spares
              it the list of all of them that DataLoader makes
Each for --seconds after a warm-up, in whole steps. Prints a table; the last line is JSON.
"""

import argparse
import contextlib
import json
import platform
import re
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import main as train_command
from benchmarks import train_conditions, train_floor
from benchmarks.train_floor import Clock, Enough, run_epochs
from preprocessing.dataset import Movies, Users
from preprocessing.dataset.machine import peak_rss_mib
from training.batches import DataSet, RatingTensors
from training.build import build_model
from training.engine import RELEVANCE_USERS, Engine, Settings
from training.optimizer import default_batch_size
from training.trainer import Trainer

NETFLIX_USERS, NETFLIX_MOVIES, NETFLIX_RATINGS, NUM_DAYS = 480_189, 17_770, 100_480_507, 2243
MOST_OF_A_USER = 17_653
STARS_SHARES = (0.04596, 0.10084, 0.28673, 0.33589, 0.23058)  # of Netflix, 1 to 5
USER_SPREAD = 1.25  # of the logarithm of a user's number of ratings: with a mean of 209 half of them have 96 or more
MOVIE_SPREAD, MOST_OF_A_MOVIE = 2.15, 41  # the same for movies, and the most popular one's multiple of the mean
USERS_PER_BLOCK = 20_000  # made at a time; as movies, numbers of 15 bits
PLAIN_RATINGS, PLAIN_DIM, PLAIN_HIDDEN = 2_000_000, 64, 128


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.shape or args.neighbour:
        return off_the_bench(args)
    device = torch.device(args.device)
    data = make_dataset(args.ratings, args.seed)
    print(f"{len(data.train):,} ratings of {data.num_users:,} users; device {name_of(device)}, "
          f"CPU threads {torch.get_num_threads()}, {args.batch_size} users a step", flush=True)
    print(f"{'':<22}{'ratings/s':>12}{'ms a step':>12}{'steps':>7}", flush=True)

    def timed(title: str, train: Callable[..., None], *what: object) -> float:
        clock = Clock(args.seconds, device)
        with contextlib.suppress(Enough):
            train(*what, clock)
        print(f"{title:<22}{clock.ratings / clock.elapsed_s:>12,.0f}{1000 * clock.elapsed_s / clock.steps:>12,.2f}"
              f"{clock.steps:>7,}", flush=True)
        return clock.ratings / clock.elapsed_s

    engine = make_engine(data, args.batch_size, device, args.seed)
    ours = timed("ours", run_epochs, engine)
    peak_mib, sent = peak_rss_mib(), sent_bytes(engine)
    gpu_bytes = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    pooled = timed("ours, pooled history", run_epochs,
                   make_engine(data, args.batch_size, device, args.seed, "--without", "fold_in"))
    plain = {size: timed(f"plain, batch {size:,}", train_plain, data.train, size, device) for size in (128, 8192)}
    result = {
        "ratings_per_s": round(ours), "pooled_ratings_per_s": round(pooled),
        "plain_128_ratings_per_s": round(plain[128], 1), "plain_8192_ratings_per_s": round(plain[8192], 1),
        "ratio_plain_128": round(ours / plain[128], 1), "ratio_plain_8192": round(ours / plain[8192], 1),
        "netflix_epoch_s": round(NETFLIX_RATINGS / ours, 1), "peak_rss_mib": round(peak_mib),
        "train_bytes_per_step_sent": sent, "device": name_of(device), "num_threads": torch.get_num_threads(),
        "num_ratings": len(data.train), "batch_size": args.batch_size}
    print(f"ours is {result['ratio_plain_128']:,} times as fast as plain at 128, {result['ratio_plain_8192']:,} times "
          f"at 8,192; an epoch of Netflix in {result['netflix_epoch_s']:,} s; peak {peak_mib:,.0f} MiB; of several "
          f"ranks, each would send gradients of {sent:,} bytes a step")
    if device.type == "cuda":
        result["peak_gpu_mib"] = round(gpu_bytes / 2**20)
        print(f"ours takes {result['peak_gpu_mib']:,} MiB of the GPU at most")
    if args.floor:
        result["floor"] = train_floor.report(engine, args.seconds)
    print(json.dumps(result))
    return 0


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratings", type=int, help="how many, about (default: 20 million; with --shape 200,000, with "
                        "--neighbour 1.7 million)")
    parser.add_argument("--shape", metavar="PER_USER:MOVIES", help="ratings of each user and movies, or all")
    parser.add_argument("--neighbour", choices=["all", *train_conditions.NEIGHBOURS], help="what else the machine does")
    parser.add_argument("--seconds", type=float, default=20, help="of each timing (default: %(default)s)")
    parser.add_argument("--batch_size", type=int, default=default_batch_size(NETFLIX_USERS, NETFLIX_RATINGS)[0],
                        help="users a step of ours (default: %(default)s, that of main.py on all of Netflix)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto",
                        help="auto takes the GPU where there is one (default: auto)")
    parser.add_argument("--threads", "--num_threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--seed", type=int, default=0, help="of all chance (default: %(default)s)")
    parser.add_argument("--floor", action="store_true", help="compare each stage with what the machine could do")
    args = parser.parse_args(argv)
    if args.shape and args.neighbour:
        parser.error("--shape and --neighbour are measured one at a time")
    if args.shape and args.shape != "all" and not re.fullmatch(r"[1-9]\d*:[1-9]\d*", args.shape):
        parser.error(f"--shape {args.shape} is not PER_USER:MOVIES, such as 10:1000, or all")
    if args.ratings is None:
        args.ratings = 200_000 if args.shape else 1_700_000 if args.neighbour else 20_000_000
    if args.ratings < 1000:
        parser.error(f"--ratings must be at least 1000, not {args.ratings}")
    if not 0 < args.seconds < float("inf"):
        parser.error(f"--seconds must be above 0 and finite, not {args.seconds}")
    if args.batch_size < 1:
        parser.error(f"--batch_size must be at least 1, not {args.batch_size}")
    if args.threads is not None and args.threads < 1:
        parser.error(f"--threads must be at least 1, not {args.threads}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda, but this PyTorch finds no GPU; use --device cpu or auto")
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    return args


def off_the_bench(args: argparse.Namespace) -> int:
    """Measure other shapes, or beside neighbours; return the exit code."""
    if args.shape:
        shapes = (train_conditions.SHAPES if args.shape == "all"
                  else [tuple(int(number) for number in args.shape.split(":"))])
        result: object = train_conditions.shape_table(shapes, args.ratings, args.seed)
    else:
        names = list(train_conditions.NEIGHBOURS) if args.neighbour == "all" else [args.neighbour]
        result = train_conditions.neighbour_table(names, args.ratings, args.seed)
    print(json.dumps({"num_threads": torch.get_num_threads(), "rows": result}))
    return 0


# --- what is trained on, and what is trained ---------------------------------------------------------------------


def make_dataset(num_ratings: int, seed: int) -> DataSet:
    """Return a data set of about so many training ratings, of as many users as have them in Netflix on average."""
    train, rng = make_ratings(num_ratings, seed), np.random.default_rng(seed)
    none = RatingTensors(torch.zeros_like(train.offset), train.movie_idx[:0], train.stars[:0], train.day[:0])
    num_users = len(train.offset) - 1
    movies = Movies(np.arange(1, NETFLIX_MOVIES + 1, dtype=np.int32),
                    rng.integers(1920, 2006, NETFLIX_MOVIES, np.int16), [""] * NETFLIX_MOVIES,
                    np.bincount(train.movie_idx.numpy(), minlength=NETFLIX_MOVIES).astype(np.int32))
    meta = {"split": {"method": "latest", "num_train": len(train)},
            "stars_step": 1, "stars_range": [1, 5], "num_days": NUM_DAYS, "num_users": num_users}
    return DataSet(Path(), meta, Users(np.arange(num_users), train.offset.numpy()), movies, train, none, none)


def make_ratings(num_ratings: int, seed: int) -> RatingTensors:
    """Return about so many ratings: log-normal numbers by user and by movie, days in order within a user."""
    rng = np.random.default_rng(seed)
    num_users = min(max(round(num_ratings * NETFLIX_USERS / NETFLIX_RATINGS), 1), NETFLIX_USERS)
    weight = rng.lognormal(sigma=USER_SPREAD, size=num_users)
    counts = np.minimum((weight * (num_ratings - num_users) / weight.sum()).astype(np.int64) + 1, MOST_OF_A_USER)
    popularity = rng.lognormal(sigma=MOVIE_SPREAD, size=NETFLIX_MOVIES)
    popularity = np.minimum(popularity, MOST_OF_A_MOVIE * popularity.mean()).cumsum()
    popularity, stars_bounds = popularity / popularity[-1], np.cumsum(STARS_SHARES)[:-1]
    parts: list[tuple[np.ndarray, ...]] = []
    for first in range(0, num_users, USERS_PER_BLOCK):
        block = counts[first:first + USERS_PER_BLOCK]
        user = np.repeat(np.arange(len(block)), 2 * block)
        movie_idx = torch.searchsorted(torch.from_numpy(popularity), torch.from_numpy(rng.random(len(user)))).numpy()
        draws = np.sort(user * NETFLIX_MOVIES + movie_idx)
        user, movie_idx = np.divmod(draws[np.diff(draws, prepend=-1) > 0], NETFLIX_MOVIES)  # nobody rates a movie twice
        shuffled = np.sort(user << 48 | rng.integers(2**33, size=len(user)) << 15 | movie_idx)  # of a user
        user, movie_idx = shuffled >> 48, shuffled & 2**15 - 1
        start = np.searchsorted(user, np.arange(len(block)))
        chosen = np.arange(len(user)) - start[user] < block[user]  # of the draws, as many as he shall have
        user, movie_idx = user[chosen], movie_idx[chosen]
        day = np.sort(user * NUM_DAYS + rng.integers(NUM_DAYS, size=len(user))) % NUM_DAYS
        stars = 1 + np.searchsorted(stars_bounds, rng.random(len(user)))
        counts[first:first + USERS_PER_BLOCK] = np.bincount(user, minlength=len(block))
        parts.append((movie_idx.astype(np.int16), stars.astype(np.uint8), day.astype(np.int16)))
    columns = (np.concatenate(column) for column in zip(*parts, strict=True))
    return RatingTensors(*map(torch.from_numpy, (np.append(0, counts.cumsum()), *columns)))


def make_engine(data: DataSet, batch_size: int, device: torch.device, seed: int, *flags: str) -> Engine:
    """Return what main.py would train a data set with, its table of users as long as Netflix's."""
    args = train_command.parse_args(["--blend", "user", "--seed", str(seed), *flags])
    torch.manual_seed(seed)
    model = build_model(args, data)
    side = model.user_based
    side.user_embedding = torch.empty(NETFLIX_USERS, side.config.user_dim).normal_(std=0.05)
    engine = Trainer(model.to(device), data, Settings(batch_size=batch_size, seed=seed)).engines[0]
    engine.relevance_every = max(NETFLIX_USERS // RELEVANCE_USERS, 1)  # as on all of Netflix
    return engine


def sent_bytes(engine: Engine) -> int:
    """Return the bytes of gradients that each of several ranks would send a step, on average."""
    without, whole = (sum(gradient.nbytes for gradient in engine.shared_gradients(relevance))
                      for relevance in (None, engine.relevance))
    return without + (whole - without) // engine.relevance_every


class PlainTowers(nn.Module):
    """What one writes first."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList([nn.Embedding(size, PLAIN_DIM) for size in (NETFLIX_USERS, NETFLIX_MOVIES)])
        self.towers = nn.ModuleList([
            nn.Sequential(nn.Linear(PLAIN_DIM, PLAIN_HIDDEN), nn.ReLU(), nn.Linear(PLAIN_HIDDEN, PLAIN_DIM))
            for _ in self.tables])

    def forward(self, user_idx: torch.Tensor, movie_idx: torch.Tensor) -> torch.Tensor:
        user, movie = (tower(table(index)) for tower, table, index in zip(self.towers, self.tables,
                                                                         (user_idx, movie_idx)))
        return (user * movie).sum(1)


def train_plain(ratings: RatingTensors, batch_size: int, device: torch.device, clock: Clock) -> None:
    """Train the plain script on a sample of the ratings until the clock ends it."""
    torch.manual_seed(0)
    sample = torch.randint(len(ratings), (min(PLAIN_RATINGS, len(ratings)),))
    user_idx = torch.searchsorted(ratings.offset, sample, right=True) - 1
    loader = DataLoader(TensorDataset(user_idx, ratings.movie_idx[sample].long(), ratings.stars[sample].float()),
                        batch_size=batch_size, shuffle=True)
    model = PlainTowers().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    while True:
        for batch in loader:
            users, movies, stars = (column.to(device) for column in batch)
            optimizer.zero_grad()
            nn.functional.mse_loss(model(users, movies), stars).backward()
            optimizer.step()
            clock.update(len(stars))


def name_of(device: torch.device) -> str:
    """Return what the device is called."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})"


if __name__ == "__main__":
    sys.exit(main())
