import pytest
import torch

from models.config import PARTS, ModelConfig
from models.two_tower import Target, TwoTower
from models.user_tower import Context
from recommending.one_user import OneUserTower


def random_model(*without: str) -> TwoTower:
    torch.manual_seed(0)
    model = TwoTower(ModelConfig(num_users=7, num_movies=300, num_days=2000, stars_low=1, stars_high=5, stars_mean=3.4,
                                 embedding_dim=12, ensemble_size=3, hidden_dim=8, user_dim=4, pooled_dim=4,
                                 without=without)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    torch.nn.init.normal_(model.movie_tower.mean, std=0.3)
    torch.nn.init.normal_(model.user_embedding)
    return model


@pytest.mark.parametrize("num_ratings", [0, 1, 200])
@pytest.mark.parametrize("without", [(), ("fold_in",), PARTS])
@torch.no_grad()
def test_the_uncertainty_is_that_of_the_towers(without, num_ratings):
    model = random_model(*without)
    movies, listed = model.movie_table(), torch.tensor([3, 7, 3, 299])
    row, movie_idx = torch.zeros(num_ratings, dtype=torch.int64), torch.randperm(300)[:num_ratings]
    stars, day = torch.randint(1, 6, (num_ratings,)).float(), torch.randint(500, 1500, (num_ratings,)).sort().values
    target = Target(torch.zeros(4, dtype=torch.int64), listed, torch.full((4,), 1600))
    expected = model.uncertainty(movies, model.user_embedding[2:3], Context(row, movie_idx, stars, day), target)
    one = OneUserTower(model, movies)
    squared, variance = one.uncertainty(one.fold_in(2, movie_idx.numpy(), stars.numpy(), day.numpy()), listed.numpy())
    assert expected[0].tolist() == pytest.approx([squared] * 4, rel=2e-3, abs=1e-4)
    assert expected[1].tolist() == [num_ratings] * 4
    torch.testing.assert_close(torch.from_numpy(variance), expected[2], rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("num_ratings", [0, 1, 2, 200])
@pytest.mark.parametrize("without", [(), *((part,) for part in PARTS), PARTS])
@torch.no_grad()
def test_the_vector_is_that_of_the_towers(without, num_ratings):
    model = random_model(*without)
    movies = model.movie_table()
    row, movie_idx = torch.zeros(num_ratings, dtype=torch.int64), torch.randperm(300)[:num_ratings]
    stars, day = torch.randint(1, 6, (num_ratings,)).float(), torch.randint(500, 1500, (num_ratings,)).sort().values
    one = OneUserTower(model, movies)
    for asked, user_idx in ((0, 3), (1000, None), (1510, 5), *((asked, 6) for asked in day.tolist()[-2:]), (1999, 0)):
        embedding = torch.zeros(1, 4) if user_idx is None else model.user_embedding[user_idx:user_idx + 1]
        expected = model.user_vectors(movies, embedding, Context(row, movie_idx, stars, day), asked)[0]
        fold_in = one.fold_in(user_idx, movie_idx.numpy(), stars.numpy(), day.numpy())
        vector = one.vector(fold_in, day.numpy(), asked)
        torch.testing.assert_close(torch.from_numpy(vector), expected, rtol=2e-4, atol=2e-5)


@torch.no_grad()
def test_contributions_of_the_ratings_sum_to_the_score_of_the_fold_in():
    model = random_model("recent_user_bias")  # which is not of the fold-in
    movies, tower = model.movie_table(), OneUserTower(model, model.movie_table())
    movie_idx, stars = torch.randperm(300)[:20], torch.randint(1, 6, (20,)).float()
    row, day, listed = torch.zeros(20, dtype=torch.int64), torch.arange(500, 520), torch.tensor([3, 7, 3])
    for user_idx in (None, 5):
        embedding = torch.zeros(1, 4) if user_idx is None else model.user_embedding[user_idx:user_idx + 1]
        context = Context(row, movie_idx, stars, day)
        fold_in = tower.fold_in(user_idx, movie_idx.numpy(), stars.numpy(), day.numpy())
        effects = tower.contributions(fold_in, listed.numpy())
        whole = model.user_vectors(movies, embedding, context, 600)
        movie_bias = model.movie_bias_over_time(model.movie_bias_over_time.table, movie_idx, day)
        prior = model.user_tower.regression(embedding, context, movies, movie_bias)[0]
        without = torch.cat([prior, torch.ones(1, 3, 1)], -1).flatten(1) / 3
        expected = ((whole - without) @ model.movie_vectors(600)[listed].T)[0]
        torch.testing.assert_close(torch.from_numpy(effects.sum(1)), expected, rtol=1e-3, atol=1e-4)
    tower = OneUserTower(random_model("fold_in"), movies)
    fold_in = tower.fold_in(None, movie_idx.numpy(), stars.numpy(), day.numpy())
    assert not tower.contributions(fold_in, listed.numpy()).any()
