"""Time recommending at Netflix size: one query, and everybody at once.

    python benchmarks/bench_rec.py                      480,189 users, 17,770 movies, 100 million ratings: some minutes
    python benchmarks/bench_rec.py --users 20000        bounds the users of the last part
    python benchmarks/bench_rec.py --data_dir DIR       with the ratings of a data set instead of random ones

The model is untrained, its movie vectors harder to bound than those of a trained model (`make_run`);
nothing else depends on the weights. The files are in the page cache. Measured are
    query_ms      a history becomes a vector, scores of all movies, ten recommendations; warm, one thread
    history_ms    one user's ratings from the file, one thread
    ask_ms        from a history to ten movies to rate next, with what all such lists share, as `rec.py --ask` does;
                  the same without (ask_again_ms); one thread
    load_ms       from `import torch` to a recommender that is ready, in a new process, imports included
    process       python rec.py --user_id ID beside python -c "import torch", in turn
    all_users     everybody's ten into a parquet file, seen movies excluded, on all cores; beside it the bare matrix
                  products of the same shapes on as many threads, half of them before and half of them after: those
                  of the scores, blocks of users with all movies (all_users_over_matmul), and also those of the users'
                  normal equations (all_users_over_all_products)
Medians. The last line is JSON.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from models.blend import Blend
from models.checkpoint import model_entries, save_checkpoint
from models.config import ModelConfig, default_embedding_dim
from preprocessing import dataset
from preprocessing.dataset import machine, writer
from preprocessing.dataset.schema import FORMAT_VERSION, ratings_schema
from recommending import batch
from recommending.recommender import Recommender

ROOT = Path(__file__).resolve().parents[1]
NETFLIX_USERS, NETFLIX_MOVIES, RATINGS_PER_USER = 480_189, 17_770, 209
USERS_PER_GROUP = 627  # of the random data set: about 131,072 ratings
NUM_DAYS = 2243
COMPILED = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
TOP_N = 10


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, help="use this data set instead of a random one")
    parser.add_argument("--users", type=int, help="all users of a random data set of so many instead of all")
    parser.add_argument("--rounds", type=int, default=7, help="processes started per measurement (default: 7)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data_dir = args.data_dir or make_dataset(folder / "data", NETFLIX_USERS)
        run_dir = make_run(folder / "run", data_dir)
        result = measure(run_single, data_dir, run_dir, env={**COMPILED, "OMP_NUM_THREADS": "1"})
        print(f"query {result['query_ms']:.3f} ms, history {result['history_ms']:.2f} ms, ask {result['ask_ms']:.1f} "
              f"ms, again {result['ask_again_ms']:.1f} ms", flush=True)
        load_ms = [run_load(data_dir, run_dir) for _ in range(args.rounds)]
        result["load_ms"] = round(statistics.median(load_ms), 1)
        print(f"load {result['load_ms']:.1f} ms", flush=True)
        result |= processes(data_dir, run_dir, args.rounds)
        print(f"process {result['process_s']:.3f} s, import torch {result['import_torch_s']:.3f} s, ratio "
              f"{result['process_over_import_torch']:.2f}", flush=True)
        if args.users:
            data_dir = make_dataset(folder / "some", args.users)
            run_dir = make_run(folder / "run_some", data_dir)
        result |= measure(run_all_users, data_dir, run_dir, folder / "recs.parquet")
        print(f"{result['users']:,} users in {result['all_users_s']:.1f} s, the products {result['matmul_s']:.1f} s, "
              f"ratio {result['all_users_over_matmul']:.2f} (with the users' normal equations "
              f"{result['all_users_over_all_products']:.2f}); peak {result['peak_rss_mib']:,} MiB")
        print(json.dumps(result))
    return 0


def make_dataset(folder: Path, num_users: int) -> Path:
    """Write a data set of Netflix's shape, with random ratings that prefer some movies."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    sizes = np.minimum(rng.lognormal(4.6, 1.2, num_users).astype(np.int64) + 1, NETFLIX_MOVIES)
    offset = np.append(0, np.cumsum(np.maximum(sizes * RATINGS_PER_USER // int(sizes.mean()), 1)))
    user_id = np.sort(rng.choice(2_649_429, num_users, replace=False)).astype(np.int64)
    schema = ratings_schema(NETFLIX_MOVIES, NUM_DAYS, "1999-11-11")
    num_train_ratings = np.zeros(NETFLIX_MOVIES, np.int64)
    print(f"making {offset[-1]:,} random ratings ...", flush=True)
    with writer.ratings_writer(folder, schema) as parquet:
        for first in range(0, num_users, USERS_PER_GROUP):
            last = min(first + USERS_PER_GROUP, num_users)
            size = int(offset[last] - offset[first])
            user_idx = np.repeat(np.arange(first, last), np.diff(offset[first:last + 1])).astype(np.int32)
            movie_idx = (NETFLIX_MOVIES * rng.random(size) ** 3).astype(np.int16)
            num_train_ratings += np.bincount(movie_idx, minlength=NETFLIX_MOVIES)
            day = np.sort(user_idx * np.int64(NUM_DAYS) + rng.integers(NUM_DAYS, size=size)) % NUM_DAYS
            stars, split = rng.integers(1, 6, size, np.uint8), np.full(size, dataset.TRAIN, np.uint8)
            writer.write_ratings(parquet, dataset.Ratings(user_idx, movie_idx, stars, day.astype(np.int16), split))
    writer.write_users(folder, dataset.Users(user_id, offset))
    writer.write_movies(folder, dataset.Movies(
        np.arange(1, NETFLIX_MOVIES + 1, dtype=np.int32), rng.integers(1920, 2006, NETFLIX_MOVIES, np.int16),
        [f"A Movie of Some Length {number}" for number in range(NETFLIX_MOVIES)], num_train_ratings.astype(np.int32)))
    writer.write_meta(folder, {"format_version": FORMAT_VERSION, "num_ratings": int(offset[-1]),
                                "num_users": num_users, "num_movies": NETFLIX_MOVIES, "stars_range": [1, 5],
                                "stars_step": 1, "seed": 0, "day_epoch": "1999-11-11", "num_days": NUM_DAYS,
                                "split": {"num_train": int(offset[-1]), "num_validation": 0, "num_test": 0},
                                "fingerprint": hashlib.sha256(b"random ratings of %d users" % num_users).hexdigest()})
    return folder


def make_run(folder: Path, data_dir: Path) -> Path:
    """Write the checkpoint of an untrained model with main.py's default sizes.

    On how unlike movies are depends how many products everybody's lists leave out (recommending/top_k.py). After
    training on MovieLens-1M the movies' biases differ by .75 in units of score (standard deviation), and 16 coordinates
    have 96 % of the variance of all other parts of the scores; here it is .5, and 78 % with random histories.
    """
    folder.mkdir()
    meta, movies = dataset.read_meta(data_dir), dataset.read_movies(data_dir)
    torch.manual_seed(0)
    low, high = meta["stars_range"]
    config = ModelConfig(meta["num_users"], meta["num_movies"], meta["num_days"], low, high, (low + high) / 2,
                         default_embedding_dim(meta["split"]["num_train"], ModelConfig.ensemble_size))
    model = Blend(config, with_item_based=False)
    count = torch.tensor(movies.num_train_ratings).double()
    tower = model.user_based.movie_tower
    tower.set_statistics(torch.tensor(movies.year), count, 0.5 * torch.randn(len(count)).double() * count)
    spread = 0.3 * torch.arange(1, config.member_dim + 1) ** -0.33  # as in each member of that training
    shared = torch.randn(len(count), config.member_dim)
    with torch.no_grad():
        for member in range(config.ensemble_size):
            turn = torch.linalg.qr(torch.randn(config.member_dim, config.member_dim)).Q
            tower.embedding[:, member] = (shared + 0.5 * torch.randn_like(shared)) * spread @ turn
        save_checkpoint(folder / "best.pt", {
            "fingerprint": meta["fingerprint"], **model_entries(model), "settings": {}, "flags": {}, "epoch": 0,
            "train_s": 0.0, "calibrated": False, "refit": False})
    return folder


# --- what is measured, each in a process of its own --------------------------------------------------------------


def run_single(data_dir: Path, run_dir: Path) -> dict:
    """One query, one history and one list to ask for, on one thread, of NumPy's too: OMP_NUM_THREADS is 1."""
    recommender = Recommender.load(run_dir, data_dir)
    user_id = recommender.users.user_id
    chosen = user_id[np.linspace(0, len(user_id) - 1, 200).astype(int)].tolist()
    histories, history_s, query_s = [], [], []
    for one in chosen:
        start = time.perf_counter()
        histories.append(recommender.history_of(one))
        history_s.append(time.perf_counter() - start)
    for history in histories * 2:
        start = time.perf_counter()
        recommender.recommend(history, TOP_N)
        query_s.append(time.perf_counter() - start)
    ask_s: dict[bool, list[float]] = {True: [], False: []}
    for history in histories[::10]:
        for is_first in ask_s:
            if is_first:
                recommender.__dict__.pop("_second_moment", None)
            start = time.perf_counter()
            recommender.ask(history, TOP_N)
            ask_s[is_first].append(time.perf_counter() - start)
    return {name: round(1000 * statistics.median(seconds), 3) for name, seconds in (
        ("query_ms", query_s[len(chosen):]), ("history_ms", history_s), ("ask_ms", ask_s[True]),
        ("ask_again_ms", ask_s[False]))}


def run_load(data_dir: Path, run_dir: Path) -> float:
    """Milliseconds from `import torch` to a recommender that is ready, the sources compiled by an earlier process."""
    program = ("import time, torch; start = time.perf_counter(); from recommending.recommender import Recommender; "
               f"ready = Recommender.load({str(run_dir)!r}, {str(data_dir)!r}); "
               "print(1000 * (time.perf_counter() - start))")
    return float(subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=COMPILED, check=True,
                                capture_output=True).stdout)


def processes(data_dir: Path, run_dir: Path, rounds: int) -> dict:
    """The whole command beside `import torch`, in turn."""
    user_id = str(dataset.read_users(data_dir).user_id[-1])
    ours = [sys.executable, str(ROOT / "rec.py"), "--data_dir", str(data_dir), "--run_dir", str(run_dir), "--user_id",
            user_id]
    times: dict[str, list[float]] = {"ours": [], "torch": []}
    for _ in range(rounds):
        for name, command in (("torch", [sys.executable, "-c", "import torch"]), ("ours", ours)):
            start = time.perf_counter()
            subprocess.run(command, env=COMPILED, check=True, capture_output=True)
            times[name].append(time.perf_counter() - start)
    process_s, import_s = statistics.median(times["ours"]), statistics.median(times["torch"])
    return {"process_s": round(process_s, 3), "import_torch_s": round(import_s, 3),
            "process_over_import_torch": round(process_s / import_s, 3)}


def run_all_users(data_dir: Path, run_dir: Path, out: Path) -> dict:
    """Everybody's list, and the bare matrix products."""
    recommender = Recommender.load(run_dir, data_dir)
    num_users = len(recommender.users.user_id)
    matmul_s = bare_products(recommender, num_users // 2)
    normal_s = bare_normal_equations(recommender)
    start = time.perf_counter()
    batch.recommend_all(recommender, out, TOP_N, run_dir / "best.pt")
    all_users_s = time.perf_counter() - start
    peak_rss_mib = machine.peak_rss_mib()
    matmul_s += bare_products(recommender, num_users - num_users // 2)
    return {"users": num_users, "all_users_s": round(all_users_s, 2), "matmul_s": round(matmul_s, 2),
            "normal_equations_s": round(normal_s, 2), "all_users_over_matmul": round(all_users_s / matmul_s, 3),
            "all_users_over_all_products": round(all_users_s / (matmul_s + normal_s), 3),
            "peak_rss_mib": round(peak_rss_mib)}


def bare_products(recommender: Recommender, num_users: int) -> float:
    """Seconds for the scores of all movies for so many users and nothing else, in blocks of as many users as the lists
    are made in, but of all movies at once, as one would write it."""
    num_threads = torch.get_num_threads()
    movie_vectors = recommender.list_vectors.T
    vectors = torch.randn(batch.USERS_PER_BLOCK, len(movie_vectors))
    memory = torch.empty(num_threads, batch.USERS_PER_BLOCK, movie_vectors.shape[1])

    def products(thread: int) -> None:
        for begin in range(thread * batch.USERS_PER_BLOCK, num_users, num_threads * batch.USERS_PER_BLOCK):
            size = min(num_users - begin, batch.USERS_PER_BLOCK)
            torch.mm(vectors[:size], movie_vectors, out=memory[thread, :size])

    with ThreadPoolExecutor(num_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        start = time.perf_counter()
        list(pool.map(products, range(num_threads)))
        return time.perf_counter() - start


def bare_normal_equations(recommender: Recommender) -> float:
    """Seconds for the other matrix products that the lists need: V'V of each user's movie vectors, per member."""
    config, num_threads = recommender.model.config, torch.get_num_threads()
    sizes = np.diff(recommender.users.offset).tolist()
    vectors = torch.randn(max(sizes), config.ensemble_size, config.member_dim + 1).transpose(0, 1)

    def products(thread: int) -> None:
        memory = torch.empty(config.ensemble_size, config.member_dim + 1, config.member_dim + 1)
        for size in sizes[thread::num_threads]:
            own = vectors[:, :size]
            torch.bmm(own.transpose(1, 2), own, out=memory)

    with ThreadPoolExecutor(num_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        start = time.perf_counter()
        list(pool.map(products, range(num_threads)))
        return time.perf_counter() - start


# --- measuring -------------------------------------------------------------------------------------------------


def measure(function: object, *args: Path, env: dict[str, str] | None = None) -> object:
    """Call a function of this file in a new process with an environment; return its result."""
    program = ("import sys; from pathlib import Path; from benchmarks import bench_rec; "
               "bench_rec.answer(sys.argv[1], *map(Path, sys.argv[2:]))")
    command = [sys.executable, "-c", program, function.__name__, *map(str, args)]
    return json.loads(subprocess.run(command, cwd=ROOT, env=env, check=True, stdout=subprocess.PIPE).stdout)


def answer(name: str, *args: Path) -> None:
    """Print the result of a function of this file as JSON, and nothing else."""
    with contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        result = globals()[name](*args)
    print(json.dumps(result))


if __name__ == "__main__":
    sys.exit(main())
