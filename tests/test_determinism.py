"""The same seed gives the same files from preprocessing and the same weights from training."""

import math
from pathlib import Path

import pytest
import torch

import main
from preprocessing import assembly, netflix_preprocess, parsing
from preprocessing.dataset import FILES

EXACT = ("epoch", "train_loss", "train_rmse", "val_rmse", "val_mae", "lr")  # of a row of metrics; the rest is clock


@pytest.fixture
def rows_of(data_dir: Path, tmp_path: Path):
    """Train for two epochs; return the model's tensors and the rows of metrics."""
    runs = iter(range(10))

    def train(*flags: str) -> tuple[dict, list]:
        run_dir = tmp_path / f"run{next(runs)}"
        assert main.main(["--data_dir", str(data_dir), "--run_dir", str(run_dir), "--epochs", "2", "--embedding_dim",
                          "16", "--num_heads", "2", "--hidden_dim", "16", *flags]) == 0
        last = torch.load(run_dir / "last.pt", weights_only=True)
        return last["model"], [[row[name] for name in EXACT] for row in last["metrics"]]

    yield train
    torch.set_num_threads(1)


def test_preprocessing_gives_the_same_bytes_for_any_number_of_processes_and_pieces(raw_dir, tmp_path, monkeypatch):
    written = []
    for number, (cores, range_bytes) in enumerate([(1, 8 << 20), (1, 8 << 20), (2, 20_000), (5, 7_001)]):
        monkeypatch.setattr(parsing, "num_cores", lambda cores=cores: cores)
        monkeypatch.setattr(assembly, "num_cores", lambda cores=cores: cores)
        monkeypatch.setattr(parsing, "RANGE_BYTES", range_bytes)
        out_dir = tmp_path / str(number)
        assert netflix_preprocess.main(["--raw_dir", str(raw_dir), "--out_dir", str(out_dir)]) == 0
        written.append([(out_dir / name).read_bytes() for name in FILES])
    assert all(files == written[0] for files in written)


def test_sorting_on_disk_gives_the_same_bytes(raw_dir, tmp_path):
    for number, flags in enumerate([[], ["--max_memory", "1"]]):
        assert netflix_preprocess.main(["--raw_dir", str(raw_dir), "--out_dir", str(tmp_path / str(number)),
                                        *flags]) == 0
    assert all((tmp_path / "0" / name).read_bytes() == (tmp_path / "1" / name).read_bytes() for name in FILES)


def test_training_with_one_thread_repeats_to_the_bit(rows_of):
    (model, rows), (again, rows_again) = rows_of("--num_threads", "1"), rows_of("--num_threads", "1")
    assert rows == rows_again
    assert all(torch.equal(model[name], again[name]) for name in model)


def test_training_with_two_threads_repeats_within_a_ten_thousandth(rows_of):
    (_, one), (_, two) = (rows_of("--num_threads", threads) for threads in ("1", "2"))
    for row, other in zip(one, two, strict=True):
        assert all(math.isclose(left, right, rel_tol=1e-4) for left, right in zip(row, other, strict=True))
