"""What people with odd ratings are told: nothing beyond what the training users have shown.

The bounds are taken from the training ratings of the data set, not from the model: the means of its users, how widely
a user's ratings scatter around what their movies get from everybody, and the movies that most dislike.
"""

import numpy as np
import pytest
import torch

from models.config import ModelConfig
from models.two_tower import TwoTower
from preprocessing.dataset import ratings_frame
from recommending.one_user import OneUserTower
from recommending.recommender import Filters, Recommender

NUM_MOVIES = 17_770  # of Netflix


@pytest.fixture(scope="module")
def recommender(run_dir, data_dir) -> Recommender:
    return Recommender.load(run_dir, data_dir)


@pytest.fixture(scope="module")
def shown(data_dir):
    """Training ratings: their stars, each user's mean, each movie's, and each one's distance from its movie's mean."""
    frame = ratings_frame(data_dir)
    frame = frame[frame["split"] == "train"]
    frame["of_movie"] = frame.groupby("movie_id", observed=True)["stars"].transform("mean")
    return frame


def all_predicted(recommender: Recommender, ratings: dict[int, float]) -> np.ndarray:
    """Return the stars predicted of every movie that the person has not rated."""
    rest = [movie_id for movie_id in recommender.movies.movie_id.tolist() if movie_id not in ratings]
    return recommender.predict(recommender.history_from(ratings), rest)


def most_rated(recommender: Recommender, number: int) -> list[int]:
    return [row.movie_id for row in recommender.popular(number)]


@pytest.mark.parametrize("number", [1, 5, 20, 60])
@pytest.mark.parametrize("stars", [1, 5])
def test_who_gives_the_same_stars_to_all_is_predicted_no_further_out_than_any_training_user(recommender, shown, stars,
                                                                                           number):
    """The mean prediction lies between what it is for nobody and the stars given, and, for as few ratings as say
    little, not beyond the mean of the strictest or the kindest user; the more ratings, the nearer to the stars."""
    ratings = dict.fromkeys(most_rated(recommender, number), stars)
    predicted, of_nobody = all_predicted(recommender, ratings), all_predicted(recommender, {})
    assert predicted.min() >= 1 and predicted.max() <= 5
    toward = np.sign(stars - 3)
    assert toward * predicted.mean() > toward * of_nobody.mean()
    of_users = shown.groupby("user_id", observed=True)["stars"].mean()
    outermost = of_users.min() if stars == 1 else of_users.max()
    if number <= 5:
        assert toward * predicted.mean() < toward * outermost
    fewer = dict.fromkeys(most_rated(recommender, max(number // 3, 1)), stars)
    if len(fewer) < number:
        assert toward * predicted.mean() > toward * all_predicted(recommender, fewer).mean()


@pytest.mark.parametrize("stars", [1, 5])
def test_one_rating_moves_predictions_by_less_than_ratings_scatter(recommender, shown, stars):
    """A rating tells of a person about what it tells of the training users who gave such a one: on average they lie
    less than half of a rating's own deviation from everybody."""
    scatter = float((shown["stars"] - shown["of_movie"]).std())
    rest = recommender.movies.movie_id.tolist()
    of_nobody = recommender.predict(recommender.history_from({}), rest)
    for movie_id in rest[::7]:
        moved = recommender.predict(recommender.history_from({movie_id: stars}), rest) - of_nobody
        assert np.abs(np.delete(moved, rest.index(movie_id))).max() < scatter
        assert abs(moved.mean()) < scatter / 2


def test_ratings_that_contradict_each_other_say_less_than_either(recommender):
    """Stars 1 and 5 for the two movies that are most alike."""
    one = most_rated(recommender, 1)[0]
    other = recommender.similar(one, 1)[0].movie_id
    rest = [movie_id for movie_id in recommender.movies.movie_id.tolist() if movie_id not in (one, other)]

    def moved(ratings: dict[int, float]) -> float:
        of_nobody = recommender.predict(recommender.history_from({}), rest)
        return float(np.abs(recommender.predict(recommender.history_from(ratings), rest) - of_nobody).mean())

    both = moved({one: 1, other: 5})
    assert both < moved({one: 1, other: 1}) and both < moved({one: 5, other: 5})


@pytest.mark.parametrize("stars", [1, 5])
@pytest.mark.parametrize("number", [1, 4])
def test_no_list_opens_with_what_nearly_all_dislike(recommender, shown, number, stars):
    """Whatever somebody has given the same stars to, the ten best are of the better half of the movies."""
    of_movie = shown.groupby("movie_id", observed=True)["stars"].mean()
    middle = of_movie.median()
    for start in range(0, 40, 8):
        ratings = dict.fromkeys(most_rated(recommender, start + number)[start:], stars)
        best = [row.movie_id for row in recommender.recommend(recommender.history_from(ratings), 5)]
        assert of_movie[best].mean() > middle
        assert of_movie[best[0]] > of_movie.quantile(0.25)


def test_who_has_rated_every_movie_is_predicted_their_own_mean(recommender, shown):
    """Nothing is left to recommend; of the movies that they know the predictions' mean is that of their stars, but for
    less than the means of users differ by."""
    rng = np.random.default_rng(0)
    for highest in (3, 6):
        ratings = {movie_id: int(rng.integers(1, highest)) for movie_id in recommender.movies.movie_id.tolist()}
        history = recommender.history_from(ratings)
        assert recommender.recommend(history) == []
        rows = recommender.recommend(history, len(ratings), Filters(min_ratings=0, include_seen=True))
        assert len(rows) == len(ratings)
        apart = np.mean([row.stars for row in rows]) - np.mean([row.rated for row in rows])
        assert abs(apart) < shown.groupby("user_id", observed=True)["stars"].mean().std()


def test_seventeen_thousand_ratings_fold_in_to_a_finite_vector():
    """The most that a Netflix user gave are 17,653 of 17,770 movies."""
    config = ModelConfig(num_users=1, num_movies=NUM_MOVIES, num_days=2243, stars_low=1, stars_high=5, stars_mean=3.6,
                         embedding_dim=256)
    model = TwoTower(config).eval()
    rng = np.random.default_rng(0)
    movie_idx = rng.permutation(NUM_MOVIES)[:17_653]
    with torch.no_grad():
        tower, of_movies = OneUserTower(model, model.movie_table()), model.movie_vectors(2242).numpy()
    days = np.sort(rng.integers(0, 2243, len(movie_idx)))
    for stars in (np.full(len(movie_idx), 5.0), np.full(len(movie_idx), 1.0), rng.integers(1, 6, len(movie_idx))):
        vector = tower.vector(tower.fold_in(None, movie_idx, stars.astype(np.float32), days), days, 2242)
        assert np.isfinite(vector).all()
        predicted = 1 + 4 / (1 + np.exp(-(of_movies @ vector).astype(np.float64)))
        assert abs(predicted[movie_idx].mean() - stars.mean()) < 0.5
