"""The server of the page as a process: who is slow, dead, many or wrong stops nobody else; signals end it in time."""

import contextlib
import gc
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.specs.openapi.checks import positive_data_acceptance

import rec
from preprocessing.dataset import read_users
from recommending.page.server import serve
from recommending.recommender import Recommender
from tests.serving import ROOT, Server, served

QUESTION = {"ratings": {"1": 5, "2": 3}, "explain": True}


@pytest.fixture(scope="module")
def server(run_dir, data_dir):
    with served(run_dir, data_dir) as server:
        yield server


@pytest.mark.parametrize("mode", [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE])
def test_every_answer_is_as_it_is_documented(server, mode):
    described, asked = schemathesis.openapi.from_url(f"{server.address}openapi.json"), Counter()
    for operation in (found.ok() for found in described.get_all_operations()):
        @settings(max_examples=15, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
                  suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: schemathesis.Case) -> None:
            not_ratings = [positive_data_acceptance] if case.path == "/api/ratings_file" else []  # any text is a text
            asked[case.call_and_validate(excluded_checks=not_ratings).status_code] += 1

        with contextlib.suppress(Unsatisfiable):  # an operation without parameters cannot be asked wrongly
            ask()
    assert 500 not in asked and (422 if mode.is_negative else 200) in asked


def connect(port: int, text: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    connection.sendall(text)
    return connection


def test_slow_dead_and_many_clients_stop_nobody(run_dir, data_dir):
    head = b"POST /api/recommend HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with served(run_dir, data_dir, BODY_S=1.5, SILENCE_S=2.5, MOST_CONNECTIONS=40) as server:
        silent = connect(server.port, b"")
        half_a_head = connect(server.port, head[:30])
        endless = connect(server.port, head + b"Content-Length: 100\r\n\r\n{")
        chunked = connect(server.port, head + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n")
        deaf = [connect(server.port, b"GET /api/map HTTP/1.1\r\nHost: localhost\r\n\r\n" * 200) for _ in range(5)]
        for _ in range(20):
            assert server.client.post("/api/recommend", json=QUESTION).status_code == 200
        assert endless.recv(12) == chunked.recv(12) == b"HTTP/1.1 408"
        assert silent.recv(1) == b""
        with pytest.raises(ConnectionError):  # dropped, and not answered
            half_a_head.sendall(b"x: y\r\n" * 5)
            for _ in range(100):
                half_a_head.sendall(b"x: y\r\n")
                time.sleep(0.01)
        for connection in (silent, half_a_head, endless, chunked, *deaf):
            connection.close()
        # A flood of connections makes room, and one of questions is answered.
        flood = [connect(server.port, text) for text in (b"GET / HTT", head + b"Content-Length: 9\r\n\r\n{") * 100]
        assert server.client.post("/api/recommend", json=QUESTION).status_code == 200
        for connection in flood:
            connection.close()
        with ThreadPoolExecutor(32) as pool:
            answers = list(pool.map(lambda _: server.client.post("/api/recommend", json=QUESTION), range(200)))
        assert {answer.status_code for answer in answers} == {200}


def test_sigterm_ends_it_within_a_second_with_requests_in_flight_answered(run_dir, data_dir):
    server = Server(run_dir, data_dir)
    endless = connect(server.port, b"POST /api/ask HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{")
    answers, begun = [], threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=server.address) as client:
            while True:
                try:
                    answers.append(client.post("/api/recommend", json=QUESTION).status_code)
                except httpx.ConnectError:  # nobody listens any more: all that came in was answered
                    return
                except httpx.HTTPError as error:  # an idle connection closed at the moment of asking
                    answers.append(type(error).__name__)
                begun.set()

    thread = threading.Thread(target=ask)
    thread.start()
    assert begun.wait(10)
    start = time.perf_counter()
    returned, said = server.end(signal.SIGTERM)
    assert time.perf_counter() - start < 10  # and does not wait for the body; half a second where nobody else works
    thread.join()
    assert (returned, said) == (143, "\ninterrupted\n")
    assert answers.count(200) >= len(answers) - 1
    endless.close()


def test_what_is_loaded_is_not_looked_through_for_garbage_from_the_first_request_to_the_end(run_dir, data_dir,
                                                                                            monkeypatch):
    before, frozen = gc.get_freeze_count(), []
    monkeypatch.setattr(uvicorn.Server, "run", lambda *args, **named: frozen.append(gc.get_freeze_count()))
    serve(Recommender.load(run_dir, data_dir), port=0, num_workers=0)
    gc.unfreeze()
    assert frozen[0] - before > 100_000  # objects of PyTorch alone


def test_what_is_no_http_is_told_so(server):
    for text in (b"hello\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 9):
        with connect(server.port, text + b"\r\n\r\n") as connection:
            answer = connection.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 400") and answer.endswith(b'{"error": "this is no HTTP request"}'), answer


def test_a_run_that_is_replaced_is_served_as_it_was(run_dir, data_dir, tmp_path, raw_dir):
    shutil.copytree(run_dir, tmp_path / "run")
    shutil.copytree(data_dir, tmp_path / "data")
    user = int(read_users(data_dir).user_id[11])
    with served(tmp_path / "run", tmp_path / "data") as server:
        question = {"user_id": user, "explain": True, "date": "2004-05-06"}
        before = server.client.get(f"/api/users/{user}").text
        for folder in ("run", "data"):
            for path in (tmp_path / folder).iterdir():
                path.unlink()
                path.write_bytes(b"another")
        assert server.client.get(f"/api/users/{user}").text == before
        assert server.client.post("/api/recommend", json=question).json()["user_id"] == user


def test_a_port_in_use_is_said_in_one_sentence(server, run_dir, data_dir, capsys):
    place = ["--data_dir", str(data_dir), "--run_dir", str(run_dir), "--serve"]
    assert rec.main([*place, "--port", str(server.port)]) == 1
    assert capsys.readouterr().err == (f"error: port {server.port} of 127.0.0.1 is in use; choose another: "
                                       f"python rec.py --serve --port {server.port + 1}\n")
    assert rec.main([*place, "--host", "203.0.113.7", "--port", "0"]) == 1
    assert "203.0.113.7, port 0, cannot be listened to: " in capsys.readouterr().err


def test_the_command_says_where_the_page_is(run_dir, data_dir):
    command = [sys.executable, str(ROOT / "rec.py"), "--data_dir", str(data_dir), "--run_dir", str(run_dir), "--serve",
               "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        said = process.stdout.readline()
        assert said.startswith("open http://127.0.0.1:") and said.endswith("/ in a browser; Ctrl-C ends it\n")
        assert httpx.get(said.split()[1]).text.startswith("<!doctype html>")
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130 and process.stderr.read() == "\ninterrupted\n"


@pytest.mark.parametrize(("flags", "sentence"), [
    (["--port", "80"], "--port is about --serve: give both"), (["--host", "x"], "--host is about --serve: give both"),
    (["--serve", "--port", "65536"], "--port must be between 0 and 65535, not 65536"),
    (["--serve", "--rate", "1:5"], "--serve opens a page on which one asks: it does not go with --rate"),
    (["--serve", "--json"], "--serve opens a page on which one asks: it does not go with --json"),
    (["--serve", "--popular"], "--serve opens a page on which one asks: it does not go with --popular"),
])
def test_flags_that_a_page_has_no_use_for_are_refused(capsys, flags, sentence):
    with pytest.raises(SystemExit) as end:
        rec.main(flags)
    assert end.value.code == 2 and capsys.readouterr().err.endswith(f"{sentence}\n")


def test_the_server_writes_nothing_and_keeps_nothing(server, run_dir, data_dir):
    def files() -> dict[Path, tuple[int, int]]:
        folders = (run_dir, data_dir, ROOT / "recommending" / "page")
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for folder in folders
                for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts}

    before, first = files(), server.client.post("/api/recommend", json={"ratings": {}}).text
    for number in range(30):
        server.client.post("/api/recommend", json={"ratings": {str(1 + number): 5}})
    answer = server.client.post("/api/recommend", json={"ratings": {}})
    assert answer.text == first and "set-cookie" not in answer.headers and files() == before
    assert json.loads(first)["kind"] == "new"
