import itertools
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import main
from preprocessing import netflix_preprocess, synthetic_netflix
from training.distributed import Ranks

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["--embedding_dim", "16", "--num_heads", "2", "--hidden_dim", "16", "--num_threads", "1", "--epochs", "2",
         "--no-refit"]


# main.py, but for one rank, which is killed before it shares the gradients of a step.
KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
import main
from training import distributed
from training.engine import Engine
left, shared = {step}, Engine.shared_gradients

def shared_gradients(engine, with_relevance):
    global left
    left -= 1
    if left == 0 and os.environ["RANK"] == "{rank}":
        os.kill(os.getpid(), signal.SIGKILL)
    return shared(engine, with_relevance)

Engine.shared_gradients = shared_gradients
distributed.leave(main.main())
"""


def torchrun(num_processes: int, *flags: str, script: Path = ROOT / "main.py") -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone",
                           f"--nproc_per_node={num_processes}", str(script), *FLAGS, *flags],
                          capture_output=True, text=True, timeout=120)


def processes(num_processes: int, *flags: str) -> list[subprocess.CompletedProcess]:
    """Start main.py as torchrun does, without its own process, which takes as long to start as each of them."""
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": str(num_processes), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    command = [sys.executable, str(ROOT / "main.py"), *FLAGS, *flags]
    started = [subprocess.Popen(command, env=os.environ | world | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
               for rank in range(num_processes)]
    said = [process.communicate(timeout=120) for process in started]
    return [subprocess.CompletedProcess(command, process.returncode, *both)
            for process, both in zip(started, said, strict=True)]


def load(run_dir: Path) -> dict:
    return torch.load(run_dir / "last.pt", weights_only=True)


def assert_same_run(one: dict, other: dict) -> None:
    for name, tensor in one["model"].items():
        # Adam turns the last bits of a small gradient into a part of a step.
        torch.testing.assert_close(tensor, other["model"][name], rtol=1e-4, atol=1e-4, msg=name)
    for engine, same in zip(one["engines"], other["engines"], strict=True):
        for name, tensor in engine["user_rows"].items():
            torch.testing.assert_close(tensor, same["user_rows"][name], rtol=1e-3, atol=1e-5, msg=name)
    for row, same in zip(one["metrics"], other["metrics"], strict=True):
        for name in ("train_loss", "train_rmse", "val_rmse", "val_mae"):
            assert row[name] == pytest.approx(same[name], rel=1e-5, nan_ok=True)


@pytest.mark.parametrize(("sides", "more"), [
    ("user", ["--with", "film_age,tenure"]), ("both", ["--refit", "--lr", "0.0003"])])
def test_two_ranks_equal_one(sides, more, data_dir, tmp_path):
    flags = ["--data_dir", str(data_dir), "--sides", sides, *more]
    assert main.main([*FLAGS, *flags, "--run_dir", str(tmp_path / "one")]) == 0
    speaker, other = processes(2, *flags, "--run_dir", str(tmp_path / "two"))
    assert speaker.returncode == other.returncode == 0, speaker.stderr + other.stderr
    assert_same_run(load(tmp_path / "one"), load(tmp_path / "two"))
    assert speaker.stdout.count("epoch   1") == 1 and not other.stdout  # one process speaks for all
    assert {path.name for path in (tmp_path / "two").iterdir()} == {
        "best.pt", "last.pt", "metrics.csv", "training.png", "test_metrics.json"}
    assert speaker.stdout.count("\nrefit ") == 2 * ("--refit" in more)  # both for as many epochs as were best
    one, two = (torch.load(tmp_path / name / "best.pt", weights_only=True) for name in ("one", "two"))
    assert one["refit"] is two["refit"] is ("--refit" in more) and one["epoch"] == two["epoch"]
    for name, tensor in one["model"].items():
        torch.testing.assert_close(tensor, two["model"][name], rtol=1e-3, atol=1e-3, msg=name)


def test_more_ranks_than_users_equal_one(tmp_path):
    raw, data = tmp_path / "raw", tmp_path / "data"
    synthetic_netflix.generate(raw, num_users=2, num_movies=30, num_ratings=40, seed=0)
    assert netflix_preprocess.main(["--raw_dir", str(raw), "--out_dir", str(data)]) == 0
    assert main.main(["--data_dir", str(data), "--run_dir", str(tmp_path / "one"), *FLAGS]) == 0
    for result in processes(3, "--data_dir", str(data), "--run_dir", str(tmp_path / "three")):
        assert result.returncode == 0, result.stderr
    assert_same_run(load(tmp_path / "one"), load(tmp_path / "three"))


def test_a_run_of_two_resumes_as_one(data_dir, tmp_path):
    assert main.main(["--data_dir", str(data_dir), "--run_dir", str(tmp_path / "whole"), *FLAGS]) == 0
    for result in processes(2, "--data_dir", str(data_dir), "--run_dir", str(tmp_path / "cut"), "--epochs", "2"):
        assert result.returncode == 0, result.stderr
    assert main.main(["--data_dir", str(data_dir), "--run_dir", str(tmp_path / "cut"), *FLAGS, "--resume"]) == 0
    assert_same_run(load(tmp_path / "whole"), load(tmp_path / "cut"))


@pytest.mark.parametrize("rank", [0, 1])
def test_when_a_rank_is_killed_the_other_ends_with_one_sentence_and_the_run_goes_on(rank, data_dir, tmp_path):
    flags = ["--data_dir", str(data_dir), "--batch_size", "64"]  # 7 steps an epoch
    assert main.main([*flags, "--run_dir", str(tmp_path / "whole"), *FLAGS]) == 0
    script = tmp_path / "killed.py"
    script.write_text(KILLED.format(root=str(ROOT), step=10, rank=rank))
    result = torchrun(2, *flags, "--run_dir", str(tmp_path / "cut"), script=script)
    assert result.returncode != 0
    # Either it finds its partner gone, or torchrun has noticed first and asks it to end.
    partner_gone = f"error: rank {1 - rank} stops because another process of the run has ended; the last checkpoint is"
    assert result.stderr.count(partner_gone) + result.stderr.count("\ninterrupted; go on with: python main.py") == 1
    assert "main.py\", line" not in result.stderr  # no traceback of ours; torchrun prints one of its own
    assert load(tmp_path / "cut")["epoch"] == 1
    assert main.main([*flags, "--run_dir", str(tmp_path / "cut"), *FLAGS, "--resume"]) == 0
    assert_same_run(load(tmp_path / "whole"), load(tmp_path / "cut"))


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_users_are_dealt_without_gap_or_overlap_and_by_their_ratings(size):
    offset = np.concatenate([[0], np.cumsum(np.random.default_rng(0).integers(1, 50, 200))])
    ranges = [Ranks(rank, size).user_range(offset) for rank in range(size)]
    assert ranges[0][0] == 0 and ranges[-1][1] == 200
    assert all(left[1] == right[0] for left, right in itertools.pairwise(ranges))
    shares = [offset[last] - offset[first] for first, last in ranges]
    assert max(shares) - min(shares) <= 2 * 50
