import pytest
import torch

import main
from models import config
from models.config import default_embedding_dim
from training.batches import load_dataset


@pytest.mark.parametrize(("num_ratings", "ensemble_size", "number"), [
    (1, 4, 128), (5_000_000, 4, 128), (5_000_001, 4, 256), (10**10, 1, 256), (200_000, 3, 129), (10**7, 3, 258),
    (1, 200, 200)])
def test_coordinates_grow_with_the_ratings_and_divide_among_the_members(num_ratings, ensemble_size, number):
    assert default_embedding_dim(num_ratings, ensemble_size) == number


def test_a_run_has_the_coordinates_of_its_training_ratings_the_second_fit_and_what_goes_on_too(data_dir, tmp_path,
                                                                                              monkeypatch):
    """With the validation ratings, of the second fit, there are more ratings than of the first."""
    num_train = load_dataset(data_dir).meta["split"]["num_train"]
    monkeypatch.setattr(config, "MANY_RATINGS", num_train)
    monkeypatch.setattr(config, "FEWER", 16)
    monkeypatch.setattr(config, "MORE", 32)
    flags = ["--data_dir", str(data_dir), "--run_dir", str(tmp_path), "--hidden_dim", "8", "--num_threads", "1"]
    assert main.main([*flags, "--epochs", "1"]) == 0
    second = torch.load(tmp_path / "best.pt", weights_only=True)
    assert second["refit"] and second["config"]["embedding_dim"] == 16
    monkeypatch.setattr(config, "MANY_RATINGS", 0)
    assert main.main([*flags, "--resume", "--epochs", "2"]) == 0
    for name in ("best.pt", "last.pt"):
        checkpoint = torch.load(tmp_path / name, weights_only=True)
        assert checkpoint["config"]["embedding_dim"] == 16
        assert checkpoint["model"]["user_based.movie_tower.embedding"].shape[1:] == (4, 4)
    assert torch.load(tmp_path / "best.pt", weights_only=True)["refit"]
    assert main.main([*flags, "--overwrite", "--epochs", "1", "--no-refit"]) == 0
    assert torch.load(tmp_path / "best.pt", weights_only=True)["config"]["embedding_dim"] == 32
