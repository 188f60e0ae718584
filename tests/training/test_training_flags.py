"""What main.py's flags of training do, read from a run's files: rates, steps, weights of the loss, parts of the model.

Runs are on 1,400 synthetic ratings of 41 movies by 50 users, with both pairs of towers and eight coordinates. At a
learning rate of nearly zero a run tells where the tensors begin; one with all users in a step takes a single step an
epoch.
"""

import functools
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import main
from models.checkpoint import save_checkpoint
from preprocessing import netflix_preprocess, synthetic_netflix
from training import report

SMALL = ("--embedding_dim 8 --ensemble_size 2 --hidden_dim 8 --num_threads 1 --device cpu --no-refit "
         "--relevance_weight 0 --epochs 3 --batch_size 25 --lr 0.003")
FROZEN = "--lr 1e-30 --epochs 1 --batch_size 100"
ONE_STEP = "--lr 0.001 --epochs 1 --batch_size 100"
CURVE = "--blend user --without movie_bias_over_time --batch_size 50 --lr 0.01"
TOWER_STEP = 0.001 * 1.5 * 1.9 / 1.02  # how far it moves a movie table: its rate, Nesterov's first step, the warm-up
# Where the parameters of a part lie: by name, and of a layer's weight the columns. A user's are 16 of the embedding,
# 128 of the pooled history, which come again behind the 8 hidden units, and 3 features; a movie's 4 of the embedding,
# 3 of the year, 2 of the number of ratings, and one of who rated it, which comes again behind the hidden units.
EVERYWHERE = slice(None)
PARTS = {"user_embedding": {"user_embedding": EVERYWHERE, "user_tower.hidden.weight": slice(16)},
         "pooled_history": {"user_tower.pooled": EVERYWHERE, "user_tower.hidden.weight": slice(16, 144),
                            "user_tower.out.weight": slice(8, 136)},
         "fold_in": {"user_tower.log_base": EVERYWHERE, "user_tower.log_per_rating": EVERYWHERE},
         "user_features": {"user_tower.hidden.weight": slice(144, 147)},
         "year": {"movie_tower.hidden.weight": slice(4, 7, 2)},  # between them its square less 1, which is never zero
         "movie_features": {"movie_tower.hidden.weight": slice(7, 9)},
         "biases": {"movie_tower.bias": EVERYWHERE}, "movie_bias_over_time": {"movie_bias_over_time.table": EVERYWHERE},
         "recent_user_bias": {"recent_user_bias.weight": EVERYWHERE, "recent_user_bias.log_shrinkage": EVERYWHERE}}
DATE_PARTS = ("movie_bias_over_time", "recent_user_bias")
NEVER_OF_MOVIES = ("year", *DATE_PARTS)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    synthetic_netflix.generate(folder / "raw", num_users=50, num_movies=40, num_ratings=1_400, seed=7)
    assert netflix_preprocess.main(["--raw_dir", str(folder / "raw"), "--out_dir", str(folder / "data"),
                                    "--val_fraction", "0.2"]) == 0
    return folder / "data"


@pytest.fixture(scope="module", autouse=True)
def no_pictures():
    """They take longer than a tiny run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "plot_training", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Callable[..., dict]:
    """Return a function from flags, and perhaps a folder with a run, to the run's last.pt and its folder, `dir`."""
    @functools.cache
    def train(flags: str = "", folder: Path | None = None) -> dict:
        folder = folder or tmp_path_factory.mktemp("run")
        assert main.main(["--data_dir", str(data), "--run_dir", str(folder), *SMALL.split(), *flags.split()]) == 0
        return torch.load(folder / "last.pt", weights_only=True) | {"dir": folder}
    return train


@pytest.fixture
def resumed(trained, tmp_path) -> Callable[..., dict]:
    """Return a function that goes on with a copy of a run, after it was changed."""
    def go_on(before: dict, flags: str, **changed: torch.Tensor) -> dict:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(before["dir"], folder)
        kept = {name: value for name, value in before.items() if name not in ("dir", "sums")}
        save_checkpoint(folder / "last.pt", kept | {"model": before["model"] | changed})
        return trained(f"{flags} --resume", folder)
    return go_on


def column(run: dict, name: str) -> list[float]:
    return [row[name] for row in run["metrics"]]


def differs(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Tell whether tensors differ, by more than a rate of nearly zero moves a zero."""
    return one.shape != other.shape or bool(((one - other).abs() > 1e-20).any())


def differing(one: dict, other: dict) -> set[str]:
    """Return the names of the models' tensors that differ, or that one of them does not have."""
    one, other = one["model"], other["model"]
    return one.keys() ^ other.keys() | {name for name in one.keys() & other.keys() if differs(one[name], other[name])}


def towers_of(names: set[str]) -> set[str]:
    """Return which towers tensors belong to; what follows from them is left aside: what is folded in, their shares and
    the link."""
    return {name.partition(".")[0] for name in names} - {"folded_in", "share", "link"}


# --- epochs, steps, rates ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("flags", "epochs", "steps"), [
    ("--epochs 100", 20, 1), ("--epochs 3 --batch_size 49", 3, 2), ("--epochs 4 --batch_size 13 --lr 0.002", 4, 4)])
def test_the_rate_warms_up_and_falls_along_half_a_cosine_over_the_planned_epochs(flags, epochs, steps, trained):
    run, lr = trained(f"{CURVE} --patience 99 {flags}"), 0.002 if "--lr" in flags else 0.01
    rows, number = (run["dir"] / "metrics.csv").read_text().splitlines(), epochs * steps
    place = rows[0].split(",").index("lr")
    expected = [lr * min(1, (last + 1) / (0.02 * number + 1)) * (1 + math.cos(math.pi * last / number)) / 2
                for last in range(steps - 1, number, steps)]  # of each epoch's last step
    assert [float(row.split(",")[place]) for row in rows[1:]] == pytest.approx(expected, rel=1e-5)
    taken = run["engines"][0]["layers"]["steps"][0]
    assert (len(rows) - 1, taken) == (epochs, number)


@pytest.mark.parametrize("patience", [1, 2])
def test_training_ends_when_so_many_epochs_were_no_better_than_the_best(patience, trained):
    rmse = column(trained(f"{CURVE} --patience 99 --epochs 100"), "val_rmse")
    run = trained(f"{CURVE} --patience {patience} --epochs 100")
    end = next(number for number in range(1, 20) if number - 1 - np.argmin(rmse[:number]) == patience)
    assert column(run, "val_rmse") == rmse[:end] and 1 < run["best_epoch"] == end - patience


def test_the_dimensions_are_those_of_the_tensors(trained):
    model = trained("--embedding_dim 12 --ensemble_size 3 --hidden_dim 5 --epochs 1")["model"]
    shapes = {"movie_tower.embedding": (3, 4), "movie_tower.bias": (3,), "movie_tower.hidden.weight": (4 + 5 + 1,),
              "movie_tower.out.weight": (5 + 1,), "user_tower.hidden.weight": (16 + 128 + 3,),
              "user_tower.out.bias": (), "user_tower.log_base": (4 + 1,)}
    first = {"hidden.weight": 5, "out.weight": 3 * (4 + 1), "out.bias": 3 * (4 + 1), "log_base": 3}
    for kind, rows in (("user", 41), ("item", 50)):
        if kind == "item":  # of two members at most
            shapes |= {"movie_tower.embedding": (2, 4), "movie_tower.bias": (2,)}
            first |= {"out.weight": 2 * (4 + 1), "out.bias": 2 * (4 + 1), "log_base": 2}
        for name, shape in shapes.items():
            assert model[f"{kind}_based.{name}"].shape == (first.get(name.partition(".")[2], rows), *shape)


# --- chance ------------------------------------------------------------------------------------------------------


def test_dropout_changes_what_training_sees_and_nothing_of_evaluation(trained, resumed):
    """At a rate of zero, an epoch is a look at the same model; looks differ by chance alone."""
    before, still = trained(), "--lr 1e-30 --epochs 5"
    looks = [resumed(before, f"{still} {flags}") for flags in ("", "--dropout 0.8")]
    for look in looks:
        assert not differing(before, look)
        for name in ("val_rmse", "val_mae"):
            assert column(look, name)[2:] == [column(before, name)[2]] * 3
        assert len(set(column(look, "train_rmse"))) == 5  # every epoch draws anew
    for epoch in (3, 4):
        whole, dropped = (column(look, "train_rmse")[epoch] for look in looks)
        assert whole != dropped


def test_dropout_reaches_the_mlp_of_both_towers_and_of_both_pairs(trained):
    changed = differing(trained(ONE_STEP), trained(f"{ONE_STEP} --dropout 0.5"))
    assert {name for name in changed if name.endswith("out.weight")} == {
        f"{kind}_based.{tower}_tower.out.weight" for kind in ("user", "item") for tower in ("user", "movie")}
    assert {name.rpartition("_tower.")[2] for name in changed if not name.startswith("link.")} == {
        "out.weight", "folded_in", "share"}
    assert trained(f"{ONE_STEP} --dropout 0.5")["config"]["dropout"] == 0.5


def test_the_seed_is_that_of_the_first_weights_and_of_every_division(trained, resumed):
    begin, other = trained(FROZEN), trained(f"{FROZEN} --seed 1")
    assert {f"{kind}_based.{name}" for kind in ("user", "item") for name in (
        "movie_tower.embedding", "user_tower.pooled", "user_embedding", "movie_tower.hidden.weight")} <= differing(
        begin, other)
    seeded = [begin | {"flags": begin["flags"] | {"seed": seed}} for seed in (0, 1)]  # which a flag may not change
    looks = [resumed(seeded[seed], f"--lr 1e-30 --epochs 2 --seed {seed}") for seed in (0, 1, 0)]
    first, second, again = (column(look, "train_rmse")[1] for look in looks)
    assert first == again != second
    assert column(looks[0], "val_rmse") == column(looks[1], "val_rmse")
    ends = [resumed(seeded[seed], f"--lr 0.001 --epochs 2 --seed {seed}") for seed in (0, 1)]
    assert {f"{kind}_based.movie_tower.embedding" for kind in ("user", "item")} <= differing(*ends)


# --- weights of the loss -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("flag", "low", "high"), [("movie_l2", 0.0, 40.0), ("movie_l2", None, 46.0),
                                                   ("l2", 0.25, 1.5)])
def test_movie_vectors_are_drawn_to_zero_once_a_movie_and_once_a_rating(flag, low, high, trained):
    """A rating is a target of one of the two members, so what the members' shares of a pull come to is known: a movie's
    ratings for the l2, 1 for the prior. Without a fold-in the pull is all that the flag does to movies."""
    flags = f"{ONE_STEP} --without fold_in"
    runs = [trained(f"{flags} --{flag} {value}" if value is not None else flags)["model"] for value in (low, high)]
    begin, low = trained(f"{FROZEN} --without fold_in")["model"], 6.0 if low is None else low
    for kind in ("user", "item"):
        movie, count = (begin[f"{kind}_based.movie_tower.{name}"].double() for name in ("embedding", "num_ratings"))
        pull = runs[0][f"{kind}_based.movie_tower.embedding"].double() - runs[1][f"{kind}_based.movie_tower.embedding"]
        both = pull[:, 0] * movie[:, 1] + pull[:, 1] * movie[:, 0]
        times = count.unsqueeze(1) if flag == "l2" else (count > 0).double().unsqueeze(1)
        torch.testing.assert_close(both, TOWER_STEP * (high - low) * times * movie.prod(1), rtol=1e-3, atol=1e-7)


def test_l2_is_of_movies_per_rating_and_of_users_in_the_item_based_towers(data, trained):
    ratings = pq.read_table(data / "ratings.parquet")
    chosen = np.array(ratings["split"].to_pylist()) == "train"
    movies, users = (len(set(np.asarray(ratings[f"{name}_idx"])[chosen])) for name in ("movie", "user"))
    plain, of_movies, of_users = (trained(flags) for flags in ("", f"--l2 {movies / chosen.sum()}",
                                                               f"--l2 {users / chosen.sum()}"))
    assert towers_of(differing(plain, of_movies)) == {"item_based"}
    assert towers_of(differing(plain, of_users)) == {"user_based"}


@pytest.mark.parametrize(("flag", "prior"), [("", 200.0), ("--time_l2 40", 40.0), ("--time_l2 0", 0.0)])
@pytest.mark.parametrize("steps", [1, 3])
def test_a_bias_over_time_that_no_rating_holds_decays_by_its_l2_once_an_epoch(flag, prior, steps, trained, resumed):
    begin, name = trained(FROZEN), "user_based.movie_bias_over_time.table"
    free = begin["model"][name] == 0  # a movie and a period without ratings
    assert 0 < free.sum() < free.numel()
    run = resumed(begin, f"--lr 0.001 --epochs 2 --batch_size {math.ceil(50 / steps)} {flag}",
                  **{name: begin["model"][name] + free})
    value, speed = 1.0, 0.0
    for step in range(steps, 2 * steps):
        factor = min(1, (step + 1) / (0.04 * steps + 1)) * (1 + math.cos(math.pi * step / (2 * steps))) / 2
        pull = prior / steps * value
        speed = 0.9 * speed + pull
        value -= 0.001 * 1.5 * factor * (pull + 0.9 * speed)
    torch.testing.assert_close(run["model"][name][free], torch.full((int(free.sum()),), value), rtol=1e-4, atol=0)


def test_the_weight_of_relevance_scales_its_gradient_and_touches_nothing_else(trained):
    none, one, three = (trained(f"{ONE_STEP} {flag}") for flag in ("", "--relevance_weight 1", "--relevance_weight 3"))
    moments = [[table["mean"] for table in run["engines"][0]["relevance"]] for run in (one, three)]
    for mean, other in zip(*moments, strict=True):
        torch.testing.assert_close(other, 3 * mean, rtol=1e-4, atol=1e-8)
        assert mean.abs().sum() > 0
    relevance = {name for name in one["model"] if name.startswith("relevance.")}
    assert differing(none, one) == relevance and differing(one, three) <= relevance
    assert none["engines"][0]["relevance"] == []
    assert ['"relevance"' in (run["dir"] / "test_metrics.json").read_text() for run in (none, one)] == [False, True]


# --- parts of the model ------------------------------------------------------------------------------------------


def moved(begin: dict, run: dict, kind: str) -> set[str]:
    """Return the parts of one pair of towers whose tensors have all moved; one that is not there has not."""
    found = set()
    for part, places in PARTS.items():
        changed = [f"{kind}_based.{name}" in run["model"] and differs(*(
            model["model"].get(f"{kind}_based.{name}", torch.zeros(2))[..., columns] for model in (begin, run)))
            for name, columns in places.items()]
        assert all(changed) or not any(changed), part
        found |= {part} if all(changed) else set()
    return found


@pytest.fixture
def measured(data, tmp_path, trained) -> Callable[..., dict]:
    """Return a function to what --eval_only measures of a run, after 1 was added to all tensors of some parts."""
    def measure(run: dict, parts: set[str]) -> dict:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(run["dir"], folder)
        best = torch.load(folder / "best.pt", weights_only=True)
        for name, columns in [place for part in parts for place in PARTS[part].items()]:
            for kind in ("user", "item"):
                best["model"].get(f"{kind}_based.{name}", torch.zeros(1))[..., columns] += 1
        save_checkpoint(folder / "best.pt", best)
        trained("--eval_only", folder)
        return json.loads((folder / "test_metrics.json").read_text())
    return measure


@pytest.mark.parametrize("part", [None, *PARTS])
def test_a_part_left_out_never_moves_and_does_nothing_and_all_others_move(part, trained, measured):
    flag = "" if part is None else f"--without {part}"
    begin, run = (trained(f"{flags} --seed 1") for flags in (FROZEN, flag))  # in which the embedding is met in a step
    left_out = {part} - {None}
    assert set(run["config"]["without"]) == left_out
    if part == "movie_features":
        left_out |= {"year"}  # which is one of them
    assert moved(begin, run, "user") == set(PARTS) - left_out
    assert moved(begin, run, "item") == set(PARTS) - left_out - {*NEVER_OF_MOVIES}
    found = {name for name in run["model"] if name.split(".")[1:2] and name.split(".")[1] in DATE_PARTS}
    assert {name.split(".")[:2][1] for name in found} == {*DATE_PARTS} - left_out and towers_of(found) <= {"user_based"}
    assert measured(run, left_out) == json.loads((run["dir"] / "test_metrics.json").read_text())


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_is_there_has_an_effect(part, trained, measured):
    run = trained("")
    before = json.loads((run["dir"] / "test_metrics.json").read_text())
    assert measured(run, {part})["two_tower"]["rmse"] != before["two_tower"]["rmse"]


def test_parts_left_out_together_are_all_and_only_these(trained):
    run = trained("--without recent_user_bias,pooled_history --seed 1")
    assert set(run["config"]["without"]) == {"recent_user_bias", "pooled_history"}
    assert moved(trained(f"{FROZEN} --seed 1"), run, "user") == set(PARTS) - {"recent_user_bias", "pooled_history"}
