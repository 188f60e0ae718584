"""Ratings that a person gives: typed as "MOVIE_ID:STARS,...", or in a file.

    movie_id,stars
    571,5
    "Good, the Bad and the Ugly, The",4.5

Such a file is CSV in UTF-8 or latin-1; the first line may be left out, and a title may stand for the movie_id.
"""

import csv
import io
from pathlib import Path

from preprocessing.dataset import DataError
from recommending.recommender import Recommender

HEADER = {"movie_id", "movieid", "movie", "id", "title"}  # what the first field of a header line may be
MAX_CHOICES = 10


def parse_ratings(text: str) -> dict[int, float]:
    """Read "MOVIE_ID:STARS,..." into {movie_id: stars}.

    Raises:
        ValueError: a part is not of this form, or a movie is there twice.
    """
    ratings: dict[int, float] = {}
    for part in text.split(","):
        movie_id, _, stars = part.partition(":")
        try:
            key, value = int(movie_id), float(stars)
        except ValueError:
            raise ValueError(f"{part!r} is not MOVIE_ID:STARS") from None
        if key in ratings:
            raise ValueError(f"movie_id {key} is rated twice")
        ratings[key] = value
    return ratings


def read_ratings(path: Path, recommender: Recommender) -> dict[int, float]:
    """Read a file of lines `movie_id,stars` or `title,stars` into {movie_id: stars}.

    A first field of digits is a movie_id, anything else a title, compared without upper and lower case.

    Raises:
        DataError: with file and line: a line of another form, an unknown movie, a title of several movies (they are
            listed), stars outside the scale, a movie twice; without a line: no rating in it.
        OSError: the file cannot be read.
    """
    ratings: dict[int, float] = {}
    line_of: dict[int, int] = {}
    for line, fields in _rows(path):
        where = f"{path}, line {line}"
        if len(fields) != 2:
            raise DataError(f"{where}: {','.join(fields)[:60]!r} is not movie_id,stars or title,stars "
                            "(a title that holds a comma stands in double quotes)")
        name, stars = fields[0].strip(), fields[1].strip()
        try:
            movie_id = int(name) if name.isdecimal() else _id_of_title(name, recommender)
            recommender.history_from({movie_id: float(stars)})
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        except ValueError:
            raise DataError(f"{where}: {stars[:60]!r} is no number of stars") from None
        if movie_id in ratings:
            raise DataError(f"{where}: movie_id {movie_id} is rated already in line {line_of[movie_id]}")
        ratings[movie_id], line_of[movie_id] = float(stars), line
    if not ratings:
        raise DataError(f"{path} holds no ratings; write lines of movie_id,stars into it")
    return ratings


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """Return line number and fields of each row but the header and empty ones."""
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    rows: list[tuple[int, list[str]]] = []
    reader = csv.reader(io.StringIO(text, newline=None), strict=True, skipinitialspace=True)  # any kind of line end
    try:
        for fields in reader:
            is_header = (reader.line_num == 1 and len(fields) > 1 and fields[0].strip().casefold() in HEADER
                         and not fields[1].strip()[:1].isdecimal())
            if any(field.strip() for field in fields) and not is_header:
                rows.append((reader.line_num, fields))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}") from None
    return rows


def _id_of_title(title: str, recommender: Recommender) -> int:
    """Return the movie_id of the one movie of a title."""
    ids = recommender.movies_called(title)
    if not ids:
        raise DataError(f"no movie is called {title[:60]!r}; look for its movie_id with: "
                        "python rec.py --include_seen --title PART_OF_IT")
    if len(ids) > 1:
        choices = [f"{movie_id} ({recommender.movies.year[recommender.movie_idx_of(movie_id)] or 'year unknown'})"
                   for movie_id in ids]
        more = f" and {len(ids) - MAX_CHOICES} more" if len(ids) > MAX_CHOICES else ""
        raise DataError(f"{len(ids)} movies are called {title[:60]!r}; give the movie_id of one: "
                        f"{', '.join(choices[:MAX_CHOICES])}{more}")
    return ids[0]
