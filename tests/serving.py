"""A server of the page in a process of its own, for tests that need a real one."""

import contextlib
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import httpx

from preprocessing.dataset import exit_code

ROOT = Path(__file__).resolve().parents[1]
# One process imports what a server needs, which takes 2 s, and every server is a fork of it, where that can be done.
CONTEXT = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")


class Server:
    """A process that serves a run."""

    def __init__(self, run_dir: Path, data_dir: Path, port: int = 0, titles: Sequence[str] = (), num_workers: int = 2,
                 **settings: float) -> None:
        """Start it, with other titles of the first movies and other values for constants of server.py, and wait until
        it can be asked."""
        (stdout, its_stdout), (stderr, its_stderr) = (CONTEXT.Pipe(duplex=False) for _ in range(2))
        self.process = CONTEXT.Process(target=be_a_server, args=(its_stdout, its_stderr, run_dir, data_dir, port,
                                                                 list(titles), num_workers, settings),
                                       daemon=True)
        CONTEXT.set_forkserver_preload(["recommending.page.server"])
        with mock.patch.dict(os.environ, {"OMP_NUM_THREADS": "1"}):
            self.process.start()
        its_stdout.close()
        its_stderr.close()
        self._stdout, self._stderr = (os.fdopen(os.dup(pipe.fileno()), encoding="utf-8") for pipe in (stdout, stderr))
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", self._stdout.readline())
        assert found, self._stderr.read()
        self.port, self.address = int(found[1]), found[0]
        self.client = httpx.Client(base_url=self.address, timeout=30)

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Send a signal; return the exit code and what was said on stderr."""
        self.client.close()
        if self.process.exitcode is None:
            os.kill(self.process.pid, number)
        self.process.join(20)
        assert self.process.exitcode is not None
        with self._stdout, self._stderr:
            return self.process.exitcode, self._stderr.read()


def be_a_server(stdout: Connection, stderr: Connection, run_dir: Path, data_dir: Path, port: int, titles: list[str],
                num_workers: int, settings: dict[str, float]) -> None:
    """Serve, as rec.py does, and end with its exit code."""
    import recommending.page.server as server
    from recommending.recommender import Recommender

    for number, pipe in enumerate((stdout, stderr), start=1):
        os.dup2(pipe.fileno(), number)
        pipe.close()
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False, encoding="utf-8") for number in (1, 2))
    for name, value in settings.items():
        setattr(server, name, value)
    recommender = Recommender.load(run_dir, data_dir)
    recommender.movies = recommender.movies._replace(title=[*titles, *recommender.movies.title[len(titles):]])
    num_workers *= sys.platform == "linux"
    sys.exit(exit_code(lambda: server.serve(recommender, port=port, num_workers=num_workers), "standard output"))


@contextlib.contextmanager
def served(run_dir: Path, data_dir: Path, **settings: Any) -> Iterator[Server]:
    """Serve a run for a while."""
    server = Server(run_dir, data_dir, **settings)
    try:
        yield server
    finally:
        server.end()
