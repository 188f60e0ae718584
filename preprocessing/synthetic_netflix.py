"""Write a made-up data set in the raw layout of the Netflix Prize, and the truth that it is drawn from.

    python preprocessing/synthetic_netflix.py                                2 million ratings
    python preprocessing/synthetic_netflix.py --like_netflix --with_probe    100,480,507 ratings, 1.9 GiB
    python preprocessing/synthetic_netflix.py --tastes 64                    with as many finer tastes as real ratings

Writes into --out_dir: combined_data_1..4.txt, movie_titles.csv, probe.txt (--with_probe), planted_truth.npz.
The traps of the original are in: a latin-1 byte, commas and quotes in titles, NULL years, gaps between ids,
titles that nobody rated, lines in no order of user ids, CRLF (--crlf). The same seed gives the same bytes.

The planted model. Six genres sit on a circle, 60 degrees apart; a movie's direction is its genre's, within
9 degrees; a user's taste is a vector in the same plane.

    latent(u, m) = user_mean[u] + movie_quality[m] + movie_year_effect[m] + user_taste[u] . movie_direction[m]
                   + sum over k of user_finer_taste[u, k] movie_finer_trait[m, k]
    star         = latent + noise_std * N(0, 1), rounded and clipped to 1..5

The best prediction of a star is its expectation given latent. So the best reachable RMSE is the root of the
mean variance of star given latent (star_moments), taken over the ratings written. Users rate what they like
more often: the probability of a genre grows with exp(CHOICE * taste . direction), so what users rate shows
their taste. A fan of a genre has a strong taste that points at it, and at most a quarter as many ratings as it
has movies. With --tastes K there are K finer ones, which do not steer what is rated: the k-th makes ratings vary by
FINER_VARIANCE / k^FINER_FALL. They fall such that more coordinates are worth to models about what they are worth on
real ratings (benchmarks/README.md, "A model the size of its data").

planted_truth.npz, for numpy.load without pickle; M rated movies by ascending id, U users by ascending id:
    genre_names (6,) str         movie_id (M,) int32         movie_genre (M,) int8, an index into genre_names
    movie_year (M,) int16, known also where movie_titles.csv says NULL
    movie_quality, movie_year_effect (M,) float32            movie_direction (M, 2) float32
    user_id (U,) int32           user_mean (U,) float32      user_taste (U, 2) float32
    user_finer_taste (U, K) float32, movie_finer_trait (M, K) float32, with --tastes K
    user_is_fan (U,) bool        user_fan_genre (U,) int8, -1 for users who are not fans
    noise_std, best_rmse, best_rmse_latest () float64; the last over each user's latest min(9, n // 2) ratings, of a
    day those of the highest movie numbers
    star_histogram (5,) int64    seed, num_ratings () int64
"""

import argparse
import contextlib
import functools
import math
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import preprocessing  # noqa: F401 - it says what to do where packages are missing, before they are imported

# isort: split
import numpy as np
from tqdm import tqdm

from preprocessing.dataset import DataError, exit_code

NETFLIX_COUNTS = {"num_users": 480_189, "num_movies": 17_770, "num_ratings": 100_480_507}
IDS_PER_USER = 2_649_429 / 480_189  # Netflix's user ids lie in 1..2,649,429
FIRST_DATE, LAST_DATE = np.datetime64("1999-11-11"), np.datetime64("2005-12-31")  # day 0 and day LAST_DAY
LAST_DAY = int((LAST_DATE - FIRST_DATE).astype(int))
OLDEST_YEAR, NEWEST_YEAR = 1896, 2005

GENRES = ("Romance", "Drama", "Thriller", "Horror", "Fantasy", "Comedy")  # neighbours on the circle are alike
GENRE_ANGLE = 2 * np.pi * np.arange(len(GENRES)) / len(GENRES)
NOISE_STD = 0.74  # stars
USER_MEAN, USER_MEAN_STD = 3.02, 0.25  # stars
TASTE_STD = 0.27  # of each coordinate, for users who are not fans
FAN_TASTE, FAN_FRACTION = 1.7, 0.2
FINER_VARIANCE, FINER_FALL = 0.05, 0.85  # of the ratings, by the first of the finer tastes, and how it falls
CHOICE = 2.3  # how much taste steers what a user rates
MIN_ACTIVITY = 24  # ratings of a user, where the counts permit
ACTIVITY_STD = 0.9  # of the logarithm of the ratings beyond MIN_ACTIVITY
RATINGS_PER_SESSION = 8
RECENT, PROBE_FRACTION = 9, 1 / 3  # Netflix cut each user's 9 latest ratings into probe, quiz and test

AT_ONCE = 2**14  # ratings whose finer tastes are in memory at once
CHUNK_RATINGS = 250_000  # users are drawn in chunks of about this many ratings, which bounds the memory
# One int64 holds a rating, so that sorting puts them into file order:
# movie_idx 20 bits, user_idx 26, day 12, star 3, whether it is in the probe 1.
MOVIE_BITS, USER_BITS, DAY_BITS, STAR_BITS = 20, 26, 12, 3

ADJECTIVES = ["Amber", "Bitter", "Borrowed", "Broken", "Burning", "Cold", "Crooked", "Distant", "Empty",
              "Fading", "False", "Forgotten", "Frozen", "Gentle", "Golden", "Hidden", "Hollow", "Last",
              "Lonely", "Lost", "Midnight", "Narrow", "Pale", "Patient", "Quiet", "Restless", "Secret",
              "Silent", "Stolen", "Velvet", "Wild", "Winter"]
NOUNS = ["Anchor", "Balcony", "Bell", "Bridge", "Captain", "Castle", "Circus", "Clock", "Corridor", "Dancer",
         "Doctor", "Ferry", "Fountain", "Garden", "Harbor", "Hotel", "Island", "Journey", "Lantern",
         "Letter", "Library", "Lighthouse", "Mirror", "Mountain", "Orchard", "Painter", "River", "Sailor",
         "Shadow", "Station", "Stranger", "Violin"]


def main(argv=None):
    """Parse the flags, write the data set, print a summary; return the exit code."""
    parser = argparse.ArgumentParser(description="Write a synthetic data set in Netflix's raw layout.",
                                     allow_abbrev=False)
    parser.add_argument("--out_dir", default="data/raw", metavar="DIR",
                        help="folder to write into (default: %(default)s)")
    parser.add_argument("--num_users", type=int, metavar="N", help="users (default: 20000)")
    parser.add_argument("--num_movies", type=int, metavar="N", help="movies with ratings (default: 2000)")
    parser.add_argument("--num_ratings", type=int, metavar="N", help="ratings (default: 2000000)")
    parser.add_argument("--tastes", type=int, default=0, metavar="K",
                        help="finer tastes, beside the two of genres (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="I",
                        help="the same seed gives the same bytes (default: %(default)s)")
    parser.add_argument("--like_netflix", action="store_true",
                        help="as many users, movies and ratings as the Netflix Prize, movie ids without gaps")
    parser.add_argument("--crlf", action="store_true", help="end lines with CR LF, as some copies do")
    parser.add_argument("--with_probe", action="store_true",
                        help="also write probe.txt, a third of each user's latest ratings")
    args = parser.parse_args(argv)
    counts = {name: getattr(args, name) for name in NETFLIX_COUNTS if getattr(args, name) is not None}
    if args.like_netflix and counts:
        parser.error(f"--like_netflix sets all counts; leave out --{next(iter(counts))}")
    work = functools.partial(
        generate, args.out_dir, **(NETFLIX_COUNTS if args.like_netflix else counts), seed=args.seed, crlf=args.crlf,
        with_probe=args.with_probe, quiet=False, contiguous_ids=args.like_netflix, tastes=args.tastes)
    return exit_code(work, args.out_dir)


def generate(out_dir, num_users=20_000, num_movies=2_000, num_ratings=2_000_000, seed=0, crlf=False,
             with_probe=False, quiet=True, contiguous_ids=False, tastes=0):
    """Write the data set into `out_dir`; return the planted truth, a dict of what planted_truth.npz holds.

    The smallest set is 1 user, 1 movie, 1 rating. All traps are in from 20 movies on. There are fans where a
    genre, a sixth of the movies, has four times as many movies as a light user has ratings.

    Raises:
        DataError: counts that cannot be, or `out_dir` holds data that this command did not write.
    """
    started = time.perf_counter()
    out_dir, eol = Path(out_dir), "\r\n" if crlf else "\n"
    _check_counts(num_users, num_movies, num_ratings, seed, tastes)
    _check_folder(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".synthetic_netflix_", dir=out_dir) as folder:
        folder = Path(folder)
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,)))
        truth = {"genre_names": np.array(GENRES), "noise_std": NOISE_STD,
                 "seed": seed, "num_ratings": num_ratings}
        plan = SimpleNamespace()  # what the drawing needs and the truth does not tell
        _plant_movies(truth, plan, num_movies, contiguous_ids, rng)
        _plant_users(truth, plan, num_users, num_movies, num_ratings, rng)
        if tastes:
            _plant_finer_tastes(truth, tastes)
        keys = _draw_ratings(truth, plan, quiet)
        keys.sort()
        truth["star_histogram"] = _write_ratings(folder, keys, truth, eol, with_probe, quiet)
        _write_titles(folder / "movie_titles.csv", truth, plan, eol, rng)
        by_id = np.argsort(truth["user_id"])
        truth.update({name: truth[name][by_id] for name in truth if name.startswith("user_")})
        # The truth marks the folder as ours, so it is moved first. A probe must not outlive its ratings.
        names = ["planted_truth.npz", *sorted(path.name for path in folder.iterdir())]
        np.savez(folder / "planted_truth.npz", **truth)
        (out_dir / "probe.txt").unlink(missing_ok=True)
        for name in names:
            (folder / name).replace(out_dir / name)
    if not quiet:
        _print_summary(out_dir, names, truth, np.sort(plan.count), time.perf_counter() - started)
    return truth


def latent_mean(truth, user_idx, movie_idx):
    """Return the planted mean before noise, rounding and clipping, in stars; indices are the truth's."""
    taste = (truth["user_taste"][user_idx] * truth["movie_direction"][movie_idx]).sum(axis=-1)
    movie = truth["movie_quality"][movie_idx] + truth["movie_year_effect"][movie_idx]
    latent = truth["user_mean"][user_idx] + movie + taste
    if "user_finer_taste" in truth:
        user_idx, movie_idx = np.broadcast_arrays(user_idx, movie_idx)
        for some in range(0, len(latent), AT_ONCE):
            rows = slice(some, some + AT_ONCE)
            latent[rows] += np.einsum("rk,rk->r", truth["user_finer_taste"][user_idx[rows]],
                                      truth["movie_finer_trait"][movie_idx[rows]])
    return latent


def star_moments(latent, noise_std):
    """Return mean and variance of clip(round(latent + noise_std * N(0, 1)), 1, 5).

    The mean is the best prediction of a star; the mean of the variances is the square of the best RMSE.
    Both are interpolated in a table of step 0.005, which is exact to 1e-5.
    """
    grid, mean, variance = _moment_table(float(noise_std))
    return np.interp(latent, grid, mean), np.interp(latent, grid, variance)


@functools.cache
def _moment_table(noise_std):
    grid = np.linspace(-5.0, 11.0, 3_201)
    # above[s - 1] = P(star > s) = P(latent + noise > s + 0.5), for s = 1..4
    above = np.array([[math.erfc((s + 0.5 - x) / (noise_std * math.sqrt(2))) / 2 for x in grid]
                      for s in (1, 2, 3, 4)])
    mean = 1 + above.sum(axis=0)
    square = 1 + (np.array([[3], [5], [7], [9]]) * above).sum(axis=0)  # going past s adds (s + 1)^2 - s^2
    return grid, mean, square - mean ** 2


def _check_counts(num_users, num_movies, num_ratings, seed, tastes):
    counts = {"--num_users": num_users, "--num_movies": num_movies, "--num_ratings": num_ratings}
    for flag, value in counts.items():
        if value < 1:
            raise DataError(f"{flag} {value} is not positive; give at least 1")
    for flag, value in counts.items():
        if value > num_ratings:
            raise DataError(f"--num_ratings {num_ratings} is less than {flag} {value}; give each a rating")
    if num_ratings > num_users * num_movies:
        raise DataError(f"--num_ratings {num_ratings} is more than --num_users {num_users} times "
                        f"--num_movies {num_movies}, and a user rates a movie once; give fewer ratings")
    for flag, bits in (("--num_users", USER_BITS), ("--num_movies", MOVIE_BITS)):
        if counts[flag] >= 1 << bits:
            raise DataError(f"{flag} {counts[flag]} is too large; give less than {1 << bits}")
    if not 0 <= tastes <= 1024:
        raise DataError(f"--tastes {tastes} is outside 0..1024")
    if not 0 <= seed < 1 << 63:
        raise DataError(f"--seed {seed} is outside 0..2^63 - 1")


def _check_folder(out_dir):
    for name in (*(f"combined_data_{i}.txt" for i in (1, 2, 3, 4)), "movie_titles.csv", "probe.txt"):
        if (out_dir / name).exists() and not (out_dir / "planted_truth.npz").exists():
            raise DataError(f"{out_dir / name} was not written by this command (no planted_truth.npz "
                            "is beside it); give another --out_dir")


def _even_quantiles(count, rng):
    """Return 0.5 / count, 1.5 / count, ... in random order: uniform numbers that are spread evenly."""
    return (rng.permutation(count) + 0.5) / count


def _plant_movies(truth, plan, num_movies, contiguous_ids, rng):
    num_unrated = 0 if contiguous_ids else 1 + num_movies // 200
    num_titles = num_movies + num_unrated
    max_id = num_titles if contiguous_ids else num_titles + 1 + num_titles // 8
    plan.title_id = np.sort(rng.choice(max_id, num_titles, replace=False) + 1)

    genre = rng.permutation(num_movies) % len(GENRES)
    angle = GENRE_ANGLE[genre] + rng.uniform(-0.15, 0.15, num_movies)
    age = ((NEWEST_YEAR - OLDEST_YEAR + 1) * _even_quantiles(num_movies, rng) ** 3).astype(int)
    obscurity = _even_quantiles(num_movies, rng)  # 0 for the best known movie, 1 for the least known
    # Known movies are better on average. Quality has bounds, so that a strong taste decides a fan's top ten.
    quality = 0.4 * (1 - 2 * obscurity) + rng.uniform(-1.0, 1.0, num_movies)
    unrated = rng.choice(num_titles, num_unrated, replace=False)
    truth["movie_id"] = np.delete(plan.title_id, unrated).astype(np.int32)
    truth["movie_genre"] = genre.astype(np.int8)
    truth["movie_year"] = (NEWEST_YEAR - age).astype(np.int16)
    truth["movie_quality"] = quality.astype(np.float32)
    truth["movie_year_effect"] = (0.3 * (1 - np.exp(-age / 25))).astype(np.float32)  # old movies please more
    truth["movie_direction"] = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)

    plan.weight = np.sqrt(1 - obscurity) / (obscurity + 0.04) ** 2  # popularity, with a long tail
    new_year = (NEWEST_YEAR - age - 1970).astype("datetime64[Y]").astype("datetime64[D]")
    plan.release_day = np.maximum((new_year - FIRST_DATE).astype(int), 0)
    # Movies laid end to end by genre, each as long as its weight: where they end, and where the genres do.
    plan.by_genre = np.argsort(genre, kind="stable")
    plan.movie_end = np.cumsum(plan.weight[plan.by_genre])
    plan.genre_end = np.append(0, plan.movie_end)[np.cumsum(np.bincount(genre, minlength=len(GENRES)))]


def _plant_users(truth, plan, num_users, num_movies, num_ratings, rng):
    plan.count = _plant_activity(num_users, num_movies, num_ratings, rng)
    is_light = plan.count <= num_movies // len(GENRES) / 4
    is_fan = is_light & (rng.random(num_users) < FAN_FRACTION / max(is_light.mean(), FAN_FRACTION))
    fan_genre = np.where(is_fan, rng.integers(len(GENRES), size=num_users), -1)
    angle = GENRE_ANGLE[fan_genre]
    fan_taste = FAN_TASTE * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    taste = np.where(is_fan[:, None], fan_taste, rng.normal(0, TASTE_STD, (num_users, 2)))
    user_id = rng.choice(int(num_users * IDS_PER_USER), num_users, replace=False) + 1
    truth["user_id"] = user_id.astype(np.int32)
    truth["user_mean"] = rng.normal(USER_MEAN, USER_MEAN_STD, num_users).astype(np.float32)
    truth["user_taste"] = taste.astype(np.float32)
    truth["user_is_fan"] = is_fan
    truth["user_fan_genre"] = fan_genre.astype(np.int8)

    # More users join every year, and most stay. Users who rate much of the catalogue stay until all is released.
    plan.join_day = (LAST_DAY * rng.random(num_users) ** 0.7).astype(int)
    stay = rng.random(num_users) ** 0.3
    plan.last_day = plan.join_day + (stay * (LAST_DAY - plan.join_day + 1)).astype(int)
    plan.last_day[plan.count > 0.3 * num_movies] = LAST_DAY
    # Each movie gets one sure rater, who stays until it is released at least: no movie is without a rating.
    slots = rng.choice(num_ratings, num_movies, replace=False)
    plan.sure_user = np.searchsorted(np.cumsum(plan.count), slots, side="right")
    np.maximum.at(plan.last_day, plan.sure_user, plan.release_day)


def _plant_finer_tastes(truth, number):
    """Draw tastes and traits of which the k-th make ratings vary by FINER_VARIANCE / k^FINER_FALL."""
    rng = np.random.default_rng(np.random.SeedSequence(truth["seed"], spawn_key=(2,)))
    of_each = (FINER_VARIANCE / np.arange(1, number + 1) ** FINER_FALL) ** 0.25  # their product has the variance
    for name, ids in (("user_finer_taste", "user_id"), ("movie_finer_trait", "movie_id")):
        truth[name] = (of_each * rng.standard_normal((len(truth[ids]), number))).astype(np.float32)


def _plant_activity(num_users, num_movies, num_ratings, rng):
    """Return each user's number of ratings: a floor plus a log-normal tail, scaled to the exact sum."""
    floor = max(1.0, min(MIN_ACTIVITY, num_ratings / num_users / 2))
    tail = np.exp(rng.normal(0, ACTIVITY_STD, num_users))
    low, high = -50.0, 50.0  # the logarithm of the scale lies between
    for _ in range(100):
        middle = (low + high) / 2
        activity = np.minimum(floor + math.exp(middle) * tail, num_movies)
        low, high = (middle, high) if activity.sum() < num_ratings else (low, middle)
    total = np.cumsum(activity)
    return np.diff(np.rint(total * (num_ratings / total[-1])).astype(np.int64), prepend=0)


def _draw_ratings(truth, plan, quiet):
    """Return all ratings, packed and unsorted, int64 (num_ratings,); put the best RMSE into the truth."""
    num_users, num_ratings = len(plan.count), truth["num_ratings"]
    step = max(1, CHUNK_RATINGS * num_users // num_ratings)
    chunks = [slice(first, min(first + step, num_users)) for first in range(0, num_users, step)]
    # Random numbers belong to a chunk, not to a thread: the bytes do not depend on the number of cores.
    seeds = [np.random.SeedSequence(truth["seed"], spawn_key=(1, i)) for i in range(len(chunks))]
    keys, done, sums = np.empty(num_ratings, np.int64), 0, np.zeros(4)
    pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1))
    with tqdm(total=num_ratings, unit=" ratings", unit_scale=True, desc="drawing", disable=quiet or None) as bar:
        try:
            draw = functools.partial(_draw_chunk, truth, plan)
            for chunk_keys, chunk_sums in pool.map(draw, chunks, seeds):
                keys[done:done + len(chunk_keys)] = chunk_keys
                done, sums = done + len(chunk_keys), sums + chunk_sums
                bar.update(len(chunk_keys))
        finally:
            pool.shutdown(cancel_futures=True)
    truth["best_rmse"] = math.sqrt(sums[0] / sums[1])
    truth["best_rmse_latest"] = math.sqrt(sums[2] / sums[3]) if sums[3] else math.nan
    return keys


def _draw_chunk(truth, plan, users, seed):
    """Draw all ratings of a slice of users.

    Returns them packed, and [sum of the stars' variances, ratings] over all and over each user's latest.
    """
    rng = np.random.default_rng(seed)
    count = plan.count[users]
    user, movie = _choose_movies(truth, plan, users, rng)
    day = _choose_days(plan, users, user, movie, rng)
    by_time = np.sort((user << DAY_BITS | day) << MOVIE_BITS | movie)  # `user` stays as it is
    day, movie = by_time >> MOVIE_BITS & _mask(DAY_BITS), by_time & _mask(MOVIE_BITS)

    latent = latent_mean(truth, user + users.start, movie)
    star = np.clip(np.rint(latent + NOISE_STD * rng.standard_normal(len(user))), 1, 5).astype(np.int64)
    num_later = np.cumsum(count)[user] - np.arange(len(user)) - 1  # later ratings of the same user
    is_recent = num_later < np.minimum(RECENT, count // 2)[user]
    in_probe = is_recent & (rng.random(len(user)) < PROBE_FRACTION)

    variance = star_moments(latent, NOISE_STD)[1]
    keys = (movie << USER_BITS | user + users.start) << DAY_BITS | day
    return ((keys << STAR_BITS | star) << 1 | in_probe,
            np.array([variance.sum(), len(user), variance[is_recent].sum(), is_recent.sum()]))


def _choose_movies(truth, plan, users, rng):
    """Choose plan.count distinct movies for each user, by weight and taste.

    Returns user, from 0, and movie_idx, both int64 (R,) and sorted by user.
    """
    count, last_day = plan.count[users], plan.last_day[users]
    num_movies = len(plan.weight)
    genre_direction = np.stack([np.cos(GENRE_ANGLE), np.sin(GENRE_ANGLE)])
    liking = np.exp(CHOICE * truth["user_taste"][users] @ genre_direction)  # (users, genres)
    sure_movie = np.flatnonzero((plan.sure_user >= users.start) & (plan.sure_user < users.stop))
    sure = (plan.sure_user[sure_movie] - users.start) << MOVIE_BITS | sure_movie
    chosen = [sure]

    # Users who rate much of the catalogue: each movie arrives after an exponential time, they rate the first `count`
    # (weighted sampling without replacement, Efraimidis and Spirakis 2006).
    for user in np.flatnonzero(count > num_movies // 20):
        arrival = rng.standard_exponential(num_movies) / (liking[user, truth["movie_genre"]] * plan.weight)
        arrival[plan.release_day > last_day[user]] = np.inf
        arrival[sure_movie[plan.sure_user[sure_movie] == user + users.start]] = -1
        chosen.append(user << MOVIE_BITS | np.argpartition(arrival, count[user] - 1)[:count[user]])
    chosen = _distinct(chosen)

    # All other users: draw with replacement, drop what came twice or is not released, draw what is still missing.
    genre_mass = np.cumsum(liking * np.diff(plan.genre_end, prepend=0), axis=1)  # (users, genres)
    genre_start = np.append(0, plan.genre_end[:-1])
    while True:
        missing = count - np.bincount(chosen >> MOVIE_BITS, minlength=len(count))
        if not missing.any():
            return chosen >> MOVIE_BITS, chosen & _mask(MOVIE_BITS)
        user = np.repeat(np.arange(len(count)), missing)
        point = rng.random(len(user)) * genre_mass[user, -1]
        genre = (point[:, None] > genre_mass[user, :-1]).sum(axis=1)
        point = genre_start[genre] + rng.random(len(user)) * (plan.genre_end - genre_start)[genre]
        position = np.searchsorted(plan.movie_end, point, side="right")
        movie = plan.by_genre[np.minimum(position, num_movies - 1)]
        is_released = plan.release_day[movie] <= last_day[user]
        chosen = _distinct([chosen, (user << MOVIE_BITS | movie)[is_released]])


def _choose_days(plan, users, user, movie, rng):
    """Return the day of each rating: one of its user's sessions, none before the movie's release year."""
    count, join_day, last_day = plan.count[users], plan.join_day[users], plan.last_day[users]
    num_sessions = 1 + rng.poisson(count / RATINGS_PER_SESSION)
    end = np.cumsum(num_sessions)
    owner = np.repeat(np.arange(len(count)), num_sessions)
    session_day = join_day[owner] + (rng.random(len(owner)) * (last_day - join_day + 1)[owner]).astype(int)
    session_day[end - 1] = last_day
    session = np.sort(owner << DAY_BITS | session_day)
    start = np.searchsorted(session, user << DAY_BITS | plan.release_day[movie])
    return session[start + (rng.random(len(user)) * (end[user] - start)).astype(int)] & _mask(DAY_BITS)


def _distinct(arrays):
    """Return the sorted distinct numbers of some arrays (np.unique, which hashes, took ten times as long)."""
    numbers = np.sort(np.concatenate(arrays))
    return numbers[np.diff(numbers, prepend=-1) != 0]


def _mask(bits):
    return (1 << bits) - 1


def _write_ratings(folder, keys, truth, eol, with_probe, quiet):
    """Write combined_data_1..4.txt, a quarter of the sorted ratings each, and probe.txt; count the stars."""
    # Each field has a table of its texts. A line is a record of fixed width; the NULs that pad it are deleted.
    user_text = truth["user_id"].astype(f"S{len(str(truth['user_id'].max()))}")
    user_texts, probe_texts = np.char.add(user_text, b","), np.char.add(user_text, eol.encode())
    star_texts = np.array([f"{star}," for star in range(6)], "S2")
    day_texts = np.char.add(np.arange(FIRST_DATE, LAST_DATE + np.timedelta64(1, "D")).astype("S10"), eol.encode())
    record = np.dtype([("user_id", user_texts.dtype), ("star", star_texts.dtype), ("day", day_texts.dtype)])

    num_movies = len(truth["movie_id"])
    bounds = np.searchsorted(keys, np.arange(num_movies + 1) << USER_BITS + DAY_BITS + STAR_BITS + 1)
    file_of = np.minimum(4 * bounds[:-1] // len(keys), 3)  # (M,) which of the four files a movie is in
    histogram = np.zeros(6, np.int64)
    with (contextlib.ExitStack() as stack,
          tqdm(total=len(keys), unit=" ratings", unit_scale=True, desc="writing", disable=quiet or None) as bar):
        files = [stack.enter_context(open(folder / f"combined_data_{i}.txt", "wb")) for i in (1, 2, 3, 4)]
        probe = stack.enter_context(open(folder / "probe.txt", "wb")) if with_probe else None
        for movie_idx, movie_id in enumerate(truth["movie_id"]):
            ratings = keys[bounds[movie_idx]:bounds[movie_idx + 1]]
            user = ratings >> DAY_BITS + STAR_BITS + 1 & _mask(USER_BITS)
            star = ratings >> 1 & _mask(STAR_BITS)
            lines = np.empty(len(ratings), record)
            lines["user_id"] = user_texts[user]
            lines["star"] = star_texts[star]
            lines["day"] = day_texts[ratings >> STAR_BITS + 1 & _mask(DAY_BITS)]
            header = f"{movie_id}:{eol}".encode()
            files[file_of[movie_idx]].write(header + lines.tobytes().translate(None, b"\0"))
            in_probe = ratings & 1 == 1
            if probe and in_probe.any():
                probe.write(header + probe_texts[user[in_probe]].tobytes().translate(None, b"\0"))
            histogram += np.bincount(star, minlength=6)
            bar.update(len(ratings))
    return histogram[1:]


def _write_titles(path, truth, plan, eol, rng):
    """Write MovieID,Year,Title for every title, rated or not, with the traps of the original."""
    num_titles = len(plan.title_id)
    rated = np.searchsorted(plan.title_id, truth["movie_id"])
    genre, year = rng.integers(len(GENRES), size=num_titles), rng.integers(1950, NEWEST_YEAR + 1, num_titles)
    genre[rated], year[rated] = truth["movie_genre"], truth["movie_year"]
    years = year.tolist()
    adjectives, nouns, others = (rng.choice(words, num_titles) for words in (ADJECTIVES, NOUNS, NOUNS))
    patterns = rng.integers(3, size=num_titles)
    names = [(f"The {adj} {noun}", f"{adj} {noun}", f"The {noun} of the {adj} {other}")[pattern]
             for adj, noun, other, pattern in zip(adjectives, nouns, others, patterns, strict=True)]

    few, some = min(7, 1 + num_titles // 20), 1 + num_titles // 50
    trap = rng.permutation(num_titles)
    for i in trap[:few]:
        years[i] = "NULL"
    for i in trap[few:2 * few]:
        names[i] = f'The "{adjectives[i]}" {nouns[i]}'
    for i in trap[2 * few:2 * few + 1]:
        names[i] = f"Caf\u00e9 {nouns[i]}"  # 0xE9 in latin-1, and no valid UTF-8
    for i in trap[2 * few + 1:2 * few + 1 + some]:
        names[i] = f"The {nouns[i]}, the {others[i]}, and the {adjectives[i]} Road"
    with open(path, "w", encoding="latin-1", newline="") as file:
        for i, movie_id in enumerate(plan.title_id):
            file.write(f"{movie_id},{years[i]},{names[i]} ({GENRES[genre[i]]}){eol}")


def _print_summary(out_dir, names, truth, count, elapsed_s):
    histogram = truth["star_histogram"]
    percentages = " / ".join(f"{100 * fraction:.1f}" for fraction in histogram / histogram.sum())
    print(f"{truth['num_ratings']:,} ratings of {len(truth['movie_id']):,} movies by {len(count):,} users, "
          f"{count[0]:,} to {count[-1]:,} each (median {count[len(count) // 2]:,}); "
          f"{truth['user_is_fan'].sum():,} users are fans of one genre")
    print(f"stars 1 to 5: {percentages} percent, mean {histogram @ np.arange(1, 6) / histogram.sum():.3f}")
    print(f"planted noise {truth['noise_std']:.2f} stars; best reachable RMSE {truth['best_rmse']:.4f}, "
          f"over each user's latest ratings {truth['best_rmse_latest']:.4f}")
    print(f"wrote {', '.join(names)} into {out_dir} in {elapsed_s:.1f} s")


if __name__ == "__main__":
    sys.exit(main())
