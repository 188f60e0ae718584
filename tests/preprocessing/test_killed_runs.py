import subprocess
import sys
import time
from pathlib import Path

import pytest

from preprocessing import netflix_preprocess, synthetic_netflix
from preprocessing.dataset import FILES

COMMAND = Path(netflix_preprocess.__file__)


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    synthetic_netflix.generate(folder, num_users=3000, num_movies=300, num_ratings=200_000, seed=0)
    return folder


def test_a_killed_run_leaves_the_old_data_set_or_the_new_one_whole(raw, tmp_path):
    out = tmp_path / "out"
    expected = {}
    for seed in ("0", "1"):  # what the two possible outcomes look like
        netflix_preprocess.main(["--raw_dir", str(raw), "--out_dir", str(out), "--seed", seed])
        expected[seed] = {name: (out / name).read_bytes() for name in FILES}
    start = time.perf_counter()
    subprocess.run([sys.executable, str(COMMAND), "--raw_dir", str(raw), "--out_dir", str(out)], check=True,
                   capture_output=True)
    whole_run_s = time.perf_counter() - start
    for kill in range(8):
        seed = str(kill % 2)
        process = subprocess.Popen([sys.executable, str(COMMAND), "--raw_dir", str(raw), "--out_dir", str(out),
                                    "--seed", seed], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(whole_run_s * (0.3 + 0.1 * kill))  # later and later, up to after its end
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert {name: (out / name).read_bytes() for name in FILES} in expected.values()
    assert netflix_preprocess.main(["--raw_dir", str(raw), "--out_dir", str(out)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # what the killed runs left is gone
