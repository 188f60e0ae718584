"""Write a made-up data set in the raw layout of the Netflix Prize, with the truth it was drawn from.

    python preprocessing/synthetic_netflix.py                                  2 million ratings
    python preprocessing/synthetic_netflix.py --like_netflix --with_probe      100,480,507 ratings, 2.0 GiB

Writes into --out_dir: combined_data_1..4.txt, movie_titles.csv, probe.txt (--with_probe) and planted_truth.npz.
The traps of the originals are in: a latin-1 byte, commas and quotes in titles, NULL years, ids with gaps, titles that
nobody rated, a title that occurs twice, user ids in no order, CRLF (--crlf). The same seed gives the same bytes.

The planted model. Six genres sit on a circle, 60 degrees apart; a movie's direction is its genre's, a few degrees off.

    latent(u, m) = user_mean[u] + movie_quality[m] + movie_year_effect[m] + user_taste[u] . movie_direction[m]
    star         = latent + noise_std * standard normal, rounded and clipped to 1..5

The best prediction of a star is its expectation given latent, so the best reachable RMSE is the root of the mean variance
of star given latent (`star_moments`), taken over the ratings written: best_rmse. A user rates genres he likes more often
(P(genre) grows with exp(CHOICE * taste . direction)), so which movies he chose says much about his taste. A fan of a genre
has a strong taste that points at it, and has rated at most a quarter of its movies.

planted_truth.npz, read with numpy.load (no pickle); M movies in order of movie_id, U users in order of user_id:
    genre_names (6,) str             movie_id (M,) int32              movie_genre (M,) int8, index into genre_names
    movie_year (M,) int16, known also where movie_titles.csv says NULL
    movie_quality, movie_year_effect (M,) float32                     movie_direction (M, 2) float32
    user_id (U,) int32               user_mean (U,) float32           user_taste (U, 2) float32
    user_is_fan (U,) bool            user_fan_genre (U,) int8, -1 for those who are no fans
    and scalars: noise_std, best_rmse, best_rmse_latest (over each user's latest min(9, n // 2) ratings) float64,
    seed, num_ratings int64; star_histogram (5,) int64.
"""

import argparse
import math
import os
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from tqdm import tqdm

NETFLIX_SIZES = {"num_users": 480_189, "num_movies": 17_770, "num_ratings": 100_480_507}
NETFLIX_MAX_USER_ID = 2_649_429
FIRST_DATE, LAST_DATE = np.datetime64("1999-11-11"), np.datetime64("2005-12-31")
LAST_DAY = int((LAST_DATE - FIRST_DATE).astype(int))  # days are counted from FIRST_DATE
OLDEST_YEAR, NEWEST_YEAR = 1896, 2005

GENRES = ("Romance", "Drama", "Thriller", "Horror", "Fantasy", "Comedy")  # neighbours on the circle are alike
NOISE_STD = 0.78  # stars
USER_MEAN, USER_MEAN_STD = 3.04, 0.28
TASTE_STD = 0.30  # each of the two coordinates, users who are no fans
FAN_TASTE, FAN_SHARE = 1.15, 0.20
CHOICE = 2.3  # how much taste steers what a user rates
ACTIVITY_STD = 0.9  # of the logarithm of a user's number of ratings above MIN_ACTIVITY
MIN_ACTIVITY = 24
RATINGS_PER_SESSION = 8
RECENT, PROBE_SHARE = 9, 1 / 3  # Netflix cut each user's 9 latest ratings into probe, quiz and test

CHUNK_RATINGS = 1_000_000  # users are drawn in chunks of about this many ratings: it bounds memory
# One int64 holds a rating: movie_idx 20 bits, user_idx 26, day 12, star 3, in the probe 1. Sorted, it is in file order.
MOVIE_BITS, USER_BITS, DAY_BITS, STAR_BITS = 20, 26, 12, 3

ADJECTIVES = ["Amber", "Ancient", "Bitter", "Black", "Blue", "Borrowed", "Brave", "Broken", "Burning", "Cold", "Crooked", "Curious", "Distant", "Empty", "Endless", "Fading", "Fallen", "False", "Forgotten", "Frozen", "Gentle", "Golden", "Green", "Hidden", "Hollow", "Hungry", "Idle", "Iron", "Last", "Late", "Little", "Lonely", "Long", "Lost", "Lucky", "Midnight", "Narrow", "Northern", "Open", "Pale", "Paper", "Patient", "Quiet", "Red", "Restless", "Rusty", "Second", "Secret", "Silent", "Silver", "Slow", "Sleeping", "Stolen", "Strange", "Summer", "Sudden", "Tender", "Thin", "Velvet", "Wandering", "White", "Wild", "Winter", "Wooden"]
NOUNS = ["Anchor", "Apple", "Balcony", "Bell", "Bicycle", "Bridge", "Candle", "Captain", "Carnival", "Castle", "Circus", "Clock", "Compass", "Corridor", "Cousin", "Dancer", "Doctor", "Door", "Engine", "Ferry", "Fiddle", "Forest", "Fountain", "Garden", "Gardener", "Ghost", "Harbor", "Hotel", "House", "Island", "Journey", "Kingdom", "Ladder", "Lantern", "Letter", "Library", "Lighthouse", "Map", "Market", "Mirror", "Moon", "Mountain", "Neighbor", "Oracle", "Orchard", "Painter", "Parade", "Pilot", "Promise", "River", "Road", "Sailor", "School", "Shadow", "Song", "Station", "Stranger", "Teacher", "Theater", "Train", "Valley", "Violin", "Visitor", "Window"]


def main(argv=None):
    """Parse the flags, write the data set, print a summary; return the exit code."""
    parser = argparse.ArgumentParser(description="Write a synthetic data set in Netflix's raw layout.", allow_abbrev=False)
    parser.add_argument("--out_dir", type=Path, default=Path("data/raw"), help="folder to write (default data/raw)")
    parser.add_argument("--num_users", type=int, help="users (default 20000)")
    parser.add_argument("--num_movies", type=int, help="rated movies (default 2000)")
    parser.add_argument("--num_ratings", type=int, help="ratings (default 2000000)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same bytes (default 0)")
    parser.add_argument("--like_netflix", action="store_true", help="the sizes of the Netflix Prize, movie ids without gaps")
    parser.add_argument("--crlf", action="store_true", help="end lines with CR LF, as some copies in the wild do")
    parser.add_argument("--with_probe", action="store_true", help="write probe.txt, cut from each user's latest ratings")
    args = parser.parse_args(argv)
    sizes = {name: getattr(args, name) for name in NETFLIX_SIZES if getattr(args, name) is not None}
    if args.like_netflix:
        if sizes:
            parser.error(f"--like_netflix sets the sizes itself; leave out --{next(iter(sizes))}")
        sizes = NETFLIX_SIZES
    try:
        generate(args.out_dir, **sizes, seed=args.seed, crlf=args.crlf, with_probe=args.with_probe,
                 contiguous_ids=args.like_netflix, quiet=False)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def generate(out_dir, num_users=20_000, num_movies=2_000, num_ratings=2_000_000, seed=0, crlf=False,
             with_probe=False, quiet=True, contiguous_ids=False):
    """Write the data set into `out_dir` and return the planted truth, a dict of the arrays of planted_truth.npz.

    The smallest set is 1 user, 1 movie and 1 rating; all traps are in from 20 movies on, and fans need genres with four
    times as many movies as a light user has ratings. Raises ValueError for sizes that cannot be, FileExistsError where
    `out_dir` holds data that this command did not write.
    """
    started = time.perf_counter()
    out_dir = Path(out_dir)
    _check_sizes(num_users, num_movies, num_ratings, seed)
    _check_files(out_dir)

    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,)))
    truth, plan = {"genre_names": np.array(GENRES), "noise_std": NOISE_STD}, SimpleNamespace()
    _plant_movies(truth, plan, num_movies, contiguous_ids, rng)
    _plant_users(truth, plan, num_users, num_movies, num_ratings, rng)
    keys = _draw_ratings(truth, plan, seed, num_ratings, quiet)
    keys.sort()
    truth.update(seed=seed, num_ratings=num_ratings, star_histogram=_count_stars(keys))

    out_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".synthetic_netflix_", dir=out_dir) as tmp_dir:
        tmp_dir, eol = Path(tmp_dir), "\r\n" if crlf else "\n"
        _write_combined_data(tmp_dir, keys, truth, eol, quiet)
        _write_titles(tmp_dir / "movie_titles.csv", truth, plan, eol, rng)
        if with_probe:
            _write_probe(tmp_dir / "probe.txt", keys[keys & 1 == 1], truth, eol)
        truth = _sort_users(truth)
        np.savez(tmp_dir / "planted_truth.npz", **truth)
        # The truth marks the folder as ours, so it goes first; a probe of an earlier run must not outlive its ratings.
        os.replace(tmp_dir / "planted_truth.npz", out_dir / "planted_truth.npz")
        (out_dir / "probe.txt").unlink(missing_ok=True)
        names = sorted(path.name for path in tmp_dir.iterdir())
        for name in names:
            os.replace(tmp_dir / name, out_dir / name)
    if not quiet:
        _print_summary(out_dir, [*names, "planted_truth.npz"], truth, plan, time.perf_counter() - started)
    return truth


def latent_mean(truth, user_idx, movie_idx):
    """Return the planted latent mean, in stars before noise and rounding, of index pairs into the truth's arrays."""
    taste = (truth["user_taste"][user_idx] * truth["movie_direction"][movie_idx]).sum(axis=-1)
    return (truth["user_mean"][user_idx] + truth["movie_quality"][movie_idx]
            + truth["movie_year_effect"][movie_idx] + taste)


def star_moments(latent, noise_std):
    """Return mean and variance of clip(round(latent + noise_std * N(0, 1)), 1, 5), interpolated in a table of step 0.005.

    The mean is the best prediction of a star; the mean of the variances is the square of the best RMSE.
    """
    grid = np.linspace(-5.0, 11.0, 3_201)
    # P(star > s) = P(noise > s + 0.5 - latent); star = 1 + the number of thresholds 1.5, 2.5, 3.5, 4.5 passed.
    above = np.array([[0.5 * math.erfc((s + 0.5 - x) / (noise_std * math.sqrt(2))) for x in grid] for s in (1, 2, 3, 4)])
    mean = 1 + above.sum(axis=0)
    variance = (np.array([[1], [3], [5], [7]]) * above).sum(axis=0) - (mean - 1) ** 2  # E[k^2] = sum (2 s - 1) P(k >= s)
    return np.interp(latent, grid, mean), np.interp(latent, grid, variance)


def _check_sizes(num_users, num_movies, num_ratings, seed):
    for name, value in (("users", num_users), ("movies", num_movies), ("ratings", num_ratings)):
        if value < 1:
            raise ValueError(f"--num_{name} {value} is not positive; give at least 1")
    if num_ratings > num_users * num_movies:
        raise ValueError(f"--num_ratings {num_ratings} is more than --num_users {num_users} x --num_movies {num_movies} "
                         f"= {num_users * num_movies}; a user rates a movie once")
    for name, value in (("users", num_users), ("movies", num_movies)):
        if num_ratings < value:
            raise ValueError(f"--num_ratings {num_ratings} is less than --num_{name} {value}; each needs one rating")
    if num_users >= 1 << USER_BITS or num_movies >= 1 << MOVIE_BITS:
        raise ValueError(f"--num_users {num_users} or --num_movies {num_movies} is too large; "
                         f"the limits are {(1 << USER_BITS) - 1} and {(1 << MOVIE_BITS) - 1}")
    if seed < 0:
        raise ValueError(f"--seed {seed} is negative; give 0 or more")


def _check_files(out_dir):
    if (out_dir / "planted_truth.npz").exists():
        return
    names = [f"combined_data_{i}.txt" for i in (1, 2, 3, 4)] + ["movie_titles.csv", "probe.txt"]
    for path in (out_dir / name for name in names):
        if path.exists():
            raise FileExistsError(f"{path} was not written by this command (no planted_truth.npz beside it); "
                                  "give another --out_dir")


def _shuffled_quantiles(size, rng):
    """Return the numbers 0.5/size, 1.5/size, ... in random order: a uniform sample whose histogram is exact."""
    return (rng.permutation(size) + 0.5) / size


def _plant_movies(truth, plan, num_movies, contiguous_ids, rng):
    num_unrated = 0 if contiguous_ids else 1 + num_movies // 200
    num_titles = num_movies + num_unrated
    max_id = num_titles if contiguous_ids else num_titles + num_titles // 8 + 1
    plan.title_id = np.sort(rng.choice(max_id, num_titles, replace=False) + 1)
    truth["movie_id"] = np.delete(plan.title_id, rng.choice(num_titles, num_unrated, replace=False)).astype(np.int32)

    genre = rng.permutation(num_movies) % len(GENRES)
    angle = 2 * np.pi * genre / len(GENRES) + rng.uniform(-0.15, 0.15, num_movies)
    year = NEWEST_YEAR - ((NEWEST_YEAR - OLDEST_YEAR + 1) * _shuffled_quantiles(num_movies, rng) ** 3).astype(int)
    unpopularity = _shuffled_quantiles(num_movies, rng)  # 0 for the best known movie, 1 for the least known
    # Popular movies are better on average. The bounds on quality let a strong taste decide a fan's whole top ten.
    quality = 0.4 * (1 - 2 * unpopularity) + rng.uniform(-0.9, 0.9, num_movies)
    truth["movie_genre"] = genre.astype(np.int8)
    truth["movie_year"] = year.astype(np.int16)
    truth["movie_quality"] = quality.astype(np.float32)
    truth["movie_year_effect"] = (0.3 * (1 - np.exp((year - NEWEST_YEAR) / 25))).astype(np.float32)  # old movies please
    truth["movie_direction"] = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)

    plan.movie_weight = np.sqrt(1 - unpopularity) / (unpopularity + 0.04) ** 2  # a long tail that ends near nothing
    new_year = (year - 1970).astype("datetime64[Y]").astype("datetime64[D]")
    plan.release_day = np.maximum((new_year - FIRST_DATE).astype(int), 0)


def _plant_users(truth, plan, num_users, num_movies, num_ratings, rng):
    user_id = rng.choice(math.ceil(num_users * NETFLIX_MAX_USER_ID / NETFLIX_SIZES["num_users"]), num_users, replace=False)
    plan.count = _plant_activity(num_users, num_movies, num_ratings, rng)

    is_light = plan.count <= num_movies / len(GENRES) / 4
    is_fan = is_light & (rng.random(num_users) < FAN_SHARE / max(is_light.mean(), FAN_SHARE))
    fan_genre = np.where(is_fan, rng.integers(len(GENRES), size=num_users), -1)
    fan_angle = 2 * np.pi * fan_genre / len(GENRES)
    taste = rng.normal(0, TASTE_STD, (num_users, 2))
    taste[is_fan] = FAN_TASTE * np.stack([np.cos(fan_angle), np.sin(fan_angle)], axis=1)[is_fan]
    truth["user_id"] = (user_id + 1).astype(np.int32)
    truth["user_mean"] = rng.normal(USER_MEAN, USER_MEAN_STD, num_users).astype(np.float32)
    truth["user_taste"] = taste.astype(np.float32)
    truth["user_is_fan"] = is_fan
    truth["user_fan_genre"] = fan_genre.astype(np.int8)

    # More users join every year; most stay. Whoever rates much of the catalogue was there when its last movie came out.
    plan.join_day = (LAST_DAY * rng.random(num_users) ** 0.5).astype(int)
    stay = rng.random(num_users) ** 0.3
    plan.last_day = plan.join_day + (stay * (LAST_DAY - plan.join_day + 1)).astype(int)
    plan.last_day[plan.count > 0.3 * num_movies] = LAST_DAY
    # Each movie gets one rater in advance, so that none has no rating; he stays at least until it is released.
    slot = rng.choice(num_ratings, num_movies, replace=False)
    plan.sure_user = np.searchsorted(np.cumsum(plan.count), slot, side="right")
    np.maximum.at(plan.last_day, plan.sure_user, plan.release_day)


def _plant_activity(num_users, num_movies, num_ratings, rng):
    """Return each user's number of ratings: a floor plus a log-normal tail, scaled to the exact sum."""
    floor = max(1.0, min(MIN_ACTIVITY, num_ratings / num_users / 2))
    tail = np.exp(rng.normal(0, ACTIVITY_STD, num_users))
    low, high = -30.0, 30.0  # bounds of the logarithm of the scale, halved until they meet
    for _ in range(100):
        middle = (low + high) / 2
        activity = np.minimum(floor + math.exp(middle) * tail, num_movies)
        low, high = (middle, high) if activity.sum() < num_ratings else (low, middle)
    total = np.cumsum(activity)
    return np.diff(np.rint(total * (num_ratings / total[-1])).astype(np.int64), prepend=0)


def _draw_ratings(truth, plan, seed, num_ratings, quiet):
    """Draw all ratings, chunk by chunk of users; return them packed, and put the best RMSE into the truth."""
    keys = np.empty(num_ratings, np.int64)
    in_genre_order = np.argsort(truth["movie_genre"], kind="stable")
    plan.in_genre_order = in_genre_order
    plan.weight_end = np.cumsum(plan.movie_weight[in_genre_order])
    sizes = np.bincount(truth["movie_genre"], minlength=len(GENRES))
    plan.genre_end = np.append(0, plan.weight_end)[np.cumsum(sizes)]
    chunk_users = max(1, CHUNK_RATINGS * len(plan.count) // num_ratings)
    done, sums = 0, np.zeros(4)
    with tqdm(total=num_ratings, unit=" ratings", unit_scale=True, desc="drawing", disable=quiet) as bar:
        for chunk, first in enumerate(range(0, len(plan.count), chunk_users)):
            rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1, chunk)))
            users = slice(first, min(first + chunk_users, len(plan.count)))
            chunk_keys, chunk_sums = _draw_chunk(truth, plan, users, rng)
            keys[done:done + len(chunk_keys)] = chunk_keys
            done, sums = done + len(chunk_keys), sums + chunk_sums
            bar.update(len(chunk_keys))
    truth["best_rmse"] = math.sqrt(sums[0] / sums[1])
    truth["best_rmse_latest"] = math.sqrt(sums[2] / sums[3]) if sums[3] else math.nan
    return keys


def _draw_chunk(truth, plan, users, rng):
    """Draw all ratings of a slice of users.

    Returns packed keys and [sum of variances, ratings] over all ratings and over each user's latest ones.
    """
    count = plan.count[users]
    user, movie = _choose_movies(truth, plan, users, rng)
    day = _choose_days(plan, users, user, movie, rng)
    by_time = np.sort((user << DAY_BITS | day) << MOVIE_BITS | movie)  # user stays sorted, his days and movies move
    movie, day = by_time & ((1 << MOVIE_BITS) - 1), by_time >> MOVIE_BITS & ((1 << DAY_BITS) - 1)

    latent = latent_mean(truth, user + users.start, movie)
    star = np.clip(np.rint(latent + NOISE_STD * rng.standard_normal(len(user))), 1, 5).astype(np.int64)
    variance = star_moments(latent, NOISE_STD)[1]
    later = np.cumsum(count)[user] - np.arange(len(user)) - 1  # how many of the user's ratings are later than this one
    is_recent = later < np.minimum(RECENT, count // 2)[user]
    in_probe = is_recent & (rng.random(len(user)) < PROBE_SHARE)

    keys = movie << USER_BITS | (user + users.start)
    keys = ((keys << DAY_BITS | day) << STAR_BITS | star) << 1 | in_probe
    return keys, np.array([variance.sum(), len(user), variance[is_recent].sum(), is_recent.sum()])


def _choose_movies(truth, plan, users, rng):
    """Choose plan.count distinct movies for each user by weight and taste; return (user, movie), sorted, user from 0."""
    count, last_day = plan.count[users], plan.last_day[users]
    angle = 2 * np.pi * np.arange(len(GENRES)) / len(GENRES)
    liking = np.exp(CHOICE * truth["user_taste"][users] @ np.stack([np.cos(angle), np.sin(angle)]))  # (users, genres)
    is_sure = (plan.sure_user >= users.start) & (plan.sure_user < users.stop)
    sure_user, sure_movie = plan.sure_user[is_sure] - users.start, np.flatnonzero(is_sure)

    # Who rates much of the catalogue: weighted sampling without replacement, the first `count` of exponential arrivals.
    is_dense = count > len(plan.movie_weight) // 20
    row = np.cumsum(is_dense) - 1
    arrival = rng.standard_exponential((is_dense.sum(), len(plan.movie_weight)), dtype=np.float32)
    arrival /= liking[is_dense][:, truth["movie_genre"]] * plan.movie_weight
    arrival[plan.release_day > last_day[is_dense][:, None]] = np.inf
    arrival[row[sure_user[is_dense[sure_user]]], sure_movie[is_dense[sure_user]]] = -1
    chosen = [sure_user << MOVIE_BITS | sure_movie]
    for user, times in zip(np.flatnonzero(is_dense), arrival, strict=True):
        chosen.append(user << MOVIE_BITS | np.argpartition(times, count[user] - 1)[:count[user]])
    chosen = _distinct(chosen)

    # Everyone else: draw with replacement, drop what is drawn twice or not yet released, draw again what is missing.
    genre_mass = liking * np.diff(plan.genre_end, prepend=0)
    genre_mass = (np.cumsum(genre_mass, axis=1) / genre_mass.sum(axis=1, keepdims=True))[:, :-1]
    while True:
        missing = count - np.bincount(chosen >> MOVIE_BITS, minlength=len(count))
        if not missing.any():
            return chosen >> MOVIE_BITS, chosen & ((1 << MOVIE_BITS) - 1)
        user = np.repeat(np.arange(len(count)), missing)
        genre = (rng.random((len(user), 1)) > genre_mass[user]).sum(axis=1)
        start, end = np.append(0, plan.genre_end)[genre], plan.genre_end[genre]
        place = np.searchsorted(plan.weight_end, start + (end - start) * rng.random(len(user)), side="right")
        movie = plan.in_genre_order[np.minimum(place, len(plan.weight_end) - 1)]
        released = plan.release_day[movie] <= last_day[user]
        chosen = _distinct([chosen, (user << MOVIE_BITS | movie)[released]])


def _distinct(parts):
    """Return the sorted distinct numbers of some arrays (np.unique, which hashes, takes ten times as long here)."""
    numbers = np.sort(np.concatenate(parts))
    return numbers[np.diff(numbers, prepend=-1) != 0]


def _choose_days(plan, users, user, movie, rng):
    """Give each rating the day of one of its user's sessions, none before the movie's release year."""
    count, join_day, last_day = plan.count[users], plan.join_day[users], plan.last_day[users]
    num_sessions = 1 + rng.poisson(count / RATINGS_PER_SESSION)
    end = np.cumsum(num_sessions)
    owner = np.repeat(np.arange(len(count)), num_sessions)
    session_day = join_day[owner] + (rng.random(len(owner)) * (last_day - join_day + 1)[owner]).astype(int)
    session_day[end - 1] = last_day
    session = np.sort(owner << DAY_BITS | session_day)
    start = np.searchsorted(session, user << DAY_BITS | plan.release_day[movie])
    pick = start + (rng.random(len(user)) * (end[user] - start)).astype(int)
    return session[pick] & ((1 << DAY_BITS) - 1)


def _count_stars(keys):
    histogram = np.zeros(6, np.int64)
    for first in range(0, len(keys), CHUNK_RATINGS):
        star = keys[first:first + CHUNK_RATINGS] >> 1 & ((1 << STAR_BITS) - 1)
        histogram += np.bincount(star, minlength=6)
    return histogram[1:]


def _movie_bounds(keys, num_movies):
    """Return where each movie's ratings begin in sorted keys, and at last their number."""
    return np.searchsorted(keys, np.arange(num_movies + 1) << (USER_BITS + DAY_BITS + STAR_BITS + 1))


def _user_idx(keys):
    return keys >> (DAY_BITS + STAR_BITS + 1) & ((1 << USER_BITS) - 1)


def _write_combined_data(folder, keys, truth, eol, quiet):
    """Write combined_data_1..4.txt, about a quarter of the ratings each."""
    # A table of text for every field; a line is a record of fixed-width fields, whose NUL padding is then deleted.
    user_text = np.char.add(truth["user_id"].astype(f"S{len(str(truth['user_id'].max()))}"), b",")
    star_text = np.array([f"{star}," for star in range(6)], "S2")
    day_text = np.char.add(np.arange(FIRST_DATE, LAST_DATE + 1).astype("S10"), eol.encode())
    record = np.dtype([("user_id", user_text.dtype), ("star", star_text.dtype), ("day", day_text.dtype)])
    bounds = _movie_bounds(keys, len(truth["movie_id"]))
    splits = np.searchsorted(bounds[1:-1], len(keys) * np.arange(5) / 4)
    splits[-1] = len(truth["movie_id"])
    with tqdm(total=len(keys), unit=" ratings", unit_scale=True, desc="writing", disable=quiet) as bar:
        for i in range(4):
            with open(folder / f"combined_data_{i + 1}.txt", "wb") as file:
                for movie_idx in range(splits[i], splits[i + 1]):
                    ratings = keys[bounds[movie_idx]:bounds[movie_idx + 1]]
                    lines = np.empty(len(ratings), record)
                    lines["user_id"] = user_text[_user_idx(ratings)]
                    lines["day"] = day_text[ratings >> (STAR_BITS + 1) & ((1 << DAY_BITS) - 1)]
                    lines["star"] = star_text[ratings >> 1 & ((1 << STAR_BITS) - 1)]
                    file.write(f"{truth['movie_id'][movie_idx]}:{eol}".encode())
                    file.write(lines.tobytes().translate(None, b"\0"))
                    bar.update(len(ratings))


def _write_probe(path, keys, truth, eol):
    """Write the probe's pairs: a movie header, then user ids alone."""
    user_text = np.char.add(truth["user_id"].astype("S10"), eol.encode())
    bounds = _movie_bounds(keys, len(truth["movie_id"]))
    with open(path, "wb") as file:
        for movie_idx in np.flatnonzero(np.diff(bounds)):
            file.write(f"{truth['movie_id'][movie_idx]}:{eol}".encode())
            file.write(user_text[_user_idx(keys[bounds[movie_idx]:bounds[movie_idx + 1]])].tobytes().translate(None, b"\0"))


def _write_titles(path, truth, plan, eol, rng):
    """Write MovieID,Year,Title for every title, rated or not, with the traps at places that the seed chooses."""
    num_titles = len(plan.title_id)
    rated = np.searchsorted(plan.title_id, truth["movie_id"])
    genre, year = rng.integers(len(GENRES), size=num_titles), rng.integers(1950, NEWEST_YEAR + 1, num_titles)
    genre[rated], year[rated] = truth["movie_genre"], truth["movie_year"]
    years = year.tolist()
    adjectives, nouns, others = (rng.choice(words, num_titles) for words in (ADJECTIVES, NOUNS, NOUNS))
    names = [(f"The {adjective} {noun}", f"{adjective} {noun}", f"The {noun} and the {other}")[pattern]
             for adjective, noun, other, pattern in zip(adjectives, nouns, others, rng.integers(3, size=num_titles))]

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


def _sort_users(truth):
    """Return the truth with its user arrays in order of user_id."""
    order = np.argsort(truth["user_id"])
    return {name: value[order] if name.startswith("user_") else value for name, value in truth.items()}


def _print_summary(out_dir, names, truth, plan, elapsed_s):
    count, histogram = np.sort(plan.count), truth["star_histogram"]
    shares = " / ".join(f"{100 * share:.1f}" for share in histogram / histogram.sum())
    print(f"{truth['num_ratings']:,} ratings of {len(truth['movie_id']):,} movies by {len(count):,} users "
          f"({count[0]:,} to {count[-1]:,} a user, median {count[len(count) // 2]:,}; "
          f"{truth['user_is_fan'].sum():,} fans of one genre)")
    print(f"stars 1..5: {shares} percent, mean {histogram @ np.arange(1, 6) / histogram.sum():.3f}")
    print(f"planted noise {truth['noise_std']:.2f} stars; best reachable RMSE {truth['best_rmse']:.4f}, "
          f"over each user's latest ratings {truth['best_rmse_latest']:.4f}")
    print(f"wrote {', '.join(names)} in {out_dir}, in {elapsed_s:.1f} s")


if __name__ == "__main__":
    sys.exit(main())
