"""An independent referee for the splits: loops over dicts, written from the words of README and splitting.py.

It shares no code with the product. Random numbers are SplitMix64 in Python integers: every rating has one right split.
"""

import os
import random
from collections import Counter, defaultdict
from datetime import date, timedelta
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preprocessing import building, movielens_preprocess, netflix_preprocess, parsing

MANY = settings(max_examples=20, deadline=None, database=None, suppress_health_check=list(HealthCheck))
WORDS = 2**64
GOLDEN_GAMMA = 0x9E3779B97F4A7C15


# --- the referee -----------------------------------------------------------------------------------------------


def hashed(seed, *numbers):
    """Hash numbers to [0, 1): one step of SplitMix64 (Steele, Lea and Flood 2014) from each to the next."""
    word = seed
    for number in numbers:
        word = ((word ^ number) + GOLDEN_GAMMA) % WORDS
        word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 % WORDS
        word = (word ^ word >> 27) * 0x94D049BB133111EB % WORDS
        word ^= word >> 31
    return (word >> 11) / 2**53


def referee(days, movie_ids, method, test_pairs=(), *, test_fraction=0.1, latest_n=9, val_fraction=0.05, seed=0):
    """Return the split of each (user_id, movie_id) of `days`, which holds their day; `movie_ids` are all known ones."""
    user_idx = {user_id: k for k, user_id in enumerate(sorted({user_id for user_id, _ in days}))}
    movie_idx = {movie_id: k for k, movie_id in enumerate(sorted(movie_ids))}
    drawn = {(user_id, movie_id): hashed(seed, user_idx[user_id], movie_idx[movie_id]) for user_id, movie_id in days}
    if method == "random":
        bound = test_fraction + (1 - test_fraction) * val_fraction
        return {pair: "test" if draw < test_fraction else "validation" if draw < bound else "train"
                for pair, draw in drawn.items()}

    def latest_of_each(pairs):
        of_user = defaultdict(list)
        for pair in pairs:
            of_user[pair[0]].append(pair)
        latest = {}
        for user_id, pairs_of_user in of_user.items():
            by_time = sorted(pairs_of_user, key=lambda pair: (days[pair], drawn[pair]))
            latest[user_id] = by_time[len(by_time) - min(latest_n, len(by_time) // 2):]
        return latest

    test = set(test_pairs) if method != "latest" else set().union(*latest_of_each(days).values())
    remaining = [pair for pair in days if pair not in test]
    if method in ("probe", "latest"):
        candidates = latest_of_each(remaining)
        num_candidates = sum(map(len, candidates.values()))
        fraction = min(1, val_fraction * len(remaining) / max(num_candidates, 1))
        validation = {pair for user_id, pairs in candidates.items() if hashed(seed, user_idx[user_id]) < fraction
                      for pair in pairs}
    else:
        validation = {pair for pair in remaining if drawn[pair] < val_fraction}
    return {pair: "test" if pair in test else "validation" if pair in validation else "train" for pair in days}


def test_the_referees_hash_is_splitmix64_as_published():
    """The first numbers that the authors' own program prints for the seed 1234567."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [hashed((1234567 + k * GOLDEN_GAMMA) % WORDS, 0) for k in range(4)] == [
        (number >> 11) / 2**53 for number in published]


def test_the_referee_splits_a_user_as_by_hand():
    """Ten ratings on ten days, movie m on day m: 8 and 9 are test; of the remaining eight, 6 and 7 are validation."""
    days = {(5, movie_id): movie_id for movie_id in range(10)}
    splits = referee(days, range(10), "latest", latest_n=2, val_fraction=0.9)
    assert [splits[5, movie_id] for movie_id in range(10)] == ["train"] * 6 + ["validation"] * 2 + ["test"] * 2


# --- raw files and what the commands make of them --------------------------------------------------------------


@st.composite
def cases(draw, methods):
    """Draw a small data set, a method, flags for it and a random generator for the raw files."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    users = rng.sample(range(1, 500), draw(st.integers(1, 20)))
    movies = rng.sample(range(1, 500), draw(st.integers(1, 30)))
    num_days = draw(st.sampled_from([1, 2, 5, 400]))
    probability = {user_id: rng.random() ** 0.5 for user_id in users}
    pairs = [(user_id, movie_id) for user_id in users for movie_id in movies if rng.random() < probability[user_id]]
    pairs = pairs if len(pairs) > 1 else [(users[0], movies[0]), (1000, movies[0])]
    days = {pair: rng.randrange(num_days) for pair in rng.sample(pairs, len(pairs))}
    method = draw(st.sampled_from(methods))
    max_tests = len(pairs) if method == "probe" else len(pairs) - 1  # u1.base is never empty
    test_pairs = rng.sample(pairs, draw(st.integers(method != "probe", max_tests))) if method[0] in "pu" else ()
    fractions = st.one_of(st.floats(0.01, 0.99), st.sampled_from([0.05, 0.1, 0.5]))
    flags = {"test_fraction": draw(fractions), "val_fraction": draw(fractions), "latest_n": draw(st.integers(1, 12)),
             "seed": draw(st.integers(0, 2**63 - 1))}
    return SimpleNamespace(days=days, method=method, test_pairs=test_pairs, flags=flags, rng=rng,
                           num_files=draw(st.integers(1, 3)), movie_ids=set(movies))


def write_netflix(folder, case):
    """Write the ratings in the order of `days`, a header at every change of movie, dealt to some files."""
    for number in range(case.num_files):
        lines, last = [], None
        for user_id, movie_id in list(case.days)[number::case.num_files]:
            lines += [f"{movie_id}:"] * (movie_id != last)
            lines.append(f"{user_id},{1 + user_id % 5},{date(2004, 12, 1) + timedelta(case.days[user_id, movie_id])}")
            last = movie_id
        (folder / f"combined_data_{number + 1}.txt").write_text("".join(f"{line}\n" for line in lines))
    titles = [f"{movie_id},2000,Movie {movie_id}\n" for movie_id in case.movie_ids]
    (folder / "movie_titles.csv").write_text("".join(titles))
    (folder / "probe.txt").write_text("".join(f"{movie_id}:\n{user_id}\n" for user_id, movie_id in case.test_pairs))


def write_movielens(folder, case):
    """Write the ratings in the order of `days`, at a random second of their day; a list of test pairs as u1 .. u5."""
    lines = {pair: f"{pair[0]}\t{pair[1]}\t{1 + pair[0] % 5}\t{(12_000 + day) * 86_400 + case.rng.randrange(86_400)}\n"
             for pair, day in case.days.items()}
    (folder / "u.data").write_text("".join(lines.values()))
    test = [pair in case.test_pairs for pair in lines]
    for name, is_test in (("base", False), ("test", True)):
        text = "".join(line for line, there in zip(lines.values(), test, strict=True) if there == is_test)
        (folder / f"{case.method}.{name}").write_text(text)
    (folder / "u.item").write_text("".join(f"{movie_id}|Movie (2000)|\n" for movie_id in case.movie_ids))


def read_splits(out_dir):
    """Return the split of each (user_id, movie_id), read by pyarrow alone."""
    ratings, users, movies = (pq.read_table(out_dir / f"{name}.parquet") for name in ("ratings", "users", "movies"))
    user_id, movie_id = users["user_id"].to_pylist(), movies["movie_id"].to_pylist()
    columns = (ratings[name].to_pylist() for name in ("user_idx", "movie_idx", "split"))
    return {(user_id[user], movie_id[movie]): split for user, movie, split in zip(*columns, strict=True)}


def run_split(command, folder, method, flags, *more):
    """Run a command on a raw folder; return the split of each (user_id, movie_id)."""
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    assert command.main(["--raw_dir", str(folder), "--out_dir", str(folder / "out"), "--split", method, *words,
                         *more]) == 0
    return read_splits(folder / "out")


def expected(case):
    return referee(case.days, case.movie_ids, case.method, case.test_pairs, **case.flags)


# --- the rules -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["probe", "latest", "random"])
@MANY
@given(data=st.data())
def test_netflix_ratings_are_in_the_split_that_the_rules_say(tmp_path_factory, method, data):
    case, folder = data.draw(cases([method])), tmp_path_factory.mktemp("raw")
    write_netflix(folder, case)
    assert run_split(netflix_preprocess, folder, method, case.flags) == expected(case)


@pytest.mark.parametrize("methods", [["latest"], ["random"], ["u1", "u2", "u3", "u4", "u5"]], ids=lambda m: m[0])
@MANY
@given(data=st.data())
def test_movielens_ratings_are_in_the_split_that_the_rules_say(tmp_path_factory, methods, data):
    case, folder = data.draw(cases(methods)), tmp_path_factory.mktemp("raw")
    write_movielens(folder, case)
    assert run_split(movielens_preprocess, folder, case.method, case.flags) == expected(case)


def days_of(raw_dir):
    """Parse the text of the shared data set line by line: {(user_id, movie_id): date} and all movie ids."""
    days = {}
    for path in raw_dir.glob("combined_data_*.txt"):
        for line in path.read_text().splitlines():
            if line.endswith(":"):
                movie_id = int(line[:-1])
            else:
                user_id, _, day = line.split(",")
                days[int(user_id), movie_id] = day
    titles = (raw_dir / "movie_titles.csv").read_text(encoding="latin-1").splitlines()
    return days, {int(title.split(",")[0]) for title in titles}


def test_without_flags_14_000_ratings_are_split_by_the_latest_with_the_defaults_of_the_help(raw_dir, data_dir):
    days, movie_ids = days_of(raw_dir)
    splits = read_splits(data_dir)
    assert splits == referee(days, movie_ids, "latest", test_fraction=0.1, latest_n=9, val_fraction=0.05, seed=0)
    assert min(Counter(splits.values()).values()) > 400


# --- what a split does not depend on ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A data set of 30 users in which many ratings share a day, and its raw folders."""
    rng = random.Random(4)
    users, movies = rng.sample(range(1, 900), 30), rng.sample(range(1, 900), 50)
    pairs = [(user_id, movie_id) for user_id in users for movie_id in movies if rng.random() < 0.6]
    case = SimpleNamespace(days={pair: rng.randrange(9) for pair in pairs}, movie_ids=set(movies), num_files=1, rng=rng,
                           flags={"latest_n": 5, "val_fraction": 0.1, "test_fraction": 0.2, "seed": 8}, method="u1",
                           test_pairs=rng.sample(pairs, 90))
    netflix, movielens = tmp_path_factory.mktemp("netflix"), tmp_path_factory.mktemp("movielens")
    write_netflix(netflix, case)
    write_movielens(movielens, case)
    return SimpleNamespace(case=case, folders={netflix_preprocess: netflix, movielens_preprocess: movielens})


METHODS = [pytest.param(command, method, id=f"{name} {method}") for command, name, methods in (
    (netflix_preprocess, "netflix", ("probe", "latest", "random")),
    (movielens_preprocess, "movielens", ("latest", "random", "u1"))) for method in methods]


def right_splits(case, method):
    return referee(case.days, case.movie_ids, method, case.test_pairs, **case.flags)


@pytest.mark.parametrize(("command", "method"), METHODS)
def test_cutting_the_ratings_into_blocks_changes_no_split(written, monkeypatch, command, method):
    monkeypatch.setattr(building, "GROUP_ROWS", 100)
    splits = run_split(command, written.folders[command], method, written.case.flags)
    assert splits == right_splits(written.case, method)
    assert 5 < pq.ParquetFile(written.folders[command] / "out" / "ratings.parquet").num_row_groups < 15


@pytest.mark.parametrize(("command", "method"), METHODS)
def test_the_order_of_the_lines_and_the_number_of_files_change_no_split(written, tmp_path, command, method):
    case = SimpleNamespace(**{**vars(written.case), "num_files": 7, "days": dict(reversed(written.case.days.items()))})
    (write_netflix if command is netflix_preprocess else write_movielens)(tmp_path, case)
    assert run_split(command, tmp_path, method, case.flags) == right_splits(written.case, method)


@pytest.mark.parametrize("method", ["probe", "latest", "random"])
def test_partitions_on_disk_change_no_split(written, monkeypatch, method):
    """With ratings that take 1,000 bytes each, --max_memory 1 has room for the ratings of three or four users."""
    monkeypatch.setattr(building, "GROUP_ROWS", 40)
    monkeypatch.setattr(netflix_preprocess, "BYTES_PER_RATING", 1000)
    bounds, cut = [], netflix_preprocess.partition_bounds
    monkeypatch.setattr(netflix_preprocess, "partition_bounds", lambda *args: bounds.extend(cut(*args)) or bounds)
    splits = run_split(netflix_preprocess, written.folders[netflix_preprocess], method, written.case.flags,
                     "--max_memory", "1")
    assert splits == right_splits(written.case, method)
    assert len(bounds) > 6


@pytest.mark.parametrize("method", ["probe", "latest", "random"])
def test_three_processes_change_no_split(written, monkeypatch, method):
    monkeypatch.setattr(parsing, "RANGE_BYTES", 3001)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2}, raising=False)
    splits = run_split(netflix_preprocess, written.folders[netflix_preprocess], method, written.case.flags)
    assert splits == right_splits(written.case, method)
