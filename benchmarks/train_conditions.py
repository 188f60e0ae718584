"""Training off the bench: on data sets of other shapes, and beside other work; used by bench_train.py.

Measured are whole epochs as main.py counts them, with its default flags.
"""

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

import main as train_command
from models.ops.ranks import ALONE
from preprocessing.dataset import Movies, Users
from training.batches import DataSet, RatingTensors
from training.build import build_trainer
from training.trainer import Trainer

SHAPES = [(per_user, num_movies) for per_user in (1, 10, 100, 1000) for num_movies in (100, 1000, 10_000, 100_000)]
DEMO = (86, 2000)  # ratings per user and movies of the demo
MOVIE_SPREAD = 1.5  # of the logarithm of a movie's popularity
BURST_S, PAUSE_S, BURST_PROCESSES = 0.05, 0.15, 4  # of a browser that draws a page now and then
NICE = 19  # the lowest priority
NUM_DAYS = 2000


def shaped_dataset(num_ratings: int, per_user: int, num_movies: int, seed: int) -> DataSet:
    """Return a data set of about so many training ratings, as many of every user, and no others.

    Stars are chance; popular movies have more ratings.
    """
    rng = np.random.default_rng(seed)
    num_users = max(num_ratings // per_user, 1)
    bounds = rng.lognormal(sigma=MOVIE_SPREAD, size=num_movies).cumsum()
    pairs = np.zeros(0, np.int64)
    while len(pairs) < 0.95 * num_users * per_user:
        user = rng.integers(num_users, size=num_users * per_user - len(pairs))
        pairs = np.union1d(pairs, user * num_movies + np.searchsorted(bounds, rng.random(len(user)) * bounds[-1]))
    user, movie_idx = np.divmod(pairs, num_movies)
    count = np.bincount(user, minlength=num_users)
    offset = torch.from_numpy(np.concatenate([[0], count.cumsum()]))
    day = np.sort(user * NUM_DAYS + rng.integers(NUM_DAYS, size=len(user))) % NUM_DAYS
    train = RatingTensors(offset, *(torch.from_numpy(column) for column in (
        movie_idx.astype(np.int32), rng.integers(1, 6, len(user), np.uint8), day.astype(np.int16))))
    none = RatingTensors(torch.zeros_like(offset), train.movie_idx[:0], train.stars[:0], train.day[:0])
    movies = Movies(np.arange(1, num_movies + 1, dtype=np.int32), rng.integers(1920, 2006, num_movies, np.int16),
                    [""] * num_movies, np.bincount(movie_idx, minlength=num_movies).astype(np.int32))
    meta = {"split": {"method": "latest", "num_train": len(train), "num_validation": 0}, "stars_step": 1,
            "stars_range": [1, 5], "num_days": NUM_DAYS, "num_users": num_users}
    return DataSet(Path(), meta, Users(np.arange(num_users), offset.numpy()), movies, train, none, none)


def trainer_of(data: DataSet, seed: int) -> Trainer:
    """Return what main.py would train a data set with."""
    return build_trainer(train_command.parse_args(["--seed", str(seed)]), data, torch.device("cpu"), ALONE)


def shape_table(shapes: list[tuple[int, int]], num_ratings: int, seed: int) -> list[dict]:
    """Measure data sets of shapes (ratings per user, movies); print a row each and return them."""
    print(f"{'ratings per user':>16}{'movies':>10}{'ratings':>12}{'users':>10}{'towers':>8}{'steps':>8}"
          f"{'s an epoch':>12}{'ratings/s':>12}", flush=True)
    rows = []
    for per_user, num_movies in shapes:
        if per_user > num_movies / 2:
            continue
        data = shaped_dataset(num_ratings, per_user, num_movies, seed)
        trainer = trainer_of(data, seed)
        _, *others = (next(trainer.epochs()) for _ in range(3))
        best = min(others, key=lambda metrics: metrics.seconds)
        rows.append({"per_user": per_user, "movies": num_movies, "ratings": len(data.train), "users": data.num_users,
                     "towers": len(trainer.engines), "steps": sum(engine.num_steps for engine in trainer.engines),
                     "epoch_s": round(best.seconds, 3), "ratings_per_s": round(best.ratings_per_s)})
        print(f"{per_user:>16,}{num_movies:>10,}{len(data.train):>12,}{data.num_users:>10,}{len(trainer.engines):>8}"
              f"{rows[-1]['steps']:>8,}{best.seconds:>12.3f}{best.ratings_per_s:>12,.0f}", flush=True)
    return rows


def neighbour_table(names: list[str], num_ratings: int, seed: int, rounds: int = 3) -> dict[str, dict]:
    """Measure epochs beside neighbours, in turn with all threads and with one; print a row each and return them."""
    data, most = shaped_dataset(num_ratings, *DEMO, seed), torch.get_num_threads()
    trainer = trainer_of(data, seed)
    next(trainer.epochs())
    print(f"{len(data.train):,} ratings of {data.num_users:,} users\n{'beside':<22}{f'{most} threads':>14}"
          f"{'1 thread':>14}{'ratio':>8}", flush=True)
    rows = {}
    for name in names:
        rates: dict[int, list[float]] = {most: [], 1: []}
        with NEIGHBOURS[name]():
            for threads in [most, 1] * rounds:
                torch.set_num_threads(threads)
                trainer.metrics.clear()
                rates[threads].append(next(trainer.epochs()).ratings_per_s)
            torch.set_num_threads(most)
        all_threads, one = (float(np.median(rates[threads])) for threads in (most, 1))
        rows[name] = {"ratings_per_s": round(all_threads), "one_thread_ratings_per_s": round(one),
                      "ratio": round(all_threads / one, 3)}
        print(f"{name:<22}{all_threads:>14,.0f}{one:>14,.0f}{all_threads / one:>8.2f}", flush=True)
    return rows


# --- neighbours --------------------------------------------------------------------------------------------------


def spin(until: float | None = None) -> None:
    """Keep a core busy."""
    while until is None or time.monotonic() < until:
        pass


def burst() -> None:
    """Keep several cores busy for a moment, now and then."""
    while True:
        end = time.monotonic() + BURST_S
        processes = [multiprocessing.Process(target=spin, args=(end,)) for _ in range(BURST_PROCESSES)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        time.sleep(PAUSE_S)


def train_forever(num_ratings: int) -> None:
    """Train a data set of the same shape."""
    while True:
        trainer = trainer_of(shaped_dataset(num_ratings, *DEMO, 1), 1)
        for _ in trainer.epochs():
            pass


@contextlib.contextmanager
def beside(work: Callable[..., None], *args: object, warm_up_s: float = 0.0) -> Iterator[None]:
    """Run work in a process of its own meanwhile."""
    process = multiprocessing.get_context("spawn").Process(target=work, args=args)
    process.start()
    time.sleep(warm_up_s)
    try:
        yield
    finally:
        process.kill()
        process.join()


@contextlib.contextmanager
def at_lowest_priority() -> Iterator[None]:
    """Run at the lowest priority beside a process that keeps a core busy; it stays so for this process."""
    with beside(spin):
        os.nice(NICE)
        yield


NEIGHBOURS: dict[str, Callable[[], contextlib.AbstractContextManager]] = {
    "nothing": contextlib.nullcontext,
    "spin": lambda: beside(spin),
    "train": lambda: beside(train_forever, 500_000, warm_up_s=15.0),
    "bursts": lambda: beside(burst),
    "spin, at nice 19": at_lowest_priority,  # last: a process cannot go back
}
