import math

import numpy as np
import pytest
import torch
from sklearn.metrics import mean_absolute_error, ndcg_score, root_mean_squared_error

from training.batches import RatingTensors
from training.metrics import RatingErrors, evaluate_ranking, ndcg_and_recall


def ratings_of(rows: list[tuple[int, int, int]], num_users: int) -> RatingTensors:
    """Make a part from (user_idx, movie_idx, stars), sorted by user."""
    users, movies, stars = (torch.tensor(column) for column in zip(*rows, strict=True)) if rows else (
        torch.zeros(0, dtype=torch.int64),) * 3
    offset = torch.nn.functional.pad(torch.bincount(users, minlength=num_users).cumsum(0), (1, 0))
    return RatingTensors(offset, movies.to(torch.int16), stars.to(torch.uint8), torch.zeros_like(movies))


def test_rmse_and_mae_equal_hand_computed_values():
    errors = RatingErrors()
    errors.add(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 4.0]))
    errors.add(torch.tensor([5.0]), torch.tensor([4.0]))
    assert errors.rmse == pytest.approx(math.sqrt((4 + 0 + 1) / 3))
    assert errors.mae == pytest.approx((2 + 0 + 1) / 3)


def test_rmse_and_mae_equal_scikit_learn():
    predicted, stars = torch.rand(1000) * 4 + 1, torch.randint(1, 6, (1000,)).float()
    errors = RatingErrors()
    for part in torch.arange(1000).split(77):
        errors.add(predicted[part], stars[part])
    assert errors.rmse == pytest.approx(root_mean_squared_error(stars, predicted), rel=1e-6)
    assert errors.mae == pytest.approx(mean_absolute_error(stars, predicted), rel=1e-6)


def test_errors_over_no_ratings_are_nan():
    assert math.isnan(RatingErrors().rmse) and math.isnan(RatingErrors().mae)


def test_ndcg_and_recall_equal_hand_computed_values():
    ndcg, recall = ndcg_and_recall(torch.tensor([[7, 3, 5]]), [torch.tensor([3, 5, 8, 9])])
    ideal = 1 + 1 / math.log2(3) + 1 / 2
    assert ndcg.item() == pytest.approx((1 / math.log2(3) + 1 / 2) / ideal)
    assert recall.item() == pytest.approx(2 / 4)


def test_a_list_that_begins_with_all_relevant_movies_has_ndcg_1():
    ndcg, recall = ndcg_and_recall(torch.tensor([[2, 0, 5, -1]]), [torch.tensor([0, 2])])
    assert ndcg.item() == pytest.approx(1) and recall.item() == 1


def test_ranking_equals_scikit_learn_over_all_unseen_movies():
    generator = np.random.default_rng(0)
    num_users, num_movies = 25, 60
    scores = torch.from_numpy(generator.random((num_users, num_movies)))
    kind = generator.choice(["none", "seen", "liked", "disliked"], (num_users, num_movies), p=[0.6, 0.2, 0.1, 0.1])
    test = ratings_of([(u, m, 5 if kind[u, m] == "liked" else 2) for u in range(num_users) for m in range(num_movies)
                       if kind[u, m] in ("liked", "disliked")], num_users)
    seen = ratings_of([(u, m, 3) for u in range(num_users) for m in range(num_movies) if kind[u, m] == "seen"],
                      num_users)
    result = evaluate_ranking(lambda users: scores[users].clone(), [seen], test, torch.ones(num_movies, dtype=bool))
    expected_ndcg, expected_recall = [], []
    for user in range(num_users):
        unseen = kind[user] != "seen"
        relevant = (kind[user] == "liked")[unseen]
        if relevant.any():
            expected_ndcg.append(ndcg_score([relevant], [scores[user, torch.from_numpy(unseen)].numpy()], k=10))
            best = np.argsort(-scores[user, torch.from_numpy(unseen)].numpy())[:10]
            expected_recall.append(relevant[best].sum() / relevant.sum())
    assert result["ndcg@10"] == pytest.approx(np.mean(expected_ndcg))
    assert result["recall@10"] == pytest.approx(np.mean(expected_recall))


def test_movies_that_may_not_be_recommended_are_never_listed():
    test = ratings_of([(0, 1, 5), (0, 2, 5)], 1)
    scores = torch.tensor([[0.0, 3.0, 1.0, 2.0]])
    result = evaluate_ranking(lambda users: scores.clone(), [], test, torch.tensor([True, False, True, False]), k=2)
    assert result == {"ndcg@2": pytest.approx(1 / (1 + 1 / math.log2(3))), "recall@2": 0.5, "coverage@2": 1.0}


def test_ranking_without_relevant_test_ratings_is_nan():
    result = evaluate_ranking(lambda users: torch.zeros(len(users), 3), [], ratings_of([(0, 1, 3)], 1),
                              torch.ones(3, dtype=bool))
    assert math.isnan(result["ndcg@10"])
