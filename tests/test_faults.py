"""Damage, hostile files, full disks, folders that vanish, two runs at once: one sentence, and nothing is lost."""

import io
import json
import os
import pickle
import shutil
import signal
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import main
import rec
from models.blend import Blend
from models.checkpoint import load_checkpoint, lock_run, model_entries, save_checkpoint
from models.config import ModelConfig
from preprocessing import dataset, netflix_preprocess
from preprocessing.dataset import (
    FILES,
    DataError,
    RatingsFile,
    integrity,
    machine,
    read_meta,
    read_movies,
    read_users,
    schema,
    writer,
)
from preprocessing.dataset import folder as folders

ROOT = Path(main.__file__).resolve().parent
MALICE = b"cos\nsystem\n(S'touch %s'\ntR."  # a pickle that runs a command when it is loaded


def snapshot(folder: Path) -> dict[str, bytes]:
    """Return every file under a folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def plain(value: object) -> object:
    """Return what a checkpoint holds with lists in place of tensors, so that it can be compared."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), value.tolist()
    return {name: plain(part) for name, part in value.items()} if isinstance(value, dict) else value


def sentence_of(capsys: pytest.CaptureFixture, code: int) -> str:
    """Demand exit code 1 and one sentence after the progress; return the sentence."""
    printed = capsys.readouterr()
    lines = printed.err.replace("\r", "\n").rstrip("\n").split("\n")
    assert code == 1 and lines[-1].startswith("error: ") and "Traceback" not in printed.err, printed.err
    assert len(lines) == 1 or not any(line.startswith("error") for line in lines[:-1])
    return lines[-1]


@pytest.fixture
def copies(data_dir, run_dir, tmp_path) -> tuple[Path, Path]:
    """A data set and a run that a test may damage."""
    shutil.copytree(data_dir, tmp_path / "data")
    shutil.copytree(run_dir, tmp_path / "run")
    return tmp_path / "data", tmp_path / "run"


@pytest.fixture(scope="module")
def tiny_data(tmp_path_factory) -> Path:
    """A data set of few bytes: 12 users, 6 movies."""
    folder = tmp_path_factory.mktemp("tiny")
    rng = np.random.default_rng(0)
    lines = []
    for movie_id in range(1, 7):
        lines += [f"{movie_id}:", *(f"{user_id},{rng.integers(1, 6)},2005-01-{rng.integers(1, 29):02}"
                                    for user_id in range(1, 13) if rng.random() < 0.8)]
    (folder / "combined_data_1.txt").write_text("\n".join(lines) + "\n")
    (folder / "movie_titles.csv").write_text("".join(f"{movie_id},2000,Title {movie_id}\n" for movie_id in range(1, 7)))
    assert netflix_preprocess.main(["--raw_dir", str(folder), "--out_dir", str(folder / "data")]) == 0
    return folder / "data"


def content_of(read: object) -> object:
    """Return what a reader gives as plain values that can be compared."""
    if isinstance(read, RatingsFile):
        return [content_of(ratings) for _, ratings in read.read_groups()]
    if isinstance(read, dict):
        return read
    return {name: np.asarray(value).tolist() for name, value in read._asdict().items()}


# --- damage ----------------------------------------------------------------------------------------------------


def flipped_places(path: Path, every: int) -> Iterator[int]:
    """Flip a bit of every so-manieth byte of a file, one after another; yield where while it is flipped."""
    data = path.read_bytes()
    with open(path, "r+b", buffering=0) as file:  # in place, which does not make the system write at once
        for place in range(0, len(data), every):
            os.pwrite(file.fileno(), bytes([data[place] ^ 1 << place % 8]), place)
            yield place
            os.pwrite(file.fileno(), data[place:place + 1], place)
    assert path.read_bytes() == data


@pytest.mark.parametrize(("name", "read"), [("meta.json", read_meta), ("users.parquet", read_users),
                                           ("movies.parquet", read_movies), ("ratings.parquet", RatingsFile)])
def test_every_flipped_byte_of_a_data_set_is_found_or_harmless(tiny_data, tmp_path, name, read):
    """All bytes of each file, headers and footers of parquet included; found are most."""
    data_dir = tmp_path / "data"
    shutil.copytree(tiny_data, data_dir)
    whole, found = content_of(read(data_dir)), 0
    for place in flipped_places(data_dir / name, 1):
        try:
            assert content_of(read(data_dir)) == whole, place
        except DataError as error:
            assert name in str(error), place
            found += 1
    assert found > 0.7 * (data_dir / name).stat().st_size


@pytest.mark.parametrize(("both", "every"), [(False, 5), (True, 29)])
def test_every_flipped_byte_of_a_checkpoint_is_found_or_harmless(tmp_path, both, every):
    """The second side's tables are written as those of the first: there are twice as many to read for a byte."""
    model = Blend(ModelConfig(3, 2, 4, 1.0, 5.0, 3.0, embedding_dim=2, ensemble_size=1, hidden_dim=2, user_dim=2,
                                 pooled_dim=2), both)
    path = tmp_path / "best.pt"
    with torch.no_grad():
        save_checkpoint(path, {"fingerprint": "a" * 64, **model_entries(model), "settings": {}, "flags": {},
                               "epoch": 1, "train_s": 1.0, "calibrated": True, "refit": False})
    whole, found = plain(load_checkpoint(path, "a" * 64)), 0
    for place in flipped_places(path, every):
        try:
            read = load_checkpoint(path, "a" * 64)
        except DataError as error:
            assert "best.pt" in str(error), place
            found += 1
            continue
        assert plain(read) == whole, place
    assert found > 0.5 * path.stat().st_size / every


@pytest.mark.parametrize("name", [*FILES, "best.pt", "last.pt"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "absent", "a folder"])
def test_a_damaged_file_is_named_and_nothing_is_overwritten(train, capsys, copies, name, damage):
    data_dir, run_dir = copies
    path = (run_dir if name.endswith(".pt") else data_dir) / name
    data = bytearray(path.read_bytes())
    path.unlink()
    if damage == "truncated":
        path.write_bytes(data[:len(data) // 2])
    elif damage == "flipped":
        for place in range(len(data) // 2, len(data) // 2 + 64):  # wide enough to hit more than a page's header
            data[place] ^= 8
        path.write_bytes(data)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "a folder":
        path.mkdir()
    before = snapshot(data_dir.parent)
    commands = [lambda: train(data_dir, run_dir, "--resume", "--epochs", "13")]
    if name != "last.pt":
        commands.append(lambda: rec.main(["--data_dir", str(data_dir), "--run_dir", str(run_dir)]))
        commands.append(lambda: train(data_dir, run_dir, "--eval_only"))
    if name == "best.pt":
        del commands[0]  # training goes on from last.pt
    for command in commands:
        assert str(path) in sentence_of(capsys, command())
        assert snapshot(data_dir.parent) == before


def test_files_of_two_data_sets_do_not_mix(capsys, raw_dir, copies, run_dir, tmp_path):
    data_dir, _ = copies
    other = tmp_path / "other"
    netflix_preprocess.main(["--raw_dir", str(raw_dir), "--out_dir", str(other), "--seed", "3"])
    for name in FILES[:3]:
        if (other / name).read_bytes() == (data_dir / name).read_bytes():
            continue
        kept = (data_dir / name).read_bytes()
        shutil.copy(other / name, data_dir / name)
        capsys.readouterr()
        code = rec.main(["--data_dir", str(data_dir), "--run_dir", str(run_dir)])
        assert str(data_dir / name) in sentence_of(capsys, code)
        (data_dir / name).write_bytes(kept)


def test_a_damaged_metrics_csv_is_written_anew_by_resume(train, copies):
    data_dir, run_dir = copies
    kept = (run_dir / "metrics.csv").read_bytes()
    (run_dir / "metrics.csv").write_bytes(b"epoch,train_loss\n1,\xff\n")
    assert train(data_dir, run_dir, "--resume", "--epochs", "12") == 0
    assert (run_dir / "metrics.csv").read_bytes() == kept


# --- files from strangers --------------------------------------------------------------------------------------


def as_archive(pickled: bytes) -> bytes:
    """Return an archive as torch.save makes it, with another pickle inside."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", b"3\n")
        archive.writestr("archive/byteorder", b"little")
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["best.pt", "last.pt"])
@pytest.mark.parametrize("form", ["bare pickle", "archive", "reduce", "TorchScript"])
def test_a_malicious_pickle_is_refused_and_not_run(train, capsys, copies, tmp_path, name, form):
    data_dir, run_dir = copies
    planted = tmp_path / "planted"

    class Malice:
        def __reduce__(self) -> tuple:
            return os.system, (f"touch {planted}",)

    pickled = MALICE % str(planted).encode()
    if form == "bare pickle":
        (run_dir / name).write_bytes(pickled)
    elif form == "archive":
        (run_dir / name).write_bytes(as_archive(pickled))
    elif form == "reduce":
        (run_dir / name).write_bytes(as_archive(pickle.dumps({"format": 1, "fingerprint": Malice()})))
    else:
        data = as_archive(pickled)
        with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(run_dir / name, "w") as target:
            for part in source.namelist():
                target.writestr(part, source.read(part))
            target.writestr("archive/constants.pkl", pickled)
    if name == "best.pt":
        code = rec.main(["--data_dir", str(data_dir), "--run_dir", str(run_dir)])
    else:
        code = train(data_dir, run_dir, "--resume", "--epochs", "13")
    assert str(run_dir / name) in sentence_of(capsys, code)
    assert not planted.exists()
    pickle.loads(pickled)  # the trap itself works
    assert planted.exists()


def test_no_pickle_anywhere_in_the_source():
    """The only reader of pickles is torch.load, and each call says weights_only=True."""
    for path in [*ROOT.glob("*.py"), *(path for stage in ("models", "training", "preprocessing", "recommending")
                                       for path in (ROOT / stage).rglob("*.py"))]:
        text = path.read_text(encoding="utf-8")
        assert "pickle.load" not in text and "allow_pickle=True" not in text and "eval(" not in text.replace(
            ".eval(", ""), path
        assert text.count("torch.load(") == text.count("weights_only=True, mmap="), path


@pytest.mark.parametrize("change", [
    {"num_users": 2**40}, {"num_movies": 2**40}, {"hidden_dim": 2**40}, {"embedding_dim": 2**46}, {"pooled_dim": 2**40},
    {"user_dim": 2**47}, {"num_users": -1}, {"ensemble_size": 0}, {"num_users": "many"}, {"num_users": float("nan")},
    {"num_users": 0}, {"stars_high": 1.0, "stars_low": 1.0}, {"surprise": 1},
])
def test_a_config_that_claims_what_the_file_does_not_hold_is_refused(capsys, copies, change):
    data_dir, run_dir = copies
    checkpoint = torch.load(run_dir / "best.pt", weights_only=True)
    save_checkpoint(run_dir / "best.pt", checkpoint | {"config": checkpoint["config"] | change})
    before = machine.peak_rss_mib()
    code = rec.main(["--data_dir", str(data_dir), "--run_dir", str(run_dir)])
    assert "best.pt is no checkpoint of this version" in sentence_of(capsys, code)
    assert machine.peak_rss_mib() - before < 64


def test_tensors_that_claim_more_than_the_file_holds_are_refused(capsys, copies):
    data_dir, run_dir = copies
    checkpoint = torch.load(run_dir / "best.pt", weights_only=True)
    config = checkpoint["config"] | {"num_users": 2**40}
    table = torch.zeros(1, config["user_dim"]).expand(2**40, -1)  # one row that says it is 2^40
    model = checkpoint["model"] | {"user_based.user_embedding": table}
    year = torch.zeros(1, dtype=torch.float64)
    for broken in ({"config": config, "model": model}, {"model": model},
                   {"model": checkpoint["model"] | {"user_based.movie_tower.year": year}},
                   {"model": {}}, {"model": []}, {"epoch": "last"}, {"fingerprint": 3}):
        save_checkpoint(run_dir / "best.pt", checkpoint | broken)
        code = rec.main(["--data_dir", str(data_dir), "--run_dir", str(run_dir)])
        assert "best.pt" in sentence_of(capsys, code)


@pytest.mark.parametrize("change", [{"engines": []}, {"engines": [{}]}, {"engines": "x"},
                                    {"engines": [{"tables": [], "layers": {}, "relevance": [], "user_rows": {}}]},
                                    {"metrics": [{"epoch": 1}]}])
def test_a_last_pt_without_a_usable_state_is_refused(train, capsys, copies, change):
    data_dir, run_dir = copies
    save_checkpoint(run_dir / "last.pt", torch.load(run_dir / "last.pt", weights_only=True) | change)
    assert "last.pt" in sentence_of(capsys, train(data_dir, run_dir, "--resume", "--epochs", "13"))


def test_links_in_a_stranger_s_folder_lead_nowhere(train, raw_dir, copies, tmp_path):
    data_dir, run_dir = copies
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("precious")
    for name in ("best.pt", "last.pt", "metrics.csv", "test_metrics.json", "training.png"):
        (run_dir / f".{name}.partial").symlink_to(outside / "precious")
    (tmp_path / ".data.partial").symlink_to(outside)
    for name in ("best.pt", "metrics.csv"):
        (run_dir / name).unlink()
        (run_dir / name).symlink_to(outside / "precious")
    assert train(data_dir, run_dir, "--overwrite", "--epochs", "1") == 0
    assert netflix_preprocess.main(["--raw_dir", str(raw_dir), "--out_dir", str(data_dir)]) == 0
    assert snapshot(outside) == {"precious": b"precious"}
    assert not any(path.is_symlink() for path in [*run_dir.iterdir(), *tmp_path.iterdir()])


def test_a_compressed_archive_is_refused_before_it_is_unpacked(capsys, copies):
    data_dir, run_dir = copies
    with zipfile.ZipFile(run_dir / "best.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * (1 << 24))
    assert "best.pt" in sentence_of(capsys, rec.main(["--data_dir", str(data_dir), "--run_dir", str(run_dir)]))


def varint(number: int) -> bytes:
    """Return a number as thrift's compact protocol writes it: zigzag, seven bits a byte."""
    number, out = 2 * number, []
    while number >= 128:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


@pytest.mark.parametrize("name", FILES[:3])
@pytest.mark.parametrize("claimed", [2**27, 2**40, 2**62])
def test_a_parquet_file_that_claims_many_rows_is_refused(capsys, copies, name, claimed):
    """The stranger has computed all digests anew; the claim is bounded by the file's size."""
    data_dir, run_dir = copies
    path = data_dir / name
    data, num_rows = path.read_bytes(), pq.read_metadata(path).num_rows
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    footer = data[start:-8].replace(b"\x16" + varint(num_rows), b"\x16" + varint(claimed))
    path.write_bytes(data[:start] + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    assert pq.read_metadata(path).num_rows == claimed
    writer.write_meta(data_dir, json.loads((data_dir / "meta.json").read_text()))
    before = machine.peak_rss_mib()
    assert str(path) in sentence_of(capsys, rec.main(["--data_dir", str(data_dir), "--run_dir", str(run_dir)]))
    assert machine.peak_rss_mib() - before < 64


@pytest.mark.parametrize("name", FILES[:3])
@pytest.mark.parametrize("codec", ["zstd", "gzip", "brotli"])
def test_a_codec_that_can_pack_a_bomb_is_refused(capsys, copies, name, codec):
    data_dir, run_dir = copies
    pq.write_table(pq.read_table(data_dir / name), data_dir / name, compression=codec, write_page_checksum=True)
    writer.write_meta(data_dir, json.loads((data_dir / "meta.json").read_text()))
    sentence = sentence_of(capsys, rec.main(["--data_dir", str(data_dir), "--run_dir", str(run_dir)]))
    assert f"{data_dir / name} is damaged (compressed by {codec.upper()})" in sentence


@pytest.mark.parametrize(("column", "kind"), [("year", pa.int32()), ("year", pa.string()), ("title", pa.binary()),
                                              ("title", pa.large_string()), ("movie_id", pa.string())])
def test_movies_of_other_types_are_refused(copies, column, kind):
    data_dir, _ = copies
    table = pq.read_table(data_dir / "movies.parquet")
    place = table.column_names.index(column)
    pq.write_table(table.set_column(place, column, table[column].cast(kind)), data_dir / "movies.parquet",
                   compression=schema.CODEC, write_page_checksum=True, use_dictionary=False)
    writer.write_meta(data_dir, json.loads((data_dir / "meta.json").read_text()))
    with pytest.raises(DataError, match=r"movies\.parquet is damaged \("):
        read_movies(data_dir)


def test_one_long_title_for_all_movies_is_refused(copies):
    """A dictionary holds a text once, however many rows have it: 4 MB in the file would be 376 MB in memory."""
    data_dir, _ = copies
    table = pq.read_table(data_dir / "movies.parquet")
    text = "".join(map(chr, np.random.default_rng(0).integers(32, 127, 1 << 22)))
    title = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(table), np.int32)), [text])
    table = table.set_column(table.column_names.index("title"), "title", title)
    pq.write_table(table, data_dir / "movies.parquet", compression=schema.CODEC, write_page_checksum=True,
                   dictionary_pagesize_limit=1 << 24)
    assert (data_dir / "movies.parquet").stat().st_size < 1 << 23
    writer.write_meta(data_dir, json.loads((data_dir / "meta.json").read_text()))
    before = machine.peak_rss_mib()
    with pytest.raises(DataError, match=r"movies\.parquet is damaged \(packed in a dictionary\)"):
        read_movies(data_dir)
    assert len(table) > 60 and machine.peak_rss_mib() - before < 64


@pytest.mark.parametrize("change", [
    {"num_users": "1"}, {"num_ratings": -1}, {"num_movies": 2**60}, {"split": {}}, {"split": []}, {"stars_step": 0},
    {"stars_range": [5]}, {"stars_range": [5, 1]}, {"fingerprint": "\x1b[2J"}, {"fingerprint": None}, {"footers": 3},
    {"seed": -1}, {"seed": 1.5}, {"stars_step": float("nan")}, {"num_ratings": 13_999}, {"num_users": 2**48},
])
def test_a_meta_json_of_other_types_is_refused(train, capsys, copies, change):
    data_dir, run_dir = copies
    writer.write_meta(data_dir, json.loads((data_dir / "meta.json").read_text()) | change)
    if "footers" in change:  # which write_meta writes itself
        meta = json.loads((data_dir / "meta.json").read_text()) | change
        (data_dir / "meta.json").write_text(json.dumps(meta | {"digest": integrity.meta_digest(meta)}))
    for code in (rec.main(["--data_dir", str(data_dir), "--run_dir", str(run_dir)]),
                 train(data_dir, run_dir, "--eval_only")):
        assert code == 1
    errors = capsys.readouterr().err
    assert errors.count("meta.json") == 2 and "Traceback" not in errors and "\x1b" not in errors


@pytest.mark.parametrize("column", ["user_idx", "movie_idx"])
@pytest.mark.parametrize("value", [-1, 30_000])
def test_indices_outside_the_catalogues_are_refused(train, capsys, copies, column, value):
    data_dir, run_dir = copies
    table = pq.read_table(data_dir / "ratings.parquet")
    values = table[column].to_numpy().copy()
    values[-1 if value > 0 else 0] = value
    table = table.set_column(table.column_names.index(column), column, pa.array(values, table[column].type))
    pq.write_table(table, data_dir / "ratings.parquet", compression=schema.CODEC, write_page_checksum=True)
    writer.write_meta(data_dir, json.loads((data_dir / "meta.json").read_text()))
    assert "ratings.parquet" in sentence_of(capsys, train(data_dir, run_dir, "--eval_only"))


# --- terminals -------------------------------------------------------------------------------------------------

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31mred\r\u202eevil\u2066 \ud7ff\"quote\\ \u2028 \U000e0041"


def test_hostile_titles_are_shown_harmless_and_json_stays_json(raw_dir, train, capsys, tmp_path):
    raw = tmp_path / "raw"
    shutil.copytree(raw_dir, raw)
    lines = (raw / "movie_titles.csv").read_bytes().decode("latin-1").splitlines()
    titles = [",".join([*line.split(",")[:2], HOSTILE + str(k)]) for k, line in enumerate(lines)]
    (raw / "movie_titles.csv").write_bytes("\n".join(titles).encode())
    flags = ["--data_dir", str(tmp_path / "data"), "--run_dir", str(tmp_path / "run")]
    assert netflix_preprocess.main(["--raw_dir", str(raw), "--out_dir", str(tmp_path / "data")]) == 0
    assert train(tmp_path / "data", tmp_path / "run", "--epochs", "1") == 0
    assert rec.main([*flags, "--explain"]) == 0
    shown = capsys.readouterr().out
    assert "evil" in shown and "owned" in shown
    assert not {character for character in shown if not character.isprintable()} - {"\n"}
    assert rec.main([*flags, "--json", "--explain", "--top_n", "1000"]) == 0
    printed = capsys.readouterr().out
    assert printed.isascii() and printed.count("\n") == 1
    assert {row["title"].rstrip("0123456789") for row in json.loads(printed)["recommendations"]} == {HOSTILE}


def test_error_messages_cannot_steer_a_terminal(capsys, tmp_path):
    (tmp_path / "meta.json").write_text(json.dumps({"format_version": "\x1b[2J\x9b"}))
    assert rec.main(["--data_dir", str(tmp_path)]) == 1
    (tmp_path / "combined_data_\x1b[2J.txt").write_bytes(b"1:\n\x1b[2J,3\n")
    (tmp_path / "movie_titles.csv").write_bytes(b"\x1b[31m\n")
    assert netflix_preprocess.main(["--raw_dir", str(tmp_path), "--out_dir", str(tmp_path / "out")]) == 1
    (tmp_path / "movie_titles.csv").write_bytes(b"1,2000,A\n")
    assert netflix_preprocess.main(["--raw_dir", str(tmp_path), "--out_dir", str(tmp_path / "out")]) == 1
    errors = capsys.readouterr().err
    assert errors.count("error: ") == 3 and "\x1b" not in errors and "\x9b" not in errors


# --- disks and folders -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("most_bytes", [1_000, 20_000, 100_000])
def test_a_full_disk_in_training_gets_one_sentence_and_keeps_the_older_run(train, capsys, copies, most_bytes):
    """The kernel refuses to let a file grow past a limit, as a full disk does."""
    data_dir, run_dir = copies
    before = snapshot(run_dir)
    resource = pytest.importorskip("resource", reason="limits of the system, which Windows lacks")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, limits[1]))
    try:
        code = train(data_dir, run_dir, "--resume", "--epochs", "13")
        fresh = train(data_dir, run_dir.parent / "fresh", "--epochs", "1")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == fresh == 1
    errors = capsys.readouterr().err
    assert errors.count("error: ") == 2 and "Traceback" not in errors and str(run_dir) in errors
    after = snapshot(run_dir)
    assert after.keys() == before.keys()  # nothing half-written is left
    assert after["last.pt"] == before["last.pt"] and after["metrics.csv"] == before["metrics.csv"]
    load_checkpoint(run_dir / "best.pt", read_meta(data_dir)["fingerprint"])
    assert train(data_dir, run_dir, "--resume", "--epochs", "13") == 0


@pytest.mark.parametrize("flags", [("--top_n", "1"), ("--top_n", "90", "--json")], ids=["in the end", "at once"])
def test_a_full_device_behind_standard_output_is_named(capsys, monkeypatch, data_dir, run_dir, flags):
    with open("/dev/full", "w") as full:  # which is closed as at a process's end, where what is left is written
        monkeypatch.setattr(sys, "stdout", full)
        code = rec.main(["--data_dir", str(data_dir), "--run_dir", str(run_dir), *flags])
    said = capsys.readouterr().err
    assert code == 1
    assert said.startswith("error: standard output: ") and said.count("\n") == 1


@pytest.fixture
def read_only(copies) -> Iterator[Path]:
    """A folder with a data set and a run, open to everybody's eyes and nobody's pen; root steps down for the while."""
    with tempfile.TemporaryDirectory() as name:
        folder, user = Path(name), os.geteuid()
        for source in copies:
            shutil.copytree(source, folder / source.name)
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        if user == 0:
            os.seteuid(65534)
        yield folder
        if user == 0:
            os.seteuid(0)
        for path in [folder, *folder.iterdir()]:
            path.chmod(0o755)


def test_a_read_only_folder_is_named_and_nothing_changes(train, capsys, raw_dir, read_only):
    before, data_dir, run_dir = snapshot(read_only), read_only / "data", read_only / "run"
    assert str(read_only / "new") in sentence_of(capsys, train(data_dir, read_only / "new"))
    assert f"error: {run_dir}: Permission denied" in sentence_of(capsys, train(data_dir, run_dir, "--eval_only"))
    with pytest.raises(OSError, match="denied") as error, folders.replace_dataset(read_only / "out"):
        pass
    assert str(read_only) in str(error.value.filename)
    assert netflix_preprocess.main(["--raw_dir", str(raw_dir), "--out_dir", str(data_dir)]) == 1
    assert snapshot(read_only) == before


def test_a_run_folder_removed_while_training_is_named(train, capsys, data_dir, tmp_path, monkeypatch):
    save = main.save_checkpoint

    def remove_then_save(path: Path, checkpoint: dict) -> None:
        shutil.rmtree(path.parent)
        save(path, checkpoint)

    monkeypatch.setattr(main, "save_checkpoint", remove_then_save)
    assert str(tmp_path / "run") in sentence_of(capsys, train(data_dir, tmp_path / "run", "--epochs", "1"))


def test_a_data_set_removed_while_training_is_named(train, capsys, copies, monkeypatch):
    data_dir, run_dir = copies
    save = main.save_checkpoint

    def save_and_remove(path: Path, checkpoint: dict) -> None:
        save(path, checkpoint)
        shutil.rmtree(data_dir, ignore_errors=True)

    monkeypatch.setattr(main, "save_checkpoint", save_and_remove)
    assert str(data_dir) in sentence_of(capsys, train(data_dir, run_dir.parent / "new", "--epochs", "1"))
    assert (run_dir.parent / "new" / "last.pt").exists()


def test_an_output_folder_removed_while_preprocessing_is_named(capsys, raw_dir, tmp_path, monkeypatch):
    write = writer.write_users

    def remove_then_write(folder: Path, users: dataset.Users) -> None:
        shutil.rmtree(folder)
        write(folder, users)

    monkeypatch.setattr(writer, "write_users", remove_then_write)
    code = netflix_preprocess.main(["--raw_dir", str(raw_dir), "--out_dir", str(tmp_path / "out")])
    assert str(tmp_path) in sentence_of(capsys, code)
    assert list(tmp_path.iterdir()) == []


# --- two at once -----------------------------------------------------------------------------------------------


def test_of_two_runs_in_one_folder_the_second_stops(train, capsys, copies):
    data_dir, run_dir = copies
    before = snapshot(run_dir)
    with lock_run(run_dir):
        for flags in (["--resume"], ["--overwrite"], ["--eval_only"]):
            assert f"another run is working in {run_dir}" in sentence_of(capsys, train(data_dir, run_dir, *flags))
        assert {path.name for path in run_dir.iterdir()} == {*before, ".lock"}
        assert {name: (run_dir / name).read_bytes() for name in before} == before
        assert rec.main(["--data_dir", str(data_dir), "--run_dir", str(run_dir)]) == 0  # reading is no work
    assert train(data_dir, run_dir, "--eval_only") == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks a process that holds the lock")
def test_locks_vanish_with_their_process(tmp_path):
    out, into = os.pipe()
    if not (child := os.fork()):
        try:
            signal.alarm(60)
            with lock_run(tmp_path):
                os.write(into, b"held")
                signal.pause()
        finally:
            os._exit(1)
    os.close(into)
    with open(out, "rb") as pipe:
        assert pipe.read(4) == b"held"
        with pytest.raises(DataError, match="another run"), lock_run(tmp_path):
            pass
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == [tmp_path / ".lock"]  # of the killed one; it locks nothing
    with lock_run(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_lock_that_its_holder_removes_is_not_taken(tmp_path, monkeypatch):
    """Between opening its file and locking it: another run may have made the file anew, and hold that."""
    fcntl = pytest.importorskip("fcntl")
    flock = fcntl.flock

    def late(descriptor: int, operation: int) -> None:
        (tmp_path / ".lock").unlink(missing_ok=True)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(DataError, match="another run"), lock_run(tmp_path):
        pass


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "precious")
    with lock_run(tmp_path / "run"):
        assert not (tmp_path / "run" / ".lock").is_symlink()
    assert (tmp_path / "precious").read_bytes() == b"precious"
