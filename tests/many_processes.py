"""Start a command as torchrun does, for tests: several processes, each a rank of one run."""

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

import torch

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 120  # of every wait
# Ranks are forks of this process, which has imported what they need; threads of a GPU or of macOS would not survive it.
CONTEXT = multiprocessing.get_context("fork" if sys.platform == "linux" and not torch.cuda.is_available() else "spawn")


def processes(num_processes: int, *flags: str, script: Path = ROOT / "main.py", common: Sequence[str] = (),
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
