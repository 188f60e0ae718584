"""Compile the loops of a CPU in processes of their own, beside a first run's imports and the reading of its data.

Nothing is done where an earlier run has left the compiled code.
"""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

LOOPS = Path(__file__).with_name("numba_loops.py")
LAST_OF = {"systems": "factorize", "sums": "row_adam"}  # the function that each process compiles last
_compilers: list[subprocess.Popen] = []


def start() -> None:
    """Begin to compile, in a process each, what is not there, unless another rank of this machine does it."""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return
    for some, last in LAST_OF.items():
        kept = (path.stat().st_mtime for folder in _folders() for path in folder.glob(f"numba_loops.{last}-*.nbi"))
        if max(kept, default=0.0) < LOOPS.stat().st_mtime:
            with contextlib.suppress(OSError):  # it is compiled where it is first called
                _compilers.append(subprocess.Popen(
                    [sys.executable, "-m", "models.ops.numba_loops", some], cwd=LOOPS.parents[2],
                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                    start_new_session=True))


def finish() -> None:
    """Wait until what `start` has begun is done."""
    for compiler in _compilers:
        compiler.wait()


def _folders() -> list[Path]:
    """Return where Numba keeps compiled code of this folder: in a folder that the environment names, or beside it."""
    named = os.environ.get("NUMBA_CACHE_DIR")
    return [*Path(named).glob(f"{LOOPS.parent.name}*")] if named else [LOOPS.parent / "__pycache__"]
