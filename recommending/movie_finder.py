"""Find a movie as a person writes it: by its id, or by its title with or without the year.

    571    Matrix, The    the matrix    The Matrix (1999)    Schindler’s List    Spider–Man    Amelie

Titles are compared by their letters and digits: without case, accents, marks and spaces, the article in front wherever
it stands. A title counts without what stands in parentheses at its end, too, and so do the names that stand there.
"""

import difflib
import re
import unicodedata
from collections.abc import Iterator
from functools import cached_property

from preprocessing.dataset import DataError, Id, Movies, are_text, position_of

MOST_CHOICES = 10
MOST_COMMAS = 12  # of a title
MOST_SUGGESTIONS = 3
SEARCH = "look for its movie_id with: python rec.py --search PART_OF_TITLE"
ARTICLES = ("the", "a", "an", "le", "la", "les", "l'", "un", "une", "el", "los", "las", "il", "lo", "gli", "i", "der",
            "die", "das", "ein", "eine", "den", "det", "en", "et", "o", "os", "as", "um", "uma", "de", "het", "een")
MARKS = str.maketrans("‘’‚‛′`´“”„‟«»–—‐‑‒―−", "'''''''\"\"\"\"\"\"-------", "\u200b\ufeff")
LETTERS = str.maketrans({"ø": "o", "æ": "ae", "œ": "oe", "đ": "d", "ð": "d", "ł": "l", "þ": "th", "ı": "i",
                         "&": " and "})


class MovieFinder:
    """Looks movies up in a catalogue."""

    def __init__(self, movies: Movies) -> None:
        """Take over a catalogue, and note all names of its movies."""
        self.movies = movies
        # movie_idx by the key of a title as it stands, of a title without parentheses, and of another name in these
        self._by_key: tuple[dict[str, list[int]], ...] = ({}, {}, {})
        for movie_idx, title in enumerate(movies.title):
            titles, others = names_of(title)
            for level, names in enumerate((titles[:1], titles[1:], others)):
                for key in dict.fromkeys(title_key(name) for name in names):
                    if key:
                        self._by_key[level].setdefault(key, []).append(movie_idx)

    def find(self, text: str, year: int | None = None, movie_id: Id | None = None, title_first: bool = False,
             with_suggestions: bool = True) -> int:
        """Return the movie_idx of a movie_id or a title.

        Args:
            text: what a person writes; a year in parentheses at its end may tell movies of one title apart.
            year: of the movie, where it is written apart.
            movie_id: tells movies of one title apart.
            title_first: what could be either is a title before it is a movie_id.
            with_suggestions: name movies much like a title that is not found, which takes a moment.

        Raises:
            DataError: there is no such movie, or there are several (they are told apart).
        """
        text = text.strip()
        ids, by_id = self.movies.movie_id, None
        if are_text(ids) or re.fullmatch(r"[0-9]{1,18}", text):
            by_id = position_of(ids, text if are_text(ids) else int(text))
        if by_id is not None and not title_first:
            return by_id
        found = self.called(text, year)
        if movie_id is not None and len(found) > 1:
            found = [movie for movie in found if ids[movie] == movie_id] or found
        if len(found) > 1:
            found = [movie for movie in found if self.movies.title[movie].strip() == text] or found
        if len(found) == 1:
            return found[0]
        if not found:
            if by_id is not None:
                return by_id
            if re.fullmatch(r"-?[0-9]+", text):
                raise DataError(f"movie_id {text[:60]} is not in the data set; {SEARCH}")
            of = f" of {year}" if year else ""
            like = self._like(text) or f"; {SEARCH}"
            raise DataError(f"no movie{of} is called {text[:60]!r}{like if with_suggestions else ''}")
        choices = ", ".join(self._described(movie) for movie in found[:MOST_CHOICES])
        more = f" and {len(found) - MOST_CHOICES} more" if len(found) > MOST_CHOICES else ""
        raise DataError(f"{len(found)} movies are called {text[:60]!r}; give the movie_id of one: {choices}{more}")

    def find_all(self, text: str) -> list[int]:
        """Return the movie_idx of movies that a person lists with commas between, where titles may hold commas.

        Of what the text may mean, the longest title counts: "Good, the Bad and the Ugly, The,Heat" are two movies.
        Numbers alone are never one title: "19,84" are two movie_ids.

        Raises:
            DataError: as `find`; or a movie is there twice.
        """
        found: list[int] = []
        parts = text.split(",")
        while parts:
            size = 1
            for longer in range(min(len(parts), MOST_COMMAS + 1), 1, -1):
                named = ",".join(parts[:longer])
                if not re.fullmatch(r"[\s\d,]*", named) and self._names_any(named):
                    size = longer
                    break
            named, parts = ",".join(parts[:size]), parts[size:]
            movie_idx = self.find(named)
            if movie_idx in found:
                movie_id = self.movies.movie_id[movie_idx]
                raise DataError(f"movie_id {movie_id} is named twice, the second time as {named.strip()[:60]!r}")
            found.append(movie_idx)
        return found

    def _names_any(self, text: str) -> bool:
        """Tell whether a text is a title, or an id of a catalogue whose ids are text."""
        ids = self.movies.movie_id
        return bool(self.called(text)) or (are_text(ids) and position_of(ids, text.strip()) is not None)

    def called(self, text: str, year: int | None = None) -> list[int]:
        """Return the movie_idx of all movies that a text may mean, in order.

        The best way to read it counts: as a title as it stands, with a year at its end, or with something else in
        parentheses that the catalogue does not have.
        """
        for title, its_year in _readings(text.strip(), year):
            key = title_key(title)
            for by_key in self._by_key:
                found = by_key.get(key, [])
                if its_year is not None:
                    found = ([movie for movie in found if self.movies.year[movie] == its_year]
                             or [movie for movie in found if self.movies.year[movie] == 0])
                if found:
                    return list(found)
        return []

    def search(self, text: str) -> list[int]:
        """Return the movies whose title has a text in it, or begins words with it in the form in which titles are
        compared, most ratings first."""
        folded, words = fold(text), f" {plain_words(text)}"
        titles, names = self._searched
        found = {*self.called(text), *(movie for movie, title in enumerate(titles) if folded in title)}
        if words != " ":
            found.update(movie for movie, its_names in enumerate(names) if words in its_names)
        return sorted(found, key=lambda movie: (-int(self.movies.num_train_ratings[movie]), movie))

    @cached_property
    def _searched(self) -> tuple[list[str], list[str]]:
        """All titles, and the words of all names of each movie, a line a name, in the forms that a search looks in;
        made at the first search, so that the next ones take a hundredth of the time."""
        titles = list(self.movies.title)
        return [fold(title) for title in titles], [
            "\n".join(f" {plain_words(name)}" for names in names_of(title) for name in names) for title in titles]

    def suggestion(self, text: str) -> str:
        """Return a question that names movies with a title much like a text, or words of titles; "" without any."""
        if movies := self._like(text):
            return movies
        like = self._words_like(text)
        return f"; did you mean {', '.join(map(repr, like))}?" if like else ""

    def search_alike(self, text: str) -> list[int]:
        """Return the movies with a title much like a text; without any, those that a search for the word of titles
        most like it finds."""
        return self._alike(text) or [movie for word in self._words_like(text)[:1] for movie in self.search(word)]

    def _words_like(self, text: str) -> list[str]:
        """Return words of titles that are much like a text, the most alike first."""
        words = dict.fromkeys(word for title in self.movies.title for word in plain_words(title).split())
        return difflib.get_close_matches(plain_words(text), words, MOST_SUGGESTIONS, 0.75)

    def _described(self, movie_idx: int) -> str:
        """Return what tells a movie from others of its title."""
        movies = self.movies
        year, number = movies.year[movie_idx] or "year unknown", movies.num_train_ratings[movie_idx]
        return f"{movies.movie_id[movie_idx]} ({year}, {number:,} rating{'' if number == 1 else 's'})"

    def _like(self, text: str) -> str:
        """Return a question that names movies with a title much like a text; "" without any."""
        like, movies = self._alike(text), self.movies
        if not like:
            return ""
        named = (f"{movies.title[movie]} ({movies.year[movie] or 'year unknown'}, movie_id {movies.movie_id[movie]})"
                 for movie in like)
        return f"; did you mean {', '.join(named)}?"

    def _alike(self, text: str) -> list[int]:
        """Return the movies with a title much like a text, the most alike first."""
        title = list(_readings(text, None))[-1][0]
        like = self.called(title)
        titles = self._by_key[0] | self._by_key[1]
        for key in [title_key(f"the {title}"),
                    *difflib.get_close_matches(title_key(title), titles, MOST_SUGGESTIONS, 0.75)]:
            like += titles.get(key, [])
        return list(dict.fromkeys(like))[:MOST_SUGGESTIONS]


def names_of(title: str) -> tuple[list[str], list[str]]:
    """Return a title as it stands, then without each of the parentheses at its end; and the names in these."""
    titles, others = [title.strip()], []
    while found := re.fullmatch(r"(.*\S)\s*\(([^()]*)\)", titles[-1]):
        titles.append(found[1])
        if not re.fullmatch(r"\s*\d{4}\s*", found[2]):
            others.append(re.sub(r"(?i)^\s*a\.?k\.?a\.?[\s:]+", "", found[2]))
    return titles, others


def title_key(title: str) -> str:
    """Return a title in the form in which titles are compared."""
    return plain_words(title).replace(" ", "") or fold(title)


def plain_words(title: str) -> str:
    """Return the words of a title, letters and digits alone, its article in front."""
    plain = fold(title)
    rest, _, last = plain.rpartition(",")
    if rest and last.strip() in ARTICLES:
        plain = f"{last.strip()} {rest}"
    return " ".join("".join(letter if letter.isalnum() else " " for letter in plain.translate(LETTERS)).split())


def fold(text: str) -> str:
    """Return a text without case and accents, typographic marks as those of a keyboard, single spaces."""
    decomposed = unicodedata.normalize("NFKD", text.translate(MARKS).casefold())
    return " ".join("".join(letter for letter in decomposed if not unicodedata.combining(letter)).split())


def _readings(text: str, year: int | None) -> Iterator[tuple[str, int | None]]:
    """Yield the ways to read what a person writes: a title and a year."""
    yield text, year
    while found := re.fullmatch(r"(.*\S)\s*\(([^()]*)\)", text):
        text = found[1]
        if year is None and re.fullmatch(r"\s*\d{4}\s*", found[2]):
            year = int(found[2])
        yield text, year
