"""Flags of main.py do what its help says, seen from outside: in what a run prints and writes.

Runs are on some 400 made-up half stars in MovieLens' layout, with a model of eight coordinates, both pairs of towers
unless a test says otherwise. What the flags of training do to the tensors is in training/test_training_flags.py.
"""

import argparse
import contextlib
import copy
import csv
import functools
import io
import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import main
import rec
from models import config
from models.checkpoint import save_checkpoint
from models.relevance import UNFITTED
from models.stars_link import SPREAD_WEIGHTS
from preprocessing import movielens_preprocess
from training import report
from training.trainer import Trainer

SMALL = ("--embedding_dim 8 --ensemble_size 2 --hidden_dim 8 --num_threads 1 --device cpu --no-refit --epochs 3 "
         "--batch_size 16")
CURVE = "--epochs 20 --patience 2 --batch_size 24 --lr 0.01 --time_l2 20 --seed 5"  # validation is best in between
DROPPED = f"{CURVE} --dropout 0.2 --seed 4"
CLOCK = {"seconds", "ratings_per_s", "peak_rss_mib", "train_s"}  # not the same twice
NUM_MOVIES = 12
DEFAULTS = {"data_dir": "data/processed", "run_dir": "runs/default", "epochs": "100", "lr": "0.001", "patience": "10",
            "batch_size": "128, up to 4096 where there are many users", "ensemble_size": "4",
            "embedding_dim": "128, or 256 beyond 5 million ratings",
            "hidden_dim": "128", "dropout": "0.0", "embedding_l2": "60.0", "time_l2": "200.0", "movie_l2": "6.0",
            "l2": "movies per rating; item-based: users per rating", "relevance_weight": "1.0",
            "blend": "auto, both where there are at most 4 users per movie", "device": "auto", "seed": "0",
            "num_threads": "one per core", "refit": "up to 10 million training ratings"}


class Run:
    """A run of main.py: its exit code, what it printed, the model after each epoch, and its files."""

    def __init__(self, run_dir: Path, argv: list[str], stop_after: int = 0) -> None:
        self.dir, self.models, said = run_dir, {}, io.StringIO()

        def keep(path: Path, checkpoint: dict) -> None:
            save_checkpoint(path, checkpoint)
            if path.name == "last.pt":
                self.models[checkpoint["epoch"]] = copy.deepcopy(checkpoint["model"])
                if len(self.models) == stop_after:
                    raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
            patch.setattr(main, "save_checkpoint", keep)
            self.code = main.main(argv)
        self.lines = said.getvalue().splitlines()
        if self.code == 0:
            self.best, self.last = (torch.load(run_dir / f"{name}.pt", weights_only=True) for name in ("best", "last"))
            self.results = json.loads((run_dir / "test_metrics.json").read_text())
            with open(run_dir / "metrics.csv", newline="") as file:
                self.rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def small(data_dir: Path, run_dir: Path, flags: str = "", stop_after: int = 0) -> Run:
    return Run(run_dir, ["--data_dir", str(data_dir), "--run_dir", str(run_dir), *SMALL.split(), *flags.split()],
               stop_after)


def same(one: object, other: object) -> bool:
    """Tell whether checkpoints, or parts of them, are equal to the bit, but for the clock."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one.keys() - CLOCK)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def ratings_of(data_dir: Path, *parts: str) -> np.ndarray:
    """Return the ratings of some parts of the split, (R, 3): user, movie, stars."""
    table = pq.read_table(data_dir / "ratings.parquet")
    columns = [np.asarray(table[name], float) * step for name, step in (("user_idx", 1), ("movie_idx", 1),
                                                                        ("stars", 0.5))]
    return np.stack(columns, 1)[np.isin(table["split"].to_pylist(), parts)]


def baseline_errors(known: np.ndarray, asked: np.ndarray) -> dict[str, np.ndarray]:
    """Return the errors of the global mean, and of biases, shrunk by 5 ratings, that take turns ten times."""
    users, movies, stars = known[:, 0].astype(int), known[:, 1].astype(int), known[:, 2]
    of_user, of_movie, mean = np.zeros(100), np.zeros(NUM_MOVIES), stars.mean()
    for _ in range(10):
        of_movie = np.bincount(movies, stars - mean - of_user[users], NUM_MOVIES)
        of_movie /= np.bincount(movies, minlength=NUM_MOVIES) + 5
        of_user = np.bincount(users, stars - mean - of_movie[movies], 100) / (np.bincount(users, minlength=100) + 5)
    biased = mean + of_user[asked[:, 0].astype(int)] + of_movie[asked[:, 1].astype(int)]
    return {"global mean": mean - asked[:, 2], "user + movie bias": biased.clip(0.5, 5) - asked[:, 2]}


def rmse(errors: np.ndarray) -> float:
    return float(np.sqrt((errors**2).mean()))


@pytest.fixture(scope="module")
def half_stars(tmp_path_factory) -> Callable[..., Path]:
    """Return a function from a number of users, and flags of preprocessing, to a data set of 12 movies."""
    @functools.cache
    def make(num_users: int = 48, flags: str = "--val_fraction 0.2") -> Path:
        rng, folder = np.random.default_rng(1), tmp_path_factory.mktemp("half")
        level, lines = rng.normal(0, 0.8, NUM_MOVIES), ["userId,movieId,rating,timestamp"]
        for user in range(1, num_users + 1):
            mood, taste = rng.normal(0, 0.9, 2)
            for movie in rng.permutation(NUM_MOVIES)[:rng.integers(7, 12)]:
                stars = 3 + level[movie] + mood + taste * (-1)**movie + rng.normal(0, 0.4)
                lines.append(f"{user},{movie + 1},{np.clip(round(2 * stars), 1, 10) / 2},"
                             f"{10**9 + 86_400 * rng.integers(500)}")
        (folder / "ratings.csv").write_text("\n".join(lines) + "\n")
        (folder / "movies.csv").write_text("movieId,title,genres\n" + "".join(
            f"{movie},Movie {movie} ({1950 + 5 * movie}),x\n" for movie in range(1, NUM_MOVIES + 1)))
        assert movielens_preprocess.main(["--raw_dir", str(folder), "--out_dir", str(folder / "data"), "--latest_n",
                                          "2", *flags.split()]) == 0
        return folder / "data"
    return make


@pytest.fixture(scope="module", autouse=True)
def draw() -> Iterator[Callable]:
    """Leave pictures empty, which take longer than a tiny run; return what draws them."""
    kept = report.plot_training
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "plot_training", lambda path, *_: path.write_bytes(b""))
        yield kept


@pytest.fixture(scope="module")
def trained(half_stars, tmp_path_factory) -> Callable[..., Run]:
    """Return a function from flags to a run, which nobody changes."""
    @functools.cache
    def train(flags: str) -> Run:
        return small(half_stars(), tmp_path_factory.mktemp("run") / "new" / "run", flags)
    return train


# --- defaults and wrong values -----------------------------------------------------------------------------------


def test_a_run_without_flags_has_the_defaults_that_the_help_states(half_stars, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        main.main(["--help"])
    assert end.value.code == 0
    options = re.split(r"\n  (?=--)", capsys.readouterr().out.partition("options:")[2])
    texts = {option.split()[0].strip("-,"): " ".join(option.split()) for option in options}
    stated = {name: found[1] for name, text in texts.items() if (found := re.search(r"\(default: (.*)\)", text))}
    assert stated == DEFAULTS
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    shutil.copytree(half_stars(49), stated["data_dir"])
    run = Run(Path(stated["run_dir"]), [])
    assert run.code == 0 and {path.name for path in tmp_path.iterdir()} == {"data", "runs"}
    numbers = {name: value for name, value in stated.items() if re.fullmatch(r"[\d.]+", value)}
    found = {**run.best["config"], **run.best["settings"]}
    assert found.items() >= {name: float(value) for name, value in numbers.items()}.items()
    assert found["without"] == ()
    assert run.best["refit"] and not run.best["item_based"]  # of 49 users and 12 movies
    l2 = NUM_MOVIES / len(ratings_of(half_stars(49), "train"))
    flags = [f"--{name}={value}" for name, value in numbers.items()] + [f"--l2={l2}", "--batch_size=128"]
    again = Run(tmp_path / "again", [*flags, "--blend=user", "--device=cpu", f"--run_dir={tmp_path / 'again'}"], 2)
    assert same(again.models, {epoch: run.models[epoch] for epoch in (1, 2)})


def test_a_field_with_a_help_text_is_a_flag_of_its_default_type_and_old_name(capsys):
    @dataclass
    class Made:
        size: int = config.flag(3, "how large", old_name="length")
        weight: float | None = config.flag(None, "how heavy (default: as it is)")
        shape: str = "round"  # no flag

    parser = argparse.ArgumentParser()
    main.add_flags(parser, Made)
    assert vars(parser.parse_args([])) == {"size": 3, "weight": None} and Made() == Made(3, None, "round")
    assert vars(parser.parse_args(["--length", "5", "--weight", "1.5"])) == {"size": 5, "weight": 1.5}
    said = " ".join(parser.format_help().split())
    assert "--size I how large (default: 3)" in said and "--weight F how heavy (default: as it is)" in said
    assert "length" not in said


NOT_COUNTS, NOT_WEIGHTS = "0 -1 1.5 ten", "-0.1 nan inf x"


@pytest.mark.parametrize(("flags", "values"), [
    ("epochs batch_size patience embedding_dim ensemble_size hidden_dim num_threads", NOT_COUNTS),
    ("seed", "-1 1.5 2e9"),
    ("embedding_l2 l2 time_l2 movie_l2 relevance_weight", NOT_WEIGHTS), ("seed", f"{2**40}"),
    ("lr", "0 -0.1 nan inf x"), ("dropout", "-0.1 1 nan x"), ("blend", "movie"), ("device", "tpu"),
    ("without", "stars film_age drift,tenure")])
def test_a_wrong_value_ends_with_2_and_a_line_that_names_flag_and_value(flags, values, tmp_path, capsys):
    for flag in flags.split():
        for value in values.split():
            with pytest.raises(SystemExit) as end:
                main.main(["--data_dir", str(tmp_path / "none"), f"--{flag}={value}"])
            said = capsys.readouterr().err.splitlines()[-1]
            assert end.value.code == 2 and f"--{flag}" in said and value.rpartition(",")[2] in said


# --- what a run says ---------------------------------------------------------------------------------------------


def test_what_is_printed_is_what_is_written(trained, half_stars):
    run, count = trained(CURVE), {part: len(ratings_of(half_stars(), part)) for part in ("train", "validation", "test")}
    assert run.lines[0] == (f"{count['train']} training, {count['validation']} validation and {count['test']} test "
                            f"ratings of 48 users and {NUM_MOVIES} movies; device cpu")
    assert run.lines[1] == "up to 20 epochs, 24 users a step"
    least = math.inf
    for line, row in zip(run.lines[2:], run.rows):
        star, least = "*" if row["val_rmse"] < least else " ", min(least, row["val_rmse"])
        begin = (f"epoch {row['epoch']:>3.0f}  train {row['train_rmse']:.4f}  validation {row['val_rmse']:.4f} {star} "
                 f"{row['seconds']:6.1f} s  ")
        assert line.startswith(begin)
        rate = float(line.removeprefix(begin).removesuffix(" ratings/s").replace(",", ""))
        assert abs(rate - row["ratings_per_s"]) < 1 and abs(rate - count["train"] / row["seconds"]) < 1
    best = run.results["best_epoch"]
    assert 1 < best < len(run.rows) and run.rows[best - 1]["val_rmse"] == least
    title, head, *table = run.lines[len(run.rows) + 3:][:7]
    assert title == f"test, {count['test']} ratings, epoch {best} as chosen by validation:"
    names = {"global mean": "global_mean", "popularity": "popularity", "user + movie bias": "bias",
             "two towers": "two_tower", "by relevance": "relevance"}
    for line, (name, key) in zip(table, names.items(), strict=True):
        cells = ["-" if value is None else f"{value:.4f}" for value in run.results[key].values()]
        assert line.startswith(name) and line.removeprefix(name).split() == cells
    assert head.split() == [name.upper() for name in run.results["bias"]] == ["RMSE", "MAE", "NDCG@10", "RECALL@10"]
    assert run.lines[-1].endswith(f"next: python rec.py --run_dir {run.dir}")
    assert run.results["train_s"] == pytest.approx(sum(row["seconds"] for row in run.rows[:best]), rel=1e-4)


@pytest.mark.parametrize("flags", [CURVE, f"{CURVE} --refit"])
def test_baselines_are_those_of_the_ratings_in_stars(flags, trained, half_stars):
    known, asked = ratings_of(half_stars(), "train", "validation"), ratings_of(half_stars(), "test")
    results, expected = trained(flags).results, baseline_errors(known, asked)
    for key, name in (("global_mean", "global mean"), ("bias", "user + movie bias")):
        found = results[key]["rmse"], results[key]["mae"]
        assert found == pytest.approx((rmse(expected[name]), np.abs(expected[name]).mean()), rel=1e-5)
    assert results["two_tower"]["rmse"] < rmse(expected["global mean"])


def test_half_stars_are_predicted_on_their_scale(trained, half_stars, capsys):
    run, predicted = trained(CURVE), []
    config, mean = run.last["config"], ratings_of(half_stars(), "train")[:, 2].mean()
    assert (config["stars_low"], config["stars_high"], config["stars_mean"]) == (0.5, 5, pytest.approx(mean))
    capsys.readouterr()
    for user in range(1, 49):
        assert rec.main(["--data_dir", str(half_stars()), "--run_dir", str(run.dir), "--user_id", str(user),
                         "--include_seen", "--top_n", "12", "--json"]) == 0
        predicted += [row["stars"] for row in json.loads(capsys.readouterr().out)["recommendations"]]
    assert len(predicted) == 48 * NUM_MOVIES and 0.5 < min(predicted) < 1 and 4 < max(predicted) < 5


def test_the_picture_marks_the_curves_the_chosen_epoch_and_the_baselines(draw, half_stars, tmp_path, monkeypatch):
    from matplotlib import pyplot

    monkeypatch.setattr(report, "plot_training", draw)
    monkeypatch.setattr(pyplot, "close", lambda figure: None)
    run = small(half_stars(), tmp_path / "run", CURVE)
    axes = pyplot.gcf().axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "RMSE (stars)") and axes.get_title()
    lines = {line.get_label(): line for line in axes.get_lines()}
    monkeypatch.undo()
    pyplot.close("all")
    epochs, best = [row["epoch"] for row in run.rows], run.rows[run.results["best_epoch"] - 1]
    for begin, column in (("train", "train_rmse"), ("validation", "val_rmse")):
        curve = next(line for label, line in lines.items() if label.startswith(begin))
        assert list(curve.get_xdata()) == epochs
        assert list(curve.get_ydata()) == pytest.approx([row[column] for row in run.rows], rel=1e-5)  # 6 digits
    star = lines[f"chosen: epoch {best['epoch']:.0f}, validation {best['val_rmse']:.4f}"]
    assert (star.get_marker(), *star.get_xydata()[0]) == ("*", best["epoch"], pytest.approx(best["val_rmse"], rel=1e-5))
    errors = baseline_errors(ratings_of(half_stars(), "train"), ratings_of(half_stars(), "validation"))
    for name, of_baseline in errors.items():
        heights = lines[f"{name}, validation: {rmse(of_baseline):.4f}"].get_ydata()
        assert heights == pytest.approx([rmse(of_baseline)] * 2, rel=1e-5)
    assert len(lines) == 5 and (run.dir / "training.png").read_bytes().startswith(b"\x89PNG")


# --- which model is kept, measured, fitted again -----------------------------------------------------------------


@pytest.mark.parametrize(("sides", "folded_in_anew"), [("user", []), ("both", ["folded_in"])])
def test_best_is_the_model_of_the_best_epoch_and_what_is_measured(sides, folded_in_anew, trained, half_stars, tmp_path):
    run = trained(f"{CURVE} --blend {sides}")
    best = 1 + int(np.argmin([row["val_rmse"] for row in run.rows]))
    assert (run.best["epoch"], run.last["epoch"]) == (best, len(run.rows)) and 1 < best < len(run.rows)
    changed = [name for name, tensor in run.models[best].items() if not same(run.best["model"][name], tensor)]
    assert changed == [*folded_in_anew, "link.spread_weights", "relevance.weights"]
    assert same(run.last["model"], run.models[len(run.rows)])
    assert not any(same(run.models[best], model) for epoch, model in run.models.items() if epoch != best)
    shutil.copytree(run.dir, tmp_path / "run")
    shutil.copy(run.dir / "last.pt", tmp_path / "run" / "best.pt")
    other = small(half_stars(), tmp_path / "run", "--eval_only").results
    changed = [name for name in run.results if run.results[name] != other[name]]
    assert [name for name in changed if name != "relevance"] == ["two_tower", "calibration", "best_epoch", "train_s"]
    of_relevance = [name for name in run.models[best] if name.startswith("relevance.")]
    moved = [name for name in of_relevance if not torch.equal(run.last["model"][name], run.best["model"][name])]
    assert moved == ["relevance.history", "relevance.vectors", "relevance.popularity", "relevance.weights"]


def test_the_model_that_is_chosen_is_calibrated_once(trained, half_stars, tmp_path, monkeypatch):
    """By the spread of ratings and the weights of relevance; the link, which tells the best epoch, is fitted in all."""
    run = trained(f"{CURVE} --blend user")
    last, best = run.last["model"], run.best["model"]
    assert run.best["calibrated"] and not run.last["calibrated"]
    assert last["link.spread_weights"].tolist() == pytest.approx(SPREAD_WEIGHTS)
    assert last["relevance.weights"].tolist() == [list(UNFITTED)] * 2
    assert (best["relevance.weights"] != last["relevance.weights"]).all()
    assert not torch.equal(last["link.thresholds"], best["link.thresholds"])
    shutil.copytree(run.dir, tmp_path / "run")
    cut_short = run.best | {"calibrated": False, "model": run.models[run.best["epoch"]]}
    torch.save(cut_short, tmp_path / "run" / "best.pt")  # as a run leaves it that is stopped before
    again = small(half_stars(), tmp_path / "run", "--resume")
    assert again.code == 0 and same(again.best, run.best)
    monkeypatch.setattr(Trainer, "calibrate", None)
    assert small(half_stars(), tmp_path / "run", "--resume").results == again.results


def test_refit_is_training_on_both_parts_for_the_chosen_epochs(trained, half_stars, tmp_path):
    """Where nothing is held out for validation, training has its ratings too."""
    run, plain = trained(f"{DROPPED} --refit"), trained(f"{DROPPED} --no-refit")
    chosen = plain.best["epoch"]
    together = half_stars(48, "--val_fraction 0.000001")
    assert len(ratings_of(together, "train")) == len(ratings_of(half_stars(), "train", "validation"))
    other = small(together, tmp_path / "run", DROPPED, stop_after=chosen).models[chosen]
    assert 1 < chosen < len(plain.rows) == len(run.rows)
    weights = {name: tensor for name, tensor in plain.best["model"].items()  # those that validation gave
               if name in ("share", "relevance.weights") or name.startswith("link.")}
    assert same(run.best["model"], other | weights) and (run.best["refit"], run.best["epoch"]) == (True, chosen)
    assert same(*(other.last | {"flags": {}} for other in (run, plain)))
    assert (plain.best["refit"], run.last["refit"]) == (False, False)
    assert [line.split()[:3] for line in run.lines if line.startswith("refit")] == [
        ["refit", str(epoch), "train"] for epoch in range(1, chosen + 1)]
    assert (f"epoch {chosen} as chosen by validation, fitted again with the validation ratings:" in " ".join(run.lines))
    assert "refit" not in " ".join(plain.lines).replace("--no-refit", "")
    assert (run.results["refit"], plain.results["refit"]) == (True, False)


@pytest.mark.parametrize("flags", ["--blend user", f"{DROPPED} --refit", f"{DROPPED} --no-refit"])
def test_eval_only_gives_the_same_numbers_each_time_and_touches_no_other_file(flags, trained, half_stars, tmp_path):
    before = trained(flags)
    shutil.copytree(before.dir, tmp_path / "run")
    (tmp_path / "run" / "test_metrics.json").unlink()
    others = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "run").iterdir()}
    for _ in range(2):
        again = small(half_stars(), tmp_path / "run", "--eval_only --lr 1 --refit")
        assert again.code == 0 and again.results == before.results and not again.models
        table = before.lines.index(next(line for line in before.lines if line.startswith("test, ")))
        assert again.lines == [before.lines[0], "", *before.lines[table:-2]]
        (tmp_path / "run" / "test_metrics.json").unlink()
        assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "run").iterdir()} == others


# --- going on, beginning anew ------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop_after", [1, 3])
def test_a_resumed_run_leaves_and_says_what_one_that_never_stopped_does(stop_after, trained, half_stars, tmp_path):
    flags = "--epochs 3 --dropout 0.3 --without year --seed 2 --refit --lr 0.01"
    whole, cut = trained(flags), small(half_stars(), tmp_path / "run", flags, stop_after=stop_after)
    assert cut.code == 130
    resumed = small(half_stars(), tmp_path / "run", f"{flags} --resume")
    first = ("resuming after epoch 1 of up to 3" if stop_after == 1
             else "nothing is left to train after epoch 3; a larger --epochs may go on")
    assert resumed.lines[1] == first and len(resumed.models) == 3 - stop_after
    assert {path.name for path in resumed.dir.iterdir()} == {path.name for path in whole.dir.iterdir()} == {
        "best.pt", "last.pt", "metrics.csv", "training.png", "test_metrics.json"}
    for name in ("best", "last", "rows", "results"):
        assert same(getattr(whole, name), getattr(resumed, name)), name
    timeless = [[re.sub(r"[\d.]+ s +[\d,]+ ratings/s", "", line).replace(str(run.dir), "") for line in run.lines]
                for run in (whole, resumed)]
    assert timeless[1] == [timeless[0][0], first, *timeless[0][2 + stop_after:]]


def test_overwrite_leaves_nothing_of_the_run_before(trained, half_stars, tmp_path):
    shutil.copytree(trained(CURVE).dir, tmp_path / "run")
    refused = small(half_stars(), tmp_path / "run", "--blend user")
    assert refused.code == 1 and not refused.models
    run, fresh = small(half_stars(), tmp_path / "run", "--blend user --overwrite"), trained("--blend user")
    for name in ("best", "last", "rows", "results"):
        assert same(getattr(run, name), getattr(fresh, name)), name


# --- sides, device, threads --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_users", "sides", "both"), [(48, "auto", True), (49, "auto", False), (49, "both", True),
                                                          (48, "user", False)])
def test_auto_has_item_based_towers_up_to_four_users_per_movie(num_users, sides, both, half_stars, tmp_path):
    run = small(half_stars(num_users), tmp_path, f"--epochs 1 --blend {sides}")
    item_based = {name for name in run.best["model"] if name.startswith("item_based.")}
    assert (run.best["item_based"], bool(item_based)) == (both, both)
    if both:
        shape = run.best["model"]["item_based.movie_tower.embedding"].shape
        assert shape[0] == num_users and run.best["model"]["item_based.user_embedding"].shape[0] == NUM_MOVIES


@pytest.mark.parametrize(("device", "code"), [("auto", 0), ("cpu", 0), ("cuda", 1)])
def test_without_a_gpu_auto_is_the_cpu_and_cuda_is_refused(device, code, half_stars, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run = small(half_stars(), tmp_path / "run", f"--epochs 1 --device {device}")
    assert run.code == code and [line.endswith("device cpu") for line in run.lines[:1]] == [True] * (1 - code)
    assert ("--device cuda, but this PyTorch finds no GPU" in capsys.readouterr().err) is bool(code)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(("device", "used"), [("auto", "cuda:0"), ("cuda", "cuda:0"), ("cpu", "cpu")])
def test_with_a_gpu_auto_takes_it_and_cpu_does_not(device, used, half_stars, tmp_path):
    assert small(half_stars(), tmp_path, f"--epochs 1 --device {device}").lines[0].endswith(f"device {used}")


def test_training_has_the_threads_asked_for_and_else_those_of_pytorch(half_stars, tmp_path, monkeypatch):
    seen, argv = [], ["--data_dir", str(half_stars()), "--run_dir", str(tmp_path / "run"), "--batch_size", "48",
                      "--embedding_dim", "8", "--hidden_dim", "8", "--blend", "user", "--relevance_weight", "0"]

    def stop(*_: object) -> None:
        seen.append(torch.get_num_threads())
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "save_checkpoint", stop)
    try:
        for before, flags in ((1, ["--num_threads", "2"]), (2, ["--num_threads", "1"]), (1, []), (2, [])):
            torch.set_num_threads(before)
            assert main.main([*argv, *flags]) == 130
    finally:
        torch.set_num_threads(1)
    assert seen == [2, 1, 1, 2]
