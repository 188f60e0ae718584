"""The comparison of orders against independent computations; what needs a peer is skipped where it is missing."""

import dataclasses
import json
from functools import partial

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.linear_model import Ridge

from benchmarks import compare_accuracy, compare_ranking, peers, ranking_peers
from benchmarks.peers import importable
from preprocessing.dataset import DataError
from training.batches import load_dataset

SMALL = ["--embedding_dim", "16", "--ensemble_size", "2", "--hidden_dim", "16", "--epochs", "2"]


@pytest.fixture(scope="module")
def data(data_dir):
    return compare_accuracy.check(data_dir)


@pytest.fixture(scope="module")
def known(data_dir):
    """Return stars (U, M) of what is known before the test, 0 where there is no rating, straight from the file."""
    table = pq.read_table(data_dir / "ratings.parquet")
    user_idx, movie_idx, stars = (table[name].to_numpy() for name in ("user_idx", "movie_idx", "stars"))
    is_test = np.array(table["split"].to_pylist()) == "test"
    matrix = np.zeros((user_idx.max() + 1, movie_idx.max() + 1))
    matrix[user_idx[~is_test], movie_idx[~is_test]] = stars[~is_test]
    return matrix


@pytest.fixture
def small_towers(monkeypatch):
    parse = compare_accuracy.train_command.parse_args
    monkeypatch.setattr(compare_accuracy.train_command, "parse_args", lambda flags: parse([*flags, *SMALL]))


def last_line(text):
    return json.loads(text.strip().splitlines()[-1])


def scores_of(score_users, data):
    return score_users(torch.arange(data.num_users)).numpy()


@pytest.mark.parametrize("signal, lowest", [("rated", 1), ("liked", 4)])
def test_popularity_counts_the_pairs_of_its_signal(data, known, signal, lowest):
    scores = scores_of(ranking_peers.fit_popularity(data, 0, 1, signal), data)
    assert np.array_equal(scores, np.tile((known >= lowest).sum(0), (data.num_users, 1)))


def test_ease_equals_a_ridge_regression_of_each_movie_on_the_others(data, known):
    pairs = (known >= 4).astype(np.float64)
    scores = scores_of(ranking_peers.fit_ease(data, 0, 1, "liked", penalty=30), data)
    for movie in (0, 17, 60):
        others = np.delete(pairs, movie, axis=1)
        ridge = Ridge(alpha=30, fit_intercept=False, solver="cholesky").fit(others, pairs[:, movie])
        np.testing.assert_allclose(scores[:, movie], ridge.predict(others), atol=1e-4)


@pytest.mark.parametrize("name", ["als", "bpr"])
def test_implicit_scores_equal_its_own(data, name, monkeypatch):
    pytest.importorskip("implicit")
    seen, fit = [], ranking_peers._fit_implicit
    monkeypatch.setattr(ranking_peers, "_fit_implicit", lambda model, *rest: (seen.append(model), fit(model, *rest))[1])
    scores = scores_of(getattr(ranking_peers, f"fit_{name}")(data, 0, 1, "liked", factors=8), data)
    users = np.arange(20)
    pairs = ranking_peers.pairs_of(data, "liked")[users]
    movie_idx, expected = seen[0].recommend(users, pairs, N=data.num_movies, filter_already_liked_items=False)
    np.testing.assert_allclose(scores[users[:, None], movie_idx], expected, rtol=1e-4, atol=1e-5)


def test_lightfm_order_equals_its_own(data, monkeypatch):
    lightfm = pytest.importorskip("lightfm")
    seen, fit = [], lightfm.LightFM.fit
    monkeypatch.setattr(lightfm.LightFM, "fit", lambda model, *a, **kw: (seen.append(model), fit(model, *a, **kw))[1])
    scores = scores_of(ranking_peers.fit_lightfm(data, 0, 1, "liked", epochs=3, no_components=8), data)
    for user in range(20):
        own = seen[0].predict(user, np.arange(data.num_movies))
        difference = scores[user] - own  # the user's bias, the same for every movie
        np.testing.assert_allclose(difference, difference[0], atol=1e-4)


@pytest.mark.parametrize("name, settings", [
    ("popularity", {"signal": "liked"}), ("ease", {"signal": "liked", "penalty": 100}),
    ("als", {"signal": "liked", "factors": 8}),
    ("bpr", {"signal": "liked", "factors": 8, "learning_rate": 0.05}),
    ("lightfm", {"signal": "liked", "epochs": 10, "no_components": 8}), ("svd", {})])
def test_every_peer_orders_better_than_chance(data, name, settings):
    if not importable(ranking_peers.PEERS[name].package):
        pytest.skip(f"{ranking_peers.PACKAGES[ranking_peers.PEERS[name].package]} is not installed")
    by_chance = torch.rand(data.num_users, data.num_movies, generator=torch.Generator().manual_seed(0))
    chance = ranking_peers.evaluate(lambda users: by_chance[users], data, [data.train], data.test)
    measures = compare_ranking.run_peer(name, data, 0, 1, settings)
    assert measures["ndcg@10"] > chance["ndcg@10"] and measures["mrr"] > chance["mrr"]


def plant_peer(monkeypatch, fit, grid):
    monkeypatch.setitem(ranking_peers.PEERS, "popularity", ranking_peers.RankingPeer(fit, "planted", "", grid))


def chosen(name, data, num_trials):
    ndcg = partial(ranking_peers.validation_ndcg, name, data, 1)
    return peers.choose_settings(ranking_peers.PEERS[name].grid, num_trials, ndcg, "ndcg@10", highest=True)


def test_settings_are_chosen_by_validation_without_a_look_at_the_test(data_dir, monkeypatch):
    data = dataclasses.replace(load_dataset(data_dir), test=None)
    validation = data.validation
    truth = torch.zeros(data.num_users, data.num_movies)
    truth[validation.user_idx(), validation.movie_idx.long()] = validation.stars.float() - 3

    def fit(given, seed, num_threads, factor):
        assert given is data
        return lambda users: truth[users] * factor

    plant_peer(monkeypatch, fit, {"factor": (-1, 1, 0)})
    tried = chosen("popularity", data, 10)
    assert [row["factor"] for row in tried] == [1, 0, -1]
    assert tried[0]["ndcg@10"] == pytest.approx(1)
    assert len(chosen("popularity", data, 2)) == 2 and chosen("svd", data, 10) == []


def test_without_validation_ratings_no_settings_are_chosen(data):
    with pytest.raises(DataError, match="val_fraction"):
        chosen("popularity", data, 10)


def test_table_and_json_hold_mean_and_deviation_over_seeds(data_dir, data, monkeypatch, capsys):
    number = torch.tensor(data.movies.num_train_ratings).float()
    plant_peer(monkeypatch, lambda given, seed, num_threads, sign: lambda users: (sign[seed] * number).repeat(
        len(users), 1), {"sign": ((1, -1),)})
    assert compare_ranking.main(["--data_dir", str(data_dir), "--models", "popularity", "--seeds", "2"]) == 0
    output = capsys.readouterr().out
    result = last_line(output)["results"]["popularity"]
    each = [ranking_peers.evaluate(lambda users, sign=sign: (sign * number).repeat(len(users), 1), data, [data.train],
                                   data.test) for sign in (1, -1)]
    assert each[0]["ndcg@10"] > each[1]["ndcg@10"] and each[0]["median_popularity@10"] > each[1]["median_popularity@10"]
    for name in ("ndcg@10", "recall@10", "recall@50", "mrr", "coverage@10", "median_popularity@10", "rare@10"):
        values = [measures[name] for measures in each]
        assert result[name] == pytest.approx(np.mean(values))
        assert result[f"{name}_std"] == pytest.approx(np.std(values, ddof=1))
    assert f"{result['ndcg@10']:.4f} ± {result['ndcg@10_std']:.4f}" in output
    assert last_line(output)["catalogue_median_popularity"] == np.median(number[number > 0].numpy())


def test_towers_orders_equal_those_of_a_run_of_main(data_dir, tmp_path, small_towers, capsys):
    flags = ["--data_dir", str(data_dir), "--num_threads", "1"]
    assert compare_ranking.main([*flags, "--models", "two_tower"]) == 0
    results = last_line(capsys.readouterr().out)["results"]
    assert list(results) == ["two_tower_rating", "two_tower_relevance"]
    written = compare_accuracy.train_towers(data_dir, tmp_path / "run", 0, 1, ["--no-refit"])
    for row, order in (("two_tower_rating", "two_tower"), ("two_tower_relevance", "relevance")):
        for name in ("ndcg@10", "recall@10"):
            assert results[row][name] == pytest.approx(written[order][name])


def test_a_further_order_of_the_towers_is_a_row_where_the_model_has_it(data_dir, small_towers, monkeypatch, capsys):
    def opposite(model, known, stars_step, day):
        score_users = compare_ranking.scorer(model, known, stars_step, day)
        return lambda users: -score_users(users)

    monkeypatch.setitem(compare_ranking.TOWER_ORDERS, "relevance", opposite)
    monkeypatch.setitem(compare_ranking.TOWER_ORDERS, "absent", lambda *arguments: None)
    assert compare_ranking.main(["--data_dir", str(data_dir), "--models", "two_tower", "--num_threads", "1"]) == 0
    results = last_line(capsys.readouterr().out)["results"]
    assert list(results) == ["two_tower_rating", "two_tower_relevance"]
    assert results["two_tower_relevance"]["ndcg@10"] != results["two_tower_rating"]["ndcg@10"]


def test_a_missing_peer_is_named_with_the_command_that_installs_it(data_dir, capsys, monkeypatch):
    monkeypatch.setattr(compare_accuracy, "importable", lambda package: False)
    assert compare_ranking.main(["--data_dir", str(data_dir), "--models", "lightfm"]) == 1
    error = capsys.readouterr().err
    assert "rectools-lightfm" in error and "requirements-bench.txt" in error


def test_a_missing_data_set_is_one_sentence(tmp_path, capsys):
    assert compare_ranking.main(["--data_dir", str(tmp_path / "nothing"), "--models", "popularity"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("flags", [["--models", "ease,nothing"], ["--seeds", "0"], ["--trials", "0"]])
def test_wrong_flags_exit_with_code_2(flags):
    with pytest.raises(SystemExit) as exit_info:
        compare_ranking.main(flags)
    assert exit_info.value.code == 2
