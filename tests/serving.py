"""A server of the page in a process of its own, for tests that need a real one."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = """
import json
import sys
import recommending.page.server as server
from preprocessing.dataset import exit_code
from recommending.recommender import Recommender
for setting in sys.argv[5:]:
    name, value = setting.split("=")
    setattr(server, name, float(value))
recommender = Recommender.load(sys.argv[1], sys.argv[2])
if titles := json.loads(sys.argv[4]):
    recommender.movies = recommender.movies._replace(title=[*titles, *recommender.movies.title[len(titles):]])
sys.exit(exit_code(lambda: server.serve(recommender, port=int(sys.argv[3])), "standard output"))
"""


class Server:
    """A process that serves a run."""

    def __init__(self, run_dir: Path, data_dir: Path, port: int = 0, titles: Sequence[str] = (),
                 **settings: float) -> None:
        """Start it, with other titles of the first movies and other values for constants of server.py, and wait until
        it can be asked."""
        command = [sys.executable, "-c", PROGRAM, str(run_dir), str(data_dir), str(port),
                   json.dumps(titles), *(f"{name}={value}" for name, value in settings.items())]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                        env={**os.environ, "OMP_NUM_THREADS": "1"})
        said = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", said)
        assert found, self.process.communicate()
        self.port, self.address = int(found[1]), found[0]
        self.client = httpx.Client(base_url=self.address, timeout=30)

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Send a signal; return the exit code and what was said on stderr."""
        self.client.close()
        if self.process.poll() is None:
            self.process.send_signal(number)
        _, said = self.process.communicate(timeout=20)
        return self.process.returncode, said


@contextlib.contextmanager
def served(run_dir: Path, data_dir: Path, **settings: Any) -> Iterator[Server]:
    """Serve a run for a while."""
    server = Server(run_dir, data_dir, **settings)
    try:
        yield server
    finally:
        server.end()
