import pytest

from preprocessing.dataset import DataError
from recommending.ratings_input import parse_ratings, read_ratings


@pytest.mark.parametrize("text", [
    "10,5\n30,3.5\n",
    "movie_id,stars\n10,5\n30,3.5\n",
    "\ufeffMovieID, Rating\r\n10, 5\r\n\r\n30, 3.5",
    'title,stars\r10,5\r"GOOD, the bad and the ugly, the",3.5\r',
    '10,5\n"Good, the Bad and the Ugly, The", 3.5\n,\n',
])
def test_a_file_may_have_a_header_titles_and_any_line_end(planted, tmp_path, text):
    path = tmp_path / "mine.csv"
    path.write_text(text, encoding="utf-8", newline="")
    assert read_ratings(path, planted) == {10: 5, 30: 3.5}


def test_titles_in_latin_1_are_read(planted, tmp_path):
    path = tmp_path / "mine.csv"
    path.write_bytes("élan,4\n".encode("latin-1"))
    assert read_ratings(path, planted) == {40: 4}


def test_digits_are_a_movie_id_even_where_a_movie_is_called_so(planted, tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("1984,4\n")
    with pytest.raises(DataError, match="line 1: movie_id 1984 is not in the data set"):
        read_ratings(path, planted)


@pytest.mark.parametrize(("text", "sentence"), [
    ("10,5\nheat,4\n", r"line 2: 2 movies are called 'heat'; give the movie_id of one: 10 \(1995\), 20 \(1986\)$"),
    ("10,5\nNo Such,4\n", "line 2: no movie is called 'No Such'"),
    ("movie_id,stars\n\n11,5\n", "line 3: movie_id 11 is not in the data set"),
    ("10,6\n", "line 1: movie_id 10 is given 6 stars, outside 1 to 5"),
    ("10,nan\n", "line 1: movie_id 10 is given nan stars"),
    ("10,good\n", "line 1: 'good' is no number of stars"),
    ("10\n", "line 1: '10' is not movie_id,stars"),
    ("Good, the Bad and the Ugly, The,5\n", "line 1: .* is not .*double quotes"),
    ("10,5\n30,4\n10,4\n", "line 3: movie_id 10 is rated already in line 1"),
    ('10,5\n"Heat,4\n', "line 2: "),
    ("", "holds no ratings"),
    ("movie_id,stars\n", "holds no ratings"),
    ("9" * 5000 + ",4\n", "line 1: "),
])
def test_a_mistake_is_named_with_file_and_line(planted, tmp_path, text, sentence):
    path = tmp_path / "mine.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=sentence) as error:
        read_ratings(path, planted)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_many_movies_of_one_title_are_cut_short(planted, tmp_path):
    planted.movies.title[:] = ["Same"] * 6
    path = tmp_path / "mine.csv"
    path.write_text("same,3\n")
    with pytest.raises(DataError, match=r"6 movies .*40 \(year unknown\), 50 \(2000\), 60 \(1984\)$"):
        read_ratings(path, planted)


def test_typed_ratings_are_pairs_of_movie_id_and_stars():
    assert parse_ratings("571:5, 30:1.5") == {571: 5, 30: 1.5}
    for text, sentence in (("5", "'5' is not"), ("", "'' is not"), ("5:x", "'5:x' is not"), ("5:3,5:4", "rated twice")):
        with pytest.raises(ValueError, match=sentence):
            parse_ratings(text)
