"""No command opens a connection: sockets are forbidden, in this process and in every one that a command starts."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import main
import rec
from preprocessing import netflix_preprocess, synthetic_netflix

ROOT = Path(main.__file__).resolve().parent
FORBID = """
import os, socket, sys
def forbid(event, args):
    if event.startswith(("socket.connect", "socket.getaddrinfo", "socket.gethostby", "socket.sendto", "urllib.")) or (
            event == "socket.__new__" and args[1] != socket.AF_UNIX):
        with open(os.environ["SOCKETS_SEEN"], "a") as file:
            file.write(event + chr(10))
        raise RuntimeError("a socket: " + event)
sys.addaudithook(forbid)
"""


def test_no_command_opens_a_socket_in_this_process(train, tmp_path, monkeypatch):
    def forbidden(*args: object, **options: object) -> None:
        raise AssertionError("a socket")

    for name in ("socket", "create_connection", "getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(socket, name, forbidden)
    synthetic_netflix.generate(tmp_path / "raw", num_users=50, num_movies=20, num_ratings=500, seed=0)
    data, run = tmp_path / "data", tmp_path / "run"
    assert netflix_preprocess.main(["--raw_dir", str(tmp_path / "raw"), "--out_dir", str(data)]) == 0
    assert train(data, run, "--epochs", "1") == 0
    assert rec.main(["--data_dir", str(data), "--run_dir", str(run), "--explain", "--json"]) == 0
    with pytest.raises(AssertionError, match="a socket"):
        socket.create_connection(("localhost", 1))


def test_no_process_of_a_command_opens_a_socket(raw_dir, tmp_path):
    """Two processes parse; an audit hook, which code cannot take back, hears of every socket of each of them."""
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(FORBID)
    seen = tmp_path / "seen"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "hook"), "SOCKETS_SEEN": str(seen)}

    def run(*argv: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, *argv], env=environment, cwd=ROOT, capture_output=True, text=True)

    check = run("-c", "import socket; socket.create_connection(('127.0.0.1', 9))")
    assert check.returncode == 1 and seen.read_text().startswith("socket.")  # the hook works
    seen.unlink()
    raw, data, out = str(raw_dir), str(tmp_path / "data"), str(tmp_path / "run")
    for argv in (["-c", "import sys; from preprocessing import parsing, netflix_preprocess\n"
                  "parsing.RANGE_BYTES = 50_000\nsys.exit(netflix_preprocess.main(sys.argv[1:]))",
                  "--raw_dir", raw, "--out_dir", data],
                 ["-c", "import sys, main, rec\n"
                  "sys.exit(main.main(sys.argv[1:]) or rec.main(sys.argv[1:5]))",
                  "--data_dir", data, "--run_dir", out, "--epochs", "1", "--embedding_dim", "8", "--ensemble_size", "1",
                  "--batch_size", "1000"]):
        done = run(*argv)
        assert done.returncode == 0, done.stderr
    assert not seen.exists()
