import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from preprocessing import netflix_preprocess, parsing, synthetic_netflix
from preprocessing.dataset import FILES

# Forks of this process, which has imported what they need; threads of macOS's libraries would not survive it.
CONTEXT = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    synthetic_netflix.generate(folder, num_users=3000, num_movies=300, num_ratings=200_000, seed=0)
    return folder


def preprocess(*flags: str, parse_text: Callable | None = None) -> None:
    """Run the command to the end of this process; with `parse_text`, on three processes that parse by it."""
    signal.alarm(120)
    if parse_text:
        os.setsid()
        parsing._parse_text, parsing.num_cores, parsing.RANGE_BYTES = parse_text, lambda: 3, 1 << 18
    for number in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    sys.exit(netflix_preprocess.main(list(flags)))


def test_a_killed_run_leaves_the_old_data_set_or_the_new_one_whole(raw, tmp_path):
    out = tmp_path / "out"
    flags, expected, whole_run_s = ("--raw_dir", str(raw), "--out_dir", str(out), "--seed"), {}, 0.0
    for seed in ("1", "0"):  # what the two possible outcomes look like
        start = time.perf_counter()
        process = CONTEXT.Process(target=preprocess, args=(*flags, seed))
        process.start()
        process.join()
        whole_run_s = time.perf_counter() - start
        assert process.exitcode == 0
        expected[seed] = {name: (out / name).read_bytes() for name in FILES}
    for kill in range(8):
        process = CONTEXT.Process(target=preprocess, args=(*flags, str(kill % 2)))
        process.start()
        process.join(whole_run_s * (0.1 + 0.13 * kill))  # later and later, up to about its end
        process.kill()
        process.join()
        assert {name: (out / name).read_bytes() for name in FILES} in expected.values()
    assert netflix_preprocess.main(["--raw_dir", str(raw), "--out_dir", str(out)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # what the killed runs left is gone


def end_all(*_: object) -> None:
    """End the command and its workers as a job's scheduler does."""
    os.killpg(0, signal.SIGTERM)
    while True:
        signal.pause()


def end_the_first(text: bytes, base: int, with_stars: bool) -> None:
    """End the worker that parses the beginning of a file, as a system short of memory does; the others stay busy."""
    if base == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    while True:
        signal.pause()


@pytest.mark.skipif(sys.platform != "linux", reason="processes of other systems would parse by the real function")
@pytest.mark.parametrize(("parse_text", "code"), [(end_all, 143), (end_the_first, 1)])
def test_a_run_whose_processes_are_killed_ends_and_leaves_nothing(raw, tmp_path, parse_text, code):
    flags = ("--raw_dir", str(raw), "--out_dir", str(tmp_path / "out"))
    process = CONTEXT.Process(target=preprocess, args=flags, kwargs={"parse_text": parse_text})
    process.start()
    process.join()
    assert process.exitcode == code
    assert list(tmp_path.iterdir()) == []
