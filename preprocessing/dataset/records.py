"""What a data set is in memory: its movies, users and ratings as arrays, and the error that every stage raises for bad
input.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

SPLITS = ("train", "validation", "test")
TRAIN, VALIDATION, TEST = range(3)
Id = int | str  # of a user or a movie: a whole number, or text where not all ids of the data set are numbers


def printable(text: str) -> str:
    """Return a text with ? for what may steer a terminal or end a line."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


class DataError(Exception):
    """Something in the input is wrong; the message is one sentence for the person who can mend it."""

    def __str__(self) -> str:
        """Return the sentence; what it quotes from a file cannot steer a terminal."""
        return printable(super().__str__())


class CutShort(DataError):
    """The work ended before its end, by no fault of the input: a command says behind the sentence how to go on."""


class Movies(NamedTuple):
    """The catalogue, one entry per movie_idx (M)."""

    movie_id: np.ndarray  # int32 or str (M,), ascending
    year: np.ndarray  # int16 (M,), 0 where unknown
    title: Sequence[str]
    num_train_ratings: np.ndarray  # int32 (M,)


class Titles(Sequence):
    """The titles of a data set; a title becomes a string only when it is asked for."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        """Take over a column of valid text without nulls."""
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, movie_idx: int | slice) -> str | list[str]:
        if isinstance(movie_idx, slice):
            return self._column[movie_idx].to_pylist()
        return self._column[int(movie_idx)].as_py()

    def __iter__(self) -> Iterator[str]:
        return iter(self._column.to_pylist())


class User(NamedTuple):
    """One user's index and rows."""

    user_idx: int
    rows: slice  # of ratings.parquet


class Users(NamedTuple):
    """The users, one entry per user_idx (U); their rows of ratings.parquet are offset[u]:offset[u + 1]."""

    user_id: np.ndarray  # int64 or str (U,), ascending
    offset: np.ndarray  # int64 (U + 1,)

    def user(self, user_idx: int) -> User:
        """Return the index and the rows of one of them."""
        return User(user_idx, slice(*self.offset[user_idx:user_idx + 2].tolist()))


class Ratings(NamedTuple):
    """Columns of ratings.parquet for a range of rows (R)."""

    user_idx: np.ndarray  # int32 (R,)
    movie_idx: np.ndarray  # int16 or int32 (R,)
    stars: np.ndarray  # uint8 (R,), in steps of `stars_step`
    day: np.ndarray  # int16 or int32 (R,), since the data set's `day_epoch`
    split: np.ndarray | None  # uint8 (R,): TRAIN, VALIDATION or TEST; None where it was not read

    def subset(self, rows: slice | np.ndarray) -> "Ratings":
        """Return some of the rows."""
        split = None if self.split is None else self.split[rows]
        return Ratings(self.user_idx[rows], self.movie_idx[rows], self.stars[rows], self.day[rows], split)

    def known_split(self) -> np.ndarray:
        """Return the split of ratings that have one."""
        assert self.split is not None, "these ratings were read without their split"
        return self.split


def position_of(ids: np.ndarray, target_id: Id) -> int | None:
    """Return the position of an id among ascending ids; None if it is not there.

    Numbers and text are never the same: 7 is not among the ids of a data set whose ids are text, but "7" may be.
    """
    if isinstance(target_id, str) != are_text(ids):
        return None
    if not isinstance(target_id, str) and not (limits := np.iinfo(ids.dtype)).min <= target_id <= limits.max:
        return None
    position = int(ids.searchsorted(ids.dtype.type(target_id)))  # of their type: else all of them are converted
    return position if position < len(ids) and ids[position].item() == target_id else None


def are_text(ids: np.ndarray) -> bool:
    """Tell whether ids are text."""
    return ids.dtype.kind == "U"


def typed_id(text: str, is_text: bool) -> Id:
    """Return what a person types as an id of a data set whose ids are text, or are not: then other text is none."""
    return text.strip() if is_text or not re.fullmatch(r"\s*[-+]?[0-9]{1,20}\s*", text) else int(text)
