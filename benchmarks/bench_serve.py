"""Time the page's server at Netflix's size: questions a second, how long one waits, memory, a change on the screen.

    python benchmarks/bench_serve.py                    480,189 users, 17,770 movies, 100 million ratings: ten minutes
    python benchmarks/bench_serve.py --users 2000 --requests 200 --memory_requests 2000      a quick look
    python benchmarks/bench_serve.py --data_dir DIR     with the ratings of a data set instead of random ones

The data set and the untrained model are those of bench_rec.py. Server, clients and browser share the machine's cores;
the clients are one process, each a connection that asks again as soon as it has its answer. Measured are, for a new
person with 10 ratings and for users of the data set, with 1, 8 and 64 clients,
    per_s             answers a second
    p50_ms, p99_ms    from the question's first byte to the answer's last
and
    model_share       the model's CPU time for such a question, alone in a process, over the server's CPU time for one
    plain             a new person's list, without reasons, by the model's own forward pass in PyTorch and a top k, the
                      movies' vectors kept, behind the same server; beside it ours without reasons
    rss_mib           the server's memory after each tenth of --memory_requests questions
    screen_ms         from a click on a star to the new list in the browser, where one is installed
"""

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import psutil
import torch
from threadpoolctl import threadpool_limits

from benchmarks.bench_rec import NETFLIX_USERS, make_dataset, make_run
from models.user_tower import Context
from preprocessing.dataset import read_movies, read_users
from recommending.page.server import serve
from recommending.recommender import NUM_REASONS, Filters, History, Recommendation, Recommender

CLIENTS = (1, 8, 64)
NUM_RATINGS = 10
SCREEN_CLICKS = 20


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, help="data set (default: random ratings of Netflix's shape)")
    parser.add_argument("--users", type=int, default=NETFLIX_USERS, help="of the random data set (default: Netflix's)")
    parser.add_argument("--requests", type=int, default=4000, help="questions of a row (default: 4000)")
    parser.add_argument("--memory_requests", type=int, default=100_000, help="questions between the first and the last "
                        "look at the memory (default: 100000)")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)  # run_dir, data_dir, who answers
    args = parser.parse_args(argv)
    if args.serve:
        run_server(*args.serve)
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        data_dir = args.data_dir or make_dataset(Path(temporary) / "data", args.users)
        run_dir = make_run(Path(temporary) / "run", data_dir)
        result: dict = {"users": len(read_users(data_dir).user_id), "cores": os.cpu_count(), "rows": []}
        new, users = questions(data_dir)
        model_ms = time_model(run_dir, data_dir, new, users)
        with Served(run_dir, data_dir, "ours") as server:
            for name, bodies in (("new", new), ("user", users), ("new, no reasons", without_reasons(new))):
                for clients in CLIENTS:
                    result["rows"].append(row(server, name, bodies, clients, args.requests, model_ms.get(name)))
            result["rss_mib"] = watch_memory(server, new + users, args.memory_requests)
            print(f"memory after each tenth of {args.memory_requests:,} questions: {result['rss_mib']} MiB", flush=True)
            result["screen_ms"] = time_screen(server.address)
            print(f"from a click to the new list: {result['screen_ms']} ms", flush=True)
        with Served(run_dir, data_dir, "plain") as server:
            for clients in CLIENTS:
                result["rows"].append(row(server, "plain", without_reasons(new), clients, args.requests, None))
        print(json.dumps(result))
    return 0


def questions(data_dir: Path) -> tuple[list[dict], list[dict]]:
    """Return 500 questions of new persons, and 500 of users of the data set."""
    rng = np.random.default_rng(0)
    movie_id, user_id = read_movies(data_dir).movie_id, read_users(data_dir).user_id
    new = [{"ratings": {str(one): int(rng.integers(1, 6)) for one in rng.choice(movie_id, NUM_RATINGS, replace=False)},
            "explain": True} for _ in range(500)]
    return new, [{"user_id": int(one), "explain": True} for one in rng.choice(user_id, 500)]


def without_reasons(bodies: list[dict]) -> list[dict]:
    return [body | {"explain": False} for body in bodies]


# --- the server ------------------------------------------------------------------------------------------------


class PlainRecommender(Recommender):
    """Answers by the model's forward pass in PyTorch."""

    @torch.inference_mode()
    def recommend(self, history: History, top_n: int = 10, filters: Filters | None = None,
                  rank_by: str = "rating", num_reasons: int = 0) -> list[Recommendation]:
        context = Context(torch.zeros_like(history.movie_idx), history.movie_idx, history.stars, history.day)
        user_idx = None if history.user_idx is None else torch.tensor([history.user_idx])
        vector = self.model.user_vectors(self._movie_table, user_idx, context, self.day)[0]
        scores = self.list_vectors @ vector
        scores[~torch.from_numpy(self._allowed(filters, history))] = -torch.inf
        best = scores.topk(top_n)
        predicted = self.model.stars(best.values + self.model.margins()[best.indices])
        return self._lines(best.indices.numpy(), stars=predicted.tolist())


def run_server(run_dir: str, data_dir: str, who: str) -> None:
    """Serve until a signal comes."""
    serve((PlainRecommender if who == "plain" else Recommender).load(run_dir, data_dir), port=0)


class Served:
    """A server in a process of its own."""

    def __init__(self, run_dir: Path, data_dir: Path, who: str) -> None:
        self.command = [sys.executable, __file__, "--serve", str(run_dir), str(data_dir), who]

    def __enter__(self) -> "Served":
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True, encoding="utf-8")
        self.address = self.process.stdout.readline().split()[1]
        self.port, self.watched = int(self.address.rstrip("/").rpartition(":")[2]), psutil.Process(self.process.pid)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()

    def processes(self) -> list[psutil.Process]:
        """The server and its workers."""
        return [self.watched, *self.watched.children()]

    def cpu_s(self) -> float:
        return sum(times.user + times.system for times in (process.cpu_times() for process in self.processes()))

    def memory_mib(self) -> int:
        """Memory of all of them; what they share counts once."""
        found = [process.memory_full_info() for process in self.processes()]
        return round(sum(getattr(memory, "pss", memory.rss) for memory in found) / 2**20)


# --- what is measured ------------------------------------------------------------------------------------------


def row(server: Served, name: str, bodies: list[dict], clients: int, number: int, model_ms: float | None) -> dict:
    """Ask, print and return a row."""
    asyncio.run(ask(server.port, bodies, clients, number // 10))  # warm
    before, start = server.cpu_s(), time.perf_counter()
    waited = asyncio.run(ask(server.port, bodies, clients, number))
    seconds, cpu_ms = time.perf_counter() - start, 1000 * (server.cpu_s() - before) / number
    result = {"who": name, "clients": clients, "per_s": round(number / seconds), "cpu_ms": round(cpu_ms, 3),
              "p50_ms": round(1000 * float(np.percentile(waited, 50)), 2),
              "p99_ms": round(1000 * float(np.percentile(waited, 99)), 2)}
    if model_ms is not None:
        result |= {"model_ms": round(model_ms, 3), "model_share": round(model_ms / cpu_ms, 2)}
    print(result, flush=True)
    return result


async def ask(port: int, bodies: list[dict], clients: int, number: int) -> list[float]:
    """Ask a number of questions through some connections; return the seconds that each answer took."""
    sent = [json.dumps(body).encode() for body in bodies]
    waiting, waited = iter(range(number)), []

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for turn in waiting:
            body = sent[turn % len(sent)]
            start = time.perf_counter()
            writer.write(b"POST /api/recommend HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                         b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0]))
            waited.append(time.perf_counter() - start)
        writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return waited


def time_model(run_dir: Path, data_dir: Path, new: list[dict], users: list[dict]) -> dict[str, float]:
    """Milliseconds of CPU time that the model takes for the same questions, without server, JSON or titles' search."""
    torch.set_num_threads(1)
    recommender = Recommender.load(run_dir, data_dir)
    with threadpool_limits(1):
        return _time_answers(recommender, new, users)


def _time_answers(recommender: Recommender, new: list[dict], users: list[dict]) -> dict[str, float]:

    def answer(body: dict) -> None:
        ratings = {int(movie_id): stars for movie_id, stars in body.get("ratings", {}).items()}
        history = recommender.history_of(body["user_id"]) if "user_id" in body else recommender.history_from(ratings)
        recommender.recommend(history, num_reasons=NUM_REASONS * body["explain"])

    result = {}
    for name, bodies in (("new", new), ("user", users), ("new, no reasons", without_reasons(new))):
        for _ in range(2):  # the first time to warm up
            start = time.process_time()
            for body in bodies:
                answer(body)
            result[name] = 1000 * (time.process_time() - start) / len(bodies)
    return result


def watch_memory(server: Served, bodies: list[dict], number: int) -> list[int]:
    """Return the server's memory, MiB, after each tenth of some questions."""
    memory = []
    for _ in range(10):
        asyncio.run(ask(server.port, bodies, 8, number // 10))
        memory.append(server.memory_mib())
    return memory


def time_screen(address: str) -> dict | None:
    """Return milliseconds from a click on a star until the browser has painted the list; None without a browser."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    path = shutil.which("chromium")
    if path is None:
        return None
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.goto(address)
        page.wait_for_selector("#map-said", state="hidden", timeout=60_000)
        page.wait_for_selector("#asked [data-stars]")
        waited = [page.evaluate("""async (turn) => {
            const stars = document.querySelectorAll('#asked > li')[turn % 5].querySelectorAll('button.star');
            const start = performance.now();
            const painted = new Promise((done) => new MutationObserver((_, watch) => {
                watch.disconnect();
                requestAnimationFrame(() => setTimeout(() => done(performance.now() - start)));
            }).observe(document.querySelector('#list'), {childList: true}));
            stars[turn % 5].click();
            return painted;
        }""", turn) for turn in range(SCREEN_CLICKS)]
        browser.close()
    return {"median": round(statistics.median(waited), 1), "worst": round(max(waited), 1), "clicks": len(waited)}


if __name__ == "__main__":
    sys.exit(main())
