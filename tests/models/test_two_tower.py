from dataclasses import replace

import pytest
import torch

from models import two_tower
from models.config import PARTS, ModelConfig
from models.movie_tower import StepMovies
from models.two_tower import Target, TwoTower
from models.user_tower import Context

CONFIG = ModelConfig(num_users=7, num_movies=11, num_days=100, stars_low=1, stars_high=5, stars_mean=3.4,
                     embedding_dim=12, ensemble_size=3, hidden_dim=8, user_dim=4, pooled_dim=4, raters_dim=2,
                     without=())
ROW = torch.tensor([0, 0, 0, 1, 1, 2])
MOVIE = torch.tensor([1, 4, 9, 0, 4, 10])
STARS = torch.tensor([5.0, 3.0, 1.0, 4.0, 4.0, 2.0])
CONTEXT = Context(ROW, MOVIE, STARS, torch.tensor([3, 90, 90, 40, 41, 99]))
LAST = 99  # the day to ask about


@pytest.fixture
def model() -> TwoTower:
    torch.manual_seed(0)
    model = TwoTower(CONFIG)
    model.movie_tower.set_statistics(torch.tensor([1990, 0, *range(1960, 1978, 2)]), torch.arange(11.0),
                                     torch.linspace(-3, 3, 11))
    model.movie_tower.raters.copy_(torch.randn(11, 2))
    for layer in (model.movie_tower.out, model.user_tower.out):  # they begin at zero, which would hide mistakes
        torch.nn.init.normal_(layer.weight, std=0.3)
    torch.nn.init.normal_(model.movie_bias_over_time.table, std=0.3)
    torch.nn.init.normal_(model.recent_user_bias.weight)
    return model.eval()


def bare_of_dates(model: TwoTower) -> None:
    model.recent_user_bias.weight.data.zero_()


def step_movies(model: TwoTower) -> StepMovies:
    return model.step_movies(model.distinct_movies(torch.cat([MOVIE, TARGET.movie_idx])))


TARGET = Target(torch.tensor([0, 1, 2, 2]), torch.tensor([3, 9, 2, 1]), torch.full((4,), LAST))


def test_training_starts_at_the_global_mean():
    model = TwoTower(CONFIG)
    torch.nn.init.zeros_(model.movie_tower.embedding)
    score = model.movie_vectors(0)[:, -1]  # with zero weights only the offset is left
    torch.testing.assert_close(model.stars(score), torch.full((11,), 3.4))


@torch.no_grad()
def test_score_of_a_step_is_the_dot_product_of_the_exported_vectors(model):
    users = model.user_vectors(model.movie_table(), torch.zeros(3, 4), CONTEXT, LAST)
    exported = (users[TARGET[0]] * model.movie_vectors(LAST)[TARGET[1]]).sum(1)
    scores, *_ = model(torch.zeros(3, 4), CONTEXT, TARGET, step_movies(model).table)
    torch.testing.assert_close(scores.mean(1), exported)


@torch.no_grad()
def test_squared_norms_equal_the_sum_over_targets_written_out(model):
    bare_of_dates(model)  # the norms are those of the fold-in
    movies = step_movies(model)
    _, user_norms, counted = model(torch.zeros(3, 4), CONTEXT, TARGET, movies.table)
    num_targets = torch.bincount(movies.table.position[TARGET.movie_idx], minlength=len(movies.num_ratings)).float()
    assert torch.equal(counted, num_targets)
    by_rows = torch.ones_like(movies.table.rows)
    norms, by_embedding = movies.add_squared_norms(by_rows, num_targets, l2=0.1, movie_l2=3.0, embedding_l2=5.0)
    norms = norms + 0.1 * user_norms
    users = model.user_vectors(model.movie_table(), torch.zeros(3, 4), CONTEXT, LAST).view(3, 3, -1)[..., :-1] * 3
    vectors, embedding = model.movie_table().vectors, model.movie_tower.embedding
    expected = sum(0.1 * users[row].square().sum() + (0.1 + 3.0 / max(movie, 1)) * vectors[movie].square().sum()
                   + 5.0 / max(movie, 1) * embedding[movie].square().sum()
                   for row, movie in zip(TARGET.row.tolist(), TARGET.movie_idx.tolist(), strict=True))
    torch.testing.assert_close(norms, expected)
    for movie in TARGET.movie_idx.unique().tolist():
        k, number, of_one = movies.table.position[movie], (TARGET.movie_idx == movie).sum(), 1 / max(movie, 1)
        assert (by_rows[k, :, -2:] == 1).all()
        torch.testing.assert_close(by_rows[k, :, :-2], 1 + number * (0.1 + 3.0 * of_one) * vectors[movie])
        torch.testing.assert_close(by_embedding[k], number * 5.0 * of_one * embedding[movie])


@torch.no_grad()
def test_a_user_in_a_batch_gets_the_vector_that_they_get_alone(model):
    movies = model.movie_table()
    together = model.user_vectors(movies, torch.zeros(3, 4), CONTEXT, LAST)
    for user in range(3):
        of_user = user == ROW
        context = Context(*(column[of_user] for column in CONTEXT))._replace(row=torch.zeros_like(ROW[of_user]))
        alone = model.user_vectors(movies, torch.zeros(1, 4), context, LAST)
        torch.testing.assert_close(together[user], alone[0])


@torch.no_grad()
def test_a_user_without_any_rating_gets_a_finite_vector(model):
    nothing = torch.zeros(0, dtype=torch.int64)
    context = Context(nothing, nothing, torch.zeros(0), nothing)
    vector = model.user_vectors(model.movie_table(), torch.zeros(1, 4), context, LAST)
    assert torch.isfinite(vector).all()


@torch.no_grad()
def test_the_catalogue_is_the_same_in_blocks(model, monkeypatch):
    whole = model.movie_table().rows
    monkeypatch.setattr(two_tower, "MOVIES_PER_BLOCK", 4)
    torch.testing.assert_close(model.movie_table().rows, whole)


def test_a_movie_without_training_ratings_has_no_embedding(model):
    assert (model.movie_tower.embedding[0] == 0).all()
    assert (model.movie_tower.embedding[1:] != 0).all()


@pytest.mark.parametrize("part", [None, *PARTS])
@torch.no_grad()
def test_predictions_on_their_own_days_are_those_of_the_vectors_as_of_these_days(part, model):
    if part is not None:
        whole, model = model, TwoTower(replace(CONFIG, without=(part,))).eval()
        model.load_state_dict(whole.state_dict(), strict=False)
    movies, embedding = model.movie_table(), torch.zeros(3, 4)
    for day in (0, 41, 90, 99):
        target = Target(torch.arange(3).repeat_interleave(11), torch.arange(11).repeat(3), torch.full((33,), day))
        # a day before a user's last rating is within the reach of what they rated after it
        products = model.user_vectors(movies, embedding, CONTEXT, day) @ model.movie_vectors(day).T
        torch.testing.assert_close(model.predict(movies, embedding, CONTEXT, target), products.flatten())


@pytest.mark.parametrize("part", PARTS)
@torch.no_grad()
def test_every_part_changes_the_score_and_can_be_left_out(part, model):
    embedding = torch.ones(3, 4)
    scores = model(embedding, CONTEXT, TARGET, step_movies(model).table)[0]
    without = TwoTower(replace(CONFIG, without=(part,))).eval()
    without.load_state_dict(model.state_dict(), strict=False)
    assert (without(embedding, CONTEXT, TARGET, step_movies(without).table)[0] - scores).abs().max() > 1e-5


@pytest.mark.parametrize("bounds", [(0, 50), (50, 50), (33, 90), (90, 100)])
def test_the_rows_of_some_users_begin_as_in_a_table_of_all(bounds, monkeypatch):
    monkeypatch.setattr(two_tower, "ROWS_AT_A_TIME", 16)
    config, (first, last) = replace(CONFIG, num_users=100, user_dim=16), bounds
    torch.manual_seed(3)
    whole, following = TwoTower(config), torch.rand(1)
    torch.manual_seed(3)
    some = TwoTower(config, bounds)
    assert torch.equal(torch.rand(1), following)
    assert len(some.user_embedding) == last - first
    assert torch.equal(some.user_embedding, whole.user_embedding[first:last])
    users = torch.arange(first, last).flip(0)
    assert torch.equal(some.embedding_of(users), whole.embedding_of(users))
    assert torch.equal(some.own_rows(torch.arange(100)), torch.arange(first, last))
    whole.keep_users(first, last)
    assert torch.equal(some.embedding_of(users), whole.embedding_of(users))
    assert torch.equal(some.movie_tower.embedding, whole.movie_tower.embedding)
