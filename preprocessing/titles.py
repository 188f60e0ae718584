"""Read movie_titles.csv (or .txt): lines `MovieID,Year,Title` without quoting, in whatever encoding."""

from dataclasses import dataclass

import numpy as np

from preprocessing.dataset import DataError
from preprocessing.dataset.tables import decode
from preprocessing.raw_files import RawFile


@dataclass
class Titles:
    """The title file, in order of movie_id."""

    movie_id: np.ndarray  # int64 (T,), ascending
    year: np.ndarray  # int16 (T,), 0 where NULL
    title: list[str]


def read_titles(file: RawFile) -> Titles:
    """Read the title file: LF or CRLF, with or without a header row, titles with commas and quotes as they stand.

    Raises:
        DataError: a line without three fields, an id or a year that is no number, an id twice; with its line number.
    """
    rows: dict[int, tuple[int, str]] = {}
    for number, line in enumerate(decode(file.read_bytes()).split("\n"), start=1):
        if not line.strip():
            continue
        movie_id, _, rest = line.partition(",")
        year, comma, title = rest.partition(",")
        if number == 1 and not movie_id.strip().isdigit() and "id" in movie_id.lower():
            continue  # a header row
        problem = None
        if not comma:
            problem = "is not MovieID,Year,Title"
        elif not is_movie_id(movie_id):
            problem = "has a movie id that is no number below 2147483648"
        elif year.strip().upper() not in ("", "NULL") and not _is_year(year):
            problem = "has a year that is neither NULL nor between 1 and 9999"
        elif int(movie_id) in rows:
            problem = "has a movie id that stands above already"
        if problem:
            raise DataError(f"{file}, line {number}: {line[:60]!a} {problem}")
        rows[int(movie_id)] = int(float(year.strip())) if _is_year(year) else 0, title
    ids = sorted(rows)
    return Titles(np.array(ids, np.int64), np.array([rows[k][0] for k in ids], np.int16), [rows[k][1] for k in ids])


def is_movie_id(text: str) -> bool:
    """Tell whether a movie's id is written as a whole number that 31 bits hold."""
    return text.isascii() and text.isdigit() and len(text) <= 10 and int(text) < 2**31


def _is_year(text: str) -> bool:
    """Tell whether a year is written as a whole number; the form 1995.0, which pandas makes of it, is one too."""
    digits = text.strip().removesuffix(".0")
    return digits.isascii() and digits.isdigit() and len(digits) <= 4 and int(digits) > 0
