"""What calibration.py measures, on probabilities that are planted, and the whole command on a small run."""

import json

import pytest
import torch

from benchmarks import calibration
from benchmarks.calibration import Said, measure, reliability


def drawn(probabilities: torch.Tensor) -> Said:
    torch.manual_seed(0)
    return Said(probabilities.double(), torch.multinomial(probabilities, 1).squeeze(1))


def test_what_is_drawn_as_it_was_said_is_calibrated_and_what_is_too_sure_is_not():
    probabilities = torch.randn(60_000, 5).softmax(1)
    said = drawn(probabilities)
    row = measure(said)
    for percent in (50, 80, 95):
        assert row[f"within_{percent}"] == pytest.approx(percent / 100, abs=0.01)
    assert row["log_likelihood"] == pytest.approx(float((probabilities * probabilities.log()).sum(1).mean()), abs=0.01)
    chance, was = reliability(said, 3)
    assert len(chance) == 10 and (chance.diff() > 0).all()
    torch.testing.assert_close(chance, was, atol=0.02, rtol=0)
    too_sure = measure(Said((2.5 * probabilities.log()).softmax(1).double(), said.star))
    assert too_sure["within_50"] < 0.47 and too_sure["log_likelihood"] < row["log_likelihood"] - 0.05


def test_a_likelihood_by_hand():
    row = measure(Said(torch.tensor([[0.5, 0.5, 0], [0.1, 0.2, 0.7]]).double(), torch.tensor([0, 2])))
    assert row["ratings"] == 2 and row["log_likelihood"] == pytest.approx((-0.6931 - 0.3567) / 2, abs=1e-4)


def test_the_command_asks_test_ratings_and_draws(run_dir, data_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(calibration, "importable", lambda package: False)
    picture = tmp_path / "calibration.png"
    assert calibration.main(["--data_dir", str(data_dir), "--run_dir", str(run_dir), "--sizes", "",
                             "--picture", str(picture)]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]
    assert list(rows) == ["two towers", "shares of stars"] and picture.read_bytes()[1:4] == b"PNG"
    assert rows["two towers"]["log_likelihood"] > rows["shares of stars"]["log_likelihood"]
    assert rows["two towers"]["within_80"] == pytest.approx(0.8, abs=0.05)


def test_wrong_flags_end_with_code_2(capsys):
    for flags, sentence in ((["--sizes", "1,x"], "whole numbers up to 50"), (["--users", "0"], "at least 1"),
                            (["--picture", "a.jpg"], "must end with .png")):
        with pytest.raises(SystemExit) as stop:
            calibration.parse_args(flags)
        assert stop.value.code == 2 and sentence in capsys.readouterr().err
