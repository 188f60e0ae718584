"""Tables as people have them: what is in them is planted, and what comes out is compared with that."""

import datetime
import decimal
import json
import random
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import main
import rec
from preprocessing import table_preprocess
from preprocessing.dataset import RatingsFile, UsersFile, read_meta, read_movies, read_users
from preprocessing.scales import OffScale, find_scale

USERS = ["anna@x.org", "Bob", "bob", "Çelik", "u-5", "u-6", "u-7", "u-8", "u-9", "007"]
BOOKS = ["0439023483", "B00005N5PF", "9780439023481", "X 1", "X 2", "X 3", "X 4", "X 5", "X,6"]
FIRST_DAY = datetime.date(2019, 3, 1)


def planted(stars: list[float], users: list = USERS, items: list = BOOKS) -> list[tuple]:
    """Return (user, item, stars, date): every user has rated two thirds of the items, and all stars occur."""
    rng = random.Random(0)
    rows = [(user, item) for user in users for item in rng.sample(items, 2 * len(items) // 3)]
    rng.shuffle(rows)
    return [(user, item, stars[number % len(stars)], FIRST_DAY + datetime.timedelta(rng.randrange(400)))
            for number, (user, item) in enumerate(rows)]


def text_of(rows: list[tuple], separator: str = ",", date: str = "%Y-%m-%d", quote: str = "") -> str:
    return "".join(separator.join([f"{quote}{user}{quote}", f'"{item}"' if quote or separator in item else item,
                                   f"{stars:g}", *([day.strftime(date)] if date else [])]) + "\n"
                   for user, item, stars, day in rows)


@pytest.fixture
def preprocess(tmp_path, capsys):
    """Write a table (text, bytes or columns of parquet), run the command on it; return exit code, output, folder."""
    def command(content: str | bytes | dict, *flags: str, name: str = "ratings.csv") -> tuple[int, str, Path]:
        path, out = tmp_path / name, tmp_path / "out"
        if isinstance(content, dict):
            pq.write_table(pa.table(content), path)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        code = table_preprocess.main(["--raw_file", str(path), "--out_dir", str(out), *flags])
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return code, printed.out + printed.err, out

    return command


def rows_of(folder: Path) -> list[tuple]:
    """Return what a data set says, as `planted` does, sorted."""
    users, movies, meta = read_users(folder), read_movies(folder), read_meta(folder)
    epoch, rows = datetime.date.fromisoformat(meta["day_epoch"]), []
    for _, ratings in RatingsFile(folder).read_groups():
        rows += [(users.user_id[user].item(), movies.movie_id[movie].item(), round(stars * meta["stars_step"], 6),
                  epoch + datetime.timedelta(day)) for user, movie, stars, day in zip(
                      *(getattr(ratings, name).tolist() for name in ("user_idx", "movie_idx", "stars", "day")),
                      strict=True)]
    return sorted(rows)


def columns_of(rows: list[tuple], *kinds: pa.DataType | None) -> list[pa.Array]:
    return [pa.array([row[place] for row in rows], kind) for place, kind in enumerate(kinds)]


FIVE, TEN, HUNDRED = [1, 2, 3, 4, 5], list(range(1, 11)), list(range(0, 101, 5))
WHOLE = planted(FIVE, list(range(101, 111)), list(range(7, 16)))
NAMES = ("user", "item", "rating", "time")


def parquet(rows: list[tuple], *kinds: pa.DataType | None) -> dict:
    return dict(zip(("reader", "isbn", "score", "date"), columns_of(rows, *kinds), strict=True))


INPUTS = {  # what is written, the name of the file, what it says, the ends and the step of its scale
    "book club": ("Reader,ISBN,Stars,Finished,Date\n" + text_of(planted(FIVE)).replace(",2019", ",yes,2019").replace(
        ",2020", ",no,2020"), "ratings.csv", planted(FIVE), (1, 5, 1)),
    "course": ("student;course;grade\n" + text_of(planted([1, 2, 3, 4]), ";", ""), "grades.csv",
               planted([1, 2, 3, 4]), (1, 4, 1)),
    "out of 100": ("email\tproduct\tscore\tdate\n" + text_of(planted(HUNDRED), "\t"), "r.tsv", planted(HUNDRED),
                   (0, 100, 5)),
    "below zero": ("member,joke,rating,date\n" + text_of(planted(list(range(-10, 11)))), "r.csv",
                   planted(list(range(-10, 11))), (-10, 10, 1)),
    "tenths": ("customer,asin,score,timestamp\n" + text_of(planted([n / 10 for n in range(0, 101, 3)]),
                                                          date="%Y-%m-%dT10:00:00.125+02:00"),
               "r.csv", planted([n / 10 for n in range(0, 101, 3)]), (0, 9.9, 0.3)),
    "halves, quoted": ('"username","book","note","date"\n' + text_of(planted([0.5, 1, 2.5, 4, 5]), quote='"',
                                                                    date="%Y-%m-%d %H:%M:%SZ"),
                       "r.csv", planted([0.5, 1, 2.5, 4, 5]), (0.5, 5, 0.5)),
    "decimal commas, cp1252": (("name;song;rating\n" + text_of(planted([1.5, 2, 4.5]), ";", "").replace(".5\n", ",5\n")
                                ).encode("cp1252"), "r.csv", planted([1.5, 2, 4.5]), (1.5, 4.5, 0.5)),
    "utf-16": (("user,film,rating,date\n" + text_of(planted(TEN))).encode("utf-16"), "r.csv", planted(TEN),
               (1, 10, 1)),
    "whole numbers without header": ("".join(f"{user},{item},{stars},{day}\n" for user, item, stars, day in WHOLE),
                                     "r.txt", WHOLE, (1, 5, 1)),
    "as a spreadsheet saves whole numbers": ("user,item,rating,date\n" + "".join(
        f"{user}.0,{item}.0,{stars}.0,{day}\n" for user, item, stars, day in WHOLE), "r.csv", WHOLE, (1, 5, 1)),
    "parquet of text": (parquet(planted(HUNDRED), pa.string(), pa.large_string(), pa.int16(), pa.date32()),
                        "r.parquet", planted(HUNDRED), (0, 100, 5)),
    "parquet of dictionaries": ({name: column.dictionary_encode() for name, column in parquet(
        planted(TEN), pa.string(), pa.string(), pa.int8(), pa.date64()).items() if name != "date"}, "r.parquet",
        planted(TEN), (1, 10, 1)),
    "parquet of decimals and float32": (dict(zip(NAMES, [
        *columns_of(WHOLE, pa.int32(), pa.float64()),
        pa.array([row[2] / 10 for row in WHOLE], pa.float32()),
        pa.array([datetime.datetime.combine(row[3], datetime.time(23)) for row in WHOLE],
                 pa.timestamp("us"))], strict=True)), "r.parquet",
        [(user, item, stars / 10, day) for user, item, stars, day in WHOLE], (0.1, 0.5, 0.1)),
    "parquet of decimals": ({**parquet(planted(FIVE), pa.string(), pa.string(), pa.int8(), pa.date32()),
                             "score": pa.array([decimal.Decimal(row[2]) / 2 for row in planted(FIVE)],
                                               pa.decimal128(5, 2))}, "r.parquet",
                            [(user, item, stars / 2, day) for user, item, stars, day in planted(FIVE)],
                            (0.5, 2.5, 0.5)),
}


@pytest.mark.parametrize("name", INPUTS)
def test_a_table_becomes_a_data_set_that_says_the_same_and_is_trained_on(preprocess, train, tmp_path, capsys, name):
    content, file_name, rows, (low, high, step) = INPUTS[name]
    code, printed, out = preprocess(content, name=file_name)
    assert code == 0, printed
    meta = read_meta(out)
    assert (*meta["stars_range"], meta["stars_step"]) == (low, high, step)
    assert f"scale {low:g} to {high:g} in steps of {step:g}, found from the ratings" in printed
    found, has_days = rows_of(out), meta["num_days"] > 1
    expected = sorted((*row[:3], row[3] if has_days else datetime.date(1970, 1, 1)) for row in rows)
    assert found == [(user, item, pytest.approx(stars), day) for user, item, stars, day in expected]
    assert has_days == (meta["split"]["method"] == "latest") == (name not in (
        "course", "decimal commas, cp1252", "parquet of dictionaries"))
    assert read_movies(out).title[:] == [str(movie_id) for movie_id in read_movies(out).movie_id]
    assert train(out, tmp_path / "run", "--epochs", "1") == 0
    capsys.readouterr()
    assert rec.main(["--run_dir", str(tmp_path / "run"), "--top_n", "1", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["user_id"] in {row[0] for row in rows}
    assert all(low <= line["stars"] <= high for line in listed["recommendations"])


@pytest.fixture(scope="module")
def club(tmp_path_factory) -> Path:
    """A run on ratings of 0 to 100 by people and books whose ids are text."""
    folder = tmp_path_factory.mktemp("club")
    (folder / "r.csv").write_text("user,isbn,rating,date\n" + text_of(planted(HUNDRED)))
    (folder / "books.csv").write_text("isbn,title,year\n0439023483,The Hunger Games,2008\nB00005N5PF,Élan (1999),\n"
                                      "NOBODY,Unread,1950\n")
    assert table_preprocess.main(["--raw_file", str(folder / "r.csv"), "--titles_file", str(folder / "books.csv"),
                                  "--out_dir", str(folder / "data")]) == 0
    assert main.main(["--data_dir", str(folder / "data"), "--run_dir", str(folder / "run"), "--epochs", "1",
                      "--embedding_dim", "16", "--ensemble_size", "2", "--hidden_dim", "16", "--num_threads", "1",
                      "--no-refit"]) == 0
    return folder


def test_titles_come_from_a_catalogue_and_else_from_the_id(club):
    movies = read_movies(club / "data")
    titles = dict(zip(movies.movie_id.tolist(), zip(movies.title, movies.year.tolist(), strict=True), strict=True))
    assert titles["0439023483"] == ("The Hunger Games", 2008) and titles["B00005N5PF"] == ("Élan", 1999)
    assert titles["X 1"] == ("X 1", 0) and titles["NOBODY"] == ("Unread", 1950)
    assert movies.movie_id.tolist() == sorted(titles)


def test_every_flag_that_names_a_user_or_a_movie_takes_text(club, capsys, tmp_path):
    def asked(*flags: str) -> str:
        code = rec.main(["--run_dir", str(club / "run"), *flags])
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return printed.out

    listed = json.loads(asked("--user_id", "anna@x.org", "--json", "--explain", "--include_seen"))
    assert listed["user_id"] == "anna@x.org"
    assert {line["movie_id"] for line in listed["recommendations"]} == set(BOOKS)
    given = {item: stars for user, item, stars, _ in planted(HUNDRED) if user == "anna@x.org"}
    assert {line["movie_id"]: line["rated"] for line in listed["recommendations"] if line["rated"] is not None} == given
    rated = json.loads(asked("--rate", "0439023483:95,X,6:0,élan:5", "--json", "--include_seen"))["recommendations"]
    assert {line["movie_id"]: line["rated"] for line in rated if line["rated"] is not None} == {
        "0439023483": 95, "X,6": 0, "B00005N5PF": 5}
    (tmp_path / "own.csv").write_text("isbn,score\n0439023483,95\n9780439023481,0\n")
    own = json.loads(asked("--ratings_file", str(tmp_path / "own.csv"), "--json", "--include_seen"))["recommendations"]
    assert {line["movie_id"]: line["rated"] for line in own if line["rated"] is not None} == {
        "0439023483": 95, "9780439023481": 0}
    assert asked("--similar_to", "0439023483", "--top_n", "1").startswith("like movie 0439023483, The Hunger Games\n")
    assert json.loads(asked("--similar_to", "the hunger games", "--json"))["movie_id"] == "0439023483"
    users = json.loads(asked("--list_users", "3", "--json"))["users"]
    assert [user["user_id"] for user in users] == ["007", "Bob", "anna@x.org"]
    assert "anna@x.org        6" in asked("--list_users", "3")
    assert "0439023483  The Hunger Games" in asked("--search", "hunger")
    asked("--all_users", "--out", str(tmp_path / "recs.csv"))
    header, *lines = (tmp_path / "recs.csv").read_text().splitlines()
    assert header == "user_id,rank,movie_id,stars" and any(line.startswith('"anna@x.org",1,"') for line in lines)
    asked("--all_users", "--out", str(tmp_path / "recs.parquet"))
    assert set(pq.read_table(tmp_path / "recs.parquet")["user_id"].to_pylist()) == set(USERS)
    asked("--export_vectors", str(tmp_path / "vectors"))
    assert np.load(tmp_path / "vectors" / "user_ids.npy").tolist() == sorted(USERS)
    assert set(np.load(tmp_path / "vectors" / "movie_ids.npy").tolist()) == set(BOOKS)


@pytest.mark.parametrize(("flags", "sentence"), [
    (["--user_id", "Anna"], "user_id Anna is not in the data set"),
    (["--user_id", "7"], "user_id 7 is not in the data set"),
    (["--rate", "0439023483:101"], "movie_id 0439023483 is given 101 stars, outside 0 to 100"),
    (["--rate", "439023483:5"], "movie_id 439023483 is not in the data set"),
    (["--similar_to", "hunger gams"], "The Hunger Games (2008, movie_id 0439023483)"),
])
def test_text_that_is_no_id_gets_a_sentence(club, capsys, flags, sentence):
    assert rec.main(["--run_dir", str(club / "run"), *flags]) == 1
    assert sentence in capsys.readouterr().err


def test_long_ids_and_wide_letters_keep_a_list_within_80_columns(preprocess, train, tmp_path, capsys):
    items = [f"{'本' * number}{'x' * 90}" for number in range(9)]
    assert preprocess("user,item,rating\n" + text_of(planted(FIVE, items=items), date=""))[0] == 0
    assert train(tmp_path / "out", tmp_path / "run", "--epochs", "1") == 0
    capsys.readouterr()
    assert rec.main(["--run_dir", str(tmp_path / "run"), "--explain"]) == 0
    printed = capsys.readouterr().out
    assert max(sum(1 + (letter == "本") for letter in line) for line in printed.splitlines()) <= 80


def test_a_user_is_found_in_their_row_group(tmp_path):
    from preprocessing.dataset import Users, writer
    ids = sorted(f"user {number}" for number in range(20_000))
    users = Users(np.array(ids), np.arange(20_001))
    writer.write_users(tmp_path, users)
    for name in ("ratings.parquet", "movies.parquet"):
        pq.write_table(pa.table({"x": [1]}), tmp_path / name)
    sound = {"num_ratings": 0, "num_users": 0, "num_movies": 0, "seed": 0, "stars_step": 1, "stars_range": [1, 5],
             "split": {"num_train": 0, "num_validation": 0, "num_test": 0}, "day_epoch": "2000-01-01",
             "fingerprint": "0" * 64, "format_version": 4}
    writer.write_meta(tmp_path, sound)
    file = UsersFile(tmp_path)
    assert file.has_text_ids and file.read().user_id.tolist() == ids
    for number in (0, 8191, 8192, 19_999):
        found = file.find(ids[number])
        assert found is not None and found.user_idx == number and file.id_of(number) == ids[number]
    assert [file.find(other) for other in ("", "user", "user 20000", "zz", 7)] == [None] * 5


HEADER = "user,item,rating,date\n"


@pytest.mark.parametrize(("content", "flags", "sentence"), [
    ("alpha,beta,gamma\na,b,3\n", [], r"line 1: no column is named for user_id .*movie_id .*stars .*found: 'alpha', "
     "'beta', 'gamma'; expected are a column of users, one of items and one of ratings; name them with --user_column"),
    ("user,item,rating\n", [], "holds no rating"),
    (HEADER + "a,x,3,\nb,y,4,\na,x,5,\n", [], "line 4: 'a,x,5,' is wrong: user a rated movie x twice"),
    (HEADER + "a,x,3,\n,y,4,\n", [], "line 3: .* expected a user in column 'user'"),
    (HEADER + "a,x,3,\nb,,4,\n", [], "line 3: .* expected an item in column 'item'"),
    (HEADER + "a,x,3,\nb,y,good,\n", [], "line 3: .* expected a number in column 'rating'"),
    (HEADER + "a,x,3,\nb,y,,\n", [], "line 3: .* expected a number in column 'rating'"),
    (HEADER + "a,x,3,\nb,y,nan,\n", [], "line 3: .* expected a number in column 'rating'"),
    (HEADER + "a,x,3,2001-01-01\nb,y,4,soon\n", [], "line 3: .*'date'; expected dates such as 2005-12-31"),
    (HEADER + "a,x,1,\nb,y,3.1415,\nc,y,5,\n", [], "line 3: .* has a rating, 3.1415, that lies on no even scale"),
    (HEADER + "a,x,1,\nb,y,70000,\n", [], "line 3: .* 70000, that is no rating"),
    (HEADER + "a,x,1,\nb,y,700,\n", [], "line 3: .* 700, that lies on no even scale .* at most 256"),
    (HEADER + "a,x,3,\nb,y,3,\n", [], "all 2 ratings are 3: there is nothing to learn from; .*--scale LOW:HIGH"),
    (HEADER + "a,x,3,\nb,y,11,\n", ["--scale", "1:10"], "line 3: .* 11, that lies outside the scale 1 to 10"),
    ("user,item,rating (of 10)\na,x,3\nb,y,11\n", [], "line 3: .* 11, that lies outside the scale .. to 10"),
    (HEADER + "a,x,3,\nb,y,4,\n", ["--split", "latest"], "has no timestamps to split by; use --split random"),
    (HEADER + "a,x,3,\n", ["--item_column", "book"], "no column is named for movie_id .book."),
    (HEADER + "a,x,3,\n", ["--time_column", "when"], "no column is called 'when' .--time_column.; found: 'user'"),
    ("1,2,3\n", ["--user_column", "reader"], "has no header, so --user_column reader names nothing"),
    (HEADER + f"a,x,3,\n{'b' * 201},y,4,\n", [], "line 3: .* expected a user"),
    (HEADER + "a,x,3,\nb\x1b[2J,y,4,\n", [], "line 3: .* expected a user"),
])
def test_what_cannot_be_is_refused_with_its_line(preprocess, content, flags, sentence):
    code, printed, out = preprocess(content, *flags)
    assert code == 1 and not out.exists()
    error = printed.replace("\r", "\n").strip().splitlines()[-1]
    assert re.search(sentence, error), error


@pytest.mark.parametrize(("column", "values", "sentence"), [
    ("reader", ["a", None, "c"], "row 2: holds no user in column 'reader'"),
    ("isbn", ["x", "y", None], "row 3: holds no item in column 'isbn'"),
    ("score", [None, 1, 2], "row 1: holds no rating in column 'score'"),
    ("date", [datetime.date(2001, 1, 1), None, datetime.date(2001, 1, 1)], "row 2: holds no time in column 'date'"),
    ("date", [1_120_000_000, 7, 1_120_000_000], "row 2: has a time that is none since 1990"),
    ("isbn", ["x", "y", "y"], "is wrong: user b rated movie y twice"),
])
def test_a_row_of_parquet_is_named(preprocess, column, values, sentence):
    columns = {"reader": ["a", "b", "b"], "isbn": ["x", "y", "z"], "score": [1, 2, 3], column: values}
    code, printed, _ = preprocess(columns, name="r.parquet")
    assert code == 1 and f"r.parquet, {sentence}" in printed.replace("row 3: is wrong", "is wrong"), printed


def test_what_is_no_parquet_is_refused(preprocess):
    code, printed, _ = preprocess("user,item,rating\na,x,3\n", name="r.parquet")
    assert code == 1 and "r.parquet cannot be read as parquet" in printed


def test_flags_name_columns_and_the_scale(preprocess):
    text = "id,what,how much,when,rating\n" + "".join(f"{row[0]},{row[1]},{row[2]},{row[3]},?\n" for row in WHOLE)
    code, printed, out = preprocess(text, "--user_column", "id", "--item_column", "What", "--rating_column", "how much",
                                    "--time_column", "when", "--scale", "0:5")
    assert code == 0, printed
    assert rows_of(out) == sorted(WHOLE) and read_meta(out)["stars_range"] == [0, 5]
    assert "scale 0 to 5 in steps of 1, its ends as --scale names them" in printed
    assert "columns: users in 'id', items in 'what', ratings in 'how much', times in 'when'" in printed


def test_times_are_passed_over_on_demand(preprocess):
    _, printed, out = preprocess(HEADER + text_of(planted(FIVE)), "--time_column", "none")
    assert read_meta(out)["split"]["method"] == "random" and "no times" in printed


def test_a_constant_rating_is_data_where_the_scale_is_known(preprocess):
    assert preprocess(HEADER + text_of(planted([4])), "--scale", "1:5")[0] == 0


def test_titles_beside_the_ids_are_taken(preprocess):
    text = "user,book_id,title,rating\n" + "".join(
        f"{user},{item},Title {item} ({1990 + item}),{stars}\n" for user, item, stars, _ in WHOLE)
    _, _, out = preprocess(text)
    movies = read_movies(out)
    assert movies.movie_id.tolist() == list(range(7, 16)) and movies.movie_id.dtype == np.int32
    assert movies.title[:] == [f"Title {item}" for item in range(7, 16)] and movies.year[0] == 1997


@pytest.mark.parametrize(("catalogue", "movie_ids"), [
    ("id,title\n7,Seven\n99,Other\n", [*range(7, 16), 99]),
    ("id,title\n7,Seven\nX9,Other\n", [*sorted(map(str, range(7, 16))), "X9"]),
    ("id,title\n7,Seven\n007,Bond\n", sorted([*map(str, range(7, 16)), "007"])),
])
def test_ids_are_numbers_where_all_of_ratings_and_titles_are(preprocess, tmp_path, catalogue, movie_ids):
    (tmp_path / "titles.csv").write_text(catalogue)
    code, printed, out = preprocess(HEADER + "".join(f"{row[0]},{row[1]},{row[2]},{row[3]}\n" for row in WHOLE),
                                    "--titles_file", str(tmp_path / "titles.csv"))
    assert code == 0, printed
    movies = read_movies(out)
    assert movies.movie_id.tolist() == movie_ids and movies.title[movie_ids.index(type(movie_ids[0])(7))] == "Seven"


@pytest.mark.parametrize(("catalogue", "sentence"), [
    ("isbn,title\nA,Alpha\nB,Beta\n", "none of its 2 ids (such as 'A') is an item of"),
    ("isbn,title\nA,Alpha\nA,Beta\n", "line 3: 'A Beta' is no id and title, or its id stands above already"),
    ("isbn,title\nA,Alpha\n,Beta\n", "line 3: ' Beta' is no id and title"),
    ("isbn,pages\nA,3\n", "no column is named for title"),
])
def test_a_catalogue_of_something_else_is_refused(preprocess, tmp_path, catalogue, sentence):
    (tmp_path / "titles.csv").write_text(catalogue)
    code, printed, _ = preprocess(HEADER + text_of(planted(FIVE)), "--titles_file", str(tmp_path / "titles.csv"))
    assert code == 1 and sentence in printed, printed


def test_a_large_test_split_is_said(preprocess):
    text = HEADER + text_of(planted(FIVE))
    assert "test takes 50% of all ratings; --latest_n 1 or --split random leaves more to learn from" in preprocess(
        text)[1]
    assert "test takes" not in preprocess(text, "--latest_n", "1")[1]


def test_many_stars_are_shown_in_ranges(preprocess):
    _, printed, out = preprocess(HEADER + text_of(planted(HUNDRED)))
    bars = [line for line in printed.splitlines() if " stars " in line and "%" in line]
    assert len(bars) == 10 and "   95 to 100 stars" not in bars[0] and "100 stars" in bars[-1]
    assert len(read_meta(out)["histogram"]) == 21


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([1, 2, 5, 0.5, 0.25, 0.1, 0.01, 10]), st.integers(-300, 300), st.integers(1, 255), st.data())
def test_any_even_scale_is_found(step, first, num_steps, data):
    inner = data.draw(st.lists(st.integers(0, num_steps), max_size=20))
    steps = first + np.array([0, num_steps, 1, *inner])
    scale = find_scale(steps * step)
    assert (scale.low, scale.high) == pytest.approx((steps.min() * step, steps.max() * step))
    assert scale.step == pytest.approx(step)
    assert scale.stored(steps * step).tolist() == steps.tolist()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6, allow_nan=False), min_size=1, max_size=30))
def test_any_ratings_have_a_scale_or_a_reason_why_not(values):
    stars = np.array(values)
    try:
        scale = find_scale(stars)
    except OffScale as error:
        assert error.stars in values
    except ValueError:
        assert len(set(values)) == 1
    else:
        assert scale.stored(stars) * scale.step == pytest.approx(stars, abs=1e-6)


LETTERS = st.text(st.characters(exclude_categories=("C", "Z"), exclude_characters='",;|:\t'), min_size=1, max_size=8)
IDS = (LETTERS | st.integers(0, 2**33).map(str)
       | st.sampled_from(["007", "0", "0x1F", "-5", "1e3", "1.0", "nan", "NULL"]))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(IDS, IDS, st.integers(-20, 20), st.integers(0, 999)), min_size=1, max_size=12),
       st.sampled_from([",", ";", "\t", "|"]), st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
       st.sampled_from(["\n", "\r\n"]), st.permutations(range(5)))
def test_any_ids_come_out_as_they_are_written(tmp_path_factory, rows, separator, encoding, end, order):
    path = tmp_path_factory.getbasetemp() / "any.csv"
    rows = [(user, item, str(stars), str(FIRST_DAY + datetime.timedelta(day)), "?") for user, item, stars, day in rows]
    text = [separator.join(row[place] for place in order) + end
            for row in [("user", "item", "rating", "date", "other"), *rows]]
    path.write_bytes("".join(text).encode(encoding))
    args = table_preprocess.parse_args(["--raw_file", str(path)])
    raw, _ = table_preprocess.read_ratings(table_preprocess.open_ratings(args))
    for found, place, limit in ((raw.user_id, 0, 2**63), (raw.movie_id, 1, 2**31)):
        written = [row[place] for row in rows]
        plain = [re.fullmatch(r"(0|[1-9]\d*)(\.0)?", text) for text in written]
        if all(plain) and all(int(float(text)) < limit for text in written):
            assert found.tolist() == [int(float(text)) for text in written]
        else:
            assert found.to_pylist() == written
    assert raw.stars.tolist() == [float(row[2]) for row in rows]
    assert raw.seconds.astype("datetime64[s]").astype("datetime64[D]").astype(str).tolist() == [row[3] for row in rows]
