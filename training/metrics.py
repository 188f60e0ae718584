"""Measures of predicted ratings and of ranked lists. Sums are kept in float64 and divided once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from models.ops.ranks import ALONE, Ranks
from models.ops.threads import in_threads
from training.batches import RatingTensors, batch_of

RELEVANT = 0.75  # how far up the scale a rating says that the user likes the movie: 4 of 1 to 5 stars
RARE_RATINGS = 5  # a movie with fewer training ratings is rare


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


def relevant_stars(low: float, high: float) -> float:
    """Return the stars from which on a rating on a scale says that the user likes the movie.

    A hair less, so that rounding does not keep a rating out that is the bound: a step is 1 / 256 of the scale at least.
    """
    return low + (RELEVANT - 1e-4) * (high - low)


def ndcg_and_recall(hits: torch.Tensor, num_relevant: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Score ranked lists with binary relevance.

    NDCG@k = sum over hits at rank i of 1 / log2(i + 1), over the same sum for a list that begins with all relevant
    movies (Jarvelin and Kekalainen 2002); Recall@k = hits / number of relevant movies.

    Args:
        hits: bool (B, k), whether the movie at each rank of a list is relevant, best first.
        num_relevant: int64 (B,), relevant movies of each of the B users, listed or not; at least one.

    Returns:
        NDCG@k and Recall@k per user, float64 (B,) each.
    """
    k = hits.shape[1]
    discount = 1 / torch.arange(2, k + 2, dtype=torch.float64, device=hits.device).log2()
    ideal = discount.cumsum(0)[num_relevant.clamp(max=k) - 1]
    return (hits * discount).sum(1) / ideal, hits.sum(1).double() / num_relevant


def reciprocal_rank(scores: torch.Tensor, row: torch.Tensor, movie_idx: torch.Tensor) -> torch.Tensor:
    """Return 1 / rank of the best relevant movie among all candidates, 0 where none is one; float64 (B,).

    Args:
        scores: float (B, M), -inf where a movie is no candidate. Of equal scores the lower movie_idx comes first.
        row, movie_idx: int64 (R,), the relevant movies as pattern of row and movie.
    """
    num_movies, found = scores.shape[1], scores[row, movie_idx]
    best = scores.new_full((len(scores),), -torch.inf).scatter_reduce(0, row, found, "amax")  # (B,)
    first = movie_idx.where(found == best[row], num_movies)
    first = first.new_full((len(scores),), num_movies).scatter_reduce(0, row, first, "amin").unsqueeze(1)  # (B, 1)
    ahead = scores > best.unsqueeze(1)
    ahead |= (scores == best.unsqueeze(1)) & (torch.arange(num_movies, device=scores.device) < first)
    return (1 / (1 + ahead.sum(1, dtype=torch.int32).double())).masked_fill(best == -torch.inf, 0)


def top_movies(scores: torch.Tensor, k: int) -> torch.Tensor:
    """Return the k best movies of each row, int64 (B, k), -1 where a list is shorter.

    Of equal scores the lower movie_idx comes first, and a score of -inf is no candidate.
    """
    size = min(k, scores.shape[1])
    best, ranked = scores.topk(min(k + 1, scores.shape[1]))  # one more: it shows a tie across the end of the list
    tied = (best[:, 1:] == best[:, :-1]).any(1)  # topk leaves the order of equal scores open
    ranked[tied, :size] = scores[tied].argsort(dim=1, descending=True, stable=True)[:, :size]
    ranked = ranked[:, :size].masked_fill(best[:, :size] == -torch.inf, -1)
    return torch.nn.functional.pad(ranked, (0, k - size), value=-1)


def evaluate_ranking(score_users: Callable[[torch.Tensor], torch.Tensor], seen: list[RatingTensors],
                     test: RatingTensors, recommendable: torch.Tensor, k: int = 10, long_k: int = 50,
                     num_ratings: torch.Tensor | None = None, stars_step: float = 1,
                     stars_range: Sequence[float] = (1, 5), max_users: int = 20_000,
                     batch_size: int = 256, ranks: Ranks = ALONE) -> dict[str, float]:
    """Rank all movies that a user has not seen and measure the list against their test ratings.

    Measured are the users who like a test movie; what is averaged counts each of them once.

    Args:
        score_users: maps user_idx int64 (B,) to scores float (B, M), which are then overwritten.
        seen: splits whose movies are left out of the user's list.
        test: the held-out ratings; of them those of `relevant_stars` and more are to be found.
        recommendable: bool (M,), the movies that may be in a list.
        long_k: length of the list that the second recall is of, at least k.
        num_ratings: (M,), training ratings of the movies; where given, the lists' popularity is measured.
        max_users: with more users than this, a fixed sample of them is measured.
        ranks: the other processes, each of which has the ratings of its own users, and measures these.

    Returns:
        "ndcg@k", "recall@k", "recall@long_k"; "mrr", the mean of 1 / rank of the first hit among all candidates;
        "coverage@k", the fraction of recommendable movies in any list; with num_ratings also, over all lines of
        all lists of k, "median_popularity@k", their movies' training ratings, and "rare@k", the fraction of movies with
        fewer than RARE_RATINGS. Of equal scores the lower movie_idx comes first. All nan without users.
    """
    measures: dict[str, list[torch.Tensor]] = {name: [] for name in (f"ndcg@{k}", f"recall@{k}", f"recall@{long_k}",
                                                                     "mrr")}
    popularity = ("median_popularity", "rare") if num_ratings is not None else ()
    relevant_from = relevant_stars(*stars_range)
    liked = test.stars.float() * stars_step >= relevant_from
    users = test.user_idx()[liked].cpu().unique_consecutive()
    by_rank = ranks.numbers(len(users))
    num_users, before = sum(by_rank), sum(by_rank[:ranks.rank])
    if num_users > max_users:
        drawn = torch.randperm(num_users, generator=torch.Generator().manual_seed(0))[:max_users].sort().values - before
        users, num_users = users[drawn[(drawn >= 0) & (drawn < len(users))]], max_users
    if not num_users:
        return dict.fromkeys((*measures, f"coverage@{k}", *(f"{name}@{k}" for name in popularity)), float("nan"))
    device, counts = recommendable.device, torch.zeros(len(recommendable), dtype=torch.int64)
    excluded = (~recommendable).nonzero().squeeze(1)

    @torch.no_grad()
    def measure(block: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        scores = score_users(block.to(device))
        scores[:, excluded] = -torch.inf
        for split in seen:
            known = batch_of(split, block.to(split.offset.device))
            scores[known.row.to(device), known.movie_idx.to(device)] = -torch.inf
        held_out = batch_of(test, block.to(test.offset.device), stars_step)
        to_find = held_out.stars >= relevant_from
        row, movie_idx = held_out.row[to_find].to(device), held_out.movie_idx[to_find].to(device)
        relevant = torch.zeros(scores.shape, dtype=torch.bool, device=device)
        relevant[row, movie_idx] = True
        ranked = top_movies(scores, long_k)
        hits = relevant.gather(1, ranked.clamp(min=0)) & (ranked >= 0)
        num_relevant = torch.bincount(row, minlength=len(block))
        listed = ranked[:, :k]
        return [*ndcg_and_recall(hits[:, :k], num_relevant), ndcg_and_recall(hits, num_relevant)[1],
                reciprocal_rank(scores, row, movie_idx)], listed[listed >= 0].cpu()

    for values, listed in in_threads([partial(measure, block) for block in users.split(batch_size)]):
        for name, value in zip(measures, values, strict=True):
            measures[name].append(value)
        counts += torch.bincount(listed, minlength=len(counts))
    sums = torch.stack([torch.cat([counts.new_zeros(0).double(), *(value.cpu() for value in values)]).sum()
                        for values in measures.values()])
    ranks.sum_(sums, counts)
    results = dict(zip(measures, (sums / num_users).tolist(), strict=True))
    results[f"coverage@{k}"] = float((counts > 0).sum() / recommendable.sum())
    if num_ratings is not None:
        popularity_of_lines = num_ratings.cpu().repeat_interleave(counts)
        results[f"median_popularity@{k}"] = median(popularity_of_lines)
        results[f"rare@{k}"] = float((popularity_of_lines < RARE_RATINGS).double().mean())
    return results


def median(values: torch.Tensor) -> float:
    """Return the median of numbers (N,), between two middle ones their mean; nan of none."""
    ordered = values.double().sort().values
    return float((ordered[(len(values) - 1) // 2] + ordered[len(values) // 2]) / 2) if len(values) else float("nan")
