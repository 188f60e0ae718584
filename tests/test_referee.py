"""What the commands write, compared with the model written a second time (referee.py)."""

import csv
import datetime
import importlib.util
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics
from sklearn.linear_model import Ridge

import main
import rec
from preprocessing import movielens_preprocess, netflix_preprocess

spec = importlib.util.spec_from_file_location("referee", Path(__file__).with_name("referee.py"))
referee = importlib.util.module_from_spec(spec)
spec.loader.exec_module(referee)

SMALL = ("--embedding_dim 8 --ensemble_size 2 --hidden_dim 24 --num_threads 1 --epochs 1 --batch_size 2 --lr 0.004 "
         "--time_l2 1")
# Layout and flags. Without flags: both sides, as users are few; a second fit; relevance.
RUNS = {
    "whole stars": ("netflix", "--dropout 0.5"),
    "whole stars, user side, all days": ("netflix", "--no-refit --blend user"),
    "whole stars, less of users": ("netflix", "--no-refit --without user_embedding,pooled_history,year"),
    "half stars": ("csv", "--ensemble_size 4"),
    "half stars, no biases, no days": ("csv", "--no-refit --blend user --without biases,drift,mood --embedding_dim 48"),
    "half stars, no features": ("csv", "--blend user --without user_features,movie_features"),
    "half stars, prior alone": ("csv", "--no-refit --without fold_in"),
    "one day": ("dat", ""),
    "one day, one member": ("dat", "--no-refit --ensemble_size 1 --relevance_weight 0"),
    "compiled loops": (None, None),  # the session's run: 12 epochs of 14,000 ratings
}
ALL = {"--include_seen": True, "--min_ratings": 0, "--top_n": 100}
QUESTIONS = {
    "user": {}, "all": ALL, "date": {"--date": 0.6}, "before all": {"--date": -1, **ALL},
    "after all": {"--date": 2, "--top_n": 3}, "more": {"--rate": True, **ALL}, "new": {"new": True, "--rate": True},
    "new, date": {"new": True, "--rate": True, "--date": 0.3}, "relevance": {"--rank_by": "relevance"},
    "relevance, date": {"--rank_by": "relevance", "--date": 0.6, **ALL},
    "relevance, new": {"--rank_by": "relevance", "new": True, "--rate": True}}
RATE = {0: 5.0, 2: 1.5, 5: 4.0, 9: 2.0, 14: 3.0}  # stars typed in, by movie


@pytest.fixture(scope="module")
def data_dirs(tmp_path_factory) -> dict[str, Path]:
    """700 made-up ratings by 40 users of 36 movies, of which the last six have none, in three layouts: whole stars with
    dates, half stars with times, and whole stars alone. Ids have gaps, tastes are planted."""
    rng = np.random.default_rng(0)
    chance = rng.exponential(size=(40, 36)) * rng.exponential(size=(1, 36)) * (0.2 + rng.exponential(size=(40, 1)))
    chance[:, -6:] = 0
    pair = np.sort(rng.choice(chance.size, 700, replace=False, p=chance.ravel() / chance.sum()))
    user, movie, day = pair // 36, pair % 36, rng.integers(0, 38 * 32, 700)
    day[:2] = 0, 38 * 32 - 1
    tastes, kinds = rng.normal(size=(40, 3)), rng.normal(size=(36, 3))
    stars = 3.3 + 0.9 * (tastes[user, 0] + kinds[movie, 0]) + 0.5 * (tastes[user] * kinds[movie])[:, 1:].sum(1)
    stars += rng.normal(0, 0.4, 700)
    whole, half = np.clip(stars.round(), 1, 5).astype(int), np.clip((2 * stars).round() / 2, 0.5, 5)
    years = ["" if k % 7 == 3 else " (1999)" if k >= 30 else f" ({1960 + k})" for k in range(36)]
    folders = {name: tmp_path_factory.mktemp(name) for name in ("netflix", "csv", "dat")}

    def write(layout: str, name: str, lines: list[str]) -> None:
        (folders[layout] / name).write_text("".join(f"{line}\n" for line in lines))

    write("netflix", "movie_titles.csv", [f"{2 + 5 * k},{year[2:-1] or 'NULL'},Movie {k}"
                                          for k, year in enumerate(years)])
    write("netflix", "combined_data_1.txt", [line for k in range(30) for line in (f"{2 + 5 * k}:", *(
        f"{7 + 3 * user[j]},{whole[j]},{datetime.date(2001, 5, 6) + datetime.timedelta(int(day[j]))}"
        for j in np.flatnonzero(movie == k)))])
    write("csv", "movies.csv", ["movieId,title,genres", *(f"{2 + 5 * k},Movie {k}{year},x"
                                                          for k, year in enumerate(years))])
    write("csv", "ratings.csv", ["userId,movieId,rating,timestamp", *(
        f"{7 + 3 * user[j]},{2 + 5 * movie[j]},{half[j]},{86_400 * (10_000 + day[j]) + 77 * j}" for j in range(700))])
    write("dat", "movies.dat", [f"{2 + 5 * k}::Movie {k}{year}::x" for k, year in enumerate(years)])
    write("dat", "ratings.dat", [f"{7 + 3 * user[j]}::{2 + 5 * movie[j]}::{whole[j]}" for j in range(700)])
    for name, folder in folders.items():
        command = netflix_preprocess if name == "netflix" else movielens_preprocess
        assert command.main(["--raw_dir", str(folder), "--out_dir", str(folder / "data"), "--val_fraction", "0.1"]) == 0
    return {name: folder / "data" for name, folder in folders.items()}


class Run:
    """A run's folders, and what the referee makes of its checkpoints."""

    def __init__(self, data_dir: Path, run_dir: Path) -> None:
        self.flags, self.run_dir = ["--data_dir", str(data_dir), "--run_dir", str(run_dir)], run_dir
        self.data = referee.Data(data_dir)
        self.last, self.best = (referee.Model(run_dir / f"{name}.pt", self.data) for name in ("last", "best"))
        self.before_test = self.data.split("train", "validation")
        self.movie_id, self.user_id = self.data.movies.movie_id.to_numpy(), self.data.users.user_id.to_numpy()
        with open(run_dir / "metrics.csv") as file:
            self.epochs = list(csv.DictReader(file))

    def places(self, rows: list[dict]) -> np.ndarray:
        return np.searchsorted(self.movie_id, [row["movie_id"] for row in rows])


def trained(data_dir: Path, run_dir: Path, flags: str) -> Run:
    assert main.main(["--data_dir", str(data_dir), "--run_dir", str(run_dir), *SMALL.split(), *flags.split()]) == 0
    return Run(data_dir, run_dir)


@pytest.fixture(scope="module", params=RUNS)
def run(request, data_dirs, tmp_path_factory) -> Run:
    layout, flags = RUNS[request.param]
    if layout is None:
        return Run(request.getfixturevalue("data_dir"), request.getfixturevalue("run_dir"))
    return trained(data_dirs[layout], tmp_path_factory.mktemp("run") / "run", flags)


def test_validation_errors_of_an_epoch(run):
    for model in (run.last, run.best):
        if not model.checkpoint["refit"]:  # else it has seen the validation ratings
            row = run.epochs[model.checkpoint["epoch"] - 1]
            expected = referee.split_errors(model.know(run.data.split("train")), "validation")
            assert {"rmse": float(row["val_rmse"]), "mae": float(row["val_mae"])} == pytest.approx(expected, abs=1e-5)


def test_test_metrics(run):
    results = json.loads((run.run_dir / "test_metrics.json").read_text())
    expected = referee.test_metrics(run.best)
    assert {name for name, row in results.items() if isinstance(row, dict)} == expected.keys()
    for name, row in expected.items():
        tolerance = 2e-4 if name == "calibration" else 1e-5  # it is of differences of probabilities
        found = {key: value for key, value in results[name].items() if value is not None}
        assert found == pytest.approx(row, abs=tolerance)


def test_statistics_of_a_checkpoint(run):
    for model in (run.last, run.best):
        tensors, users, movies = model.checkpoint["model"], model.users, model.movies
        assert model.checkpoint["config"]["stars_mean"] == pytest.approx(users.stars_mean, abs=1e-12)
        expected = {"user_based.movie_tower.year": users.year, "user_based.offset": users.offset,
                    "user_based.movie_tower.num_ratings": users.count, "user_based.movie_tower.mean": users.mean,
                    "relevance.movie_mean": users.mean}
        if movies is not None:
            expected |= {"item_based.movie_tower.num_ratings": movies.count, "item_based.offset": users.offset,
                         "item_based.movie_tower.mean": movies.mean}
        for name in expected.keys() - ({"relevance.movie_mean"} if model.tensors is None else set()):
            np.testing.assert_allclose(tensors[name], expected[name], atol=1e-6, err_msg=name)


def test_weights_of_relevance_after_one_epoch(run):
    if run.last.tensors and len(run.epochs) == 1:
        weights, _ = referee.stack(run.last.know(run.data.split("train")), 8)
        assert run.best.tensors["weights"][0] == pytest.approx(weights, abs=1e-4)  # a second fit keeps them


def test_training_begins_at_the_statistics_and_stacks_until_nothing_changes(data_dirs, tmp_path):
    """At a rate of nearly zero the first of three epochs is the best."""
    run = trained(data_dirs["dat"], tmp_path / "run", "--lr 1e-15 --epochs 3 --batch_size 40 --no-refit")
    tensors, count = run.last.checkpoint["model"], run.last.users.count
    begin = {"relevance.popularity": np.log((count + 0.5) / (count + 0.5).sum())}
    for side, name in ((run.last.users, "user_based"), (run.last.movies, "item_based")):
        begin[f"{name}.movie_tower.bias"] = np.stack([side.mean / side.slope] * 2, 1)
    for name, value in begin.items():
        np.testing.assert_allclose(tensors[name], value, atol=1e-6, err_msg=name)
    weights, gradient = referee.stack(run.best, 8)
    assert gradient == pytest.approx(0, abs=1e-9)
    assert run.best.tensors["weights"][0] == pytest.approx(weights, abs=1e-5)
    assert (run.best.checkpoint["epoch"], run.last.checkpoint["epoch"]) == (1, 3)
    assert abs(weights - referee.stack(run.best, 2)[0]).max() > 1e-4  # two steps are not enough


class Asked:
    """A question to rec.py, as its flags and as the referee understands it."""

    def __init__(self, run: Run, question: dict) -> None:
        data, flags = run.data, {flag: value for flag, value in question.items() if flag != "new"}
        self.day, self.user, known = data.last_day, None, data.ratings[:0]
        if "--date" in flags:  # a share of the data set's days; before and after them all is as on the first and last
            days = round(data.last_day * flags["--date"]) + np.sign(flags["--date"] - 0.5)
            flags["--date"] = datetime.date.fromisoformat(data.meta["day_epoch"]) + datetime.timedelta(days)
            self.day = int(np.clip(days, 0, data.last_day))
        if "new" not in question:
            self.user = data.ratings.user.value_counts().index[4]  # who has rated much, but not all
            flags["--user_id"] = run.user_id[self.user]
            known = data.ratings[(data.ratings.user == self.user) & (data.ratings.day <= self.day)]
        if "--rate" in flags:
            flags["--rate"] = ",".join(f"{run.movie_id[movie]}:{stars}" for movie, stars in RATE.items())
            typed = pd.DataFrame({"movie": list(RATE), "stars": list(RATE.values()), "day": self.day})
            known = pd.concat([known[~known.movie.isin(list(RATE))], typed])
        self.known = referee.Ratings(*(known[name].to_numpy() for name in referee.Ratings._fields))
        self.allowed = data.num_ratings >= flags.get("--min_ratings", 1)
        if "--date" in flags:  # movies of later years are not listed, those of unknown year are
            as_of = datetime.date.fromisoformat(data.meta["day_epoch"]) + datetime.timedelta(self.day)
            self.allowed &= data.movies.year.fillna(0).to_numpy(int) <= as_of.year
        if "--include_seen" not in flags:
            self.allowed[self.known.movie] = False
        self.top_n, self.flags = flags.get("--top_n", 10), []
        for flag, value in flags.items():
            self.flags += [flag] if value is True else [flag, str(value)]


def answer(run: Run, capsys, *flags: str) -> list[dict]:
    capsys.readouterr()
    assert rec.main([*run.flags, "--json", *flags]) == 0
    return json.loads(capsys.readouterr().out)["recommendations"]


def assert_best(listed: np.ndarray, score: np.ndarray, allowed: np.ndarray, top_n: int) -> None:
    """Hold a list to the best by the referee's scores: movies that rounding could confuse may change places, equal ones
    may not."""
    assert len(set(listed)) == len(listed) and allowed[listed].all()
    assert score[listed] == pytest.approx(score[referee.best(score, allowed, top_n)], abs=1e-5)
    equal = np.diff(score[listed].round(9)) == 0
    assert (np.diff(listed)[equal] > 0).all()


@pytest.mark.parametrize("question", QUESTIONS)
def test_list_of_a_person(run, capsys, question):
    asked, model = Asked(run, QUESTIONS[question]), run.best.know(run.before_test)
    by_relevance = question.startswith("relevance")
    if by_relevance and model.tensors is None:
        assert rec.main([*run.flags, *asked.flags]) == 1
        return
    rows = answer(run, capsys, *asked.flags)
    listed, score = run.places(rows), model.list_scores(asked.user, asked.known, asked.day)
    order = model.relevance(asked.user, asked.known, asked.day) if by_relevance else score
    assert_best(listed, order, asked.allowed, asked.top_n)
    predicted = model.scores(asked.user, asked.known, asked.day)
    assert [row["stars"] for row in rows] == pytest.approx(model.stars(predicted[listed]), abs=1e-4)
    assert [row["stars_bound"] for row in rows] == pytest.approx(model.stars(score[listed]), abs=1e-4)
    for row, movie in list(zip(rows, listed, strict=True))[:3]:
        distribution = model.distribution(asked.user, asked.known, movie, predicted[movie])
        np.testing.assert_allclose(list(row["probabilities"].values()), distribution, atol=2e-4)
        assert row["interval"] == pytest.approx(referee.interval(distribution, run.data), abs=2e-3)
        stars = np.array([float(name) for name in row["probabilities"]])
        assert stars.tolist() == np.arange(run.data.low, run.data.high + run.data.step / 2, run.data.step).tolist()
        assert stars @ distribution == pytest.approx(row["stars"], abs=2e-4)
    given = dict(zip(asked.known.movie, asked.known.stars, strict=True)) if "--include_seen" in asked.flags else {}
    assert [row["rated"] for row in rows] == [given.get(movie) for movie in listed]


@pytest.mark.parametrize("question", ["user", "date", "more", "new", "relevance", "relevance, new"])
def test_reasons(run, capsys, question):
    asked, model = Asked(run, QUESTIONS[question]), run.best
    if question.startswith("relevance") and model.tensors is None:
        return
    effects_of = model.relevance_effects if question.startswith("relevance") else model.effects
    rows = answer(run, capsys, "--explain", *asked.flags)
    for movie, row in zip(run.places(rows), rows, strict=True):
        effects, because = effects_of(asked.user, asked.known, movie), row["because"] or []
        places = [asked.known.movie.tolist().index(reason) for reason in run.places(because)]
        found = [reason["effect"] for reason in because]
        assert found == pytest.approx([effect for effect in -np.sort(-effects)[:3] if effect >= 0.005], abs=1e-4)
        assert found == pytest.approx(effects[places], abs=1e-4)
        assert [reason["stars"] for reason in because] == asked.known.stars[places].tolist()


def test_lists_of_everybody(run, tmp_path):
    assert rec.main([*run.flags, "--all_users", "--out", str(tmp_path / "all.parquet"), "--top_n", "7"]) == 0
    lists, model = pd.read_parquet(tmp_path / "all.parquet"), run.best.know(run.before_test)
    for user, known in enumerate(referee.by_user(run.data.ratings, len(run.user_id))):
        own, allowed = lists[lists.user_id == run.user_id[user]], run.data.num_ratings > 0
        allowed[known.movie] = False
        listed, score = np.searchsorted(run.movie_id, own.movie_id), model.list_scores(user, known, run.data.last_day)
        assert own["rank"].tolist() == list(range(1, len(own) + 1))
        assert_best(listed, score, allowed, 7)
        predicted = model.stars(model.scores(user, known, run.data.last_day))
        np.testing.assert_allclose(own.stars, predicted[listed], atol=1e-5)


def test_exported_vectors(run, tmp_path):
    assert rec.main([*run.flags, "--export_vectors", str(tmp_path / "out")]) == 0
    user_ids, users, movie_ids, movies, margins = (
        np.load(tmp_path / "out" / f"{name}.npy")
        for name in ("user_ids", "user_vectors", "movie_ids", "movie_vectors", "margins"))
    listed, model = run.data.num_ratings > 0, run.best.know(run.before_test)
    assert user_ids.tolist() == run.user_id.tolist() and movie_ids.tolist() == run.movie_id[listed].tolist()
    for user, known in enumerate(referee.by_user(run.data.ratings, len(user_ids))):
        score = model.list_scores(user, known, run.data.last_day)[listed]
        np.testing.assert_allclose(movies @ users[user], score, atol=2e-5)
        predicted = model.scores(user, known, run.data.last_day)[listed]
        np.testing.assert_allclose(movies @ users[user] + margins, predicted, atol=2e-5)


def test_similar_and_popular_movies(run, capsys):
    users, listed = run.best.users, run.data.num_ratings > 0
    popular = answer(run, capsys, "--user_id", "1", "--fallback", "popular")
    places = run.places(popular)
    assert places.tolist() == referee.best(run.data.num_ratings, listed).tolist()
    assert [row["num_ratings"] for row in popular] == run.data.num_ratings[places].tolist()
    assert [row["stars"] for row in popular] == pytest.approx(users.stars_mean + users.mean[places], abs=1e-4)
    vectors = users.vectors[..., :-1].reshape(len(run.movie_id), -1)
    cosine = vectors @ vectors[3] / np.maximum(np.linalg.norm(vectors, axis=1), 1e-9) / np.linalg.norm(vectors[3])
    similar = answer(run, capsys, "--similar_to", str(run.movie_id[3]))
    listed[3] = False
    assert_best(run.places(similar), cosine, listed, 10)
    assert [row["similarity"] for row in similar] == pytest.approx(cosine[run.places(similar)], abs=1e-4)


# --- the referee itself ----------------------------------------------------------------------------------------


def test_every_part_has_a_part_in_the_scores(run):
    """Of a model with all of them, or else the comparisons above would not notice one that does nothing."""
    parts = ("user_embedding", "pooled_history", "fold_in", "user_features", "year", "movie_features", "biases",
             "movie_bias_over_time", "recent_user_bias")
    if all(run.best.users.has(part) for part in parts):
        users = range(8)  # of one alone all hidden units may be off
        days = [run.best.known[user].day.max() for user in users]  # there is a recent bias then
        scores = [run.best.scores(user, run.best.known[user], day) for user, day in zip(users, days, strict=True)]
        for part in parts:
            less = referee.Model(run.run_dir / "best.pt", run.data, without=(part,))
            change = [less.scores(user, less.known[user], day) - score
                      for user, day, score in zip(users, days, scores, strict=True)]
            assert np.abs(change).max() > 2e-5, part


def test_the_referees_reasons_add_up_to_the_score(run):
    user = Asked(run, {}).user
    known, day = run.best.known[user], np.zeros(1, int)
    person = run.best.users.person(user, known)
    for movie in range(0, 30, 7):
        with_history, without = (run.best.users.score(who, np.array([movie]), day)[0]
                                 for who in (person, person._replace(vector=person.prior)))
        trust, of_means = run.best.trust(known), run.best.above_means(known).sum()
        expected = run.best.share * trust * (with_history - without) + (1 - trust) * of_means
        assert run.best.effects(user, known, movie).sum() == pytest.approx(expected, abs=1e-12)


def test_the_referees_regression_is_that_of_scikit_learn(run):
    """Which has one l2: coordinates are divided by the roots of theirs."""
    user = Asked(run, {}).user
    side, known = run.best.users, run.best.known[user]
    person, root = side.person(user, known), np.sqrt(side.l2(len(known.movie)))
    for h in range(len(person.prior) * side.has("fold_in")):
        v, residual = side.vectors[known.movie, h], side.residual(known)[:, h]
        ridge = Ridge(alpha=1.0, fit_intercept=False).fit(v / root[h], residual - v @ person.prior[h])
        assert person.vector[h] == pytest.approx(person.prior[h] + ridge.coef_ / root[h], abs=1e-9)


def test_the_referees_measures_are_those_of_scikit_learn():
    rng = np.random.default_rng(1)
    score, relevant = rng.normal(size=(50, 30)), rng.random((50, 30)) < np.linspace(0.05, 0.5, 50)[:, None]
    relevant[:, 4] = True
    for row, liked in zip(score, relevant, strict=True):
        listed = referee.best(row, np.ones(30, bool))
        ndcg, recall = referee.ndcg_and_recall(listed, np.flatnonzero(liked))
        assert ndcg == pytest.approx(metrics.ndcg_score([liked], [row], k=10))
        assert recall == pytest.approx(metrics.recall_score(liked, np.isin(np.arange(30), listed)))
    found = referee.errors(score[0], score[1])
    assert found["rmse"] == pytest.approx(metrics.root_mean_squared_error(score[0], score[1]))
    assert found["mae"] == pytest.approx(metrics.mean_absolute_error(score[0], score[1]))


def test_the_referees_biases_become_the_ridge_regression_of_scikit_learn(data_dirs):
    known = referee.Data(data_dirs["csv"]).ratings
    one_hot = np.hstack([np.eye(40)[known.user], np.eye(36)[known.movie]])
    ridge = Ridge(alpha=5.0, fit_intercept=False).fit(one_hot, known.stars - known.stars.mean())
    assert np.concatenate(referee.fit_biases(known, 40, 36, rounds=1000)) == pytest.approx(ridge.coef_, abs=1e-9)
