"""The API of a trained run, and the files of its page.

    answers = Answers(Recommender.load("runs/default"))
    app = make_app(answers)              an ASGI application, which server.py serves
"""

import traceback
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException as HttpError

from recommending.formatting import as_json_object
from recommending.page.answers import Answers
from recommending.page.messages import (
    Facts,
    FileRatings,
    Health,
    MovieList,
    MovieMap,
    OfAllMovies,
    OfUser,
    Person,
    Question,
    Search,
    UserRatings,
    problems,
)
from recommending.page.workers import Pool, Workers, failure_sentence

STATIC = Path(__file__).parent / "static"
KINDS = {".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8",
         ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}
MOST_WAITING = 512  # questions that wait for the pool, or for the workers


def make_app(answers: Answers, workers: Workers | None = None) -> FastAPI:
    """Return the API and the page as an ASGI application.

    Args:
        workers: work out people's lists, in place of a thread.
    """
    app = FastAPI(title="Two towers", version="1", docs_url=None, redoc_url=None, openapi_url="/openapi.json",
                  description="Lists of a trained run, as rec.py --json prints them.", responses=problems(400, 422))
    # A second thread would take turns with the first for the interpreter. What takes long stops no other question.
    pool, slow = Pool(1, MOST_WAITING), Pool(1, 16)
    for_lists = workers or pool
    files = {"/" if path.name == "index.html" else f"/{path.name}": Response(  # no request names a file
        path.read_bytes(), media_type=KINDS[path.suffix], headers={"Cache-Control": "no-cache"})
        for path in sorted(STATIC.iterdir()) if path.suffix in KINDS}
    facts = Response(answers.facts(), media_type="application/json")

    async def send_file(request: Request) -> Response:
        return files[request.url.path]

    for path in files:
        app.add_api_route(path, send_file, include_in_schema=False)

    @app.get("/healthz", response_model=Health, summary="Does the server answer?")
    async def healthz() -> Response:
        return Response('{"status": "ok"}', media_type="application/json")

    @app.get("/api/run", response_model=Facts, summary="The data set that is served")
    async def run() -> Response:
        return facts

    @app.post("/api/recommend", response_model=MovieList, responses=problems(404, 408, 409, 413, 503),
              summary="A person's list, as rec.py --json prints it")
    async def recommend(question: Question) -> Response:
        return await for_lists.run(answers.recommend, question)

    @app.post("/api/ask", response_model=MovieList, responses=problems(404, 408, 413, 503),
              summary="Movies whose ratings would tell most of a person, as rec.py --ask --json prints them")
    async def ask(person: Person) -> Response:
        return await for_lists.run(answers.ask, person)

    @app.get("/api/movies", response_model=MovieList, responses=problems(503),
             summary="Movies by title, as rec.py --search --json prints them")
    async def movies(search: Annotated[Search, Query()]) -> Response:
        return await (slow if search.alike else pool).run(answers.search, search)

    @app.get("/api/similar/{movie_id:path}", response_model=MovieList, responses=problems(404, 503),
             summary="Movies like one, as rec.py --similar_to --json prints them")
    async def similar(movie_id: str, asked: Annotated[OfAllMovies, Query()]) -> Response:
        return await pool.run(answers.similar, movie_id, asked)

    @app.get("/api/popular", response_model=MovieList, responses=problems(503),
             summary="The movies with the most ratings, as rec.py --popular --json prints them")
    async def popular(asked: Annotated[OfAllMovies, Query()]) -> Response:
        return await pool.run(answers.popular, asked)

    @app.get("/api/users/{user_id:path}", response_model=UserRatings, responses=problems(404, 503),
             summary="The latest ratings of a user of the data set")
    async def user(user_id: str, asked: Annotated[OfUser, Query()]) -> Response:
        return await pool.run(answers.ratings_of, user_id, asked)

    @app.get("/api/map", response_model=MovieMap, responses=problems(409, 503),
             summary="Where the movies lie, as rec.py --map --json prints it")
    async def movie_map() -> Response:
        return await slow.run(answers.map)

    @app.post("/api/ratings_file", response_model=FileRatings, responses=problems(408, 413, 503),
              summary="Read a file of ratings, as rec.py --ratings_file does", openapi_extra={"requestBody": {
                  "required": True, "content": {"text/csv": {"schema": {"type": "string", "minLength": 1}}}}})
    async def ratings_file(request: Request) -> Response:
        return await slow.run(answers.file_ratings, await request.body())

    app.add_exception_handler(HttpError, _http_error)
    app.add_exception_handler(RequestValidationError, _wrong_request)
    app.add_exception_handler(Exception, _failure)
    return app


def problem(status: int, sentence: str, headers: Any = None) -> Response:
    """Return the one form of all errors."""
    return Response(as_json_object({"error": sentence}), status, headers, "application/json")


def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HttpError)
    sentence = {404: "there is nothing at this address", 405: "this address does not take this method"}.get(
        error.status_code) if error.detail in ("Not Found", "Method Not Allowed") else error.detail
    return problem(error.status_code, str(sentence), error.headers)


def _wrong_request(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part)[:60] for part in first["loc"] if not str(part).startswith(("dict[", "constrained-")))
    return problem(422, f"{where}: {first['msg']}"[:500])


def _failure(_: Request, error: Exception) -> Response:
    traceback.print_exception(error)
    return problem(500, failure_sentence(error))
