import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from preprocessing import netflix_preprocess, synthetic_netflix
from preprocessing.dataset import FILES

# Forks of this process, which has imported what they need; threads of macOS's libraries would not survive it.
CONTEXT = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    synthetic_netflix.generate(folder, num_users=3000, num_movies=300, num_ratings=200_000, seed=0)
    return folder


def preprocess(*flags: str) -> None:
    signal.alarm(120)
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
