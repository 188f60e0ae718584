import json

import numpy as np
import pytest
import torch

import main
import rec
from models.recommender import Recommender
from preprocessing import netflix_preprocess, synthetic_netflix
from preprocessing.dataset import RatingsFile, read_movies, read_users


def recommend(capsys, data_dir, run_dir, *flags: str) -> str:
    code = rec.main(["--data_dir", str(data_dir), "--run_dir", str(run_dir), *flags])
    output = capsys.readouterr()
    assert code == 0, output.err
    return output.out


def test_json_has_the_promised_keys(capsys, data_dir, run_dir):
    result = json.loads(recommend(capsys, data_dir, run_dir, "--json", "--top_n", "7"))
    assert set(result) == {"user_id", "recommendations"}
    assert [row["rank"] for row in result["recommendations"]] == list(range(1, 8))
    for row in result["recommendations"]:
        assert set(row) == {"rank", "movie_id", "title", "year", "stars", "num_ratings"}
        assert 1 <= row["stars"] <= 5
    stars = [row["stars"] for row in result["recommendations"]]
    assert stars == sorted(stars, reverse=True)


def test_rec_never_returns_a_rated_movie(capsys, data_dir, run_dir):
    users, movies, ratings = read_users(data_dir), read_movies(data_dir), RatingsFile(data_dir)
    for user_idx in range(0, len(users.user_id), 37):
        rated = set(movies.movie_id[ratings.read_user(users, user_idx).movie_idx].tolist())
        result = json.loads(recommend(capsys, data_dir, run_dir, "--json", "--top_n", "1000", "--user_id",
                                      str(users.user_id[user_idx])))
        listed = {row["movie_id"] for row in result["recommendations"]}
        assert not listed & rated
        assert listed | rated >= set(movies.movie_id[movies.num_train_ratings > 0].tolist())
        assert all(row["num_ratings"] > 0 for row in result["recommendations"])


def test_without_arguments_the_seed_chooses_the_user_and_the_output_says_which(capsys, data_dir, run_dir):
    first, second = (recommend(capsys, data_dir, run_dir) for _ in range(2))
    assert first == second
    assert f"user {Recommender.load(run_dir, data_dir).any_user_id()}" in first
    assert len(first.splitlines()) == 12
    assert max(len(line) for line in first.splitlines()) <= 80


@torch.no_grad()
def test_fold_in_equals_trained_vector(data_dir, run_dir):
    """Typing in a user's ratings gives his list, once the one thing that cannot be typed in is left out."""
    recommender = Recommender.load(run_dir, data_dir)
    recommender.model.user_embedding.zero_()
    user_id = recommender.any_user_id()
    known = recommender.history_of(user_id)
    typed = recommender.history_from({int(recommender.movies.movie_id[movie]): float(stars) for movie, stars
                                      in zip(known.movie_idx, known.stars, strict=True)})
    for one, other in zip(recommender.recommend(known), recommender.recommend(typed), strict=True):
        assert one.movie_id == other.movie_id and one.stars == pytest.approx(other.stars, abs=1e-5)


def test_explanations_are_the_exact_parts_of_the_score(data_dir, run_dir):
    recommender = Recommender.load(run_dir, data_dir)
    history = recommender.history_of(recommender.any_user_id())
    recommendations = recommender.recommend(history, 3)
    recommender.explain(history, recommendations)
    vector_of = lambda h: recommender.model.user_vectors(  # noqa: E731
        recommender._films, recommender._embedding(h), torch.zeros_like(h.movie_idx), h.movie_idx, h.stars)
    assert torch.isfinite(vector_of(history)).all()
    rated = set(recommender.movies.movie_id[history.movie_idx].tolist())
    for recommendation in recommendations:
        effects = [reason.effect for reason in recommendation.because]
        assert 0 < len(effects) <= 3 and effects == sorted(effects, reverse=True) and effects[-1] > 0
        assert {reason.movie_id for reason in recommendation.because} <= rated


def test_new_ratings_are_served_without_retraining(capsys, data_dir, run_dir):
    movie_ids = read_movies(data_dir).movie_id[read_movies(data_dir).num_train_ratings > 0][:3]
    rates = ",".join(f"{movie_id}:{stars}" for movie_id, stars in zip(movie_ids, (5, 1, 3.5), strict=True))
    result = json.loads(recommend(capsys, data_dir, run_dir, "--rate", rates, "--json"))
    assert result["user_id"] is None and len(result["recommendations"]) == 10
    assert not {row["movie_id"] for row in result["recommendations"]} & set(movie_ids.tolist())


@pytest.mark.parametrize(("flags", "sentence"), [
    (["--user_id", "999999999"], "user_id 999999999 is not in the data set"),
    (["--user_id", "-1"], "user_id -1 is not in the data set"),
    (["--rate", "99999999:3"], "movie_id 99999999 is not in the data set"),
])
def test_what_is_not_in_the_data_set_gets_one_sentence(capsys, data_dir, run_dir, flags, sentence):
    assert rec.main(["--data_dir", str(data_dir), "--run_dir", str(run_dir), *flags]) == 1
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1


def test_a_missing_run_and_a_foreign_run_get_one_sentence_with_the_next_step(capsys, raw_dir, data_dir, run_dir,
                                                                            tmp_path):
    assert rec.main(["--data_dir", str(data_dir), "--run_dir", str(tmp_path / "no")]) == 1
    assert "python main.py" in capsys.readouterr().err
    other = tmp_path / "other"
    netflix_preprocess.main(["--raw_dir", str(raw_dir), "--out_dir", str(other), "--seed", "5"])
    capsys.readouterr()
    assert rec.main(["--data_dir", str(other), "--run_dir", str(run_dir)]) == 1
    assert "another data set" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--top_n", "0"], ["--top_n", "-3"], ["--rate", "5"], ["--rate", "5:x"],
                                   ["--rate", "5:3,5:4"], ["--user_id", "1", "--rate", "5:3"], ["--user", "1"]])
def test_wrong_flags_exit_with_code_2(flags):
    with pytest.raises(SystemExit) as exit_info:
        rec.main(flags)
    assert exit_info.value.code == 2


def test_fit_keeps_the_width_and_shows_control_characters_harmless():
    assert rec.fit("\x1b[31mred", 10) == "?[31mred  "
    assert rec.fit("a" * 50, 10) == "aaaaaaa..."
    assert rec.fit("七人の侍", 10) == "七人の侍  "
    assert rec.fit("七人の侍七人の侍", 10) == "七人の... "


def test_planted_truth_is_recovered(tmp_path):
    """The towers come within 0.02 stars of the best reachable RMSE, and a fan of one genre is shown that genre."""
    raw, data, run = tmp_path / "raw", tmp_path / "data", tmp_path / "run"
    synthetic_netflix.generate(raw, seed=0)
    assert netflix_preprocess.main(["--raw_dir", str(raw), "--out_dir", str(data)]) == 0
    assert main.main(["--data_dir", str(data), "--run_dir", str(run), "--epochs", "4", "--embedding_dim", "16",
                      "--num_heads", "4", "--num_threads", "1"]) == 0
    truth = np.load(raw / "planted_truth.npz", allow_pickle=False)
    rmse = json.loads((run / "test_metrics.json").read_text())["two_tower"]["rmse"]
    assert rmse < truth["best_rmse_latest"] + 0.02
    genre = dict(zip(truth["movie_id"].tolist(), truth["movie_genre"].tolist(), strict=True))
    fans = np.flatnonzero(truth["user_fan_genre"] >= 0)[:100]
    recommender = Recommender.load(run, data)
    hits = [sum(genre[row.movie_id] == truth["user_fan_genre"][fan] for row in
                recommender.recommend(recommender.history_of(int(truth["user_id"][fan])))) for fan in fans]
    assert np.mean(hits) >= 8, hits
