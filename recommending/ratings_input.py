"""Ratings that a person gives: typed as "MOVIE:STARS,...", or in a file.

    title,year,stars                a header names the columns, in any order; others are passed over
    "Good, the Bad and the Ugly, The",1966,4.5

Exports of Letterboxd, IMDb, Netflix and MovieLens are such files, and so is a list of "movie_id,stars" or "title,stars"
without a header. See preprocessing/dataset/tables.py for separators and encodings, movie_finder.py for titles.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

from preprocessing.dataset import DataError
from preprocessing.dataset.tables import number_of, read_table
from recommending.recommender import Recommender

TITLE = ("title", "titlename", "name", "movietitle", "movie", "film")
COLUMNS = {  # names that a header may have for a column, the best first
    "movie_id": ("movieid", "itemid", "id"),
    "title": TITLE,
    "year": ("year", "releaseyear"),
    "stars": ("stars", "yourrating", "starvalue", "rating", "score", "myrating"),
}
COUNTS_TO_TEN = ("Your Rating",)  # IMDb's; halved where the data set's scale ends at 5
MOST_LISTED = 5  # rows that could not be used


@dataclass
class OwnRatings:
    """What a file of somebody's ratings says."""

    stars: dict[int, float] = field(default_factory=dict)  # by movie_id
    remarks: list[str] = field(default_factory=list)  # sentences on rows that are left out


def parse_ratings(text: str) -> list[tuple[str, float]]:
    """Read "MOVIE:STARS,..." into (movie, stars); a movie is an id or a title, which may hold commas and colons.

    Raises:
        ValueError: a part is not of this form.
    """
    ratings, position = [], 0
    for found in re.finditer(r"\s*([^:,](?:.*?\S)?)\s*:\s*(\d+(?:\.\d+)?)\s*(?:,|$)", text):
        if found.start() != position:
            break
        ratings.append((found[1], float(found[2])))
        position = found.end()
    if position != len(text) or not ratings:
        raise ValueError(f"{text[position:][:60]!r} is not MOVIE:STARS")
    return ratings


def find_rated(recommender: Recommender, ratings: list[tuple[str, float]]) -> dict[int, float]:
    """Return typed ratings by movie_id.

    Raises:
        DataError: a movie that is not found or not the only one, one twice, or stars outside the scale.
    """
    stars: dict[int, float] = {}
    for text, given in ratings:
        movie_id = recommender.movie_id_of(text)
        if movie_id in stars:
            raise DataError(f"movie_id {movie_id} is rated twice")
        stars[movie_id] = given
    recommender.history_from(stars)
    return stars


def read_ratings(path: Path, recommender: Recommender) -> OwnRatings:
    """Read a file of somebody's ratings.

    Rows without stars, and movies that are not found or not told apart, are left out and listed in the remarks.

    Raises:
        DataError: with file and line: stars that are no number or outside the scale, a movie twice; a header without a
            column of movies or of stars; no rating at all that could be used.
        OSError: the file cannot be read.
    """
    columns = read_table(path, COLUMNS, ("title", "stars"), lambda fields: len(fields) == 2 and _is_number(fields[1]))
    frame, own = columns.frame, OwnRatings()
    for missing, asked in ((not {"title", "movie_id"} & set(frame), "movies (title or movie_id)"),
                           ("stars" not in frame, "stars (stars or rating)")):
        if missing:
            raise DataError(f"{path} has no column of {asked}; found: {', '.join(columns.named.values()) or 'one'}")
    scale = recommender.meta["stars_range"][1] / 10 if columns.named.get("stars") in COUNTS_TO_TEN else 1.0
    line_of: dict[int, int] = {}
    empty, unknown = [], []
    for line, row in zip(frame.index.tolist(), frame.to_dict("records"), strict=True):
        where = f"{path}, line {line}"
        name = row.get("movie_id") or row.get("title", "")
        if not row["stars"]:
            empty.append(str(line))
            continue
        try:
            stars = number_of(row["stars"]) * scale
            movie_id = recommender.movie_id_of(name, int(row["year"]) if row.get("year", "").isdigit() else None)
        except ValueError:
            raise DataError(f"{where}: {row['stars'][:60]!r} is no number of stars") from None
        except DataError as error:
            unknown.append(f"{where}: {error}")
            continue
        try:
            recommender.history_from({movie_id: stars})
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        if movie_id in own.stars:
            raise DataError(f"{where}: movie_id {movie_id} is rated already in line {line_of[movie_id]}")
        own.stars[movie_id], line_of[movie_id] = stars, line
    if unknown and not own.stars:
        raise DataError("; ".join(unknown[:MOST_LISTED]))
    if not own.stars:
        raise DataError(f"{path} holds no ratings; write lines of movie_id,stars or title,stars into it")
    if empty:
        own.remarks.append(f"{path}: left out for want of stars: line{'' if len(empty) == 1 else 's'} "
                           f"{', '.join(empty[:MOST_LISTED])}{' ..' if len(empty) > MOST_LISTED else ''}")
    if unknown:
        own.remarks.append(f"{path}: {len(own.stars):,} movies found, {len(unknown):,} left out:")
        own.remarks += [f"  {sentence}" for sentence in unknown]
    return own


def _is_number(text: str) -> bool:
    try:
        number_of(text)
    except ValueError:
        return False
    return True
