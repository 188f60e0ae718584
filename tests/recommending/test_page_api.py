"""The API of the page: its lists are those of the command line; a mistake gets one sentence; strangers get nothing."""

import asyncio
import datetime
import json
from urllib.parse import quote

import httpx
import numpy as np
import pytest

import rec
from preprocessing.dataset import read_movies, read_users
from recommending.page.answers import DATES_KEPT, Answers
from recommending.page.app import make_app
from recommending.page.messages import MOST_LISTED, MOST_RATINGS, Person
from recommending.page.server import MOST_BODY, Guard
from recommending.recommender import Recommender


class Client:
    """Asks an application, without a network."""

    def __init__(self, answers: Answers) -> None:
        self.app = Guard(make_app(answers), "127.0.0.1")

    def __call__(self, method: str, path: str, **options: object) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
                return await client.request(method, path, **options)

        return asyncio.run(ask())

    def get(self, path: str, **options: object) -> httpx.Response:
        return self("GET", path, **options)

    def recommend(self, **question: object) -> httpx.Response:
        return self("POST", "/api/recommend", json=question)


@pytest.fixture(scope="module")
def api(data_dir, run_dir) -> Client:
    return Client(Answers(Recommender.load(run_dir, data_dir)))


@pytest.fixture
def planted_api(planted) -> Client:
    planted._users_file.id_of = lambda user_idx: 1
    return Client(Answers(planted))


@pytest.fixture
def command(capsys, data_dir, run_dir):
    """Return what rec.py prints as JSON."""

    def command(*flags: object) -> str:
        assert rec.main(["--data_dir", str(data_dir), "--run_dir", str(run_dir), *map(str, flags), "--json"]) == 0
        return capsys.readouterr().out.rstrip("\n")

    return command


QUESTIONS = [
    ({}, []),
    ({"top_n": 3, "explain": True}, ["--top_n", 3, "--explain"]),
    ({"rank_by": "relevance", "explain": True}, ["--rank_by", "relevance", "--explain"]),
    ({"date": "2003-05-06", "explain": True}, ["--date", "2003-05-06", "--explain"]),
    ({"date": "1903-05-06"}, ["--date", "1903-05-06"]), ({"date": "9999-12-31"}, ["--date", "9999-12-31"]),
    ({"filters": {"year_from": 1960, "year_to": 1990, "min_ratings": 50, "title": "the"}},
     ["--year_from", 1960, "--year_to", 1990, "--min_ratings", 50, "--title", "the"]),
    ({"filters": {"min_ratings": 0, "include_seen": True}, "top_n": 90},
     ["--min_ratings", 0, "--include_seen", "--top_n", 90]),
    ({"filters": {"title": "no title has this"}}, ["--title", "no title has this"]),
]


@pytest.mark.parametrize(("asked", "flags"), QUESTIONS)
def test_a_list_is_letter_by_letter_that_of_the_command_line(api, command, data_dir, asked, flags):
    movies, user = read_movies(data_dir).movie_id.tolist(), int(read_users(data_dir).user_id[7])
    ratings = {str(movies[3]): 5, str(movies[40]): 1.5, str(movies[17]): 4}
    typed = ["--rate", ",".join(f"{movie_id}:{stars}" for movie_id, stars in ratings.items())]
    for question, person in (({"ratings": ratings}, typed), ({"user_id": user}, ["--user_id", user]),
                             ({"user_id": str(user), "ratings": ratings}, ["--user_id", user, *typed])):
        answer = api.recommend(**question, **asked)
        assert answer.status_code == 200 and answer.headers["content-type"] == "application/json"
        assert answer.text == command(*person, *flags)


def test_other_lists_are_those_of_the_command_line_too(api, command, data_dir, tmp_path):
    movie_id = int(read_movies(data_dir).movie_id[12])
    narrow = {"year_from": 1950, "min_ratings": 20, "title": "the", "top_n": 4, "date": "2004-01-01"}
    flags = [part for name, value in narrow.items() for part in (f"--{name}", value)]
    assert api.get(f"/api/similar/{movie_id}").text == command("--similar_to", movie_id)
    assert api.get(f"/api/similar/{movie_id}", params=narrow).text == command("--similar_to", movie_id, *flags)
    assert api.get("/api/popular").text == command("--popular")
    assert api.get("/api/popular", params=narrow).text == command("--popular", *flags)
    for text in ("the", "The  RIVER", "no title has this"):
        assert api.get("/api/movies", params={"query": text}).text == command("--search", text)
    answer, printed = api.get("/api/map").json(), json.loads(command("--map", tmp_path / "map.png"))
    assert answer == printed | {"file": None} and len(answer["movies"]) > 50
    assert set(answer["movies"][0]) == {"movie_id", "title", "year", "num_ratings", "x", "y"}


def test_movies_are_found_by_their_ids_in_the_order_asked_for(planted_api):
    found = planted_api.get("/api/movies", params={"movie_id": ["30", "999", "x", "10"]}).json()
    assert [(row["rank"], row["movie_id"]) for row in found["recommendations"]] == [(1, 30), (2, 10)]


def test_a_user_s_ratings_are_those_of_the_data_set_the_latest_first(api, data_dir, run_dir):
    user = int(read_users(data_dir).user_id[7])
    history = Recommender.load(run_dir, data_dir).history_of(user)
    answer = api.get(f"/api/users/{user}?top_n=5000").json()
    assert answer["num_ratings"] == len(answer["ratings"]) == len(history.movie_idx)
    assert [row["stars"] for row in answer["ratings"]] == history.stars.tolist()[::-1]
    dates = [row["date"] for row in answer["ratings"]]
    assert dates == sorted(dates, reverse=True)
    first = api.get(f"/api/users/{user}", params={"top_n": 1, "date": dates[-1]}).json()
    assert first["as_of"] == dates[-1] == first["ratings"][0]["date"] and len(first["ratings"]) == 1


def test_a_file_of_ratings_is_read_as_the_command_reads_it(planted_api):
    def send(content: bytes) -> httpx.Response:
        return planted_api("POST", "/api/ratings_file", content=content, headers={"Content-Type": "text/csv"})

    text = 'Title,Year,Rating\n"Good, the Bad and the Ugly, The",1966,4.5\nÉlan,,2\nUnknown,1990,3\nHeat,1995,\n'
    assert send(text.encode()).json() == {"ratings": {"30": 4.5, "40": 2.0}, "remarks": [
        "the file: 1 without stars left out: line 5", "the file: 2 of 3 movies found, not these:",
        "  line 4: no movie of 1990 is called 'Unknown'"]}
    for content, sentence in ((b"", "the file holds no ratings"),
                              (b"10,9\n", "the file, line 1: movie_id 10 is given 9"), (b"\x00\xff\xfe", "the file"),
                              (b"../../etc/passwd", "the file, line 1: ")):
        answer = send(content)
        assert answer.status_code == 422 and answer.json()["error"].startswith(sentence), answer.text


def test_movies_to_rate_first_are_those_of_the_command(api, command, data_dir):
    for question, flags in (({"ratings": {}, "top_n": 5}, ["--ask", 5]),
                            ({"ratings": {}}, ["--ask"]),
                            ({"user_id": read_users(data_dir).user_id[3].item(), "date": "2003-05-01"},
                             ["--ask", "--user_id", read_users(data_dir).user_id[3], "--date", "2003-05-01"])):
        assert api("POST", "/api/ask", json=question).text == command(*flags)
    first = api("POST", "/api/ask", json={"ratings": {}, "top_n": 5}).json()["recommendations"]
    given = {str(row["movie_id"]): 4 for row in first}
    others = api("POST", "/api/ask", json={"ratings": given, "top_n": 5}).json()["recommendations"]
    assert len(others) == 5 and not {str(row["movie_id"]) for row in others} & set(given)
    everything = dict.fromkeys(map(str, read_movies(data_dir).movie_id.tolist()), 3)
    assert api("POST", "/api/ask", json={"ratings": everything}).json()["recommendations"] == []


@pytest.mark.parametrize(("status", "question", "sentence"), [
    (422, {}, "give ratings or a user_id"),
    (404, {"ratings": {"11": 5}}, "movie_id 11 is not in the data set"),
    (404, {"ratings": {"x": 5}}, "movie_id x is not in the data set"),
    (404, {"ratings": {"9" * 30: 5}}, "movie_id 9"),
    (422, {"ratings": {"10": 6}}, "movie_id 10 is given 6 stars, outside 1 to 5"),
    (422, {"ratings": {"10": "5"}}, "body.ratings.10: "), (422, {"ratings": {"10": True}}, "body.ratings.10: "),
    (422, {"ratings": {"10": None}}, "body.ratings.10: "), (422, {"ratings": []}, "body.ratings: "),
    (422, {"ratings": {str(number): 1 for number in range(MOST_RATINGS + 1)}}, "body.ratings: "),
    (404, {"user_id": 77}, "user_id 77 is not in the data set"), (404, {"user_id": "a"}, "user_id a is not in"),
    (404, {"user_id": str(-2**63 - 1)}, "user_id -9"), (422, {"user_id": 2**53}, "body.user_id"),
    (422, {"user_id": 1.5}, "body.user_id"), (422, {"user_id": "x" * 501}, "body.user_id"),
    (422, {"ratings": {}, "top_n": 0}, "body.top_n"), (422, {"ratings": {}, "top_n": MOST_LISTED + 1}, "body.top_n"),
    (422, {"ratings": {}, "top_n": "3"}, "body.top_n"), (422, {"ratings": {}, "rank_by": "chance"}, "body.rank_by"),
    (422, {"ratings": {}, "explain": 1}, "body.explain"), (422, {"ratings": {}, "unknown": 1}, "body.unknown"),
    (422, {"ratings": {}, "date": "2005-02-30"}, "body.date"), (422, {"ratings": {}, "date": 5}, "body.date"),
    (422, {"ratings": {}, "date": "20050101"}, "body.date"),
    (422, {"ratings": {}, "filters": {"year_from": "x"}}, "body.filters.year_from"),
    (422, {"ratings": {}, "filters": {"min_ratings": -1}}, "body.filters.min_ratings"),
    (422, {"ratings": {}, "filters": {"title": "x" * 201}}, "body.filters.title"),
    (422, {"ratings": {}, "filters": {"x": 1}}, "body.filters.x"),
])
def test_a_mistake_in_a_question_is_told_in_one_sentence(planted_api, status, question, sentence):
    answer = planted_api.recommend(**question)
    assert (answer.status_code, list(answer.json())) == (status, ["error"])
    assert answer.json()["error"].startswith(sentence) and "\n" not in answer.json()["error"]


def test_whatever_else_is_wrong_has_the_same_form(planted_api, monkeypatch, planted):
    post = {"Content-Type": "application/json"}
    for status, method, path, options in (
            (404, "GET", "/nothing", {}), (405, "DELETE", "/api/run", {}), (405, "GET", "/api/recommend", {}),
            (422, "GET", "/api/movies?top_n=x", {}), (422, "GET", "/api/movies?unknown=1", {}),
            (404, "GET", "/api/similar/11", {}), (404, "GET", "/api/similar/a/b", {}),
            (404, "GET", "/api/users/11", {}), (422, "GET", f"/api/movies?query={'x' * 201}", {}),
            (422, "GET", "/api/popular?date=today", {}),
            (400, "GET", "/", {"headers": {"Host": "evil.example"}}),
            (422, "POST", "/api/recommend", {"content": b"{", "headers": post}),
            (400, "POST", "/api/recommend", {"content": b"\xff", "headers": post}),
            (400, "POST", "/api/recommend", {"content": b"[" * 9999, "headers": post}),
            (422, "POST", "/api/recommend", {"content": b'{"ratings": {"10": NaN}}', "headers": post}),
            (413, "POST", "/api/recommend", {"content": b" " * (MOST_BODY["/api/recommend"] + 1), "headers": post}),
            (413, "POST", "/api/ratings_file", {"content": b" " * (MOST_BODY["/api/ratings_file"] + 1)}),
            (413, "POST", "/nothing", {"content": b" " * 1025})):
        answer = planted_api(method, path, **options)
        assert (answer.status_code, list(answer.json())) == (status, ["error"]), (path, answer.text)
    monkeypatch.setattr(planted, "recommend", lambda *_: 1 / 0)
    answer = planted_api.recommend(ratings={})
    assert answer.status_code == 500 and answer.json() == {"error": "the server has failed; its terminal says why"}


@pytest.mark.parametrize(("host", "allowed"), [
    ("127.0.0.1:8000", True), ("localhost", True), ("LOCALHOST:80", True), ("[::1]:8000", True), ("192.168.1.7", True),
    ("rebound.example", False), ("127.0.0.1.example:8000", False), ("localhost.example", False), ("", False),
    ("localhost@evil", False), ("127.0.0.1, evil", False), ("[evil]", False), ("127.0.0.1:8000:8000", False)])
def test_only_a_name_that_nobody_can_register_is_this_server_s(planted_api, host, allowed):
    assert planted_api.get("/healthz", headers={"Host": host}).status_code == (200 if allowed else 400)


def test_a_browser_may_do_nothing_else_with_an_answer(planted_api):
    for path in ("/", "/app.js", "/api/run", "/nothing", "/api/similar/11"):
        headers = planted_api.get(path, headers={"Origin": "http://evil.example"}).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"] and "access-control-allow-origin" not in headers
        assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer" and "server" not in headers
        assert headers["cache-control"] == ("no-cache" if path in ("/", "/app.js") else "no-store")


def test_no_path_of_a_request_reaches_a_file(planted_api):
    for path in ("/app.py", "/static/app.js", "/..%2fapp.py", "/%2e%2e/app.py", "//etc/passwd", "/index.html",
                 "/app.js/", "/app.js%00"):
        assert planted_api.get(path).status_code in (404, 307), path
    page = planted_api.get("/").text
    assert "http:" not in page.replace("http://www.w3.org", "") and "https:" not in page and "//" not in page
    assert not {"style=", "onclick=", "javascript:"} & set(page.split())


def test_titles_of_a_hostile_data_set_are_text(planted, planted_api):
    hostile = ["<script>alert(1)</script>", "\u202egnp.exe\x00\x1b[31m", "x" * 2000, "\"'>&<img src=x onerror=y>",
               "</title>\n{{7*7}}", "=HYPERLINK(\"http://evil\")"]
    planted.movies.title[:] = hostile
    answer = planted_api.recommend(ratings={"10": 5}, filters={"min_ratings": 0, "include_seen": True}, explain=True)
    assert answer.text.isascii() and answer.headers["content-type"] == "application/json"
    assert {row["title"] for row in answer.json()["recommendations"]} == set(hostile)
    for path in ("/api/map", "/api/popular?min_ratings=0", "/api/movies?query=script"):
        assert planted_api.get(path).text.isascii()


def test_recommenders_of_few_dates_are_kept(planted):
    planted.meta["num_days"] = 5000
    answers = Answers(planted)
    kept = [answers.as_of(datetime.date(2000, 1, 1) + datetime.timedelta(day)) for day in range(3 * DATES_KEPT)]
    assert len({id(one) for one in kept}) == 3 * DATES_KEPT
    assert answers._of_date.cache_info().currsize == DATES_KEPT
    assert answers.as_of(datetime.date(1900, 1, 1)) is answers.as_of(datetime.date(1999, 1, 1))
    assert answers.as_of(None) is planted


def test_text_ids_are_asked_for_as_they_are_written(planted, planted_api):
    names = ["a/b", "a b", "b\u00e9", "c?d", "e#f", "10"]
    planted.movies = planted.movies._replace(movie_id=np.array(sorted(names)))
    planted.__dict__.pop("_finder", None)
    for name in names:
        similar = planted_api.get(f"/api/similar/{quote(name, safe='')}")
        assert similar.status_code == 200 and similar.json()["movie_id"] == name
        assert planted_api.recommend(ratings={name: 5}).status_code == 200
    assert json.loads(Answers(planted).ask(Person(ratings={"a/b": 5})))["kind"] == "ask"


def test_the_documentation_names_every_address_and_the_fields_of_a_row(planted_api):
    described = planted_api.get("/openapi.json").json()
    assert set(described["paths"]) == {
        "/healthz", "/api/run", "/api/recommend", "/api/ask", "/api/movies", "/api/similar/{movie_id}", "/api/popular",
        "/api/users/{user_id}", "/api/map", "/api/ratings_file"}
    row = planted_api.recommend(ratings={"10": 5}, explain=True).json()["recommendations"][0]
    assert set(described["components"]["schemas"]["Recommendation"]["properties"]) == set(row)
    assert planted_api.get("/healthz").json() == {"status": "ok"}
    assert planted_api.get("/api/run").json()["stars_range"] == [1, 5]
