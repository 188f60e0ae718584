import math
from dataclasses import dataclass

import numba
import numpy as np
import pytest
import torch
from sklearn.metrics import mean_absolute_error, ndcg_score, root_mean_squared_error

from training.batches import RatingTensors
from training.metrics import RatingErrors, evaluate_ranking, median, ndcg_and_recall, reciprocal_rank, top_movies


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
    ndcg, recall = ndcg_and_recall(torch.tensor([[False, True, True]]), torch.tensor([4]))
    ideal = 1 + 1 / math.log2(3) + 1 / 2
    assert ndcg.item() == pytest.approx((1 / math.log2(3) + 1 / 2) / ideal)
    assert recall.item() == pytest.approx(2 / 4)


def test_a_list_that_begins_with_all_relevant_movies_has_ndcg_1():
    ndcg, recall = ndcg_and_recall(torch.tensor([[True, True, False, False]]), torch.tensor([2]))
    assert ndcg.item() == pytest.approx(1) and recall.item() == 1


def test_reciprocal_rank_equals_hand_computed_values():
    scores = torch.tensor([[5.0, 4, 3, 2], [1, 2, 2, 2], [-math.inf, 3, 2, 1], [0, 0, 0, 0]])
    row, movie_idx = torch.tensor([0, 0, 1, 1, 2, 3]), torch.tensor([3, 1, 3, 2, 0, 0])
    # First hit at place 2; behind its equal with the lower index, so place 2; no candidate; first of all equal ones.
    assert reciprocal_rank(scores, row, movie_idx).tolist() == [1 / 2, 1 / 2, 0, 1]


def test_equal_scores_keep_the_order_of_movies():
    scores = torch.tensor([[1.0, 2, 1, 2, 1], [0, 0, 0, 0, 0], [3, 1, 2, 1, 1]])
    assert top_movies(scores, 3).tolist() == [[1, 3, 0], [0, 1, 2], [0, 2, 1]]
    many = torch.randint(0, 7, (40, 500)).float()
    assert torch.equal(top_movies(many, 30), many.argsort(dim=1, descending=True, stable=True)[:, :30])


def test_a_list_without_enough_candidates_ends_in_minus_1():
    assert top_movies(torch.tensor([[0.5, -math.inf, 1.0]]), 4).tolist() == [[2, 0, -1, -1]]


def test_median_lies_between_the_middle_numbers():
    assert median(torch.tensor([7, 1, 3])) == 3 and median(torch.tensor([4, 1, 2, 9])) == 3
    assert math.isnan(median(torch.tensor([])))


@dataclass
class Planted:
    """Scores and test ratings, and the same as sorted lists: per user who likes any, hits in the order of the list."""

    scores: torch.Tensor  # float64 (U, M)
    seen: RatingTensors
    test: RatingTensors
    recommendable: torch.Tensor  # bool (M,)
    reference: list[tuple[np.ndarray, np.ndarray]]  # scores without ties and relevance, of candidates and missing hits
    lists: list[np.ndarray]  # the first 10 movies

    def evaluate(self, **options) -> dict[str, float]:
        return evaluate_ranking(lambda users: self.scores[users].clone(), [self.seen], self.test, self.recommendable,
                                batch_size=7, **options)


@pytest.fixture(params=["distinct scores", "ties"])
def planted(request) -> Planted:
    generator = np.random.default_rng(0)
    num_users, num_movies = 25, 90
    scores = generator.permuted(np.tile(np.arange(num_movies), (num_users, 1)), axis=1).astype(np.float64)
    if request.param == "ties":
        scores = scores // 12
    kind = generator.choice(["none", "seen", "liked", "disliked"], (num_users, num_movies), p=[0.6, 0.2, 0.1, 0.1])
    kind[3][kind[3] == "liked"] = "disliked"  # a user without relevant movies
    recommendable = generator.random(num_movies) < 0.9
    test = ratings_of([(u, m, 5 if kind[u, m] == "liked" else 2) for u, m in np.ndindex(*kind.shape)
                       if kind[u, m] in ("liked", "disliked")], num_users)
    seen = ratings_of([(u, m, 5) for u, m in np.ndindex(*kind.shape) if kind[u, m] == "seen"], num_users)
    reference, lists = [], []
    for user in np.flatnonzero((kind == "liked").any(1)):
        # Without ties: of equal scores the lower movie_idx is better. A hit that may not be listed stands last.
        without_ties = np.where(recommendable, scores[user] * num_movies - np.arange(num_movies), -1e6)
        kept = (kind[user] != "seen") & (recommendable | (kind[user] == "liked"))
        reference.append((without_ties[kept], kind[user][kept] == "liked"))
        candidates = np.flatnonzero((kind[user] != "seen") & recommendable)
        lists.append(candidates[np.argsort(-without_ties[candidates])][:10])
    return Planted(torch.from_numpy(scores), seen, test, torch.from_numpy(recommendable), reference, lists)


def test_ranking_equals_scikit_learn_over_all_unseen_movies(planted):
    result = planted.evaluate()
    ndcg = [ndcg_score([relevant], [scores], k=10) for scores, relevant in planted.reference]
    assert len(ndcg) == 24
    assert result["ndcg@10"] == pytest.approx(np.mean(ndcg))
    for k in (10, 50):
        recall = [relevant[np.argsort(-scores)[:k]].sum() / relevant.sum() for scores, relevant in planted.reference]
        assert result[f"recall@{k}"] == pytest.approx(np.mean(recall))
    first = [np.flatnonzero(relevant[np.argsort(-scores)])[0] + 1 for scores, relevant in planted.reference]
    assert result["mrr"] == pytest.approx(np.mean(1 / np.array(first)))


def test_ranking_equals_ranx(planted):
    truth, lists = {}, {}
    for user, (scores, relevant) in enumerate(planted.reference):
        truth[str(user)] = {str(movie): 1 for movie in np.flatnonzero(relevant)}
        lists[str(user)] = {str(movie): score for movie, score in enumerate(scores)}
    names = ["ndcg@10", "recall@10", "recall@50", "mrr"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numba.config, "DISABLE_JIT", True)  # half a minute of compiling, for what is called twice
        ranx = pytest.importorskip("ranx")
        expected = ranx.evaluate(ranx.Qrels(truth), ranx.Run(lists), names)
    result = planted.evaluate()
    assert {name: result[name] for name in names} == pytest.approx(expected)


def test_coverage_and_popularity_are_over_the_listed_movies(planted):
    num_ratings = torch.arange(90) % 14
    result = planted.evaluate(num_ratings=num_ratings)
    listed = np.concatenate(planted.lists)
    assert result["coverage@10"] == pytest.approx(len(set(listed)) / int(planted.recommendable.sum()))
    assert result["median_popularity@10"] == np.median(num_ratings.numpy()[listed])
    assert result["rare@10"] == pytest.approx(np.mean(num_ratings.numpy()[listed] < 5))


def test_movies_that_may_not_be_recommended_are_never_listed():
    test = ratings_of([(0, 1, 5), (0, 2, 5)], 1)
    scores = torch.tensor([[0.0, 3.0, 1.0, 2.0]])
    result = evaluate_ranking(lambda users: scores.clone(), [], test, torch.tensor([True, False, True, False]), k=2)
    assert result == {"ndcg@2": pytest.approx(1 / (1 + 1 / math.log2(3))), "recall@2": 0.5, "recall@50": 0.5,
                      "mrr": 1.0, "coverage@2": 1.0}


def test_ranking_without_relevant_test_ratings_is_nan():
    result = evaluate_ranking(lambda users: torch.zeros(len(users), 3), [], ratings_of([(0, 1, 3)], 1),
                              torch.ones(3, dtype=bool), num_ratings=torch.ones(3))
    assert set(result) == {"ndcg@10", "recall@10", "recall@50", "mrr", "coverage@10", "median_popularity@10", "rare@10"}
    assert all(math.isnan(value) for value in result.values())
