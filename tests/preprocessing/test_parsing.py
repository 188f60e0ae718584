import datetime
import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from preprocessing import lines, parsing
from preprocessing.dataset import DataError
from preprocessing.titles import read_titles

TRAPS = (b"1:\r\n"
         b"2649429,3,2005-09-06\r\n"
         b"7,1,1999-11-11\n"
         b"\n"
         b"\r\n"
         b"3:\n"  # no rating follows
         b"17770:\r\n"
         b"99999999999,5,2005-12-31\n"
         b"00000000007,2,0001-01-01\n"
         b"2147483647:\n"
         b"0,4,9999-12-31\r\n"
         b"8,4,2000-02-29\n"
         b"3:\n"  # a second section of a movie
         b"12,5,2005-01-02")  # no line end


@pytest.fixture(scope="module")
def one_core():
    """Parse in this process, so that an example costs no new processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)
        yield


@pytest.fixture(scope="module")
def parse(one_core, kit, tmp_path_factory):
    """Parse bytes as one file: the rows (movie_id, user_id, stars, date) and the first bad line, as the reference."""
    path = tmp_path_factory.mktemp("parse") / "combined_data_1.txt"

    def parse(data, with_stars=True, range_bytes=parsing.RANGE_BYTES, block_bytes=parsing.BLOCK_BYTES):
        path.write_bytes(data)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(parsing, "RANGE_BYTES", range_bytes)
            patch.setattr(parsing, "BLOCK_BYTES", block_bytes)
            try:
                runs = parsing.parse_files([path], with_stars)
            except DataError as error:
                prefix = f"{path}, line "
                assert str(error).startswith(prefix)
                return None, int(str(error).removeprefix(prefix).split(":")[0])
        return rows_of(runs, with_stars), None

    return parse


def rows_of(runs, with_stars=True):
    assert runs.lengths.sum() == len(runs.cells)
    assert runs.cells.dtype == runs.movie_ids.dtype == runs.lengths.dtype == np.int64
    days = (lines.DAY_ZERO + lines.days_of(runs.cells)).astype("M8[D]").tolist() if with_stars else \
        [None] * len(runs.cells)
    return list(zip(np.repeat(runs.movie_ids, runs.lengths).tolist(), lines.user_ids_of(runs.cells).tolist(),
                    lines.stars_of(runs.cells).tolist(), days))


def test_every_trap_is_parsed_as_written_by_hand(parse):
    date = datetime.date
    assert parse(TRAPS) == ([(1, 2649429, 3, date(2005, 9, 6)), (1, 7, 1, date(1999, 11, 11)),
                             (17770, 99999999999, 5, date(2005, 12, 31)), (17770, 7, 2, date(1, 1, 1)),
                             (2147483647, 0, 4, date(9999, 12, 31)), (2147483647, 8, 4, date(2000, 2, 29)),
                             (3, 12, 5, date(2005, 1, 2))], None)


def test_an_empty_movie_section_is_a_run_of_length_zero_or_none(parse, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"4:\n5:\n1,2,2005-01-01\n6:\n")
    runs = parsing.parse_files([tmp_path / "a.txt"])
    assert [(m, n) for m, n in zip(runs.movie_ids.tolist(), runs.lengths.tolist()) if n] == [(5, 1)]


@pytest.mark.parametrize("unit", ["block_bytes", "range_bytes"])
def test_every_block_and_range_size_parses_the_same(parse, unit):
    whole = parse(TRAPS)
    for size in range(1, len(TRAPS) + 3):
        assert parse(TRAPS, **{unit: size}) == whole, size


def test_every_pair_of_small_sizes_parses_the_same(parse):
    whole = parse(TRAPS)
    for range_bytes in range(1, 40, 3):
        for block_bytes in range(1, 40, 4):
            assert parse(TRAPS, range_bytes=range_bytes, block_bytes=block_bytes) == whole, (range_bytes, block_bytes)


@pytest.mark.parametrize("text", [b"1:\r\n7\r\n8\n\n2:\n3:\n99999999999\n0", b"1:\n7\n8\n2:\n9\n"])
def test_probe_lines_parse_the_same_for_every_size(parse, kit, text):
    rows, bad_line = kit.parse_slowly(text, with_stars=False)
    assert bad_line is None and len(rows) > 2
    for size in range(1, len(text) + 3):
        assert parse(text, False, range_bytes=size) == (rows, None), size
        assert parse(text, False, block_bytes=size) == (rows, None), size


@pytest.mark.parametrize("bad", [b"x" * 1000, b"1" * 1000, b"1" * 80 + b",3,2005-01-01", b" " * 200, b"7,3,2005-02-30",
                                 b"2147483648:", b"1:" * 70, b"\0", b"7,3,2005-01-01\r\r", b"7,3,2005-01-01\r5:"])
def test_a_bad_line_is_named_for_every_size_however_long_it_is(parse, kit, bad):
    text = b"1:\n5,3,2005-01-01\n\r\n6,3,2005-01-01\r\n" + bad + b"\n7,4,2005-01-01\n2:\nalso bad\n"
    assert kit.parse_slowly(text) == (None, 5)
    for size in [*range(1, 90), 500, 1000, 1040, 2000]:
        assert parse(text, range_bytes=size) == (None, 5), size
        assert parse(text, block_bytes=size) == (None, 5), size


def test_empty_lines_longer_than_a_range_are_skipped(parse):
    text = b"1:\n" + b"\n" * 300 + b"5,3,2005-01-01\n" + b"\r\n" * 300 + b"2:\n" + b"\n" * 99 + b"6,4,2005-01-02\r\n"
    for size in (1, 2, 7, 64, 65, 128, 1000):
        assert parse(text, range_bytes=size, block_bytes=5) == (
            [(1, 5, 3, datetime.date(2005, 1, 1)), (2, 6, 4, datetime.date(2005, 1, 2))], None), size
    assert parse(text + b"6,9,2005-01-02", range_bytes=13) == (None, 704)


def test_a_rating_before_the_first_header_is_named_for_every_size(parse):
    text = b"\n\r\n5,3,2005-01-01\n1:\n5,3,2005-01-01\n6,3,2005-01-01\n"
    for size in range(1, len(text) + 1):
        assert parse(text, range_bytes=size) == (None, 3), size


def test_a_header_does_not_reach_into_the_next_file(one_core, tmp_path):
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    paths[0].write_bytes(b"1:\n5,3,2005-01-01\n")
    paths[1].write_bytes(b"6,3,2005-01-01\n2:\n7,3,2005-01-01\n")
    with pytest.raises(DataError, match=r"b\.txt, line 1: '6,3,2005-01-01' is a rating before the first movie header"):
        parsing.parse_files(paths)


@pytest.mark.parametrize("num_cores", [1, 2, 5])
def test_any_number_of_processes_parses_the_same(kit, tmp_path, monkeypatch, num_cores):
    ratings = kit.draw_ratings(3, num_users=80, num_movies=30)
    paths = [tmp_path / f"{k}.txt" for k in range(3)]
    for k, path in enumerate(paths):
        path.write_bytes(kit.rating_text(ratings[k::3], eol=("\n", "\r\n", "\n")[k])[:-1])
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(num_cores)), raising=False)
    monkeypatch.setattr(parsing, "RANGE_BYTES", 1777)
    assert sum(path.stat().st_size for path in paths) > 5 * 1777
    expected = [(r.movie_id, r.user_id, r.stars, datetime.date.fromisoformat(r.date))
                for k in range(3) for r in ratings[k::3]]
    assert rows_of(parsing.parse_files(paths)) == expected


def test_processes_name_the_first_bad_line_of_several(kit, tmp_path, monkeypatch):
    text = kit.rating_text(kit.draw_ratings(4))
    lines = text.splitlines(keepends=True)
    lines[400], lines[300], lines[350] = b"bad\n", b"5,7,2005-01-01\n", b"bad too\n"
    (tmp_path / "a.txt").write_bytes(b"".join(lines))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    monkeypatch.setattr(parsing, "RANGE_BYTES", 500)
    with pytest.raises(DataError, match=r"a\.txt, line 301: '5,7,2005-01-01'"):
        parsing.parse_files([tmp_path / "a.txt"])


def test_little_text_is_parsed_without_other_processes(tmp_path, monkeypatch):
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for path in paths:
        path.write_bytes(b"1:\n7,3,2005-01-01\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    monkeypatch.setattr(parsing, "ProcessPoolExecutor", lambda *_: pytest.fail("starting them takes longer"))
    assert rows_of(parsing.parse_files(paths)) == [(1, 7, 3, datetime.date(2005, 1, 1))] * 2


def test_a_process_that_parses_rests_and_ends_when_its_parent_is_gone(monkeypatch):
    rests_s, exit_codes, handlers, daemons = [], [], {}, []
    answers = {7: [True, True, False]}

    def run_at_once(target, daemon):
        daemons.append(daemon)
        return SimpleNamespace(start=target)

    monkeypatch.setattr(parsing.machine, "has_parent", lambda parent_pid: answers[parent_pid].pop(0))
    monkeypatch.setattr(parsing, "os", SimpleNamespace(_exit=exit_codes.append))
    monkeypatch.setattr(parsing, "time", SimpleNamespace(sleep=rests_s.append))
    monkeypatch.setattr(parsing, "threading", SimpleNamespace(Thread=run_at_once))
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)
    parsing._start_worker(parent_pid=7)
    assert (rests_s, exit_codes, daemons) == ([0.5, 0.5], [1], [True])
    assert handlers == {signal.SIGINT: signal.SIG_IGN, signal.SIGTERM: signal.SIG_DFL}


@pytest.mark.parametrize(("line", "problem"), [
    (b"7,6,2005-01-01", "has stars outside 1 to 5"), (b"7,3.5,2005-01-01", "has stars outside 1 to 5"),
    (b"7,10,2005-01-01", "has stars outside 1 to 5"), (b"7,3,2005-02-29", "has an impossible date"),
    (b"7,3", "is no rating line (user_id,stars,YYYY-MM-DD) and no movie header (movie_id:)"),
    (b"x:", "is no movie header (a number below 2147483648 and a colon)")])
def test_the_sentence_says_what_is_wrong_with_a_line(one_core, tmp_path, line, problem):
    path = tmp_path / "a.txt"
    path.write_bytes(b"1:\n" + line + b"\n")
    with pytest.raises(DataError) as error:
        parsing.parse_files([path])
    assert str(error.value) == f"{path}, line 2: {line.decode()!r} {problem}"


@pytest.mark.parametrize("rest", [",5,2005-01-01", ""])
def test_user_ids_of_twelve_digits_are_refused(parse, rest):
    assert parse(f"1:\n99999999999{rest}\n100000000000{rest}\n".encode(), with_stars=bool(rest)) == (None, 3)


@pytest.mark.parametrize("user_id", ["1", "12", "99999999999", "00000000000", "4294967296"])
def test_user_ids_of_one_to_eleven_digits_are_exact(parse, user_id):
    assert parse(f"1:\n{user_id},5,2005-01-01\n".encode())[0][0][1] == int(user_id)


def test_every_day_of_eight_centuries_of_leap_rules_is_exact(parse):
    """1600 to 2400 in steps of 7 days, and every last of February."""
    first = datetime.date(1600, 1, 1)
    dates = [first + datetime.timedelta(k) for k in range(0, 292_194, 7)]
    dates += [datetime.date(year, 3, 1) - datetime.timedelta(1) for year in range(1, 10_000)]
    text = b"1:\n" + "".join(f"{k},3,{date}\n" for k, date in enumerate(dates)).encode()
    assert [row[3] for row in parse(text)[0]] == dates


def test_exactly_the_calendar_dates_are_dates(parse):
    """Every month 0-13 and day 0-33 of a leap year and a common one: a date parses if and only if datetime knows it."""
    wrong = []
    for year in ("1900", "2004"):
        for month in range(14):
            for day in range(34):
                text = f"{year}-{month:02}-{day:02}"
                try:
                    expected = [(1, 5, 3, datetime.date.fromisoformat(text))], None
                except ValueError:
                    expected = None, 2
                if parse(f"1:\n5,3,{text}\n".encode()) != expected:
                    wrong.append(text)
    assert wrong == []


def test_one_wrong_byte_anywhere_in_a_line_is_judged_as_the_reference_does(parse, kit):
    """Each bit flipped, and each byte that means something or nearly does, at each position of a line."""
    wrong = []
    for line in (b"12,3,2005-09-06", b"12:"):
        for position in range(len(line)):
            for byte in {line[position] ^ 1 << k for k in range(8)} | set(b"\0\n\r ,-./09:;\xb0\xff"):
                text = b"7:\n" + line[:position] + bytes([byte]) + line[position + 1:] + b"\n8,1,2005-01-01\n"
                if parse(text) != kit.parse_slowly(text):
                    wrong.append(text)
    assert wrong == []


# --- any bytes -------------------------------------------------------------------------------------------------

DIGITS = st.text("0123456789", min_size=1, max_size=12)
GOOD_DATES = st.dates().map(str)
NEAR_DATES = st.one_of(
    GOOD_DATES,
    st.builds(lambda y, m, d: f"{y:04}-{m:02}-{d:02}", st.sampled_from([0, 1, 1900, 2000, 2004, 2005, 9999]),
              st.integers(0, 13), st.integers(0, 32)),
    st.sampled_from(["2005-9-6", "2005/09/06", "05-09-06", "2005-09-06 ", "2005-09-066", "-005-01-01", ""]))
GOOD_LINES = st.one_of(
    st.builds(lambda user_id, stars, date: f"{user_id},{stars},{date}", st.integers(0, 10**11 - 1),
              st.integers(1, 5), GOOD_DATES),
    st.integers(0, 2**31 - 1).map(lambda movie_id: f"{movie_id}:"),
    st.just("")).map(str.encode)
NEAR_LINES = st.one_of(
    st.builds(lambda *fields: ",".join(fields), DIGITS,
              st.sampled_from(["0", "1", "5", "6", "3.5", "10", "-1", "", " 3"]), NEAR_DATES).map(str.encode),
    DIGITS.map(lambda digits: f"{digits}:".encode()),
    DIGITS.map(str.encode),
    st.sampled_from([b":", b",,", b"1:2", b" 1:", b"1: ", b"+1:", b"-1:", b"2147483648:", b"4294967297:",
                     b"0000000001:", b"00000000001:", b"1,3,2005-01-01,", b",3,2005-01-01", b"1,3", b"1.0,3,2005-01-01",
                     b"\xef\xbb\xbf1:", b"1,3,2005-01-01\r", b"\r", b"\t", b"\0", b"\xd9\xa1:", b"1_0:",
                     b"1,\xb2,2005-01-01"]))
LINE_ENDS = st.sampled_from([b"\n", b"\n", b"\n", b"\r\n", b"\r\n", b"\n\n"])


def joined(lines):
    return st.lists(st.tuples(lines, LINE_ENDS), max_size=12).map(lambda pairs: b"".join(a + b for a, b in pairs))


@st.composite
def mutated(draw):
    """Draw a valid file with one small piece of it replaced by other bytes."""
    text = b"1:\n" + draw(joined(GOOD_LINES))
    position = draw(st.integers(0, len(text)))
    return text[:position] + draw(st.binary(max_size=3)) + text[position + draw(st.integers(0, 3)):]


FILES = st.one_of(
    st.binary(max_size=200),
    st.lists(st.sampled_from(list(b"0123456789:,-\r\n")), max_size=80).map(bytes),
    joined(GOOD_LINES).map(lambda text: b"1:\n" + text),
    joined(GOOD_LINES),
    joined(st.one_of(GOOD_LINES, GOOD_LINES, GOOD_LINES, NEAR_LINES)).map(lambda text: b"5:\n" + text),
    joined(NEAR_LINES),
    mutated())


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=FILES, cut_end=st.booleans(), range_bytes=st.integers(1, 60), block_bytes=st.integers(1, 60))
@example(data=b"", cut_end=False, range_bytes=1, block_bytes=1)
@example(data=b"\xef\xbb\xbf1:\n5,3,2005-01-01\n", cut_end=False, range_bytes=60, block_bytes=60)
def test_any_bytes_parse_as_the_reference_or_fail_at_its_line(parse, kit, data, cut_end, range_bytes, block_bytes):
    data = data.removesuffix(b"\n") if cut_end else data
    expected = kit.parse_slowly(data)
    assert parse(data) == expected
    assert parse(data, range_bytes=range_bytes, block_bytes=block_bytes) == expected


PROBE_FILES = st.one_of(
    st.binary(max_size=100),
    joined(st.one_of(DIGITS, DIGITS.map("{}:".format), st.just("")).map(str.encode)).map(lambda text: b"1:\n" + text),
    joined(st.one_of(DIGITS.map(str.encode), NEAR_LINES)).map(lambda text: b"1:\n" + text))


@settings(max_examples=200, deadline=None)
@given(data=PROBE_FILES, cut_end=st.booleans(), size=st.integers(1, 40))
def test_any_probe_bytes_parse_as_the_reference_or_fail_at_its_line(parse, kit, data, cut_end, size):
    data = data.removesuffix(b"\n") if cut_end else data
    expected = kit.parse_slowly(data, with_stars=False)
    assert parse(data, False) == expected
    assert parse(data, False, range_bytes=size, block_bytes=size) == expected


# --- titles ----------------------------------------------------------------------------------------------------


@pytest.fixture
def titles_of(tmp_path):
    def titles_of(data):
        path = tmp_path / "movie_titles.csv"
        path.write_bytes(data)
        titles = read_titles(path)
        return list(zip(titles.movie_id.tolist(), titles.year.tolist(), titles.title, strict=True))

    return titles_of


@pytest.mark.parametrize("eol", [b"\n", b"\r\n"])
@pytest.mark.parametrize("end", [True, False])
def test_titles_keep_commas_quotes_and_spaces_as_they_stand(titles_of, eol, end):
    lines = [b"1,2003,Dinosaur Planet", b'2,2004,"Weird", the movie, vol. 1', b"3,NULL,No Year", b"4,1896,'x' ",
             b'5,2005,"', b"17770,1999,Alien, 3,"]
    data = eol.join(lines) + (eol if end else b"")
    assert titles_of(data) == [(1, 2003, "Dinosaur Planet"), (2, 2004, '"Weird", the movie, vol. 1'), (3, 0, "No Year"),
                               (4, 1896, "'x' "), (5, 2005, '"'), (17770, 1999, "Alien, 3,")]


@pytest.mark.parametrize("encoded", [b"Smokey Joe's Caf\xe9", b"Smokey Joe's Caf\xc3\xa9"])
def test_titles_of_latin_1_and_utf_8_are_the_same(titles_of, encoded):
    assert titles_of(b"6483,1995," + encoded + b"\n") == [(6483, 1995, "Smokey Joe's Caf\u00e9")]


@pytest.mark.parametrize("head", [b"MovieID,Year,Title\n", b"movie_id,year,title\r\n",
                                  b"Movie_Id,Year_Of_Release,Title\n", b"\xef\xbb\xbfmovie_id,year,title\n",
                                  b"\xef\xbb\xbf"])
def test_titles_may_have_a_header_row_and_a_byte_order_mark(titles_of, head):
    assert titles_of(head + b"1,2003,A\n2,NULL,B\n") == [(1, 2003, "A"), (2, 0, "B")]


def test_titles_come_in_order_of_their_ids(titles_of):
    assert titles_of(b"30,2003,C\n1,2001,A\n2147483647,2002,B\n") == [(1, 2001, "A"), (30, 2003, "C"),
                                                                     (2147483647, 2002, "B")]


@pytest.mark.parametrize("bad", [b"5", b"5,2000", b"x,2000,A", b",2000,A", b"5,two,A", b"5,20000,A", b"5,-1,A",
                                 b"2147483648,2000,A", b"-5,2000,A", b"5.0,2000,A", b"1,2000,B",
                                 b"1" * 5000 + b",2000,A", b"5," + b"2" * 5000 + b",A", b"movie_id,year,title"])
def test_a_bad_title_line_is_named(titles_of, tmp_path, bad):
    with pytest.raises(DataError) as error:
        titles_of(b"1,2003,A\r\n\r\n" + bad + b"\n6,2000,C\n")
    assert str(error.value).startswith(f"{tmp_path / 'movie_titles.csv'}, line 3: ")


@settings(max_examples=200, deadline=None)
@given(data=st.one_of(st.binary(max_size=60), st.lists(st.tuples(
    st.one_of(DIGITS, st.text(max_size=3)), st.sampled_from(["NULL", "2000", "", "x", "1995.0", "\u00b2"]),
    st.text(max_size=5)).map(",".join), max_size=4).map(lambda lines: "\n".join(lines).encode())))
def test_any_title_bytes_are_titles_or_one_clean_error(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any_titles.csv"
    path.write_bytes(data)
    try:
        titles = read_titles(path)
    except DataError as error:
        assert str(error).startswith(f"{path}, line ")
    else:
        assert (np.diff(titles.movie_id) > 0).all()
        assert len(titles.movie_id) == len(titles.year) == len(titles.title) <= data.count(b"\n") + 1
