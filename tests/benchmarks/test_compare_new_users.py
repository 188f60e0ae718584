"""The comparison on new people against independent computations; what needs a peer is skipped where it is missing."""

import contextlib
import json

import numpy as np
import pandas as pd
import pytest

from benchmarks import compare_accuracy, compare_new_users, new_user_peers
from benchmarks import left_out as left_out_people
from preprocessing import netflix_preprocess, synthetic_netflix
from preprocessing.dataset import movies_frame, ratings_frame, read_meta
from recommending.recommender import Recommender
from training.batches import load_dataset

SIZES, USERS = (0, 2, 10), 30
SMALL = ["--embedding_dim", "16", "--ensemble_size", "2", "--hidden_dim", "16", "--epochs", "2"]


@pytest.fixture(scope="module")
def ratings(data_dir):
    return ratings_frame(data_dir, columns=["user_id", "movie_id", "stars", "date"])


@pytest.fixture(scope="module")
def left_out(ratings):
    """Return the ids of the people of the test, and of those who choose settings."""
    return left_out_people.leave_out(ratings, USERS, max(SIZES), 0)


@pytest.fixture(scope="module")
def rest_dir(data_dir, ratings, left_out, tmp_path_factory):
    """A data set of the people who stay."""
    folder = tmp_path_factory.mktemp("new users") / "rest"
    stay = ratings[~ratings["user_id"].isin(left_out[0] + left_out[1])]
    left_out_people.preprocess_rest(data_dir, stay, read_meta(data_dir), folder, 0)
    return folder


@pytest.fixture(scope="module")
def data(rest_dir):
    return load_dataset(rest_dir, with_validation=True)


@pytest.fixture
def ask(data_dir, capsys):
    """Run the comparison; return what it prints and the object of its last line."""

    def ask(*flags: str) -> tuple[str, dict]:
        capsys.readouterr()
        assert compare_new_users.main(["--data_dir", str(data_dir), "--users", str(USERS), "--sizes",
                                       ",".join(map(str, SIZES)), *flags]) == 0
        output = capsys.readouterr().out
        return output, json.loads(output.strip().splitlines()[-1])

    return ask


def people_of(ratings, ids, data, order="random"):
    """Return the people of some user_ids, and a list of their own ratings by movie_id."""
    own = [ratings[ratings["user_id"] == user_id] for user_id in sorted(ids)]
    return left_out_people.people_of(ratings, ids, data, max(SIZES), order, 0), own


def test_the_people_who_stay_are_what_preprocessing_makes_of_files_without_the_others(
        raw_dir, rest_dir, left_out, tmp_path):
    gone, raw = {str(user_id) for ids in left_out for user_id in ids}, tmp_path / "raw"
    assert len(left_out[0]) == len(left_out[1]) == USERS and len(gone) == 2 * USERS
    raw.mkdir()
    (raw / "movie_titles.csv").write_bytes((raw_dir / "movie_titles.csv").read_bytes())
    for path in raw_dir.glob("combined_data_*.txt"):
        lines = [line for line in path.read_text().splitlines() if line.partition(",")[0] not in gone]
        (raw / path.name).write_text("\n".join(lines) + "\n")
    expected = tmp_path / "expected"
    assert netflix_preprocess.main(["--raw_dir", str(raw), "--out_dir", str(expected), "--split", "random",
                                    "--test_fraction", "1e-12"]) == 0
    pd.testing.assert_frame_equal(ratings_frame(rest_dir), ratings_frame(expected))
    pd.testing.assert_frame_equal(movies_frame(rest_dir), movies_frame(expected))
    assert set(ratings_frame(rest_dir)["split"].unique()) == {"train", "validation"}


@pytest.mark.parametrize("order", ["random", "earliest"])
def test_people_give_some_of_their_ratings_and_are_asked_all_others(ratings, left_out, data, order):
    people, owns = people_of(ratings, left_out[0], data, order)
    again, _ = people_of(ratings, left_out[0], data, order)
    in_order_of_id = 0
    for person, other, own in zip(people, again, owns, strict=True):
        movies = np.concatenate([person.given_idx, person.asked_idx])
        stars = dict(zip(data.movies.movie_id[movies].tolist(), [*person.given, *person.asked], strict=True))
        assert stars == dict(zip(own["movie_id"], own["stars"], strict=True)) and len(movies) == len(own)
        assert len(person.given_idx) == max(SIZES) and np.array_equal(person.given_idx, other.given_idx)
        day = dict(zip(own["movie_id"], own["date"], strict=True))
        days = [day[movie_id] for movie_id in data.movies.movie_id[movies].tolist()]
        assert order == "random" or days == sorted(days)
        in_order_of_id += list(movies) == sorted(movies)
    assert not in_order_of_id


def test_who_is_asked_gives_what_they_find_in_lists_of_five_and_passes_the_rest():
    """Movies 1, 4 and 6 may be given. The first list holds two of them, the second none, the third the last one."""
    person = left_out_people.Person(np.array([6, 4, 1]), np.array([3.0, 5.0, 2.0]), np.array([9]), np.array([4.0]),
                                    np.array([np.nan]))
    lists, asked = iter([[0, 1, 2, 3, 4], [10, 11, 12, 13, 14], [15, 6], []]), []

    def ask(rated, passed):
        asked.append((dict(rated), list(passed)))
        return next(lists)

    found, listed = left_out_people.given_when_asked(person, ask)
    assert found.given_idx.tolist() == [1, 4, 6] and found.given.tolist() == [2.0, 5.0, 3.0]
    assert listed.tolist() == [2, 5, 12] and found.asked_idx is person.asked_idx
    assert asked == [({}, []), ({1: 2.0, 4: 5.0}, [0, 2, 3]), ({1: 2.0, 4: 5.0}, [0, 2, 3, 10, 11, 12, 13, 14])]
    lists = iter([[4], []])  # who is asked for no more gives the others as they were
    found, listed = left_out_people.given_when_asked(person, ask)
    assert found.given_idx.tolist() == [4, 6, 1] and listed.tolist() == [1, *[left_out_people.MOST_LISTED] * 2]


@pytest.fixture
def given_to_popularity(monkeypatch):
    """Plant a peer without stars; return the list of what people give to it, question by question."""
    asked = []

    def fit(data, seed, num_threads):
        return lambda given: (asked.append(given), np.zeros((len(given), data.num_movies)))[1]

    monkeypatch.setitem(new_user_peers.PEERS, "popularity", new_user_peers.NewUserPeer(
        fit, "planted", "", predicts_stars=False))
    return asked


def test_popular_and_controversial_movies_are_asked_in_the_order_of_the_ratings_of_those_who_stay(
        ask, ratings, left_out, data, given_to_popularity):
    train = ratings_frame(data.data_dir)
    groups = train.groupby("movie_id", observed=True)["stars"]
    scores = {"popular": groups.size(), "controversial": groups.size() * groups.var(ddof=0)}
    for order, score in scores.items():
        score = score.reindex(data.movies.movie_id).fillna(0).to_numpy().round(6)
        output, answer = ask("--models", "popularity", "--sizes", "2,10", "--order", order)
        for size, given in zip((2, 10), given_to_popularity[-2:], strict=True):
            for (movie_idx, _), person in zip(given, people_of(ratings, left_out[0], data)[0], strict=True):
                assert set(movie_idx.tolist()) <= set(person.given_idx.tolist()) and len(movie_idx) == size
                assert np.array_equal(np.sort(-score[movie_idx]), -score[movie_idx])
                assert score[movie_idx[-1]] == np.sort(score[person.given_idx])[-size]
        listed = answer["left_out"][0]["listed"]
        assert f"movies listed until then: {listed['2']:.1f} for k = 2, {listed['10']:.1f} for k = 10" in output
        assert 2 <= listed["2"] < listed["10"]


def test_movies_are_chosen_by_the_towers_of_the_people_who_stay(ask, ratings, left_out, data, rest_dir, tmp_path,
                                                                given_to_popularity):
    _, answer = ask("--models", "popularity,two_tower", "--sizes", "1,10", "--order", "chosen", "--main_flags",
                    f"--relevance_weight 0 {' '.join(SMALL)}")
    assert set(answer["results"]) == {"popularity", "two_tower"}
    assert compare_accuracy.train_command.main(["--data_dir", str(rest_dir), "--run_dir", str(tmp_path / "run"),
                                                "--num_threads", "1", "--relevance_weight", "0", *SMALL]) == 0
    recommender = Recommender.load(tmp_path / "run", rest_dir)
    order = [recommender.movie_idx_of(row.movie_id) for row in recommender.ask(recommender.history_from({}), 5)]
    found = 0
    for (movie_idx, _), person in zip(given_to_popularity[-2], people_of(ratings, left_out[0], data)[0], strict=True):
        first = [movie for movie in order if movie in person.given_idx]
        assert not first or movie_idx.tolist() == first[:1]
        found += bool(first)
    assert found > USERS / 2


@pytest.fixture
def record(monkeypatch, data):
    """Plant a peer that knows the stars of everybody; return a list of what it is asked."""
    asked = []

    def plant(ratings, movies, predicts_stars=True):
        table = ratings.pivot(index="user_id", columns="movie_id", values="stars").reindex(columns=movies).to_numpy()

        def fit(data, seed, num_threads, add=0.0):
            def score(given):
                asked.append((add, given))
                rows = [np.flatnonzero((table[:, movie_idx] == stars).all(1)) for movie_idx, stars in given]
                assert all(len(row) == 1 for row in rows)
                return np.nan_to_num(table[np.concatenate(rows)], nan=0.0) + add
            return score

        monkeypatch.setitem(new_user_peers.PEERS, "als", new_user_peers.NewUserPeer(
            fit, "planted", "", {"add": (0.5, 0.0, -0.25)}, needs_ratings=True, predicts_stars=predicts_stars))
        return asked

    return plant


def test_who_knows_everything_makes_no_error_and_settings_are_chosen_by_other_people(
        ask, ratings, left_out, data, record):
    asked = record(ratings.astype({"user_id": int, "movie_id": int}), data.movies.movie_id)
    output, answer = ask("--models", "als", "--sizes", "0,10")
    results = answer["results"]["als"]
    assert results.pop("ndcg@10") == [None, pytest.approx(1)]
    assert results == {"rmse": [None, 0], "mae": [None, 0]} | {
        f"{name}_std": [None, None] for name in ("rmse", "mae", "ndcg@10")}
    assert answer["settings"] == {"als": [{"add": 0.0}]} and [add for add, _ in asked] == [0.5, 0.0, -0.25, 0.0]
    expected = [[(person.given_idx.tolist(), person.given.tolist()) for person in people_of(ratings, ids, data)[0]]
                for ids in left_out]
    found = [[(movie_idx.tolist(), stars.tolist()) for movie_idx, stars in given] for _, given in asked]
    assert found == [expected[1]] * 3 + [expected[0]]
    assert answer["left_out"][0]["people"] == USERS and "        -   0.0000" in output


def test_two_means_are_those_of_the_people_who_stay_and_of_what_is_given(ask, ratings, left_out, data, monkeypatch):
    for name, grid in (("movie_mean", {"shrink": (3,)}), ("two_means", {"shrink": (3,), "user_shrink": (2,)})):
        peer = new_user_peers.PEERS[name]
        monkeypatch.setitem(new_user_peers.PEERS, name, new_user_peers.NewUserPeer(peer.fit, peer.title, "", grid))
    output, answer = ask("--models", "movie_mean,two_means")
    stay = ratings[~ratings["user_id"].isin(left_out[0] + left_out[1])]
    mean, groups = stay["stars"].mean(), stay.groupby("movie_id", observed=True)["stars"]
    of_movie = ((groups.sum() + 3 * mean) / (groups.size() + 3)).reindex(data.movies.movie_id).to_numpy()
    for column, size in enumerate(SIZES):
        errors, one_errors = [], []
        for person in people_of(ratings, left_out[0], data)[0]:
            above = (person.given[:size] - of_movie[person.given_idx[:size]]).sum() / (size + 2)
            one_errors += (of_movie[person.asked_idx] - person.asked).tolist()
            errors += ((of_movie[person.asked_idx] + above).clip(1, 5) - person.asked).tolist()
        for name, error in (("movie_mean", np.array(one_errors)), ("two_means", np.array(errors))):
            assert answer["results"][name]["rmse"][column] == pytest.approx((error**2).mean() ** 0.5, abs=1e-6)
            assert answer["results"][name]["mae"][column] == pytest.approx(np.abs(error).mean(), abs=1e-6)
            assert f"{(error**2).mean() ** 0.5:.4f}" in output


def test_with_validation_the_people_of_the_test_are_not_asked(ask, ratings, left_out, data, record, monkeypatch):
    asked, trained = record(ratings.astype({"user_id": int, "movie_id": int}), data.movies.movie_id), []
    expected = [(person.given_idx.tolist(), person.given.tolist())
                for person in people_of(ratings, left_out[1], data)[0]]
    output, answer = ask("--models", "als", "--sizes", "0,10", "--validation")
    assert len(asked) == 4 and answer["validation"] and f"{USERS} people of validation" in output
    for _, given in asked:
        assert [(movie_idx.tolist(), stars.tolist()) for movie_idx, stars in given] == expected

    def train(data_dir, run_dir, seed, num_threads, flags):
        trained.append((seed, num_threads, flags))
        raise KeyboardInterrupt

    monkeypatch.setattr(compare_new_users, "train_towers", train)
    flags = ["--data_dir", str(data.data_dir), "--models", "two_tower", "--sizes", "1"]
    assert compare_new_users.main([*flags, "--main_flags", "--epochs 2 --without 'fold_in'"]) == 130
    assert trained == [(0, 1, ["--epochs", "2", "--without", "fold_in"])]


def test_lists_leave_out_what_may_be_given_and_are_measured_by_what_is_liked_of_the_rest(ratings, left_out, data):
    people = people_of(ratings, left_out[0], data)[0]
    scores = np.random.default_rng(0).random((len(people), data.num_movies))
    found = compare_new_users.measure_peer("popularity", lambda given: scores, data, people, [0, 2])["ndcg@10"]
    expected = []
    for person, score in zip(people, scores, strict=True):
        liked = set(person.asked_idx[person.asked >= 4].tolist())
        order = [movie for movie in np.argsort(-score).tolist() if data.movies.num_train_ratings[movie]
                 and movie not in person.given_idx][:10]
        gains = [1 / np.log2(rank + 2) for rank in range(10)]
        if liked:
            expected.append(sum(gain for gain, movie in zip(gains, order, strict=True) if movie in liked)
                            / sum(gains[:len(liked)]))
    assert found == pytest.approx([np.mean(expected)] * 2)


@contextlib.contextmanager
def remembered(kind):
    """Yield a list of the models of a class that are fitted."""
    fits, fit = [], kind.fit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "fit", lambda model, *args, **named: (fits.append(model), fit(model, *args, **named))[1])
        yield fits


def test_als_scores_equal_its_own_predictions(ratings, left_out, data):
    cmfrec = pytest.importorskip("cmfrec")
    with remembered(cmfrec.CMF) as fits:
        score = new_user_peers.fit_als(data, 0, 1, k=4, penalty=("rating", 0.1))
    person, rated = people_of(ratings, left_out[0], data)[0][0], data.movies.num_train_ratings > 0
    expected = fits[0].predict_warm(np.flatnonzero(rated), X_col=person.given_idx, X_val=person.given)
    np.testing.assert_allclose(score([(person.given_idx, person.given)])[0, rated], expected, atol=1e-6)


@pytest.mark.parametrize("signal", ["rated", "liked"])
def test_orders_of_pairs_equal_their_own_and_fall_back_on_the_popular(ratings, left_out, data, signal):
    implicit = pytest.importorskip("implicit")
    from scipy.sparse import csr_matrix

    with remembered(implicit.cpu.als.AlternatingLeastSquares) as fits:
        als = new_user_peers.fit_implicit_als(data, 0, 1, signal, factors=8, regularization=1, alpha=3)
    ease = new_user_peers.fit_ease(data, 0, 1, signal, penalty=50)
    people = people_of(ratings, left_out[0], data)[0]
    given = [(person.given_idx, person.given) for person in people]
    pairs = np.zeros((len(people), data.num_movies), np.float32)
    for row, (movie_idx, stars) in enumerate(given):
        pairs[row, movie_idx[stars >= (4 if signal == "liked" else 1)]] = 1
    everybody = np.zeros((data.num_users, data.num_movies))
    train = data.train
    everybody[train.user_idx(), train.movie_idx.long()] = train.stars >= (4 if signal == "liked" else 1)
    inverse = np.linalg.inv(everybody.T @ everybody + 50 * np.eye(data.num_movies))
    weights = np.where(np.eye(data.num_movies) > 0, 0, -inverse / np.diag(inverse))
    some = pairs.sum(1) > 0
    np.testing.assert_allclose(ease(given)[some], (pairs @ weights)[some], atol=1e-4)
    listed, scores = fits[0].recommend(np.arange(len(people)), csr_matrix(pairs), N=data.num_movies,
                                       filter_already_liked_items=False, recalculate_user=True)
    np.testing.assert_allclose(np.take_along_axis(als(given), listed, 1)[some], scores[some], rtol=1e-3, atol=1e-4)
    nothing = [(np.zeros(0, np.int64), np.zeros(0))]
    number = np.bincount(train.movie_idx.long(), minlength=data.num_movies)
    for score in (als, ease, new_user_peers.fit_popularity(data, 0, 1)):
        assert np.array_equal(score(nothing), number[None])


def test_towers_are_trained_without_the_people_and_asked_through_the_recommender(
        ask, ratings, left_out, data, rest_dir, raw_dir, tmp_path, monkeypatch):
    parse = compare_accuracy.train_command.parse_args
    monkeypatch.setattr(compare_accuracy.train_command, "parse_args", lambda flags: parse([*flags, *SMALL]))
    output, answer = ask("--models", "two_tower", "--truth", str(raw_dir / "planted_truth.npz"), "--picture",
                         str(tmp_path / "new.png"))
    assert (tmp_path / "new.png").read_bytes().startswith(b"\x89PNG") and "RMSE TO TRUTH" in output
    monkeypatch.undo()
    assert compare_accuracy.train_command.main(["--data_dir", str(rest_dir), "--run_dir", str(tmp_path / "run"),
                                                "--num_threads", "1", *SMALL]) == 0
    recommender, truth = Recommender.load(tmp_path / "run", rest_dir), np.load(raw_dir / "planted_truth.npz")
    people, owns = people_of(ratings, left_out[0], data)
    for column, size in enumerate(SIZES):
        errors, from_truth, noise, ndcg = [], [], [], {"two_tower": [], "two_tower_relevance": []}
        for person, own in zip(people, owns, strict=True):
            ids = [data.movies.movie_id[movies].tolist() for movies in (person.given_idx, person.asked_idx)]
            history = recommender.history_from(dict(zip(ids[0][:size], person.given.tolist())))
            stars = recommender.predict(history, ids[1])
            user, movies = np.searchsorted(truth["user_id"], own["user_id"].iloc[0]), np.searchsorted(
                truth["movie_id"], ids[1])
            latent = (truth["user_mean"][user] + truth["movie_quality"][movies] + truth["movie_year_effect"][movies]
                      + truth["movie_direction"][movies] @ truth["user_taste"][user])
            expected = synthetic_netflix.star_moments(latent, truth["noise_std"])[0]
            errors += (stars - person.asked).tolist()
            from_truth += (stars - expected).tolist()
            noise += (expected - person.asked).tolist()
            liked = {movie_id for movie_id, given in zip(ids[1], person.asked, strict=True) if given >= 4}
            for row, order in (("two_tower", "rating"), ("two_tower_relevance", "relevance")):
                listed = [line.movie_id for line in recommender.recommend(history, 1000, rank_by=order)
                          if line.movie_id not in ids[0]][:10]
                gains = 1 / np.log2(np.arange(2, 12))
                if liked:
                    ndcg[row].append(gains[[movie_id in liked for movie_id in listed]].sum()
                                     / gains[:len(liked)].sum())
        results = answer["results"]
        for row, measure, values in (("two_tower", "rmse", errors), ("two_tower", "truth_rmse", from_truth),
                                     ("truth", "rmse", noise)):
            assert results[row][measure][column] == pytest.approx(np.mean(np.square(values)) ** 0.5, abs=1e-4)
        for row, values in ndcg.items():
            assert results[row]["ndcg@10"][column] == pytest.approx(np.mean(values), abs=1e-3)
    assert results["truth"]["rmse"][0] < results["two_tower"]["rmse"][-1] < results["two_tower"]["rmse"][0]
    assert set(results["two_tower_relevance"]) == {"ndcg@10", "ndcg@10_std"}


def test_towers_without_an_order_by_relevance_are_measured_by_rating_alone(ask):
    _, answer = ask("--models", "two_tower", "--main_flags", " ".join(["--relevance_weight", "0", *SMALL]))
    assert set(answer["results"]) == {"two_tower"}
    assert all(value is not None for name in ("rmse", "ndcg@10") for value in answer["results"]["two_tower"][name])


def test_mean_and_deviation_are_over_seeds_with_other_people(ask):
    _, both = ask("--models", "two_means,popularity", "--seeds", "2", "--trials", "2")
    _, first = ask("--models", "two_means,popularity", "--trials", "2")
    for row, measure in (("two_means", "rmse"), ("popularity", "ndcg@10")):
        mean, deviation, one = (np.array(answer["results"][row][name]) for answer, name in (
            (both, measure), (both, f"{measure}_std"), (first, measure)))
        np.testing.assert_allclose(abs(one - mean) * 2**0.5, deviation, rtol=1e-6)
        assert (deviation > 0).all() and first["results"][row][f"{measure}_std"] == [None] * len(SIZES)


def test_too_few_ratings_and_a_missing_data_set_get_one_sentence(data_dir, tmp_path, capsys):
    for flags, sentence in ((["--data_dir", str(tmp_path / "nothing")], "meta.json not found"),
                            (["--data_dir", str(data_dir), "--sizes", "9999"], "0 of 400 users have more than 9999"),
                            (["--data_dir", str(data_dir), "--truth", "nothing.npz"], "nothing.npz not found"),
                            (["--data_dir", str(data_dir), "--picture", "no/such/a.png"], "no/such/a.png does not")):
        assert compare_new_users.main([*flags, "--models", "two_means"]) == 1
        error = capsys.readouterr().err
        assert sentence in error and error.count("\n") == 1


@pytest.mark.parametrize("flags", [["--models", "als,nothing"], ["--seeds", "0"], ["--users", "0"], ["--sizes", "0"],
                                   ["--sizes", "1,x"], ["--order", "latest"], ["--picture", "a.pdf"],
                                   ["--trials", "0"]])
def test_wrong_flags_exit_with_code_2(flags):
    with pytest.raises(SystemExit) as exit_info:
        compare_new_users.main(flags)
    assert exit_info.value.code == 2
