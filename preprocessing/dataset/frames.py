"""A data set as pandas DataFrames, for notebooks: ids, titles, stars and dates in place of indices.

    from preprocessing.dataset import movies_frame, ratings_frame

    ratings = ratings_frame("data/processed", split="train")
    ratings.merge(movies_frame("data/processed"), on="movie_id").groupby("title").stars.mean()
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from preprocessing.dataset.reader import RatingsFile, read_meta, read_movies, read_users
from preprocessing.dataset.records import SPLITS, DataError, Ratings

if TYPE_CHECKING:
    import pandas as pd

SOURCES = {"user_id": "user_idx", "movie_id": "movie_idx", "title": "movie_idx", "stars": "stars", "date": "day",
           "split": "split"}  # a column of a frame of ratings, and the column of ratings.parquet that it comes from


def ratings_frame(data_dir: str | Path, columns: Iterable[str] = ("user_id", "movie_id", "stars", "date", "split"),
                  split: str | Iterable[str] | None = None) -> "pd.DataFrame":
    """Return ratings, a row each, in order of user, date and movie; 25 bytes each, 2.3 GiB for Netflix's.

    Args:
        columns: of user_id and movie_id, in the type of their file (text is categorical), title (categorical), stars
            (float32, as people gave them), date (datetime64[s]) and split (categorical). Fewer take less memory.
        split: "train", "validation", "test" or several of them; all ratings without it.

    Raises:
        DataError: there is no such column or split, or a file is missing or damaged.
    """
    import pandas as pd  # half a second, so only where a table is read

    folder, columns = Path(data_dir), list(columns)
    chosen = list(SPLITS) if split is None else [split] if isinstance(split, str) else list(split)
    for names, known in ((columns, SOURCES), (chosen, SPLITS)):
        if unknown := set(names) - set(known):
            raise DataError(f"{min(unknown)!r} is none of {', '.join(known)}")
    meta = read_meta(folder)
    lookups = {column: _lookup(column, folder, meta) for column in columns}
    tables = {column: lookup.codes if isinstance(lookup, pd.Categorical) else lookup
              for column, lookup in lookups.items()}
    num_rows = sum(meta["split"][f"num_{part}"] for part in set(chosen))
    filled = {column: np.empty(num_rows, table.dtype) for column, table in tables.items()}
    codes, row = [SPLITS.index(part) for part in chosen], 0

    def fill(rows: slice, ratings: Ratings, column: str) -> None:
        filled[column][rows] = tables[column][getattr(ratings, SOURCES[column])]

    # A thread a column: most of the time the system takes to hand out 2.3 GiB of memory.
    with RatingsFile(folder, meta) as file, ThreadPoolExecutor(max(len(columns), 1)) as threads:
        for group in range(len(file.group_starts) - 1):
            ratings = file.read_group(group, with_split=split is not None or "split" in columns)
            if split is not None:
                ratings = ratings.subset(np.isin(ratings.known_split(), codes))
            rows = slice(row, row := row + len(ratings.user_idx))
            list(threads.map(partial(fill, rows, ratings), columns))
    return pd.DataFrame({column: pd.Categorical.from_codes(filled[column], dtype=lookup.dtype)
                         if isinstance(lookup, pd.Categorical) else filled[column]
                         for column, lookup in lookups.items()}, copy=False)


def users_frame(data_dir: str | Path) -> "pd.DataFrame":
    """Return the users, a row per user_idx: user_id, num_ratings (int64, in all splits).

    Raises:
        DataError: a file is missing or damaged.
    """
    import pandas as pd

    users = read_users(Path(data_dir))
    return pd.DataFrame({"user_id": _ids(users.user_id), "num_ratings": np.diff(users.offset)})


def movies_frame(data_dir: str | Path) -> "pd.DataFrame":
    """Return the movies, a row per movie_idx: movie_id, title, year (Int64, missing where unknown) and
    num_train_ratings (int32).

    Raises:
        DataError: a file is missing or damaged.
    """
    import pandas as pd

    movies = read_movies(Path(data_dir))
    year = pd.arrays.IntegerArray(movies.year.astype(np.int64), movies.year == 0)
    return pd.DataFrame({"movie_id": _ids(movies.movie_id), "title": list(movies.title), "year": year,
                         "num_train_ratings": movies.num_train_ratings})


def _lookup(column: str, folder: Path, meta: dict) -> "np.ndarray | pd.Categorical":
    """Return what the numbers in a column of ratings.parquet stand for: its entry n is the meaning of n."""
    import pandas as pd

    if column in ("user_id", "movie_id"):
        ids = _ids(read_users(folder).user_id if column == "user_id" else read_movies(folder).movie_id)
        return pd.Categorical(ids, ids) if isinstance(ids, list) else ids
    if column == "title":
        titles = list(read_movies(folder).title)
        return pd.Categorical(titles, pd.unique(pd.Series(titles)))
    if column == "stars":
        low, high = (round(stars / meta["stars_step"]) for stars in meta["stars_range"])
        steps = np.r_[0:max(high, 0) + 1, min(low, 0):0]  # as NumPy counts: those below zero from the end
        return (steps * meta["stars_step"]).astype(np.float32)
    if column == "date":
        return (np.datetime64(meta["day_epoch"]) + np.arange(meta["num_days"])).astype("datetime64[s]")
    return pd.Categorical(SPLITS, SPLITS)


def _ids(ids: Sequence | np.ndarray) -> list[str] | np.ndarray:
    """Return ids as pandas shall have them: numbers as they are, text as a list."""
    return ids if isinstance(ids, np.ndarray) and ids.dtype.kind == "i" else list(ids)
