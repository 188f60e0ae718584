"""A list of movies as text of at most 80 columns, or as JSON."""

import datetime
import json
import unicodedata
from typing import Any

from preprocessing.dataset import Id
from recommending.recommender import Recommendation

WIDTH = 80
OFTEN = "8 of 10"  # heads the interval: so many such ratings lie in it
REASON_WIDTH = 40  # columns of a title in a reason
ID_WIDTH = 26  # columns of a movie_id that is text; JSON has it whole
PLAIN = {str, int, bool, type(None)}  # what JSON has as it is


def as_json(kind: str, recommendations: list[Recommendation], user_id: Id | None = None,
            movie_id: Id | None = None, ranked_by: str | None = None, as_of: datetime.date | None = None) -> str:
    """Return one object on one line, in ASCII: the same keys whatever the list; what does not apply is null."""
    return as_json_object({"kind": kind, "user_id": user_id, "movie_id": movie_id, "ranked_by": ranked_by,
                           "as_of": None if as_of is None else str(as_of), "recommendations": recommendations})


def as_json_object(value: dict) -> str:
    """Return an object on one line, in ASCII, its numbers to four places; a dataclass is the object of its fields."""
    def rounded(part: Any) -> Any:
        kind = type(part)
        if kind in PLAIN:
            return part
        if kind is float:
            return round(part, 4)
        if kind is list:
            return [rounded(inner) for inner in part]
        fields = part if kind is dict else vars(part)
        return {key: inner if type(inner) in PLAIN else rounded(inner) for key, inner in fields.items()}

    return json.dumps(rounded(value), allow_nan=False)


def as_table(recommendations: list[Recommendation], highest: float, encoding: str | None) -> str:
    """Return a list as text: a line per movie, reasons under it; every line has at most 80 columns.

    Args:
        highest: the most stars of the scale; up to 5 of them are drawn, to the nearest half.
        encoding: of the terminal; what it does not have is shown as "?", and stars are not drawn without it.
    """
    drawn = highest <= 5 and _can_show("★½", encoding)
    columns = {"rank": [str(row.rank) for row in recommendations],
               "id": [shown_id(row.movie_id, ID_WIDTH, encoding) for row in recommendations],
               "year": [str(row.year or "-") for row in recommendations],
               "ratings": [f"{row.num_ratings:,}" for row in recommendations]}
    if any(row.rated is not None for row in recommendations):
        columns["given"] = ["" if row.rated is None else f"{row.rated:g}" for row in recommendations]
    if any(row.similarity is not None for row in recommendations):
        columns["cosine"] = [f"{row.similarity:.3f}" for row in recommendations]
    elif any(row.stars is not None for row in recommendations):
        columns["stars"] = [f"{row.stars:.2f}" for row in recommendations]
    if any(row.interval is not None for row in recommendations):
        columns[OFTEN] = [f"{row.interval[0]:.1f}-{row.interval[1]:.1f}" if row.interval else ""
                          for row in recommendations]
    widths = {name: max(map(_width, [name, *cells])) for name, cells in columns.items()}
    columns = {name: [" " * (widths[name] - _width(cell)) + cell for cell in [name, *cells]]
               for name, cells in columns.items()}
    width = WIDTH - sum(width + 2 for width in widths.values()) - 6 * drawn
    titles = ["title", *(row.title for row in recommendations)]
    lines = ["  ".join([rank, movie_id, fit(title, width, encoding), *cells])
             for title, rank, movie_id, *cells in zip(titles, *columns.values(), strict=True)]
    text = lines[:1]
    for line, row in zip(lines[1:], recommendations, strict=True):
        text.append(f"{line} {draw_stars(row.stars)}" if drawn and row.stars is not None else line)
        text += [f"      {reason.effect:+.2f} for {count(reason.stars, 'star')} given to "
                 f"{fit(reason.title, REASON_WIDTH, encoding).rstrip()}" for reason in row.because or []]
        if row.because == []:
            text.append("      no rating raised it: it is liked by most")
    return "\n".join(text)


def as_user_table(users: list[tuple[Id, int]], encoding: str | None = "utf-8") -> str:
    """Return users, (user_id, number of ratings), as text."""
    cells = [("user_id", "ratings"),
             *((shown_id(user_id, WIDTH - 20, encoding), f"{number:,}") for user_id, number in users)]
    widths = [max(_width(row[column]) for row in cells) for column in (0, 1)]
    return "\n".join(f"{' ' * (widths[0] - _width(user_id))}{user_id}  {number:>{widths[1]}}"
                     for user_id, number in cells)


def shown_id(own_id: Id, width: int, encoding: str | None) -> str:
    """Return an id as a list shows it: a number as it is, text as `fit` does, without the padding."""
    return fit(own_id, width, encoding).rstrip() if isinstance(own_id, str) else str(own_id)


def draw_stars(stars: float) -> str:
    """Draw a number of stars to the nearest half: 3.4 is ★★★½."""
    halves = round(2 * stars)
    return "★" * (halves // 2) + "½" * (halves % 2)


def count(number: float, noun: str) -> str:
    """Return a number with its noun: 1 star, 2 stars, 1,000 stars."""
    return f"{number:,.10g} {noun}{'' if number == 1 else 's'}"


def fit(text: str, width: int, encoding: str | None = "utf-8") -> str:
    """Cut or pad a text to a width in terminal columns; what a terminal cannot show, or might obey, becomes '?'."""
    shown: list[str] = []
    used = 0
    for character in (_harmless(character, encoding) for character in text):
        used += _columns(character)
        shown.append(character)
        if used > width:
            while used > width - 3:
                used -= _columns(shown.pop())
            return "".join(shown) + "..." + " " * (width - 3 - used)
    return "".join(shown) + " " * (width - used)


def _harmless(character: str, encoding: str | None) -> str:
    """Return a character, or what is shown instead: a space for other spaces, '?' for controls and what is missing."""
    category = unicodedata.category(character)
    if category == "Zs":
        return " "
    return "?" if category[0] in "CZ" or not _can_show(character, encoding) else character


def _width(text: str) -> int:
    """Return the columns that a text takes in a terminal."""
    return sum(map(_columns, text)) if not text.isascii() else len(text)


def _columns(character: str) -> int:
    """Return the columns that a character takes in a terminal: wide ones two, combining marks none."""
    if unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _can_show(text: str, encoding: str | None) -> bool:
    """Tell whether an encoding has all characters of a text."""
    try:
        text.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
