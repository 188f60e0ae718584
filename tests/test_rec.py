import csv
import datetime
import json
import os
import sys

import numpy as np
import pytest
import torch

import main
import rec
from models.user_tower import Context
from preprocessing import netflix_preprocess, synthetic_netflix
from preprocessing.dataset import RatingsFile, read_movies, read_users
from recommending.recommender import Recommender


def recommend(capsys, data_dir, run_dir, *flags: str) -> str:
    code = rec.main(["--data_dir", str(data_dir), "--run_dir", str(run_dir), *flags])
    output = capsys.readouterr()
    assert code == 0, output.err
    return output.out


def test_json_has_the_promised_keys_in_every_mode(capsys, data_dir, run_dir, tmp_path):
    movie_id = str(rated_movies(data_dir)[0])
    (tmp_path / "mine.csv").write_text(f"{movie_id},5\n")
    modes = {("--explain",): "user", ("--rate", f"{movie_id}:5"): "new", ("--similar_to", movie_id): "similar",
             ("--ratings_file", str(tmp_path / "mine.csv")): "new",
             ("--user_id", "999999999", "--fallback", "popular"): "popular",
             ("--predict", ",".join(map(str, rated_movies(data_dir)[:7]))): "predicted",
             ("--ask", "7", "--rate", f"{movie_id}:5"): "ask"}
    for flags, kind in modes.items():
        top_n = [] if kind in ("predicted", "ask") else ["--top_n", "7"]
        result = json.loads(recommend(capsys, data_dir, run_dir, "--json", *top_n, *flags))
        assert list(result) == ["kind", "user_id", "movie_id", "ranked_by", "as_of", "recommendations"]
        of_person = kind in ("user", "new", "predicted")
        assert result["kind"] == kind and result["ranked_by"] == ("rating" if of_person else None)
        assert result["movie_id"] == (int(movie_id) if kind == "similar" else None)
        assert [row["rank"] for row in result["recommendations"]] == list(range(1, 8))
        for row in result["recommendations"]:
            assert list(row) == ["rank", "movie_id", "title", "year", "num_ratings", "stars", "stars_bound",
                                 "interval", "probabilities", "similarity", "rated",
                                 "because"]
            assert (row["because"] is not None) == (kind == "user")
            if kind == "ask":
                assert row["stars"] is None and row["similarity"] is None and row["movie_id"] != int(movie_id)
                continue
            assert (row["stars"] is None and -1 <= row["similarity"] <= 1) if kind == "similar" else \
                (row["similarity"] is None and 1 <= row["stars"] <= 5)
        order = {"popular": "num_ratings", "similar": "similarity", "predicted": "stars"}.get(kind, "stars_bound")
        values = [row[order] for row in result["recommendations"]]
        assert kind == "ask" or values == sorted(values, reverse=True)


def test_filters_act_in_every_mode(capsys, data_dir, run_dir):
    movies = read_movies(data_dir)
    word = movies.title[int(np.argmax(movies.num_train_ratings))].split()[-1].upper()
    flags = ["--year_from", "1950", "--year_to", "2000", "--min_ratings", "30", "--title", word, "--top_n", "1000"]
    passing = {int(movie_id) for movie_id, year, title, count in
               zip(movies.movie_id, movies.year, movies.title, movies.num_train_ratings, strict=True)
               if 1950 <= year <= 2000 and count >= 30 and word.lower() in title.lower()}
    assert 3 < len(passing) < len(movies.title)
    some = str(min(set(movies.movie_id.tolist()) - passing))
    for mode in (["--include_seen"], ["--rate", f"{some}:4"], ["--similar_to", some],
                 ["--user_id", "999999999", "--fallback", "popular"], ["--ask", "1000"]):
        narrowed = flags[:-2] if mode[0] == "--ask" else flags
        result = json.loads(recommend(capsys, data_dir, run_dir, "--json", *mode, *narrowed))
        assert {row["movie_id"] for row in result["recommendations"]} == passing


def rated_movies(data_dir) -> list[int]:
    movies = read_movies(data_dir)
    return movies.movie_id[movies.num_train_ratings > 0].tolist()


def test_rec_never_returns_a_rated_movie(capsys, data_dir, run_dir):
    users, movies, ratings = read_users(data_dir), read_movies(data_dir), RatingsFile(data_dir)
    for user_idx in range(0, len(users.user_id), 37):
        rated = set(movies.movie_id[ratings.read_user(users.user(user_idx)).movie_idx].tolist())
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
    """Typing in a user's ratings gives their list, once the one thing that cannot be typed in is left out."""
    recommender = Recommender.load(run_dir, data_dir)
    recommender.model.user_based.user_embedding.zero_()
    recommender.model.item_based = None
    user_id = recommender.any_user_id()
    known = recommender.history_of(user_id)
    typed = recommender.history_from({int(recommender.movies.movie_id[movie]): float(stars) for movie, stars
                                      in zip(known.movie_idx, known.stars, strict=True)})
    typed.day = known.day  # typed ratings are of the day that is asked about
    for one, other in zip(recommender.recommend(known), recommender.recommend(typed), strict=True):
        assert one.movie_id == other.movie_id and one.stars == pytest.approx(other.stars, abs=1e-5)


def test_explanations_are_the_exact_parts_of_the_score(data_dir, run_dir):
    recommender = Recommender.load(run_dir, data_dir)
    history = recommender.history_of(recommender.any_user_id())
    recommendations = recommender.recommend(history, 3)
    recommender.explain(history, recommendations)
    assert torch.isfinite(recommender.vector_of(history)).all()
    rated = set(recommender.movies.movie_id[history.movie_idx].tolist())
    for recommendation in recommendations:
        effects = [reason.effect for reason in recommendation.because]
        assert 0 < len(effects) <= 3 and effects == sorted(effects, reverse=True) and effects[-1] > 0
        assert {reason.movie_id for reason in recommendation.because} <= rated


def test_new_ratings_are_served_without_retraining(capsys, data_dir, run_dir, tmp_path):
    movie_ids = rated_movies(data_dir)[:3]
    titles = dict(zip(read_movies(data_dir).movie_id.tolist(), read_movies(data_dir).title, strict=True))
    rates = ",".join(f"{movie_id}:{stars}" for movie_id, stars in zip(movie_ids, (5, 1, 3.5), strict=True))
    typed = recommend(capsys, data_dir, run_dir, "--rate", rates, "--json")
    result = json.loads(typed)
    assert result["user_id"] is None and len(result["recommendations"]) == 10
    assert not {row["movie_id"] for row in result["recommendations"]} & set(movie_ids)
    path = tmp_path / "mine.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("title", "stars"), (titles[movie_ids[0]].upper(), 5), (movie_ids[1], 2)])
    flags = ["--ratings_file", str(path), "--rate", f"{movie_ids[1]}:1,{movie_ids[2]}:3.5", "--json"]
    assert recommend(capsys, data_dir, run_dir, *flags) == typed


def test_ratings_add_to_those_of_a_user_and_replace_them(capsys, data_dir, run_dir):
    recommender = Recommender.load(run_dir, data_dir)
    user_id = recommender.any_user_id()
    history = recommender.history_of(user_id)
    rated = int(recommender.movies.movie_id[history.movie_idx[0]])
    fresh = recommender.recommend(history)[0].movie_id
    other = 1 if history.stars[0] > 3 else 5
    result = json.loads(recommend(capsys, data_dir, run_dir, "--user_id", str(user_id), "--include_seen", "--top_n",
                                  "1000", "--rate", f"{rated}:{other},{fresh}:2", "--json"))
    given = {row["movie_id"]: row["rated"] for row in result["recommendations"]}
    assert result["user_id"] == user_id and given[rated] == other and given[fresh] == 2
    assert sum(stars is not None for stars in given.values()) <= len(history.movie_idx) + 1
    table = recommend(capsys, data_dir, run_dir, "--user_id", str(user_id), "--rate", f"{rated}:{other},{fresh}:2")
    assert f"user {user_id}, {len(history.movie_idx) + 1} movies rated\n" in table


def test_seen_movies_are_marked_with_the_stars_given(capsys, data_dir, run_dir):
    movie_id = rated_movies(data_dir)[0]
    lines = recommend(capsys, data_dir, run_dir, "--rate", f"{movie_id}:4.5", "--include_seen", "--top_n",
                      "1000").splitlines()
    assert "given" in lines[1]
    assert len([line for line in lines[2:] if " 4.5  " in line]) == 1


def test_predictions_are_for_any_person_by_title_or_id_and_a_rating_moves_them(capsys, data_dir, run_dir):
    movies = read_movies(data_dir)
    unrated = int(movies.movie_id[np.argmin(movies.num_train_ratings)])
    asked = [*rated_movies(data_dir)[:3], unrated]
    titles = dict(zip(movies.movie_id.tolist(), movies.title, strict=True))
    commas = next(movie_id for movie_id in rated_movies(data_dir)[3:] if "," in titles[movie_id])
    text = f"{asked[0]},{asked[1]}, {titles[commas].lower()} ,{asked[2]},{unrated}"
    user_id = str(Recommender.load(run_dir, data_dir).any_user_id())
    stars = {}
    for name, flags in {"chosen": [], "user": ["--user_id", user_id], "one": ["--rate", f"{asked[0]}:1"],
                        "five": ["--rate", f"{asked[0]}:5"]}.items():
        answer = json.loads(recommend(capsys, data_dir, run_dir, "--predict", text, "--json", *flags))
        assert answer["user_id"] == (int(user_id) if name in ("chosen", "user") else None)
        values = [row["stars"] for row in answer["recommendations"]]
        assert values == sorted(values, reverse=True) and [row["rank"] for row in answer["recommendations"]] == [
            1, 2, 3, 4, 5]
        stars[name] = {row["movie_id"]: row["stars"] for row in answer["recommendations"]}
        assert set(stars[name]) == {*asked, commas}
    assert stars["chosen"] == stars["user"] != stars["one"]
    assert all(stars["one"][movie_id] < stars["five"][movie_id] for movie_id in asked[:1])
    given = {row["movie_id"]: row["rated"] for row in answer["recommendations"]}
    assert given == {movie_id: 5 if movie_id == asked[0] else None for movie_id in given}


def test_predictions_say_whose_they_are_and_what_they_know_little_of(capsys, data_dir, run_dir):
    movies = read_movies(data_dir)
    unrated = int(movies.movie_id[np.argmin(movies.num_train_ratings)])
    assert movies.num_train_ratings.min() == 0
    one = rated_movies(data_dir)[0]
    flags = ["--data_dir", str(data_dir), "--run_dir", str(run_dir), "--predict", f"{one},{unrated}"]
    assert rec.main([*flags, "--rate", f"{one}:4", "--explain"]) == 0
    output = capsys.readouterr()
    assert output.err == f"movie {unrated} has no training ratings: only its features speak for it\n"
    lines = output.out.splitlines()
    assert lines[0] == "somebody new, 1 movie rated; stars as predicted" and max(map(len, lines)) <= 80
    assert lines[1].split() == ["rank", "id", "title", "year", "ratings", "given", "stars", "8", "of", "10"]
    assert any("for 4 stars given to" in line for line in lines[2:])
    user = read_users(data_dir).user_id[3]
    assert rec.main([*flags, "--user_id", str(user), "--date", "1999-11-11", "--as_of_training"]) == 0
    output = capsys.readouterr()
    assert f"user {user} had rated no movie by" in output.err and "left out" not in output.err
    assert output.out.startswith(f"user {user}, 0 movies rated; test ratings left aside; stars as predicted; as of")


def test_an_unknown_user_gets_the_popular_movies_only_when_asked(capsys, data_dir, run_dir):
    flags = ["--data_dir", str(data_dir), "--run_dir", str(run_dir), "--user_id", "999999999"]
    assert rec.main(flags) == 1
    assert "--fallback popular" in capsys.readouterr().err
    assert rec.main([*flags, "--fallback", "popular"]) == 0
    output = capsys.readouterr()
    assert "user_id 999999999 is not in the data set" in output.err and output.out.startswith("popular movies")
    assert rec.main([*flags, "--fallback", "popular", "--rate", f"{rated_movies(data_dir)[0]}:5"]) == 0
    assert capsys.readouterr().out.startswith("somebody new, 1 movie rated\n")


def test_known_users_need_no_fallback(capsys, data_dir, run_dir):
    flags = ["--user_id", str(read_users(data_dir).user_id[3])]
    assert recommend(capsys, data_dir, run_dir, *flags) == recommend(capsys, data_dir, run_dir, *flags, "--fallback",
                                                                     "popular")


def test_tables_have_at_most_80_columns_in_every_mode(capsys, data_dir, run_dir):
    movie_id = str(rated_movies(data_dir)[0])
    for flags in (["--explain"], ["--include_seen", "--explain"], ["--similar_to", movie_id],
                  ["--user_id", "999999999", "--fallback", "popular"], ["--title", "no such title"]):
        lines = recommend(capsys, data_dir, run_dir, *flags, "--top_n", "90").splitlines()
        assert len(lines) >= 2 and max(map(len, lines)) <= 80


def test_the_map_is_drawn_and_told(capsys, data_dir, run_dir, tmp_path):
    path = tmp_path / "map.png"
    assert recommend(capsys, data_dir, run_dir, "--map", str(path)).startswith(f"{path}: ")
    assert path.read_bytes().startswith(b"\x89PNG")
    result = json.loads(recommend(capsys, data_dir, run_dir, "--map", str(path), "--json"))
    assert list(result) == ["kind", "file", "variance", "movies"]
    assert [movie["movie_id"] for movie in result["movies"]] == rated_movies(data_dir)
    assert all(list(movie) == ["movie_id", "title", "year", "num_ratings", "x", "y"] for movie in result["movies"])
    assert sum(movie["x"] for movie in result["movies"]) == pytest.approx(0, abs=0.01)
    assert rec.main(["--data_dir", str(data_dir), "--run_dir", str(run_dir), "--map", str(path), "--year_from",
                     "9000"]) == 1
    assert "at least 3 movies" in capsys.readouterr().err


def test_help_fits_one_screen_with_three_examples(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as exit_info:
        rec.main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert exit_info.value.code == 0 and 24 <= len(lines) <= 50 and max(map(len, lines)) <= 80
    assert sum(line.startswith("  python rec.py ") for line in lines) == 3


@pytest.mark.parametrize("flags", [("--top_n", "1"), ("--top_n", "80", "--explain", "--json")])
def test_a_reader_who_has_enough_is_no_error(capsys, monkeypatch, data_dir, run_dir, flags):
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as pipe:  # which is closed as at a process's end, where what is left is written
        monkeypatch.setattr(sys, "stdout", pipe)
        assert rec.main(["--data_dir", str(data_dir), "--run_dir", str(run_dir), *flags]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("flags", "sentence"), [
    (["--user_id", "999999999"], "user_id 999999999 is not in the data set"),
    (["--user_id", "-1"], "user_id -1 is not in the data set"),
    (["--user_id", "9" * 30], f"user_id {'9' * 30} is not in the data set"),
    (["--rate", "99999999:3"], "movie_id 99999999 is not in the data set"),
    (["--similar_to", "99999999"], "movie_id 99999999 is not in the data set"),
    (["--ratings_file", "no/such.csv"], "no/such.csv: No such file"),
    (["--predict", "99999999"], "movie_id 99999999 is not in the data set"),
    (["--predict", "no such movie"], "no movie is called 'no such movie'"),
    (["--predict", "3", "--user_id", "999999999"], "is not in the data set"),
])
def test_what_is_not_there_gets_one_sentence(capsys, data_dir, run_dir, flags, sentence):
    assert rec.main(["--data_dir", str(data_dir), "--run_dir", str(run_dir), *flags]) == 1
    output = capsys.readouterr()
    assert sentence in output.err and output.err.count("\n") == 1 and output.out == ""


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
                                   ["--rate", "5:3,5:4"], ["--rate", ""], ["--user", "1"], ["--min_ratings", "-1"],
                                   ["--year_from", "2001", "--year_to", "2000"], ["--fallback", "popular"],
                                   ["--fallback", "new", "--user_id", "1"], ["--similar_to", "1", "--user_id", "0"],
                                   ["--similar_to", "1", "--explain"], ["--similar_to", "1", "--map", "map.png"],
                                   ["--map", "map.png", "--rate", "1:5"], ["--map", "map.png", "--include_seen"],
                                   ["--map", "map.doc"], ["--map", "no/such/map.png"], ["--predict", ""],
                                   ["--predict", "Heat,"], ["--predict", "Heat,,Alien"], ["--predict", " "]])
def test_wrong_flags_exit_with_code_2(flags):
    with pytest.raises(SystemExit) as exit_info:
        rec.main(flags)
    assert exit_info.value.code == 2


def test_planted_truth_is_recovered(tmp_path):
    """The towers come within 0.02 stars of the best reachable RMSE, and a fan of one genre is shown that genre."""
    raw, data, run = tmp_path / "raw", tmp_path / "data", tmp_path / "run"
    synthetic_netflix.generate(raw, seed=0)
    assert netflix_preprocess.main(["--raw_dir", str(raw), "--out_dir", str(data)]) == 0
    assert main.main(["--data_dir", str(data), "--run_dir", str(run), "--epochs", "2", "--embedding_dim", "16",
                      "--ensemble_size", "2", "--hidden_dim", "32", "--relevance_weight", "0", "--num_threads", "1",
                      "--no-refit"]) == 0
    truth = np.load(raw / "planted_truth.npz", allow_pickle=False)
    rmse = json.loads((run / "test_metrics.json").read_text())["two_tower"]["rmse"]
    assert rmse < truth["best_rmse_latest"] + 0.02
    genre = dict(zip(truth["movie_id"].tolist(), truth["movie_genre"].tolist(), strict=True))
    fans = np.flatnonzero(truth["user_fan_genre"] >= 0)[:100]
    recommender = Recommender.load(run, data)
    hits = [sum(genre[row.movie_id] == truth["user_fan_genre"][fan] for row in
                recommender.recommend(recommender.history_of(int(truth["user_id"][fan])))) for fan in fans]
    assert len(hits) == 100 and np.mean(hits) >= 8, hits


def test_a_date_takes_later_ratings_away(data_dir, run_dir):
    newest = Recommender.load(run_dir, data_dir)
    users = (newest.history_of(int(user_id)) for user_id in newest.users.user_id)
    history = next(history for history in users if history.day[0] < history.day[-1])
    first = datetime.date.fromisoformat(newest.meta["day_epoch"])
    middle = int(history.day[0])
    older = Recommender.load(run_dir, data_dir, first + datetime.timedelta(days=middle))
    assert older.day == middle and newest.day == newest.meta["num_days"] - 1
    known = older.history_of(history.user_id)
    assert 0 < len(known.day) < len(history.day) and int(known.day.max()) == middle
    assert Recommender.load(run_dir, data_dir, datetime.date(2999, 1, 1)).day == newest.day


def test_relevance_orders_the_same_movies_by_an_inner_product_and_shows_their_stars(capsys, data_dir, run_dir):
    by_rating, by_relevance = (json.loads(recommend(capsys, data_dir, run_dir, "--json", "--top_n", "1000", *flags))
                               for flags in ((), ("--rank_by", "relevance", "--explain")))
    assert (by_rating["ranked_by"], by_relevance["ranked_by"]) == ("rating", "relevance")
    stars = {row["movie_id"]: row["stars"] for row in by_rating["recommendations"]}
    same = {row["movie_id"]: row["stars"] for row in by_relevance["recommendations"]}
    assert same == pytest.approx(stars, abs=2e-4)
    order = [row["movie_id"] for row in by_relevance["recommendations"]]
    assert order != list(stars) and all(row["because"] is not None for row in by_relevance["recommendations"])
    recommender = Recommender.load(run_dir, data_dir)
    history = recommender.history_of(recommender.any_user_id())
    context = Context(torch.zeros_like(history.movie_idx), history.movie_idx, history.stars, history.day)
    with torch.no_grad():
        user = recommender.model.relevance.user_vectors(context, recommender.vector_of(history).unsqueeze(0))[0]
        movies = recommender.model.relevance.movie_vectors(recommender.model.movie_vectors(recommender.day))
    scores = dict(zip(recommender.movies.movie_id.tolist(), (movies @ user).tolist(), strict=True))
    assert order == sorted(order, key=lambda movie_id: -scores[movie_id])


def test_relevance_says_so_for_somebody_new_too(capsys, data_dir, run_dir):
    movie_id = rated_movies(data_dir)[0]
    table = recommend(capsys, data_dir, run_dir, "--rank_by", "relevance", "--rate", f"{movie_id}:5")
    assert table.startswith("somebody new, 1 movie rated; most relevant first\n")


@pytest.mark.parametrize("flags", [["--similar_to", "1"], ["--map", "map.png"], ["--all_users", "--out", "a.parquet"],
                                   ["--export_vectors", "vectors"]])
def test_an_order_by_relevance_is_for_one_person(flags, capsys):
    with pytest.raises(SystemExit) as exit_info:
        rec.main([*flags, "--rank_by", "relevance"])
    assert exit_info.value.code == 2 and "does not go with --rank_by" in capsys.readouterr().err


def test_a_run_without_relevance_says_how_to_train_one(capsys, data_dir, train, tmp_path):
    assert train(data_dir, tmp_path / "run", "--epochs", "1", "--relevance_weight", "0") == 0
    assert rec.main(["--data_dir", str(data_dir), "--run_dir", str(tmp_path / "run"), "--rank_by", "relevance"]) == 1
    assert "no order by relevance; train one: python main.py --relevance_weight 1" in capsys.readouterr().err
