import json
from pathlib import Path

import pytest

from preprocessing import movielens_preprocess
from preprocessing.dataset import RatingsFile, read_meta, read_movies, read_users

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
