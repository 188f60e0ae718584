"""A list of movies, and the reasons in it, as pandas DataFrames for notebooks.

    movies = recommender.recommend(history)
    recommender.explain(history, movies)
    list_frame(movies)       # a row per movie
    reasons_frame(movies)    # a row per reason
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from recommending.recommender import Recommendation

if TYPE_CHECKING:
    import pandas as pd

TYPES = {"movie_id": None, "title": "str", "year": "Int64", "num_ratings": "int64"}  # ids are numbers or text
TYPES_IF_KNOWN = {"stars": "float64", "stars_bound": "float64", "interval_low": "float64", "interval_high": "float64",
                  "similarity": "float64", "rated": "float64"}


def list_frame(recommendations: Sequence[Recommendation]) -> "pd.DataFrame":
    """Return a list that `Recommender` made, a row per movie, best first; the index is the rank.

    Columns are the fields of `Recommendation`: movie_id, title, year (missing where unknown) and num_ratings; then
    stars, stars_bound, interval_low and interval_high (the two ends of `interval`), similarity and rated (NaN where
    None), each only if some movie of the list has it. An empty list has all.
    """
    import pandas as pd  # half a second, so only where a frame is asked for

    known = {name: type_name for name, type_name in TYPES_IF_KNOWN.items()
             if not recommendations or any(_value(row, name) is not None for row in recommendations)}
    rank = pd.Index([row.rank for row in recommendations], dtype="int64", name="rank")
    return pd.DataFrame({name: pd.Series([_value(row, name) for row in recommendations], rank, type_name)
                         for name, type_name in {**TYPES, **known}.items()})


def _value(row: Recommendation, name: str) -> object:
    """Return what a column has of a line of a list."""
    if name in ("interval_low", "interval_high"):
        return row.interval and row.interval[name == "interval_high"]
    return getattr(row, name)


def reasons_frame(recommendations: Sequence[Recommendation]) -> "pd.DataFrame":
    """Return what `Recommender.explain` filled in, a row per reason, the strongest of a movie first.

    The index is the rank of the listed movie, title its title. rated_movie_id, rated_title and rated (stars that the
    person gave) are of the movie that raised its score by `effect`, before the sigmoid.
    """
    import pandas as pd

    reasons = [(row, reason) for row in recommendations for reason in row.because or []]
    rank = pd.Index([row.rank for row, _ in reasons], dtype="int64", name="rank")
    return pd.DataFrame({"title": pd.Series([row.title for row, _ in reasons], rank, "str"),
                         "rated_movie_id": pd.Series([reason.movie_id for _, reason in reasons], rank),
                         "rated_title": pd.Series([reason.title for _, reason in reasons], rank, "str"),
                         "rated": pd.Series([reason.stars for _, reason in reasons], rank, "float64"),
                         "effect": pd.Series([reason.effect for _, reason in reasons], rank, "float64")})
