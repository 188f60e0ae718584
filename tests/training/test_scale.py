"""A scale is a way of writing: the same ratings on another one give the same model, and errors in its stars."""

import json
import random

import pytest

import rec
from preprocessing import table_preprocess
from training.metrics import relevant_stars


@pytest.fixture(scope="module")
def measured(tmp_path_factory, train):
    """Train on the same ratings on three scales; return test_metrics.json and the list of one user for each."""
    rng = random.Random(3)
    users, movies = ([rng.gauss(0, 1) for _ in range(number)] for number in (60, 30))
    rows = [(user, movie, min(max(round(3.4 + users[user] * 0.6 + movies[movie]), 1), 5))
            for user in range(60) for movie in rng.sample(range(30), 20)]
    results = {}
    for name, stars_of in {"1 to 5": lambda s: s, "0 to 100": lambda s: 25 * (s - 1),
                           "-1 to 1": lambda s: (s - 3) / 2}.items():
        folder = tmp_path_factory.mktemp("scale")
        (folder / "r.csv").write_text("user,item,rating\n" + "".join(f"{user},{movie},{stars_of(stars)}\n"
                                                                     for user, movie, stars in rows))
        assert table_preprocess.main(["--raw_file", str(folder / "r.csv"), "--out_dir", str(folder / "data")]) == 0
        assert train(folder / "data", folder / "run", "--epochs", "4") == 0
        results[name] = json.loads((folder / "run" / "test_metrics.json").read_text()), folder / "run"
    return results


@pytest.mark.parametrize(("name", "unit"), [("0 to 100", 25), ("-1 to 1", 0.5)])
def test_the_same_ratings_on_another_scale_give_the_same_model(measured, name, unit):
    (expected, _), (found, _) = measured["1 to 5"], measured[name]
    assert expected.keys() == found.keys() and "relevance" in found
    for model in ("global_mean", "popularity", "bias", "two_tower", "relevance"):
        for measure, value in expected[model].items():
            factor = unit if measure in ("rmse", "mae") else 1
            assert found[model][measure] == (None if value is None else pytest.approx(value * factor, rel=2e-3))
    assert expected["two_tower"]["rmse"] < expected["global_mean"]["rmse"]  # it has learned something


def test_lists_are_the_same_in_the_stars_of_the_scale(measured, capsys):
    lists = {}
    for name, (_, run) in measured.items():
        capsys.readouterr()
        assert rec.main(["--run_dir", str(run), "--user_id", "7", "--json", "--top_n", "5"]) == 0
        lists[name] = json.loads(capsys.readouterr().out)["recommendations"]
    for one, hundred, below in zip(lists["1 to 5"], lists["0 to 100"], lists["-1 to 1"], strict=True):
        assert one["movie_id"] == hundred["movie_id"] == below["movie_id"]
        assert hundred["stars"] == pytest.approx(25 * (one["stars"] - 1), abs=0.1)
        assert below["stars"] == pytest.approx((one["stars"] - 3) / 2, abs=0.002)


@pytest.mark.parametrize(("scale", "relevant", "not_relevant"), [
    ((1, 5), 4, 3), ((0.5, 5), 4, 3.5), ((1, 10), 8, 7), ((0, 100), 75, 74), ((-10, 10), 5, 4), ((1, 4), 4, 3)])
def test_the_upper_quarter_of_a_scale_is_relevant(scale, relevant, not_relevant):
    assert not_relevant < relevant_stars(*scale) <= relevant
