"""Read title files: Netflix's movie_titles.csv (or .txt), lines `MovieID,Year,Title` without quoting, in whatever
encoding; and tables of ids and titles, such as MovieLens' and a catalogue of anything.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from preprocessing.dataset import DataError
from preprocessing.dataset.tables import Names, decode, read_table
from preprocessing.ids import first_rows, ids_of, number_ids, unfit_ids
from preprocessing.raw_files import RawFile

TITLE_COLUMNS: Names = {
    "movie_id": ("movieid", "itemid", "mid", "filmid", "titleid", "id"),
    "title": ("title", "movietitle", "filmtitle", "primarytitle", "name", "movie", "film", "moviename"),
    "year": ("year", "releaseyear", "yearofrelease", "startyear", "releasedate"),
}
YEAR = re.compile(r"\s*\(\s*((?:1[89]|20)\d\d)\s*(?:[-/\u2010-\u2015]\s*(?:\d{0,4}|[IVX]+|present)\s*)?\)+")


@dataclass
class Titles:
    """The title file, in order of movie_id."""

    movie_id: np.ndarray  # int64 or str (T,), ascending
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


def read_title_table(path: Path, columns: Names = TITLE_COLUMNS, with_text_ids: bool = False) -> Titles:
    """Read a table of ids and titles; a year stands in parentheses in a title, or in a column of its own.

    Args:
        columns: the names of the columns movie_id, title and year; without a header they are the first two.
        with_text_ids: ids may be text, and are it unless all are whole numbers below 2^31; a title may be empty.

    Raises:
        DataError: a line without id and title, or an id twice; with its line number.
    """
    table = read_table(path, columns, ("movie_id", "title"), lambda frame: ("movie_id", "title"))
    frame = table.frame.reindex(columns=list(columns), fill_value="")
    if with_text_ids:
        ids = ids_of(pa.chunked_array([frame["movie_id"].tolist()], pa.string()), 2**31)
        unfit, (distinct, ranks) = unfit_ids(ids), number_ids(ids)
    else:
        texts = [re.sub(r"\.0*$", "", text) for text in frame["movie_id"]]
        unfit = np.array([not is_movie_id(text) for text in texts], bool)
        unfit |= np.asarray(frame["title"] == "", bool)
        ids = np.array([int(text) if sound else 0 for text, sound in zip(texts, ~unfit, strict=True)], np.int64)
        distinct, ranks = number_ids(ids)
    first = first_rows(ranks, len(distinct))
    unfit |= first[ranks] < np.arange(len(ranks))
    if unfit.any():
        row = int(unfit.argmax())
        text = " ".join(frame.iloc[row][["movie_id", "title"]])[:60]
        expected = "id" if with_text_ids else "movie id"
        raise DataError(f"{path}, line {frame.index[row]}: {text!a} is no {expected} and title, or its id stands above "
                        "already")
    years, titles = [], []
    for text, written in zip(frame["title"].iloc[first], frame["year"].iloc[first], strict=True):
        year, title = year_and_title(text)
        if not year and (found := re.match(r"(1[89]|20)\d\d(?!\d)", written)):
            year = int(found[0])
        years.append(year)
        titles.append(title)
    return Titles(distinct, np.array(years, np.int16), titles)


def year_and_title(text: str) -> tuple[int, str]:
    """Return the last year in parentheses, of a range the first, 0 if there is none; and the title without it."""
    years = list(YEAR.finditer(text))
    if not years:
        return 0, text.strip()
    title = f"{text[:years[-1].start()]}{text[years[-1].end():]}".strip()
    return int(years[-1][1]), title or text.strip()


def is_movie_id(text: str) -> bool:
    """Tell whether a movie's id is written as a whole number that 31 bits hold."""
    return text.isascii() and text.isdigit() and len(text) <= 10 and int(text) < 2**31


def _is_year(text: str) -> bool:
    """Tell whether a year is written as a whole number; the form 1995.0, which pandas makes of it, is one too."""
    digits = text.strip().removesuffix(".0")
    return digits.isascii() and digits.isdigit() and len(digits) <= 4 and int(digits) > 0
