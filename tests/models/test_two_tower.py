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


def step_scores(model: TwoTower, target_stars: torch.Tensor) -> torch.Tensor:
    """Score targets of the three users as a training step does, without noise."""
    model.config.film_noise = model.config.user_dropout = 0.0
    target = (torch.tensor([0, 1, 2, 2]), torch.tensor([3, 9, 2, 1]), target_stars)
    return model(torch.zeros(3, 4), (ROW, MOVIE, STARS), target)[0]


def test_training_starts_at_the_global_mean():
    model = TwoTower(CONFIG)
    for parameter in (model.movie_tower.embedding, model.movie_tower.bias):
        torch.nn.init.zeros_(parameter)
    score = model.movie_vectors()[:, -1]  # with zero weights only the offset is left
    torch.testing.assert_close(model.stars(score), torch.full((11,), 3.4))


@torch.no_grad()
def test_score_of_a_step_is_the_dot_product_of_the_exported_vectors(model):
    # The step takes its targets out of the films' statistics, so without them here, and with them there.
    model.movie_tower.num_ratings.zero_()
    model.movie_tower.sum_ratings.zero_()
    films = model.films()
    users = model.user_vectors(films, torch.zeros(3, 4), ROW, MOVIE, STARS)
    exported = (users[torch.tensor([0, 1, 2, 2])] * model.movie_vectors()[torch.tensor([3, 9, 2, 1])]).sum(1)
    for movie in (3, 9, 2, 1):
        model.movie_tower.num_ratings[movie] = 1
    scores = step_scores(model, torch.full((4,), CONFIG.stars_mean))
    torch.testing.assert_close(scores.mean(1), exported)


@torch.no_grad()
def test_no_rating_is_predicted_from_itself(model):
    stars = torch.tensor([1.0, 2.0, 3.0, 4.0])
    before = step_scores(model, stars)
    for target in range(4):
        changed = stars.clone()
        changed[target] = 5.0
        model.movie_tower.sum_ratings[[3, 9, 2, 1][target]] += 5.0 - stars[target]  # the statistics contain it
        torch.testing.assert_close(step_scores(model, changed)[target], before[target])
        model.movie_tower.sum_ratings[[3, 9, 2, 1][target]] -= 5.0 - stars[target]


@torch.no_grad()
def test_a_user_in_a_batch_gets_the_vector_he_gets_alone(model):
    films = model.films()
    together = model.user_vectors(films, torch.zeros(3, 4), ROW, MOVIE, STARS)
    for user in range(3):
        own = user == ROW
        alone = model.user_vectors(films, torch.zeros(1, 4), torch.zeros_like(ROW[own]), MOVIE[own], STARS[own])
        torch.testing.assert_close(together[user], alone[0])


@torch.no_grad()
def test_contributions_of_the_ratings_sum_to_the_score_of_the_solved_history(model):
    films, embedding = model.films(), torch.zeros(1, 4)
    targets = torch.tensor([3, 7])
    effects = model.contributions(films, embedding, MOVIE[:3], STARS[:3], targets)
    row = torch.zeros(3, dtype=torch.int64)
    whole = model.user_vectors(films, embedding, row, MOVIE[:3], STARS[:3])
    prior = model.user_tower.regression(embedding, row, STARS[:3], films, MOVIE[:3],
                                        model.user_tower.pooled[MOVIE[:3]])[0]
    without = torch.cat([prior, torch.ones(1, 3, 1)], -1).flatten(1) / 3
    torch.testing.assert_close(effects.sum(1), ((whole - without) @ model.movie_vectors()[targets].T)[0])


@torch.no_grad()
def test_a_user_without_any_rating_gets_a_finite_vector(model):
    nothing = torch.zeros(0, dtype=torch.int64)
    vector = model.user_vectors(model.films(), torch.zeros(1, 4), nothing, nothing, torch.zeros(0))
    assert torch.isfinite(vector).all()


def test_a_movie_without_training_ratings_has_no_embedding(model):
    assert (model.movie_tower.embedding[0] == 0).all()
    assert (model.movie_tower.embedding[1:] != 0).all()
