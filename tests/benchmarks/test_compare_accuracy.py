"""The comparison's numbers against independent computations; what needs a peer is skipped where it is missing."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from benchmarks import compare_accuracy, peers
from preprocessing import netflix_preprocess
from training.batches import DataSet, load_dataset

LOW, HIGH = 1, 5


@pytest.fixture(scope="module")
def data(data_dir):
    return compare_accuracy.check(data_dir)


@pytest.fixture(scope="module")
def parts(data_dir):
    """Return (user_idx, movie_idx, stars) of what is known and of the test part, straight from the file."""
    table = pq.read_table(data_dir / "ratings.parquet")
    columns = [table[name].to_numpy().astype(np.int64) for name in ("user_idx", "movie_idx", "stars")]
    is_test = np.array(table["split"].to_pylist()) == "test"
    return [column[~is_test] for column in columns], [column[is_test] for column in columns]


def last_line(text):
    return json.loads(text.strip().splitlines()[-1])


def test_global_mean_and_bias_equal_an_independent_computation(data_dir, parts, capsys):
    (user_idx, movie_idx, stars), (test_user, test_movie, test_stars) = parts
    assert compare_accuracy.main(["--data_dir", str(data_dir), "--models", "global_mean,bias", "--seeds", "3"]) == 0
    output = capsys.readouterr().out
    results = last_line(output)["results"]
    mean = stars.mean()
    user, movie = np.zeros(user_idx.max() + 1), np.zeros(max(movie_idx.max(), test_movie.max()) + 1)
    for _ in range(10):
        for index, other, bias, other_bias in ((movie_idx, user_idx, movie, user), (user_idx, movie_idx, user, movie)):
            total, count = np.zeros(len(bias)), np.zeros(len(bias))
            np.add.at(total, index, stars - mean - other_bias[other])
            np.add.at(count, index, 1)
            bias[:] = total / (count + 5)
    for name, predicted in (("global_mean", np.full(len(test_stars), mean)),
                            ("bias", (mean + user[test_user] + movie[test_movie]).clip(LOW, HIGH))):
        error = predicted - test_stars
        assert results[name]["rmse"] == pytest.approx((error**2).mean() ** 0.5, abs=1e-6)
        assert results[name]["mae"] == pytest.approx(np.abs(error).mean(), abs=1e-6)
        assert results[name]["runs"] == 1 and results[name]["rmse_std"] is None  # no seed, so once
        assert f"{results[name]['rmse']:.4f}" in output and f"{results[name]['mae']:.4f}" in output
    assert results["global_mean"]["ndcg@10"] is None
    assert 0 < results["bias"]["ndcg@10"] < 1


def test_mean_and_deviation_are_over_data_sets(raw_dir, data_dir, tmp_path, capsys):
    other = tmp_path / "other"
    assert netflix_preprocess.main(["--raw_dir", str(raw_dir), "--out_dir", str(other), "--split", "random"]) == 0
    rmse = []
    for folders in ([data_dir], [other], [data_dir, other]):
        assert compare_accuracy.main(["--data_dir", *map(str, folders), "--models", "bias"]) == 0
        rmse.append(last_line(capsys.readouterr().out)["results"]["bias"])
    values = [row["rmse"] for row in rmse[:2]]
    assert rmse[2]["runs"] == 2
    assert rmse[2]["rmse"] == pytest.approx(np.mean(values))
    assert rmse[2]["rmse_std"] == pytest.approx(np.std(values, ddof=1))


def test_a_model_is_compared_with_the_towers_on_the_same_data_sets_and_seeds():
    towers = [[0.80, 0.84], [0.90, 0.90]]
    for model in ([[0.83, 0.83], [0.95, 0.91]], [[0.83], [0.93]]):  # the latter takes no seed
        over, half_width = compare_accuracy.paired_difference(model, towers)
        assert over == pytest.approx(0.02)
        assert half_width == pytest.approx(12.706 * np.std([0.01, 0.03], ddof=1) / 2**0.5, rel=1e-3)  # t, one degree
    over, half_width = compare_accuracy.paired_difference([[0.83, 0.85, 0.86]], [[0.80, 0.84, 0.84]])  # seeds
    assert over == pytest.approx(0.02)
    assert half_width == pytest.approx(4.303 * np.std([0.03, 0.01, 0.02], ddof=1) / 3**0.5, rel=1e-3)
    assert compare_accuracy.paired_difference([[0.83]], [[0.80]]) == (pytest.approx(0.03), None)
    assert compare_accuracy.paired_difference([[0.83]], []) == (None, None)


def test_towers_equal_a_run_of_main(data_dir, tmp_path, capsys, monkeypatch):
    parse = compare_accuracy.train_command.parse_args
    small = ["--embedding_dim", "16", "--ensemble_size", "2", "--hidden_dim", "16", "--epochs", "2"]
    monkeypatch.setattr(compare_accuracy.train_command, "parse_args", lambda flags: parse([*flags, *small]))
    assert compare_accuracy.main(["--data_dir", str(data_dir), "--models", "two_tower", "--seeds", "2",
                                  "--num_threads", "1"]) == 0
    result = last_line(capsys.readouterr().out)["results"]["two_tower"]
    monkeypatch.undo()
    written = []
    for seed in ("0", "1"):
        flags = ["--data_dir", str(data_dir), "--run_dir", str(tmp_path / seed), "--seed", seed, "--num_threads", "1"]
        assert compare_accuracy.train_command.main([*flags, *small]) == 0
        written.append(json.loads((tmp_path / seed / "test_metrics.json").read_text())["two_tower"])
    for measure in ("rmse", "mae", "ndcg@10", "recall@10"):
        assert result[measure] == pytest.approx(np.mean([row[measure] for row in written]))


@pytest.mark.parametrize("name", ["SVD", "SVDpp"])
def test_surprise_scores_equal_its_own_predictions(data, name):
    surprise = pytest.importorskip("surprise")
    algorithm, fit_s = peers._fit_surprise(getattr(surprise, name)(random_state=0, n_epochs=3), data, 0)
    fitted = peers.from_surprise(algorithm, fit_s, data)
    user_idx, movie_idx = data.test.user_idx(), data.test.movie_idx.long()
    pairs = zip(user_idx.tolist(), movie_idx.tolist())
    expected = torch.tensor([algorithm.predict(user, movie).est for user, movie in pairs], dtype=torch.float64)
    dense = fitted.score_users(torch.arange(data.num_users))[user_idx, movie_idx]
    torch.testing.assert_close(dense.clamp(LOW, HIGH), expected)
    torch.testing.assert_close(fitted.predict(data.test).clamp(LOW, HIGH), expected)


@pytest.mark.parametrize("implicit", [False, True])
def test_myfm_scores_equal_its_own_predictions(data, monkeypatch, implicit):
    if not peers.importable("myfm"):
        pytest.skip("myfm is not installed")
    import myfm

    seen, fit = {}, myfm.MyFMRegressor.fit

    def remember(model, *args, **kwargs):
        seen.update(model=model, rows=[block.data for block in kwargs["X_rel"]])
        return fit(model, *args, **kwargs)

    monkeypatch.setattr(myfm.MyFMRegressor, "fit", remember)
    fitted = peers.fit_myfm(data, 0, 1, implicit, rank=4, num_burn_in=2, num_samples=5)
    user_idx, movie_idx = data.test.user_idx(), data.test.movie_idx.long()
    blocks = [myfm.RelationBlock(index.numpy(), rows) for index, rows in zip((user_idx, movie_idx), seen["rows"])]
    expected = torch.from_numpy(seen["model"].predict(None, blocks)).float()
    torch.testing.assert_close(fitted.predict(data.test), expected, atol=1e-4, rtol=0)
    dense = fitted.score_users(torch.arange(data.num_users))[user_idx, movie_idx]
    torch.testing.assert_close(dense, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["knn_baseline", "svd", "als", "myfm_time"])
def test_every_peer_beats_the_global_mean(data, name, monkeypatch):
    if not peers.importable(peers.PEERS[name].package):
        pytest.skip(f"{peers.PACKAGES[peers.PEERS[name].package]} is not installed")
    monkeypatch.setattr(peers.fit_myfm, "__defaults__", (False, False, 4, 5, 20))
    measures = compare_accuracy.evaluate(peers.PEERS[name].fit(data, 0, 1), data)
    mean = compare_accuracy.evaluate(peers.fit_global_mean(data, 0, 1), data)
    assert measures["rmse"] < mean["rmse"]
    if name != "knn_baseline":
        assert 0 < measures["ndcg@10"] < 1


def test_settings_are_those_that_predict_validation_best(data_dir, monkeypatch, capsys):
    fitted = []

    def fit(data: DataSet, seed: int, num_threads: int, shift: float = 9.0, other: int = 0) -> peers.Fitted:
        fitted.append((len(data.train), len(data.test), shift))
        mean = float(data.test.stars.double().mean())  # of what is asked for: a shift of 0 is best
        zeros = torch.zeros(data.num_movies)
        return peers.Fitted(0.0, torch.full((data.num_users,), mean + shift), zeros,
                            torch.zeros(data.num_users, 1), zeros.unsqueeze(1))

    grid = {"shift": (-1.0, 0.0, 0.5), "other": (1, 2)}
    monkeypatch.setitem(peers.PEERS, "bias", peers.Peer(fit, "shifted", "", grid, is_random=False))
    assert compare_accuracy.main(["--data_dir", str(data_dir), "--models", "bias,global_mean", "--trials", "6"]) == 0
    result, data = last_line(capsys.readouterr().out), load_dataset(data_dir)
    split = data.meta["split"]
    assert [row[:2] for row in fitted] == [(split["num_train"], split["num_validation"])] * 6 + [
        (split["num_train"] + split["num_validation"], split["num_test"])]
    assert fitted[-1][2] == result["tried"]["bias"][0]["shift"] == 0.0 and len(result["tried"]["bias"]) == 6
    assert result["trials"] == 6 and result["tried"]["global_mean"] == []
    assert len(peers.points_of(grid, 4)) == 4 and peers.points_of(grid, 4) == peers.points_of(grid, 4)
    assert peers.points_of({}, 4) == []


def test_a_missing_peer_is_named_with_the_command_that_installs_it(data_dir, capsys, monkeypatch):
    monkeypatch.setattr(compare_accuracy, "importable", lambda package: False)
    assert compare_accuracy.main(["--data_dir", str(data_dir), "--models", "svd"]) == 1
    error = capsys.readouterr().err
    assert "scikit-surprise" in error and "requirements-bench.txt" in error


def test_a_missing_data_set_is_one_sentence(tmp_path, capsys):
    assert compare_accuracy.main(["--data_dir", str(tmp_path / "nothing"), "--models", "bias"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("flags", [["--models", "svd,nothing"], ["--seeds", "0"], ["--num_threads", "0"]])
def test_wrong_flags_exit_with_code_2(flags):
    with pytest.raises(SystemExit) as exit_info:
        compare_accuracy.main(flags)
    assert exit_info.value.code == 2
