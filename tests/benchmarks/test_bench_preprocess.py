"""The archives of bench_preprocess.py hold what the plain files hold, and its checksum sees every rating."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks import bench_preprocess
from benchmarks.preprocess_peers import checksum
from benchmarks.preprocess_wrappings import WRAPPINGS
from preprocessing import dataset, synthetic_netflix
from preprocessing.finding import find_files


@pytest.fixture
def raw_dir(tmp_path):
    synthetic_netflix.generate(tmp_path / "raw", num_users=90, num_movies=40, num_ratings=2000, seed=0, with_probe=True)
    return tmp_path / "raw"


def checksum_of(raw_dir: Path, out_dir: Path) -> tuple[int, int]:
    bench_preprocess.run_preprocess(raw_dir, out_dir, "latest")
    return checksum(out_dir, np.datetime64(dataset.read_meta(out_dir)["day_epoch"]))


@pytest.mark.parametrize("name", WRAPPINGS)
def test_an_archive_holds_the_same_ratings(raw_dir, tmp_path, name):
    plain = checksum_of(raw_dir, tmp_path / "plain")
    archive = bench_preprocess.make_archive(raw_dir, tmp_path / name)
    assert checksum_of(archive, tmp_path / "wrapped") == plain
    num_files = len(find_files(archive, "latest")[0])
    assert num_files == (len(list(raw_dir.glob("combined_data_*"))) if name.endswith(".zip") else 40)


def test_the_checksum_sees_one_star_and_the_order(raw_dir, tmp_path):
    num_ratings, plain = checksum_of(raw_dir, tmp_path / "out")
    path, epoch = tmp_path / "out" / "ratings.parquet", np.datetime64(dataset.read_meta(tmp_path / "out")["day_epoch"])
    table = pq.read_table(path)
    assert num_ratings == len(table)
    position = table.column_names.index("stars")
    stars = table["stars"].to_numpy().copy()
    stars[7] = stars[7] % 5 + 1
    pq.write_table(table.set_column(position, table.field("stars"), [stars]), path)
    changed = checksum(tmp_path / "out", epoch)
    assert changed[0] == num_ratings and changed[1] != plain
    pq.write_table(table.take(np.arange(len(table))[::-1]), path)
    with pytest.raises(ValueError, match="not sorted"):
        checksum(tmp_path / "out", epoch)


def test_a_missing_package_is_said_at_the_start(monkeypatch, capsys):
    monkeypatch.setattr(bench_preprocess, "find_spec", lambda name: None if name == "duckdb" else object())
    assert bench_preprocess.main(["--ratings", "1000"]) == 1
    assert "error: duckdb not installed; run: pip install -r requirements-bench.txt" in capsys.readouterr().err
