"""Every flag of the three preprocessing commands does what its help says, and what they print is what the text says.

That every rating is in its one right split, whatever the fractions, is in test_split_reference.py; what the tables and
meta.json say in test_statistics.py.
"""

import json
import math
import re
import time
from datetime import UTC, datetime
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from preprocessing import movielens_preprocess, netflix_preprocess, synthetic_netflix
from preprocessing.dataset import machine

FILES = ("ratings.parquet", "users.parquet", "movies.parquet", "meta.json")
SPLITS = ("train", "validation", "test")
DEFAULTS = {"split": "auto", "test_fraction": "0.1", "latest_n": "9", "val_fraction": "0.05", "seed": "0"}
NETFLIX, MOVIELENS = "netflix", "movielens"
COMMANDS = {NETFLIX: netflix_preprocess, MOVIELENS: movielens_preprocess}
KINDS = [(NETFLIX, "probe"), (NETFLIX, "latest"), (NETFLIX, "random"), (MOVIELENS, "latest"), (MOVIELENS, "random"),
         *((MOVIELENS, f"u{number}") for number in range(1, 6))]


@pytest.fixture(scope="module")
def text():
    """50 users and 40 movies, all pairs but a few, a day each: (user_id, movie_id, stars, seconds), in a random order.

    Movies 4 and 5 have ratings and no title, 900 to 902 a title and no ratings.
    """
    rng = np.random.default_rng(3)
    users, movies = 7 * np.arange(1, 51), 4 + np.arange(40)
    rows = [(int(user_id), int(movie_id), int(rng.integers(1, 6)), int((11_000 + day) * 86_400 + rng.integers(86_400)))
            for user_id in users for movie_id, day in zip(movies, rng.permutation(400)[:40], strict=True)]
    rows = [rows[k] for k in rng.permutation(len(rows))[:-37]]
    return SimpleNamespace(rows=rows, titled=[*range(6, 44), 900, 901, 902], tests=[rows[k::11] for k in range(6)])


@pytest.fixture(scope="module")
def raw(text, tmp_path_factory):
    """The same ratings as Netflix writes them, with a probe, and as MovieLens-100K, with its five splits."""
    folders = {name: tmp_path_factory.mktemp(name) for name in COMMANDS}
    for number in (1, 2):
        (folders[NETFLIX] / f"combined_data_{number}.txt").write_text("".join(
            f"{movie_id}:\n{user_id},{stars},{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d}\n"
            for user_id, movie_id, stars, seconds in text.rows[number - 1::2]))
    (folders[NETFLIX] / "movie_titles.csv").write_text("".join(f"{k},2000,Movie {k}\n" for k in text.titled))
    (folders[NETFLIX] / "probe.txt").write_text("".join(f"{row[1]}:\n{row[0]}\n" for row in text.tests[0]))
    (folders[MOVIELENS] / "u.item").write_text("".join(f"{k}|Movie {k} (2000)|\n" for k in text.titled))
    files = {"u.data": text.rows}
    for number, test in enumerate(text.tests[1:], start=1):
        files |= {f"u{number}.base": [row for row in text.rows if row not in set(test)], f"u{number}.test": test}
    for name, rows in files.items():
        (folders[MOVIELENS] / name).write_text("".join("\t".join(map(str, row)) + "\n" for row in rows))
    return folders


@pytest.fixture
def made(raw, tmp_path, capsys):
    """Run a command on a raw folder, the shared one if none is given; return its files' bytes, splits and output."""
    count = iter(range(1000))

    def run(name, *flags, folder=None):
        out_dir = tmp_path / f"out{next(count)}"
        capsys.readouterr()
        words = ["--raw_dir", str(folder or raw[name]), "--out_dir", str(out_dir), *map(str, flags)]
        assert COMMANDS[name].main(words) == 0
        ratings, users, movies = (pq.read_table(out_dir / name).to_pydict() for name in FILES[:3])
        user_id, movie_id = users["user_id"], movies["movie_id"]
        splits = {(user_id[user], movie_id[movie]): split for user, movie, split in
                  zip(ratings["user_idx"], ratings["movie_idx"], ratings["split"], strict=True)}
        return SimpleNamespace(splits=splits, bytes={name: (out_dir / name).read_bytes() for name in FILES},
                               meta=json.loads((out_dir / "meta.json").read_text()), out_dir=out_dir,
                               printed=capsys.readouterr().out.splitlines())

    return run


def pairs_in(data_set, split):
    return {pair for pair, split_of_pair in data_set.splits.items() if split_of_pair == split}


def latest_of_each(rows, latest_n):
    """Return the pairs of each user's last ratings, up to `latest_n` and at most half; no two share a day."""
    by_user = {user_id: sorted((row for row in rows if row[0] == user_id), key=lambda row: row[3])
               for user_id in {row[0] for row in rows}}
    return {row[:2] for rows in by_user.values() for row in rows[len(rows) - min(latest_n, len(rows) // 2):]}


# --- folders and defaults --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "method"), [*KINDS[:6], (NETFLIX, "auto"), (MOVIELENS, "auto")])
def test_flags_left_out_have_the_values_of_the_help(made, name, method):
    words = [word for flag, value in DEFAULTS.items() if flag != "split" for word in (f"--{flag}", value)]
    plain = made(name, *() if method == "auto" else ("--split", method))
    assert plain.bytes == made(name, "--split", method, *words).bytes
    split = plain.meta["split"]
    assert {flag: split[flag] for flag in list(DEFAULTS)[1:]} == {
        "test_fraction": 0.1, "latest_n": 9, "val_fraction": 0.05, "seed": 0}


@pytest.mark.parametrize(("name", "defaults"), [
    (NETFLIX, {"raw_dir": "data/raw", "out_dir": "data/processed", **DEFAULTS, "max_memory": "70 % of what is free"}),
    (MOVIELENS, {"out_dir": "data/processed", **DEFAULTS}),
    ("synthetic", {"out_dir": "data/raw", "num_users": "20000", "num_movies": "2000", "num_ratings": "2000000",
                   "tastes": "0", "seed": "0"})])
def test_the_help_says_these_defaults(capsys, name, defaults):
    with pytest.raises(SystemExit):
        {**COMMANDS, "synthetic": synthetic_netflix}[name].main(["--help"])
    told = [" ".join(words.split()) for words in re.split("\n  --", capsys.readouterr().out)[1:]]
    assert {words.split()[0]: words.split("(default: ")[1][:-1] for words in told if "(default: " in words} == defaults


def test_without_flags_the_folders_are_those_of_the_help(made, raw, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "raw").symlink_to(raw[NETFLIX])
    with pytest.raises(SystemExit, match="2"):
        movielens_preprocess.main([])  # it needs --raw_dir
    for name, flags in ((MOVIELENS, ["--raw_dir", str(raw[MOVIELENS])]), (NETFLIX, [])):
        assert COMMANDS[name].main(flags) == 0
        assert {name: (tmp_path / "data" / "processed" / name).read_bytes() for name in FILES} == made(name).bytes


# --- the split -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "method"), KINDS)
def test_each_split_holds_out_what_its_name_says(made, text, name, method):
    data_set = made(name, "--split", method, "--latest_n", 4)
    lists = {"probe": text.tests[0], **{f"u{number}": text.tests[number] for number in range(1, 6)}}
    if method in lists:
        assert pairs_in(data_set, "test") == {row[:2] for row in lists[method]}
    elif method == "latest":
        assert pairs_in(data_set, "test") == latest_of_each(text.rows, 4)
    assert set(data_set.splits) == {row[:2] for row in text.rows}
    assert data_set.meta["split"]["method"] == method
    assert data_set.printed[-3].startswith(f"split {method} (seed 0): ")


def test_auto_of_netflix_is_the_probe_where_it_lies_and_else_latest(made, raw, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in raw[NETFLIX].iterdir():
        if path.name != "probe.txt":
            (bare / path.name).symlink_to(path)
    for folder, named in ((raw[NETFLIX], "probe"), (bare, "latest")):
        assert made(NETFLIX, folder=folder).bytes == made(NETFLIX, "--split", named, folder=folder).bytes


MOVIES = {".dat": ("movies.dat", "5::Movie::x\n"), ".csv": ("movies.csv", "movieId,title,genres\n5,Movie,x\n"),
          ".data": ("u.item", "5|Movie|\n")}


@pytest.mark.parametrize(("file_name", "separator", "method"), [
    ("u.data", "\t", "latest"), ("ratings.dat", "::", "latest"), ("ratings.csv", ",", "latest"),
    ("ratings_no_timestamp.dat", "::", "random"), ("ratings.csv", ",", "random"), ("u.data", "\t", "random")])
def test_auto_of_movielens_is_latest_where_there_are_timestamps_and_else_random(
        made, text, tmp_path, file_name, separator, method):
    width = 4 if method == "latest" else 3
    lines = [separator.join(map(str, row[:width])) for row in text.rows]
    header = ",".join(["userId", "movieId", "rating", "timestamp"][:width])
    (tmp_path / file_name).write_text("\n".join([header] * (separator == ",") + lines) + "\n")
    titles_name, titles = MOVIES[(tmp_path / file_name).suffix]
    (tmp_path / titles_name).write_text(titles)
    auto, named = (made(MOVIELENS, *flags, folder=tmp_path) for flags in ((), ("--split", method)))
    assert auto.bytes == named.bytes and auto.meta["split"]["method"] == method
    assert (pairs_in(auto, "test") == latest_of_each(text.rows, 9)) == (method == "latest")


@pytest.mark.parametrize(("name", "method"), [(name, method) for name, method in KINDS if method == "latest"])
@pytest.mark.parametrize("latest_n", [1, 3, 19, 1000])
def test_latest_n_is_the_number_of_test_and_of_validation_ratings_of_a_user(made, text, name, method, latest_n):
    """--val_fraction 0.99 takes validation from every user; what test leaves is halved where --latest_n is large."""
    data_set = made(name, "--split", method, "--latest_n", latest_n, "--val_fraction", 0.99)
    test = latest_of_each(text.rows, latest_n)
    remaining = [row for row in text.rows if row[:2] not in test]
    assert pairs_in(data_set, "test") == test
    assert pairs_in(data_set, "validation") == latest_of_each(remaining, latest_n)


@pytest.mark.parametrize(("name", "method"), [*KINDS[:5], (MOVIELENS, "u4")])
def test_the_seed_decides_what_is_random_and_nothing_else(made, name, method):
    flags = ("--split", method, "--val_fraction", 0.2)
    first, again, other = (made(name, *flags, "--seed", seed) for seed in (5, 5, 2**63 - 1))
    assert first.bytes == again.bytes
    assert pairs_in(first, "validation") != pairs_in(other, "validation")
    assert (pairs_in(first, "test") != pairs_in(other, "test")) == (method == "random")
    assert (other.meta["seed"], other.meta["split"]["seed"]) == (2**63 - 1, 2**63 - 1)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_latest_n_past_any_number_is_half_of_each_users_ratings_or_refused(made, text, name):
    try:
        test = pairs_in(made(name, "--split", "latest", "--latest_n", 10**30), "test")
    except SystemExit as end:
        assert end.code == 2
    else:
        assert test == latest_of_each(text.rows, 10**30)


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(("flag", "most"), [("latest_n", 2_147_483_647), ("seed", 9_223_372_036_854_775_807)])
def test_the_largest_whole_numbers_are_those_that_the_refusals_name(capsys, name, flag, most):
    parse_args = COMMANDS[name].parse_args
    assert getattr(parse_args(["--raw_dir", "raw", f"--{flag}", str(most)]), flag) == most
    with pytest.raises(SystemExit, match="2"):
        parse_args(["--raw_dir", "raw", f"--{flag}", str(most + 1)])
    assert f"--{flag} must be " in capsys.readouterr().err


# --- what is printed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "method", "half"), [
    (NETFLIX, "probe", False), (NETFLIX, "random", False), (MOVIELENS, "u2", False), (MOVIELENS, "latest", True)])
def test_the_summary_is_what_numpy_makes_of_the_text(made, text, raw, tmp_path, name, method, half):
    user_id, movie_id, stars, seconds = np.array(text.rows).T
    if half:
        stars = stars - 0.5 * (stars == 3)
        (tmp_path / "u.item").write_bytes((raw[name] / "u.item").read_bytes())
        np.savetxt(tmp_path / "u.data", np.stack([user_id, movie_id, stars, seconds], 1), "%d\t%d\t%.1f\t%d")
    before, begin = machine.peak_rss_mib(), time.perf_counter()
    data_set = made(name, "--split", method, "--seed", 12, folder=tmp_path if half else None)
    measured_s = time.perf_counter() - begin
    after = machine.peak_rss_mib(with_children=True)
    values, counts = np.unique(stars, return_counts=True)
    counts_of_splits = ", ".join(f"{name} {len(pairs_in(data_set, name)):,}" for name in SPLITS)
    large = [line for line in data_set.printed if line.startswith("test takes ")]
    totals, known, *histogram, mean, split, costs, written = (line for line in data_set.printed if line not in large)
    fraction = len(pairs_in(data_set, "test")) / len(stars)
    assert large == [f"test takes {fraction:.0%} of all ratings; --latest_n 1 or --split random leaves more to learn "
                     "from"] * (fraction > 0.2)
    assert totals == f"{len(stars):,} ratings of {len(set(movie_id)):,} movies by {len(set(user_id))} users"
    assert known == "43 movies known: 3 without ratings, 2 without a title"
    assert [line.split() for line in histogram] == [
        [f"{value:g}", "stars", f"{n:,}", f"{100 * n / len(stars):.1f}%", "#" * round(30 * n / counts.max())]
        for value, n in zip(values, counts, strict=True)]
    assert mean == f"  mean {stars.mean():.5f}"
    assert split == f"split {method} (seed 12): {counts_of_splits}; train and test share no pair"
    elapsed_s, speed, peak = (float(number.replace(",", "")) for number in re.fullmatch(
        r"(\d+\.\d) s \(parse \d.*\), ([\d,]+) ratings/s, peak memory ([\d,]+) MiB", costs).groups())
    assert before - 1 < peak < after + 1
    assert elapsed_s <= measured_s + 0.05 and len(stars) / measured_s <= speed + 1
    assert len(stars) / (elapsed_s + 0.05) <= speed + 1
    assert written == f"written to {data_set.out_dir}; next: python main.py --data_dir {data_set.out_dir}"


@pytest.mark.parametrize(("platform", "units_of_a_mib"), [("linux", 1024), ("darwin", 1_048_576)])
def test_the_peak_memory_is_that_of_the_command_and_its_processes(made, monkeypatch, platform, units_of_a_mib):
    resource = pytest.importorskip("resource", reason="the system's figures, which Windows lacks")
    peak_mib = {resource.RUSAGE_SELF: 4_000_000, resource.RUSAGE_CHILDREN: 30_000}
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=peak_mib[who] * units_of_a_mib))
    monkeypatch.setattr(machine, "sys", SimpleNamespace(platform=platform))
    assert made(MOVIELENS).printed[-2].endswith(" ratings/s, peak memory 4,030,000 MiB")


def test_the_known_totals_are_the_published_ones_of_the_netflix_prize():
    published = {"num_ratings": 100_480_507, "num_users": 480_189, "num_rated_movies": 17_770,
                 "histogram": {"1": 4_617_990, "2": 10_132_080, "3": 28_811_247, "4": 33_750_958, "5": 23_168_232}}
    known = netflix_preprocess.known_totals
    assert known(published) == "counts and histogram are those of the Netflix Prize data"
    assert "histogram is not" in known({**published, "histogram": {**published["histogram"], "1": 4_617_991}})
    assert [known({**published, name: 5}) for name in list(published)[:3]] == [None] * 3


# --- memory ----------------------------------------------------------------------------------------------------


@pytest.fixture
def on_disk(made, raw, tmp_path, monkeypatch):
    """Tell whether a run of Netflix' command, of 4 MiB of nearly empty text, put ratings on the disk to sort them."""
    folder, opened = tmp_path / "padded", []
    folder.mkdir()
    for path in raw[NETFLIX].iterdir():
        (folder / path.name).write_bytes(path.read_bytes() + b"\n" * (4 << 20 if path.name[-5] == "1" else 0))
    really_open = open

    def noting_open(path, mode="r", *args, **options):
        opened.append((str(path), mode))
        return really_open(path, mode, *args, **options)

    monkeypatch.setattr("builtins.open", noting_open)

    def run(*flags):
        opened.clear()
        data_set = made(NETFLIX, *flags, folder=folder)
        return any(".partial" in path and "w" in mode for path, mode in opened), data_set.bytes

    return run


def test_max_memory_is_a_bound_in_mib_past_which_the_disk_is_used_and_70_percent_of_the_free_by_default(
        on_disk, monkeypatch):
    (low_used, low), (high_used, high) = on_disk("--max_memory", "1"), on_disk("--max_memory", "64")
    assert (low_used, high_used) == (True, False) and low == high
    enough, too_little = 64, 1
    while enough - too_little > 1:
        middle = (enough + too_little) // 2
        enough, too_little = (enough, middle) if on_disk("--max_memory", middle)[0] else (middle, too_little)
    for mib, used in ((too_little, True), (enough, False)):
        monkeypatch.setattr(netflix_preprocess, "available_bytes", lambda mib=mib: mib * 2**20 / 0.7)
        assert on_disk() == (used, low)


# --- the generator ---------------------------------------------------------------------------------------------


def generate(folder, *flags):
    assert synthetic_netflix.main(["--out_dir", str(folder), *map(str, flags)]) == 0
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def read_netflix(folder):
    """Return movie_id, user_id, stars and date, as numbers yyyymmdd, of the text in a folder."""
    rows, movie_id = [], None
    for path in sorted(folder.glob("combined_data_*.txt")):
        for line in path.read_text().splitlines():
            if line.endswith(":"):
                movie_id = int(line[:-1])
            else:
                rows.append((movie_id, *map(int, line.replace("-", "").split(","))))
    return np.array(rows).T


def test_counts_left_out_of_the_generator_are_those_of_its_help(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert synthetic_netflix.main(["--num_users", "1", "--num_movies", "1"]) == 1
    assert "--num_ratings 2000000 is more" in capsys.readouterr().err
    assert synthetic_netflix.main(["--num_ratings", "20000"]) == 0
    movie_id, user_id, *_ = read_netflix(tmp_path / "data" / "raw")
    assert (len(set(movie_id)), len(set(user_id))) == (2000, 20_000)
    with np.load(tmp_path / "data" / "raw" / "planted_truth.npz") as truth:
        assert truth["seed"] == 0


SMALL = ("--num_users", 300, "--num_movies", 1200, "--num_ratings", 9000)


def test_the_generators_summary_is_what_numpy_makes_of_text_and_truth(tmp_path, capsys):
    names = [*generate(tmp_path, *SMALL, "--seed", 4)]
    printed = capsys.readouterr().out.splitlines()
    movie_id, user_id, stars, _ = read_netflix(tmp_path)[:, np.lexsort(read_netflix(tmp_path)[[0, 3, 1]])]
    with np.load(tmp_path / "planted_truth.npz") as file:
        truth = dict(file)
    count = np.unique(user_id, return_counts=True)[1]
    assert (len(stars), len(set(movie_id)), len(count), int(truth["seed"])) == (9000, 1200, 300, 4)

    user, movie = np.searchsorted(truth["user_id"], user_id), np.searchsorted(truth["movie_id"], movie_id)
    latent = (truth["user_mean"][user] + truth["movie_quality"][movie] + truth["movie_year_effect"][movie]
              + (truth["user_taste"][user] * truth["movie_direction"][movie]).sum(axis=1))
    limits = np.array([-math.inf, 1.5, 2.5, 3.5, 4.5, math.inf])[:, None] - latent  # between the stars
    probabilities = np.diff(np.vectorize(math.erf)(limits / 0.74 / math.sqrt(2)) / 2, axis=0)
    values = np.arange(1, 6)
    variance = values**2 @ probabilities - (values @ probabilities) ** 2
    num_later = np.cumsum(count)[user] - np.arange(len(user)) - 1  # of the same user; rows are in order of time
    latest = num_later < np.minimum(9, count // 2)[user]
    told = re.fullmatch("planted noise 0.74 stars; best reachable RMSE (0.*), over each user's latest ratings (0.*)",
                        printed[2])
    assert [float(number) for number in told.groups()] == pytest.approx(
        [math.sqrt(variance.mean()), math.sqrt(variance[latest].mean())], abs=6e-5)
    percentages = " / ".join(f"{100 * (stars == value).mean():.1f}" for value in values)
    fans = int(truth["user_is_fan"].sum())
    assert printed[0] == (f"9,000 ratings of 1,200 movies by 300 users, {min(count)} to {max(count)} each (median "
                          f"{sorted(count)[150]}); {fans} users are fans of one genre")
    assert printed[1] == f"stars 1 to 5: {percentages} percent, mean {stars.mean():.3f}"
    assert 20 < fans < 100 and f"into {tmp_path} in " in printed[3] and all(name in printed[3] for name in names)


def test_tastes_and_directions_are_planted_as_the_docstring_says(tmp_path):
    """Genres are 60 degrees apart; fans have few ratings, most in their genre, some in its neighbours, few beyond."""
    generate(tmp_path, "--num_users", 1500, "--num_movies", 3000, "--num_ratings", 36_500)
    movie_id, user_id, stars, _ = read_netflix(tmp_path)
    with np.load(tmp_path / "planted_truth.npz") as file:
        truth = dict(file)
    angle = np.arange(6) * math.pi / 3
    points = np.stack([np.cos(angle), np.sin(angle)], 1)
    genre, fan, direction = truth["movie_genre"], truth["user_is_fan"], truth["movie_direction"]
    assert np.linalg.norm(direction, axis=1) == pytest.approx(1, abs=1e-6)
    assert (direction * points[genre]).sum(axis=1).min() > math.cos(math.radians(9))
    assert truth["user_taste"][fan] == pytest.approx(1.7 * points[truth["user_fan_genre"][fan]], abs=1e-6)
    assert truth["star_histogram"].tolist() == [(stars == value).sum() for value in range(1, 6)]
    user, genre_rated = np.searchsorted(truth["user_id"], user_id), genre[np.searchsorted(truth["movie_id"], movie_id)]
    assert np.bincount(user)[fan].max() <= np.bincount(genre).min() / 4
    steps = (genre_rated - truth["user_fan_genre"][user])[fan[user]] % 6  # round the circle
    away = np.bincount(steps, minlength=6)
    assert away[0] > 4 * away[[1, 5]].max() and away[[1, 5]].min() > 5 * away[2:5].max()
    assert (truth["user_fan_genre"][~fan] == -1).all() and 0.15 < fan.mean() < 0.25


def test_the_generators_other_flags_change_what_they_name(tmp_path, monkeypatch):
    plain, again, other, crlf, probe = (generate(tmp_path / "-".join(("out", *flags)), *SMALL, *flags) for flags in (
        (), ("--seed", "0"), ("--seed", "1"), ("--crlf",), ("--with_probe",)))
    assert plain == again and all(plain[name] != other[name] for name in plain)
    assert {name: text.replace(b"\n", b"\r\n") for name, text in plain.items() if "truth" not in name} == {
        name: text for name, text in crlf.items() if "truth" not in name}
    assert probe.keys() - plain.keys() == {"probe.txt"} and all(probe[name] == plain[name] for name in plain)
    assert synthetic_netflix.NETFLIX_COUNTS == {"num_users": 480_189, "num_movies": 17_770, "num_ratings": 100_480_507}
    monkeypatch.setattr(synthetic_netflix, "NETFLIX_COUNTS", {"num_users": 48, "num_movies": 17, "num_ratings": 500})
    generate(tmp_path / "like", "--like_netflix")
    movie_id, user_id, *_ = read_netflix(tmp_path / "like")
    assert (len(movie_id), len(set(user_id)), sorted(set(movie_id))) == (500, 48, [*range(1, 18)])
