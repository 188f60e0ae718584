"""Run a script as several processes, as torchrun does, and compare what they leave."""

import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 120  # of every wait
# Ranks are forks of this process, which has imported what they need; threads of a GPU or of macOS would not survive it.
CONTEXT = multiprocessing.get_context("fork" if sys.platform == "linux" and not torch.cuda.is_available() else "spawn")
FLAGS = ["--embedding_dim", "16", "--ensemble_size", "2", "--hidden_dim", "16", "--num_threads", "1", "--epochs", "2",
         "--no-refit"]


def torchrun(num_processes: int, *flags: str, script: Path = ROOT / "main.py") -> list[subprocess.CompletedProcess]:
    """Run a script by the real torchrun, which speaks for all of its processes."""
    return [subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone",
                            f"--nproc_per_node={num_processes}", str(script), *FLAGS, *flags],
                           capture_output=True, text=True, timeout=LIMIT_S)]


def processes(num_processes: int, *flags: str, script: Path = ROOT / "main.py", common: Sequence[str] = FLAGS,
              hangs: int | None = None, **environment: str) -> list[subprocess.CompletedProcess]:
    """Run a script as torchrun does, but without its own process, and none imports torch anew, which takes 2 s each.

    Args:
        common: flags that stand before the others.
        hangs: a rank that stops; it is woken when the others have ended.
        environment: variables of all ranks.
    """
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": str(num_processes), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)} | environment
    command = [str(script), *common, *flags]
    with TemporaryDirectory() as folder:
        outputs = [[Path(folder, f"{name}{rank}") for name in ("stdout", "stderr")] for rank in range(num_processes)]
        started = [CONTEXT.Process(target=be_a_rank, args=(world | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                                                           command, output)) for rank, output in enumerate(outputs)]
        for process in started:
            process.start()
        for rank, process in enumerate(started):
            if rank != hangs:
                process.join()
        if hangs is not None:
            os.kill(started[hangs].pid, signal.SIGCONT)
            started[hangs].join()
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
        torch.testing.assert_close(tensor, other["model"][name], rtol=1e-4, atol=4e-4, msg=name)
    for engine, same in zip(one["engines"], other["engines"], strict=True):
        for name, tensor in engine["user_rows"].items():
            torch.testing.assert_close(tensor, same["user_rows"][name], rtol=1e-3, atol=1e-5, msg=name)
    for row, same in zip(one["metrics"], other["metrics"], strict=True):
        for name in ("train_loss", "train_rmse", "val_rmse", "val_mae"):
            assert row[name] == pytest.approx(same[name], rel=1e-5, nan_ok=True)
