"""People who are left out of training whole, and the data set of those who stay; for compare_new_users.py."""

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from preprocessing import table_preprocess
from preprocessing.dataset import DataError, movies_frame, read_meta
from preprocessing.synthetic_netflix import latent_mean, star_moments
from recommending.recommender import History, Recommender
from training.batches import DataSet

MOST_LEFT_OUT = 0.1  # of all users, in each of the two sets
LISTED_AT_ONCE = 5  # movies that somebody is asked for, as on the page
MOST_LISTED = 500  # who has not found theirs among so many gives the others in their order


@dataclass
class Person:
    """Somebody left out: what they may give, in the order in which they give it (P), and what they are asked (Q)."""

    given_idx: np.ndarray  # int64 (P,), movies
    given: np.ndarray  # float64 (P,), stars
    asked_idx: np.ndarray  # int64 (Q,)
    asked: np.ndarray  # float64 (Q,)
    expected: np.ndarray  # float64 (Q,), stars by the planted truth; nan without


def given_at_random(own: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Return somebody's ratings in random order."""
    return own.iloc[rng.permutation(len(own))]


def given_earliest(own: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Return somebody's ratings from their first to their last; those of a day at random."""
    return given_at_random(own, rng).sort_values("date", kind="stable")


Order = Callable[[pd.DataFrame, np.random.Generator], pd.DataFrame]
ORDERS: dict[str, Order] = {"random": given_at_random, "earliest": given_earliest}
Asker = Callable[[dict[int, float], list[int]], list[int]]  # what is rated and what is passed -> movies to list next


def ask_popular(data: DataSet, recommender: Recommender) -> Asker:
    """Return an asker for the movies with the most ratings."""
    return _in_order(np.bincount(data.train.movie_idx, minlength=data.num_movies))


def ask_controversial(data: DataSet, recommender: Recommender) -> Asker:
    """Return an asker for the movies with the largest number of ratings times their variance."""
    movie_idx, stars = data.train.movie_idx.numpy(), data.train.stars.numpy().astype(np.float64)
    number, total, squares = (np.bincount(movie_idx, stars**power, data.num_movies) for power in range(3))
    return _in_order(squares - total**2 / number.clip(min=1))


def ask_chosen(data: DataSet, recommender: Recommender) -> Asker:
    """Return an asker for the movies that `rec.py --ask` lists."""
    movie_ids = data.movies.movie_id.tolist()

    def ask(rated: dict[int, float], passed: list[int]) -> list[int]:
        history = recommender.history_from({movie_ids[movie]: stars for movie, stars in rated.items()})
        rows = recommender.ask(history, LISTED_AT_ONCE, passed=[movie_ids[movie] for movie in passed])
        return [recommender.movie_idx_of(row.movie_id) for row in rows]

    return ask


def _in_order(score: np.ndarray) -> Asker:
    order = np.argsort(-score, kind="stable").tolist()
    return lambda rated, passed: order[len(rated) + len(passed):][:LISTED_AT_ONCE]


ASKERS = {"popular": ask_popular, "controversial": ask_controversial, "chosen": ask_chosen}


def given_when_asked(person: Person, ask: Asker) -> tuple[Person, np.ndarray]:
    """Return somebody who gives the same ratings in the order in which they are asked for them, and how many movies
    were listed by then, int64 (P,).

    They rate what they find in a list of some movies, and pass the others; then the next list is made. What they are
    asked in the end stays the same.
    """
    stars, passed, listed = dict(zip(person.given_idx.tolist(), person.given.tolist(), strict=True)), [], []
    rated: dict[int, float] = {}
    while len(rated) < len(stars) and len(passed) + len(rated) < MOST_LISTED and (movies := ask(rated, passed)):
        before = len(rated) + len(passed)
        for number, movie in enumerate(movies, start=before + 1):
            if movie in stars:
                rated[movie] = stars[movie]
                listed.append(number)
            else:
                passed.append(movie)
    order = [*rated, *(movie for movie in stars if movie not in rated)]
    listed += [MOST_LISTED] * (len(order) - len(listed))
    return replace(person, given_idx=np.array(order, np.int64), given=np.array([stars[movie] for movie in order])), \
        np.array(listed)


def all_when_asked(people: list[Person], ask: Asker) -> tuple[list[Person], np.ndarray]:
    """Return `given_when_asked` of people who give equally many ratings: they, and int64 (B, P)."""
    asked, listed = zip(*(given_when_asked(person, ask) for person in people), strict=True)
    return list(asked), np.stack(listed)


def leave_out(ratings: pd.DataFrame, num_users: int, most_given: int, seed: int) -> tuple[list, list]:
    """Return the user_ids of two sets of people with more ratings than are given; the first is of the test.

    Raises:
        DataError: there are no such people.
    """
    number = ratings["user_id"].value_counts().sort_index()
    number = number[number > 0]
    enough = number.index[number > most_given].tolist()
    size = min(num_users, int(MOST_LEFT_OUT * len(number)), len(enough) // 2)
    if not size:
        raise DataError(f"{len(enough):,} of {len(number):,} users have more than {most_given} ratings: too few to "
                        "leave any out; name smaller --sizes")
    order = np.random.default_rng(seed).permutation(len(enough))[:2 * size].tolist()
    left_out = [enough[position] for position in order]
    return left_out[:size], left_out[size:]


def set_apart(data_dir: Path, ratings: pd.DataFrame, num_users: int, most_given: int, seed: int,
              out_dir: Path) -> tuple[list, list]:
    """Return `leave_out`, and write the data set of the people who stay."""
    left_out = leave_out(ratings, num_users, most_given, seed)
    stays = ~ratings["user_id"].isin([*left_out[0], *left_out[1]])
    preprocess_rest(data_dir, ratings[stays], read_meta(data_dir), out_dir, seed)
    return left_out


def history_of(recommender: Recommender, person: Person, size: int) -> History:
    """Return the history of somebody who has given `size` ratings."""
    movie_id = recommender.movies.movie_id[person.given_idx[:size]].tolist()
    return recommender.history_from(dict(zip(movie_id, person.given[:size].tolist(), strict=True)))


def preprocess_rest(data_dir: Path, ratings: pd.DataFrame, meta: dict, out_dir: Path, seed: int) -> None:
    """Write the data set of the people who stay, a twentieth of their ratings being validation and none test."""
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    raw_file, titles_file = (out_dir.parent / name for name in ("ratings.parquet", "titles.csv"))
    plain = {name: ratings[name].astype(ratings[name].cat.categories.dtype) for name in ("user_id", "movie_id")
             if isinstance(ratings[name].dtype, pd.CategoricalDtype)}
    ratings.assign(**plain).to_parquet(raw_file, index=False)
    movies_frame(data_dir)[["movie_id", "title", "year"]].to_csv(titles_file, index=False)
    low, high = meta["stars_range"]
    flags = ["--raw_file", str(raw_file), "--titles_file", str(titles_file), "--out_dir", str(out_dir),
             f"--scale={low}:{high}", "--split", "random", "--test_fraction", "1e-12", "--seed", str(seed)]
    with contextlib.redirect_stdout(io.StringIO()):
        table_preprocess.preprocess(table_preprocess.parse_args(flags))


def people_of(ratings: pd.DataFrame, user_ids: list, data: DataSet, most_given: int, order: str, seed: int,
              truth: dict[str, np.ndarray] | None = None) -> list[Person]:
    """Return what people give and are asked, of movies that have training ratings; who is asked nothing is left out.

    Args:
        ratings: with columns user_id, movie_id, stars, date.
        data: of those who stay.
        most_given: how many ratings may be given.
        order: a name of `ORDERS`.
        truth: see `read_truth`.
    """
    people = []
    for user_id, own in ratings[ratings["user_id"].isin(user_ids)].groupby("user_id", observed=True):
        rng = np.random.default_rng([seed, int.from_bytes(str(user_id).encode(), "big")])
        people.append(_person_of(own, data, most_given, ORDERS[order], rng, truth))
    return [person for person in people if len(person.asked)]


def _person_of(own: pd.DataFrame, data: DataSet, most_given: int, order: Order, rng: np.random.Generator,
               truth: dict[str, np.ndarray] | None) -> Person:
    movie_id = np.array(own["movie_id"].tolist())
    movie_idx = np.searchsorted(data.movies.movie_id, movie_id).clip(max=data.num_movies - 1)
    known = (data.movies.movie_id[movie_idx] == movie_id) & (data.movies.num_train_ratings[movie_idx] > 0)
    own = own.assign(movie_idx=movie_idx, expected=np.nan if truth is None else expected_stars(own, truth))[known]
    own = order(own.sort_values("movie_idx"), rng)
    movie_idx, stars, expected = (own[name].to_numpy(dtype, copy=True) for name, dtype in (
        ("movie_idx", np.int64), ("stars", np.float64), ("expected", np.float64)))
    return Person(movie_idx[:most_given], stars[:most_given], movie_idx[most_given:], stars[most_given:],
                  expected[most_given:])


def read_truth(path: Path) -> dict[str, np.ndarray]:
    """Read planted_truth.npz."""
    if not path.is_file():
        raise DataError(f"{path} not found; python preprocessing/synthetic_netflix.py writes it beside its ratings")
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def expected_stars(own: pd.DataFrame, truth: dict[str, np.ndarray]) -> np.ndarray:
    """Return the stars that are the best prediction of synthetic ratings, float64 (R,)."""
    user, movie = (np.searchsorted(truth[name], np.asarray(own[name])) for name in ("user_id", "movie_id"))
    return star_moments(latent_mean(truth, user, movie), truth["noise_std"])[0]
