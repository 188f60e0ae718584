"""One rule for --date, and what it does is said in the list: made-up movies of 1990 to 2009, rated in 2003 and 2004."""

import datetime
import json
from pathlib import Path

import pytest

import main
import rec
from preprocessing import movielens_preprocess
from preprocessing.dataset import DataError
from recommending.recommender import Recommender

FIRST, LAST = datetime.date(2003, 3, 1), datetime.date(2004, 8, 31)
YEARS = {movie: 1990 + movie for movie in range(1, 19)} | {19: None}
LATE_USER = 30  # who rates from 2004 on


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder, lines = tmp_path_factory.mktemp("dates"), ["userId,movieId,rating,timestamp"]
    for user in range(1, LATE_USER + 1):
        for k in range(6):
            day = FIRST + datetime.timedelta(days=(user * 7 + k * 31) % 500)
            if user == LATE_USER:
                day = datetime.date(2004, 2, 1 + k)
            seconds = (day - datetime.date(1970, 1, 1)).days * 86_400
            lines.append(f"{user},{1 + (user + 3 * k) % 19},{1 + (user + k) % 5},{seconds}")
    for day in (FIRST, LAST):
        lines.append(f"31,{1 + (day == LAST)},3,{(day - datetime.date(1970, 1, 1)).days * 86_400}")
    (folder / "ratings.csv").write_text("\n".join(lines) + "\n")
    (folder / "movies.csv").write_text("movieId,title,genres\n" + "".join(
        f"{movie},Movie {movie}{f' ({year})' if year else ''},x\n" for movie, year in YEARS.items()))
    assert movielens_preprocess.main(["--raw_dir", str(folder), "--out_dir", str(folder / "data"), "--latest_n",
                                      "1"]) == 0
    assert main.main(["--data_dir", str(folder / "data"), "--run_dir", str(folder / "run"), "--embedding_dim", "8",
                      "--ensemble_size", "2", "--hidden_dim", "8", "--epochs", "1", "--no-refit", "--num_threads",
                      "1"]) == 0
    return folder / "run"


@pytest.fixture
def ask(run, capsys):
    """Return a function from flags to stdout, as an object with --json, and stderr."""
    def ask(*flags: str) -> tuple:
        capsys.readouterr()
        assert rec.main(["--run_dir", str(run), "--top_n", "50", *flags]) == 0
        printed = capsys.readouterr()
        return json.loads(printed.out) if "--json" in flags else printed.out, printed.err
    return ask


MODES = [["--user_id", "5"], ["--rate", "Movie 1:5"], ["--similar_to", "Movie 3"],
         ["--user_id", "777", "--fallback", "popular"]]


@pytest.mark.parametrize("mode", MODES, ids=" ".join)
def test_every_list_says_as_of_when_and_leaves_out_movies_of_later_years(ask, mode):
    if mode[0] in ("--user_id", "--rate") and "--fallback" not in mode:
        mode = [*mode, "--include_seen"]  # for what somebody has rated later would be missing without a date
    listed, said = ask(*mode, "--date", "2003-06-30")
    assert listed.splitlines()[0].endswith("; as of 2003-06-30")
    answer, said_too = ask(*mode, "--date", "2003-06-30", "--json")
    assert answer["as_of"] == "2003-06-30" and said_too == said
    years = [row["year"] for row in answer["recommendations"]]
    assert max(year for year in years if year) <= 2003 and len(years) > 5
    every, plain = ask(*mode, "--json")
    assert every["as_of"] is None and "left out" not in plain
    later = {row["movie_id"] for row in every["recommendations"] if row["year"] and row["year"] > 2003}
    listed = {row["movie_id"] for row in answer["recommendations"]}
    assert later and f"{len(later)} movies of a later year than 2003 are left out\n" in said
    assert listed >= {row["movie_id"] for row in every["recommendations"]} - later  # of unknown year too


@pytest.mark.parametrize(("asked", "taken", "sentence"), [
    ("1990-01-01", FIRST, "1990-01-01 lies before the first day of the data set: the list is as of that day, 2003-"),
    ("2026-11-28", LAST, "2026-11-28 lies after the last day of the data set: the list is as of that day, 2004-"),
    (str(FIRST), FIRST, ""), (str(LAST), LAST, "")])
def test_a_date_outside_the_data_set_is_its_first_or_last_day_and_that_is_said(ask, asked, taken, sentence):
    for mode in MODES:
        answer, said = ask(*mode, "--date", asked, "--json")
        same, _ = ask(*mode, "--date", str(taken), "--json")
        assert answer == same and answer["as_of"] == str(taken)
        assert (sentence in said) if sentence else "lies" not in said


def test_who_had_rated_nothing_by_then_is_said(ask):
    listed, said = ask("--user_id", str(LATE_USER), "--date", "2003-12-31")
    assert listed.startswith(f"user {LATE_USER}, 0 movies rated; as of 2003-12-31\n")
    assert f"user {LATE_USER} had rated no movie by 2003-12-31: by stars, the list is that of the movies" in said
    assert "had rated" not in ask("--user_id", str(LATE_USER), "--date", "2004-12-31")[1]
    assert "had rated" not in ask("--rate", "1:5", "--date", "2003-12-31")[1]


def test_the_map_leaves_out_movies_of_later_years(ask, tmp_path):
    answer, said = ask("--map", str(tmp_path / "map.png"), "--date", "2003-06-30", "--json")
    assert {YEARS[movie["movie_id"]] or 0 for movie in answer["movies"]} <= {0, *range(1990, 2004)}
    assert "of a later year than 2003 are left out" in said


@pytest.mark.parametrize("text", ["2003/06/30", "30.6.2003", "2003-13-01", "yesterday", "2003", ""])
def test_what_is_no_date_gets_our_own_words(run, text, capsys):
    with pytest.raises(SystemExit) as end:
        rec.main(["--run_dir", str(run), f"--date={text}"])
    assert end.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(
        f"argument --date: {text!r} is no date; write it as YYYY-MM-DD, such as 2005-12-10")


def test_from_python_a_text_is_no_date_and_no_movie_id_and_a_time_of_day_is_its_day(run):
    with pytest.raises(DataError, match=r"'2003-06-30' is no date; give a datetime\.date"):
        Recommender.load(run, date="2003-06-30")
    noon = Recommender.load(run, date=datetime.datetime(2003, 6, 30, 12))
    assert noon.as_of == datetime.date(2003, 6, 30)
    with pytest.raises(DataError, match=r"'Movie 1' is a text and no movie_id; movie_id_of\('Movie 1'\) finds"):
        noon.history_from({"Movie 1": 5})


def test_headings_have_at_most_80_columns(ask):
    for flags in (["--rank_by", "relevance"], [], ["--similar_to", "3"]):
        assert max(map(len, ask(*flags, "--date", "2003-06-30")[0].splitlines())) <= 80
