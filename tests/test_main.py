import csv
import json
import shutil

import pytest
import torch

import main
import rec
from models.checkpoint import load_model
from models.user_tower import Context
from preprocessing import netflix_preprocess, synthetic_netflix
from preprocessing.dataset import read_users
from training.batches import load_dataset


def test_a_run_leaves_all_its_files(run_dir):
    assert {path.name for path in run_dir.iterdir()} == {
        "best.pt", "last.pt", "metrics.csv", "training.png", "test_metrics.json"}
    assert (run_dir / "training.png").read_bytes().startswith(b"\x89PNG")
    with open(run_dir / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == list(range(1, len(rows) + 1))
    for column in ("train_loss", "train_rmse", "val_rmse", "val_mae", "lr", "seconds", "ratings_per_s", "peak_rss_mib"):
        assert all(float(row[column]) > 0 for row in rows)


def test_test_metrics_name_every_model_and_measure(run_dir):
    results = json.loads((run_dir / "test_metrics.json").read_text())
    for model in ("two_tower", "relevance", "bias", "global_mean", "popularity"):
        assert set(results[model]) == {"rmse", "mae", "ndcg@10", "recall@10"}
    with open(run_dir / "metrics.csv") as file:
        val_rmse = [float(row["val_rmse"]) for row in csv.DictReader(file)]
    assert results["best_epoch"] == 1 + val_rmse.index(min(val_rmse))
    assert results["train_s"] > 0
    assert results["two_tower"]["rmse"] < results["bias"]["rmse"] < results["global_mean"]["rmse"]


def test_resume_equals_uninterrupted_run(train, data_dir, tmp_path, monkeypatch):
    assert train(data_dir, tmp_path / "whole", "--epochs", "5") == 0
    save, saved = main.save_checkpoint, []

    def stop_after_third_epoch(path, checkpoint):
        save(path, checkpoint)
        saved.append(path.name)
        if saved.count("last.pt") == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(main, "save_checkpoint", stop_after_third_epoch)
    assert train(data_dir, tmp_path / "cut", "--epochs", "5") == 130
    monkeypatch.setattr(main, "save_checkpoint", save)
    assert train(data_dir, tmp_path / "cut", "--epochs", "5", "--resume") == 0
    whole, cut = (torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("whole", "cut"))
    for name, tensor in whole["model"].items():
        assert torch.equal(tensor, cut["model"][name]), name
    quality = ("epoch", "train_loss", "train_rmse", "val_rmse", "val_mae", "lr")
    for row, other in zip(whole["metrics"], cut["metrics"], strict=True):
        assert [row[name] for name in quality] == [other[name] for name in quality]


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(train, data_dir, tmp_path):
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        assert train(data_dir, tmp_path / name, "--epochs", "1", "--seed", seed) == 0
    a, b, c = (torch.load(tmp_path / name / "last.pt", weights_only=True)["model"] for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["user_based.movie_tower.embedding"], c["user_based.movie_tower.embedding"])


def test_training_stops_when_patience_runs_out(train, data_dir, tmp_path):
    assert train(data_dir, tmp_path, "--epochs", "40", "--patience", "1", "--lr", "0.02") == 0
    metrics = torch.load(tmp_path / "last.pt", weights_only=True)["metrics"]
    rmse = [row["val_rmse"] for row in metrics]
    assert len(rmse) < 40 and rmse[-1] >= min(rmse[:-1])
    assert all(rmse[k] < min(rmse[:k]) for k in range(1, len(rmse) - 1))


def test_probe_never_reaches_training(train, raw_dir, tmp_path):
    """A model trained beside a changed probe is the same to the bit: no star of the probe had any influence."""
    import numpy as np

    raw = tmp_path / "raw"
    shutil.copytree(raw_dir, raw)
    rng = np.random.default_rng(0)
    changed_raw, models = tmp_path / "changed", []
    shutil.copytree(raw, changed_raw)
    probe, files = [], sorted(raw.glob("combined_data_*.txt"))
    for path in files:
        lines, changed = path.read_text().split("\n"), []
        for line in lines:
            if line.endswith(":"):
                probe.append(line)
            elif line and rng.random() < 0.1:
                user_id, stars, date = line.split(",")
                probe.append(user_id)
                line = f"{user_id},{6 - int(stars)},{date}"
            changed.append(line)
        (changed_raw / path.name).write_text("\n".join(changed))
    for folder in (raw, changed_raw):
        (folder / "probe.txt").write_text("\n".join(probe) + "\n")
        out = tmp_path / f"{folder.name}_processed"
        assert netflix_preprocess.main(["--raw_dir", str(folder), "--out_dir", str(out)]) == 0
        assert train(out, tmp_path / f"{folder.name}_run", "--epochs", "2") == 0
        models.append(torch.load(tmp_path / f"{folder.name}_run" / "last.pt", weights_only=True)["model"])
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


@pytest.mark.parametrize(("batch_size", "steps"), [(1, 40), (39, 2), (10**6, 1)])
def test_any_batch_size_trains(train, tmp_path, batch_size, steps):
    raw, data, run = (tmp_path / name for name in ("raw", "data", "run"))
    synthetic_netflix.generate(raw, num_users=40, num_movies=20, num_ratings=400, seed=0)
    assert netflix_preprocess.main(["--raw_dir", str(raw), "--out_dir", str(data)]) == 0
    assert train(data, run, "--epochs", "1", "--blend", "user", "--batch_size", str(batch_size)) == 0
    adam = torch.load(run / "last.pt", weights_only=True)["engines"][0]["layers"]
    assert {int(taken) for taken in adam["steps"]} == {steps}


def test_an_existing_run_is_not_overwritten_unasked(train, data_dir, run_dir, capsys):
    before = (run_dir / "last.pt").read_bytes()
    assert train(data_dir, run_dir) == 1
    assert "--resume" in capsys.readouterr().err
    assert (run_dir / "last.pt").read_bytes() == before


def test_eval_only_measures_the_same_again(train, data_dir, run_dir, tmp_path):
    shutil.copytree(run_dir, tmp_path / "run")
    (tmp_path / "run" / "test_metrics.json").unlink()
    assert train(data_dir, tmp_path / "run", "--eval_only") == 0
    again, before = (json.loads((folder / "test_metrics.json").read_text()) for folder in (tmp_path / "run", run_dir))
    assert again == before


def test_nonfinite_loss_names_epoch_step_and_rate_and_keeps_the_checkpoint(train, data_dir, tmp_path, capsys):
    assert train(data_dir, tmp_path, "--epochs", "1") == 0
    kept = (tmp_path / "last.pt").read_bytes()
    assert train(data_dir, tmp_path, "--epochs", "2", "--resume", "--l2", "1e38") == 1
    error = capsys.readouterr().err
    assert "epoch 2, step 1" in error and "--lr" in error
    assert (tmp_path / "last.pt").read_bytes() == kept


def test_resume_with_other_dimensions_names_both(data_dir, run_dir, capsys):
    assert main.main(["--data_dir", str(data_dir), "--run_dir", str(run_dir), "--resume", "--embedding_dim", "32",
                      "--ensemble_size", "2", "--hidden_dim", "16"]) == 1
    error = capsys.readouterr().err
    assert "--embedding_dim 16" in error and "32" in error


def test_a_missing_data_set_names_the_command_that_makes_it(train, tmp_path, capsys):
    assert train(tmp_path / "nothing", tmp_path / "run") == 1
    assert "python preprocessing/netflix_preprocess.py" in capsys.readouterr().err


def test_a_checkpoint_of_another_data_set_is_refused(train, raw_dir, run_dir, tmp_path, capsys):
    other = tmp_path / "other"
    netflix_preprocess.main(["--raw_dir", str(raw_dir), "--out_dir", str(other), "--seed", "5"])
    assert train(other, run_dir, "--resume") == 1
    assert "another data set" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--epochs", "0"], ["--lr", "0"], ["--lr", "nan"], ["--dropout", "1"],
                                   ["--embedding_dim", "10", "--ensemble_size", "4"], ["--epoch", "3"],
                                   ["--seed", "-1"],
                                   ["--resume", "--overwrite"], ["--batch_size", "0"], ["--num_threads", "0"]])
def test_wrong_flags_exit_with_code_2(flags):
    with pytest.raises(SystemExit) as exit_info:
        main.main(flags)
    assert exit_info.value.code == 2


@pytest.mark.parametrize(("flags", "most", "expected"), [
    (["--refit"], 0, True), (["--no-refit"], 10**9, False), ([], 10**9, True), ([], 100, False)])
def test_few_ratings_are_fitted_again_unless_it_is_asked_otherwise(flags, most, expected, data_dir, tmp_path, capsys,
                                                                   monkeypatch):
    assert main.REFIT_RATINGS == 10**7  # as README and the help say; a test of so many would take minutes
    monkeypatch.setattr(main, "REFIT_RATINGS", most)
    small = ["--embedding_dim", "8", "--ensemble_size", "2", "--hidden_dim", "8", "--num_threads", "1", "--epochs", "1"]
    assert main.main(["--data_dir", str(data_dir), "--run_dir", str(tmp_path), *small, *flags]) == 0
    assert torch.load(tmp_path / "best.pt", weights_only=True)["refit"] is expected
    assert ("refit   1" in capsys.readouterr().out) is expected


def test_refit_trains_on_validation_too_and_for_the_chosen_epochs(train, data_dir, tmp_path):
    assert train(data_dir, tmp_path, "--epochs", "3", "--refit") == 0
    best, last = (torch.load(tmp_path / name, weights_only=True) for name in ("best.pt", "last.pt"))
    assert best["refit"] and not last["refit"]
    assert best["epoch"] == last["best_epoch"]
    meta = json.loads((data_dir / "meta.json").read_text())["split"]
    assert int(best["model"]["user_based.movie_tower.num_ratings"].sum()) == meta["num_train"] + meta["num_validation"]
    assert int(last["model"]["user_based.movie_tower.num_ratings"].sum()) == meta["num_train"]
    assert json.loads((tmp_path / "test_metrics.json").read_text())["refit"] is True


@pytest.mark.parametrize("sides", ["user", "both"])
def test_in_the_end_movies_are_solved_from_all_that_is_known_before_the_test(sides, train, data_dir, tmp_path):
    assert train(data_dir, tmp_path, "--epochs", "1", "--blend", sides) == 0
    best, last = (torch.load(tmp_path / name, weights_only=True)["model"] for name in ("best.pt", "last.pt"))
    changed = [name for name in best if not torch.equal(best[name], last[name])]
    assert changed == ["folded_in"] * (sides == "both") + ["link.spread_weights", "relevance.weights"]
    if sides == "user":
        return
    known = load_dataset(data_dir, with_validation=True)
    model, _ = load_model(tmp_path / "best.pt", known.meta["fingerprint"])
    movie = int(torch.bincount(load_dataset(data_dir).validation.movie_idx.long()).argmax())
    own = known.train.movie_idx == movie
    users, side = known.train.user_idx()[own], model.item_based
    context = Context(torch.zeros_like(users), users, known.train.stars[own].float(), torch.zeros_like(users))
    with torch.no_grad():
        vector = side.user_vectors(side.movie_table(), side.user_embedding[movie:movie + 1], context, 0)[0]
    torch.testing.assert_close(best["folded_in"][movie], vector, rtol=1e-4, atol=1e-5)
    assert (best["folded_in"][movie] - last["folded_in"][movie]).abs().max() > 1e-3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_run_on_a_gpu_is_that_of_a_cpu_and_can_be_resumed_and_asked(train, data_dir, tmp_path, capsys):
    flags, rmse = ("--batch_size", "16", "--epochs"), {}
    for device in ("cpu", "cuda"):
        assert train(data_dir, tmp_path / device, "--device", device, *flags, "3") == 0
        rmse[device] = json.loads((tmp_path / device / "test_metrics.json").read_text())["two_tower"]["rmse"]
    assert rmse["cuda"] == pytest.approx(rmse["cpu"], abs=1e-3)
    assert train(data_dir, tmp_path / "cuda", "--device", "cuda", *flags, "4", "--resume") == 0
    capsys.readouterr()
    user_id = str(read_users(data_dir).user_id[0])
    assert rec.main(["--data_dir", str(data_dir), "--run_dir", str(tmp_path / "cuda"), "--user_id", user_id,
                     "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["recommendations"]) == 10


def test_old_names_of_flags_and_parts_mean_the_new_ones_and_are_not_in_the_help(capsys):
    old = ("--num_heads 2 --penalty 1 --film_prior 2 --drift_prior 3 --sides user "
           "--without solved_history,drift,mood")
    new = ("--ensemble_size 2 --l2 1 --movie_l2 2 --time_l2 3 --blend user "
           "--without fold_in,movie_bias_over_time,recent_user_bias")
    assert main.parse_args(old.split()) == main.parse_args(new.split()) != main.parse_args([])
    with pytest.raises(SystemExit):
        main.parse_args(["--help"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in new.split() if name.startswith("--"))
    assert not any(name in shown for name in old.split() if name.startswith("--") and name != "--without")
