import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from training import baselines, batches
from training.baselines import fit_biases
from training.batches import RatingTensors


def test_biases_equal_ridge_regression_on_dummies():
    generator = np.random.default_rng(0)
    num_users, num_movies, shrink = 12, 9, 5.0
    pairs = np.argwhere(generator.random((num_users, num_movies)) < 0.6)
    stars = generator.integers(1, 6, len(pairs))
    offset = torch.from_numpy(np.searchsorted(pairs[:, 0], np.arange(num_users + 1)))
    train = RatingTensors(offset, torch.from_numpy(pairs[:, 1].astype(np.int16)),
                          torch.from_numpy(stars.astype(np.uint8)), torch.zeros(len(pairs)))
    found = fit_biases(train, num_movies, user_shrink=shrink, movie_shrink=shrink, num_rounds=500)
    dummies = np.concatenate([np.eye(num_users)[pairs[:, 0]], np.eye(num_movies)[pairs[:, 1]]], 1)
    reference = Ridge(alpha=shrink, fit_intercept=False, tol=1e-12).fit(dummies, stars - stars.mean())
    assert found.mean == pytest.approx(stars.mean())
    np.testing.assert_allclose(np.concatenate([found.user, found.movie]), reference.coef_, atol=1e-5)


def test_biases_are_fitted_in_ten_rounds_of_which_the_movies_come_first():
    """Without shrinkage and with few pairs the rounds converge so slowly that every one is seen."""
    pairs = np.array([(user, movie) for user in range(12) for movie in (user, user + 1)])  # a chain
    stars = 1 + (pairs[:, 0] * 7 + pairs[:, 1] * 3) % 5
    train = RatingTensors(torch.arange(0, 25, 2), torch.from_numpy(pairs[:, 1].astype(np.int16)),
                          torch.from_numpy(stars.astype(np.uint8)), torch.zeros(24))
    users, movies = np.zeros(12), np.zeros(13)
    for _ in range(10):
        for movie in range(13):
            own = pairs[:, 1] == movie
            movies[movie] = (stars - stars.mean() - users[pairs[:, 0]])[own].sum() / (own.sum() + 0.01)
        for user in range(12):
            own = pairs[:, 0] == user
            users[user] = (stars - stars.mean() - movies[pairs[:, 1]])[own].sum() / (own.sum() + 0.01)
    biases = fit_biases(train, 13, user_shrink=0.01, movie_shrink=0.01)
    np.testing.assert_allclose(np.concatenate([biases.user, biases.movie]), np.concatenate([users, movies]), atol=1e-5)


def test_blocks_of_any_size_and_ranks_give_the_same_biases(monkeypatch):
    generator = np.random.default_rng(1)
    counts = torch.tensor([0, 3, 0, 7, 1, 12, 0, 5, 2, 0])
    movies = np.concatenate([generator.permutation(15)[:count] for count in counts])
    train = RatingTensors(torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]),
                          torch.from_numpy(movies.astype(np.int16)),
                          torch.from_numpy(generator.integers(1, 6, len(movies)).astype(np.uint8)), torch.zeros(30))
    whole = fit_biases(train, 15, 0.5)
    monkeypatch.setattr(batches, "BLOCK_RATINGS", 1)
    for size in (1, 4, 29, 30, 31):
        monkeypatch.setattr(baselines, "BLOCKS_AT_ONCE", size)
        cut = fit_biases(train, 15, 0.5)
        assert cut.mean == pytest.approx(whole.mean, rel=1e-12)
        torch.testing.assert_close(torch.cat([cut.user, cut.movie]), torch.cat([whole.user, whole.movie]))


def test_without_a_training_rating_nothing_is_known_of_anybody():
    nothing = torch.zeros(0, dtype=torch.uint8)
    biases = fit_biases(RatingTensors(torch.zeros(4, dtype=torch.int64), nothing.short(), nothing, nothing), 2)
    assert biases.predict(torch.tensor([0, 2]), torch.tensor([1, 0])).tolist() == [0, 0]
