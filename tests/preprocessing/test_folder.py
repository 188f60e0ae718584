"""A file is replaced whole. What holds for a data set's folder is in test_netflix_preprocess.py, "the transaction"."""

import os
from pathlib import Path

import pytest

from preprocessing.dataset import replaced

FULL_DISK = OSError(28, "No space left on device")


@pytest.fixture
def path(tmp_path) -> Path:
    """A file that is there, alone in its folder."""
    path = tmp_path / "run" / "metrics.csv"
    path.parent.mkdir()
    path.write_bytes(b"older")
    return path


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_written_file_takes_the_place_of_the_older_one(path):
    with replaced(path) as partial:
        partial.write_bytes(b"newer")
        assert contents(path.parent) == {"metrics.csv": b"older", ".metrics.csv.partial": b"newer"}
    assert contents(path.parent) == {"metrics.csv": b"newer"}


def test_a_file_that_was_not_there_is_made(path):
    path.unlink()
    with replaced(path) as partial:
        partial.write_bytes(b"newer")
    assert contents(path.parent) == {"metrics.csv": b"newer"}


@pytest.mark.parametrize("error", [FULL_DISK, ValueError("a mistake"), KeyboardInterrupt()], ids=repr)
def test_a_failure_leaves_the_older_file_and_no_temporary_one(path, error):
    with pytest.raises(type(error)), replaced(path) as partial:
        partial.write_bytes(b"half of the new")
        raise error
    assert contents(path.parent) == {"metrics.csv": b"older"}


def test_a_file_that_the_disk_does_not_take_replaces_nothing(path, monkeypatch):
    def fail(descriptor):
        assert contents(path.parent) == {"metrics.csv": b"older", ".metrics.csv.partial": b"newer"}
        raise FULL_DISK

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"), replaced(path) as partial:
        partial.write_bytes(b"newer")
    assert contents(path.parent) == {"metrics.csv": b"older"}


def test_a_link_at_the_temporary_name_is_not_followed(path):
    elsewhere = path.parents[1] / "elsewhere"
    elsewhere.write_bytes(b"mine")
    (path.parent / ".metrics.csv.partial").symlink_to(elsewhere)
    with replaced(path) as partial:
        partial.write_bytes(b"newer")
    assert contents(path.parent) == {"metrics.csv": b"newer"} and not path.is_symlink()
    assert elsewhere.read_bytes() == b"mine"


def test_what_a_killed_program_left_at_the_temporary_name_is_gone(path):
    (path.parent / ".metrics.csv.partial").write_bytes(b"half of another one")
    with replaced(path) as partial:
        assert not partial.exists()
        partial.write_bytes(b"newer")
    assert contents(path.parent) == {"metrics.csv": b"newer"}
