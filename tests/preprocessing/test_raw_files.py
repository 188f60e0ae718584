"""Netflix's data in every wrapping: the same data set comes out, and a mistake is named where it stands."""

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import re
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from preprocessing import building, finding, indexing, parsing, raw_files
from preprocessing.dataset import DataError

PARQUETS = ("ratings.parquet", "users.parquet", "movies.parquet")
MARK = b"\xef\xbb\xbf"


def tar(files, mode="w"):
    """Return a tar archive, with an entry for each folder too."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for folder in sorted({name.rpartition("/")[0] for name in files} - {""}):
            entry = tarfile.TarInfo(folder)
            entry.type = tarfile.DIRTYPE
            archive.addfile(entry)
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def zipped(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def under(folder, files):
    return {f"{folder}/{name}": data for name, data in files.items()}


def changed(files, change, names="combined"):
    """Change the files whose names begin so, by a function of name and content."""
    return dict(change(name, data) if name.startswith(names) else (name, data) for name, data in files.items())


def by_movie(files):
    """Return the ratings as Netflix gave them out: a file for each movie."""
    text = b"".join(data for name, data in files.items() if name.startswith("combined"))
    return {f"training_set/mv_{int(movie[1]):07}.txt": movie[0] for movie in re.finditer(rb"(\d+):\n([^:]+\n)+", text)}


def original(files):
    """Return what lies beside the ratings in the original archive."""
    return {"movie_titles.txt": files["movie_titles.csv"], "probe.txt": files["probe.txt"],
            "qualifying.txt": b"1:\n5,2005-01-01\n", "README": b"1:\nread me"}


def prize(files, training_set):
    return tar(under("download", {"training_set.tar": training_set} | original(files)), "w:gz")


def upper(name, data):
    return name.upper(), data


# From the plain files to what a folder holds, and what of it --raw_dir may name besides the folder.
WRAPPINGS = {
    "gz": (lambda files: changed(files, lambda name, data: (f"{name}.gz", gzip.compress(data))), []),
    "all gz": (lambda files: changed(files, lambda name, data: (f"{name}.gz", gzip.compress(data)), ""), []),
    "bz2": (lambda files: changed(files, lambda name, data: (f"{name}.bz2", bz2.compress(data))), []),
    "xz": (lambda files: changed(files, lambda name, data: (f"{name}.xz", lzma.compress(data))), []),
    "gz of two parts": (lambda files: changed(files, lambda name, data: (
        f"{name}.gz", gzip.compress(data[:99]) + gzip.compress(data[99:]))), []),
    "a zip of each": (lambda files: changed(files, lambda name, data: (f"{name}.zip", zipped({name: data})), ""), []),
    "Kaggle's zip": (lambda files: {"archive.zip": zipped(files)}, ["archive.zip"]),
    "zip of a folder": (lambda files: {"a.ZIP": zipped(under("netflix/data", files))}, ["a.ZIP"]),
    "zip of macOS": (lambda files: {"a.zip": zipped(files | {f"__MACOSX/._{name}": b"\0\5" for name in files})}, []),
    "zip of gz": (lambda files: {"a.zip": zipped(changed(files, lambda n, d: (f"{n}.gz", gzip.compress(d))))}, []),
    "zip of tar": (lambda files: {"a.zip": zipped({"in.tar": tar(files)})}, ["a.zip"]),
    "zip of zips": (lambda files: {"a.zip": zipped(changed(files, lambda n, d: (f"{n}.zip", zipped({n: d})), ""))}, []),
    "tar.gz named tar": (lambda files: {"all.tar": tar(files, "w:gz")}, ["all.tar"]),
    "zip and what macOS puts beside it": (lambda files: {"a.zip": zipped(files), "._a.zip": b"\0\5"}, []),
    "training_set twice": (lambda files: by_movie(files) | under("copy", by_movie(files)) | original(files), []),
    "zip twice": (lambda files: {"archive.zip": zipped(files), "archive (1).zip": zipped(files)}, []),
    "tar": (lambda files: {"all.tar": tar(files)}, ["all.tar"]),
    "tgz": (lambda files: {"all.tgz": tar(files, "w:gz")}, ["all.tgz"]),
    "tar.xz": (lambda files: {"all.tar.xz": tar(files, "w:xz")}, ["all.tar.xz"]),
    "tar.bz2": (lambda files: {"all.TAR.BZ2": tar(files, "w:bz2")}, ["all.TAR.BZ2"]),
    "training_set": (lambda files: by_movie(files) | original(files), ["training_set"]),
    "training_set.tar": (lambda files: {"training_set.tar": tar(by_movie(files))} | original(files),
                         ["training_set.tar"]),
    "training_set.tar.gz": (lambda files: {"training_set.tar.gz": tar(by_movie(files), "w:gz")} | original(files), []),
    "the prize's": (lambda files: {"nf_prize_dataset.tar.gz": prize(files, tar(by_movie(files)))},
                    ["nf_prize_dataset.tar.gz"]),
    "the prize's, unpacked": (lambda files: under("download", by_movie(files) | original(files)), ["download"]),
    "the prize's, unpacked once": (lambda files: under("download", {"training_set.tar": tar(by_movie(files))}
                                                       | original(files)), []),
    "zip unpacked into a folder": (lambda files: under("archive", files), ["archive"]),
    "large letters": (lambda files: changed(files, upper, ""), []),
    "zip of large letters": (lambda files: {"A.ZIP": zipped(changed(files, upper, ""))}, ["A.ZIP"]),
    "byte order marks": (lambda files: changed(files, lambda name, data: (name, MARK + data)), []),
    "zip of byte order marks": (lambda files: {"a.zip": zipped(changed(files, lambda n, d: (n, MARK + d)))}, []),
    "plain beside gz": (lambda files: files | {f"{name}.gz": gzip.compress(data) for name, data in files.items()}, []),
    "plain beside its zip": (lambda files: files | {"archive.zip": zipped(files)}, []),
    "zip without the probe": (lambda files: {
        "a.zip": zipped({n: d for n, d in files.items() if n != "probe.txt"}), "probe.txt": files["probe.txt"]}, []),
    "titles in a zip": (lambda files: {n: d for n, d in files.items() if n != "movie_titles.csv"} | {
        "movie_titles.csv.zip": zipped({"movie_titles.csv": files["movie_titles.csv"]})}, []),
}
CASES = [(name, inside) for name, (_, insides) in WRAPPINGS.items() for inside in ["", *insides]]


@pytest.fixture(scope="module")
def files(kit):
    ratings = kit.draw_ratings(31)
    middle = ratings[len(ratings) // 2].movie_id
    text = [kit.rating_text([r for r in ratings if (r.movie_id < middle) == is_first]) for is_first in (True, False)]
    titles = kit.title_text(sorted({r.movie_id for r in ratings})).replace(b"Title 1", b"Am\xe9lie\x92s 1")
    probe = kit.probe_text([(r.movie_id, r.user_id) for r in ratings[::7]])
    return {"combined_data_1.txt": text[0], "combined_data_2.txt": text[1], "movie_titles.csv": titles,
            "probe.txt": probe}


@pytest.fixture
def write(tmp_path):
    def write(files, name="raw"):
        for inner, data in files.items():
            path = tmp_path / name / inner
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return tmp_path / name

    return write


@pytest.fixture
def plain(files, write, run, tmp_path):
    assert run(write(files, "plain"), tmp_path / "expected").code == 0
    return tmp_path / "expected"


def says(out_dir):
    """Return all that a data set says, whatever files it was made of."""
    meta = json.loads((out_dir / "meta.json").read_text())
    del meta["sources"], meta["digest"]
    return meta, [(out_dir / name).read_bytes() for name in PARQUETS]


@pytest.mark.parametrize(("name", "inside"), CASES, ids=[f"{name} {inside}".strip() for name, inside in CASES])
def test_every_wrapping_gives_the_same_data_set(files, plain, write, run, kit, tmp_path, monkeypatch, name, inside):
    """Nothing is written but the data set."""
    raw_dir = write(WRAPPINGS[name][0](files))
    before = kit.snapshot(raw_dir)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    result = run(raw_dir / inside, tmp_path / "out")
    assert result.code == 0, result.err
    assert says(tmp_path / "out") == says(plain)
    assert says(plain)[0]["split"]["method"] == "probe"
    assert kit.snapshot(raw_dir) == before and not list((tmp_path / "tmp").iterdir())
    assert ("is not read: ratings and titles lie unpacked beside it" in result.out) == (name == "plain beside its zip")


@pytest.mark.parametrize("name", ["gz", "training_set", "the prize's", "Kaggle's zip"])
@pytest.mark.parametrize("num_cores", [1, 3])
def test_small_pieces_on_many_processes_give_the_same_data_set(files, plain, write, run, tmp_path, monkeypatch, name,
                                                               num_cores):
    monkeypatch.setattr(parsing, "RANGE_BYTES", 301)
    monkeypatch.setattr(parsing, "num_cores", lambda: num_cores)
    monkeypatch.setattr(raw_files, "BLOCK_BYTES", 512)
    result = run(write(WRAPPINGS[name][0](files)), tmp_path / "out", "--max_memory", 1)
    assert result.code == 0, result.err
    assert says(tmp_path / "out") == says(plain)


def test_small_files_are_parsed_many_at_once(files, write, monkeypatch):
    raw_dir, sizes, parse = write(by_movie(files)), [], parsing._parse_task
    paths = sorted((raw_dir / "training_set").iterdir())
    monkeypatch.setattr(parsing, "RANGE_BYTES", 1 << 10)
    monkeypatch.setattr(parsing, "num_cores", lambda: 1)
    monkeypatch.setattr(parsing, "_parse_task", lambda task, *flags: sizes.append(
        sum(stop - start for _, start, stop in task)) or parse(task, *flags))
    assert len(parsing.parse_files(paths)) == sum(data.count(b",") // 2 for data in by_movie(files).values())
    assert len(sizes) < len(paths) and min(sizes[:-1]) >= 1 << 10 and max(sizes) < 3 << 10


def test_members_are_read_in_blocks_of_whole_lines(tmp_path):
    text = b"".join(b"%d,3,2005-01-01\n" % number for number in range(900))
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text))
    member = raw_files.Member(tmp_path / "a.txt.gz", (), len(text))
    blocks = list(raw_files.read_blocks([member], 1000, 64))
    assert b"".join(block for _, _, block in blocks) == text
    assert all(len(block) < 1064 and block.endswith(b"\n") and text[offset:].startswith(block)
               for _, offset, block in blocks)


# --- mistakes ----------------------------------------------------------------------------------------------------

GOOD = b"1:\n7,3,2005-01-01\n8,4,2005-01-01\n"
TITLES = b"1,2000,A\n2,2001,B\n"


@pytest.mark.parametrize("bad", [b"7,6,2005-01-01", b"oops", b"1" * 5000, b"7,3,2005-01-01\n7,4,2005-01-02"],
                         ids=["stars", "word", "long", "twice"])
@pytest.mark.parametrize("range_bytes", [parsing.RANGE_BYTES, 40])
def test_a_bad_line_is_named_by_archive_and_member(write, refuse, monkeypatch, bad, range_bytes):
    monkeypatch.setattr(parsing, "RANGE_BYTES", range_bytes)
    monkeypatch.setattr(parsing, "num_cores", lambda: 1)
    number = 2 + bad.count(b"\n")
    ratings = {"training_set/mv_0000001.txt": GOOD, "training_set/mv_0000002.txt": b"2:\n" + bad + b"\n"}
    beside = {"movie_titles.txt": TITLES}
    kaggle = {"combined_data_1.txt": GOOD, "x/combined_data_2.txt": b"2:\n" + bad + b"\n", "movie_titles.csv": TITLES}
    for count, (files, place) in enumerate([
            (ratings | beside, "training_set/mv_0000002.txt"),
            ({"training_set.tar": tar(ratings)} | beside, "training_set.tar:training_set/mv_0000002.txt"),
            ({"p.tgz": tar({"d/t.tar": tar(ratings)} | beside, "w:gz")},
             "p.tgz:d/t.tar:training_set/mv_0000002.txt"),
            ({"archive.zip": zipped(kaggle)}, "archive.zip:x/combined_data_2.txt"),
            ({"combined_data_1.txt.gz": gzip.compress(b"2:\n" + bad)} | beside, "combined_data_1.txt.gz")]):
        message = refuse_once(refuse, write(files, f"raw{count}"))
        assert f"/raw{count}/{place}, line {number}: " in message
        assert len(message) < 500


def refuse_once(refuse, raw_dir):
    """`refuse` keeps its folders; remove them, so that it can be asked again."""
    message = refuse(raw_dir)
    for name in ("space", "older"):
        (raw_dir.parent / name).rename(raw_dir.parent / f"{name} of {raw_dir.name}")
    return message


@pytest.mark.parametrize("name", ["movie_titles.csv", "probe.txt"])
def test_a_bad_line_of_titles_or_probe_is_named_by_archive_and_member(write, refuse, name):
    files = {"combined_data_1.txt": GOOD, "movie_titles.csv": TITLES, "probe.txt": b"1:\n7\n"}
    raw_dir = write({"a.zip": zipped(files | {name: files[name] + b"oops\n"})})
    assert f"{raw_dir}/a.zip:{name}, line 3: 'oops' is " in refuse(raw_dir)


def test_a_pair_that_is_listed_twice_is_named_by_archive_and_member(write, refuse):
    raw_dir = write({"a.zip": zipped({"combined_data_1.txt": GOOD, "movie_titles.csv": TITLES,
                                      "probe.txt": MARK + b"1:\n7\n8\n7\n"})})
    assert f"{raw_dir}/a.zip:probe.txt, line 4: '7' is wrong: user 7 is listed twice" in refuse(raw_dir)


def broken(data, how):
    if how == "cut":
        return data[:len(data) // 2]
    if how == "a byte":
        return data[:-len(data) // 2] + bytes([data[-len(data) // 2] ^ 0xFF]) + data[-len(data) // 2 + 1:]
    return b"<html>no such page</html>"


@pytest.mark.parametrize("how", ["cut", "a byte", "page"])
@pytest.mark.parametrize("name", ["archive.zip", "p.tar.gz", "p.tar.xz", "p.tar.bz2", "combined_data_1.txt.gz",
                                  "combined_data_1.txt.bz2", "combined_data_1.txt.xz"])
def test_a_damaged_archive_is_refused_by_name(files, write, refuse, name, how):
    text = files["combined_data_1.txt"]
    pack = {"archive.zip": zipped, "p.tar.gz": lambda files: tar(files, "w:gz"),
            "p.tar.xz": lambda files: tar(files, "w:xz"), "p.tar.bz2": lambda files: tar(files, "w:bz2"),
            "combined_data_1.txt.gz": lambda _: gzip.compress(text),
            "combined_data_1.txt.bz2": lambda _: bz2.compress(text),
            "combined_data_1.txt.xz": lambda _: lzma.compress(text)}[name]
    raw_dir = write({name: broken(pack({"combined_data_1.txt": text, "movie_titles.csv": files["movie_titles.csv"]}),
                                  how), "movie_titles.txt": files["movie_titles.csv"]})
    message = refuse(raw_dir)
    assert message.startswith(f"error: {raw_dir / name} cannot be read as an archive (") and "fetch it again" in message


@pytest.mark.parametrize("at", [-257, -200, 200, 255, 256, 600])
def test_a_tar_that_is_cut_at_its_last_file_is_refused(files, write, refuse, at):
    """Before, within and after its header, and within its content; tarfile takes some of them for the end."""
    data = tar(by_movie(files))
    raw_dir = write({"training_set.tar": data[:data.rindex(b"ustar") + at], "movie_titles.txt": TITLES})
    assert f"{raw_dir / 'training_set.tar'} cannot be read as an archive (" in refuse(raw_dir)


def test_a_tar_with_a_damaged_header_is_refused(files, write, refuse):
    data = tar(by_movie(files))
    position = data.rindex(b"ustar") - 250
    raw_dir = write({"t.tar": data[:position] + b"\xff" + data[position + 1:], "movie_titles.txt": TITLES})
    assert f"{raw_dir / 't.tar'} cannot be read as an archive (an entry is damaged or cut: " in refuse(raw_dir)


def test_a_name_in_an_archive_cannot_steer_a_terminal(write, run, tmp_path):
    raw_dir = write({"a.zip": zipped({"combined_data_1.txt": GOOD, "movie_titles.csv": TITLES,
                                      "\x1b[2J/probe.txt": b"1:\n7\n9\n"})})
    assert f"{raw_dir}/a.zip:?[2J/probe.txt: left out 1 of 2 pairs" in run(raw_dir, tmp_path / "out").out


def test_a_zip_with_a_password_is_refused(files, write, refuse):
    data = bytearray(zipped(files))
    for mark, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        for found in re.finditer(re.escape(mark), bytes(data)):
            data[found.start() + flags] |= 1
    message = refuse(write({"archive.zip": bytes(data)}))
    assert "archive.zip cannot be read as an archive (" in message and "password" in message


def test_a_zip_in_a_tar_is_refused(files, write, refuse):
    assert "a.zip: a .zip can be read within a .zip, but not within a .tar; unpack the outer archive" in refuse(
        write({"all.tar": tar({"a.zip": zipped(files)})}))


def test_archives_that_differ_in_a_file_are_refused(files, write, refuse):
    raw_dir = write({"a.zip": zipped(files), "b.zip": zipped(files | {"combined_data_2.txt": GOOD})})
    assert f"{raw_dir}/a.zip:combined_data_2.txt and {raw_dir}/b.zip:combined_data_2.txt differ" in refuse(raw_dir)


def test_folders_that_differ_in_a_file_are_refused(write, refuse):
    raw_dir = write({"movie_titles.csv": TITLES, "a/mv_1.txt": GOOD, "b/mv_1.txt": GOOD + b"9,3,2005-01-01\n"})
    assert f"{raw_dir}/a/mv_1.txt and {raw_dir}/b/mv_1.txt differ; leave only one of them there" in refuse(raw_dir)


@pytest.mark.parametrize("pack", [zipped, tar, lambda files: tar(files, "w:gz")])
def test_files_of_one_name_and_size_are_compared(files, write, refuse, run, tmp_path, pack):
    other = files | {"combined_data_2.txt": files["combined_data_2.txt"].replace(b",3,", b",4,", 1)}
    raw_dir = write({"a.zip": pack(files), "b.zip": pack(other)} if pack is zipped else
                    {"a.tar": pack(files), "b.tar": pack(other)})
    first, second = sorted(raw_dir.iterdir())
    assert f"{first}:combined_data_2.txt and {second}:combined_data_2.txt differ; leave only" in refuse(raw_dir)


def test_folders_that_differ_in_a_digit_are_refused(write, refuse):
    raw_dir = write({"movie_titles.csv": TITLES, "a/mv_1.txt": GOOD, "b/mv_1.txt": GOOD.replace(b"7,3", b"7,4")})
    assert f"{raw_dir}/a/mv_1.txt and {raw_dir}/b/mv_1.txt differ; leave only one of them there" in refuse(raw_dir)


def test_an_archive_that_holds_a_name_twice_is_refused(write, refuse):
    buffer = io.BytesIO(tar({"combined_data_1.txt": GOOD, "movie_titles.csv": TITLES}))
    with tarfile.open(fileobj=buffer, mode="a") as archive:
        entry = tarfile.TarInfo("combined_data_1.txt")
        entry.size = len(GOOD)
        archive.addfile(entry, io.BytesIO(GOOD.replace(b"7,3", b"7,4")))
    raw_dir = write({"a.tar": buffer.getvalue()})
    assert f"{raw_dir}/a.tar:combined_data_1.txt stands there twice; unpack the archive" in refuse(raw_dir)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_ratings_in_utf_16_are_refused_by_name(write, refuse, encoding):
    raw_dir = write({"combined_data_1.txt": GOOD.decode().encode(encoding), "movie_titles.csv": TITLES})
    message = refuse(raw_dir)
    assert f"{raw_dir}/combined_data_1.txt, line 1: " in message
    assert "is text in UTF-16; save the file as UTF-8" in message


def test_what_lies_nearest_is_taken(files, plain, write, run, tmp_path):
    """Other ratings lie in inner folders, of a movie each, in capital letters beside, and in an archive."""
    others = {"backup/combined_data_9.txt": b"oops", "training_set/mv_0000009.txt": b"oops", "mv_0000009.txt": b"oops",
              "Combined_Data_1.txt": b"oops", "movie_titles.txt": b"oops", "old.tar": b"oops"}
    result = run(write(files | others), tmp_path / "out")
    assert result.code == 0, result.err
    assert says(tmp_path / "out") == says(plain)


@pytest.mark.parametrize(("files", "inside", "sentence"), [
    ({"a.zip": zipped({"x.txt": b""})}, "", "holds no combined_data_*.txt; name the folder or the archive that does"),
    ({"a.zip": zipped({"x.txt": b""})}, "a.zip", "holds no combined_data_*.txt; name the folder or the archive"),
    ({"a.zip": zipped({"combined_data_1.txt": GOOD})}, "", "/movie_titles.csv not found; it comes with the rating"),
    ({"a.zip": zipped({"combined_data_1.txt": GOOD})}, "a.zip", "a.zip:movie_titles.csv not found; it comes with"),
    ({"a.zip": zipped({"combined_data_1.txt": b"1:\n", "movie_titles.csv": TITLES})}, "", "without a single rating"),
    ({"notes.txt": b"1:\n"}, "notes.txt", "notes.txt is no folder and no archive (.zip, .tar, .tar.gz) of raw files")])
def test_what_is_missing_is_said(write, refuse, files, inside, sentence):
    assert sentence in refuse(write(files) / inside)


def test_rating_files_come_in_the_order_of_their_movies_not_of_their_names(tmp_path):
    for name, movie in (("combined_data_1.txt", 10), ("combined_data_2.txt", 2), ("combined_data_3.txt", 1)):
        (tmp_path / name).write_bytes(MARK * (movie == 2) + b"%d:\n5,4,2005-01-01\n" % movie)
    (tmp_path / "movie_titles.csv").write_bytes(b"")
    assert [path.name[-5] for path in finding.find_files(tmp_path, "latest")[0]] == ["3", "2", "1"]


def test_ratings_that_lie_unpacked_are_taken_where_titles_are_in_an_archive(tmp_path):
    (tmp_path / "combined_data_1.txt").write_bytes(b"1:\n5,4,2005-01-01\n")
    (tmp_path / "a.zip").write_bytes(zipped({"combined_data_1.txt": b"7:\n", "movie_titles.csv": b"1,1995,Heat\n"}))
    ratings, titles, _ = finding.find_files(tmp_path, "latest")
    assert (ratings, str(titles)) == ([tmp_path / "combined_data_1.txt"], f"{tmp_path / 'a.zip'}:movie_titles.csv")


def test_a_probe_that_is_asked_for_is_looked_for_in_the_archive(files, plain, write, run, tmp_path):
    """Without --split probe, the files that lie unpacked are all that is read."""
    raw_dir = write({n: d for n, d in files.items() if n != "probe.txt"} | {"a.zip": zipped(files)})
    assert run(raw_dir, tmp_path / "auto").code == 0
    assert says(tmp_path / "auto")[0]["split"]["method"] == "latest"
    assert run(raw_dir, tmp_path / "probe", "--split", "probe").code == 0
    assert says(tmp_path / "probe") == says(plain)


def test_sources_are_the_files_on_the_disk(files, write, run, kit, tmp_path):
    raw_dir = write(WRAPPINGS["the prize's"][0](files))
    assert run(raw_dir, tmp_path / "out").code == 0
    data = (raw_dir / "nf_prize_dataset.tar.gz").read_bytes()
    assert json.loads((tmp_path / "out" / "meta.json").read_text())["sources"] == [
        {"name": "nf_prize_dataset.tar.gz", "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}]
    many = {f"training_set/mv_{movie:07}.txt": b"%d:\n7,3,2005-01-01\n" % movie for movie in range(1, 102)}
    assert run(write(many | {"movie_titles.txt": TITLES}, "many"), tmp_path / "many_out").code == 0
    text = b"".join(many.values())
    assert json.loads((tmp_path / "many_out" / "meta.json").read_text())["sources"] == [
        {"name": "training_set", "files": 101, "bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()},
        {"name": "movie_titles.txt", "bytes": len(TITLES), "sha256": hashlib.sha256(TITLES).hexdigest()}]


# --- any bytes ---------------------------------------------------------------------------------------------------

TOKENS = [b"1:", b"22:", b"7,3,2005-01-01", b"99999999999,5,1999-12-31", b"\n", b"\n", b"\n", b"\r\n", MARK, b"x",
          b"7,6,2005-01-01", b"1" * 70, b"\n\n"]


@settings(max_examples=300, deadline=None)
@given(data=st.lists(st.sampled_from(TOKENS), max_size=20).map(b"".join), size=st.integers(1, 90), mark=st.booleans())
@example(data=b"", size=1, mark=True)
@example(data=b"\n7,3,2005-01-01\n", size=1, mark=True)
def test_any_bytes_parse_as_the_reference_wrapped_or_not(kit, tmp_path_factory, data, size, mark):
    data = MARK * mark + data
    path = tmp_path_factory.getbasetemp() / "combined_data_1.txt"
    wrapped = tmp_path_factory.getbasetemp() / "combined_data_1.txt.gz"
    path.write_bytes(data)
    wrapped.write_bytes(gzip.compress(data, 1))
    rows, bad_line = kit.parse_slowly(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parsing, "RANGE_BYTES", size)
        patch.setattr(parsing, "num_cores", lambda: 1)
        for file in (path, raw_files.Member(wrapped, (), len(data))):
            try:
                num_ratings = len(parsing.parse_files([file]))
            except DataError as error:
                assert str(error).startswith(f"{file}, line {bad_line}: ")
            else:
                assert bad_line is None and num_ratings == len(rows)


# --- a probe of more than these ratings --------------------------------------------------------------------------


def test_pairs_of_the_probe_that_are_not_among_the_ratings_are_left_out(kit, preprocess, write_raw, run, tmp_path,
                                                                        monkeypatch):
    """Unknown users and movies; known ones that have nothing to do with each other; movies that have a title alone."""
    ratings = kit.draw_ratings(41)
    rated = {(r.movie_id, r.user_id) for r in ratings}
    listed = [(r.movie_id, r.user_id) for r in ratings[::9]]
    users, movies = sorted({user for _, user in rated}), sorted({movie for movie, _ in rated})
    absent = [pair for pair in [(movie, user) for movie in movies[::2] for user in users[::3]] if pair not in rated]
    absent += [(movies[0], 99_999_999_999), (movies[0], 0), (2**31 - 1, users[0]), (0, users[0]), (70_001, users[1])]
    titles = kit.title_text(sorted({*movies, 70_001}))
    expected = preprocess(ratings=ratings, probe=listed, titles=titles)
    probe = sorted([*listed, *absent], key=lambda pair: hash(pair) % 101)
    raw_dir = write_raw(ratings=ratings, probe=probe, titles=titles)
    for number, (limit, rows, flags) in enumerate([(indexing._TABLE_LIMIT, 1 << 18, ()), (0, 97, ("--split", "probe")),
                                                   (0, 97, ("--max_memory", 1))]):
        monkeypatch.setattr(indexing, "_TABLE_LIMIT", limit)
        monkeypatch.setattr(indexing, "_CACHED_ROWS", rows)
        result = run(raw_dir, tmp_path / f"out{number}", *flags)
        assert result.code == 0, result.err
        assert says(tmp_path / f"out{number}") == says(expected)
        assert (f"probe.txt: left out {len(absent)} of {len(probe)} pairs, which are not among the ratings; "
                "3 of its movies have no ratings there") in result.out
    assert "left out" not in run(tmp_path / "raw0", tmp_path / "whole").out


def test_movies_without_ratings_are_said_only_where_there_are_some(kit, write_raw, run, tmp_path):
    raw_dir = write_raw({"combined_data_1.txt": GOOD}, titles=TITLES, probe=[(1, 7), (1, 9)])
    out = run(raw_dir, tmp_path / "out").out
    assert "left out 1 of 2 pairs, which are not among the ratings (--split latest does without the probe)" in out


@pytest.mark.parametrize("flags", [(), ("--split", "probe")])
def test_a_probe_of_other_ratings_is_refused(write_raw, refuse, flags):
    raw_dir = write_raw({"combined_data_1.txt": GOOD}, titles=TITLES, probe=[(2, 7), (2, 8), (1, 9)])
    assert refuse(raw_dir, *flags) == (f"error: {raw_dir}/probe.txt: none of its 3 pairs is among the ratings; "
                                       "1 of its movies have no ratings there; use --split latest")


def test_a_test_pair_that_nobody_rated_is_noticed_while_the_ratings_are_written(write_raw, run, tmp_path, monkeypatch):
    """Whoever should have left it out lets it pass."""
    pair_keys = indexing.pair_keys
    monkeypatch.setattr(indexing, "pair_keys", lambda *args: (pair_keys(*args)[0] + 1, pair_keys(*args)[1]))
    monkeypatch.setattr(building, "GROUP_ROWS", 1)
    raw_dir = write_raw({"combined_data_1.txt": GOOD}, titles=TITLES, probe=[(1, 7), (2, 7)])
    result = run(raw_dir, tmp_path / "out")
    assert result.code == 1 and "probe.txt, line 4: '7' is wrong: user 7 never rated movie 2" in result.err


def test_a_file_that_is_gone_from_its_archive_is_named(tmp_path):
    path = tmp_path / "a.zip"
    path.write_bytes(zipped({"b.txt": b"1:\n"}))
    with pytest.raises(DataError, match=re.escape(f"{path}:a.txt is not there any more; was the archive changed?")):
        list(raw_files.open_files([raw_files.Member(path, ("a.txt",), 3)]))


def test_a_folder_without_leave_to_read_it_is_not_looked_into_where_all_is_there(files, write, run, tmp_path):
    raw_dir = write(files)
    (raw_dir / "lost+found").mkdir()
    listed = []
    real = Path.iterdir
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "iterdir", lambda path: listed.append(path) or real(path))
        assert run(raw_dir, tmp_path / "out").code == 0
    assert raw_dir / "lost+found" not in listed and os.fspath(raw_dir) in map(os.fspath, listed)
