"""A data set in memory, and batches of users cut from it.

Ratings lie in flat tensors in user order (compressed sparse rows): what a user rated is one slice, and a batch is a
set of users with all of their ratings. No Dataset, no DataLoader and no Python per rating.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from models.ops import backend
from models.ops.ranks import ALONE, Ranks
from models.ops.rating_pattern import counts
from models.two_tower import Target
from models.user_tower import Context
from preprocessing import dataset
from preprocessing.dataset import SPLITS, TEST, TRAIN, VALIDATION, DataError, Movies, Ratings, Users

CONTEXT_FRACTION = 0.5  # of a user's ratings in a step
SIZE_SALT = 1 << 45  # makes the draw of a context's size another than that of what is in it
BLOCK_RATINGS, BLOCK_USERS = 2**15, 4096  # at once, about, where nothing is learned


@dataclass
class RatingTensors:
    """Ratings of one split (train, validation or test), in user order; R ratings, U users, of a rank its own."""

    offset: torch.Tensor  # int64 (U + 1,): user first_user + u has ratings offset[u]:offset[u + 1]
    movie_idx: torch.Tensor  # int16 or int32 (R,)
    stars: torch.Tensor  # uint8 (R,), in steps of the data set's `stars_step`
    day: torch.Tensor  # int16 or int32 (R,)
    first_user: int = field(default=0, kw_only=True)

    def __len__(self) -> int:
        return len(self.stars)

    def to(self, device: torch.device) -> "RatingTensors":
        """Return the same ratings on a device."""
        return replace(self, offset=self.offset.to(device), movie_idx=self.movie_idx.to(device),
                       stars=self.stars.to(device), day=self.day.to(device))

    @property
    def owned(self) -> tuple[int, int]:
        """The first user whose ratings these are, and the one after the last."""
        return self.first_user, self.first_user + len(self.offset) - 1

    def users(self) -> torch.Tensor:
        """Return the users whose ratings these are, int64 (U,)."""
        return torch.arange(*self.owned, device=self.offset.device)

    def rated_users(self) -> torch.Tensor:
        """Return those of them who have any, int64."""
        return self.offset.diff().nonzero().squeeze(1) + self.first_user

    def positions(self, users: torch.Tensor) -> torch.Tensor:
        """Return where some of the users, int64 (B,), stand among them."""
        return users - self.first_user if self.first_user else users

    def user_idx(self) -> torch.Tensor:
        """Return the user of each rating, int64 (R,)."""
        return self.users().repeat_interleave(self.offset.diff(), output_size=len(self))


@dataclass
class DataSet:
    """A processed data set: its description, its catalogues, and its ratings by split; of a rank, its own users'."""

    data_dir: Path
    meta: dict
    users: Users
    movies: Movies
    train: RatingTensors
    validation: RatingTensors
    test: RatingTensors

    @property
    def num_users(self) -> int:
        """U, of all ranks."""
        return self.meta["num_users"]

    @property
    def num_movies(self) -> int:
        """M."""
        return len(self.movies.movie_id)

    @property
    def last_day(self) -> int:
        """The day of the newest rating, as of which recommendations are made."""
        return self.meta["num_days"] - 1


@dataclass
class Batch:
    """Some users (B) with ratings of theirs (R), in user order."""

    users: torch.Tensor  # int64 (B,): user_idx
    row: torch.Tensor  # int64 (R,): which of the batch's users gave the rating
    movie_idx: torch.Tensor  # int64 (R,)
    stars: torch.Tensor  # float32 (R,)
    day: torch.Tensor  # int64 (R,)

    def subset(self, chosen: torch.Tensor) -> "Batch":
        """Return the same users with the ratings that a mask (R,) or positions choose."""
        if chosen.dtype == torch.bool:
            chosen = chosen.nonzero().squeeze(1)
        return Batch(self.users, *(getattr(self, name).index_select(0, chosen)
                                   for name in ("row", "movie_idx", "stars", "day")))

    def of_rows(self, chosen: torch.Tensor) -> "Batch":
        """Return the users that a mask (B,) chooses, with all of their ratings."""
        kept = chosen.index_select(0, self.row)
        ratings = self if kept.all() else self.subset(kept)
        row = (chosen.cumsum(0) - 1).index_select(0, ratings.row)
        return Batch(self.users[chosen], row, ratings.movie_idx, ratings.stars, ratings.day)

    def context(self) -> Context:
        """Return the ratings as what is known."""
        return Context(self.row, self.movie_idx, self.stars, self.day)

    def target(self) -> Target:
        """Return the ratings as what is asked for."""
        return Target(self.row, self.movie_idx, self.day)


def load_dataset(data_dir: Path, ranks: Ranks = ALONE, with_validation: bool = False) -> DataSet:
    """Read a processed data set into memory, about 5 bytes a rating; of many ranks, each reads its users' ratings.

    Users keep their indices; nothing is kept of those of other ranks. `with_validation` counts validation ratings as
    training ratings, for what comes after validation has chosen: all that is known before the test.

    Raises:
        DataError: the data set is missing or damaged, or its files do not belong together.
    """
    meta = dataset.read_meta(data_dir)
    movies, file = dataset.read_movies(data_dir), dataset.RatingsFile(data_dir)
    users, first_user, num_users = _read_users(data_dir, ranks, len(file))
    if (num_users, len(movies.movie_id), len(file)) != tuple(
            meta[name] for name in ("num_users", "num_movies", "num_ratings")):
        raise DataError(f"the files in {data_dir} do not belong together; run: {dataset.PREPROCESS}")
    types = {name: file.schema.field(name).type.to_pandas_dtype() for name in ("movie_idx", "stars", "day")}
    if with_validation:
        sizes = meta["split"]
        meta["split"] = {**sizes, "num_train": sizes["num_train"] + sizes["num_validation"], "num_validation": 0}
    rows = slice(*users.offset[[0, -1]].tolist())
    totals = [meta["split"][f"num_{name}"] for name in SPLITS]  # of all ranks; what is not filled takes no memory
    columns = [{name: np.empty(total, dtype) for name, dtype in types.items()} for total in totals]
    counts = np.zeros((len(SPLITS), len(users.user_id)), np.int64)
    counted_as = np.array([TRAIN, TRAIN if with_validation else VALIDATION, TEST], np.uint8)
    filled = [0, 0, 0]
    for ratings in _read_ahead(file.read_rows(rows)):
        split_of_rating = counted_as[ratings.split]
        for split in range(len(SPLITS)):
            chosen = np.flatnonzero(split_of_rating == split)
            target = slice(filled[split], filled[split] + len(chosen))
            for name, column in columns[split].items():
                column[target] = getattr(ratings, name)[chosen]
            if len(chosen):
                user_idx = ratings.user_idx[chosen] - first_user
                counts[split, user_idx[0]:user_idx[-1] + 1] += np.bincount(user_idx - user_idx[0])
            filled[split] = target.stop
    if filled != totals and ranks.size == 1:
        raise DataError(f"the files in {data_dir} do not belong together; run: {dataset.PREPROCESS}")
    splits = [RatingTensors(torch.from_numpy(np.concatenate([[0], np.cumsum(counts[split])])),
                            *(torch.from_numpy(column[:filled[split]]) for column in columns[split].values()),
                            first_user=first_user)
              for split in range(len(SPLITS))]
    return DataSet(data_dir, meta, users, movies, *splits)


def _read_users(data_dir: Path, ranks: Ranks, num_ratings: int) -> tuple[Users, int, int]:
    """Return this rank's users, the first of them, and the number of all; `num_ratings` is that of all."""
    if ranks.size == 1:
        users = dataset.read_users(data_dir)
        return users, 0, len(users.user_id)
    first_user, num_users, ids, offsets, end = 0, 0, [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], 0
    for users in dataset.UsersFile(data_dir).read_groups():
        first, last = np.searchsorted(users.offset[:-1], ranks.bounds(num_ratings))
        if first < last:
            ids.append(users.user_id[first:last].copy())
            offsets.append(users.offset[first:last].copy())
            end = users.offset[last]
        first_user, num_users = first_user + int(first), num_users + len(users.user_id)
    return Users(np.concatenate(ids[1:] or ids), np.concatenate([*offsets, [end]])), first_user, num_users


def movie_range(data: DataSet, ranks: Ranks = ALONE) -> tuple[int, int]:
    """Return the first movie of this rank and the one after its last: the ranks have about equally many ratings."""
    return ranks.user_range(np.concatenate([[0], np.cumsum(data.movies.num_train_ratings, dtype=np.int64)]))


def by_movie(data: DataSet, ranks: Ranks = ALONE) -> RatingTensors:
    """Return the training ratings with the roles swapped, of a rank those of its movies, see `movie_range`.

    "Users" of the result are the movies, its `movie_idx` are user_idx, ascending within a movie. Many ranks read the
    whole data set again for it, and keep what is theirs.
    """
    first, last = movie_range(data, ranks)
    train = data.train
    user_idx, movie_idx, stars, day = ([train.user_idx().int(), train.movie_idx, train.stars, train.day]
                                       if ranks.size == 1 else _of_movies(data, first, last))
    movie_idx = movie_idx.long()
    order, count = movie_idx.argsort(stable=True), torch.bincount(movie_idx - first, minlength=last - first)
    offset = torch.cat([torch.zeros(1, dtype=torch.int64), count.cumsum(0)])
    return RatingTensors(offset, user_idx[order], stars[order], day[order], first_user=first)


def _of_movies(data: DataSet, first: int, last: int) -> list[torch.Tensor]:
    """Read the training ratings of a range of movies, with those of validation where the data set counts them among
    these: user_idx, movie_idx, stars and day."""
    file, parts = dataset.RatingsFile(data.data_dir), []
    is_training = np.array([True, not data.meta["split"]["num_validation"], False])  # TRAIN, VALIDATION, TEST
    for ratings in _read_ahead(file.read_rows(slice(0, len(file)))):
        is_own = (ratings.movie_idx >= first) & (ratings.movie_idx < last)
        chosen = np.flatnonzero(is_own & is_training[ratings.split])
        parts.append([getattr(ratings, name)[chosen] for name in ("user_idx", "movie_idx", "stars", "day")])
    user_idx, *others = (torch.from_numpy(np.concatenate(column)) for column in zip(*parts, strict=True))
    return [user_idx.int(), *others]


def _read_ahead(groups: Iterator[Ratings]) -> Iterator[Ratings]:
    """Yield row groups while a thread decodes the next one."""
    with ThreadPoolExecutor(1) as background:
        waiting = background.submit(next, groups, None)
        while (ratings := waiting.result()) is not None:
            waiting = background.submit(next, groups, None)
            yield ratings


def blocks_of(users: torch.Tensor, ratings: RatingTensors, larger: int = 1) -> list[torch.Tensor]:
    """Divide users, int64 (B,), into blocks of about BLOCK_RATINGS ratings, or of BLOCK_USERS where these have few; or
    so many times larger ones."""
    cost = ratings.offset.diff().cpu()[ratings.positions(users).cpu()] + BLOCK_RATINGS // BLOCK_USERS
    block = (cost.cumsum(0) - cost) // (larger * BLOCK_RATINGS)
    return list(users.split(block.unique_consecutive(return_counts=True)[1].tolist())) if len(users) else []


def batch_of(ratings: RatingTensors, users: torch.Tensor, stars_step: float = 1, total: int | None = None) -> Batch:
    """Return the given users, int64 (B,), with all of their ratings; `total` is their number, where it is known."""
    position = ratings.positions(users)
    start = ratings.offset[position]
    count = ratings.offset[position + 1] - start
    total = int(count.sum()) if total is None else total
    row = torch.arange(len(users), device=users.device).repeat_interleave(count, output_size=total)
    position = torch.arange(total, device=users.device) + (start - count.cumsum(0) + count).index_select(0, row)
    movie_idx, stars, day = (getattr(ratings, name).index_select(0, position) for name in ("movie_idx", "stars", "day"))
    stars = stars.float()
    return Batch(users, row, movie_idx.long(), stars if stars_step == 1 else stars * stars_step, day.long())


def in_context_of(batch: Batch, seed: int, any_size: float = 0.0, fraction: float = CONTEXT_FRACTION) -> torch.Tensor:
    """Draw which ratings of a batch are context in a step of an epoch, bool (R,): a fraction of each user's, about.

    Args:
        any_size: probability of a user to have a context of any size instead, from none of their ratings to all, small
            ones as often as large ones: the logarithm of its size + 1 is uniform.
    """
    users, fractions = batch.users, torch.full((len(batch.users),), fraction, device=batch.row.device)
    if any_size:
        chance, count = uniform(seed ^ SIZE_SALT, users), counts(batch.row, len(users)).to(fractions.dtype)
        size = torch.expm1(chance / any_size * (count + 1).log())
        fractions = torch.where(chance < any_size, size / count.clamp(min=1), fractions)
    return (uniform(seed, users.index_select(0, batch.row), batch.movie_idx)
            < fractions.index_select(0, batch.row))


def uniform(seed: int, *columns: torch.Tensor) -> torch.Tensor:
    """Hash whole numbers, int64 (R,), to numbers in [0, 1), float32: random numbers that depend on ids and not on who
    draws them (see preprocessing/dataset/hashing.py).

    The seed is hashed first: with seeds that follow each other, users would else only exchange their numbers.
    """
    hashed_seed = int(dataset.hash_ids(0, np.array([seed])).view(np.int64)[0])
    return backend.of_device(columns[0].device).uniform(hashed_seed, *columns)
