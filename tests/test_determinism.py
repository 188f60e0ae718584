"""The same seed gives the same files from preprocessing and the same weights from training."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import main
from preprocessing import building, netflix_preprocess, parsing
from preprocessing.dataset import FILES

EXACT = ("epoch", "train_loss", "train_rmse", "val_rmse", "val_mae", "lr")  # of a row of metrics; the rest is clock


@pytest.fixture(scope="module")
def train_again(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[dict, dict, list]]:
    """Train for two epochs of two steps; return the tensors of the last model and of the best, and the metrics."""

    def command(*flags: str) -> tuple[dict, dict, list]:
        run_dir = tmp_path_factory.mktemp("run")
        assert main.main(["--data_dir", str(data_dir), "--run_dir", str(run_dir), "--epochs", "2", "--batch_size",
                          "200", "--embedding_dim", "16", "--ensemble_size", "2", "--hidden_dim", "16", *flags]) == 0
        last, best = (torch.load(run_dir / name, weights_only=True) for name in ("last.pt", "best.pt"))
        return last["model"], best["model"], [[row[name] for name in EXACT] for row in last["metrics"]]

    return command


@pytest.fixture(scope="module")
def one_thread(train_again) -> tuple[dict, dict, list]:
    return train_again("--num_threads", "1")


def test_preprocessing_gives_the_same_bytes_for_any_number_of_processes_and_pieces(raw_dir, tmp_path, monkeypatch):
    written = []
    for number, (cores, range_bytes) in enumerate([(1, 8 << 20), (1, 8 << 20), (2, 20_000), (5, 7_001)]):
        monkeypatch.setattr(parsing, "num_cores", lambda cores=cores: cores)
        monkeypatch.setattr(building, "num_cores", lambda cores=cores: cores)
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


def test_training_with_one_thread_repeats_to_the_bit(one_thread, train_again):
    """And so does the second fit, to validation too, which is the best model's."""
    *models, rows = one_thread
    *again, rows_again = train_again("--num_threads", "1")
    assert rows == rows_again
    for model, other in zip(models, again, strict=True):
        assert model.keys() == other.keys() and all(torch.equal(model[name], other[name]) for name in model)
    assert not torch.equal(models[0]["user_based.movie_tower.embedding"], models[1]["user_based.movie_tower.embedding"])


def test_training_with_two_threads_repeats_within_a_ten_thousandth(one_thread, train_again, monkeypatch):
    train, threads = main.train, []

    def then_alone(*args: object) -> object:
        done = train(*args)
        threads.append(torch.get_num_threads())
        torch.set_num_threads(1)  # for the report: where others work too, two threads spin as they wait for each other
        return done

    monkeypatch.setattr(main, "train", then_alone)
    try:
        *_, two = train_again("--num_threads", "2", "--no-refit")
    finally:
        torch.set_num_threads(1)
    assert threads == [2]
    for row, other in zip(one_thread[-1], two, strict=True):
        assert all(math.isclose(left, right, rel_tol=1e-4) for left, right in zip(row, other, strict=True))
