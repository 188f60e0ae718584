"""Training as processes that are told to end, or killed, and what the next one makes of what they left."""

import csv
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from models.checkpoint import load_checkpoint
from preprocessing import netflix_preprocess
from preprocessing.dataset import read_meta

if not hasattr(signal, "SIGKILL"):
    pytest.skip("processes are ended by signals that Windows lacks", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["--epochs", "3", "--batch_size", "32"]  # 13 steps an epoch
SMALL = ["--embedding_dim", "16", "--ensemble_size", "2", "--hidden_dim", "16", "--num_threads", "1", "--no-refit"]
QUALITY = ("epoch", "train_loss", "train_rmse", "val_rmse", "val_mae", "lr")  # columns without time and memory
LIMIT_S = 120  # of every wait
# Sends itself a signal in the middle of a step: the moment is the same on any machine.
PROGRAM = """
import os, sys, main
from training.optimizer import TableSGD
left, which, take = int(sys.argv.pop(1)), int(sys.argv.pop(1)), TableSGD.step

def step(tables, factor):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), which)
    return take(tables, factor)

TableSGD.step = step
sys.exit(main.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def whole(train, data_dir, tmp_path_factory) -> Path:
    """A run that was never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    assert train(data_dir, folder, *FLAGS) == 0
    return folder


def rows_of(run_dir: Path) -> list[list[str]]:
    with open(run_dir / "metrics.csv") as file:
        return [[row[name] for name in QUALITY] for row in csv.DictReader(file)]


def in_python_anew(argv: list[str], stderr: Path) -> int:
    """Run the program in an interpreter of its own; return its exit code."""
    with open(stderr, "w") as file:
        return subprocess.run([sys.executable, "-c", PROGRAM, *argv], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=file,
                              timeout=LIMIT_S).returncode


def in_a_fork(argv: list[str], stderr: Path) -> int:
    """Run the program in a process that has imported all of it; return its exit code."""
    can_fork = sys.platform == "linux" and not torch.cuda.is_available()  # else there are threads that do not survive
    process = multiprocessing.get_context("fork" if can_fork else "spawn").Process(target=be_it, args=(argv, stderr))
    process.start()
    process.join()
    return process.exitcode


def be_it(argv: list[str], stderr: Path) -> None:
    signal.alarm(LIMIT_S)
    for number, path in ((1, os.devnull), (2, stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    sys.argv = ["-c", *argv]
    exec(PROGRAM, {"__name__": "__main__"})


def train_until(step: int, which: signal.Signals, start: Callable[[list[str], Path], int], data_dir: Path,
                run_dir: Path) -> tuple[int, str]:
    """Train in a process of its own to which a signal comes in a step; return its exit code and stderr."""
    with TemporaryDirectory() as folder:
        code = start([str(step), str(int(which)), "--data_dir", str(data_dir), "--run_dir", str(run_dir), *SMALL,
                      *FLAGS], Path(folder, "stderr"))
        return code, Path(folder, "stderr").read_text()


@pytest.mark.parametrize(("which", "start"), [(signal.SIGTERM, in_python_anew), (signal.SIGKILL, in_a_fork)])
def test_a_run_that_a_signal_ended_resumes_as_if_it_had_not(which, start, train, data_dir, whole, tmp_path):
    code, said = train_until(20, which, start, data_dir, tmp_path)
    checkpoint = load_checkpoint(tmp_path / "last.pt", read_meta(data_dir)["fingerprint"])
    assert checkpoint["epoch"] == 1
    if which is signal.SIGKILL:
        assert (code, said) == (-9, "")
    else:
        assert (code, said) == (143, f"\ninterrupted; go on with: python main.py --run_dir {tmp_path} --resume\n")
    assert train(data_dir, tmp_path, *FLAGS, "--resume") == 0
    assert rows_of(tmp_path) == rows_of(whole) and len(rows_of(whole)) == 3
    for name in ("last.pt", "best.pt"):
        model, other = (torch.load(folder / name, weights_only=True)["model"] for folder in (whole, tmp_path))
        assert model.keys() == other.keys()
        assert all(torch.equal(model[key], other[key]) for key in model)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in whole.iterdir()}


def test_sigterm_before_the_first_epoch_is_done_leaves_nothing(data_dir, tmp_path):
    code, said = train_until(2, signal.SIGTERM, in_a_fork, data_dir, tmp_path / "run")
    assert (code, said) == (143, "\ninterrupted; no epoch was finished, nothing was written; the same command "
                            "begins anew\n")
    assert list(tmp_path.iterdir()) == []


def test_resume_with_more_epochs_goes_on_and_with_fewer_has_nothing_to_do(train, data_dir, tmp_path, capsys):
    assert train(data_dir, tmp_path, "--epochs", "2") == 0
    before = rows_of(tmp_path)
    assert train(data_dir, tmp_path, "--epochs", "4", "--resume") == 0
    assert "resuming after epoch 2" in capsys.readouterr().out
    assert rows_of(tmp_path)[:2] == before and len(rows_of(tmp_path)) == 4
    assert train(data_dir, tmp_path, "--epochs", "3", "--resume") == 0
    assert len(rows_of(tmp_path)) == 4


def test_resume_with_more_patience_goes_on_where_less_had_stopped(train, data_dir, tmp_path):
    flags, lengths = ["--epochs", "40", "--lr", "0.02"], []
    for patience in ("1", "1", "2"):
        assert train(data_dir, tmp_path, *flags, "--patience", patience, *(["--resume"] if lengths else [])) == 0
        lengths.append(len(rows_of(tmp_path)))
        best = torch.load(tmp_path / "last.pt", weights_only=True)["best_epoch"]
        assert lengths[-1] == best + int(patience) < 20  # planned are 20
    assert lengths[0] == lengths[1] < lengths[2]


@pytest.mark.parametrize(("flags", "was", "asked"), [
    (("--embedding_dim", "32"), "--embedding_dim 16", "not 32"),
    (("--ensemble_size", "4"), "--ensemble_size 2", "not 4"),
    (("--hidden_dim", "24"), "--hidden_dim 16", "not 24"),
    (("--without", "mood,year"), "--without nothing", "not year,recent_user_bias"),
    (("--blend", "both"), "--blend user", "not both"),
])
def test_resume_with_other_dimensions_is_refused_naming_both(flags, was, asked, train, data_dir, whole, capsys):
    before = (whole / "last.pt").read_bytes()
    assert train(data_dir, whole, "--epochs", "4", "--resume", *flags) == 1
    said = capsys.readouterr().err
    assert f"was trained with {was}, {asked}" in said
    assert (whole / "last.pt").read_bytes() == before


def test_resume_on_another_data_set_is_refused_naming_both(train, raw_dir, data_dir, whole, tmp_path, capsys):
    other = tmp_path / "other"
    assert netflix_preprocess.main(["--raw_dir", str(raw_dir), "--out_dir", str(other), "--seed", "5"]) == 0
    assert train(other, whole, *FLAGS, "--resume") == 1
    said = capsys.readouterr().err
    assert all(read_meta(folder)["fingerprint"][:12] in said for folder in (data_dir, other))
