"""Each row of the ablations is a run of main.py with its flags, and its change is paired by seed."""

import json

import numpy as np
import pytest

from benchmarks import ablations, compare_accuracy
from models.config import PARTS

SMALL = ["--embedding_dim", "16", "--ensemble_size", "2", "--hidden_dim", "16", "--epochs", "1"]


def test_a_row_is_a_run_of_main_with_its_flags(data_dir, tmp_path, monkeypatch):
    parse = compare_accuracy.train_command.parse_args
    monkeypatch.setattr(compare_accuracy.train_command, "parse_args", lambda flags: parse([*SMALL, *flags]))
    measured = ablations.train_row(data_dir, ablations.ROWS["fold_in"], 1, 1)
    monkeypatch.undo()
    flags = ["--seed", "1", "--num_threads", "1", "--no-refit", *SMALL, "--without", "fold_in"]
    command = ["--data_dir", str(data_dir), "--run_dir", str(tmp_path / "run"), *flags]
    assert compare_accuracy.train_command.main(command) == 0
    written = json.loads((tmp_path / "run" / "test_metrics.json").read_text())
    assert measured["rmse"] == pytest.approx(written["two_tower"]["rmse"], abs=1e-9)
    assert measured["epochs"] == 1 and measured["ratings_per_s"] > 0


def test_changes_are_paired_by_seed(data_dir, capsys, monkeypatch):
    known = {"default": [0.90, 0.94, 0.92], "year": [0.91, 0.96, 0.92], "members": [0.89, 0.90, 0.91]}
    name_of = {(): "default", ("--without", "year"): "year",
               ("--ensemble_size", "1", "--embedding_dim", "32"): "members"}  # of 128 by default

    def imitate(data_dir, flags, seed, num_threads):
        return {"rmse": known[name_of[tuple(flags)]][seed], "epochs": 7, "ratings_per_s": 1000.0 * (seed + 1)}

    monkeypatch.setattr(ablations, "train_row", imitate)
    assert ablations.main(["--data_dir", str(data_dir), "--rows", "year,members", "--seeds", "3"]) == 0
    output = capsys.readouterr().out
    results = json.loads(output.strip().splitlines()[-1])["results"]
    assert list(results) == list(known)
    for name, values in known.items():
        change = np.subtract(values, known["default"])
        assert results[name]["rmse"] == pytest.approx(np.mean(values))
        assert results[name]["rmse_std"] == pytest.approx(np.std(values, ddof=1))
        assert results[name]["change"] == pytest.approx(change.mean())
        assert results[name]["change_std"] == pytest.approx(change.std(ddof=1))
        assert results[name]["ratings_per_s"] == pytest.approx(2000)
    assert "+0.0100 ± 0.0100" in output and "-0.0200 ± 0.0173" in output  # by hand: .01 .02 .00 and -.01 -.04 -.01


def test_every_part_of_the_model_has_a_row_of_its_own():
    assert {part for part in PARTS if ablations.ROWS.get(part) != ["--without", part]} == set()


def test_the_movie_side_is_a_row_only_where_there_is_one(data_dir, capsys):
    square, tall = {"num_users": 90, "num_movies": 90}, {"num_users": 900, "num_movies": 90}
    assert ablations.choose_rows(None, data_dir, square) == ["default", *ablations.ROWS]
    assert "item_based" not in ablations.choose_rows(None, data_dir, tall)
    assert ablations.main(["--data_dir", str(data_dir), "--rows", "item_based"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "400 users" in error and "item_based" in error


def test_a_missing_data_set_is_one_sentence(tmp_path, capsys):
    assert ablations.main(["--data_dir", str(tmp_path / "nothing")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("flags", [["--rows", "year,nothing"], ["--seeds", "0"], ["--num_threads", "0"],
                                   ["--cpu_time", "--num_threads", "2"]])
def test_wrong_flags_exit_with_code_2(flags):
    with pytest.raises(SystemExit) as exit_info:
        ablations.main(flags)
    assert exit_info.value.code == 2
