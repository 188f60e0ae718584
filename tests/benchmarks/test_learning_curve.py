"""The learning curves: measuring the towers between epochs changes nothing, and the picture and the JSON agree."""

import dataclasses
import inspect
import json
import time

import pytest
from matplotlib import image

from benchmarks import compare_accuracy, learning_curve, peers

SMALL = ["--embedding_dim", "16", "--ensemble_size", "2", "--hidden_dim", "16", "--epochs", "3", "--batch_size", "64"]


@pytest.fixture
def small_towers(monkeypatch):
    parse = learning_curve.train_command.parse_args
    monkeypatch.setattr(learning_curve.train_command, "parse_args", lambda flags: parse([*flags, *SMALL]))


@pytest.mark.usefixtures("small_towers")
@pytest.mark.parametrize(("refit", "blend"), [(None, "user"), (None, "both"), (False, "user")])
def test_the_chosen_point_equals_a_run_of_main(data_dir, tmp_path, monkeypatch, refit, blend):
    monkeypatch.setitem(globals(), "SMALL", [*SMALL, "--blend", blend])
    curves, chosen = learning_curve.measure_towers(data_dir, compare_accuracy.check(data_dir), 1, 1, refit)
    written = compare_accuracy.train_towers(data_dir, tmp_path, 1, 1, [] if refit is None else ["--no-refit"])
    assert chosen["rounds"] == written["best_epoch"]
    assert chosen["rmse"] == pytest.approx(written["two_tower"]["rmse"], abs=1e-6)  # other blocks of users
    points, *second = curves.values()
    assert [point["rounds"] for point in points] == [1, 2, 3]
    if refit is None:
        assert [point["rounds"] for point in second[0]] == list(range(1, chosen["rounds"] + 1))
        points = points + second[0]
    assert points[-1] is chosen or not second
    seconds = [point["seconds"] for point in points]
    assert seconds == sorted(seconds) and seconds[0] > 0


@pytest.mark.usefixtures("small_towers")
@pytest.mark.parametrize(("flags", "clock"), [([], "perf_counter"), (["--cpu_time"], "process_time")])
def test_picture_table_and_json_hold_every_fit(data_dir, tmp_path, capsys, monkeypatch, flags, clock):
    clocks = []

    def fit(data, seed, num_threads, n_epochs, n_factors):  # with more epochs nearer to the bias model
        assert n_factors == 7
        clocks.append(time.perf_counter)
        fitted = peers.fit_bias(data, seed, num_threads)
        return dataclasses.replace(fitted, fit_s=float(n_epochs), movie_bias=fitted.movie_bias * (1 - 1 / n_epochs))

    expected_clock = getattr(time, clock)
    monkeypatch.setitem(learning_curve.PEERS, "svdpp", peers.Peer(fit, "imitation", "surprise", {"n_factors": (7,)}))
    monkeypatch.setattr(compare_accuracy, "importable", lambda package: True)
    out = tmp_path / "curve.png"
    assert learning_curve.main(["--data_dir", str(data_dir), "--out", str(out), "--models", "svdpp", "--rounds",
                                "svdpp=4,2,100", "--settings", "svdpp=n_factors:7", *flags]) == 0
    output = capsys.readouterr().out
    written = json.loads(output.strip().splitlines()[-1])
    points = written["curves"]["svdpp"]
    assert [(point["rounds"], point["seconds"]) for point in points] == [(2, 2.0), (4, 4.0), (100, 100.0)]
    assert clocks == [expected_clock] * 3 and written["cpu_time"] == (clock == "process_time")
    assert points[0]["rmse"] > points[1]["rmse"] > points[2]["rmse"] == pytest.approx(written["bias"], abs=2e-3)
    assert all(f"{point['rmse']:.4f}" in output for curve in written["curves"].values() for point in curve)
    until = points[0]["towers_as_good_s"]
    assert until == learning_curve.seconds_until(written["curves"], points[0]["rmse"]) and f"{until:.1f} s" in output
    assert image.imread(out).shape[1] == 900


def test_the_towers_are_as_good_at_the_first_point_of_either_fit():
    curves = {"two_tower": [{"seconds": 3.0, "rmse": 0.95}, {"seconds": 6.0, "rmse": 0.90}],
              "second_fit": [{"seconds": 9.0, "rmse": 0.93}, {"seconds": 12.0, "rmse": 0.88}],
              "svdpp": [{"seconds": 1.0, "rmse": 0.80}]}
    assert [learning_curve.seconds_until(curves, rmse) for rmse in (0.96, 0.95, 0.93, 0.90, 0.89, 0.85)] == [
        3.0, 3.0, 6.0, 6.0, 12.0, None]


def test_settings_are_those_of_a_peers_grid():
    args = learning_curve.parse_args(["--settings", "als=k:160,l2:0.06", "svd=reg_all:1"])
    assert dict(args.settings) == {"als": {"k": 160, "l2": 0.06}, "svd": {"reg_all": 1}}
    assert args.settings[0][1].keys() <= peers.PEERS["als"].grid.keys()


def test_labels_are_spread_in_their_order():
    assert learning_curve.spread([0.5, 0.1, 0.5, 0.9, 0.52], 0.25) == pytest.approx([0.5, 0.1, 0.75, 1.25, 1.0])


@pytest.mark.parametrize("name", list(learning_curve.ROUNDS))
def test_the_last_rounds_are_those_of_the_comparison(name):
    argument, numbers = learning_curve.ROUNDS[name]
    default = inspect.signature(peers.PEERS[name].fit).parameters[argument].default
    assert numbers[-1] == default and list(numbers) == sorted(numbers)


@pytest.mark.parametrize("name", ["svd", "als", "myfm"])
def test_more_rounds_are_another_fit(data_dir, name):
    if not peers.importable(peers.PEERS[name].package):
        pytest.skip(f"{peers.PACKAGES[peers.PEERS[name].package]} is not installed")
    data, argument = compare_accuracy.check(data_dir), learning_curve.ROUNDS[name][0]
    first, second, again = (
        compare_accuracy.test_errors(peers.PEERS[name].fit(data, 0, 1, **{argument: rounds}), data).rmse
        for rounds in (1, 4, 4))
    assert first != second == again


def test_a_missing_folder_is_told_before_anything_is_fitted(data_dir, tmp_path, capsys):
    out = tmp_path / "nothing" / "curve.png"
    assert learning_curve.main(["--data_dir", str(data_dir), "--out", str(out), "--models", "svd"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("flags", [["--models", "svd,nothing"], ["--num_threads", "0"], ["--seed", "-1"],
                                   ["--rounds", "svdpp=5,0"], ["--rounds", "svdpp"], ["--rounds", "nothing=5"],
                                   ["--settings", "svd"], ["--settings", "svd=n_epochs:5"], ["--settings", "als=k:x"],
                                   ["--settings", "nothing=k:5"], ["--out", "curve.pdf"],
                                   ["--cpu_time", "--num_threads", "2"]])
def test_wrong_flags_exit_with_code_2(flags):
    with pytest.raises(SystemExit) as exit_info:
        learning_curve.main(flags)
    assert exit_info.value.code == 2
