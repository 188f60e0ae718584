"""A recommender whose movie vectors are planted, so that its answers can be worked out by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from models.blend import Blend
from models.config import ModelConfig
from preprocessing.dataset import Movies
from recommending.recommender import Recommender


@pytest.fixture
def planted() -> Recommender:
    """Six movies, no users; without history a movie's bias, less two standard errors, is its score in a list, for the
    towers' user vector is zero, and what says as much is the movie's mean."""
    model = Blend(ModelConfig(num_users=0, num_movies=6, num_days=1, stars_low=1, stars_high=5, stars_mean=3,
                                 embedding_dim=2, ensemble_size=1), with_item_based=False).eval()
    tower = model.user_based.movie_tower
    with torch.no_grad():
        vectors = [[1, 0], [3, 1], [0, 2], [-1, 0], [1, 0.1], [1, 1]]
        tower.embedding.copy_(torch.tensor(vectors).unsqueeze(1))
        tower.bias.copy_(torch.tensor([[0.4], [0.3], [0.2], [0.1], [0.9], [0.0]]))
        tower.num_ratings.copy_(torch.tensor([100, 10, 50, 7, 0, 1]))
        tower.mean.copy_(model.stars(tower.bias[:, 0]) - 3)
    movies = Movies(np.array([10, 20, 30, 40, 50, 60], np.int32), np.array([1995, 1986, 1966, 0, 2000, 1984], np.int16),
                    ["Heat", "HEAT", "Good, the Bad and the Ugly, The", "Élan", "Rated by Nobody", "1984"],
                    np.array([100, 10, 50, 7, 0, 1], np.int32))
    nobody = SimpleNamespace(find=lambda user_id: None, has_text_ids=False)  # in place of users.parquet
    return Recommender(model, {"stars_range": [1, 5], "stars_step": 1, "seed": 0, "num_days": 1,
                               "day_epoch": "2000-01-01"}, nobody, movies, None)
