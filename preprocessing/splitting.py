"""Divide ratings into train, validation and test, from a plan that needs to see only one user at a time.

    probe    test = the pairs of probe.txt: recent ratings of each user, held out by Netflix
    latest   test = each user's last `latest_n` ratings, at most half of them: how the probe was made; of the ratings
             of the day where the last ones begin, whose order a data set does not keep, it takes a random choice
    random   test = each rating with probability `test_fraction`

Validation is cut from what is left in the same manner. For `probe` and `latest` it consists of the latest ratings
of a random share of the users, so large that about `val_fraction` of what is left is in it: those users lose all of
their latest ratings, just as every user does to the test part. For `random` it is `val_fraction` of what is left.

Chance is a hash of (seed, user_idx, movie_idx), so a rating's part depends neither on the order of the input nor on
how it was cut into blocks.
"""

from dataclasses import dataclass, field

import numpy as np

from preprocessing.dataset import TEST, TRAIN, VALIDATION, uniform


@dataclass
class SplitPlan:
    """What decides the part of every rating."""

    method: str  # "probe", "latest", "random", or the name of another list of given test pairs
    test_fraction: float
    latest_n: int
    val_fraction: float
    seed: int
    val_method: str = "latest"  # "latest" or "random"
    test_pairs: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # sorted, see `pair_keys`
    val_user_share: float = 1.0

    def limit_validation(self, num_ratings: np.ndarray, num_test: np.ndarray | None = None) -> None:
        """Set the share of users that give validation ratings, from the users' counts (U,) of all and of test."""
        if num_test is None:
            num_test = latest_count(num_ratings, self.latest_n)
        left = num_ratings - num_test
        candidates = latest_count(left, self.latest_n).sum()
        self.val_user_share = float(min(1.0, self.val_fraction * left.sum() / max(candidates, 1)))


def latest_count(num_ratings: np.ndarray, latest_n: int) -> np.ndarray:
    """Return how many of a user's ratings count as his latest: up to `latest_n`, at most half."""
    return np.minimum(num_ratings // 2, latest_n)


def split_users(plan: SplitPlan, user_idx: np.ndarray, movie_idx: np.ndarray, day: np.ndarray,
                test_rows: np.ndarray) -> np.ndarray:
    """Assign the ratings of some whole users, sorted by user and day, to parts.

    Args:
        user_idx, movie_idx, day: integers (R,).
        test_rows: rows of the plan's given test pairs, where the method has such.

    Returns:
        uint8 (R,): TRAIN, VALIDATION or TEST.
    """
    part = np.full(len(user_idx), TRAIN, np.uint8)
    if not len(user_idx):
        return part
    if plan.method == "random":
        chance = uniform(plan.seed, user_idx, movie_idx)
        part[chance < plan.test_fraction + (1 - plan.test_fraction) * plan.val_fraction] = VALIDATION
        part[chance < plan.test_fraction] = TEST
        return part

    starts = np.flatnonzero(np.diff(user_idx, prepend=user_idx[0] - 1))
    num_ratings = np.diff(starts, append=len(user_idx))
    users = user_idx[starts]
    if plan.method == "latest":
        taken = latest_count(num_ratings, plan.latest_n)
        part[_latest_rows(plan.seed, user_idx, movie_idx, day, starts, num_ratings, taken)] = TEST
    else:
        part[test_rows] = TEST
    left = np.flatnonzero(part != TEST)
    if plan.val_method == "random":
        part[left[uniform(plan.seed, user_idx[left], movie_idx[left]) < plan.val_fraction]] = VALIDATION
        return part
    num_left = num_ratings - np.add.reduceat(part == TEST, starts, dtype=np.int64)
    taken = latest_count(num_left, plan.latest_n) * (uniform(plan.seed, users) < plan.val_user_share)
    rows = _latest_rows(plan.seed, user_idx[left], movie_idx[left], day[left], np.cumsum(num_left) - num_left, num_left,
                        taken)
    part[left[rows]] = VALIDATION
    return part


def _latest_rows(seed: int, user_idx: np.ndarray, movie_idx: np.ndarray, day: np.ndarray, starts: np.ndarray,
                 sizes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the positions of the latest `counts[k]` ratings of each user k, whose rows begin at `starts[k]`.

    Where the row before the first of them is of the same day, which of that day's are taken is a matter of chance.
    """
    first = starts + sizes - counts
    rows = _ranges(first, counts)
    first = first[(counts > 0) & (counts < sizes)]
    torn = day[first - 1] == day[first]
    if not torn.any():
        return rows
    taken = np.zeros(len(day), bool)
    taken[rows] = True
    new_day = np.flatnonzero((np.diff(day, prepend=-1) != 0) | (np.diff(user_idx, prepend=-1) != 0))
    number = np.searchsorted(new_day, first[torn], side="right") - 1
    day_start, day_end = new_day[number], np.append(new_day, len(day))[number + 1]
    tied = _ranges(day_start, day_end - day_start)
    of_day = np.repeat(np.arange(len(day_start)), day_end - day_start)
    shuffled = tied[np.lexsort((uniform(seed, user_idx[tied], movie_idx[tied]), of_day))]
    taken[shuffled] = taken[tied]  # as many as without chance
    return np.flatnonzero(taken)


def _ranges(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the numbers of all ranges starts[k]:starts[k] + sizes[k], one after the other."""
    return np.repeat(starts - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum())
