"""Lists for nobody, from outside: popular movies, a search of titles, users; and lists as of training."""

import json
import math

import numpy as np
import pandas as pd
import pytest

import rec
from preprocessing import dataset
from recommending.recommender import Recommender


@pytest.fixture
def ask(run_dir, capsys):
    """Return a function from flags to stdout, as an object with --json."""
    def ask(*flags: object) -> object:
        capsys.readouterr()
        assert rec.main(["--run_dir", str(run_dir), *map(str, flags)]) == 0
        printed = capsys.readouterr()
        return json.loads(printed.out) if "--json" in flags else printed.out
    return ask


@pytest.fixture(scope="module")
def table(data_dir) -> pd.DataFrame:
    """The ratings with the ids of users and movies."""
    ratings = pd.read_parquet(data_dir / "ratings.parquet")
    for name in ("user", "movie"):
        ids = pd.read_parquet(data_dir / f"{name}s.parquet")[f"{name}_id"].to_numpy()
        ratings[f"{name}_id"] = ids[ratings[f"{name}_idx"]]
    return ratings


def test_popular_movies_need_no_user(ask, data_dir):
    assert ask("--popular").startswith("popular movies, most ratings first; stars are their mean\nrank")
    answer = ask("--popular", "--json", "--top_n", 5)
    assert answer == ask("--user_id", 999999999, "--fallback", "popular", "--json", "--top_n", 5) | {"user_id": None}
    numbers = dataset.read_movies(data_dir).num_train_ratings
    assert [row["num_ratings"] for row in answer["recommendations"]] == np.sort(numbers)[::-1][:5].tolist()


def test_a_search_finds_titles_with_their_ids_the_best_known_first(ask, data_dir):
    movies = dataset.read_movies(data_dir)
    word = movies.title[int(np.argmax(movies.num_train_ratings))].split()[-1]
    having = [movie for movie, title in enumerate(movies.title) if word.casefold() in title.casefold()]
    order = sorted(having, key=lambda movie: (-movies.num_train_ratings[movie], movie))
    answer = ask("--search", word.upper(), "--json", "--top_n", 1000)
    assert answer["kind"] == "search" and len(order) > 3
    assert [row["movie_id"] for row in answer["recommendations"]] == movies.movie_id[order].tolist()
    assert {row["stars"] for row in answer["recommendations"]} == {None}
    lines = ask("--search", word, "--top_n", 2).splitlines()
    assert lines[0] == f'2 of {len(order)} movies with "{word}" in the title, most ratings first'
    assert lines[1].split() == ["rank", "id", "title", "year", "ratings"]
    first = order[0]
    assert lines[2].split()[:2] == ["1", str(movies.movie_id[first])] and len(lines) == 4
    assert lines[2].endswith(f"{movies.year[first] or '-'}  {movies.num_train_ratings[first]:>7,}")


def test_a_search_without_a_find_says_so_and_names_what_is_near(ask, run_dir, data_dir, capsys):
    title = dataset.read_movies(data_dir).title[0]
    assert ask("--search", "qqq", "--json")["recommendations"] == []
    assert 'no movie has "qqq" in its title and passes the filters' in ask("--search", "qqq", "--year_from", 1990)
    assert rec.main(["--run_dir", str(run_dir), "--search", title[:-1] + "zz"]) == 0
    printed = capsys.readouterr()
    said = " ".join(printed.out.split())
    assert said.startswith(f'no movie has "{title[:-1][:10]}') and printed.err == ""
    assert " in its title; did you mean " in said and title in said
    word = max(title.rpartition("(")[0].split(), key=len)
    assert rec.main(["--run_dir", str(run_dir), "--search", word[:-2] + word[:-3:-1], "--json"]) == 0
    assert f"did you mean '{word.casefold()}'" in capsys.readouterr().err


def test_filters_act_on_a_search_and_on_popular_movies(ask, data_dir):
    for flags in (["--search", "the"], ["--popular"]):
        rows = ask(*flags, "--json", "--top_n", 1000, "--year_from", 1950, "--year_to", 1980, "--min_ratings", 20)
        assert rows["recommendations"] and all(
            1950 <= row["year"] <= 1980 and row["num_ratings"] >= 20 for row in rows["recommendations"])


def test_users_are_listed_by_their_number_of_ratings(ask, table):
    counts = table.groupby("user_id").size().reset_index(name="number").sort_values(
        ["number", "user_id"], ascending=[False, True])
    expected = [{"user_id": user_id, "num_ratings": number} for user_id, number in counts.to_numpy().tolist()]
    assert ask("--list_users", "--json") == {"kind": "users", "users": expected[:10]}
    assert ask("--list_users", 9999, "--json")["users"] == expected
    lines = ask("--list_users", 3).splitlines()
    assert lines[0] == f"3 of {len(expected)} users, most ratings first" and lines[1].split() == ["user_id", "ratings"]
    assert [line.split() for line in lines[2:]] == [[str(user["user_id"]), str(user["num_ratings"])]
                                                    for user in expected[:3]]


def test_a_list_as_of_training_leaves_out_only_what_training_knew(ask, table):
    for user_id in table["user_id"].unique()[::80]:
        own = table[table["user_id"] == user_id]
        tested = set(own[own["split"] == "test"]["movie_id"])
        plain, training = (ask("--user_id", user_id, "--top_n", 1000, "--json", *flags)["recommendations"]
                           for flags in ([], ["--as_of_training"]))
        plain, training = ({row["movie_id"] for row in rows} for rows in (plain, training))
        known = set(own["movie_id"]) - tested
        assert tested and not plain & tested and not training & known and training >= plain
        assert training - plain <= tested
        assert f"user {user_id}, {len(known)} movies rated; test ratings left aside\n" in ask(
            "--user_id", user_id, "--as_of_training")


def test_movies_to_ask_are_of_somebody_new_unless_a_person_is_named(ask, run_dir, table):
    """As the recommender chooses them; of a user, what they have rated is not asked, but may be as of training."""
    recommender = Recommender.load(run_dir)
    first = ask("--ask", "--json")
    assert first["kind"] == "ask" and first["user_id"] is None and first["ranked_by"] is None
    expected = [row.movie_id for row in recommender.ask(recommender.history_from({}), 10)]
    assert [row["movie_id"] for row in first["recommendations"]] == expected
    rated = ",".join(f"{movie_id}:4" for movie_id in expected[:3])
    history = recommender.history_from(dict.fromkeys(expected[:3], 4))
    assert [row["movie_id"] for row in ask("--ask", 4, "--rate", rated, "--json")["recommendations"]] == [
        row.movie_id for row in recommender.ask(history, 4)]
    for user_id in table["user_id"].unique()[::150]:
        own = table[table["user_id"] == user_id]
        plain, training = (ask("--ask", 1000, "--user_id", user_id, "--json", *flags) for flags in (
            [], ["--as_of_training"]))
        assert plain["user_id"] == user_id
        plain, training = ({row["movie_id"] for row in answer["recommendations"]} for answer in (plain, training))
        assert not plain & set(own["movie_id"]) and training - plain == set(own[own["split"] == "test"]["movie_id"])


def test_movies_to_ask_are_listed_without_stars(ask, table):
    lines = ask("--ask", 3).splitlines()
    assert lines[0] == "somebody new, 0 movies rated; rate these next"
    assert lines[1].split() == ["rank", "id", "title", "year", "ratings"] and len(lines) == 5
    user_id = table["user_id"].iloc[0]
    number = int((table["user_id"] == user_id).sum())
    assert ask("--ask", "--user_id", user_id, "--rate", f"{table['movie_id'].iloc[0]}:1").startswith(
        f"user {user_id}, {number} movies rated; rate these next")
    assert ask("--ask", "--title", "no such title").splitlines()[1] == (
        "nothing to list: no movie passes the filters that is not rated already")
    assert "; as of 2004-01-01\n" in ask("--ask", "--date", "2004-01-01")


def ndcg(lists: dict[int, list[int]], liked: dict[int, set[int]]) -> float:
    """Return the mean NDCG@10 of those who like something, with binary gains."""
    total = 0.0
    for user_id, movies in liked.items():
        gains = [1 / math.log2(rank + 2) for rank in range(min(len(movies), 10))]
        total += sum(1 / math.log2(rank + 2) for rank, movie in enumerate(lists.get(user_id, [])[:10])
                     if movie in movies) / sum(gains)
    return total / len(liked)


def test_an_export_as_of_training_can_be_measured_and_gives_the_figures_of_the_run(ask, table, run_dir, tmp_path):
    tests = table[(table["split"] == "test") & (table["stars"] >= 4)]
    liked = tests.groupby("user_id")["movie_id"].agg(set).to_dict()
    expected = json.loads((run_dir / "test_metrics.json").read_text())["two_tower"]["ndcg@10"]
    ask("--all_users", "--out", tmp_path / "plain.parquet")
    ask("--all_users", "--out", tmp_path / "training.parquet", "--as_of_training")
    lists = [pd.read_parquet(tmp_path / f"{name}.parquet").groupby("user_id")["movie_id"].agg(list).to_dict()
             for name in ("plain", "training")]
    assert ndcg(lists[0], liked) == 0 and ndcg(lists[1], liked) == pytest.approx(expected, abs=1e-4)
    ask("--export_vectors", tmp_path / "vectors", "--as_of_training")
    arrays = {path.stem: np.load(path) for path in (tmp_path / "vectors").glob("*.npy")}
    scores = arrays["user_vectors"] @ arrays["movie_vectors"].T
    known = table[(table["split"] != "test") & table["movie_id"].isin(arrays["movie_ids"])]
    scores[np.searchsorted(arrays["user_ids"], known["user_id"]),
           np.searchsorted(arrays["movie_ids"], known["movie_id"])] = -np.inf
    best = arrays["movie_ids"][np.argsort(-scores, axis=1, kind="stable")[:, :10]]
    assert ndcg(dict(zip(arrays["user_ids"].tolist(), best.tolist(), strict=True)), liked) == pytest.approx(expected,
                                                                                                        abs=1e-4)


def test_parts_begun_as_of_training_are_not_mixed_with_others(run_dir, tmp_path, monkeypatch, capsys):
    from recommending import batch

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    flags = ["--run_dir", str(run_dir), "--all_users", "--out", str(tmp_path / "recs.parquet")]
    with monkeypatch.context() as patch:
        patch.setattr(batch, "_join_lists", interrupt)
        assert rec.main(flags) == 130
    assert rec.main([*flags, "--as_of_training"]) == 1
    assert "was begun with another as_of_training" in capsys.readouterr().err


@pytest.mark.parametrize(("flags", "sentence"), [
    ("--popular --user_id 5", "--popular asks about movies and not about a person: it does not go with --user_id"),
    ("--search x --explain", "--search asks about movies and not about a person: it does not go with --explain"),
    ("--search x --popular", "does not go with --search"), ("--popular --as_of_training", "with --as_of_training"),
    ("--similar_to 5 --list_users", "--list_users asks about users and not about movies: it does not go with --sim"),
    ("--list_users --date 2004-01-01", "it does not go with --date"), ("--list_users 0", "must be at least 1, not 0"),
    ("--list_users --min_ratings 1", "it does not go with --min_ratings"), ("--search=", "--search needs a text"),
    ("--all_users --out a.parquet --popular", "it does not go with --popular"),
    ("--all_users --out a.parquet --json", "it does not go with --json"),
    ("--rate 5:4 --as_of_training", "--as_of_training is about the ratings of the data set: name a user"),
    ("--rate 5:4 --popular", "it does not go with --rate"),
    *((f"--predict 5 {flag}", f"--predict is about the movies that it names: it does not go with {flag.split()[0]}")
      for flag in ("--top_n 3", "--rank_by rating", "--include_seen", "--year_from 1990", "--year_to 1990",
                   "--min_ratings 0", "--title x")),
    ("--predict 5 --user_id 5 --fallback popular", "that it names: it does not go with --fallback"),
    ("--predict 5 --similar_to 5", "--similar_to asks about movies and not about a person: it does not go with --pred"),
    ("--predict 5 --popular", "it does not go with --predict"), ("--predict 5 --list_users", "go with --predict"),
    ("--predict 5 --all_users --out a.csv", "it does not go with --predict"),
    ("--predict 5 --rate 5:4 --as_of_training", "is about the ratings of the data set: name a user"),
    *((f"--ask 5 {flag}", f"--ask lists N movies that are not rated yet: it does not go with {flag.split()[0]}")
      for flag in ("--top_n 3", "--rank_by rating", "--include_seen", "--explain")),
    ("--ask --user_id 5 --fallback popular", "it does not go with --fallback"),
    ("--ask --predict 5", "--predict is about the movies that it names: it does not go with --ask"),
    ("--ask --popular", "it does not go with --ask"), ("--ask --list_users", "it does not go with --ask"),
    ("--ask --serve", "it does not go with --ask"), ("--ask --all_users --out a.csv", "it does not go with --ask"),
    ("--ask --as_of_training", "is about the ratings of the data set: name a user"),
    ("--ask 0", "--ask must be at least 1, not 0"), ("--ask Heat", "invalid int value: 'Heat'")])
def test_flags_that_do_not_go_together_are_refused(flags, sentence, capsys):
    with pytest.raises(SystemExit) as end:
        rec.main(flags.split())
    assert end.value.code == 2 and sentence in capsys.readouterr().err
