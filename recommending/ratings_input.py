"""Ratings that a person gives: typed as "MOVIE:STARS,...", or in a file.

    title,year,stars                a header names the columns, in any order; others are passed over
    "Good, the Bad and the Ugly, The",1966,4.5

Exports of Letterboxd, IMDb, Netflix and MovieLens are such files, and so is a list of "movie_id,stars" or "title,stars"
without a header. See preprocessing/dataset/tables.py for separators and encodings, movie_finder.py for titles.
"""

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from preprocessing.dataset import DataError, Id, are_text, position_of
from preprocessing.dataset.tables import (
    COUNTS_TO,
    ITEM_ID_NAMES,
    ITEM_NAMES,
    TITLE_NAMES,
    USER_NAMES,
    Names,
    Table,
    TableFile,
    is_number,
    number_of,
    plain_name,
    read_table,
)
from recommending.recommender import Recommender

if TYPE_CHECKING:
    import pandas as pd

COLUMNS: Names = {  # names that a header may have for a column, the best first
    "movie_id": (*ITEM_ID_NAMES, "id"),
    "title": ("title", "titlename", *TITLE_NAMES, "name", "moviename", "primarytitle", "originaltitle", *ITEM_NAMES),
    "year": ("year", "releaseyear", "yearofrelease", "startyear"),
    "stars": ("stars", "yourrating", "myrating", "starvalue", "rating", "userrating", "score", "mystars", "yourstars"),
    "person": ("profilename", *USER_NAMES),
}
SHAPES = {  # of a file without header: its columns, if each holds numbers (n), text (t) or years (y) as said here
    ("movie_id", "stars"): "nn", ("title", "stars"): "tn", ("stars", "title"): "nt", ("title", "year", "stars"): "tyn",
    ("movie_id", "title", "stars"): "ntn", ("person", "movie_id", "stars"): "nnn",
    ("person", "movie_id", "stars", "time"): "nnnn",
}
MOST_LISTED = 5  # movies that were not found, in a sentence; also lines without stars
MOST_SUGGESTED = 20  # movies that were not found for which others are looked up that are called much alike


@dataclass
class OwnRatings:
    """What a file of somebody's ratings says."""

    stars: dict[Id, float] = field(default_factory=dict)  # by movie_id
    remarks: list[str] = field(default_factory=list)  # sentences on rows that are left out


def parse_ratings(text: str) -> list[tuple[str, float]]:
    """Read "MOVIE:STARS,..." into (movie, stars); a movie is an id or a title, which may hold commas and colons.

    Raises:
        ValueError: a part is not of this form, or a movie is there twice.
    """
    ratings: dict[str, float] = {}
    unread: list[str] = []  # parts between commas that are not yet a rating
    for part in text.split(","):
        unread.append(part)
        movie, _, stars = ",".join(unread).rpartition(":")
        try:
            number = float(stars)
        except ValueError:
            continue
        if not movie.strip():
            break
        if movie.strip() in ratings:
            named = f"movie_id {movie.strip()}" if movie.strip().isdigit() else repr(movie.strip()[:60])
            raise ValueError(f"{named} is rated twice")
        ratings[movie.strip()] = number
        unread = []
    if unread:
        raise ValueError(f"{','.join(unread)[:60]!r} is not MOVIE:STARS, such as \"Heat (1995):4\"")
    return list(ratings.items())


def find_rated(recommender: Recommender, ratings: list[tuple[str, float]]) -> dict[Id, float]:
    """Return typed ratings by movie_id.

    Raises:
        DataError: a movie that is not found or not the only one, one twice, or stars outside the scale.
    """
    stars: dict[Id, float] = {}
    for text, given in ratings:
        movie_id = recommender.movie_id_of(text)
        if movie_id in stars:
            raise DataError(f"movie_id {movie_id} is rated twice, the second time as {text[:60]!r}")
        recommender.history_from({movie_id: given})
        stars[movie_id] = given
    return stars


def read_ratings(path: TableFile, recommender: Recommender, num_suggested: int = MOST_SUGGESTED) -> OwnRatings:
    """Read a file of somebody's ratings.

    For the first `num_suggested` movies that are not found, those are named that are called much alike.

    Rows without stars, and movies that are not found or not told apart, are left out and listed in the remarks.

    Raises:
        DataError: with file and line: stars that are no number or outside the scale, a movie twice; a header without a
            column of movies or of stars; no movie at all that is found; ratings of several people.
        OSError: the file cannot be read.
    """
    table = read_table(path, COLUMNS, ("stars",), _columns_of)
    frame, own = table.frame, OwnRatings()
    _check_columns(path, table)
    scale = _scale(table, recommender.meta["stars_range"][1])
    line_of: dict[Id, int] = {}
    empty: list[int] = []
    unknown: list[tuple[int, str]] = []
    for line, row in zip(frame.index.tolist(), frame.to_dict("records"), strict=True):
        where = f"{path}, line {line}"
        if not row["stars"]:
            empty.append(line)
            continue
        try:
            stars = number_of(row["stars"]) * scale
        except ValueError:
            raise DataError(f"{where}: {row['stars'][:60]!r} is no number of stars") from None
        try:
            movie_id = _movie_id(recommender, row, "title" in table.named, len(unknown) < num_suggested)
        except DataError as error:
            unknown.append((line, str(error)))
            continue
        try:
            recommender.history_from({movie_id: stars})
        except DataError as error:
            hint = "" if not 5 < stars <= 10 or scale != 1 else (
                "; if all of them count to 10, call their column 'rating (of 10)'")
            raise DataError(f"{where}: {error}{hint}") from None
        if movie_id in own.stars:
            raise DataError(f"{where}: movie_id {movie_id} is rated already in line {line_of[movie_id]}")
        own.stars[movie_id], line_of[movie_id] = stars, line
    if unknown and not own.stars:
        others = f"; none of {len(unknown):,} movies is found" if len(unknown) > 1 else ""
        raise DataError(f"{path}, line {unknown[0][0]}: {unknown[0][1]}{others}")
    if empty and not own.stars:
        raise DataError(f"{path}, line {empty[0]}: there are no stars, nor in any other line")
    if not own.stars:
        raise DataError(f"{path} holds no ratings; write lines of movie_id,stars or title,stars into it")
    if empty:
        listed = ", ".join(map(str, empty[:MOST_LISTED])) + (", .." if len(empty) > MOST_LISTED else "")
        own.remarks.append(f"{path}: {len(empty):,} without stars left out: line{'s' * (len(empty) > 1)} {listed}")
    if unknown:
        own.remarks.append(f"{path}: {len(own.stars):,} of {len(own.stars) + len(unknown):,} movies found, not these:")
        own.remarks += [f"  line {line}: {sentence}" for line, sentence in unknown]
    return own


def _movie_id(recommender: Recommender, row: dict[str, str], title_first: bool, with_suggestions: bool) -> Id:
    """Return the movie of a row: by its title, where it has one, for ids are often those of another catalogue; by its
    id, where ids are text, for nothing else has such ids by chance."""
    year, movie_id, title = (row.get(name, "") for name in ("year", "movie_id", "title"))
    if are_text(recommender.movies.movie_id) and position_of(recommender.movies.movie_id, movie_id) is not None:
        return movie_id
    return recommender.movie_id_of(
        title or movie_id, int(float(year)) if re.fullmatch(r"\d{4}(\.0*)?", year) else None,
        int(movie_id) if re.fullmatch(r"[0-9]{1,10}", movie_id) else None, bool(title) and title_first,
        with_suggestions)


def _columns_of(frame: "pd.DataFrame") -> tuple[str, ...]:
    """Return what the columns of a file without header are; names that mean nothing if nobody can tell."""
    unknown = tuple(f"column {number}" for number in range(1, frame.shape[1] + 1))
    frame = frame.loc[:, (frame != "").any()]
    for columns, shape in SHAPES.items():
        if len(shape) == frame.shape[1] and all(_holds(frame[place], kind) for place, kind in zip(
                frame.columns, shape, strict=True)):
            return columns
    return ("title", "stars") if frame.shape[1] == 2 else unknown


def _holds(column: "pd.Series", kind: str) -> bool:
    """Tell whether a column holds mostly numbers ("n"), years alone ("y") or mostly anything else ("t")."""
    cells = column[column != ""]
    if kind == "y":
        return bool(cells.str.fullmatch(r"(1[89]|20)\d\d").all())
    return bool(cells.map(is_number).sum() >= len(cells) / 2) == (kind == "n")


def _check_columns(path: TableFile, table: Table) -> None:
    """Raise DataError where a table has no column of movies or of stars, or ratings of several people."""
    frame = table.frame
    if frame.empty:
        return
    if "stars" not in frame or not {"title", "movie_id"} & set(frame):
        if table.named:
            raise DataError(f"{path}, line 1: no column is named for the movies (title or movie_id)")
        row = ",".join(frame.iloc[0])
        raise DataError(f"{path}, line {frame.index[0]}: {row[:60]!r} is not movie_id,stars or title,stars (a title "
                        "that holds a comma stands in double quotes)")
    people = frame["person"].unique().tolist() if "person" in frame else []
    if len(people) > 1:
        raise DataError(f"{path} holds the ratings of {len(people):,} people ({table.named.get('person', 'column 1')}: "
                        f"{', '.join(map(repr, people[:3]))}{', ..' * (len(people) > 3)}); keep the lines of one")


def _scale(table: Table, highest: float) -> float:
    """Return by what to multiply stars: a column counts to 10 where its name says so, or where it is IMDb's."""
    name = table.named.get("stars", "")
    counts_to = COUNTS_TO.search(name)
    is_imdbs = plain_name(name) == "yourrating" and all("." not in cell for cell in table.frame["stars"])
    return highest / (float(counts_to[1]) if counts_to else 10) if counts_to or is_imdbs else 1.0
