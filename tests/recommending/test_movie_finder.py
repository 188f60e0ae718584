import numpy as np
import pytest

from preprocessing.dataset import DataError, Movies
from recommending.movie_finder import MovieFinder, names_of, title_key

CATALOGUE = [  # title, year, training ratings; the movie_id is 100 more than the place
    ("Omen, The", 1976, 5), ("Omen, The", 2006, 1), ("Léon (The Professional)", 1994, 9), ("Smørrebrød & Øl", 2001, 2),
    ("Wild One, A", 1960, 3), ("Twin Street", 1999, 4), ("Twin Street", 1999, 1), ("300", 2006, 8),
    ("Vie en rose, La", 0, 1), ("Winter Club (1960)", 1970, 3), ("L'Avventura", 1960, 2), ("“Q”: The Letter", 1982, 1),
    ("Se7en (a.k.a. Seven)", 1995, 6), ("Professional", 1981, 2), ("100", 1990, 1)]


@pytest.fixture
def finder() -> MovieFinder:
    titles, years, counts = zip(*CATALOGUE, strict=True)
    return MovieFinder(Movies(np.arange(100, 100 + len(titles), dtype=np.int32), np.array(years, np.int16),
                              list(titles), np.array(counts, np.int32)))


@pytest.mark.parametrize(("text", "movie"), [
    ("The Omen (1976)", 0), ("omen, the (2006)", 1), ("OMEN, THE  (2006)", 1), ("leon", 2), ("Léon (1994)", 2),
    ("the professional", 2), ("Professional", 13), ("Smorrebrod and Ol", 3), ("a wild one", 4), ("Wild One, A", 4),
    ("La Vie en Rose", 8), ("La Vie en Rose (2007)", 8), ("Winter Club", 9), ("Winter Club (1970)", 9),
    ("Winter Club (1960)", 9), ("L’Avventura", 10), ("LAvventura", 10), ('"q" the letter', 11), ("Seven", 12),
    ("Se7en", 12), ("Seven (1995)", 12), ("104", 4), ("300", 7), (" 100 ", 0), ("100 (1990)", 14),
    ("A Wild One (Un sauvage) (1960)", 4),
])
def test_a_movie_is_found_as_a_person_writes_it(finder, text, movie):
    assert finder.find(text) == movie


@pytest.mark.parametrize(("text", "sentence"), [
    ("The Omen", r"2 movies are called 'The Omen'; .* 100 \(1976, 5 ratings\), 101 \(2006, 1 rating\)$"),
    ("Twin Street (1999)", r"105 \(1999, 4 ratings\), 106 \(1999, 1 rating\)$"),
    ("Omen", "no movie is called 'Omen'; did you mean Omen, The"),
    ("The Omen (1990)", r"no movie .* 'The Omen \(1990\)'; did you mean Omen, The \(1976, movie_id 100\), Omen, The"),
    ("The Wild One", r"no movie .*did you mean Wild One, A \(1960, movie_id 104\)\?"),  # another article, another movie
    ("Smorebrod og ol", "did you mean Smørrebrød & Øl"),
    ("1960", "movie_id 1960 is not in the data set"),
    ("9" * 5000, "movie_id 9+ is not in the data set"),
    ("zzz", "no movie is called 'zzz'; look for its movie_id with: python rec.py --search PART_OF_TITLE"),
    ("", "no movie is called ''"), ("(1999)", "no movie is called"), ("?!", "no movie is called"),
])
def test_what_is_not_found_or_not_the_only_one_is_said_with_what_could_be_meant(finder, text, sentence):
    with pytest.raises(DataError, match=sentence):
        finder.find(text)


@pytest.mark.parametrize(("text", "movies"), [
    ("leon", [2]), (" The Omen (1976),104 ", [0, 4]), ("Omen, The (1976),Omen, The (2006)", [0, 1]),
    ("Vie en rose, La,Wild One, A,300", [8, 4, 7]), ("104,112", [4, 12]), ("1,Vie En Rose, La", [0, 8]),
    ("10,4,300,104", [2, 1, 7, 4]), ("Léon, 10,000 Ways, 104", [2, 13, 4]),
])
def test_movies_stand_in_a_list_with_commas_between_and_within_titles(finder, text, movies):
    finder = MovieFinder(finder.movies._replace(
        movie_id=np.array([1, 4, 10, *range(103, 115)], np.int32),
        title=[*finder.movies.title[:13], "10,000 Ways", "104"]))
    assert finder.find_all(text) == movies


@pytest.mark.parametrize(("text", "sentence"), [
    ("Seven,The Omen,104", "2 movies are called 'The Omen'"), ("Seven,Omen", "no movie is called 'Omen'; did you mean"),
    ("Wild, Wild One, A", "no movie is called 'Wild'"), ("1,0,4", "movie_id 1 is not in"),
    ("", "no movie is called ''"),
    ("a wild one,Wild One, A (1960)", r"104 is named twice, the second time as 'Wild One, A \(19"),
    ("Seven,112", "movie_id 112 is named twice.*'112'$")])
def test_a_list_of_movies_with_one_that_is_not_found_gets_its_sentence(finder, text, sentence):
    with pytest.raises(DataError, match=sentence):
        finder.find_all(text)


def test_ids_that_are_text_may_hold_commas_too():
    ids = np.array(["a,b", "b", "c"])
    finder = MovieFinder(Movies(ids, np.zeros(3, np.int16), ["First", "Second", "Third"], np.ones(3, np.int32)))
    assert finder.find_all("c,a,b,second") == [2, 0, 1]


def test_a_year_or_an_id_written_apart_tells_movies_of_one_title_apart(finder):
    assert [finder.find("The Omen", year) for year in (1976, 2006)] == [0, 1]
    assert [finder.find("Twin Street", 1999, movie_id) for movie_id in (105, 106)] == [5, 6]
    assert finder.find("Seven", 1995, 100) == 12  # another movie's id
    with pytest.raises(DataError, match="no movie of 1977 is called 'The Omen'; did you mean"):
        finder.find("The Omen", 1977)


def test_digits_may_be_a_title_first(finder):
    assert [finder.find("100", title_first=first) for first in (False, True)] == [0, 14]
    assert finder.find("102", title_first=True) == 2


def test_the_same_spelling_counts_before_the_same_letters(finder):
    finder.movies.title[5] = "TWIN STREET"
    assert [finder.find(title) for title in ("TWIN STREET", "Twin Street")] == [5, 6]


def test_a_title_has_names():
    assert names_of("A (B) (aka C) (1999)") == (["A (B) (aka C) (1999)", "A (B) (aka C)", "A (B)", "A"], ["C", "B"])
    assert names_of("Akasha (x(y))") == (["Akasha (x(y))"], [])
    assert title_key("Matrix, The") == title_key("THE matrix!") != title_key("matrix")
    assert title_key("...") == "..."
