import itertools
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch

import main
from preprocessing import netflix_preprocess, synthetic_netflix
from training.distributed import Ranks

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 120  # of every wait
# Ranks are forks of this process, which has imported what they need; threads of a GPU or of macOS would not survive it.
CONTEXT = multiprocessing.get_context("fork" if sys.platform == "linux" and not torch.cuda.is_available() else "spawn")
FLAGS = ["--embedding_dim", "16", "--ensemble_size", "2", "--hidden_dim", "16", "--num_threads", "1", "--epochs", "2",
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


def torchrun(num_processes: int, *flags: str, script: Path = ROOT / "main.py") -> list[subprocess.CompletedProcess]:
    """Run a script by the real torchrun, which speaks for all of its processes."""
    return [subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone",
                            f"--nproc_per_node={num_processes}", str(script), *FLAGS, *flags],
                           capture_output=True, text=True, timeout=LIMIT_S)]


def processes(num_processes: int, *flags: str, script: Path = ROOT / "main.py") -> list[subprocess.CompletedProcess]:
    """Run a script as torchrun does, but without its own process, and none imports torch anew, which takes 2 s each."""
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": str(num_processes), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    command = [str(script), *FLAGS, *flags]
    with TemporaryDirectory() as folder:
        outputs = [[Path(folder, f"{name}{rank}") for name in ("stdout", "stderr")] for rank in range(num_processes)]
        started = [CONTEXT.Process(target=be_a_rank, args=(world | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                                                           command, output)) for rank, output in enumerate(outputs)]
        for process in started:
            process.start()
        for process in started:
            process.join()
        return [subprocess.CompletedProcess(command, process.exitcode, *(path.read_text() for path in output))
                for process, output in zip(started, outputs, strict=True)]


def be_a_rank(world: dict[str, str], command: list[str], output: list[Path]) -> None:
    signal.alarm(LIMIT_S)
    for number, path in enumerate(output, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    os.environ |= world
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")


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


@pytest.fixture(scope="module")
def whole(data_dir, tmp_path_factory) -> dict:
    """A run of one process that nobody cut, in 7 steps an epoch."""
    folder = tmp_path_factory.mktemp("whole")
    assert main.main([*FLAGS, "--data_dir", str(data_dir), "--run_dir", str(folder), "--batch_size", "64"]) == 0
    return load(folder)


@pytest.mark.parametrize(("sides", "more"), [
    ("user", []), ("both", ["--refit", "--lr", "0.0003"])])
def test_two_ranks_equal_one(sides, more, data_dir, tmp_path):
    flags = ["--data_dir", str(data_dir), "--blend", sides, *more]
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


def test_a_run_of_two_resumes_as_one(data_dir, whole, tmp_path):
    flags = ["--data_dir", str(data_dir), "--run_dir", str(tmp_path), "--batch_size", "64"]
    for result in processes(2, *flags):
        assert result.returncode == 0, result.stderr
    assert main.main([*flags, *FLAGS, "--resume"]) == 0
    assert_same_run(whole, load(tmp_path))


@pytest.mark.parametrize(("start", "rank"), [(torchrun, 1), (processes, 0), (processes, 1)])
def test_when_a_rank_is_killed_the_other_ends_with_one_sentence_and_the_run_goes_on(start, rank, data_dir, whole,
                                                                                    tmp_path):
    flags = ["--data_dir", str(data_dir), "--batch_size", "64", "--run_dir", str(tmp_path / "cut")]
    script = tmp_path / "killed.py"
    script.write_text(KILLED.format(root=str(ROOT), step=10, rank=rank))
    results = start(2, *flags, script=script)
    said = "".join(result.stderr for result in results)
    found = said.count(f"error: rank {1 - rank} stops because another process of the run has ended; the last "
                       "checkpoint is kept, go on from it with --resume\n")
    if start is torchrun:  # which may have noticed first and asked it to end
        assert results[0].returncode != 0 and found + said.count("\ninterrupted; go on with: python main.py") == 1
    else:
        assert found == 1 and (results[rank].returncode, results[1 - rank].returncode) == (-signal.SIGKILL, 1)
    assert "main.py\", line" not in said  # no traceback of ours; torchrun prints one of its own
    assert load(tmp_path / "cut")["epoch"] == 1
    assert main.main([*flags, *FLAGS, "--resume"]) == 0
    assert_same_run(whole, load(tmp_path / "cut"))


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_users_are_dealt_without_gap_or_overlap_and_by_their_ratings(size):
    offset = np.concatenate([[0], np.cumsum(np.random.default_rng(0).integers(1, 50, 200))])
    ranges = [Ranks(rank, size).user_range(offset) for rank in range(size)]
    assert ranges[0][0] == 0 and ranges[-1][1] == 200
    assert all(left[1] == right[0] for left, right in itertools.pairwise(ranges))
    shares = [offset[last] - offset[first] for first, last in ranges]
    assert max(shares) - min(shares) <= 2 * 50
