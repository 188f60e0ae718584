import subprocess
import sys
from collections import Counter, defaultdict
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from preprocessing import synthetic_netflix
from preprocessing.synthetic_netflix import generate, latent_mean, main, star_moments

SMALL = {"num_users": 200, "num_movies": 60, "num_ratings": 5_000}
SCRIPT = Path(synthetic_netflix.__file__)


def read_ratings(folder):
    """Parse the four files line by line, as someone would who has never seen the writer."""
    ratings = []
    for i in (1, 2, 3, 4):
        for line in (folder / f"combined_data_{i}.txt").read_text(encoding="ascii").splitlines():
            if line.endswith(":"):
                movie_id = int(line[:-1])
            else:
                user_id, star, day = line.split(",")
                ratings.append((movie_id, int(user_id), int(star), date.fromisoformat(day)))
    return ratings


def read_truth(folder):
    with np.load(folder / "planted_truth.npz", allow_pickle=False) as file:
        return dict(file)


def read_bytes(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    generate(folder, **SMALL, with_probe=True)
    return folder


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Big enough for sampling errors to be small and for genres to be larger than a fan's history."""
    folder = tmp_path_factory.mktemp("wide")
    generate(folder, num_users=1_500, num_movies=1_200, num_ratings=90_000)
    return folder


def test_same_seed_gives_same_bytes_on_any_number_of_cores(small, tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic_netflix.os, "cpu_count", lambda: 1)
    generate(tmp_path, **SMALL, with_probe=True)
    assert read_bytes(tmp_path) == read_bytes(small)


def test_number_of_threads_changes_no_byte_of_many_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic_netflix, "CHUNK_RATINGS", 300)
    for cores in (1, 4):
        monkeypatch.setattr(synthetic_netflix.os, "cpu_count", lambda cores=cores: cores)
        generate(tmp_path / str(cores), **SMALL, with_probe=True)
    assert read_bytes(tmp_path / "1") == read_bytes(tmp_path / "4")


def test_other_seed_gives_other_bytes(small, tmp_path):
    generate(tmp_path, **SMALL, seed=1, with_probe=True)
    ours, others = read_bytes(tmp_path), read_bytes(small)
    assert ours.keys() == others.keys()
    assert all(ours[name] != others[name] for name in ours)


@pytest.mark.parametrize(("num_users", "num_movies", "num_ratings"), [
    (200, 60, 5_000), (1, 1, 1), (7, 5, 35), (10, 300, 300), (300, 4, 300), (3, 40, 100), (900, 700, 20_000)])
def test_counts_are_exact_and_no_pair_occurs_twice(tmp_path, num_users, num_movies, num_ratings):
    generate(tmp_path, num_users, num_movies, num_ratings)
    ratings, truth = read_ratings(tmp_path), read_truth(tmp_path)
    movie_ids, user_ids, stars, _ = zip(*ratings, strict=True)
    assert len(ratings) == num_ratings == len(set(zip(movie_ids, user_ids, strict=True)))
    assert sorted(set(user_ids)) == truth["user_id"].tolist()
    assert sorted(set(movie_ids)) == truth["movie_id"].tolist()
    assert (len(set(user_ids)), len(set(movie_ids))) == (num_users, num_movies)
    histogram = Counter(stars)
    assert truth["star_histogram"].tolist() == [histogram[star] for star in (1, 2, 3, 4, 5)]
    assert set(histogram) <= {1, 2, 3, 4, 5}


def test_four_files_share_the_ratings_and_ascend_in_movie_id(wide):
    counts = [(wide / f"combined_data_{i}.txt").read_bytes().count(b",") / 2 for i in (1, 2, 3, 4)]
    assert max(counts) - min(counts) < 0.1 * sum(counts)
    movie_ids = [rating[0] for rating in read_ratings(wide)]
    assert movie_ids == sorted(movie_ids)


def test_user_ids_have_gaps_and_no_order_within_a_movie(wide):
    truth = read_truth(wide)
    assert truth["user_id"].max() > 4 * len(truth["user_id"])
    lines = defaultdict(list)
    for movie_id, user_id, _, _ in read_ratings(wide):
        lines[movie_id].append(user_id)
    longest = max(lines.values(), key=len)
    assert longest != sorted(longest)


def test_dates_are_netflix_days_after_release_and_come_in_sessions(wide):
    truth, ratings = read_truth(wide), read_ratings(wide)
    year_of = dict(zip(truth["movie_id"].tolist(), truth["movie_year"].tolist(), strict=True))
    days = [day for *_, day in ratings]
    assert min(days) >= date(1999, 11, 11) and max(days) <= date(2005, 12, 31)
    assert all(day.year >= year_of[movie_id] for movie_id, _, _, day in ratings)
    by_year = Counter(day.year for day in days)
    assert by_year[2002] < by_year[2003] < by_year[2004] < by_year[2005]
    assert len({(user_id, day) for _, user_id, _, day in ratings}) < len(ratings) / 3


def test_traps_of_the_titles_are_present(small):
    data = (small / "movie_titles.csv").read_bytes()
    assert data.count(b"\xe9") == 1 and b"\r" not in data
    with pytest.raises(UnicodeDecodeError):
        data.decode("utf-8")
    rows = [line.split(",", 2) for line in data.decode("latin-1").splitlines()]
    ids = [int(row[0]) for row in rows]
    assert ids == sorted(set(ids)) and ids[-1] > len(ids)
    assert any(row[1] == "NULL" for row in rows)
    assert any("," in row[2] for row in rows) and any('"' in row[2] for row in rows)
    assert set(read_truth(small)["movie_id"].tolist()) < set(ids)


def test_genre_and_year_of_the_truth_stand_in_the_titles(small):
    truth = read_truth(small)
    titles = {int(line.split(",", 2)[0]): line.split(",", 2)[1:]
              for line in (small / "movie_titles.csv").read_text(encoding="latin-1").splitlines()}
    columns = (truth[name] for name in ("movie_id", "movie_genre", "movie_year"))
    for movie_id, genre, year in zip(*columns, strict=True):
        assert titles[movie_id][1].endswith(f"({truth['genre_names'][genre]})")
        assert titles[movie_id][0] in (str(year), "NULL")


def test_user_ids_are_as_far_apart_as_netflix_s(tmp_path):
    """480,189 users have ids in 1..2,649,429."""
    assert int(480_189 * synthetic_netflix.IDS_PER_USER) == 2_649_429
    ids = generate(tmp_path, num_users=100, num_movies=1, num_ratings=100)["user_id"]
    assert len(set(ids)) == 100 and ids.min() >= 1 and 500 < ids.max() <= 551  # 100 * 2,649,429 / 480,189


def test_contiguous_ids_have_no_gaps(tmp_path):
    truth = generate(tmp_path, **SMALL, contiguous_ids=True)
    assert truth["movie_id"].tolist() == list(range(1, 61))


def test_crlf_changes_line_ends_and_nothing_else(small, tmp_path):
    generate(tmp_path, **SMALL, crlf=True, with_probe=True)
    plain, crlf = read_bytes(small), read_bytes(tmp_path)
    assert plain["planted_truth.npz"] == crlf["planted_truth.npz"]
    for name in plain.keys() - {"planted_truth.npz"}:
        assert crlf[name] == plain[name].replace(b"\n", b"\r\n")


def test_probe_is_a_third_of_each_users_latest_ratings(small):
    ratings = {(movie_id, user_id): day for movie_id, user_id, _, day in read_ratings(small)}
    days = defaultdict(list)
    for (_, user_id), day in ratings.items():
        days[user_id].append(day)
    probe = []
    for line in (small / "probe.txt").read_text(encoding="ascii").splitlines():
        if line.endswith(":"):
            movie_id = int(line[:-1])
        else:
            probe.append((movie_id, int(line)))
    assert len(set(probe)) == len(probe) and set(probe) <= ratings.keys()
    num_recent = {user_id: min(9, len(of_user) // 2) for user_id, of_user in days.items()}
    for pair in probe:
        assert ratings[pair] >= sorted(days[pair[1]])[-num_recent[pair[1]]]
    assert all(n <= num_recent[user_id] for user_id, n in Counter(user_id for _, user_id in probe).items())
    trials = sum(num_recent.values())
    assert abs(len(probe) - trials / 3) < 4 * (trials * 2 / 9) ** 0.5


def test_truth_explains_the_stars_up_to_the_planted_noise(wide):
    truth, ratings = read_truth(wide), read_ratings(wide)
    movie_ids, user_ids, stars, _ = zip(*ratings, strict=True)
    user_idx = np.searchsorted(truth["user_id"], user_ids)
    movie_idx = np.searchsorted(truth["movie_id"], movie_ids)
    latent = (truth["user_mean"][user_idx]
              + truth["movie_quality"][movie_idx] + truth["movie_year_effect"][movie_idx]
              + np.einsum("rd,rd->r", truth["user_taste"][user_idx], truth["movie_direction"][movie_idx]))
    np.testing.assert_allclose(latent_mean(truth, user_idx, movie_idx), latent, atol=1e-5)
    mean, variance = star_moments(latent, truth["noise_std"])
    assert np.sqrt(variance.mean()) == pytest.approx(float(truth["best_rmse"]), abs=1e-5)
    square = (np.array(stars) - mean) ** 2
    error = 4 * square.std() / np.sqrt(len(square))
    assert square.mean() == pytest.approx(truth["best_rmse"] ** 2, abs=error)
    assert abs((np.array(stars) - mean).mean()) < 4 * truth["best_rmse"] / np.sqrt(len(square))


def test_star_moments_equal_a_simulation_and_a_hand_computed_value():
    rng = np.random.default_rng(0)
    for latent in (-0.5, 1.7, 3.0, 4.9):
        star = np.clip(np.rint(latent + 0.8 * rng.standard_normal(400_000)), 1, 5)
        mean, variance = star_moments(latent, 0.8)
        assert mean == pytest.approx(star.mean(), abs=0.005)
        assert variance == pytest.approx(star.var(), abs=0.01)
    # With next to no noise, 2.5 is 2 or 3 with equal probability.
    assert star_moments(2.5, 1e-3) == (pytest.approx(2.5), pytest.approx(0.25))


def test_stars_look_like_netflix(wide):
    histogram = read_truth(wide)["star_histogram"] / 90_000
    np.testing.assert_allclose(histogram, [0.046, 0.101, 0.287, 0.336, 0.231], atol=0.05)


def test_activity_and_popularity_have_long_tails(wide):
    ratings = read_ratings(wide)
    users = sorted(Counter(user_id for _, user_id, _, _ in ratings).values())
    movies = sorted(Counter(movie_id for movie_id, _, _, _ in ratings).values())
    assert users[0] >= 20 and users[-1] > 6 * users[len(users) // 2]
    assert movies[10] < 10 and movies[-1] > 0.25 * len(users)


def test_finer_tastes_fall_as_told_are_in_the_stars_and_leave_all_else_as_it_is(wide, tmp_path):
    generate(tmp_path, num_users=1_500, num_movies=1_200, num_ratings=90_000, tastes=8)
    plain, truth = read_truth(wide), read_truth(tmp_path)
    assert truth.keys() - plain.keys() == {"user_finer_taste", "movie_finer_trait"}
    changed = {"best_rmse", "best_rmse_latest", "star_histogram"}
    assert all(np.array_equal(plain[name], truth[name]) for name in plain.keys() - changed)
    assert (read_bytes(tmp_path)["movie_titles.csv"], [rating[:2] for rating in read_ratings(tmp_path)]) == (
        read_bytes(wide)["movie_titles.csv"], [rating[:2] for rating in read_ratings(wide)])
    tastes, traits = truth["user_finer_taste"].astype(float), truth["movie_finer_trait"].astype(float)
    assert (tastes.shape, traits.shape) == ((1_500, 8), (1_200, 8))
    np.testing.assert_allclose(tastes.var(0) * traits.var(0), 0.05 / np.arange(1, 9) ** 0.85, rtol=0.25)
    user = {user_id: number for number, user_id in enumerate(truth["user_id"].tolist())}
    movie = {movie_id: number for number, movie_id in enumerate(truth["movie_id"].tolist())}
    movie_ids, user_ids, stars, _ = zip(*read_ratings(tmp_path), strict=True)
    user_idx, movie_idx = (np.array([places[one] for one in ids]) for places, ids in ((user, user_ids),
                                                                                   (movie, movie_ids)))
    finer = (tastes[user_idx] * traits[movie_idx]).sum(1)
    expected, _ = star_moments(latent_mean(plain, user_idx, movie_idx) + finer, truth["noise_std"])
    residual = np.array(stars) - expected
    assert residual.std() == pytest.approx(truth["best_rmse"], abs=0.005)
    assert abs(residual @ finer / (finer @ finer)) < 0.01
    latent = latent_mean(truth, 3, np.arange(1_200))  # one user, all movies
    np.testing.assert_allclose(latent, latent_mean(plain, 3, np.arange(1_200)) + traits @ tastes[3], atol=1e-5)


def test_the_best_ten_unseen_movies_of_a_fan_are_of_their_genre(wide):
    truth = read_truth(wide)
    seen = defaultdict(list)
    for movie_id, user_id, _, _ in read_ratings(wide):
        seen[user_id].append(movie_id)
    fans = np.flatnonzero(truth["user_is_fan"])
    assert len(fans) > 150
    assert (truth["user_fan_genre"][~truth["user_is_fan"]] == -1).all()
    for user_idx in fans:
        in_genre = truth["movie_genre"] == truth["user_fan_genre"][user_idx]
        is_seen = np.isin(truth["movie_id"], seen[truth["user_id"][user_idx]])
        assert (is_seen & in_genre).sum() <= in_genre.sum() / 4
        latent = latent_mean(truth, user_idx, np.arange(len(in_genre)))
        best = np.argsort(np.where(is_seen, np.inf, -latent))[:10]
        assert in_genre[best].sum() >= 9


@pytest.mark.parametrize(("flags", "sentence"), [
    (["--num_users", "0"], "--num_users 0 is not positive"),
    (["--num_movies", "-3"], "--num_movies -3 is not positive"),
    (["--num_ratings", "0"], "--num_ratings 0 is not positive"),
    (["--num_users", "10", "--num_movies", "10", "--num_ratings", "101"], "--num_ratings 101 is more than"),
    (["--num_users", "99", "--num_ratings", "98"], "--num_ratings 98 is less than --num_users 99"),
    (["--num_users", "9", "--num_movies", "99", "--num_ratings", "98"], "less than --num_movies 99"),
    (["--seed", "-1"], "--seed -1 is outside"),
    (["--tastes", "-1"], "--tastes -1 is outside"), (["--tastes", "1025"], "--tastes 1025 is outside")])
def test_impossible_counts_are_refused_in_one_sentence(tmp_path, capsys, flags, sentence):
    assert main(["--out_dir", str(tmp_path / "out"), *flags]) == 1
    err = capsys.readouterr().err
    assert sentence in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flags", [
    ["--num_user", "5"], ["--like_netflix", "--num_users", "5"], ["--seed", "x"]])
def test_wrong_flags_exit_with_2(flags):
    with pytest.raises(SystemExit) as exit_info:
        main(flags)
    assert exit_info.value.code == 2


@pytest.mark.parametrize("name", ["combined_data_3.txt", "movie_titles.csv", "probe.txt"])
def test_foreign_files_are_never_overwritten(tmp_path, capsys, name):
    (tmp_path / name).write_text("someone's data")
    assert main(["--out_dir", str(tmp_path)]) == 1
    assert str(tmp_path / name) in capsys.readouterr().err
    assert read_bytes(tmp_path) == {name: b"someone's data"}


def test_files_of_an_earlier_run_are_overwritten_and_an_old_probe_goes(small, tmp_path):
    generate(tmp_path, **SMALL, seed=5, with_probe=True)
    generate(tmp_path, **SMALL)
    expected = read_bytes(small)
    del expected["probe.txt"]
    assert read_bytes(tmp_path) == expected


def test_interrupted_run_leaves_the_folder_as_it_was(small, tmp_path, monkeypatch):
    generate(tmp_path, **SMALL, with_probe=True)

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic_netflix, "_write_titles", interrupt)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path, **SMALL, seed=5)
    assert read_bytes(tmp_path) == read_bytes(small)


@pytest.mark.parametrize(("error", "code", "sentence"), [
    (KeyboardInterrupt(), 130, "\ninterrupted\n"), (MemoryError(), 1, "error: out of memory\n"),
    (OSError(28, "No space left on device"), 1, "error: {out}: the disk is full\n")], ids=repr)
def test_a_command_that_fails_says_why_and_leaves_the_folder_as_it_was(
        small, tmp_path, capsys, monkeypatch, error, code, sentence):
    generate(tmp_path, **SMALL, with_probe=True)

    def fail(*_):
        raise error

    monkeypatch.setattr(synthetic_netflix, "_write_titles", fail)
    flags = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]
    assert main(["--out_dir", str(tmp_path), *flags]) == code
    assert capsys.readouterr().err.endswith(sentence.format(out=tmp_path))
    assert read_bytes(tmp_path) == read_bytes(small)


def test_command_runs_from_any_folder_and_prints_a_summary(tmp_path):
    command = [sys.executable, str(SCRIPT), "--num_users", "200", "--num_movies", "60", "--num_ratings", "5000"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    truth = read_truth(tmp_path / "data" / "raw")
    assert "5,000 ratings of 60 movies by 200 users" in done.stdout
    assert f"best reachable RMSE {truth['best_rmse']:.4f}" in done.stdout
    assert "combined_data_4.txt" in done.stdout
    assert done.stderr == "", "the bars keep silent where no terminal is"
