"""Copies of the server's process answer as a thread does, are missed by nobody, and end with it."""

import asyncio
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest
from fastapi import HTTPException

from preprocessing.dataset import DataError, read_users
from recommending.page.answers import Answers
from recommending.page.messages import Person, Question
from recommending.page.workers import QUESTIONS, Workers, _answer
from recommending.recommender import Recommender
from tests.serving import Server, served

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a process with threads is copied on Linux alone")


@pytest.fixture(scope="module")
def server(run_dir, data_dir):
    with served(run_dir, data_dir, num_workers=2) as server:
        yield server


def copies_of(server: Server) -> list[psutil.Process]:
    return psutil.Process(server.process.pid).children()


def wait_until_gone(processes: list[psutil.Process]) -> None:
    assert not psutil.wait_procs(processes, timeout=10)[1]


def test_their_lists_are_those_of_a_thread(server, run_dir, data_dir):
    answers, user = Answers(Recommender.load(run_dir, data_dir)), int(read_users(data_dir).user_id[7])
    assert len(copies_of(server)) == 2
    for question in ({"ratings": {"1": 5, "2": 3.0}, "explain": True}, {"user_id": user, "explain": True},
                     {"user_id": str(user), "ratings": {"3": 1}, "date": "2004-05-06", "rank_by": "relevance"},
                     {"ratings": {}, "top_n": 3, "filters": {"year_from": 1990, "title": "m", "include_seen": True}}):
        sent = server.client.post("/api/recommend", json=question)
        assert (sent.status_code, sent.text) == (200, answers.recommend(Question(**question)))
    person = {"ratings": {"2": 4}, "top_n": 4}
    assert server.client.post("/api/ask", json=person).text == answers.ask(Person(**person))


@pytest.mark.parametrize(("question", "status", "sentence"), [
    ({"user_id": 999_999_999}, 404, "user_id 999999999 is not in the data set"),
    ({"ratings": {"nothing": 5}}, 404, "movie_id nothing is not in the data set"),
    ({"ratings": {"1": 77}}, 422, "77"), ({"top_n": 3}, 422, "give ratings or a user_id")])
def test_their_errors_are_those_of_a_thread(server, question, status, sentence):
    answer = server.client.post("/api/recommend", json=question)
    assert answer.status_code == status and sentence in answer.json()["error"]
    assert server.client.post("/api/recommend", json={"ratings": {"1": 5}}).status_code == 200


def test_one_that_is_killed_is_missed_by_nobody(run_dir, data_dir):
    with served(run_dir, data_dir, num_workers=2) as server, ThreadPoolExecutor(8) as clients:
        def ask(number: int) -> int:
            if number in (20, 120):
                copies_of(server)[0].kill()
            return server.client.post("/api/recommend", json={"ratings": {"1": 5}}).status_code

        assert set(clients.map(ask, range(200))) == {200}
        assert copies_of(server) == []
        assert server.client.post("/api/recommend", json={"user_id": 999_999_999}).status_code == 404


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_they_end_with_the_server(run_dir, data_dir, number):
    server = Server(run_dir, data_dir, num_workers=3)
    copies = copies_of(server)
    assert len(copies) == 3
    assert server.client.post("/api/recommend", json={"ratings": {"1": 5}}).status_code == 200
    for copy in copies:  # as a terminal's Ctrl-C does, which all processes of a command are sent
        copy.send_signal(signal.SIGINT)
    assert server.client.post("/api/recommend", json={"ratings": {"1": 5}}).status_code == 200
    assert copies_of(server) == copies
    server.end(number)
    wait_until_gone(copies)
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.address)


class Slow:
    """Answers with who has answered, after a while."""

    def recommend(self, question: Question) -> str:
        time.sleep(question.top_n / 100)
        if question.top_n == 3:
            os._exit(1)
        return str(os.getpid())

    def ask(self, person: Person) -> str:
        raise DataError("ratings.parquet is damaged") if person.top_n == 1 else ValueError("secret")


def together(workers: Workers, function, *messages: Person) -> list:
    """Ask at once; return who has answered, or the errors."""
    async def ask() -> list:
        return await asyncio.gather(*(workers.run(function, message) for message in messages), return_exceptions=True)

    answers = asyncio.run(ask())
    workers.end()
    return [answer if isinstance(answer, Exception) else answer.body.decode() for answer in answers]


def test_two_questions_are_answered_side_by_side_and_more_wait_their_turn():
    slow = Slow()
    assert len(set(together(Workers(slow, 2, 8), slow.recommend, *[Question(top_n=30)] * 2))) == 2
    found = together(Workers(slow, 2, 8), slow.recommend, *[Question(top_n=4)] * 6)
    assert len(set(found)) == 2 and str(os.getpid()) not in found


def test_too_many_questions_are_refused():
    slow = Slow()
    found = together(Workers(slow, 1, 2), slow.recommend, *[Question(top_n=4)] * 3)
    assert isinstance(found[2], HTTPException) and found[2].status_code == 503 and found[0] == found[1]


def test_who_waits_for_the_last_one_when_it_is_gone_is_answered_by_a_thread():
    slow, workers = Slow(), None
    workers = Workers(slow, 1, 8)
    end = threading.Timer(0.1, lambda: os.kill(next(iter(workers._pids.values())), signal.SIGKILL))
    end.start()
    assert together(workers, slow.recommend, *[Question(top_n=30)] * 4) == [str(os.getpid())] * 4
    end.join()


def test_who_no_longer_waits_for_an_answer_leaves_none_to_the_next():
    slow = Slow()
    workers = Workers(slow, 2, 8)

    async def ask() -> tuple[str, str]:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await workers.run(slow.recommend, Question(top_n=60))
        return [(await workers.run(slow.recommend, Question(top_n=1))).body.decode() for _ in range(2)]

    first, second = asyncio.run(ask())
    assert first == second == str(next(iter(workers._pids.values())))
    workers.end()


def test_a_failure_is_told_without_what_it_was_and_damaged_data_with_it(capfd):
    slow = Slow()
    found = together(Workers(slow, 1, 8), slow.ask, Person(top_n=1), Person(top_n=2))
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
