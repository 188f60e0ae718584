"""Find a movie as a person writes it: by its id, or by its title with or without the year.

    571    Matrix, The    the matrix    The Matrix (1999)    Schindler’s List    Spider–Man    Amelie

Titles are compared by their letters and digits: without case, accents, marks and spaces, the article in front wherever
it stands. Other names in parentheses after a title count as well, and the title without them.
"""

import difflib
import re
import unicodedata

from preprocessing.dataset import DataError, Movies, position_of

MOST_CHOICES = 10
MOST_SUGGESTIONS = 3
ARTICLES = ("the", "a", "an", "le", "la", "les", "l'", "un", "une", "el", "los", "las", "il", "lo", "gli", "i", "der",
            "die", "das", "ein", "eine", "den", "det", "en", "et", "o", "os", "as", "um", "uma", "de", "het", "een")


class MovieFinder:
    """Looks movies up in a catalogue."""

    def __init__(self, movies: Movies) -> None:
        self.movies = movies
        self._by_key: dict[str, list[int]] = {}
        for movie_idx, title in enumerate(movies.title):
            for key in dict.fromkeys(title_key(name) for name in names_of(title)):
                if key:
                    self._by_key.setdefault(key, []).append(movie_idx)

    def find(self, text: str, year: int | None = None) -> int:
        """Return the movie_idx of a movie_id or a title; a year tells movies of one title apart, as does one in
        parentheses after it.

        Raises:
            DataError: there is no such movie (some like it are named), or there are several (they are told apart).
        """
        text = text.strip()
        if text.isascii() and text.isdigit():
            movie_idx = position_of(self.movies.movie_id, int(text))
            if movie_idx is not None:
                return movie_idx
        found = self._by_key.get(title_key(text), [])
        if not found and (dated := re.fullmatch(r"(.*\S)\s*\((\d{4})\)", text)):
            text, year = dated[1], int(dated[2])
            found = self._by_key.get(title_key(text), [])
        if year is not None and found:
            found = [movie for movie in found if self.movies.year[movie] in (year, 0)]
        if len(found) > 1 and len(exact := [movie for movie in found if self.movies.title[movie] == text]) == 1:
            found = exact
        if not found:
            raise DataError(f"no movie is called {text[:60]!r}{f' of {year}' if year else ''}{self._like(text)}")
        if len(found) > 1:
            choices = ", ".join(self._described(movie) for movie in found[:MOST_CHOICES])
            more = f" and {len(found) - MOST_CHOICES} more" if len(found) > MOST_CHOICES else ""
            raise DataError(f"{len(found)} movies are called {text[:60]!r}; give the movie_id of one: {choices}{more}")
        return found[0]

    def _described(self, movie_idx: int) -> str:
        """Return what tells a movie from others of its title."""
        movies = self.movies
        year, number = movies.year[movie_idx] or "year unknown", movies.num_train_ratings[movie_idx]
        return f"{movies.movie_id[movie_idx]} ({year}, {number:,} rating{'' if number == 1 else 's'})"

    def _like(self, text: str) -> str:
        """Return a question that names movies with a title much like a text, or how to look for one."""
        keys = difflib.get_close_matches(title_key(text), self._by_key, MOST_SUGGESTIONS, 0.75)
        like = list(dict.fromkeys(movie for key in keys for movie in self._by_key[key]))[:MOST_SUGGESTIONS]
        if not like:
            return "; look for it with: python rec.py --include_seen --title PART_OF_IT"
        named = (f"{self.movies.title[movie]} ({self.movies.movie_id[movie]})" for movie in like)
        return f"; did you mean {', '.join(named)}?"


def names_of(title: str) -> list[str]:
    """Return the names of a movie in its title: as it stands, what stands in parentheses at its end, and without."""
    names = [title]
    while found := re.fullmatch(r"(.*\S)\s*\(([^()]*)\)", title):
        title = found[1]
        names += [title, re.sub(r"(?i)^a\.?k\.?a\.?\s*", "", found[2])]
    return names


def title_key(title: str) -> str:
    """Return a title in the form in which titles are compared."""
    plain = fold(title)
    if "," in plain:
        rest, _, last = plain.rpartition(",")
        if last.strip() in ARTICLES:
            plain = f"{last.strip()} {rest}"
    letters = "".join(letter for letter in plain.replace("&", " and ") if letter.isalnum())
    return letters or plain


def fold(text: str) -> str:
    """Return a text without case and accents, typographic marks as those of a keyboard, single spaces."""
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    plain = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    return " ".join(plain.translate(MARKS).split())


MARKS = str.maketrans("‘’‚‛′`´“”„‟«»–—‐‑‒―−", "'''''''\"\"\"\"\"\"-------", "\u200b\ufeff")
