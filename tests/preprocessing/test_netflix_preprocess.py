"""The command as a black box: raw files in; exit code, message and data set out."""

import datetime
import errno
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from preprocessing import building, dataset, netflix_preprocess, parsing
from preprocessing.dataset import lock_beside, locked, schema, writer

FILES = {"ratings.parquet", "users.parquet", "movies.parquet", "meta.json"}
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
ROOT = Path(__file__).resolve().parents[2]


def triples(rows):
    return [(row.user_id, row.movie_id, row.stars, row.date) for row in rows]


def in_order(ratings):
    """Return the order of ratings.parquet: user, day, movie; ISO dates sort as days do."""
    return sorted(((r.user_id, r.movie_id, r.stars, r.date) for r in ratings), key=lambda r: (r[0], r[3], r[1]))


def movie_rows(out_dir):
    table = pq.read_table(out_dir / "movies.parquet")
    return [(row["movie_id"], row["year"], row["title"]) for row in table.to_pylist()]


# --- traps of the format ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("eol", ["\n", "\r\n"])
@pytest.mark.parametrize("num_files", [1, 4])
@pytest.mark.parametrize("last_line_ends", [True, False])
def test_every_rating_arrives_once_in_order_of_user_day_movie(kit, preprocess, eol, num_files, last_line_ends):
    ratings = kit.draw_ratings(1)
    files = {f"combined_data_{k + 1}.txt": kit.rating_text(ratings[k::num_files], eol) for k in range(num_files)}
    if not last_line_ends:
        files = {name: text.removesuffix(eol.encode()) for name, text in files.items()}
    rows = kit.read_rows(preprocess(files, titles=kit.title_text([1])))
    assert triples(rows) == in_order(ratings)


def test_mixed_line_ends_empty_lines_empty_sections_and_a_divided_movie(kit, preprocess):
    out_dir = preprocess({
        "combined_data_1.txt": b"\r\n1:\r\n\n5,3,2005-01-02\n3:\n4:\r\n5,4,2005-01-01\r\n1:\n6,1,2005-01-01",
        "combined_data_2.txt": b"9:\n1:\n7,5,2004-12-31\n\n"},
        titles=b"1,2000,A\n4,2001,D\n")
    assert triples(kit.read_rows(out_dir)) == [
        (5, 4, 4, "2005-01-01"), (5, 1, 3, "2005-01-02"), (6, 1, 1, "2005-01-01"), (7, 1, 5, "2004-12-31")]


def test_files_are_read_in_order_of_their_movie_headers(kit, preprocess, write_raw, run, tmp_path):
    """Seen in which of two lines counts as the second one, and in the list of sources."""
    titles = b"1,2000,A\n2,2000,B\n"
    out_dir = preprocess({"combined_data_1.txt": b"2:\n5,3,2005-01-01\n",
                          "combined_data_2.txt": b"1:\n5,3,2005-01-01\n"}, titles=titles)
    names = [source["name"] for source in json.loads((out_dir / "meta.json").read_text())["sources"]]
    assert [name for name in names if name.startswith("combined")] == ["combined_data_2.txt", "combined_data_1.txt"]
    raw_dir = write_raw({"combined_data_1.txt": b"2:\n9,3,2005-01-01\n\n1:\n5,3,2005-01-01\n",
                         "combined_data_2.txt": b"1:\n5,3,2005-01-01\n"}, titles=titles)
    assert "combined_data_1.txt, line 5:" in run(raw_dir, tmp_path / "refused").err


def test_a_folder_of_eleven_files_is_read_whole(kit, preprocess):
    ratings = kit.draw_ratings(2, num_users=30, num_movies=33)
    assert triples(kit.read_rows(preprocess(ratings=ratings, num_files=11))) == in_order(ratings)


def test_only_combined_data_files_are_read(kit, preprocess):
    ratings = kit.draw_ratings(3, num_users=5)
    out_dir = preprocess({"README": b"no data", "qualifying.txt": b"1:\n5,2005-01-01\n",
                          "combined_data_1.txt.bak": b"junk", "old_combined_data_1.txt": b"junk"}, ratings=ratings)
    assert triples(kit.read_rows(out_dir)) == in_order(ratings)


def test_movies_with_a_rating_or_a_title_are_known_and_no_other(kit, preprocess):
    """Movie 2 has ratings and no title, 3 a title and no ratings, 4 an empty section alone, 5 nothing."""
    out_dir = preprocess({"combined_data_1.txt": b"1:\n7,3,2005-01-01\n2:\n7,4,2005-01-02\n8,4,2005-01-02\n4:\n"},
                         titles=b"1,2000,One\n3,NULL,Three\n")
    rows = [row for row in movie_rows(out_dir) if row[0] != 4]
    assert rows == [(1, 2000, "One"), (2, None, ""), (3, None, "Three")]
    assert 5 not in pq.read_table(out_dir / "movies.parquet")["movie_id"].to_pylist()


def test_the_summary_counts_movies_without_title_and_without_ratings(write_raw, run, tmp_path):
    text = b"1:\n7,3,2005-01-01\n2:\n7,4,2005-01-02\n8,5,2005-01-02\n9:\n7,1,2005-01-02\n"
    raw_dir = write_raw({"combined_data_1.txt": text}, titles=b"1,2000,One\n3,NULL,Three\n4,NULL,Four\n5,NULL,Five\n")
    out = run(raw_dir, tmp_path / "out").out
    assert "4 ratings of 3 movies by 2 users" in out
    assert "3 without ratings, 2 without a title" in out


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8", "utf-8-sig"])
@pytest.mark.parametrize("eol", ["\n", "\r\n"])
@pytest.mark.parametrize("head", ["", "MovieID,Year,Title"])
def test_titles_arrive_as_they_stand(kit, preprocess, encoding, eol, head):
    lines = [head] * bool(head) + ["1,1995,Smokey Joe's Caf\u00e9", '2,NULL,"Quoted", with, commas,', "10,1896,x"]
    out_dir = preprocess({"combined_data_1.txt": b"2:\n7,3,2005-01-01\n"}, titles=eol.join(lines).encode(encoding))
    assert movie_rows(out_dir) == [(1, 1995, "Smokey Joe's Caf\u00e9"), (2, None, '"Quoted", with, commas,'),
                                   (10, 1896, "x")]


def test_user_ids_above_two_to_the_31_and_32_stay_exact(kit, preprocess):
    ids = [1, 2**31 - 1, 2**31, 2**31 + 1, 2**32, 2**32 + 1, 99_999_999_999]
    ratings = [kit.Rating(movie_id, user_id, 1 + k % 5, "2005-01-01")
               for movie_id in (3, 9) for k, user_id in enumerate(reversed(ids))]
    out_dir = preprocess(ratings=ratings)
    assert triples(kit.read_rows(out_dir)) == in_order(ratings)
    assert pq.read_table(out_dir / "users.parquet")["user_id"].to_pylist() == ids


def test_movie_ids_far_above_int16_stay_exact(kit, preprocess):
    ratings = [kit.Rating(movie_id, 5, 3, "2005-01-01") for movie_id in (32_767, 32_768, 70_000, 2**31 - 1)]
    out_dir = preprocess(ratings=ratings)
    assert triples(kit.read_rows(out_dir)) == in_order(ratings)
    assert pq.read_schema(out_dir / "ratings.parquet").field("movie_idx").type == "int16"


@pytest.mark.parametrize("num_movies, dtype", [(32_767, "int16"), (32_769, "int32")])
def test_movie_idx_is_int32_past_32767_movies(kit, preprocess, num_movies, dtype):
    ids = [3 * k + 1 for k in range(num_movies)]
    ratings = [kit.Rating(movie_id, 5, 4, "2005-01-01") for movie_id in (ids[0], ids[-2], ids[-1])]
    out_dir = preprocess(ratings=ratings, titles=kit.title_text(ids))
    assert pq.read_schema(out_dir / "ratings.parquet").field("movie_idx").type == dtype
    assert [row.movie_idx for row in kit.read_rows(out_dir)] == [0, num_movies - 2, num_movies - 1]


@pytest.mark.parametrize("days_apart, dtype", [(32_766, "int16"), (32_768, "int32"), (3_652_058, "int32")])
def test_day_is_int32_past_32767_days(kit, preprocess, days_apart, dtype):
    first = datetime.date(1, 1, 1)
    dates = [str(first), str(first + datetime.timedelta(1)), str(first + datetime.timedelta(days_apart))]
    ratings = [kit.Rating(k + 1, 5, 4, date) for k, date in enumerate(dates)]
    out_dir = preprocess(ratings=ratings)
    assert pq.read_schema(out_dir / "ratings.parquet").field("day").type == dtype
    assert triples(kit.read_rows(out_dir)) == in_order(ratings)


def test_dates_before_1970_stay_exact_and_in_order(kit, preprocess):
    dates = ["1969-12-31", "1970-01-01", "1912-02-29", "1969-12-30", "1970-01-02"]
    ratings = [kit.Rating(k + 1, 5, k + 1, date) for k, date in enumerate(dates)]
    assert triples(kit.read_rows(preprocess(ratings=ratings))) == in_order(ratings)


@pytest.mark.parametrize("split", ["auto", "latest", "random"])
def test_one_rating_of_one_user_and_one_movie_is_a_data_set(kit, preprocess, split):
    out_dir = preprocess(None, "--split", split, ratings=[kit.Rating(17, 23, 4, "2005-01-01")])
    [row] = kit.read_rows(out_dir)
    assert triples([row]) == [(23, 17, 4, "2005-01-01")]
    assert (row.user_idx, row.movie_idx) == (0, 0)
    assert row.split == "train" or split == "random"


@pytest.mark.parametrize("one", ["user", "movie"])
def test_one_user_or_one_movie_is_a_data_set(kit, preprocess, one):
    ratings = [kit.Rating(9 if one == "movie" else k, 9 if one == "user" else k, 1 + k % 5, f"2005-01-{k:02}")
               for k in range(1, 29)]
    assert triples(kit.read_rows(preprocess(ratings=ratings))) == in_order(ratings)


@pytest.mark.parametrize("split", ["latest", "random", "probe"])
def test_sorting_on_disk_gives_the_same_data_set(kit, preprocess, monkeypatch, split):
    ratings = kit.draw_ratings(5, num_users=400, num_movies=150, density=0.9)
    monkeypatch.setattr(building, "GROUP_ROWS", 500)
    raw = {"ratings": ratings, "probe": [(r.movie_id, r.user_id) for r in ratings[::9]]}
    whole = preprocess(None, "--split", split, "--max_memory", 4000, **raw)
    assert len(ratings) > 40_000
    assert kit.snapshot(preprocess(None, "--split", split, "--max_memory", 1, **raw)) == kit.snapshot(whole)


def test_small_ranges_on_many_processes_give_the_same_data_set(kit, preprocess, monkeypatch):
    ratings = kit.draw_ratings(6, num_users=80)
    whole = preprocess(ratings=ratings, num_files=2)
    monkeypatch.setattr(parsing, "RANGE_BYTES", 3001)
    monkeypatch.setattr(parsing, "BLOCK_BYTES", 101)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2}, raising=False)
    assert kit.snapshot(preprocess(ratings=ratings, num_files=2)) == kit.snapshot(whole)


# --- what the data set holds -----------------------------------------------------------------------------------


def test_meta_holds_counts_split_histogram_and_sources(kit, preprocess, tmp_path):
    ratings = kit.draw_ratings(7)
    titles = kit.title_text([1, 2, 3, *{r.movie_id for r in ratings}])
    out_dir = preprocess(None, "--split", "random", "--test_fraction", "0.25", "--val_fraction", "0.125",
                         "--latest_n", 4, "--seed", 11, ratings=ratings, num_files=3, titles=titles)
    meta = json.loads((out_dir / "meta.json").read_text())
    in_split = Counter(row.split for row in kit.read_rows(out_dir))
    dates = sorted(r.date for r in ratings)
    assert meta["format_version"] == schema.FORMAT_VERSION
    assert meta["num_ratings"] == len(ratings)
    assert meta["num_users"] == len({r.user_id for r in ratings})
    assert meta["num_movies"] == len({1, 2, 3} | {r.movie_id for r in ratings})
    assert meta["num_rated_movies"] == len({r.movie_id for r in ratings})
    assert meta["seed"] == 11
    assert meta["split"] == {"method": "random", "test_fraction": 0.25, "latest_n": 4, "val_fraction": 0.125,
                             "seed": 11, "num_train": in_split["train"], "num_validation": in_split["validation"],
                             "num_test": in_split["test"]}
    assert meta["histogram"] == {str(stars): sum(r.stars == stars for r in ratings) for stars in range(1, 6)}
    assert pq.read_schema(out_dir / "ratings.parquet").metadata[b"day_epoch"].decode() == meta["day_epoch"] <= dates[0]
    raw = {name: (tmp_path / "raw0" / name).read_bytes()
           for name in ("combined_data_1.txt", "combined_data_2.txt", "combined_data_3.txt", "movie_titles.csv")}
    assert sorted(meta["sources"], key=lambda source: source["name"]) == [
        {"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in raw.items()]
    assert int(meta["fingerprint"], 16) and len(meta["fingerprint"]) >= 32


def test_the_probe_is_among_the_sources_only_where_it_was_used(kit, preprocess):
    ratings = kit.draw_ratings(8)
    probe = [(ratings[0].movie_id, ratings[0].user_id)]
    names = [{source["name"] for source in json.loads((out_dir / "meta.json").read_text())["sources"]}
             for out_dir in (preprocess(ratings=ratings, probe=probe),
                             preprocess(None, "--split", "latest", ratings=ratings, probe=probe))]
    assert names == [{"combined_data_1.txt", "movie_titles.csv", "probe.txt"},
                     {"combined_data_1.txt", "movie_titles.csv"}]


def test_the_fingerprint_changes_with_all_that_the_data_set_says(kit, preprocess):
    def fingerprint(ratings, *flags, **raw):
        return json.loads((preprocess(None, *flags, ratings=ratings, **raw) / "meta.json").read_text())["fingerprint"]

    def changed(**fields):
        return [kit.Rating(**{**vars(ratings[0]), **fields}), *ratings[1:]]

    ratings = kit.draw_ratings(9, num_users=12, num_movies=6)
    titles = kit.title_text(sorted({r.movie_id for r in ratings}))
    free_id = max(r.user_id for r in ratings) + 1
    prints = [fingerprint(ratings, titles=titles),
              fingerprint(changed(stars=6 - ratings[0].stars if ratings[0].stars != 3 else 4), titles=titles),
              fingerprint(changed(date="2004-11-30"), titles=titles),
              fingerprint(changed(user_id=free_id), titles=titles),
              fingerprint(ratings[1:], titles=titles),
              fingerprint(ratings, titles=titles.replace(b",Title", b",Tidle", 1)),
              fingerprint(ratings, titles=titles.replace(b",19", b",18", 1)),
              fingerprint(ratings, titles=titles + b"99999,2000,New\n"),
              fingerprint([kit.Rating(r.movie_id, r.user_id + 1, r.stars, r.date) for r in ratings], titles=titles),
              fingerprint([kit.Rating(r.movie_id, r.user_id, r.stars, r.date.replace("2004", "2003")) for r in ratings],
                          titles=titles),
              fingerprint(ratings, "--latest_n", 1, titles=titles),
              fingerprint(ratings, "--val_fraction", 0.9, titles=titles)]
    assert len(set(prints)) == len(prints)


def test_the_same_input_and_seed_give_the_same_bytes_of_all_files(kit, preprocess):
    ratings = kit.draw_ratings(10)
    probe = [(r.movie_id, r.user_id) for r in ratings[::17]]
    for split in ("latest", "random", "probe"):
        first, second = (kit.snapshot(preprocess(None, "--split", split, "--seed", 3, ratings=ratings, probe=probe))
                         for _ in range(2))
        assert first == second
        assert first.keys() == FILES


@pytest.mark.parametrize("split", ["latest", "random", "probe"])
def test_order_of_the_input_and_cutting_of_files_change_no_rating(kit, preprocess, split):
    ratings = kit.draw_ratings(11)
    probe = [(r.movie_id, r.user_id) for r in ratings[::13]]
    titles = kit.title_text(sorted({r.movie_id for r in ratings}))
    shuffled = random.Random(0).sample(ratings, len(ratings))  # nearly every rating gets a header
    plain = preprocess(None, "--split", split, ratings=ratings, probe=probe, titles=titles)
    others = [preprocess(None, "--split", split, ratings=shuffled, num_files=3, eol="\r\n", probe=probe[::-1],
                         titles=b"\n".join(titles.splitlines()[::-1])),
              preprocess(None, "--split", split, ratings=ratings, num_files=5, probe=probe, titles=titles)]
    for other in others:
        for name in ("ratings.parquet", "users.parquet", "movies.parquet"):
            assert (other / name).read_bytes() == (plain / name).read_bytes()
        assert dataset.read_meta(other)["fingerprint"] == dataset.read_meta(plain)["fingerprint"]


def test_the_summary_states_counts_histogram_mean_and_splits(kit, write_raw, run, tmp_path):
    ratings = kit.draw_ratings(12, num_users=200)
    out = run(write_raw(ratings=ratings), tmp_path / "out").out
    counts = Counter(r.stars for r in ratings)
    in_split = Counter(row.split for row in kit.read_rows(tmp_path / "out"))
    assert len(ratings) > 1000
    assert f"{len(ratings):,} ratings of" in out
    for stars in range(1, 6):
        assert [stars, counts[stars]] in [[int(words[0]), int(words[2].replace(",", ""))] for words in
                                          map(str.split, out.splitlines()) if words[1:2] == ["stars"]]
    assert f"mean {sum(r.stars for r in ratings) / len(ratings):.5f}" in out
    assert f"train {in_split['train']:,}, validation {in_split['validation']:,}, test {in_split['test']:,}" in out
    assert "ratings/s" in out and "peak memory" in out


@pytest.mark.parametrize("wrong_star", [0, 1])
def test_the_summary_compares_with_the_known_totals_where_the_counts_are_theirs(
        kit, write_raw, run, tmp_path, monkeypatch, wrong_star):
    ratings = kit.draw_ratings(13, num_users=20)
    raw_dir = write_raw(ratings=ratings)
    known = "Netflix Prize data"
    assert known not in run(raw_dir, tmp_path / "out").out
    counts = Counter(str(r.stars) for r in ratings)
    counts["5"] += wrong_star
    monkeypatch.setattr(netflix_preprocess, "NETFLIX_COUNTS",
                        (len(ratings), len({r.user_id for r in ratings}), len({r.movie_id for r in ratings})))
    monkeypatch.setattr(netflix_preprocess, "NETFLIX_HISTOGRAM", dict(counts))
    out = run(raw_dir, tmp_path / "out").out
    assert known in out
    assert ("the histogram is not" in out) == bool(wrong_star)


# --- bad input -------------------------------------------------------------------------------------------------

GOOD = b"1:\r\n7,3,2005-01-01\r\n\r\n8,4,2005-01-01\r\n"  # four lines
TITLES = b"1,2000,A\n2,2001,B\n"

BAD_LINES = {
    "stars 0": b"9,0,2005-01-01", "stars 6": b"9,6,2005-01-01", "stars 10": b"9,10,2005-01-01",
    "stars 3.5": b"9,3.5,2005-01-01", "stars -1": b"9,-1,2005-01-01", "stars 03": b"9,03,2005-01-01",
    "no stars": b"9,,2005-01-01", "29 February of a common year": b"9,3,2005-02-29", "of 1900": b"9,3,1900-02-29",
    "month 13": b"9,3,2005-13-01", "month 0": b"9,3,2005-00-01", "day 0": b"9,3,2005-01-00",
    "day 32": b"9,3,2005-01-32", "31 April": b"9,3,2005-04-31", "year 0": b"9,3,0000-01-01",
    "year of 5 digits": b"9,3,10000-01-01", "short month": b"9,3,2005-1-01", "slashes": b"9,3,2005/01/01",
    "American date": b"9,3,01-01-2005",
    "date and time": b"9,3,2005-01-01 00:00", "no date": b"9,3", "no user": b",3,2005-01-01", "user alone": b"9",
    "user of 12 digits": b"123456789012,3,2005-01-01", "negative user": b"-9,3,2005-01-01",
    "user with a point": b"9.0,3,2005-01-01", "hexadecimal user": b"0x9,3,2005-01-01",
    "blank before": b" 9,3,2005-01-01", "blank after": b"9,3,2005-01-01 ", "a field more": b"9,3,2005-01-01,x",
    "comma at the end": b"9,3,2005-01-01,", "tabs": b"9\t3\t2005-01-01", "semicolons": b"9;3;2005-01-01",
    "quotes": b'"9","3","2005-01-01"',
    "two returns": b"9,3,2005-01-01\r\r", "NUL": b"9,3,2005-01-0\0", "letters": b"hello", "blanks": b"   ",
    "header without number": b":", "header with letters": b"12a:", "header too large": b"2147483648:",
    "header of 11 digits": b"00000000001:", "negative header": b"-1:", "header and rating": b"2:9,3,2005-01-01",
    "header with a blank": b"2: ", "two colons": b"2::", "Arabic digits": "\u0661:".encode(), "a MB": b"1" * 1_000_000,
    "byte order mark": b"\xef\xbb\xbf9,3,2005-01-01", "MovieLens line": b"9::1::3::978300760",
}


@pytest.mark.parametrize("bad", BAD_LINES.values(), ids=BAD_LINES.keys())
def test_a_bad_line_is_refused_with_its_file_and_number(write_raw, refuse, bad):
    raw_dir = write_raw({"combined_data_1.txt": GOOD, "combined_data_2.txt": b"2:\n7,1,2005-01-01\n" + bad + b"\nx\n"},
                        titles=TITLES)
    message = refuse(raw_dir)
    assert f"{raw_dir / 'combined_data_2.txt'}, line 3:" in message
    assert len(message) < 500


@pytest.mark.parametrize("bad", [b"9,0,2005-01-01", b"9,3,2005-02-29", b"9,3,2005-01", b"2"])
def test_a_bad_last_line_without_end_is_refused(write_raw, refuse, bad):
    raw_dir = write_raw({"combined_data_1.txt": GOOD + bad}, titles=TITLES)
    assert f"{raw_dir / 'combined_data_1.txt'}, line 5:" in refuse(raw_dir)


def test_the_message_says_what_is_wrong_and_shows_the_line(write_raw, run, tmp_path):
    for name, line, words in [("stars", b"9,6,2005-01-01", "stars"), ("date", b"9,3,2005-02-30", "date"),
                              ("line", b"9;3;2005-02-20", "rating line")]:
        raw_dir = write_raw({"combined_data_1.txt": GOOD + line + b"\n"}, titles=TITLES, name=name)
        message = run(raw_dir, tmp_path / "out").err
        assert line.decode() in message and words in message


@pytest.mark.parametrize("files, line", [
    ({"combined_data_1.txt": b"7,3,2005-01-01\n1:\n8,3,2005-01-01\n"}, "combined_data_1.txt, line 1:"),
    ({"combined_data_1.txt": b"\n\r\n7,3,2005-01-01\n"}, "combined_data_1.txt, line 3:"),
    ({"combined_data_1.txt": GOOD, "combined_data_2.txt": b"7,3,2005-01-01\n2:\n"}, "combined_data_2.txt, line 1:")])
def test_a_rating_before_the_first_header_is_refused(write_raw, refuse, files, line):
    raw_dir = write_raw(files, titles=TITLES)
    assert f"{raw_dir}/{line}" in refuse(raw_dir)


@pytest.mark.parametrize("files, line", [
    ({"combined_data_1.txt": GOOD + b"7,5,2005-02-02\n"}, "combined_data_1.txt, line 5:"),
    ({"combined_data_1.txt": GOOD + b"7,3,2005-01-01"}, "combined_data_1.txt, line 5:"),
    ({"combined_data_1.txt": GOOD + b"2:\n7,5,2005-01-01\n1:\n8,1,1999-01-01\n"}, "combined_data_1.txt, line 8:"),
    ({"combined_data_1.txt": GOOD,
      "combined_data_2.txt": b"2:\n7,5,2005-01-01\n\n1:\r\n6,1,2005-01-01\n8,1,2005-01-01\n"},
     "combined_data_2.txt, line 6:"),
    ({"combined_data_1.txt": GOOD + b"0000000007,5,2005-02-02\n"}, "combined_data_1.txt, line 5:")],
    ids=["same section", "same line", "other section", "other file", "leading zeros"])
def test_the_same_user_and_movie_twice_is_refused(write_raw, refuse, files, line):
    raw_dir = write_raw(files, titles=TITLES)
    message = refuse(raw_dir)
    assert f"{raw_dir}/{line}" in message
    assert "twice" in message


def test_a_pair_rated_twice_is_found_among_many_ratings(kit, write_raw, refuse):
    ratings = kit.draw_ratings(14)
    double = ratings[200]
    text = kit.rating_text(ratings)
    number = text.count(b"\n") + 2
    text += f"{double.movie_id}:\n{double.user_id},{double.stars},1999-01-01\n".encode()
    raw_dir = write_raw({"combined_data_1.txt": text}, titles=TITLES)
    message = refuse(raw_dir)
    assert f"combined_data_1.txt, line {number}:" in message
    assert str(double.user_id) in message and str(double.movie_id) in message


@pytest.mark.parametrize("files, place", [
    ({"combined_data_1.txt": b"1:\n5,3,2005-01-01\n9,3,2005-01-01\n2:\n9,4,2005-01-02\n9,5,2005-01-03\n"},
     "combined_data_1.txt, line 6: '9,5,2005-01-03' is wrong: user 9 rated movie 2 twice"),
    ({"combined_data_1.txt": b"1:\n5,3,2005-01-01\n9,3,2005-01-01\n2:\n5,4,2005-01-02\n",
      "probe.txt": b"1:\n9\n5\n9\n"}, "probe.txt, line 4: '9' is wrong: user 9 is listed twice for movie 1")],
    ids=["twice", "listed twice"])
def test_a_wrong_pair_is_named_whichever_row_group_its_user_is_in(write_raw, run, tmp_path, monkeypatch, files, place):
    monkeypatch.setattr(building, "GROUP_ROWS", 1)
    raw_dir = write_raw(files, titles=TITLES)
    assert f"{raw_dir / place}\n" in run(raw_dir, tmp_path / "out").err


def test_a_pair_in_train_and_in_test_is_noticed_in_the_file_that_was_written(write_raw, run, tmp_path, monkeypatch):
    """A user's two ratings are of one movie, and whoever should have refused them lets them pass."""
    monkeypatch.setattr(building, "_check_pairs", lambda *_: np.zeros(0, np.int64))
    raw_dir = write_raw({"combined_data_1.txt": b"1:\n7,3,2005-01-01\n7,4,2005-01-02\n"}, titles=TITLES)
    result = run(raw_dir, tmp_path / "space" / "out")
    assert result.code == 1 and "train and test share a (user, movie) pair" in result.err
    assert not (tmp_path / "space").exists()


@pytest.mark.parametrize("probe, line", [
    (b"1:\n7\n\n7\n", 4), (b"1:\n7\n2:\n1:\n7\n", 5), (b"7\n1:\n", 1),
    (b"1:\n7,3,2005-01-01\n", 2), (b"1:\nx\n", 2), (b"1:\n-7\n", 2), (b"1:\n123456789012\n", 2), (b"1:\n7 \n", 2),
    (b"12a:\n7\n", 1)],
    ids=["twice", "twice in two sections", "before the first header", "a rating line", "letters", "negative",
         "12 digits", "blank", "bad header"])
def test_a_bad_probe_line_is_refused(write_raw, refuse, probe, line):
    raw_dir = write_raw({"combined_data_1.txt": GOOD + b"2:\n7,3,2005-01-01\n", "probe.txt": probe}, titles=TITLES)
    assert f"{raw_dir / 'probe.txt'}, line {line}:" in refuse(raw_dir)


@pytest.mark.parametrize("data, line", [(TITLES + b"2,2002,C\n", 3), (b"1,2000\n", 1), (b"1,2000,A\nx,2000,B\n", 2),
                                        (b"1,20x0,A\n", 1), (b"\n\n1;2000;A\n", 3), (b"1" * 5000 + b",2000,A\n", 1)])
def test_a_bad_title_line_is_refused(write_raw, refuse, data, line):
    raw_dir = write_raw({"combined_data_1.txt": GOOD}, titles=data)
    assert f"{raw_dir / 'movie_titles.csv'}, line {line}:" in refuse(raw_dir)


@pytest.mark.parametrize("files, flags, words", [
    ({}, (), "combined_data"),
    ({"combined_data_1.txt": b"", "movie_titles.csv": TITLES}, (), "rating"),
    ({"combined_data_1.txt": b"1:\n2:\n\n", "movie_titles.csv": TITLES}, (), "rating"),
    ({"combined_data_1.txt": GOOD}, (), "movie_titles.csv"),
    ({"combined_data_1.txt": GOOD, "movie_titles.csv": TITLES}, ("--split", "probe"), "probe.txt")],
    ids=["empty folder", "empty file", "no rating", "no titles", "no probe"])
def test_a_missing_file_or_an_empty_one_is_refused(write_raw, refuse, files, flags, words):
    assert words in refuse(write_raw(files), *flags)


def test_a_missing_folder_is_refused(refuse, tmp_path):
    assert str(tmp_path / "nowhere") in refuse(tmp_path / "nowhere")


def test_a_file_for_a_folder_is_refused(refuse, tmp_path):
    (tmp_path / "file").write_bytes(GOOD)
    assert str(tmp_path / "file") in refuse(tmp_path / "file")


def test_a_folder_for_a_file_is_refused(write_raw, refuse):
    raw_dir = write_raw({"combined_data_1.txt": GOOD}, titles=TITLES)
    (raw_dir / "combined_data_2.txt").mkdir()
    assert "combined_data_2.txt" in refuse(raw_dir)


@pytest.mark.parametrize("name", ["", "combined_data_1.txt", "movie_titles.csv", "probe.txt"])
def test_an_unreadable_folder_or_file_is_refused(write_raw, refuse, name):
    raw_dir = write_raw({"combined_data_1.txt": GOOD, "probe.txt": b"1:\n7\n"}, titles=TITLES)
    (raw_dir / name).chmod(0)
    try:
        if os.access(raw_dir / name, os.R_OK):
            pytest.skip("this user reads everything")
        assert str(raw_dir / name) in refuse(raw_dir)
    finally:
        (raw_dir / name).chmod(0o700)


def test_a_refusal_leaves_no_parent_folders(write_raw, run, tmp_path):
    for name, text in [("malformed", GOOD + b"x\n"), ("twice", GOOD + b"7,3,2005-01-01\n")]:
        raw_dir = write_raw({"combined_data_1.txt": text}, titles=TITLES, name=name)
        assert run(raw_dir, tmp_path / "a" / "b" / "out").code == 1
        assert not (tmp_path / "a").exists()


# --- the transaction -------------------------------------------------------------------------------------------


@pytest.fixture
def older(kit, preprocess, tmp_path):
    """A data set that is whole; a raw folder that would take its place is `raw`."""
    out_dir = tmp_path / "space" / "out"
    out_dir.parent.mkdir()
    preprocess(ratings=kit.draw_ratings(20, num_users=10)).rename(out_dir)
    return out_dir


@pytest.fixture
def raw(kit, write_raw):
    return write_raw(ratings=kit.draw_ratings(21))


def test_a_new_data_set_takes_the_place_of_the_older_one(kit, older, raw, run, preprocess):
    assert run(raw, older).code == 0
    assert kit.snapshot(older) == kit.snapshot(preprocess(ratings=kit.draw_ratings(21)))
    assert [path.name for path in older.parent.iterdir()] == ["out"]


def test_parent_folders_of_the_data_set_are_made(raw, run, tmp_path):
    assert run(raw, tmp_path / "a" / "b" / "c").code == 0
    assert {path.name for path in (tmp_path / "a" / "b" / "c").iterdir()} == FILES


def test_a_relative_path_with_a_space_works(raw, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    raw.rename("my raw")
    assert run("my raw", "my data/x y").code == 0
    assert {path.name for path in Path("my data/x y").iterdir()} == FILES


def test_a_full_disk_at_the_end_leaves_the_older_data_set(kit, older, raw, refuse, monkeypatch):
    """The files' bytes are there, and making them permanent fails."""
    before = kit.snapshot(older.parent)
    synced = []

    def fsync(file):
        synced.append(file)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    code = netflix_preprocess.main(["--raw_dir", str(raw), "--out_dir", str(older)])
    assert (code, kit.snapshot(older.parent)) == (1, before)
    assert netflix_preprocess.main(["--raw_dir", str(raw), "--out_dir", str(older.parent / "new")]) == 1
    assert kit.snapshot(older.parent) == before
    assert synced


@pytest.mark.parametrize("name", ["ratings_writer", "write_ratings", "write_users", "write_movies", "write_meta"])
def test_a_full_disk_at_any_file_leaves_the_older_data_set(kit, older, raw, run, monkeypatch, name):
    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = kit.snapshot(older.parent)
    monkeypatch.setattr(writer, name, full)
    result = run(raw, older)
    assert (result.code, kit.snapshot(older.parent)) == (1, before)
    assert "full" in result.err or "No space left" in result.err
    assert "Traceback" not in result.err


def test_a_write_that_the_system_cuts_short_leaves_the_older_data_set(kit, older, write_raw, run):
    """The real thing: the kernel refuses to let a file grow past a limit."""
    ratings = kit.draw_ratings(22, num_users=1500, num_movies=60, num_days=2000, density=0.7)
    raw_dir = write_raw(ratings=ratings, name="big")
    before = kit.snapshot(older.parent)
    resource = pytest.importorskip("resource", reason="limits of the system, which Windows lacks")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))
    try:
        result = run(raw_dir, older)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (result.code, kit.snapshot(older.parent)) == (1, before)
    assert "Traceback" not in result.err and "error: " in result.err
    assert run(raw_dir, older).code == 0
    assert (older / "ratings.parquet").stat().st_size > 40_000


@pytest.mark.parametrize("function", ["parse_files", "write_ratings", "write_meta", "fsync"])
def test_an_interrupt_leaves_the_older_data_set(kit, older, raw, run, monkeypatch, function):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    before = kit.snapshot(older.parent)
    monkeypatch.setattr({"parse_files": parsing, "fsync": os}.get(function, writer), function, interrupt)
    result = run(raw, older)
    assert (result.code, kit.snapshot(older.parent)) == (130, before)
    assert "Traceback" not in result.err
    monkeypatch.undo()
    assert run(raw, older).code == 0


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills by a signal that Windows lacks")
def test_a_killed_run_leaves_the_older_data_set_and_the_next_one_cleans_up(kit, older, raw, run):
    before = kit.snapshot(older)
    script = ("import os, signal, sys\n"
              "sys.path.insert(0, sys.argv.pop(1))\n"
              "from preprocessing import netflix_preprocess\n"
              "os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)\n"
              "netflix_preprocess.main(sys.argv[1:])\n")
    ended = subprocess.run([sys.executable, "-c", script, str(ROOT), "--raw_dir", str(raw), "--out_dir", str(older)],
                           capture_output=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert kit.snapshot(older) == before
    assert sorted(path.name for path in older.parent.iterdir()) == [".out.lock", ".out.partial", "out"]
    assert run(raw, older).code == 0
    assert [path.name for path in older.parent.iterdir()] == ["out"]
    assert {path.name for path in older.iterdir()} == FILES
    assert kit.snapshot(older) != before


def test_what_a_killed_run_left_gets_into_no_data_set(older, raw, run):
    partial = older.parent / ".out.partial"
    (partial / "folder").mkdir(parents=True)
    (partial / "folder" / "file").write_bytes(b"junk")
    (partial / "ratings.parquet").write_bytes(b"junk")
    (partial / "other").write_bytes(b"junk")
    assert run(raw, older).code == 0
    assert {path.name for path in older.iterdir()} == FILES
    assert [path.name for path in older.parent.iterdir()] == ["out"]


def test_of_two_runs_into_one_folder_the_second_is_refused(kit, older, raw, run):
    hidden = older.parent / ".out.partial"
    hidden.mkdir()
    (hidden / "ratings.parquet").write_bytes(b"the first run is writing this")
    before = kit.snapshot(older.parent)
    with locked(lock_beside(older), "held"):
        result = run(raw, older)
        assert {path.name for path in older.parent.iterdir()} == {".out.lock", ".out.partial", "out"}
    assert kit.snapshot(older.parent) == before
    assert result.code == 1
    assert "another run" in result.err and "Traceback" not in result.err
    assert run(raw, older).code == 0


@pytest.mark.parametrize("name", ["notes.txt", ".hidden", "combined_data_1.txt", "runs/best.pt"])
def test_a_folder_with_foreign_files_is_refused_and_kept(kit, older, raw, run, name):
    (older / name).parent.mkdir(exist_ok=True)
    (older / name).write_bytes(b"mine")
    before = kit.snapshot(older.parent)
    result = run(raw, older)
    assert result.code == 1
    assert name.split("/")[0] in result.err
    assert kit.snapshot(older.parent) == before


def test_the_raw_folder_is_refused_as_the_folder_of_the_data_set(kit, raw, run):
    before = kit.snapshot(raw.parent)
    result = run(raw, raw)
    assert result.code == 1 and "Traceback" not in result.err
    assert kit.snapshot(raw.parent) == before


def test_an_output_path_that_is_a_file_is_refused_and_kept(kit, raw, run, tmp_path):
    (tmp_path / "out").write_bytes(b"mine")
    before = kit.snapshot(tmp_path)
    result = run(raw, tmp_path / "out")
    assert result.code == 1 and "Traceback" not in result.err
    assert kit.snapshot(tmp_path) == before


def test_an_empty_output_folder_is_taken(raw, run, tmp_path):
    (tmp_path / "out").mkdir()
    assert run(raw, tmp_path / "out").code == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES


@pytest.mark.parametrize("flags", [
    ["--split", "newest"], ["--test_fraction", "0"], ["--test_fraction", "1"], ["--test_fraction", "-0.1"],
    ["--test_fraction", "nan"], ["--test_fraction", "x"], ["--val_fraction", "1.5"], ["--val_fraction", "inf"],
    ["--latest_n", "0"], ["--latest_n", "-3"], ["--latest_n", "2.5"], ["--seed", "-1"], ["--seed", "x"],
    ["--nonsense", "1"], ["--lat", "3"], ["stray"]], ids=" ".join)
def test_wrong_flags_end_with_exit_code_2(kit, older, raw, run, flags):
    before = kit.snapshot(older.parent)
    result = run(raw, older, *flags)
    assert result.code == 2
    assert "Traceback" not in result.err and result.err.strip()
    assert kit.snapshot(older.parent) == before


def test_the_command_runs_as_a_script_from_any_folder(raw, tmp_path):
    command = [sys.executable, str(ROOT / "preprocessing" / "netflix_preprocess.py"), "--raw_dir", raw.name]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "data" / "processed").iterdir()} == FILES
    (raw / "combined_data_1.txt").write_bytes(b"x\n")
    failed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert "combined_data_1.txt, line 1:" in failed.stderr and "Traceback" not in failed.stderr


# --- any bytes, end to end -------------------------------------------------------------------------------------

IDS = st.integers(1, 4)
LINES = st.one_of(
    st.builds(lambda user_id, stars, day: f"{user_id},{stars},2005-02-{day:02}",
              st.one_of(IDS, st.integers(0, 10**11 - 1)), st.integers(1, 5), st.integers(1, 28)),
    IDS.map("{}:".format), st.just("")).map(str.encode)
NEARLY = st.one_of(
    LINES, LINES, LINES, LINES, st.binary(max_size=20),
    st.builds(lambda stars, day: f"1,{stars},2005-02-{day:02}".encode(), st.integers(0, 6), st.integers(0, 31)))


def joined(lines):
    return st.lists(st.tuples(lines, st.sampled_from([b"\n", b"\r\n"])), max_size=14).map(
        lambda pairs: b"".join(a + b for a, b in pairs))


def repeated_lines(data):
    """Yield the number of each line that repeats an earlier (user, movie)."""
    seen, movie_id = set(), None
    for number, line in enumerate(data.split(b"\n"), start=1):
        line = line.removesuffix(b"\r")
        if line.endswith(b":"):
            movie_id = int(line[:-1])
        elif line:
            pair = int(line.split(b",")[0]), movie_id
            if pair in seen:
                yield number
            seen.add(pair)


@settings(max_examples=120, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.one_of(st.binary(max_size=80), joined(LINES).map(lambda text: b"2:\n" + text),
                      joined(NEARLY).map(lambda text: b"2:\n" + text)))
@example(data=b"")
@example(data=b"\xff\xfe1\0:\0")
@example(data=b"1:\n1,3,2005-01-01\n1,3,2005-01-01")
def test_any_bytes_become_the_reference_s_ratings_or_one_clean_error(kit, run, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("any")
    (folder / "combined_data_1.txt").write_bytes(data)
    (folder / "movie_titles.csv").write_bytes(b"1,2000,A\n")
    out_dir = folder / "processed"
    result = run(folder, out_dir)
    rows, bad_line = kit.parse_slowly(data)
    repeated = [] if rows is None else list(repeated_lines(data))
    if rows and not repeated:
        assert result.code == 0, result.err
        assert sorted(triples(kit.read_rows(out_dir))) == sorted((u, m, s, str(d)) for m, u, s, d in rows)
        return
    assert result.code == 1
    assert "Traceback" not in result.err
    assert {path.name for path in folder.iterdir()} == {"combined_data_1.txt", "movie_titles.csv"}
    if rows is None:
        assert f"combined_data_1.txt, line {bad_line}:" in result.err
    elif repeated:
        assert any(f"combined_data_1.txt, line {number}:" in result.err for number in repeated)


# --- the real data ---------------------------------------------------------------------------------------------

REAL = {
    "netflix-sample": (305_554, 4_021, 120_042, (28_747, 42_919, 92_708, 84_817, 56_363), "1999-12-29", "2005-12-31"),
    "netflix-dense": (246_893, 100, 2_931, (4_611, 14_323, 56_480, 91_117, 80_362), "2000-01-01", "2005-12-31"),
    "ml-1m-as-netflix": (1_000_209, 3_706, 6_040, (56_174, 107_557, 261_197, 348_971, 226_310), None, None),
}


@pytest.mark.shared_data
@pytest.mark.parametrize("name", REAL)
def test_real_data_have_their_published_counts_and_histogram(kit, run, tmp_path, name):
    if not (SHARED / name).is_dir():
        pytest.skip(f"{SHARED / name} is absent")
    num_ratings, num_rated_movies, num_users, histogram, first, last = REAL[name]
    result = run(SHARED / name, tmp_path / "out", "--split", "latest")
    assert result.code == 0, result.err
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    assert meta["num_ratings"] == num_ratings
    assert (meta["num_rated_movies"], meta["num_users"]) == (num_rated_movies, num_users)
    assert meta["histogram"] == {str(k + 1): count for k, count in enumerate(histogram)}
    table = pq.read_table(tmp_path / "out" / "ratings.parquet")
    assert Counter(table["stars"].to_pylist()) == {k + 1: count for k, count in enumerate(histogram)}
    assert table.group_by(["user_idx", "movie_idx"]).aggregate([]).num_rows == num_ratings
    if first:
        epoch = datetime.date.fromisoformat(table.schema.metadata[b"day_epoch"].decode())
        days = table["day"].to_numpy()
        assert str(epoch + datetime.timedelta(int(days.min()))) == first
        assert str(epoch + datetime.timedelta(int(days.max()))) == last
    if name == "netflix-dense":
        assert table["split"].to_pylist().count("test") == meta["split"]["num_test"] == 26_379
    if name == "netflix-sample":
        movies = pq.read_table(tmp_path / "out" / "movies.parquet")
        assert movies.num_rows == 17_770
        assert movies["year"].null_count == 7
        assert sum("," in title for title in movies["title"].to_pylist()) == 336
        assert movies["title"].to_pylist()[6482].startswith("Smokey Joe's Caf\u00e9")
    if name == "ml-1m-as-netflix":
        assert meta["num_movies"] == 3_883
