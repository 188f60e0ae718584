import pytest
import torch

from main import parse_args
from models.ops.ranks import ALONE
from training.batches import load_dataset
from training.build import build_trainer, step_between


def test_the_first_weights_are_those_of_the_seed(data_dir):
    data = load_dataset(data_dir)

    def weights(seed: int) -> dict[str, torch.Tensor]:
        args = parse_args(["--seed", str(seed), "--embedding_dim", "8", "--ensemble_size", "2", "--blend", "both"])
        return build_trainer(args, data, torch.device("cpu"), ALONE).model.state_dict()

    one, again, other = weights(3), weights(3), weights(4)
    assert all(torch.equal(one[name], again[name]) for name in one)
    drawn = {f"{kind}_based.{name}" for kind in ("user", "item") for name in (
        "user_embedding", "user_tower.hidden.weight", "movie_tower.hidden.weight", "movie_tower.embedding")}
    assert drawn | {"relevance.history", "relevance.vectors"} <= {
        name for name in one if not torch.equal(one[name], other[name])}


@pytest.mark.parametrize(("low", "high", "step", "expected"), [
    (1, 5, 1, 1), (0.5, 5, 0.5, 0.5), (0, 100, 0.5, 0.5), (1, 5, 4, 1), (1, 100, 10, 1), (0.5, 5, 1, 0.5),
    (-10, 10, 0.5, 0.5), (0.001, 5, 1, 4.999 / 5)])
def test_the_stars_that_can_be_given_reach_from_one_end_of_the_scale_to_the_other(low, high, step, expected):
    """Also where all ratings are far from an end that was named, or their step does not divide the scale."""
    found = step_between(low, high, step)
    assert found == pytest.approx(expected)
    assert (high - low) / found == pytest.approx(round((high - low) / found))
