"""Split ratings into train, validation and test, by a plan that needs to see only one user at a time.

    probe    test = the pairs of probe.txt: recent ratings of each user, held out by Netflix
    latest   test = each user's last `latest_n` ratings, at most half of them, as Netflix made the probe; a data set
             keeps no order within a day, so of the day where the last ratings begin a random choice is taken
    random   test = each rating with probability `test_fraction`

Validation is cut from what remains, in the same manner. With `probe` and `latest`, some users, chosen at random, give
their latest ratings: all of them, as every user does to test. There are as many such users as `val_fraction` of the
remaining ratings needs. With `random`, each remaining rating is in validation with probability `val_fraction`.

Random numbers are hashes of (seed, user_idx, movie_idx): the split of a rating depends neither on the order of the
input nor on how it was cut into blocks.
"""

from dataclasses import dataclass, field

import numpy as np

from preprocessing.dataset import TEST, TRAIN, VALIDATION, uniform


@dataclass
class SplitPlan:
    """What decides the split of every rating."""

    method: str  # "probe", "latest", "random", or the name of another list of test pairs
    test_fraction: float
    latest_n: int
    val_fraction: float
    seed: int
    val_method: str = "latest"  # "latest" or "random"
    test_pairs: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # sorted, see `pair_keys`
    val_user_fraction: float = 1.0  # of the users, who give their latest ratings to validation

    def limit_validation(self, num_ratings: np.ndarray, num_test: np.ndarray | None = None) -> None:
        """Set `val_user_fraction` from the number of ratings and of test ratings of each user, int64 (U,)."""
        if num_test is None:
            num_test = latest_count(num_ratings, self.latest_n)
        num_remaining = num_ratings - num_test
        num_candidates = latest_count(num_remaining, self.latest_n).sum()
        self.val_user_fraction = float(min(1.0, self.val_fraction * num_remaining.sum() / max(num_candidates, 1)))


def latest_count(num_ratings: np.ndarray, latest_n: int) -> np.ndarray:
    """Return how many of each user's ratings count as their latest: up to `latest_n`, at most half."""
    return np.minimum(num_ratings // 2, latest_n)


def split_users(plan: SplitPlan, user_idx: np.ndarray, movie_idx: np.ndarray, day: np.ndarray,
                test_rows: np.ndarray) -> np.ndarray:
    """Return the split of each rating of some whole users, sorted by user and day.

    Args:
        user_idx, movie_idx, day: integers (R,).
        test_rows: rows of the plan's test pairs, where the method lists such pairs.

    Returns:
        uint8 (R,): TRAIN, VALIDATION or TEST.
    """
    split = np.full(len(user_idx), TRAIN, np.uint8)
    if not len(user_idx):
        return split
    if plan.method == "random":
        draws = uniform(plan.seed, user_idx, movie_idx)
        split[draws < plan.test_fraction + (1 - plan.test_fraction) * plan.val_fraction] = VALIDATION
        split[draws < plan.test_fraction] = TEST
        return split

    starts = np.flatnonzero(np.diff(user_idx, prepend=user_idx[0] - 1))
    num_ratings = np.diff(starts, append=len(user_idx))
    users = user_idx[starts]
    if plan.method == "latest":
        num_latest = latest_count(num_ratings, plan.latest_n)
        split[_latest_rows(plan.seed, user_idx, movie_idx, day, starts, num_ratings, num_latest)] = TEST
    else:
        split[test_rows] = TEST
    remaining = np.flatnonzero(split != TEST)
    if plan.val_method == "random":
        split[remaining[uniform(plan.seed, user_idx[remaining], movie_idx[remaining]) < plan.val_fraction]] = VALIDATION
        return split
    num_remaining = num_ratings - np.add.reduceat(split == TEST, starts, dtype=np.int64)
    num_latest = latest_count(num_remaining, plan.latest_n) * (uniform(plan.seed, users) < plan.val_user_fraction)
    rows = _latest_rows(plan.seed, user_idx[remaining], movie_idx[remaining], day[remaining],
                        np.cumsum(num_remaining) - num_remaining, num_remaining, num_latest)
    split[remaining[rows]] = VALIDATION
    return split


def _latest_rows(seed: int, user_idx: np.ndarray, movie_idx: np.ndarray, day: np.ndarray, starts: np.ndarray,
                 num_ratings: np.ndarray, num_latest: np.ndarray) -> np.ndarray:
    """Return the rows of each user k's latest `num_latest[k]` of `num_ratings[k]` ratings, which begin at `starts[k]`.

    Where the earliest of them shares its day with a rating before it, that day's ratings are chosen at random.
    """
    first = starts + num_ratings - num_latest
    rows = _ranges(first, num_latest)
    first = first[(num_latest > 0) & (num_latest < num_ratings)]
    is_tied = day[first - 1] == day[first]
    if not is_tied.any():
        return rows
    is_latest = np.zeros(len(day), bool)
    is_latest[rows] = True
    day_starts = np.flatnonzero((np.diff(day, prepend=-1) != 0) | (np.diff(user_idx, prepend=-1) != 0))
    tied_days = np.searchsorted(day_starts, first[is_tied], side="right") - 1
    tied_starts = day_starts[tied_days]
    num_tied = np.append(day_starts, len(day))[tied_days + 1] - tied_starts
    tied = _ranges(tied_starts, num_tied)
    order = np.lexsort((uniform(seed, user_idx[tied], movie_idx[tied]), np.repeat(np.arange(len(num_tied)), num_tied)))
    is_latest[tied[order]] = is_latest[tied]  # of each day as many as before
    return np.flatnonzero(is_latest)


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the numbers of all ranges starts[k]:starts[k] + lengths[k], one after the other."""
    return np.repeat(starts - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())
