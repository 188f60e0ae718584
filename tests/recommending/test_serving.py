"""What rec.py prints of movies planted by hand: filters, files of ratings, keys of JSON, tables, the picture."""

import importlib
import json
import re
import shutil

import numpy as np
import pytest

import rec
from preprocessing.dataset import read_movies, read_users
from recommending.recommender import Filters, Recommender

NOBODY = ["--user_id", "5", "--fallback", "popular"]
UNNAMED = {"kind": None, "user_id": None, "movie_id": None, "ranked_by": None, "as_of": None}
ROW = ["rank", "movie_id", "title", "year", "num_ratings", "stars", "stars_bound", "interval", "probabilities",
       "similarity", "rated", "because"]
PREDICTED = {"stars", "stars_bound", "interval", "probabilities"}


@pytest.fixture
def ask(capsys, planted, monkeypatch):
    """Run rec.py on the planted movies; return what it prints, with --json as an object."""
    monkeypatch.setattr(Recommender, "load", staticmethod(lambda *_: planted))

    def ask(*flags: object) -> object:
        code = rec.main([str(flag) for flag in flags])
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return json.loads(printed.out) if "--json" in flags else printed.out

    return ask


def listed(answer: dict) -> list[int]:
    return [row["movie_id"] for row in answer["recommendations"]]


@pytest.mark.parametrize(("flags", "passing"), [
    ([], {10, 20, 30, 40, 60}),
    (["--min_ratings", 0], {10, 20, 30, 40, 50, 60}),
    (["--min_ratings", 1], {10, 20, 30, 40, 60}),
    (["--min_ratings", 7], {10, 20, 30, 40}),
    (["--min_ratings", 8], {10, 20, 30}),
    (["--min_ratings", 100], {10}),
    (["--min_ratings", 101], set()),
    (["--year_from", 1986], {10, 20}),
    (["--year_from", 1987], {10}),
    (["--year_from", 1987, "--min_ratings", 0], {10, 50}),
    (["--year_to", 1986], {20, 30, 60}),
    (["--year_to", 1985], {30, 60}),
    (["--year_from", 0], {10, 20, 30, 60}),  # an unknown year passes neither bound
    (["--year_to", 3000], {10, 20, 30, 60}),
    (["--year_from", 1984, "--year_to", 1984], {60}),
    (["--title", "HEAT"], {10, 20}),
    (["--title", "AN"], {30, 40}),
    (["--title", "eat", "--year_to", 1990], {20}),
    (["--top_n", 2], 2), (["--top_n", 1], 1), (["--top_n", 3, "--min_ratings", 7], 3),
])
def test_filters_and_lengths_go_with_every_question(ask, flags, passing):
    for question, left_out in ((["--rate", "50:3", "--include_seen"], set()), (["--rate", "20:3"], {20}),
                               (["--similar_to", 50], {50}), (["--similar_to", 30], {30}), (NOBODY, set())):
        found = listed(ask(*question, "--json", *flags))
        assert len(found) == passing if isinstance(passing, int) else sorted(found) == sorted(passing - left_out)


def test_a_list_has_ten_movies_without_a_length(capsys, data_dir, run_dir):
    place = ["--data_dir", str(data_dir), "--run_dir", str(run_dir), "--json"]
    for question in ([], ["--rate", f"{read_movies(data_dir).movie_id[0]}:3"],
                     ["--similar_to", str(read_movies(data_dir).movie_id[0])], NOBODY):
        assert rec.main([*place, *question]) == 0
        assert len(json.loads(capsys.readouterr().out)["recommendations"]) == 10


@pytest.mark.parametrize("text", [
    "10,5\n30,3.5\n40,2\n", "movie_id,stars\n10,5\n30,3.5\n40,2\n", "MovieID,Rating\n10,5\n30,3.5\n40,2",
    "x,score,movie\na,5,10\nb,3.5,30\n,2,40\n", "id,,stars\n10,,5\n30,,3.5\n40,,2\n", "stars,id\n5,10\n3.5,30\n2,40\n",
    "\ufeffTitle , Stars\r\n10 , 5\r\n\r\n30,3.5\r\n40,2.0",
    'title,stars\n10,5\n"GOOD, the Bad and the Ugly, The",3.5\nélan,2\n',
])
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_a_file_of_ratings_says_what_typed_ratings_say(ask, tmp_path, text, encoding):
    path, flags = tmp_path / "mine.csv", ["--json", "--include_seen"]
    path.write_bytes(text.encode("utf-8" if "\ufeff" in text else encoding))
    for more, given in (([], {10: 5, 30: 3.5, 40: 2}), (["--rate", "30:1,60:4"], {10: 5, 30: 1, 40: 2, 60: 4})):
        answer = ask("--ratings_file", path, *more, *flags)
        rated = {row["movie_id"]: row["rated"] for row in answer["recommendations"] if row["rated"]}
        assert rated == given
        assert answer == ask("--rate", ", ".join(f"{movie_id}:{stars}" for movie_id, stars in given.items()), *flags)


@pytest.mark.parametrize(("text", "line", "sentence"), [
    ("title,5\n", 1, "no movie is called 'title'; look for its movie_id with: python rec.py --search"),
    ("10,5\nmovie_id,stars\n", 2, "'stars' is no number of stars"),
    ("movie,x\n10,5\n", 1, "no column is named for stars (stars or yourrating or myrating); found: 'movie', 'x'"),
    ("movie_id,stars\n\n\nheat,3\n", 4, "2 movies are called 'heat'; give the movie_id of one: 10 (1995, 100 rating"),
    ("11,5\n", 1, "movie_id 11 is not in the data set"),
    ("30,1\n10,5.5\n", 2, "movie_id 10 is given 5.5 stars, outside 1 to 5"),
    ("10,0.5\n", 1, "movie_id 10 is given 0.5 stars, outside 1 to 5"),
    ("30,4\n10,two\n", 2, "'two' is no number of stars"),
    ("movie_id,stars\n10\n", 2, "there are no stars, nor in any other line"),
    ("10\n", 1, "'10' is not movie_id,stars or title,stars (a title that holds a comma "),
    ("10,5,2005-01-01\n", 1, "'10,5,2005-01-01' is not movie_id,stars"),
    ("10,5\n30,4\nÉLAN,3\n40,2\n", 4, "movie_id 40 is rated already in line 3"),
    ('30,4\n"Heat,4\n', 2, "a quotation mark is never closed"),
    ("", None, "holds no ratings; write lines of movie_id,stars or title,stars into it"),
    ("title,stars\n", None, "holds no ratings"),
])
def test_a_mistake_in_a_file_is_named_by_file_and_line(ask, capsys, tmp_path, text, line, sentence):
    path = tmp_path / "mine.csv"
    path.write_text(text, encoding="utf-8")
    assert rec.main(["--ratings_file", str(path), "--rate", "60:1"]) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    where = path if line is None else f"{path}, line {line}:"
    assert printed.err.startswith(f"error: {where} {sentence}")


@pytest.mark.parametrize(("flags", "named", "filled"), [
    (["--rate", "10:5"], {"kind": "new", "ranked_by": "rating"}, PREDICTED),
    (["--rate", "10:5", "--explain"], {"kind": "new", "ranked_by": "rating"}, {*PREDICTED, "because"}),
    (["--rate", "10:5", "--include_seen"], {"kind": "new", "ranked_by": "rating"}, {*PREDICTED, "rated"}),
    (["--similar_to", 10], {"kind": "similar", "movie_id": 10}, {"similarity"}),
    (NOBODY, {"kind": "popular", "user_id": 5}, {"stars"}),
    ([*NOBODY, "--explain", "--include_seen"], {"kind": "popular", "user_id": 5}, {"stars"}),
])
def test_json_has_the_same_keys_for_every_list_and_null_where_they_do_not_apply(ask, flags, named, filled):
    answer = ask("--json", *flags)
    rows = answer.pop("recommendations")
    assert answer == UNNAMED | named and list(answer) == list(UNNAMED)
    assert all(list(row) == ROW for row in rows) and [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
    assert {key for row in rows for key in ROW[5:] if row[key] is not None} == filled
    facts = {10: ("Heat", 1995, 100), 20: ("HEAT", 1986, 10), 30: ("Good, the Bad and the Ugly, The", 1966, 50),
             40: ("Élan", None, 7), 60: ("1984", 1984, 1)}
    assert all(facts[row["movie_id"]] == (row["title"], row["year"], row["num_ratings"]) for row in rows)


def test_json_is_one_line_of_ascii_and_what_else_is_said_goes_to_stderr(ask, capsys, planted):
    for flags, said in ((NOBODY, "user_id 5 is not in the data set: listing popular movies instead\n"),
                        ([*NOBODY, "--rate", "10:5"],
                         "user_id 5 is not in the data set: the ratings given are all that is known\n"),
                        (["--similar_to", "50"],
                         "movie 50 has no training ratings: only its features say what it is like\n"),
                        (["--similar_to", "60"], "")):
        assert rec.main([*flags, "--json"]) == 0
        printed = capsys.readouterr()
        assert printed.err == said and printed.out.isascii() and printed.out.count("\n") == 1
        assert "\\u00c9lan" in printed.out


def test_a_table_says_what_json_says(ask, planted):
    planted.movies.num_train_ratings[0] = 1234
    for flags, heading, last in (
            (["--rate", "10:4.5,30:1", "--include_seen"], "somebody new, 2 movies rated",
             ["given", "stars", "8", "of", "10"]),
            (["--rate", "10:5"], "somebody new, 1 movie rated", ["stars", "8", "of", "10"]),
            (["--similar_to", 30], "like movie 30, Good, the Bad and the Ugly, The", ["cosine"]),
            (NOBODY, "popular movies, most ratings first; stars are their mean", ["stars"])):
        rows, lines = ask(*flags, "--json")["recommendations"], ask(*flags).splitlines()
        assert lines[0] == heading and lines[1].split() == ["rank", "id", "title", "year", "ratings", *last]
        for row, line in zip(rows, lines[2:], strict=True):
            is_whole = row["title"] in line
            title = row["title"] if is_whole else re.search(r"\S.*?\.\.\.", line[9:])[0]  # cut to its column
            assert row["title"].startswith(title.removesuffix("...")) and len(title) >= min(len(row["title"]), 26)
            shown = [str(row["rank"]), str(row["movie_id"]), *title.split(), str(row["year"] or "-"),
                     f"{row['num_ratings']:,}"]
            if row["rated"]:
                shown.append(f"{row['rated']:g}")
            if row["similarity"] is not None:
                shown.append(f"{row['similarity']:.3f}")
            else:
                halves = int(np.floor(2 * row["stars"] + 0.5))
                shown.append(f"{row['stars']:.2f}")
                if row["interval"] is not None:
                    shown.append("-".join(f"{end:.1f}" for end in row["interval"]))
                shown += ["★" * (halves // 2) + "½" * (halves % 2)]
            assert line.split() == shown


def test_nobody_has_explanations_who_has_rated_nothing(ask, planted):
    rows = planted.recommend(nothing := planted.history_from({}))
    planted.explain(nothing, rows)
    assert all(row.because is None for row in rows)


def test_the_seed_of_the_data_set_chooses_the_user(data_dir, run_dir):
    recommender, chosen = Recommender.load(run_dir, data_dir), []
    for seed in (0, 1, 2, 0):
        recommender.meta["seed"] = seed
        chosen.append(recommender.any_user_id())
    assert chosen[0] == chosen[3] and len(set(chosen)) == 3
    assert set(chosen) <= set(read_users(data_dir).user_id.tolist())


def test_runs_default_and_the_data_set_that_it_was_trained_on_are_read_without_flags(capsys, data_dir, run_dir,
                                                                                   tmp_path, monkeypatch):
    place = ["--data_dir", str(data_dir), "--run_dir", str(run_dir)]
    assert rec.main([*place, "--json"]) == 0
    answer = capsys.readouterr().out
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    assert rec.main(["--json"]) == 1
    assert "runs/default not found; run: python main.py --run_dir runs/default\n" in capsys.readouterr().err
    shutil.copytree(run_dir, tmp_path / "runs" / "default")
    assert rec.main(["--json"]) == 0 and capsys.readouterr().out == answer
    assert rec.main([*place, "--run_dir", "runs/none"]) == 1
    assert "runs/none not found; run: python main.py --run_dir runs/none --data_dir" in capsys.readouterr().err


def test_three_lines_of_python_are_the_same_as_the_command(capsys, data_dir, run_dir):
    first, second = read_movies(data_dir).movie_id[:2].tolist()
    recommender = Recommender.load(run_dir, data_dir)
    movies = recommender.recommend(recommender.history_from({first: 5, second: 1}), top_n=7,
                                   filters=Filters(year_from=1990))
    assert rec.main(["--data_dir", str(data_dir), "--run_dir", str(run_dir), "--rate", f"{first}:5,{second}:1",
                     "--json", "--top_n", "7", "--year_from", "1990"]) == 0
    rows = json.loads(capsys.readouterr().out)["recommendations"]
    assert [vars(movie) for movie in movies] == [
        row | {name: pytest.approx(row[name], abs=6e-5) for name in PREDICTED} for row in rows]  # four places are shown


GIVEN = {"--user_id": ["7"], "--rate": ["1:5"], "--ratings_file": ["mine.csv"], "--rank_by": ["rating"],
         "--explain": [], "--include_seen": [], "--date": ["2001-01-01"], "--year_from": ["1990"],
         "--year_to": ["1990"], "--min_ratings": ["0"], "--title": ["x"], "--json": []}


@pytest.mark.parametrize(("question", "allowed"), [
    (["--all_users", "--out", "a.parquet"], ()), (["--export_vectors", "vectors"], ()),
    (["--similar_to", "1"], ("--date", "--year_from", "--year_to", "--min_ratings", "--title", "--json")),
    (["--map", "map.png"], ("--date", "--year_from", "--year_to", "--min_ratings", "--title", "--json"))])
def test_flags_that_a_question_has_no_use_for_are_refused(capsys, monkeypatch, question, allowed):
    monkeypatch.setattr(rec, "run", lambda args: None)
    for flag, value in GIVEN.items():
        if flag in allowed:
            assert rec.main([*question, flag, *value]) == 0
            continue
        with pytest.raises(SystemExit) as end:
            rec.main([*question, flag, *value])
        assert end.value.code == 2 and f"{question[0]}" in (said := capsys.readouterr().err) and said.endswith(
            f"it does not go with {flag}\n")


def test_a_picture_has_a_dot_for_every_movie_larger_and_on_top_where_ratings_are_more(ask, tmp_path, monkeypatch):
    pyplot, kept = importlib.import_module("matplotlib.pyplot"), []
    with monkeypatch.context() as patch:
        patch.setattr(pyplot, "close", kept.append)
        answer = ask("--map", tmp_path / "map.png", "--json")
    axes, colours = kept[0].axes
    dots = axes.collections[0]
    place = {movie["movie_id"]: (movie["x"], movie["y"]) for movie in answer["movies"]}
    fewest_first = [60, 40, 20, 30, 10]
    np.testing.assert_allclose(dots.get_offsets(), [place[movie_id] for movie_id in fewest_first], atol=1e-4)
    assert (np.diff(dots.get_sizes()) > 0).all()
    assert dots.get_array().filled(0).tolist() == [1984, 0, 1986, 1966, 1995]
    assert [text.get_text() for text in axes.texts] == [
        "Heat", "Good, the Bad and the Ugly,...", "HEAT", "Élan", "1984"]
    assert axes.get_title() == "5 movie vectors; a larger dot has more ratings"
    assert axes.get_xlabel() == f"first principal axis ({answer['variance'][0]:.0%} of the variance)"
    assert axes.get_ylabel() == f"second principal axis ({answer['variance'][1]:.0%} of the variance)"
    assert colours.get_ylabel() == "release year"
    pyplot.close(kept[0])


def test_lists_asked_for_in_python_have_ten_movies_and_three_reasons(data_dir, run_dir):
    recommender = Recommender.load(run_dir, data_dir)
    history = recommender.history_of(recommender.any_user_id())
    listed = recommender.recommend(history)
    similar, popular = recommender.similar(listed[0].movie_id), recommender.popular()
    assert [len(rows) for rows in (listed, similar, popular)] == [10, 10, 10]
    recommender.explain(history, listed)
    assert max(len(row.because) for row in listed) == 3
