"""Worker processes answer as a thread does; if they are killed, all is still answered; they end with the server."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest
import torch
from fastapi import HTTPException

from preprocessing.dataset import DataError, read_users
from recommending.page import workers as page_workers
from recommending.page.answers import Answers
from recommending.page.messages import Person, Question
from recommending.page.workers import QUESTIONS, Workers, _answer, default_num_workers
from recommending.recommender import Recommender
from tests.serving import Server, served

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a process with threads is copied on Linux alone")


@pytest.fixture(scope="module")
def server(run_dir, data_dir):
    with served(run_dir, data_dir, num_workers=2) as server:
        yield server


def workers_of(server: Server) -> list[psutil.Process]:
    """Return the workers that live."""
    found = psutil.Process(server.process.pid).children()
    return [worker for worker in found if worker.status() != psutil.STATUS_ZOMBIE]


def test_their_lists_are_those_of_a_thread(server, run_dir, data_dir):
    answers, user = Answers(Recommender.load(run_dir, data_dir)), int(read_users(data_dir).user_id[7])
    workers = workers_of(server)
    assert len(workers) == 2
    for question in ({"ratings": {"1": 5, "2": 3.0}, "explain": True}, {"user_id": user, "explain": True},
                     {"user_id": str(user), "ratings": {"3": 1}, "date": "2004-05-06", "rank_by": "relevance"},
                     {"ratings": {}, "top_n": 3, "filters": {"year_from": 1990, "title": "m", "include_seen": True}}):
        sent = server.client.post("/api/recommend", json=question)
        assert (sent.status_code, sent.text) == (200, answers.recommend(Question(**question)))
    person = {"ratings": {"2": 4}, "top_n": 4}
    assert server.client.post("/api/ask", json=person).text == answers.ask(Person(**person))
    assert workers_of(server) == workers  # none was given up


@pytest.mark.parametrize(("question", "status", "sentence"), [
    ({"user_id": 999_999_999}, 404, "user_id 999999999 is not in the data set"),
    ({"ratings": {"nothing": 5}}, 404, "movie_id nothing is not in the data set"),
    ({"ratings": {"1": 77}}, 422, "77"), ({"top_n": 3}, 422, "give ratings or a user_id")])
def test_their_errors_are_those_of_a_thread(server, question, status, sentence):
    workers = workers_of(server)
    answer = server.client.post("/api/recommend", json=question)
    assert answer.status_code == status and sentence in answer.json()["error"]
    assert server.client.post("/api/recommend", json={"ratings": {"1": 5}}).status_code == 200
    assert workers_of(server) == workers


def test_where_they_are_killed_every_question_is_answered(run_dir, data_dir):
    with ThreadPoolExecutor(8) as clients:
        server = Server(run_dir, data_dir, num_workers=2)

        def ask(number: int) -> int:
            if number in (20, 120):
                workers_of(server)[0].kill()
            return server.client.post("/api/recommend", json={"ratings": {"1": 5}}).status_code

        assert set(clients.map(ask, range(200))) == {200}
    assert workers_of(server) == []
    assert server.client.post("/api/recommend", json={"user_id": 999_999_999}).status_code == 404
    _, said = server.end()
    assert said.count("a worker process of the server is gone; others answer, more slowly\n") == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_they_end_with_the_server_and_not_before(run_dir, data_dir, number):
    server = Server(run_dir, data_dir, num_workers=3)
    workers = workers_of(server)
    assert len(workers) == 3
    for worker in workers:  # Ctrl-C in a terminal, and service managers, reach all processes of a command
        worker.send_signal(signal.SIGINT)
        worker.send_signal(signal.SIGTERM)
        assert not any(connection.status == psutil.CONN_LISTEN for connection in worker.net_connections())
    assert server.client.post("/api/recommend", json={"ratings": {"1": 5}}).status_code == 200
    assert workers_of(server) == workers
    _, said = server.end(number)
    assert not psutil.wait_procs(workers, timeout=10)[1]
    assert "Traceback" not in said
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.address)


class Slow:
    """Answers with who has answered, when it may."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()

    def may_answer(self) -> None:
        os.write(self._writer, b"." * 100)

    def recommend(self, question: Question) -> str:
        if question.top_n == 4:
            os._exit(1)
        if question.top_n > 1:
            os.read(self._reader, 1)
        return str(os.getpid())

    def ask(self, person: Person) -> str:
        raise DataError("ratings.parquet is damaged") if person.top_n == 1 else ValueError("secret")


def answers_of(workers: Workers, function: Callable[..., str], *messages: Person,
               when_busy: Callable[[], None] | None = None) -> list[HTTPException | str]:
    """Ask at once, and perhaps do something when all workers are busy; return the answers, or the errors."""
    async def ask() -> list:
        async with asyncio.timeout(30):
            tasks = [asyncio.ensure_future(workers.run(function, message)) for message in messages]
            if when_busy is not None:
                while workers._idle:
                    await asyncio.sleep(0.001)
                when_busy()
            return await asyncio.gather(*tasks, return_exceptions=True)

    try:
        answers = asyncio.run(ask())
    finally:
        workers.end()
    return [answer if isinstance(answer, Exception) else answer.body.decode() for answer in answers]


def test_two_questions_are_answered_side_by_side_and_more_wait_their_turn():
    slow = Slow()
    found = answers_of(Workers(slow, 2, 8), slow.recommend, *[Question(top_n=2)] * 6, when_busy=slow.may_answer)
    assert len(set(found[:2])) == 2 and len(set(found)) == 2 and str(os.getpid()) not in found


def test_who_has_waited_longest_is_the_next():
    slow, order = Slow(), []
    workers = Workers(slow, 1, 99)

    async def client(number: int) -> None:
        for _ in range(3):
            await workers.run(slow.recommend, Question(top_n=2))
            order.append(number)

    async def ask() -> None:
        async with asyncio.timeout(30):
            clients = [asyncio.ensure_future(client(number)) for number in range(4)]
            while workers._waiting < 4:
                await asyncio.sleep(0.001)
            slow.may_answer()
            await asyncio.gather(*clients)

    try:
        asyncio.run(ask())
    finally:
        workers.end()
    assert order == [0, 1, 2, 3] * 3


def test_too_many_questions_are_refused():
    slow = Slow()
    found = answers_of(Workers(slow, 1, 2), slow.recommend, *[Question(top_n=2)] * 3, when_busy=slow.may_answer)
    assert isinstance(found[2], HTTPException) and found[2].status_code == 503 and found[0] == found[1]


def test_who_waits_for_the_last_one_when_it_is_killed_is_answered_by_a_thread(capsys):
    slow = Slow()
    workers = Workers(slow, 1, 8)

    def kill() -> None:
        os.kill(next(iter(workers._pids.values())), signal.SIGKILL)
        slow.may_answer()

    found = answers_of(workers, slow.recommend, *[Question(top_n=2)] * 4, when_busy=kill)
    assert found == [str(os.getpid())] * 4
    assert capsys.readouterr().err == "a worker process of the server is gone; others answer, more slowly\n"


def test_a_question_that_kills_two_workers_is_refused_and_others_are_answered():
    slow = Slow()
    workers = Workers(slow, 3, 8)
    found = answers_of(workers, slow.recommend, Question(top_n=4), Question(top_n=2), Question(top_n=2),
                       when_busy=slow.may_answer)
    assert [error.status_code for error in found if isinstance(error, HTTPException)] == [503]
    assert found[0].detail == "the server could not finish this question"
    assert str(os.getpid()) not in found[1:]


def test_who_no_longer_waits_for_an_answer_leaves_none_to_the_next():
    slow = Slow()
    workers = Workers(slow, 2, 8)

    async def ask() -> list[str]:
        async with asyncio.timeout(30):
            unwanted = asyncio.ensure_future(workers.run(slow.recommend, Question(top_n=2)))
            while len(workers._idle) == 2:
                await asyncio.sleep(0.001)
            unwanted.cancel()
            with pytest.raises(asyncio.CancelledError):
                await unwanted
            slow.may_answer()
            return [(await workers.run(slow.recommend, Question(top_n=1))).body.decode() for _ in range(2)]

    try:
        first, second = asyncio.run(ask())
        assert first == second == str(next(iter(workers._pids.values()))) and len(workers._pids) == 1
    finally:
        workers.end()


def test_a_failure_is_told_without_what_it_was_and_damaged_data_with_it(capfd):
    slow = Slow()
    found = answers_of(Workers(slow, 2, 8), slow.ask, Person(top_n=1), Person(top_n=2))
    assert [(error.status_code, error.detail) for error in found] == [
        (500, "ratings.parquet is damaged"), (500, "the server has failed; its terminal says why")]
    assert "ValueError: secret" in capfd.readouterr().err
    assert _answer(slow.ask, Person(top_n=2)) == (500, b"the server has failed; its terminal says why")


def test_every_question_travels_as_it_is():
    filters = {"year_from": -5, "title": "\N{SNOWMAN}\0", "min_ratings": 0, "include_seen": True}
    for message in (Question(ratings={"a b": 0.1, "\N{SNOWMAN}": 5}, user_id=-2**53 + 1, date="1999-12-31",
                             rank_by="relevance", explain=True, top_n=200, filters=filters),
                    Person(user_id="\N{SNOWMAN}"), Question(ratings={})):
        kind = type(message)
        assert kind in QUESTIONS.values()
        assert kind.model_validate_json(message.model_dump_json().encode()) == message


def test_a_system_that_refuses_further_processes_gives_fewer(monkeypatch):
    fork, forks = os.fork, []

    def refuse() -> int:
        forks.append(1)
        if len(forks) > 1:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return fork()

    monkeypatch.setattr(os, "fork", refuse)
    workers = Workers(Slow(), 4, 8)
    assert len(workers._pids) == 1 and len(forks) == 2
    workers.end()
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.mark.parametrize(("platform", "num_threads", "expected"), [
    ("linux", 1, 0), ("linux", 2, 2), ("linux", 64, 8), ("darwin", 8, 0), ("win32", 8, 0)])
def test_there_is_one_for_each_core_on_linux(platform, num_threads, expected, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: num_threads)
    monkeypatch.setattr(page_workers.sys, "platform", platform)
    assert default_num_workers() == expected
