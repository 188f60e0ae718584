from dataclasses import replace

import pytest
import torch

from models.two_tower import ModelConfig, TwoTower

CONFIG = ModelConfig(num_users=7, num_movies=11, stars_low=1, stars_high=5, stars_mean=3.4, embedding_dim=12,
                     num_heads=3, hidden_dim=8, user_dim=4, pooled_dim=4)
ROW = torch.tensor([0, 0, 0, 1, 1, 2])
MOVIE = torch.tensor([1, 4, 9, 0, 4, 10])
STARS = torch.tensor([5.0, 3.0, 1.0, 4.0, 4.0, 2.0])


@pytest.fixture
def model() -> TwoTower:
    torch.manual_seed(0)
    model = TwoTower(CONFIG)
    model.movie_tower.set_statistics(torch.tensor([1990, 0, *range(1960, 1978, 2)]), torch.arange(11.0),
                                     torch.linspace(-3, 3, 11))
    for layer in (model.movie_tower.out, model.user_tower.out):  # they begin at zero, which would hide mistakes
        torch.nn.init.normal_(layer.weight, std=0.3)
    return model.eval()


TARGET = (torch.tensor([0, 1, 2, 2]), torch.tensor([3, 9, 2, 1]))  # row, movie_idx


def test_training_starts_at_the_global_mean():
    model = TwoTower(CONFIG)
    torch.nn.init.zeros_(model.movie_tower.embedding)
    score = model.movie_vectors()[:, -1]  # with zero weights only the offset is left
    torch.testing.assert_close(model.stars(score), torch.full((11,), 3.4))


@torch.no_grad()
def test_score_of_a_step_is_the_dot_product_of_the_exported_vectors(model):
    users = model.user_vectors(model.films(), torch.zeros(3, 4), ROW, MOVIE, STARS)
    exported = (users[TARGET[0]] * model.movie_vectors()[TARGET[1]]).sum(1)
    scores, _ = model(torch.zeros(3, 4), (ROW, MOVIE, STARS), TARGET)
    torch.testing.assert_close(scores.mean(1), exported)


@torch.no_grad()
def test_penalty_equals_the_sum_over_targets_written_out(model):
    _, size = model(torch.zeros(3, 4), (ROW, MOVIE, STARS), TARGET, penalty=0.1, film_prior=3.0)
    users = model.user_vectors(model.films(), torch.zeros(3, 4), ROW, MOVIE, STARS).view(3, 3, -1)[..., :-1] * 3
    vectors = model.films().vectors
    expected = sum(0.1 * users[row].square().sum() + (0.1 + 3.0 / max(movie, 1)) * vectors[movie].square().sum()
                   for row, movie in zip(*(part.tolist() for part in TARGET), strict=True))  # movie m has m ratings
    torch.testing.assert_close(size, expected)


@torch.no_grad()
def test_a_user_in_a_batch_gets_the_vector_he_gets_alone(model):
    films = model.films()
    together = model.user_vectors(films, torch.zeros(3, 4), ROW, MOVIE, STARS)
    for user in range(3):
        own = user == ROW
        alone = model.user_vectors(films, torch.zeros(1, 4), torch.zeros_like(ROW[own]), MOVIE[own], STARS[own])
        torch.testing.assert_close(together[user], alone[0])


def test_vectors_without_gradients_equal_those_with(model):
    """They take another way: user by user, in one pass."""
    row, movie_idx, stars = ROW * 2, MOVIE, STARS  # users 1 and 3 have no ratings
    films, others = model.films(), (torch.randn(5, 4), row, movie_idx, stars)
    with torch.no_grad():
        quick = model.user_vectors(films, *others)
        torch.testing.assert_close(model.user_vectors(replace(films, rows=None), *others), quick)
    torch.testing.assert_close(model.user_vectors(films, *others).detach(), quick)


@torch.no_grad()
def test_contributions_of_the_ratings_sum_to_the_score_of_the_solved_history(model):
    films, embedding = model.films(), torch.zeros(1, 4)
    targets = torch.tensor([3, 7])
    effects = model.contributions(films, embedding, MOVIE[:3], STARS[:3], targets)
    row = torch.zeros(3, dtype=torch.int64)
    whole = model.user_vectors(films, embedding, row, MOVIE[:3], STARS[:3])
    prior = model.user_tower.regression(embedding, row, STARS[:3], films, MOVIE[:3], MOVIE[:3])[0]
    without = torch.cat([prior, torch.ones(1, 3, 1)], -1).flatten(1) / 3
    torch.testing.assert_close(effects.sum(1), ((whole - without) @ model.movie_vectors()[targets].T)[0])


@torch.no_grad()
def test_a_user_without_any_rating_gets_a_finite_vector(model):
    nothing = torch.zeros(0, dtype=torch.int64)
    vector = model.user_vectors(model.films(), torch.zeros(1, 4), nothing, nothing, torch.zeros(0))
    assert torch.isfinite(vector).all()


@torch.no_grad()
def test_of_no_users_there_are_no_vectors(model):
    nothing = torch.zeros(0, dtype=torch.int64)
    vectors = model.user_vectors(model.films(), torch.zeros(0, 4), nothing, nothing, torch.zeros(0))
    assert vectors.shape == (0, model.movie_vectors().shape[1])


def test_a_movie_without_training_ratings_has_no_embedding(model):
    assert (model.movie_tower.embedding[0] == 0).all()
    assert (model.movie_tower.embedding[1:] != 0).all()
