"""RMSE by the number of coordinates: of the towers as main.py trains them, of LIBMF with the best of its settings."""

import dataclasses
import json

import pytest

from benchmarks import coordinates, peers
from preprocessing.dataset import read_meta
from training.batches import load_dataset


@pytest.fixture
def imitation(monkeypatch):
    """In place of LIBMF: the bias model, off by as much as its settings say; what it was fitted with."""
    asked = []

    def fit(data, seed, num_threads, k, l2, nr_iters):
        asked.append((k, l2, nr_iters))
        fitted = peers.fit_bias(data, seed, num_threads)
        return dataclasses.replace(fitted, movie_bias=fitted.movie_bias + abs(l2 - 0.05) + 1 / k + 1 / nr_iters)

    monkeypatch.setitem(peers.PEERS, "libmf", peers.Peer(fit, "imitation"))
    return asked


def test_rows_have_the_best_validation_rmse_of_each_number(data_dir, tmp_path, capsys, imitation, train):
    assert coordinates.main(["--data_dir", str(data_dir), "--models", "two_tower,libmf", "--coordinates", "16,8",
                             "--main_flags",
                             "--epochs 2 --batch_size 64 --hidden_dim 16 --ensemble_size 2"]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert [(row["model"], row["coordinates"]) for row in rows] == [
        ("two_tower", 8), ("two_tower", 16), ("libmf", 8), ("libmf", 16)]
    for row in rows[:2]:
        run_dir = tmp_path / str(row["coordinates"])
        assert train(data_dir, run_dir, "--no-refit", "--relevance_weight", "0", "--embedding_dim",
                     str(row["coordinates"]), "--epochs", "2", "--batch_size", "64", "--num_threads", "1") == 0
        lines = (run_dir / "metrics.csv").read_text().splitlines()
        place = lines[0].split(",").index("val_rmse")
        assert row["rmse"] == pytest.approx(min(float(line.split(",")[place]) for line in lines[1:]), abs=1e-6)
        assert row["epochs"] == 2 and row["seconds"] > 0
    data = load_dataset(data_dir)
    assert {k for k, *_ in imitation} == {8, 16} and len(imitation) == 24
    for row in rows[2:]:
        assert (row["l2"], row["nr_iters"]) == (0.05, 40)
        assert row["rmse"] == peers.validation_rmse(peers.PEERS["libmf"], data, 1, k=row["coordinates"], l2=0.05,
                                                    nr_iters=40)
    assert len({row["bias"] for row in rows}) == 1 and read_meta(data_dir)["split"]["num_validation"]


@pytest.mark.parametrize("flags", [["--coordinates", "6"], ["--coordinates", "8,"], ["--coordinates", "0"],
                                   ["--models", "svd"], ["--num_threads", "0"]])
def test_wrong_flags_exit_with_code_2(flags):
    with pytest.raises(SystemExit) as exit_info:
        coordinates.main(flags)
    assert exit_info.value.code == 2
