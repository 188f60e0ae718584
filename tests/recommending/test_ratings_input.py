import pytest

from preprocessing.dataset import DataError
from recommending.ratings_input import OwnRatings, find_rated, parse_ratings, read_ratings


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
    assert read_ratings(path, planted) == OwnRatings({10: 5, 30: 3.5})


def test_titles_in_latin_1_are_read(planted, tmp_path):
    path = tmp_path / "mine.csv"
    path.write_bytes("élan,4\n".encode("latin-1"))
    assert read_ratings(path, planted).stars == {40: 4}


def test_digits_are_a_movie_id_before_they_are_a_title_but_in_a_column_of_titles(planted, tmp_path):
    planted.movies.title[5] = "10"
    path = tmp_path / "mine.csv"
    for text, movie_id in (("10,4\n", 10), ("title,stars\n10,4\n", 60), ("title,stars\n20,4\n", 20),
                           ("id,stars\n10,4\n", 10)):
        path.write_text(text)
        assert read_ratings(path, planted).stars == {movie_id: 4}
    path.write_text("1985,4\n")
    with pytest.raises(DataError, match="line 1: movie_id 1985 is not in the data set"):
        read_ratings(path, planted)


@pytest.mark.parametrize(("text", "sentence"), [
    ("\nheat,4\n", r"line 2: 2 movies are called 'heat'; give the movie_id of one: 10 \(1995, 100 ratings\), "
     r"20 \(1986, 10 ratings\)$"),
    ("No Such,4\n", "line 1: no movie is called 'No Such'"),
    ("No Such,4\nNor This,5\n", "line 1: no movie is called 'No Such'.*; none of 2 movies is found"),
    ("title,stars\n\nHeat,\n", "line 3: there are no stars"),
    ("movie_id,stars\n\n11,5\n", "line 3: movie_id 11 is not in the data set"),
    ("10,6\n", "line 1: movie_id 10 is given 6 stars, outside 1 to 5"),
    ("id,stars\n10,nan\n", "line 2: movie_id 10 is given nan stars"),
    ("30,4\n10,good\n", "line 2: 'good' is no number of stars"),
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
    with pytest.raises(DataError, match=r"6 movies .*40 \(year unknown, 7 ratings\), 50 .*, 60 \(1984, 1 rating\)$"):
        read_ratings(path, planted)


def test_typed_ratings_are_pairs_of_a_movie_and_stars(planted):
    assert parse_ratings("571:5, 30:1.5") == [("571", 5), ("30", 1.5)]
    assert parse_ratings("Good, the Bad: II, The:5,2001: A Space Odyssey (1968):4") == [
        ("Good, the Bad: II, The", 5), ("2001: A Space Odyssey (1968)", 4)]
    for text, sentence in (("5", "'5' is not"), ("", "'' is not"), ("5:x", "'5:x' is not"), ("5:3,5:4", "rated twice"),
                           ("5:3,", "'' is not"), (":3", "':3' is not"), ("heat:3,heat:4", "'heat' is rated twice")):
        with pytest.raises(ValueError, match=sentence):
            parse_ratings(text)
    assert find_rated(planted, [("The Good, the Bad, and the Ugly", 4), ("Heat (1986)", 1)]) == {30: 4, 20: 1}
    with pytest.raises(DataError, match="movie_id 30 is rated twice, the second time as"):
        find_rated(planted, [("30", 4), ("good, the bad and the ugly, the", 5)])


@pytest.mark.parametrize(("text", "stars"), [
    ("Rating,Seen on,Name,Year\n4,2020-01-01,Heat,1986\n3,2020-01-02,Heat,1995\n", {20: 4, 10: 3}),
    ("Your Rating,Title,Year,IMDb Rating\n9,Heat,1986,7.1\n", {20: 4.5}),
    ("Your Rating,Title,Year\n4.5,Heat,1986\n", {20: 4.5}),  # no whole number: not IMDb's scale
    ("title,score (1-10)\nelan,7\n", {40: 3.5}),
    ("title,rating out of 10\nelan,7\n", {40: 3.5}),
    ("id,title,rating\n30,elan,2\n", {40: 2}),  # an id of another catalogue
    ("movie_id,title,rating\n20,heat,2\n", {20: 2}),
    ("5|elan\n2|1984\n3|Heat (1995)\n", {40: 5, 60: 2, 10: 3}),
    ("Heat,1986,3\nelan,2000,4\n", {20: 3, 40: 4}),
    ("7,30,4.0,881250949\n7,60,2.5,881250950\n", {30: 4, 60: 2.5}),
    ("sep=;\ntitle;stars\nelan;3,5\n", {40: 3.5}),
    ('title\tstars\n"Heat" (1995)\t5\n', {10: 5}),
    ('review,title,stars\n"two\nlines, with a comma",elan,5\n', {40: 5}),
])
def test_any_table_with_a_movie_and_stars_is_read(planted, tmp_path, text, stars):
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "cp1252"):
        (tmp_path / "mine.csv").write_bytes(text.encode(encoding))
        assert read_ratings(tmp_path / "mine.csv", planted) == OwnRatings(stars)


def test_what_is_not_found_and_what_has_no_stars_is_listed_together(planted, tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("title,stars\nelan,4\nheat,5\n1984,\nNo Such,3\nElam,3\n")
    own = read_ratings(path, planted)
    assert own.stars == {40: 4}
    assert own.remarks == [
        f"{path}: 1 without stars left out: line 4", f"{path}: 1 of 4 movies found, not these:",
        "  line 3: 2 movies are called 'heat'; give the movie_id of one: 10 (1995, 100 ratings), 20 (1986, 10 ratings)",
        "  line 5: no movie is called 'No Such'; look for its movie_id with: python rec.py --search "
        "PART_OF_TITLE",
        "  line 6: no movie is called 'Elam'; did you mean Élan (year unknown, movie_id 40)?"]


@pytest.mark.parametrize(("text", "sentence"), [
    ("title,verdict\nHeat,5\n", "line 1: no column is named for stars .*found: 'title', 'verdict'"),
    ("director,stars\nMann,5\n", "line 1: no column is named for the movies"),
    ("title,stars,stars\nHeat,5,4\n", "line 1: 2 columns are called 'stars'"),
    ("Profile Name,Title,Star Value\nA,elan,5\nB,1984,4\n", "ratings of 2 people .*'A', 'B'"),
    ("title,rating\nelan,8\n", r"line 2: .* 8 stars, outside 1 to 5; .*'rating \(of 10\)'"),
    ("title,stars\nGood, the Bad and the Ugly, The,5\n", "line 2: .* more fields than the 2 .*double quotes"),
])
def test_what_a_table_cannot_mean_is_refused(planted, tmp_path, text, sentence):
    path = tmp_path / "mine.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=sentence):
        read_ratings(path, planted)
