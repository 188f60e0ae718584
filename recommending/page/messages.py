"""What the API takes and answers, and its bounds: these classes are its documentation, /openapi.json.

A list is the object that `rec.py --json` prints; its rows are `Recommendation`, whatever fields that has.
"""

import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from preprocessing.dataset import Id
from recommending.recommender import Filters, Recommendation

MOST_RATINGS = 5_000  # in a question
MOST_LISTED = 200  # movies of a list
MOST_LETTERS = 200  # of a text to look for
MOST_ID_LETTERS = 500
LARGEST_ID = 2**53 - 1  # that a browser writes exactly; a larger one is sent as text


def _date_of(value: object) -> object:
    """Return the date of a text; anything else as it is, for pydantic to refuse."""
    if not isinstance(value, str):
        return value if value is None else object()
    if len(value) != 10:
        raise ValueError("a date is written as YYYY-MM-DD, such as 2005-12-10")
    return datetime.date.fromisoformat(value)


def _whole(value: object) -> object:
    """Return 5 for 5.0, which JSON Schema calls an integer too."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = BeforeValidator(_whole)
IdText = Annotated[str, Field(min_length=1, max_length=MOST_ID_LETTERS)]
UserId = Annotated[Annotated[int, Field(ge=-LARGEST_ID, le=LARGEST_ID)] | IdText, Whole]
TopN = Annotated[int, Field(ge=1, le=MOST_LISTED, description="length of the list"), Whole]
Date = Annotated[datetime.date, BeforeValidator(_date_of), Field(
    description="as of when; the first or last day of the data set where it lies outside")]
Year = Annotated[int, Field(ge=-9999, le=9999), Whole]
Text = Annotated[str, Field(max_length=MOST_LETTERS)]
Pair = Annotated[list[float], Field(min_length=2, max_length=2)]
FewestRatings = Annotated[int, Field(ge=0, le=2**31 - 1), Whole]


class Narrowing(BaseModel):
    """Which movies may be listed."""

    model_config = ConfigDict(strict=True, extra="forbid")

    year_from: Year | None = Field(default=None, description="only movies of this year or later")
    year_to: Year | None = Field(default=None, description="only movies of this year or earlier")
    min_ratings: FewestRatings = Field(default=1, description="only movies with so many training ratings")
    title: Text = Field(default="", description="only movies with this in their title")
    include_seen: bool = Field(default=False, description="list rated movies too, with the stars given")

    def filters(self) -> Filters:
        """Return them as the recommender takes them."""
        return Filters(self.year_from, self.year_to, self.min_ratings, self.title, self.include_seen)


class Person(BaseModel):
    """Who asks: ratings, or a user of the data set, or such a user with ratings added."""

    model_config = ConfigDict(strict=True, extra="forbid", json_schema_extra={"anyOf": [
        {"required": ["ratings"], "properties": {"ratings": {"type": "object"}}},
        {"required": ["user_id"], "properties": {"user_id": {"type": ["integer", "string"]}}}]})

    ratings: dict[IdText, Annotated[float, Field(allow_inf_nan=False)]] | None = Field(
        default=None, max_length=MOST_RATINGS, description="stars by movie_id", examples=[{"571": 5, "30": 1}])
    user_id: UserId | None = Field(default=None, description="a user of the data set")
    date: Date | None = None
    top_n: TopN = 10


class Question(Person):
    """A question for a person's list; one of ratings and user_id must be given."""

    rank_by: Literal["rating", "relevance"] = Field(
        default="rating", description="highest stars first, movies with few ratings a little lower, or most likely to "
        "be watched and liked next")
    explain: bool = Field(default=False, description="say which ratings raised each score most")
    filters: Narrowing = Narrowing()


class Search(BaseModel):
    """Movies by their titles, as people write them, or by their ids."""

    model_config = ConfigDict(extra="forbid")

    query: Text = Field(default="", description="what titles have in them")
    alike: bool = Field(default=False, description="titles much like the query instead, for one that finds nothing")
    movie_id: Annotated[list[IdText], Field(max_length=MOST_LISTED)] = Field(
        default=[], description="these movies instead, in this order; unknown ones are left out")
    top_n: TopN = 10
    year_from: Year | None = None
    year_to: Year | None = None
    min_ratings: FewestRatings = 0


class OfAllMovies(BaseModel):
    """Which movies a list that is nobody's may have."""

    model_config = ConfigDict(extra="forbid")

    top_n: TopN = 10
    date: Date | None = None
    year_from: Year | None = None
    year_to: Year | None = None
    min_ratings: FewestRatings = 1
    title: Text = ""


class OfUser(BaseModel):
    """Which ratings of a user."""

    model_config = ConfigDict(extra="forbid")

    top_n: Annotated[int, Field(ge=1, le=MOST_RATINGS), Whole] = 100
    date: Date | None = None


class MovieList(BaseModel):
    """A list, key by key as `rec.py --json` prints it."""

    kind: Literal["user", "new", "popular", "similar", "search", "ask"]
    user_id: Id | None
    movie_id: Id | None
    ranked_by: Literal["rating", "relevance"] | None
    as_of: datetime.date | None
    recommendations: list[Recommendation]


class UserRating(BaseModel):
    """A rating of a user of the data set."""

    movie_id: Id
    title: str
    year: int | None
    stars: float
    date: datetime.date


class UserRatings(BaseModel):
    """A user of the data set: how much they have rated, and the last ratings, the latest first."""

    kind: Literal["ratings"]
    user_id: Id
    num_ratings: int
    as_of: datetime.date | None
    ratings: list[UserRating]


class MapMovie(BaseModel):
    """A movie's place."""

    movie_id: Id
    title: str
    year: int | None
    num_ratings: int
    x: float
    y: float


class MovieMap(BaseModel):
    """All movies on the two axes along which their vectors differ most, as `rec.py --map --json` prints it."""

    kind: Literal["map"]
    file: None
    variance: Pair
    movies: list[MapMovie]


class FileRatings(BaseModel):
    """What a file of ratings holds."""

    ratings: dict[str, float]
    remarks: list[str] = Field(description="sentences on lines that are left out")


class Facts(BaseModel):
    """The data set that is served, and what the run can do."""

    num_users: int
    num_movies: int
    num_ratings: int
    stars_range: Pair
    stars_step: float
    first_day: datetime.date
    last_day: datetime.date
    can_rank_by: list[Literal["rating", "relevance"]]
    example_user_id: Id | None
    data_set: str = Field(description="tells data sets apart, so that ratings are not taken for those of another")
    most_ratings: int


class Health(BaseModel):
    """The server answers."""

    status: Literal["ok"]


class Problem(BaseModel):
    """Why there is no answer, in one sentence."""

    error: str


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the documentation of answers that are no success."""
    return {status: {"model": Problem} for status in statuses}
