"""The one reader of tables: whatever the order of columns, separator, encoding and line end, the same comes out."""

import csv
import datetime
import io
import itertools
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from preprocessing import movielens_preprocess
from preprocessing.dataset import DataError
from preprocessing.dataset.tables import decode, encoding_of, layout_of, number_of, plain_name, read_table
from preprocessing.rating_table import RawRatings, open_table
from preprocessing.titles import read_title_table

NAMES = {"movie_id": ("movieid", "id"), "title": ("title", "name"), "year": ("year",)}
QUICK = settings(max_examples=int(os.environ.get("TABLE_EXAMPLES", "60")), deadline=None, database=None,
                 suppress_health_check=list(HealthCheck))


def read_ratings(path: Path) -> RawRatings:
    return movielens_preprocess.read_ratings(open_table(path, movielens_preprocess.COLUMNS))


@pytest.fixture
def read(tmp_path):
    """Read a table of ids and titles; return its rows and their lines."""

    def read(data: bytes | str) -> SimpleNamespace:
        (tmp_path / "table.csv").write_bytes(data if isinstance(data, bytes) else data.encode())
        table = read_table(tmp_path / "table.csv", NAMES, ("movie_id", "title"), lambda frame: ("movie_id", "title"))
        return SimpleNamespace(rows=table.frame.values.tolist(), lines=table.frame.index.tolist(), named=table.named)

    return read


@pytest.mark.parametrize("separator", [",", ";", "\t", "|", "::"])
def test_columns_are_found_by_their_names_and_others_passed_over(read, separator):
    lines = [("Title", "x", "Movie ID", "YEAR"), ("Heat", "7", "3", "1995"), ("Elf", "8", "4", "2003")]
    table = read("\r\n".join(separator.join(fields) for fields in lines))
    assert table.rows == [["3", "Heat", "1995"], ["4", "Elf", "2003"]] and table.lines == [2, 3]
    assert table.named == {"movie_id": "Movie ID", "title": "Title", "year": "YEAR"}


def test_of_several_names_the_best_is_taken(read):
    assert read("name,id,title,movieId\na,1,b,2\n").rows == [["2", "b"]]


@pytest.mark.parametrize(("text", "rows", "lines"), [
    ("3,Heat\n4,Elf\n", [["3", "Heat"], ["4", "Elf"]], [1, 2]),
    ("\n\n3,Heat,x\n  \n4,Elf\n", [["3", "Heat"], ["4", "Elf"]], [3, 5]),
    ('id,title\n3,"Heat,\nagain"\n4,"the ""Elf"""\n', [["3", "Heat,\nagain"], ["4", 'the "Elf"']], [2, 4]),
    ('3|"Heat" again\n4|Matrix, The\n', [["3", '"Heat" again'], ["4", "Matrix, The"]], [1, 2]),
    ("3::a\tb\n", [["3", "a\tb"]], [1]),
    ('3::"::x\n4::"Elf"::y\n5::"::x', [["3", '"'], ["4", '"Elf"'], ["5", '"']], [1, 2, 3]),
    ("sep=;\nid;title\n3;a,b\n", [["3", "a,b"]], [3]),
    ("id,title\n3,NA\n4,null\n5,\n", [["3", "NA"], ["4", "null"], ["5", ""]], [2, 3, 4]),
    ("id,title\r3,Heat\r", [["3", "Heat"]], [2]),
    ("", [], []), ("\n \n", [], []), ("id,title\n", [], []),
])
def test_rows_are_read_as_they_stand_with_their_lines(read, text, rows, lines):
    table = read(text)
    assert (table.rows, table.lines) == (rows, lines)


@pytest.mark.parametrize(("text", "sentence"), [
    ("alpha,beta\n1,x\n", r"line 1: no column is named for movie_id \(movieid or id\); title .*found: 'alpha', 'beta'"),
    ("\nid,alpha\n1,x\n", r"line 2: no column is named for title \(title or name\); found: 'id', 'alpha'"),
    ("id,title,Title\n1,x,y\n", "line 1: 2 columns are called 'title'; keep one"),
    ('id,title\n1,"a\nb"\n2,"x\n3,y\n', "line 4: a quotation mark is never closed"),
    ("id,title\n1,x\n\n2,Matrix, The\n", "line 4: '2,Matrix,The' has more fields than the 2 of the first line"),
    ("id,title\n1," + "x" * 200_000 + "\n", "line 2: field larger than"),
])
def test_what_no_table_says_is_refused_with_its_line(read, tmp_path, text, sentence):
    with pytest.raises(DataError, match=sentence) as error:
        read(text)
    assert str(error.value).startswith(str(tmp_path / "table.csv"))


@pytest.mark.parametrize(("data", "text"), [
    ("é’\r\n".encode("utf-8-sig"), "é’\n"), ("é’".encode("utf-16"), "é’"), ("héllo,\n".encode("utf-16-le"), "héllo,\n"),
    ("héllo,\n".encode("utf-16-be"), "héllo,\n"), ("É’s é – œ".encode("cp1252"), "É’s é – œ"),
    (b"\x81\xe9", "\x81é"), ("Amélie, Où, ’".encode() + b" \x92", "Amélie, Où, ’ ’"), (b"", ""), (b"a\rb", "a\nb"),
])
def test_any_encoding_is_decoded(data, text):
    assert decode(data) == text


def test_an_encoding_is_told_by_the_first_bytes():
    assert [encoding_of(data) for data in ("é".encode("utf-16"), b"a\0b\0", b"\0a\0b", b"abc" * 99 + b"\0", b"")] == [
        "utf-16", "utf-16-le", "utf-16-be", "utf-8-sig", "utf-8-sig"]


def test_a_header_holds_no_number_and_the_separator_makes_sense():
    assert layout_of("1|Matrix, The\n2|Kid, The\n", NAMES).separator == "|"
    assert layout_of("10,5\n", NAMES).separator == ","
    assert layout_of("title;id\nHeat;4,5\nElf;3,5\n", NAMES).header == ["title", "id"]
    assert layout_of("Heat;4,5\n", NAMES).header is None
    assert [number_of(text) for text in ("4,5", "4.5", " 3 ")] == [4.5, 4.5, 3]
    assert [plain_name(name) for name in ("User ID", "rating (1-10)", "score/10", "column100")] == [
        "userid", "rating", "score", "column100"]


@pytest.mark.parametrize("text", [
    "196 242 3.5 881250949\n86 242 4 891717742\n", " 196  242 3.5   881250949 \r\n  86  242 4   891717742\r\n",
    "rating userId   movieId timestamp\n3.5    196      242 881250949\n4       86      242 891717742"])
def test_columns_of_ratings_may_be_divided_by_spaces(tmp_path, text):
    (tmp_path / "u.data").write_text(text, newline="")
    raw = read_ratings(tmp_path / "u.data")
    assert [column.tolist() for column in (raw.user_id, raw.movie_id, raw.stars, raw.seconds)] == [
        [196, 86], [242, 242], [3.5, 4], [881250949, 891717742]]


def test_titles_with_spaces_are_no_columns():
    for text in ("12 Angry Men\n10 Things Foo\n", "1 2 3\n4 5\n", "7 8\n"):
        assert layout_of(text, NAMES).separator == ","


TEXT = st.text(st.characters(codec="cp1252", exclude_characters="():",
                             exclude_categories=("Cc", "Cf", "Zs", "Zl", "Zp", "Nd", "No")), min_size=1, max_size=9)
RATINGS = st.dictionaries(st.tuples(st.integers(1, 10**11), st.integers(1, 2**31 - 1)),
                          st.tuples(st.integers(1, 10), st.integers(631_152_000, 4_102_444_799)), min_size=1,
                          max_size=6)


def written(rows: list[list[str]], separator: str, encoding: str, line_end: str) -> bytes:
    """Return a table as a program saves it."""
    if separator == "::":
        text = "".join("::".join(row) + line_end for row in rows)
    else:
        file = io.StringIO(newline="")
        csv.writer(file, delimiter=separator, lineterminator=line_end).writerows(rows)
        text = file.getvalue()
    if encoding == "cp1252" and not text.encode(encoding).decode("utf-8", "ignore").isascii():
        encoding = "utf-8"  # nobody could tell these bytes from UTF-8
    return text.encode(encoding)


@QUICK
@given(ratings=RATINGS, titles=st.lists(TEXT, min_size=1, max_size=4), data=st.data())
def test_any_table_of_ratings_gives_the_same_data_whatever_its_looks(tmp_path_factory, ratings, titles, data):
    """Times are seconds, thousandths, decimal, dates or dates and times; a header may be missing; or one sentence."""
    folder = tmp_path_factory.mktemp("raw")
    form = data.draw(st.sampled_from(["{s}", "{s}000", "{s}.0", "{d}", "{d} 11:12:13", "{d}T11:12:13.25Z", "{us}",
                                      "none"]))
    has_header, decimal = data.draw(st.booleans()), data.draw(st.sampled_from(".,"))
    columns = ["userId", "movieId", "rating", "timestamp"][:3 + (form != "none")]
    rows, expected = [], []
    for (user, movie), (halves, seconds) in ratings.items():
        day = datetime.date(1970, 1, 1) + datetime.timedelta(seconds // 86_400)
        time = form.format(s=seconds, d=day, us=f"{day.month}/{day.day}/{day.year}")
        stars = f"{halves / 2:g}".replace(".", decimal)
        rows.append([str(user), str(movie), stars, time][:len(columns)])
        expected.append((user, movie, halves / 2, None if form == "none" else day))
    if has_header:
        extra = data.draw(st.integers(0, 2))
        rows = [[*row, "7", "x"][:len(row) + extra] for row in rows]
        columns = [*columns, "", "note"][:len(columns) + extra]
        order = data.draw(st.permutations(range(len(columns))))
        rows = [[row[place] for place in order] for row in [columns, *rows]]
    looks = st.tuples(st.sampled_from([",", ";", "\t", "|", "::"]), st.sampled_from(
        ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"]), st.sampled_from(["\n", "\r\n", "\r"]))
    separator, encoding, line_end = data.draw(looks)
    (folder / "ratings.csv").write_bytes(written(rows, separator, encoding, line_end))
    try:
        raw = read_ratings(folder / "ratings.csv")
    except DataError as error:
        months = [int(part) for row in expected for part in (row[3].month, row[3].day)] if form == "{us}" else [13]
        assert max(months) <= 12 and "month or day" in str(error)
    else:
        days = raw.seconds.astype("datetime64[s]").astype("datetime64[D]").astype(object)
        assert list(zip(raw.user_id.tolist(), raw.movie_id.tolist(), raw.stars.tolist(), [
            None if form == "none" else day for day in days], strict=True)) == expected

    separator, encoding, line_end = data.draw(looks)
    titles = [title for title in titles if title.strip()] or ["x"]
    rows = [[str(number), title, "x"] for number, title in enumerate(titles, start=1)]
    if has_header:
        order = data.draw(st.permutations(range(3)))
        rows = [[row[place] for place in order] for row in [["movieId", "title", "genres"], *rows]]
    (folder / "movies.csv").write_bytes(written(rows, separator, encoding, line_end))
    assert read_title_table(folder / "movies.csv").title == [title.strip() for title in titles]


@QUICK
@given(st.one_of(st.binary(max_size=60), st.lists(st.sampled_from(
    ["userId", "movieId", "rating", "1", "2", "5", "x", '"', ",", ";", "\n", "\r", "|", "::", "\t", "964982703", " ",
     "\0"]), max_size=24).map(lambda parts: "".join(parts).encode())))
@example(b'1,2,5\n3,"4,5\n')
@example(b"userId,movieId,rating\n1,2")
def test_any_bytes_are_ratings_or_one_sentence(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("raw") / "ratings.csv"
    path.write_bytes(data)
    for read in (read_ratings, read_title_table):
        try:
            read(path)
        except DataError as error:
            assert str(error).startswith(str(path)) and str(error).isprintable()


def test_rows_of_a_table_are_never_mixed_up():
    """Of all orders of four columns the same ratings."""
    columns = {"userId": "9", "movieId": "7", "rating": "4.5", "timestamp": "964982703"}
    for order in itertools.permutations(columns):
        text = ",".join(order) + "\n" + ",".join(columns[name] for name in order)
        layout = layout_of(text, movielens_preprocess.COLUMNS)
        assert layout.header == list(order) and np.size(layout.rows) == 4
