import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

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
    biases = fit_biases(train, num_movies, user_shrink=shrink, movie_shrink=shrink, num_rounds=500)
    dummies = np.concatenate([np.eye(num_users)[pairs[:, 0]], np.eye(num_movies)[pairs[:, 1]]], 1)
    reference = Ridge(alpha=shrink, fit_intercept=False, tol=1e-12).fit(dummies, stars - stars.mean())
    assert biases.mean == pytest.approx(stars.mean())
    np.testing.assert_allclose(np.concatenate([biases.user, biases.movie]), reference.coef_, atol=1e-5)
