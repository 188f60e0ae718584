"""What the API answers: JSON, made by the functions that rec.py calls, so that both say the same.

Nothing of a question is kept, nothing is written, and no file is opened that a question names. Methods are called in
threads, several at once, and in worker processes, see workers.py.
"""

import datetime
import threading
from dataclasses import dataclass
from functools import cached_property, lru_cache

from fastapi import HTTPException

from preprocessing.dataset import DataError, Id, are_text, position_of, typed_id
from recommending.dates import AsOf
from recommending.formatting import as_json, as_json_object
from recommending.movie_map import map_movies, map_object
from recommending.page.messages import MOST_RATINGS, OfAllMovies, OfUser, Person, Question, Search
from recommending.ratings_input import read_ratings
from recommending.recommender import NUM_REASONS, Filters, History, Recommender

DATES_KEPT = 4  # recommenders of other dates; at Netflix's size each takes 25 MiB
ALIKE_LETTERS = 60  # of a query that is compared with all titles


class Answers:
    """What the API answers, as JSON."""

    def __init__(self, recommender: Recommender) -> None:
        """Take over a recommender as of the last day."""
        self.recommender = recommender
        self._files = threading.Lock()  # two threads do not read one parquet file at once
        self._of_date = lru_cache(DATES_KEPT)(recommender.as_of_date)
        self._dates = threading.Lock()

    def warm_up(self) -> None:
        """Make now what is else made when it is first asked for, so that nobody waits for it."""
        self.search(Search(query="warm up"))
        self.ask(Person(ratings={}))
        self.recommend(Question(ratings={}))

    def as_of(self, date: datetime.date | None) -> Recommender:
        """Return the recommender for a date."""
        if date is None:
            return self.recommender
        with self._dates:
            return self._of_date(AsOf.of(date, self.recommender.meta).date)

    def facts(self) -> str:
        """Return what the page has to know of the data set."""
        recommender, meta = self.recommender, self.recommender.meta
        first = datetime.date.fromisoformat(meta["day_epoch"])
        with self._files:
            example = recommender.any_user_id() if meta.get("num_users") else None
        return as_json_object({
            "num_users": meta.get("num_users", 0), "num_movies": len(recommender.movies.title),
            "num_ratings": meta.get("num_ratings", 0), "stars_range": meta["stars_range"],
            "stars_step": meta["stars_step"], "first_day": str(first),
            "last_day": str(first + datetime.timedelta(meta["num_days"] - 1)),
            "can_rank_by": ["rating", *["relevance"] * (recommender.model.relevance is not None)],
            "example_user_id": example, "data_set": meta.get("fingerprint", "")[:16], "most_ratings": MOST_RATINGS})

    def history(self, recommender: Recommender, person: Person) -> History:
        """Return the ratings of who asks."""
        text_ids = are_text(recommender.movies.movie_id)
        given = {typed_id(movie_id, text_ids): stars for movie_id, stars in (person.ratings or {}).items()}
        try:
            if person.user_id is None:
                if person.ratings is None:
                    raise HTTPException(422, "give ratings or a user_id")
                return recommender.history_from(given)
            return recommender.add_ratings(self.user(recommender, recommender.user_id_of(str(person.user_id))), given)
        except DataError as error:
            for movie_id in given:
                self.must_have(movie_id)
            raise HTTPException(422, str(error)) from None

    def user(self, recommender: Recommender, user_id: Id) -> History:
        """Return the ratings of a user of the data set."""
        with self._files:
            if (isinstance(user_id, int) and abs(user_id) >= 2**63) or not recommender.has_user(user_id):
                raise HTTPException(404, f"user_id {user_id} is not in the data set")
            return recommender.history_of(user_id)

    def must_have(self, movie_id: Id) -> None:
        """Raise an error where there is no such movie."""
        if position_of(self.recommender.movies.movie_id, movie_id) is None:
            raise HTTPException(404, f"movie_id {movie_id} is not in the data set")

    def recommend(self, question: Question) -> str:
        """Return a person's list."""
        recommender = self.as_of(question.date)
        if question.rank_by == "relevance" and recommender.model.relevance is None:
            raise HTTPException(409, "this run has no order by relevance")
        history = self.history(recommender, question)
        rows = recommender.recommend(history, question.top_n, question.filters.filters(), question.rank_by,
                                     NUM_REASONS * question.explain)
        kind = "new" if history.user_id is None else "user"
        return as_json(kind, rows, history.user_id, None, question.rank_by, recommender.as_of)

    def ask(self, person: Person) -> str:
        """Return movies to rate next."""
        recommender = self.as_of(person.date)
        history = self.history(recommender, person)
        return as_json("ask", recommender.ask(history, person.top_n), history.user_id, as_of=recommender.as_of)

    def search(self, search: Search) -> str:
        """Return movies by title or id."""
        recommender, text_ids = self.recommender, are_text(self.recommender.movies.movie_id)
        if search.movie_id:
            found = [position_of(recommender.movies.movie_id, typed_id(text, text_ids)) for text in search.movie_id]
            rows = recommender.lines_of([movie for movie in found if movie is not None])
        elif search.alike:
            rows = recommender.search_alike(search.query[:ALIKE_LETTERS])
        else:
            filters = Filters(search.year_from, search.year_to, search.min_ratings)
            rows = recommender.search(search.query, filters) if search.query.strip() else []
        return as_json("search", rows[:search.top_n if not search.movie_id else None])

    def similar(self, movie_id: str, asked: OfAllMovies) -> str:
        """Return the movies most like one."""
        recommender = self.as_of(asked.date)
        one = typed_id(movie_id, are_text(recommender.movies.movie_id))
        self.must_have(one)
        rows = recommender.similar(one, asked.top_n, _filters(asked))
        return as_json("similar", rows, None, one, None, recommender.as_of)

    def popular(self, asked: OfAllMovies) -> str:
        """Return the movies with the most ratings."""
        recommender = self.as_of(asked.date)
        return as_json("popular", recommender.popular(asked.top_n, _filters(asked)), as_of=recommender.as_of)

    def ratings_of(self, user_id: str, asked: OfUser) -> str:
        """Return the latest ratings of a user of the data set."""
        recommender = self.as_of(asked.date)
        one = recommender.user_id_of(user_id)
        history = self.user(recommender, one)
        first = datetime.date.fromisoformat(recommender.meta["day_epoch"])
        latest = slice(None, -asked.top_n - 1, -1)
        movies, movie_idx = recommender.movies, history.movie_idx.numpy()[latest]
        columns = zip(movie_idx.tolist(), history.stars.numpy()[latest].tolist(),
                      history.day.numpy()[latest].tolist(), strict=True)
        return as_json_object({
            "kind": "ratings", "user_id": one, "num_ratings": len(history.movie_idx),
            "as_of": None if recommender.as_of is None else str(recommender.as_of), "ratings": [
                {"movie_id": movies.movie_id[movie].item(), "title": movies.title[movie],
                 "year": int(movies.year[movie]) or None, "stars": stars,
                 "date": str(first + datetime.timedelta(day))} for movie, stars, day in columns]})

    @cached_property
    def _map(self) -> str:
        return as_json_object(map_object(self.recommender, map_movies(self.recommender)))

    def map(self) -> str:
        """Return where the movies lie; made when first asked for."""
        try:
            return self._map
        except DataError as error:
            raise HTTPException(409, str(error)) from None

    def file_ratings(self, content: bytes) -> str:
        """Return what a file of ratings says, as `--ratings_file` reads it."""
        try:
            own = read_ratings(SentFile(content), self.recommender, num_suggested=0)
        except DataError as error:
            raise HTTPException(422, str(error)) from None
        if len(own.stars) > MOST_RATINGS:
            raise HTTPException(422, f"the file holds {len(own.stars):,} ratings, more than {MOST_RATINGS:,}")
        return as_json_object({"ratings": {str(movie_id): stars for movie_id, stars in own.stars.items()},
                               "remarks": own.remarks})


def _filters(asked: OfAllMovies) -> Filters:
    return Filters(asked.year_from, asked.year_to, asked.min_ratings, asked.title)


@dataclass
class SentFile:
    """A file of ratings that came with a request."""

    content: bytes

    def __str__(self) -> str:
        return "the file"

    def read_bytes(self) -> bytes:
        """Return what was sent."""
        return self.content
