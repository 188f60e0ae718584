"""Measures of predicted ratings and of ranked lists. Sums are kept in float64 and divided once."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from training.batches import RatingTensors

RELEVANT_STARS = 4  # a test movie with so many stars or more is one that the user likes


@dataclass
class RatingErrors:
    """Sums of errors over ratings; add to them batch by batch, divide once."""

    squared: float = 0.0
    absolute: float = 0.0
    count: int = 0

    def add(self, predicted: torch.Tensor, stars: torch.Tensor) -> None:
        """Add the errors of predicted stars (R,) against given stars (R,)."""
        error = (predicted - stars).double()
        self.squared += float(error.square().sum())
        self.absolute += float(error.abs().sum())
        self.count += len(error)

    @property
    def rmse(self) -> float:
        """Root of the mean squared error, in stars; nan over no ratings."""
        return (self.squared / self.count) ** 0.5 if self.count else float("nan")

    @property
    def mae(self) -> float:
        """Mean absolute error, in stars; nan over no ratings."""
        return self.absolute / self.count if self.count else float("nan")


def ndcg_and_recall(ranked: torch.Tensor, relevant: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Score ranked lists with binary relevance.

    NDCG@k = sum over hits at rank i of 1 / log2(i + 1), over the same sum for a list that begins with all relevant
    movies (Jarvelin and Kekalainen 2002); Recall@k = hits / number of relevant movies.

    Args:
        ranked: int64 (B, k), movies best first; -1 where a list is shorter.
        relevant: for each of the B users, the movies that count as hits, at least one.

    Returns:
        NDCG@k and Recall@k per user, float64 (B,) each.
    """
    k = ranked.shape[1]
    discount = 1 / torch.arange(2, k + 2, dtype=torch.float64).log2()
    hits = torch.stack([torch.isin(row, movies) for row, movies in zip(ranked.cpu(), relevant, strict=True)])
    sizes = torch.tensor([len(movies) for movies in relevant])
    ideal = discount.cumsum(0)[sizes.clamp(max=k) - 1]
    return (hits * discount).sum(1) / ideal, hits.sum(1).double() / sizes


def evaluate_ranking(score_users: Callable[[torch.Tensor], torch.Tensor], seen: list[RatingTensors],
                     test: RatingTensors, recommendable: torch.Tensor, k: int = 10, stars_step: float = 1,
                     max_users: int = 20_000, batch_size: int = 256) -> dict[str, float]:
    """Rank all movies that a user has not seen and measure the top k against his test ratings.

    Args:
        score_users: maps user_idx int64 (B,) to scores (B, M).
        seen: parts of the data whose movies are left out of the user's list.
        test: the held-out ratings; of them those of RELEVANT_STARS and more are to be found.
        recommendable: bool (M,), the movies that may be in a list.
        max_users: with more users than this, a fixed sample of them is measured.

    Returns:
        "ndcg@k", "recall@k" and "coverage@k" (the share of recommendable movies in any list), nan without users.
    """
    liked = test.stars.float() * stars_step >= RELEVANT_STARS
    users = torch.unique(test.user_idx()[liked]).cpu()
    if len(users) > max_users:
        users = users[torch.randperm(len(users), generator=torch.Generator().manual_seed(0))[:max_users]].sort().values
    if not len(users):
        return dict.fromkeys((f"ndcg@{k}", f"recall@{k}", f"coverage@{k}"), float("nan"))
    ndcg, recall, listed = [], [], torch.zeros(len(recommendable), dtype=torch.bool)
    for batch in users.split(batch_size):
        scores = score_users(batch.to(recommendable.device)).masked_fill(~recommendable, -torch.inf)
        relevant = []
        for row, user in enumerate(batch.tolist()):
            for part in seen:
                scores[row, part.movie_idx[part.offset[user]:part.offset[user + 1]].long()] = -torch.inf
            of_user = slice(test.offset[user], test.offset[user + 1])
            relevant.append(test.movie_idx[of_user][liked[of_user]].long().cpu())
        best, ranked = scores.topk(min(k, scores.shape[1]))
        ranked = ranked.masked_fill(best == -torch.inf, -1).cpu()
        ranked = torch.nn.functional.pad(ranked, (0, k - ranked.shape[1]), value=-1)
        for values, new in zip((ndcg, recall), ndcg_and_recall(ranked, relevant), strict=True):
            values.append(new)
        listed[ranked[ranked >= 0]] = True
    return {f"ndcg@{k}": float(torch.cat(ndcg).mean()), f"recall@{k}": float(torch.cat(recall).mean()),
            f"coverage@{k}": float(listed.sum() / recommendable.sum())}
