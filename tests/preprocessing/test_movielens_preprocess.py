import json
from pathlib import Path

import pytest

from preprocessing import movielens_preprocess, titles
from preprocessing.dataset import DataError, RatingsFile, read_meta, read_movies, read_users
from preprocessing.rating_table import RawRatings, open_table

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
TITLES = {"u.item": "1|Toy Story (1995)|01-Jan-1995||x\n3|M\xe9|||\n",
          "movies.dat": "1::Toy Story (1995)::Comedy\n3::M\xe9::x\n",
          "movies.csv": 'movieId,title,genres\n1,Toy Story (1995),Comedy\n3,"Say ""Hi"", you (2001)",x\n'}
RATINGS = {"u.data": "7\t1\t5\t881250949\n7\t3\t2\t891717742\n9\t3\t4\t878887116\n",
           "ratings.dat": "7::1::5::881250949\n7::3::2::891717742\n9::3::4::878887116\n",
           "ratings_no_timestamp.dat": "7::1::5\n7::3::2\n9::3::4\n",
           "ratings.csv": "userId,movieId,rating,timestamp\n7,1,5.0,881250949\n7,3,2.0,891717742\n9,3,4.0,878887116\n"}
PAIRS = [("u.data", "u.item"), ("ratings.dat", "movies.dat"), ("ratings_no_timestamp.dat", "movies.dat"),
         ("ratings.csv", "movies.csv")]


def read_ratings(path: Path) -> RawRatings:
    return movielens_preprocess.read_ratings(open_table(path, movielens_preprocess.COLUMNS))


@pytest.fixture
def preprocess(tmp_path):
    def command(ratings_name: str, titles_name: str, ratings: str | None = None, *flags: str) -> int:
        raw = tmp_path / "raw"
        raw.mkdir(exist_ok=True)
        (raw / ratings_name).write_text(ratings or RATINGS[ratings_name], encoding="latin-1")
        (raw / titles_name).write_text(TITLES[titles_name], encoding="latin-1")
        return movielens_preprocess.main(["--raw_dir", str(raw), "--out_dir", str(tmp_path / "out"), *flags])

    return command


@pytest.mark.parametrize(("ratings_name", "titles_name"), PAIRS)
def test_every_layout_gives_the_same_ratings(preprocess, tmp_path, ratings_name, titles_name):
    assert preprocess(ratings_name, titles_name, None, "--split", "random") == 0
    out = tmp_path / "out"
    users, movies = read_users(out), read_movies(out)
    rows = [ratings for _, ratings in RatingsFile(out).read_groups()]
    triples = sorted((int(users.user_id[u]), int(movies.movie_id[m]), int(s)) for ratings in rows
                     for u, m, s in zip(ratings.user_idx, ratings.movie_idx, ratings.stars, strict=True))
    assert triples == [(7, 1, 5), (7, 3, 2), (9, 3, 4)]
    assert movies.title[0] == "Toy Story" and movies.year[0] == 1995
    if titles_name == "movies.csv":
        assert movies.title[1] == 'Say "Hi", you' and movies.year[1] == 2001
    else:
        assert movies.title[1] == "M\xe9" and movies.year[1] == 0
    if ratings_name != "ratings_no_timestamp.dat":
        assert read_meta(out)["day_epoch"] == "1997-11-07"  # 878887116 s after 1970


def test_half_stars_are_kept_in_steps(preprocess, tmp_path):
    assert preprocess("ratings.csv", "movies.csv", RATINGS["ratings.csv"].replace("7,3,2.0", "7,3,0.5")) == 0
    meta = read_meta(tmp_path / "out")
    assert meta["stars_step"] == 0.5 and meta["stars_range"] == [0.5, 5]
    assert meta["histogram"] == {"0.5": 1, "4": 1, "5": 1}


@pytest.mark.parametrize(("line", "number"), [("7\tx\t5\t1", 2), ("7\t2\t5.2\t1", 2), ("7\t2\t6\t1", 2), ("7\t2", 2),
                                              ("7\t2\t0\t1", 2), ("7\t1\t5\t1", 2), ("7::2::5::1", 2)])
def test_a_bad_line_is_named(preprocess, tmp_path, capsys, line, number):
    assert preprocess("u.data", "u.item", f"7\t1\t5\t881250949\n{line}\n9\t3\t4\t1\n") == 1
    error = capsys.readouterr().err
    assert f"u.data, line {number}:" in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "titles", "text", "number"), [
    ("ratings.csv", "movies.csv", "userId,movieId,rating,timestamp\n7,1,5.0,881250949\n9,3,x,881250949\n", 3),
    ("ratings.csv", "movies.csv", "userId,movieId,rating,timestamp\n7,1,5.2,1\n", 2),
    ("ratings.dat", "movies.dat", "7::1::5::881250949\n\n9::1::0::881250949\n", 3)])
def test_a_bad_line_is_named_in_files_with_a_header_too(preprocess, capsys, name, titles, text, number):
    assert preprocess(name, titles, text) == 1
    assert f"{name}, line {number}:" in capsys.readouterr().err


def test_latest_without_timestamps_is_refused(preprocess, capsys):
    assert preprocess("ratings_no_timestamp.dat", "movies.dat", None, "--split", "latest") == 1
    assert "--split random" in capsys.readouterr().err


@pytest.mark.shared_data
@pytest.mark.skipif(not (SHARED / "ml-100k").is_dir(), reason="the real data are not here")
def test_canonical_split_of_movielens_100k_is_its_test_file(tmp_path):
    assert movielens_preprocess.main(["--raw_dir", str(SHARED / "ml-100k"), "--out_dir", str(tmp_path / "out"),
                                      "--split", "u2"]) == 0
    users, movies = read_users(tmp_path / "out"), read_movies(tmp_path / "out")
    pairs = set()
    for _, ratings in RatingsFile(tmp_path / "out").read_groups():
        test = ratings.split == 2
        pairs |= set(zip(users.user_id[ratings.user_idx[test]].tolist(),
                         movies.movie_id[ratings.movie_idx[test]].tolist(), strict=True))
    expected = {tuple(int(field) for field in line.split("\t")[:2])
                for line in (SHARED / "ml-100k" / "u2.test").read_text().splitlines()}
    assert pairs == expected
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    assert (meta["num_ratings"], meta["num_users"], meta["num_movies"]) == (100_000, 943, 1682)


HEADER = "userId,movieId,rating,timestamp\n"


@pytest.mark.parametrize(("times", "days"), [
    (("1120000000", "1120086400"), ("2005-06-28", "2005-06-29")),
    (("1120000000123", "1120086400000"), ("2005-06-28", "2005-06-29")),
    (("1120000000000000", "1120086400000000"), ("2005-06-28", "2005-06-29")),
    (("1120000000000000000", "1120086400000000000"), ("2005-06-28", "2005-06-29")),
    (("1120000000.0", "1120086400.75"), ("2005-06-28", "2005-06-29")),
    (("1120000000", "1120086400.5"), ("2005-06-28", "2005-06-29")),
    (("2005-06-28", "2005-06-29"), ("2005-06-28", "2005-06-29")),
    (("2005-06-28 23:59:59", "2005-06-29 00:00"), ("2005-06-28", "2005-06-29")),
    (("2005-06-28T23:30:00-09:00", "2005-06-29T00:30:00.125Z"), ("2005-06-28", "2005-06-29")),
    (("2005/6/28", "2005/06/29 11:00"), ("2005-06-28", "2005-06-29")),
    (("20050628", "20050629"), ("2005-06-28", "2005-06-29")),
    (("28.6.2005", "1.7.2005"), ("2005-06-28", "2005-07-01")),
    (("6/28/2005 5:00 PM", "7/1/2005"), ("2005-06-28", "2005-07-01")),
])
def test_times_are_read_in_any_unit_and_form(tmp_path, times, days):
    path = tmp_path / "ratings.csv"
    path.write_text(HEADER + "".join(f'{user},1,4,"{time}"\n' for user, time in enumerate(times, start=7)))
    raw = read_ratings(path)
    assert [str(day) for day in raw.seconds.astype("datetime64[s]").astype("datetime64[D]")] == list(days)
    assert raw.user_id.tolist() == [7, 8] and raw.stars.tolist() == [4, 4]


@pytest.mark.parametrize(("lines", "number", "problem"), [
    (["7,1,4,2005", "7,2,4,2006"], 2, "none since 1990 in seconds"),  # years
    (["7,1,4,1120000000", "7,2,4,77"], 3, "none since 1990 in seconds"),  # an id
    (["7,1,4,1120000000", "7,2,4,1120000000000"], 2, "none since 1990 in thousandths"),  # two units
    (["7,1,4,9999999999999999999"], 2, "a time that is none|a date that is none"),
    (["7,1,4,2005-06-28", "7,2,4,2005-02-30"], 3, "a date that is none"),
    (["7,1,4,2005-06-28", "7,2,4,1905-06-28"], 3, "a date that is none since 1990"),
    (["7,1,4,2005-06-28", "7,2,4,"], 3, "a date that is none"),
    (["7,1,4,1120000000", "", "7,2,4,soon"], 4, "none since 1990"),
    (["7,1,4,3/4/2005", "7,2,4,5/6/2005"], 2, "nothing tells whether month or day comes first"),
    (["7,1,4,1120000000", "7,2,8,1120000000"], 3, "no half star from 0.5 to 5"),
    (["7,1,4,1120000000", "7,2,0,1120000000"], 3, "no half star from 0.5 to 5"),
    (["7,1,4,1120000000", "7,2,3.3,1120000000"], 3, "no half star from 0.5 to 5"),
    (["7,1,4,1120000000", "7,2,,1120000000"], 3, "is no rating"),
    (["7,1,4,1120000000", "7,2.5,4,1120000000"], 3, "is no rating"),
    (["7,1,4,1120000000", "-7,2,4,1120000000"], 3, "is no rating"),
    (["7,1,4,1120000000", "7,2147483648,4,1120000000"], 3, "no number below 2147483648"),
    (["7,1,4,1120000000", "7,2,4,1120000000,"], 3, "5 fields separated by ',', not 4 as in the first line"),
    (["7,1,4,1120000000", "7,2,4"], 3, "3 fields separated by ',', not 4"),
])
def test_what_nobody_could_have_meant_is_refused_with_its_line(tmp_path, lines, number, problem):
    path = tmp_path / "ratings.csv"
    path.write_text(HEADER + "\n".join(lines) + "\n")
    with pytest.raises(DataError, match=f"ratings.csv, line {number}: .*{problem}"):
        read_ratings(path)


@pytest.mark.parametrize("times", [("0", "0"), ("", "")])
def test_times_that_say_nothing_are_none(tmp_path, times):
    path = tmp_path / "ratings.csv"
    path.write_text(HEADER + "".join(f"{user},1,4,{time}\n" for user, time in enumerate(times, start=7)))
    assert read_ratings(path).seconds.tolist() == [0, 0]


def test_ids_and_stars_that_a_spreadsheet_has_saved_are_numbers(tmp_path):
    path = tmp_path / "ratings.csv"
    path.write_text('"user_id";"item";"score"\n"7.0";"1.0";"4,5"\n8;2;3\n')
    raw = read_ratings(path)
    assert (raw.user_id.tolist(), raw.movie_id.tolist(), raw.stars.tolist()) == ([7, 8], [1, 2], [4.5, 3])


@pytest.mark.parametrize(("header", "sentence"), [
    ("who,what,how", r"line 1: no column is named for user_id .*; found: 'who', 'what', 'how'"),
    ("userId,userId,movieId,rating", "line 1: 2 columns are called 'userId'"),
])
def test_a_header_that_names_no_ratings_is_refused(tmp_path, header, sentence):
    path = tmp_path / "ratings.csv"
    path.write_text(f"{header}\n7,1,4,5\n")
    with pytest.raises(DataError, match=sentence):
        read_ratings(path)


def test_a_pair_rated_twice_is_named_by_its_second_line_in_any_order_of_columns(preprocess, capsys):
    assert preprocess("ratings.csv", "movies.csv", "movieId,userId,rating\n1,11,4\n11,1,3\n3,1,5\n\n11,1,4\n") == 1
    assert "ratings.csv, line 6: '11,1,4' is wrong: user 1 rated movie 11 twice" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "year", "title"), [
    ("Alien (1979)", 1979, "Alien"), ("Alien (1979) (TV)", 1979, "Alien (TV)"), ("Show (2001–2004)", 2001, "Show"),
    ("Show (2001-02)", 2001, "Show"), ("Show (2001- )", 2001, "Show"), ("Show (2001 - present)", 2001, "Show"),
    ("Alien ( 1979 )", 1979, "Alien"), ("Alien (1979/II)", 1979, "Alien"),
    ("Class of (1984) (1982)", 1982, "Class of (1984)"),
    ("Alien (1979))", 1979, "Alien"), ("(1979)", 1979, "(1979)"), ("Planet (3000)", 0, "Planet (3000)"),
    ("1984", 0, "1984"), (" Alien 3 ", 0, "Alien 3"),
])
def test_a_year_is_the_last_in_parentheses(text, year, title):
    assert titles.year_and_title(text) == (year, title)


def test_a_catalogue_may_have_a_column_of_years(tmp_path):
    path = tmp_path / "movies.csv"
    path.write_text("year,title,id\n1979,Alien,3.0\n1986.0,Aliens,2\n,Cube,1\n1999,Alien 5 (2012),9\n")
    read = titles.read_title_table(path)
    assert read.movie_id.tolist() == [1, 2, 3, 9] and read.year.tolist() == [0, 1986, 1979, 2012]
    assert read.title == ["Cube", "Aliens", "Alien", "Alien 5"]
